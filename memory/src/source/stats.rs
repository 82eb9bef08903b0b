//! What a round did.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a round did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundStats {
    /// Address spaces looked at: tasks that share one count once.
    pub tasks: usize,
    /// Those of them whose writes the kernel reports.
    pub tracked: usize,
    /// The others, read in full, by host pid.
    pub untracked: Vec<(i32, Untracked)>,
    /// Pages handed over.
    pub pages: u64,
    /// Bytes that were reported as written, or are new.
    pub written_bytes: u64,
    /// Regions that the kernel reported.
    pub regions: u64,
    /// Pages among [`RoundStats::pages`] that were read again for the sake of O_DIRECT, or because they look swapped out.
    pub reread: u64,
    /// Pages that were gone when they were to be read; only while the tree runs.
    pub vanished: u64,
    /// Pages that nobody can read; only under the freeze, where none can go.
    pub unreadable: Vec<Unreadable>,
    /// Injections.
    pub attached: usize,
    /// The longest time that an injection stopped a thread.
    pub longest_stop: Duration,
    /// Tasks that were found to have one of our descriptors, by host pid, and could not be relieved of it: CRIU cannot
    /// dump them.
    pub leaked: Vec<(i32, i32)>,
    /// Mappings that cannot be registered and are read in full each time.
    pub unregistered: usize,
    /// Where the time went.
    pub seconds: RoundSeconds,
}

/// Where the time of a round went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundSeconds {
    /// Finding the tasks, and injections.
    pub attach: f64,
    /// Reading the lists of mappings.
    pub maps: f64,
    /// Registration, and asking what was written.
    pub scan: f64,
    /// Reading private pages, with the sink's time.
    pub read: f64,
    /// Shared objects, with the sink's time.
    pub shared: f64,
    /// Looking through descriptors.
    pub descriptors: f64,
    /// All of it.
    pub total: f64,
}

/// Pages that nobody can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Task, by host pid.
    pub pid: i32,
    /// First address.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// Range and name of the mapping.
    pub mapping: String,
}

/// Why a task's writes are not reported to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Untracked {
    /// The method does not track.
    #[error("every page is read each round")]
    Method,
    /// It appeared under the freeze.
    #[error("it appeared under the freeze")]
    Frozen,
    /// Somebody else traces it.
    #[error("task {by} traces it")]
    Traced {
        /// The tracer's host pid.
        by: i32,
    },
    /// 32-bit code.
    #[error("it runs 32-bit code")]
    Not64Bit,
    /// No vDSO, or one without the instruction.
    #[error("its vDSO has no `syscall` instruction")]
    NoSyscallInstruction,
    /// Syscall user dispatch.
    #[error("it turns system calls into signals")]
    Dispatch,
    /// Its seccomp filters cannot be suspended.
    #[error("its seccomp filters cannot be suspended (that needs CAP_SYS_ADMIN)")]
    Filtered,
    /// No thread of it could be stopped.
    #[error("it could not be stopped within 200 ms")]
    Busy,
    /// It ended meanwhile.
    #[error("it ended")]
    Gone,
    /// A call failed.
    #[error("`{what}` failed: {why}")]
    Failed {
        /// The call.
        what: String,
        /// The error.
        why: String,
    },
}

impl Untracked {
    pub(crate) fn failed(what: &str, errno: Errno) -> Self {
        Self::Failed { what: what.into(), why: errno.desc().to_lowercase() }
    }
}
