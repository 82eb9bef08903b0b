//! What outlasts a process of godwit: texts that another one understands, and tasks that it recognises.

use crate::error::EngineError;
use procfs::process::Process;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;
use std::time::{Duration, Instant};

/// The kernel's name for the time since it was started (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A process that cannot be taken for another one that has its number later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Born {
    pid: i32,
    /// Clock ticks after the start of the kernel: field 22 of proc_pid_stat(5).
    ticks: u64,
    boot: String,
}

impl Born {
    pub(crate) fn of(pid: i32) -> Result<Self, EngineError> {
        let unreadable = |error: procfs::ProcError| EngineError::Unreadable {
            path: format!("/proc/{pid}/stat").into(),
            reason: error.to_string(),
        };
        let stat = Process::new(pid).and_then(|process| process.stat()).map_err(unreadable)?;
        Ok(Self { pid, ticks: stat.starttime, boot: this_boot()? })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still lives; a zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        if this_boot().ok().as_ref() != Some(&self.boot) {
            return false;
        }
        let stat = Process::new(self.pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.starttime == self.ticks && !matches!(stat.state, 'Z' | 'X'))
    }
}

/// Names the time since this kernel was started.
///
/// # Errors
/// When /proc is not mounted.
pub(crate) fn this_boot() -> Result<String, EngineError> {
    let text = std::fs::read_to_string(BOOT).map_err(EngineError::io("read", Path::new(BOOT)))?;
    Ok(text.trim().to_owned())
}

pub(crate) fn written(what: &impl Serialize) -> Result<String, EngineError> {
    serde_json::to_string(what).map_err(|error| EngineError::Unreadable {
        path: "what would remain".into(),
        reason: error.to_string(),
    })
}

pub(crate) fn understood<T: DeserializeOwned>(text: &str) -> Result<T, EngineError> {
    serde_json::from_str(text)
        .map_err(|error| EngineError::Unreadable { path: "what remains".into(), reason: error.to_string() })
}

/// Waits until nobody traces any of these tasks: a CRIU whose master died gives up, but not at once. Whether it came to that.
pub fn wait_until_untraced(pids: impl Fn() -> Vec<i32>, limit: Duration) -> bool {
    let is_traced = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    };
    let begun = Instant::now();
    while pids().iter().any(is_traced) {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
