//! The guard of the handler: a second process with the same descriptor table, that only waits for its end.
//!
//! When a task forks, reading the event gives the handler a descriptor for the child's memory. Were the handler killed
//! before it passed it on, the descriptor would be closed with it, and the child's missing pages would read as zero. With
//! the guard it stays open, and the guard passes it on.

use super::journal::Journal;
use super::message::Message;
use crate::sys::process;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::{AsFd, BorrowedFd};

/// The running guard. It ends with the handler by itself, or when this is dropped.
pub(super) struct Guard {
    pid: Pid,
}

impl Guard {
    /// Starts it; to be called before there are other threads.
    pub(super) fn start(control: BorrowedFd<'_>, journal: &Journal) -> Result<Self, Errno> {
        let end = process::own_end()?;
        let pid = process::share_descriptors(|| {
            let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            if let Some((id, parent, fd)) = journal.unpassed_fork()
                && let Ok(uffd) = process::duplicate(fd)
                && (Message::Forked { id, parent }).send(control, &[uffd.as_fd()], true).is_ok()
            {
                journal.clear_inbox();
            }
        })?;
        // The descriptor belongs to both: it must stay open.
        std::mem::forget(end);
        Ok(Self { pid })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}
