//! What CRIU cannot carry is said before anything is touched: what it is, where, and what to do about it.

use crate::bed::{SRC, bed};
use crate::refusals::Hosts;

/// A program that does much of what CRIU cannot carry, or only when it is told to.
const PROGRAM: &str = r#"
import fcntl, os, socket, time
try:
    multipath = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
except OSError:
    multipath = None
locked = open("/work/locked", "w")
fcntl.flock(locked, fcntl.LOCK_EX)
large = open("/work/large", "wb")
large.write(os.urandom(80 << 20))
large.flush()
os.unlink("/work/large")
renamed = open("/work/one", "w")
os.link("/work/one", "/work/other")
os.unlink("/work/one")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.1)
    os._exit(0)
agent = socket.socket(socket.AF_UNIX)
agent.connect("/data/agent")
open("/work/ready", "w").write("no" if multipath is None else "yes")
while True:
    time.sleep(1)
"#;

#[test]
fn what_criu_cannot_carry_is_named_with_its_place_and_its_mend() {
    let Some(bed) = bed() else { return };
    let bed = &*bed;
    let waits = "until [ -e /data/agent ]; do sleep 0.05; done; exec python3 /data/program.py";
    bed.sh(SRC, &format!("testbed-container create hard --host-usr --args sh -c '{waits}'"));
    bed.write(SRC, "/srv/hard-data/program.py", PROGRAM);
    // an agent of the host, a process that was put into the container, and a debugger
    let script = "
        socat UNIX-LISTEN:/srv/hard-data/agent,fork SYSTEM:'sleep 600' < /dev/null > /dev/null 2>&1 &
        echo $! > /run/test.agent.pid
        for try in $(seq 500); do [ ! -e /srv/hard/rootfs/work/ready ] || break; sleep 0.02; done
        cat /srv/hard/rootfs/work/ready";
    let multipath = bed.sh(SRC, script);
    bed.sh(SRC, "runc exec -d hard tail -f /dev/null < /dev/null > /dev/null 2>&1");
    let pid =
        bed.sh(SRC, "runc state hard | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"pid\"])'");
    bed.sh(
        SRC,
        &format!(
            "strace -p {pid} -o /dev/null < /dev/null > /dev/null 2>&1 &
             echo $! > /run/test.strace.pid
             until grep -q 'TracerPid:[^0]*[1-9]' /proc/{pid}/status; do sleep 0.02; done"
        ),
    );
    let hosts = Hosts::now(bed);
    let (traced, process) = (format!("process {pid} (`python3`) is traced"), format!("of process {pid} is"));
    let mut words = vec![
        traced.as_str(),
        "(`strace`)",
        process.as_str(),
        "/work/locked` with a lock (FLOCK)",
        "--file-locks",
        "the deleted file `/work/large` of 80.0 MiB",
        "the deleted file `/work/one`, which has other names",
        "--link-remap",
        "is connected with a process outside of the container",
        "(`python3`) has ended in a session of others",
    ];
    // a kernel without it has no program that uses it
    if multipath == "yes" {
        words.extend(["a socket of protocol MPTCP", "GODEBUG=multipathtcp=0"]);
    }
    hosts.refuse(&[], &["runc:hard", "ssh://dst", "--no-copy", "/usr"], 13, &words);
}
