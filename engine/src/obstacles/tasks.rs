//! Tasks that CRIU cannot stop or cannot make again.

use crate::freezer::process_tree;
use godwit_transfer::message::Refusal;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Namespaces that CRIU takes along only as the first process's (namespaces.c, CLONE_SUBNS has the others).
const ONE_FOR_ALL: &[&str] = &["pid", "user", "uts", "ipc", "cgroup", "time"];
/// How often and how long a task must be seen in the same uninterruptible sleep before it counts as stuck: one that works on a
/// disk is in it, too, but comes out of it in between.
const LOOKS: u32 = 6;
const BETWEEN: Duration = Duration::from_millis(100);

/// Lines of /proc/PID/status (proc_pid_status(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Status {
    name: String,
    state: char,
    tracer: i32,
    threads: u32,
    /// The session, as the innermost pid namespace numbers it: 0 when its leader is outside.
    session: Option<i32>,
    /// Its number there.
    number: Option<i32>,
    parent: i32,
    /// How often it gave up the processor: unchanged while it sleeps.
    sleeps: u64,
}

impl Status {
    fn parse(text: &str) -> Option<Status> {
        let innermost = |ids: &str| ids.split_whitespace().last()?.parse().ok();
        let value = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        Some(Status {
            name: value("Name")?.to_owned(),
            state: value("State")?.chars().next()?,
            tracer: value("TracerPid")?.parse().ok()?,
            threads: value("Threads").and_then(|threads| threads.parse().ok()).unwrap_or(1),
            session: value("NSsid").and_then(innermost),
            number: value("NSpid").and_then(innermost),
            parent: value("PPid").and_then(|pid| pid.parse().ok()).unwrap_or(0),
            sleeps: value("voluntary_ctxt_switches").and_then(|count| count.parse().ok()).unwrap_or(0),
        })
    }

    fn of(pid: i32) -> Option<Status> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn is_left_in_anothers_session(&self) -> bool {
        // one from outside is no session to CRIU
        let session = self.session.filter(|session| *session != 0 && Some(*session) != self.number);
        self.state == 'Z'
            && self.threads <= 1
            && session.is_some()
            && session != Self::of(self.parent).and_then(|parent| parent.session)
    }

    fn obstacle(&self, pid: i32, tracer: &str) -> Option<Refusal> {
        let name = &self.name;
        if self.tracer != 0 {
            let who = self.tracer;
            return Some(
                Refusal::new(format!("process {pid} (`{name}`) is traced by process {who} (`{tracer}`)"))
                    .hint(format!("detach the debugger: end process {who}")),
            );
        }
        if self.state == 'Z' && self.threads > 1 {
            return Some(
                Refusal::new(format!(
                    "the first thread of process {pid} (`{name}`) has ended, and others live on"
                ))
                .hint("CRIU cannot move such a process: restart it"),
            );
        }
        (self.session == Some(0)).then(|| {
            Refusal::new(format!(
                "process {pid} (`{name}`) belongs to a session whose leader is outside: it was put into the container (`exec`)"
            ))
            .hint("end it, or start it there with `setsid`")
        })
    }
}

/// What is wrong with one task of the tree of `root`.
pub(super) fn obstacle(root: i32, pid: i32) -> Option<Refusal> {
    let mut status = Status::of(pid)?;
    // a process that ends looks like this for a moment, until its other threads have ended, too
    for _ in 1..LOOKS {
        if status.state != 'Z' || status.threads == 1 {
            break;
        }
        std::thread::sleep(BETWEEN);
        status = Status::of(pid)?;
    }
    let tracer = match status.tracer {
        0 => String::new(),
        tracer => std::fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default(),
    };
    status
        .obstacle(pid, tracer.trim())
        .or_else(|| nested(root, pid, &status.name))
        .or_else(|| host_segments(pid, &status.name))
}

/// Processes of the tree that have ended, of which nobody has taken notice, in a session that is neither theirs nor their parent's: CRIU
/// makes them below the session's leader, and then waits, at times for ever, until they come to their parent (criu/pie/restorer.c,
/// `wait_zombies`).
pub(super) fn uncollected(root: i32) -> Vec<Refusal> {
    let find = |pids: &BTreeSet<i32>| -> BTreeSet<i32> {
        let is_one =
            |pid: &&i32| Status::of(**pid).is_some_and(|status| status.is_left_in_anothers_session());
        pids.iter().filter(is_one).copied().collect()
    };
    let mut found = find(&process_tree(root));
    // most are taken notice of in a moment
    for _ in 1..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN);
        found = find(&found);
    }
    let refusal = |pid: &i32| {
        let Status { name, parent, .. } = Status::of(*pid)?;
        Some(
            Refusal::new(format!(
                "process {pid} (`{name}`) has ended in a session of others, and its parent, process {parent}, takes no notice: CRIU may \
                 wait for ever when it makes it again"
            ))
            .hint("start the container with a first process that takes notice (`--init`, tini)"),
        )
    };
    found.iter().filter_map(refusal).collect()
}

