//! Processes of this host that are at work for a migration whose own process is dead, or soon will be.

use godwit_migration::MigrationId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a runtime or a CRIU without master may take to give up.
const GIVING_UP: Duration = Duration::from_secs(60);
/// Those that have used no processor for so long wait for somebody who is dead.
const STUCK: Duration = Duration::from_secs(5);

/// Tells a process that still waits for its source that it has lost it: the source is here, and speaks with another one. Only one that
/// serves a single connection is told.
pub(crate) fn end_the_receiver(pid: Option<i32>) {
    let Some(pid) = pid else { return };
    let arguments = arguments(pid);
    if ["receive", "--stdio"].iter().all(|word| arguments.iter().any(|argument| argument == word)) {
        tracing::info!(pid, "its source speaks with another process now");
        let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
    }
}

/// Waits until no runtime and no CRIU is at work in a migration's directory; at last they are killed, and what they leave
/// is held or nothing.
pub(crate) fn await_the_end_of_restores(dir: &Path) {
    let begun = Instant::now();
    let (mut last, mut changed) = (Vec::new(), begun);
    loop {
        let at_work = at_work_in(dir);
        if at_work.is_empty() {
            return;
        }
        let progress: Vec<_> = at_work.iter().map(|pid| (*pid, ticks(*pid))).collect();
        if progress != last {
            (last, changed) = (progress, Instant::now());
        }
        if changed.elapsed() > STUCK || begun.elapsed() > GIVING_UP {
            tracing::warn!(?at_work, "killed: they restore for nobody");
            for pid in at_work {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processor time that a process has used, in ticks (`utime` and `stime` of proc_pid_stat(5)).
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // behind the name, which may hold anything
    let fields = stat.rsplit_once(") ").map(|(_, behind)| behind.split(' ').skip(11).take(2));
    fields.into_iter().flatten().filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Runtimes and CRIUs that are told of the directory or sit in it.
fn at_work_in(dir: &Path) -> Vec<i32> {
    let text = dir.to_string_lossy().into_owned();
    processes(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let sits = || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        let is_told = || arguments(pid).iter().any(|argument| argument.contains(&text));
        ["runc", "crun", "criu"].iter().any(|tool| name.starts_with(tool)) && (sits() || is_told())
    })
}

/// Whether the handler of its page faults is at work: it is told whose it is.
pub(crate) fn is_filling(id: &MigrationId) -> bool {
    !processes(|pid| {
        let arguments = arguments(pid);
        arguments.iter().any(|argument| argument == "fill")
            && arguments.iter().any(|argument| argument == id.as_str())
    })
    .is_empty()
}

fn processes(wanted: impl Fn(i32) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| wanted(*pid)).collect()
}

fn arguments(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// What godwit takes for a CRIU at work in `dir`.
    fn criu(dir: &Path, script: &str) -> std::process::Child {
        let program = dir.join("criu");
        std::fs::copy("/bin/sh", &program).unwrap();
        Command::new(program).args(["-c", script]).current_dir(dir).spawn().unwrap()
    }

    #[test]
    fn who_waits_for_the_dead_is_ended_and_who_works_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        await_the_end_of_restores(dir.path());
        assert!(begun.elapsed() < Duration::from_secs(1));

        let mut works =
            criu(dir.path(), "end=$(($(date +%s) + 6)); while [ $(date +%s) -lt $end ]; do :; done; exit 7");
        await_the_end_of_restores(dir.path());
        assert_eq!(works.wait().unwrap().code(), Some(7));

        let mut waits = criu(dir.path(), "kill -STOP $$");
        let begun = Instant::now();
        await_the_end_of_restores(dir.path());
        assert!((STUCK..3 * STUCK).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert_eq!(waits.wait().unwrap().signal(), Some(9));
    }
}
