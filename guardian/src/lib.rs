//! The guardian: while CRIU works on a frozen container, a small process of its own sees to it that CRIU's death lets nothing run.
//!
//! Between seizing a tree and letting it go, CRIU thaws the tree's cgroup: only ptrace(2) holds the tasks then, and the kernel
//! releases them when CRIU dies, however it dies. But first it stops a traced process that is about to die
//! (`PTRACE_EVENT_EXIT`). So somebody traces CRIU, freezes the cgroup in that stop, and lets CRIU die then.
//!
//! - [`Guardian`] is the process, as godwit has it: started early, asked little. [`run_guardian`] is what it does.
//! - [`Guard`] is one CRIU that it watches, [`Brake`] what it does when that CRIU dies.
//! - [`end_repair`] gives sockets back to their programs that a dead CRIU has left in repair.
//!
//! When the guardian dies, the kernel lets CRIU go on; when both die, godwit pulls the brake itself, as soon as it knows.

mod brake;
mod guardian;
mod message;
mod process;
mod repair;
mod sys;

pub use brake::{Brake, is_guarded};
pub use guardian::{Ending, Guard, Guardian};
pub use process::run_guardian;
pub use repair::{Repaired, end_repair};

use nix::errno::Errno;

/// Why the guardian's process cannot do its work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
pub struct GuardianError {
    /// What was tried.
    doing: &'static str,
    /// What the kernel said.
    source: Errno,
}

impl GuardianError {
    pub(crate) fn when(doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self { doing, source }
    }
}