fn nested(root: i32, pid: i32, name: &str) -> Option<Refusal> {
    let link = |pid: i32, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let kind = ONE_FOR_ALL.iter().find(|kind| differs(link(root, kind), link(pid, kind)))?;
    Some(
        Refusal::new(format!("process {pid} (`{name}`) has a {kind} namespace of its own inside of the container"))
            .hint("CRIU cannot move nested ones: end it, or start it without its sandbox (`--no-sandbox`, `PrivateUsers=no`)"),
    )
}

/// A task that has gone has none, and stands in nobody's way.
fn differs(one: Option<PathBuf>, other: Option<PathBuf>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

/// System V memory is found by the namespace that it is in, and the host's is not taken along.
fn host_segments(pid: i32, name: &str) -> Option<Refusal> {
    let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/ipc")).ok();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    if !maps_segment(&maps) || differs(link(&pid.to_string()), link("self")) {
        return None;
    }
    Some(
        Refusal::new(format!("process {pid} (`{name}`) maps a System V segment of the host's IPC namespace"))
            .hint("start it in an IPC namespace of its own (`unshare --ipc`), where CRIU takes such segments along"),
    )
}

fn maps_segment(maps: &str) -> bool {
    maps.lines().any(|line| line.contains(" /SYSV"))
}

/// Tasks that wait in the kernel and do not come back.
pub(super) fn stuck(pids: &BTreeSet<i32>) -> Vec<Refusal> {
    let sleep =
        |pid: i32| Status::of(pid).filter(|status| status.state == 'D').map(|status| (pid, status.sleeps));
    let mut waiting: Vec<(i32, u64)> = pids.iter().filter_map(|pid| sleep(*pid)).collect();
    for _ in 1..LOOKS {
        if waiting.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN);
        waiting.retain(|same| sleep(same.0) == Some(*same));
    }
    waiting.into_iter().map(|(pid, _)| stuck_one(pid, &wchan(pid))).collect()
}

fn stuck_one(pid: i32, place: &str) -> Refusal {
    let place = if place.is_empty() { String::new() } else { format!(" in `{place}`") };
    Refusal::new(format!("process {pid} waits uninterruptibly{place}: it can neither be frozen nor stopped"))
        .hint("look whether a network or FUSE file system that it uses hangs, and move it when the process is free")
}

/// Where it waits (proc_pid_wchan(5)).
fn wchan(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    text.trim().trim_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    const STATUS: &str = "Name:\tredis server\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t9\nTracerPid:\t0\n\
                          Threads:\t5\nNSsid:\t4711\t1\n";

    fn told(text: &str) -> Option<String> {
        let refusal = Status::parse(text).unwrap().obstacle(9, "gdb")?;
        assert!(refusal.hint.is_some());
        Some(refusal.reason)
    }

    #[test]
    fn a_task_is_judged_by_its_status() {
        assert_eq!(told(STATUS), None);
        let traced = told(&STATUS.replace("TracerPid:\t0", "TracerPid:\t77")).unwrap();
        assert!(traced.contains("process 9 (`redis server`)") && traced.contains("77 (`gdb`)"), "{traced}");
        assert!(told(&STATUS.replace("State:\tS", "State:\tZ")).unwrap().contains("first thread"));
        assert_eq!(
            told(&STATUS.replace("State:\tS", "State:\tZ").replace("Threads:\t5", "Threads:\t1")),
            None
        );
        assert!(told(&STATUS.replace("4711\t1", "4711\t0")).unwrap().contains("session"));
        assert_eq!(Status::parse("Name:\tx\n"), None);
    }

    /// A child that is ended with this.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(program: &str, args: &[&str]) -> Running {
        let mut command = Command::new(program);
        Running(
            command
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    #[test]
    fn a_namespace_inside_is_seen() {
        let me = std::process::id().cast_signed();
        let child = start("unshare", &["--uts", "sleep", "30"]);
        let pid = child.0.id().cast_signed();
        let mut seen = None;
        for _ in 0..200 {
            // not all that may be in the way: whoever runs this may be in a session led from outside
            seen = nested(me, pid, "sleep");
            if seen.is_some() || !nix::unistd::Uid::effective().is_root() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if !nix::unistd::Uid::effective().is_root() {
            assert!(
                std::env::var_os("GODWIT_REQUIRE").is_none_or(|what| what != "all"),
                "this test needs root"
            );
            eprintln!("skipped: a namespace can only be made by root");
            return;
        }
        assert!(seen.unwrap().reason.contains("uts namespace of its own"));
        assert_eq!(nested(me, me, "me"), None);
    }

    #[test]
    fn segments_of_the_host_are_seen_in_maps() {
        assert!(maps_segment("7f00-7f01 rw-s 00000000 00:01 32768   /SYSV00000000 (deleted)\n"));
        assert!(!maps_segment("7f00-7f01 rw-s 00000000 00:01 32768   /srv/SYSV\n"));
    }

    #[test]
    fn nobody_is_stuck_who_only_sleeps() {
        let child = start("sleep", &["30"]);
        assert!(stuck(&BTreeSet::from([child.0.id().cast_signed()])).is_empty());
        assert!(stuck_one(5, "nfs_wait_bit_killable").reason.contains("in `nfs_wait_bit_killable`"));
    }
}
