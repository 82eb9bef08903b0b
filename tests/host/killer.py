"""Kills CRIU, its guardian or both with SIGKILL at a chosen moment, and looks whether the container runs then.

killer.py VICTIMS WHEN CGROUP DELAY_MS
  VICTIMS  criu, guardian, or guardian,criu
  WHEN     dump: CRIU has seized the tasks of the frozen cgroup and has thawed it; restore: the first task exists;
           traced: CRIU holds a task by ptrace(2), the first one from its beginning; caught: one that is restored and goes
           by its own name again, as CRIU does to all before it lets them run

godwit is stopped from the kill on for a while, so that it does nothing about it. Prints one line of JSON.
"""
import glob, json, os, signal, sys, time

victims, when, cgroup, delay = sys.argv[1].split(","), sys.argv[2], sys.argv[3], float(sys.argv[4]) / 1000
directory = "/sys/fs/cgroup/" + cgroup
HELD = 0.3


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def send(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def called(name):
    """The processes of that name."""
    return [int(path.split("/")[2]) for path in glob.glob("/proc/[0-9]*/comm") if read(path) == name + "\n"]


def status(pid, field):
    lines = [line.split() for line in read(f"/proc/{pid}/status").splitlines()]
    return next((int(line[1]) for line in lines if line[0] == field + ":"), 0)


def the_criu():
    """Not the tasks that it restores, which go by its name at first."""
    pids = called("criu")
    return [pid for pid in pids if status(pid, "PPid") not in pids]


def tasks(but=()):
    """Those of the container: runtimes put CRIU and themselves there, too."""
    pids = [int(pid) for pid in read(directory + "/cgroup.procs").split()]
    runtime = ("runc\n", "godwit\n", "godwit-hold\n", "exe\n")
    return [pid for pid in pids if pid not in but and read(f"/proc/{pid}/comm") not in runtime]


def is_traced(pid):
    return status(pid, "TracerPid") != 0


def ran():
    """Time at a processor of each thread, ns."""
    paths = [path for pid in tasks() for path in glob.glob(f"/proc/{pid}/task/*/schedstat")]
    texts = {path: read(path) for path in paths}
    return {path: int(text.split()[0]) for path, text in texts.items() if text}


def is_gone(pid):
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] in ([], ["Z"])


def is_frozen():
    return "frozen 1" in read(directory + "/cgroup.events")


def has_come():
    if when == "dump":
        return read(directory + "/cgroup.freeze") == "0\n"
    for pid in tasks(criu):
        is_restored = when == "caught" and read(f"/proc/{pid}/comm") != "criu\n"
        if when == "restore" or is_traced(pid) and (when == "traced" or is_restored):
            return True
    return False


print("waiting", flush=True)
if when == "dump":
    while read(directory + "/cgroup.freeze") != "1\n":
        time.sleep(0.0002)
else:
    while not the_criu() or not tasks():
        pass
# all that takes long comes before the moment
criu, guardians, godwits = the_criu(), called("godwit-guard"), called("godwit")
while not has_come():
    pass
time.sleep(delay)
send(godwits, signal.SIGSTOP)
said = {"criu": criu, "held": sum(map(is_traced, tasks(criu))), "thawed": read(directory + "/cgroup.freeze") == "0\n"}
for victim in victims:
    send({"criu": criu, "guardian": guardians}[victim], signal.SIGKILL)
# Where much else runs, a thread may be late to find that it is to stop. What CRIU holds is frozen already as far as the cgroup
# knows, and moves for some microseconds from the one state to the other when CRIU is gone.
until = time.time() + 3
while time.time() < until and not (is_frozen() and all(map(is_gone, criu))):
    time.sleep(0.001)
time.sleep(0.02)
before = ran()
time.sleep(HELD)
ran_ns = sum(now - before[path] for path, now in ran().items() if path in before)
said |= {"tasks": len(tasks()), "ran_ns": ran_ns, "frozen": is_frozen()}
send(godwits, signal.SIGCONT)
print(json.dumps(said), flush=True)
