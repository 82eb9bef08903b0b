//! Processes, signals and the clock.

use super::{Failure, checked};
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The one that called, with the number of the other.
    Parent(i32),
    /// The new one.
    Child,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Forks. The other threads of this process must hold no lock that the child needs; the child may go on as it likes,
/// for glibc puts its heap in order on both sides.
pub fn fork() -> Result<Forked, Failure> {
    // SAFETY: see above.
    match checked("fork", unsafe { libc::fork() })? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as i32)),
    }
}

/// Forks, executes this program with one argument, and waits for its end.
pub fn exec_self(argument: &str) -> Result<(), Failure> {
    let program = c"/proc/self/exe";
    let argument = CString::new(argument).map_err(|_| Failure { call: "execv", errno: libc::EINVAL })?;
    let words = [program.as_ptr(), argument.as_ptr(), std::ptr::null()];
    // SAFETY: the child calls execv and _exit only; the words are strings that end, and a null.
    let pid = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::execv(program.as_ptr(), words.as_ptr());
            libc::_exit(127);
        }
        pid
    };
    checked("fork for exec", pid)?;
    loop {
        match wait(pid, false) {
            Ok(Some(Ended::Code(0))) => return Ok(()),
            // the number says which; these are no errors of system calls, but they should not happen either
            Ok(Some(Ended::Code(code))) => {
                return Err(Failure { call: "exit code after execv", errno: code });
            }
            Ok(Some(Ended::Signal(signal))) => {
                return Err(Failure { call: "signal after execv", errno: signal });
            }
            Ok(None) => {}
            Err(failure) if failure.errno == libc::EINTR => {}
            Err(failure) => return Err(failure),
        }
    }
}

/// How a child ended; `None` when it runs, which only happens with `glance`.
pub fn wait(pid: i32, glance: bool) -> Result<Option<Ended>, Failure> {
    let mut status = 0;
    // SAFETY: the status is ours.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, if glance { libc::WNOHANG } else { 0 }) };
    Ok(match checked("waitpid", ended)? {
        0 => None,
        _ if libc::WIFSIGNALED(status) => Some(Ended::Signal(libc::WTERMSIG(status))),
        _ => Some(Ended::Code(libc::WEXITSTATUS(status))),
    })
}

/// Ends this process at once, without the destructors that belong to its parent.
pub fn exit(code: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(code) }
}

/// Number of the parent.
pub fn parent() -> i32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::getppid() }
}

/// How often SIGUSR1 came.
pub static ASKED: AtomicU64 = AtomicU64::new(0);
/// Whether SIGTERM or SIGINT came.
pub static ENDING: AtomicBool = AtomicBool::new(false);

extern "C" fn note(signal: i32) {
    if signal == libc::SIGUSR1 {
        ASKED.fetch_add(1, Ordering::Relaxed);
    } else {
        ENDING.store(true, Ordering::Relaxed);
    }
}

/// Listens to SIGUSR1, SIGTERM and SIGINT from now on.
pub fn listen() {
    for signal in [libc::SIGUSR1, libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only touches atomics.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// The clock that no time namespace moves, nanoseconds.
pub fn realtime_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is ours; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
