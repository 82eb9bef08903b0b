//! The unsafe corner: ptrace(2), descriptors of other processes, and settings of our own.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `PTRACE_EVENT_STOP`, in the third byte of a wait status.
const EVENT_STOP: i32 = 128;

/// Why a traced process is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It is about to end, and keeps all that it holds until it is resumed.
    Exit,
    /// It is stopped as a whole, by SIGSTOP or the like.
    Group,
    /// A signal is about to be delivered to it (0: none).
    Signal(i32),
    /// It has ended; the status of wait(2).
    Gone(i32),
}

/// Traces process `pid` from now on, without stopping it: it stops by itself when it is about to end, and for its signals.
pub(crate) fn seize(pid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, pid, libc::PTRACE_O_TRACEEXIT as usize)
}

/// Lets a stopped process run on, with a signal (0: none).
pub(crate) fn resume(pid: i32, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, pid, signal as usize)
}

/// Leaves a process stopped as a whole, until somebody else continues it.
pub(crate) fn leave_stopped(pid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_LISTEN, pid, 0)
}

/// The status that a process in [`Stop::Exit`] will end with, as wait(2) will give it.
pub(crate) fn coming_status(pid: i32) -> Result<u64, Errno> {
    let mut status: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, pid, &raw mut status as usize)?;
    Ok(status)
}

fn request(request: u32, pid: i32, data: usize) -> Result<(), Errno> {
    // SAFETY: the requests of this file take no pointer but one to an unsigned long in a caller's frame, for the kernel to
    // write; glibc's own handling of PEEK requests does not apply to any of them.
    Errno::result(unsafe { libc::ptrace(request, pid, 0usize, data) }).map(drop)
}

/// What a traced process has to tell, if any has.
pub(crate) fn heard() -> Option<(i32, Stop)> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid only writes `status`.
        match Errno::result(unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::WNOHANG) }) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => return None,
            Ok(pid) => return Some((pid, meaning(status))),
        }
    }
}

fn meaning(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Gone(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        libc::PTRACE_EVENT_EXIT => Stop::Exit,
        EVENT_STOP if matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => {
            Stop::Group
        }
        0 => Stop::Signal(signal),
        _ => Stop::Signal(0),
    }
}

/// Makes this process one that is there when it is needed: under its own name, before all others at the processor, with its
/// memory kept, and spared when memory runs out. Whatever it has no right to do is left out.
pub(crate) fn prepare(name: &std::ffi::CStr) {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: plain system calls on the calling process; the name and the parameter live until they return.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        if libc::sched_setscheduler(0, libc::SCHED_RR, &first) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
        // what was used once stays; faulting in everything would take time, and the program is much larger than what is used
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    }
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Puts process `pid` before others at the processor. A traced process stops for each of its signals, and would have to wait for
/// its turn each time. Nothing happens without the right to do so.
pub(crate) fn prefer(pid: i32) {
    // SAFETY: no pointers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, pid.cast_unsigned(), -20) };
}

/// Takes ownership of a descriptor number the kernel has just given us.
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: callers pass only numbers fresh from the kernel, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A descriptor for process `pid` (pidfd_open(2)).
pub(crate) fn open_process(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call touches no memory of ours; the descriptor it gives is new.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    Errno::result(raw).map(|raw| adopt(raw as RawFd))
}

/// A duplicate of descriptor `number` of a process (pidfd_getfd(2)), which need not do anything for it.
pub(crate) fn take_descriptor(process: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: as above.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    Errno::result(raw).map(|raw| adopt(raw as RawFd))
}

/// An option of a socket whose value is a C int.
pub(crate) fn socket_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: value and size are live, and the size is the value's.
    let got = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut size)
    };
    Errno::result(got).map(|_| value)
}

/// Sets such an option.
pub(crate) fn set_socket_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> Result<(), Errno> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is live, and the size is its own.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_told_apart() {
        let stopped = |signal: i32, event: i32| event << 16 | signal << 8 | 0x7f;
        assert_eq!(meaning(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXIT)), Stop::Exit);
        assert_eq!(meaning(stopped(libc::SIGCHLD, 0)), Stop::Signal(libc::SIGCHLD));
        assert_eq!(meaning(stopped(libc::SIGSTOP, EVENT_STOP)), Stop::Group);
        assert_eq!(meaning(stopped(libc::SIGTRAP, EVENT_STOP)), Stop::Signal(0));
        assert_eq!(meaning(libc::SIGKILL), Stop::Gone(libc::SIGKILL));
    }
}
