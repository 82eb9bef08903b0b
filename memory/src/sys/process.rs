//! Settings of the running process and thread that `std` has no word for.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Gives the calling thread this nice value (setpriority(2): on Linux it is the thread's own), and lets its sleeps end on
/// time instead of 50 µs later (`PR_SET_TIMERSLACK`). Nothing happens without the right to do so.
pub(crate) fn set_pace(nice: i32) {
    // SAFETY: neither call touches memory of ours; 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0);
    }
}

/// Lets the calling thread run as soon as it can, before every thread of the ordinary scheduler (`SCHED_FIFO`, sched(7)); what it
/// starts later does not. For a thread that works for some microseconds when somebody waits for it. Nothing happens without the
/// right to do so.
pub(crate) fn come_first() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread; the structure outlives the call.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &lowest);
    }
}

/// Undoes [`come_first`] and [`set_pace`]: the calling thread gives way to every other one (nice value 19). For what it has yet
/// to put away when nobody waits for it any more.
pub(crate) fn come_last() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the structure outlives the call.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &none);
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

/// Allows as many open descriptors as the process may have: one for each task of a big container is more than the usual
/// 1024. Nothing happens if it cannot be.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid structure for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// A descriptor that becomes readable when this process has ended (pidfd_open(2)).
pub(crate) fn own_end() -> Result<OwnedFd, Errno> {
    // SAFETY: the call touches no memory of ours; the descriptor it gives is new.
    unsafe {
        let raw = Errno::result(libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0))?;
        Ok(OwnedFd::from_raw_fd(raw as RawFd))
    }
}

/// Starts a process that has memory of its own, as after fork(2), but the same descriptor table (`CLONE_FILES`, clone(2)):
/// what one opens the other has, and nothing is closed while one of them lives. It runs `child`, which should need little,
/// and ends. To be called before there are other threads.
pub(crate) fn share_descriptors(child: impl FnOnce()) -> Result<Pid, Errno> {
    // SAFETY: without `CLONE_VM` and with no stack of its own this is a fork; the child leaves with `_exit`, so that nothing
    // of the parent's is run twice.
    unsafe {
        let flags = (libc::CLONE_FILES | libc::SIGCHLD) as libc::c_ulong;
        match Errno::result(libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0))? {
            0 => {
                child();
                libc::_exit(0)
            }
            pid => Ok(Pid::from_raw(pid as i32)),
        }
    }
}

/// A second descriptor of what is open under this number, if anything is.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: any number may be asked for; the descriptor it gives is new.
    unsafe {
        let raw = Errno::result(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}
