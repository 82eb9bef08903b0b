//! PostgreSQL under load and a Node.js server, moved there and back: many processes with shared memory, and a collected heap
//! with compiled code.

use crate::bed::{Bed, CLIENT, DST, SRC, bed};
use crate::container::assert_runs_only_on;
use crate::godwit::{Background, godwit_with};
use serde_json::Value;

/// In a container as user 1000: makes a data base, and lets two times two clients work on it for so many seconds.
pub const SERVE: &str = r#"#!/bin/sh
PATH=/usr/lib/postgresql/17/bin:/usr/bin
cd /data
initdb -D /data/base -A trust --no-sync > /dev/null || exit
echo 'host all all 10.77.0.0/24 trust' >> /data/base/pg_hba.conf
postgres -D /data/base -c shared_buffers=128MB -c unix_socket_directories=/data -c listen_addresses='*' \
    -c max_wal_size=256MB 2> /data/server.log &
until pg_isready -q -h /data -d postgres; do sleep 0.1; done
createdb -h /data bench
psql -q -h /data -c 'create extension amcheck; create extension pg_prewarm' bench
pgbench -q -i -s 5 -h /data bench 2> /dev/null
psql -q -h /data -c "select pg_prewarm('pgbench_accounts')" bench > /dev/null
for host in /data 127.0.0.1; do
    # -n: the one would empty the table of transactions while the other works
    pgbench -n -c 2 -T "$1" -R 150 -P 1 -h $host bench > /data/bench.${host##*/} 2>&1 &
done
touch /data/ready
wait
"#;

/// Sums that are one sum in every state that is whole.
pub const SUMS: &str =
    "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
    (select sum(tbalance) from pgbench_tellers), (select sum(delta) from pgbench_history),
    (select count(*) from pgbench_history)";

/// Seconds that the clients work.
const LOAD: u32 = 30;

#[track_caller]
pub fn moved(bed: &Bed, reference: &str, from: &str, flags: &[&str]) -> Value {
    let there = if from == SRC { "ssh://dst" } else { "ssh://src" };
    let words = ["--json", "migrate", reference, there, "--no-copy", "/usr", "--tcp-established"];
    // its clients leave no processor idle: at a gentle pace the first round lasts so long that its memory outgrows the room for it
    let words = [&words[..], &["--on-timeout", "switchover", "--pace", "full"], flags].concat();
    let summary = godwit_with(bed, from, &[], &words).summary();
    assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
    assert_eq!(summary["memory"]["restoration"], "local-lazy", "{summary}");
    eprintln!(
        "{reference} from {from}: downtime {} us, {}, {}",
        summary["downtime_us"], summary["downtime"], summary["memory"]
    );
    summary
}

/// Two times two clients are at work on the data base in `data` on the source.
#[track_caller]
pub fn assert_at_work(bed: &Bed, data: &str) {
    bed.sh(SRC, &format!("timeout 100 sh -c 'until [ -e {data}/ready ]; do sleep 0.1; done'; sleep 2"));
    let processes = bed.sh(SRC, "pgrep -cx postgres").parse::<u32>().unwrap();
    assert!(processes >= 9, "{processes} processes");
}

/// The transactions that clients were told of, by what pgbench says at its end; none of them has failed.
#[track_caller]
pub fn told(said: &str) -> u64 {
    assert!(said.contains("number of failed transactions: 0 (0.000%)"), "{said}");
    let processed = "number of transactions actually processed: ";
    let line = said.lines().find_map(|line| line.strip_prefix(processed)).expect(said);
    line.parse().unwrap()
}

/// Waits for the clients on `host`, and asserts that what they were told, and those who were told of `elsewhere`, is what is there;
/// `exec` runs a program in the container.
#[track_caller]
pub fn assert_no_transaction_is_lost(bed: &Bed, host: &str, data: &str, exec: &str, elsewhere: u64) {
    bed.sh(host, "timeout 100 sh -c 'while pgrep -x pgbench; do sleep 0.1; done'");
    let of_clients =
        ["data", "127.0.0.1"].map(|name| told(&bed.sh(host, &format!("cat {data}/bench.{name}"))));
    let transactions = of_clients.iter().sum::<u64>() + elsewhere;
    let run = |words: &str| bed.sh(host, &format!("{exec} /usr/lib/postgresql/17/bin/{words}"));
    let sums = run(&format!("psql -h /data -At -c '{SUMS}' bench"));
    let sums: Vec<i64> = sums.split('|').map(|sum| sum.parse().unwrap()).collect();
    assert!(sums[..4].iter().all(|sum| *sum == sums[0]), "PROMISE BROKEN: {sums:?}");
    assert_eq!(sums[4], transactions as i64, "PROMISE BROKEN: transactions that were told to the clients");
    assert!(transactions > 1000, "only {transactions}");
    assert_eq!(run("pg_amcheck -h /data --heapallindexed bench"), "");
    // whoever asked too early was told so
    let log =
        bed.sh(host, &format!("grep -v 'FATAL:  the database system is starting up' {data}/server.log"));
    for bad in ["PANIC", "FATAL", "terminated by signal", "recovery"] {
        assert!(!log.contains(bad), "{log}");
    }
}

#[test]
fn postgresql_loses_no_transaction() {
    let Some(bed) = bed() else { return };
    bed.write(SRC, "/srv/pg-data/serve", SERVE);
    let create = "testbed-container create pg --host-usr --user 1000 --seccomp default";
    bed.sh(SRC, &format!("{create} --args sh /data/serve {LOAD}"));
    assert_at_work(&bed, "/srv/pg-data");
    for from in [SRC, DST] {
        moved(&bed, "runc:pg", from, &[]);
        assert_runs_only_on(&bed, if from == SRC { DST } else { SRC }, "pg");
    }
    assert_no_transaction_is_lost(&bed, SRC, "/srv/pg-data", "runc exec pg", 0);
}

/// Answers what a record holds; two timers never stop to replace records and to make garbage.
const SERVER: &str = r#"
const http = require('http'), crypto = require('crypto');
const content = (n, version) => crypto.createHash('sha256').update(n + ':' + version).digest('hex').repeat(20);
const records = new Map();
for (let n = 0; n < 60000; n++) records.set(n, { version: 0, text: content(n, 0) });
let next = 0;
setInterval(() => {
    for (let i = 0; i < 60; i++, next = (next + 7919) % 60000) {
        const version = records.get(next).version + 1;
        records.set(next, { version, text: content(next, version) });
    }
}, 10);
setInterval(() => { global.garbage = Array.from({ length: 20000 }, (_, i) => ({ i, text: 'x' + i })); }, 50);
http.createServer((request, response) => {
    const n = Number(request.url.slice(1)), { version, text } = records.get(n);
    response.end(JSON.stringify({ n, version, hash: crypto.createHash('sha256').update(text).digest('hex') }));
}).listen(8080, '0.0.0.0');
"#;

/// Asks it over one connection until told to end, and knows the answers.
const ASK: &str = r#"
import hashlib, http.client, json, signal, sys, time
ended = []
signal.signal(signal.SIGINT, lambda *_: ended.append(1))
server = http.client.HTTPConnection(sys.argv[1], 8080, timeout=20)
asked, longest, seen = 0, 0, {}
while not ended:
    n = asked * 104729 % 60000
    begun = time.monotonic()
    server.request("GET", f"/{n}")
    answer = json.load(server.getresponse())
    longest = max(longest, time.monotonic() - begun)
    text = hashlib.sha256(f"{n}:{answer['version']}".encode()).hexdigest() * 20
    assert answer["n"] == n and answer["hash"] == hashlib.sha256(text.encode()).hexdigest(), answer
    assert answer["version"] >= seen.get(n, 0), (answer, seen[n])
    seen[n] = answer["version"]
    asked += 1
    if asked == 1:
        print("ready", flush=True)
    time.sleep(0.001)
print(f"asked {asked} longest {longest * 1000:.0f} ms")
"#;

#[test]
fn a_node_server_answers_on() {
    let Some(bed) = bed() else { return };
    bed.write(SRC, "/srv/node-data/server.js", SERVER);
    bed.write(CLIENT, "/run/test.ask", ASK);
    bed.sh(
        SRC,
        "testbed-container create node 10.77.0.101 --host-usr --user 1000 --seccomp default --args node /data/server.js",
    );
    bed.sh(CLIENT, "timeout 60 sh -c 'until nc -z -w 1 10.77.0.101 8080; do sleep 0.1; done'");
    let mut asking = Background::start(&bed, CLIENT, &["python3", "/run/test.ask", "10.77.0.101"]);
    asking.wait_for("the first answer", |line| line == "ready");
    for from in [SRC, DST] {
        moved(&bed, "runc:node", from, &[]);
        assert_runs_only_on(&bed, if from == SRC { DST } else { SRC }, "node");
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    asking.signal("INT");
    let said = asking.finish();
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let asked: u64 =
        said.out.split_whitespace().skip_while(|word| *word != "asked").nth(1).unwrap().parse().unwrap();
    assert!(asked > 500, "{}", said.out);
    eprintln!("node: {}", said.out);
}
