//! Processes of this host that are at work for a migration whose own process is dead, or soon will be.

use godwit_migration::MigrationId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a runtime or a CRIU without master may take to give up.
const GIVING_UP: Duration = Duration::from_secs(60);

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
    let until = Instant::now() + GIVING_UP;
    loop {
        let at_work = at_work_in(dir);
        if at_work.is_empty() {
            return;
        }
        if Instant::now() > until {
            tracing::warn!(?at_work, "killed: they restore for nobody");
            for pid in at_work {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
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
