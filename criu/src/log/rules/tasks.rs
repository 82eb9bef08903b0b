//! Processes, namespaces, cgroups; memory between rounds.

use super::Subject::{Cgroup, Memory, Namespaces, Processes};
use super::{Rule, rule};

const PID_TAKEN: &str =
    "restore into a pid namespace of its own, or end the process with that pid (`ps -p PID`)";
const LOST_ROUND: &str = "an earlier round's images are missing or of another chain: start the move again, \
                          with a tracker that keeps no chain (`--tracker auto`)";
const COMPARE_CGROUPS: &str = "compare the cgroup hierarchies and controllers of both hosts: `godwit check DESTINATION`, `cat /proc/cgroups`";
const WAITS: &str = "look at its state and stack in /proc/PID/status and /proc/PID/stack; a hanging network file system \
                     is a common reason, and a debugger (`TracerPid`) another";

pub(super) const RULES: &[Rule] = &[
    rule(&["in parent pagemap"], Memory, "a page that should be in an earlier round is not there", LOST_ROUND)
        .at(&[("address", "Missing ", " in parent")]),
    rule(&["not found in parent"], Memory, "a page that should be in an earlier round is not there", LOST_ROUND)
        .at(&[("address", "Hole ", " not found")]),
    rule(&["No parent for snapshot pagemap"], Memory, "a page should be in an earlier round, and there is none", LOST_ROUND),
    rule(&["Pid-reuse detection failed"], Memory, "the parent directory has no inventory", LOST_ROUND),
    rule(&["lazy-pages.socket"], Memory, "nobody serves the memory on demand",
        "the lazy pages server must listen in the restore's work directory before the restore"),
    rule(&["No lazy-pages socket"], Memory, "nobody serves the memory on demand",
        "the lazy pages server must listen in the restore's work directory before the restore"),
    rule(&["Invalid parent image directory"], Memory, "the directory of the earlier round is not there",
        "a path to the parent is relative to the images directory"),
    rule(&["No parent image found"], Memory, "the parent directory does not have this image",
        "harmless when the process is new; else an earlier round's images are missing"),
    rule(&["page server doesn't answer"], Memory, "the page server on the other host has ended",
        "look at its log there; it needs room for the pages"),
    rule(&["Page read err"], Memory, "an image of pages is not whole", LOST_ROUND),
    // Processes
    rule(&["Can't fork for", "File exists"], Processes, "a pid of the container is taken on this host", PID_TAKEN)
        .at(&[("pid", "Can't fork for ", ":")]),
    rule(&["Pid", "do not match expected"], Processes, "a pid of the container is taken on this host", PID_TAKEN)
        .at(&[("pid", "expected ", "")]),
    rule(&["intersects with"], Processes, "a number of the container's processes is that of CRIU's own session here",
        "restore into a pid namespace of its own, or start again").at(&[("pid", "(", ")")]),
    rule(&["ns_last_pid"], Processes, "pids cannot be chosen in this pid namespace",
        "criu must be root with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in it; inside a container it is not"),
    rule(&["First PID in a PID namespace"], Processes, "the tree's root is not process 1 of a pid namespace",
        "restore it on a host where its pids are free, not into a pid namespace of its own"),
    rule(&["already being traced"], Processes, "a process of the container is traced by a debugger", "detach the debugger (`grep TracerPid /proc/PID/status`)"),
    rule(&["is already traced"], Processes, "a process of the container is traced by a debugger", "detach the debugger (`grep TracerPid /proc/PID/status`)")
        .at(&[("pid", "SEIZE ", ":")]),
    rule(&["Unseizable non-zombie"], Processes, "a process cannot be stopped: it is traced, or waits in the kernel", WAITS)
        .at(&[("pid", "non-zombie ", " found"), ("state", "state ", "")]),
    rule(&["found while seizing"], Processes, "a process ended while it was being stopped", "try again")
        .at(&[("pid", "zombie ", ""), ("program", "(comm ", ")")]),
    rule(&["Timeout reached"], Processes, "the processes could not be stopped in time", WAITS),
    rule(&["criu itself is within"], Processes, "CRIU runs in the tree that it is to dump", "run godwit outside of the container"),
    rule(&["pid reused while suspending"], Processes, "a process changed its parent while it was being stopped", "try again")
        .at(&[("pid", "(", ":")]),
    rule(&["Can't write pidfile"], Processes, "the pid file exists already", "remove the pid file of the earlier restore"),
    rule(&["ombie", "thread"], Processes, "a process has a dead thread group leader with living threads", "restart that process"),
    rule(&["session leader of", "outside of its pid namespace"], Processes,
        "a process belongs to a session of outside: it was put into the container (`exec`)",
        "end it, or let it make a session of its own (`setsid`)").at(&[("pid", "process ", "("), ("pid", "leader of ", "(")]),
    rule(&["Individually stopped threads"], Processes, "some threads of a process are stopped and others are not",
        "let all of them go on: `kill -CONT`"),
    rule(&["pending SIGTRAP"], Processes, "a debugger or profiler has left a trap in a thread", "detach it, and try again")
        .at(&[("thread", "dump the ", " thread")]),
    rule(&["uprobes vma"], Processes, "a process is being traced with uprobes", "end the tracer on the source (bpftrace, perf)")
        .at(&[("pid", "PID ", " has")]),
    rule(&["killed by signal 11:"], Processes,
        "a restored process crashed: most often restartable sequences (glibc 2.35 and newer) with an old criu or kernel",
        "use criu 3.17 or newer with kernel 5.13 or newer on both hosts, or start the program with `GLIBC_TUNABLES=glibc.pthread.rseq=0`")
        .at(&[("pid", "", " killed by")]),
    // Namespaces
    rule(&["Nested mount namespaces"], Namespaces, "the container has mount namespaces inside",
        "CRIU cannot move them together with this user namespace"),
    rule(&["external netns"], Namespaces, "the network namespace was not handed to the restore under the dump's key",
        "make the namespace before the restore; images of an earlier dump in the same directory do this too")
        .at(&[("key", "netns: ", "")]),
    rule(&["external pidns"], Namespaces, "the pid namespace was not handed to the restore under the dump's key",
        "make the namespace before the restore").at(&[("key", "pidns: ", "")]),
    rule(&["Can't dump nested"], Namespaces, "a process has a namespace inside the container's (as systemd's services and browsers make)",
        "end it, or start it without a sandbox of its own").at(&[("kind", "nested ", " namespace"), ("pid", "namespace for ", "")]),
    rule(&["restore sub-task in NS"], Namespaces, "a process has a namespace inside the container's (as systemd's services and browsers make)",
        "end it, or start it without a sandbox of its own"),
    rule(&["pid namespace without"], Namespaces, "the tree is part of a pid namespace and not all of it",
        "move the whole container: its process 1 and all below"),
    rule(&["doesn't live in IPC ns"], Namespaces, "the tree maps System V memory of the host", "give it an IPC namespace of its own")
        .at(&[("pid", "Task ", " with")]),
    rule(&["target user namespace"], Namespaces, "the container's namespaces belong to different user namespaces",
        "start it with all of its namespaces made in its user namespace"),
    // Cgroups
    rule(&["Unable to freeze cgroup"], Cgroup, "the cgroup could not be frozen in time", WAITS)
        .at(&[("cgroup", "cgroup ", " (")]),
    rule(&["cgroupv1 (freezer.state)"], Cgroup, "the cgroup to freeze has no freezer",
        "name the container's own cgroup directory, of cgroup v2 or of the v1 freezer hierarchy"),
    rule(&["cgroup.freeze"], Cgroup, "the cgroup to freeze has no freezer",
        "name the container's own cgroup directory, of cgroup v2 or of the v1 freezer hierarchy"),
    rule(&["cgns prefix"], Cgroup, "the images hold the cgroup path of another container id",
        "restore under the same id, or rewrite the id in `cgroup.img`").at(&[("cgroup", "prefix ", ":")]),
    rule(&["controller", "not found"], Cgroup, "a cgroup controller of the source is not on this host", COMPARE_CGROUPS)
        .at(&[("controller", "controller ", " not found")]),
    rule(&["cgroup"], Cgroup, "a cgroup of the container cannot be had on this host", COMPARE_CGROUPS),
    rule(&["cg:"], Cgroup, "a cgroup of the container cannot be had on this host", COMPARE_CGROUPS),
];
