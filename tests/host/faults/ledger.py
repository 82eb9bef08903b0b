"""ledger: two clients of a PostgreSQL, each over one connection: every transaction changes an account and enters that in the
ledger. At SIGINT it asks, over a new connection, for each transaction that was acknowledged, and whether accounts and ledger
agree in every state that was committed.

  ledger ADDRESS
"""
import json
import signal
import subprocess
import sys
import threading
import time

PSQL = ["stdbuf", "-oL", "/usr/lib/postgresql/17/bin/psql", "-X", "-h", sys.argv[1], "-U", "keeper", "-d", "postgres"]
ACCOUNTS = 50
# seconds for a server that is being moved to answer
PATIENCE = 30

ended = threading.Event()
signal.signal(signal.SIGINT, lambda *_: ended.set())


def ask(words, tries=1):
    for left in reversed(range(tries)):
        done = subprocess.run(PSQL + ["-v", "ON_ERROR_STOP=1", "-Atq", "-c", words], capture_output=True, text=True,
                              timeout=PATIENCE, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        if left:
            time.sleep(0.1)
    sys.exit(f"{words}: {done.stderr}")


class Client(threading.Thread):
    def __init__(self, number):
        super().__init__(daemon=True)
        self.number, self.acknowledged, self.broken = number, 0, None
        self.psql = subprocess.Popen(PSQL, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     text=True, start_new_session=True)

    def run(self):
        while not ended.is_set():
            n = self.acknowledged + 1
            account, delta = n * 7 % ACCOUNTS, n % 13 - 6
            try:
                self.psql.stdin.write(
                    f"begin; update account set balance = balance + {delta} where id = {account};"
                    f" insert into ledger values ({self.number}, {n}, {delta}); commit;\n")
                self.psql.stdin.flush()
            except OSError as error:
                self.broken = str(error)
                return
            for expected in ("BEGIN", "UPDATE 1", "INSERT 0 1", "COMMIT"):
                line = self.psql.stdout.readline().strip()
                if line != expected:
                    self.broken = f"`{line}` instead of {expected}"
                    return
            self.acknowledged = n
            time.sleep(0.005)


ask("create table account (id int primary key, balance bigint); create table ledger (client int, n int, delta int,"
    f" primary key (client, n)); insert into account select n, 0 from generate_series(0, {ACCOUNTS - 1}) n", tries=300)
clients = [Client(number) for number in (1, 2)]
for client in clients:
    client.start()
while not all(client.acknowledged > 20 or client.broken for client in clients):
    time.sleep(0.01)
print("ready", flush=True)
ended.wait()
deadline = time.monotonic() + PATIENCE
for client in clients:
    client.join(max(0, deadline - time.monotonic()))
    if client.is_alive():
        client.broken = "no answer"
    client.psql.kill()
lost = 0
for client in clients:
    there = ask(f"select count(*) from ledger where client = {client.number} and n between 1 and {client.acknowledged}")
    lost += client.acknowledged - int(there)
sums = ask("select (select sum(balance) from account) = (select sum(delta) from ledger)")
print(json.dumps({
    "message_type": "ledger", "acknowledged": sum(client.acknowledged for client in clients), "lost": lost,
    "sums_equal": sums == "t", "broken": [client.broken for client in clients if client.broken]}), flush=True)
