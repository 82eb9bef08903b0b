//! Running a system call in a task, to get a userfaultfd of its address space. No byte of its memory is changed.
//!
//! One thread is stopped; the others run on. Its registers are set to a `syscall` instruction of the vDSO, it runs from
//! there to the end of the call, and gets its registers back in a stop of the kind in which the kernel restarts an
//! interrupted call.

use super::maps::Span;
use super::stats::Untracked;
use crate::sys::ptrace::{Resume, Stop, Tracee};
use crate::sys::task;
use crate::sys::userfaultfd::Userfaultfd;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How long a thread may take to stop: it does at once unless it waits uninterruptibly.
const STOP_PATIENCE: Duration = Duration::from_millis(200);
/// How often a thread is caught where it must not be disturbed before we give up.
const TRIES: usize = 20;
/// `UFFD_USER_MODE_ONLY`.
const USER_MODE_ONLY: i32 = 1;
/// The code segment of 64-bit user code on x86-64.
const USER_CS: u64 = 0x33;

/// What an injection gave.
#[derive(Debug)]
pub(crate) struct Injected<T> {
    pub(crate) value: T,
    /// For how long the thread did not run.
    pub(crate) stopped: Duration,
}

/// A userfaultfd of the task's address space. `linger` delays the close in the task: for tests.
pub(crate) fn userfaultfd(
    pid: i32,
    vdso: Span,
    mem: &File,
    linger: Duration,
) -> Result<Injected<Userfaultfd>, Untracked> {
    let mem =
        mem.try_clone().map_err(|error| Untracked::Failed { what: "dup".into(), why: error.to_string() })?;
    in_a_thread(move |progress| {
        hijack(pid, vdso, &mem, progress, |remote| {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            let mut fd = remote.call(libc::SYS_userfaultfd, flags as u64)?;
            if fd == -i64::from(libc::EPERM) {
                fd = remote.call(libc::SYS_userfaultfd, (flags | USER_MODE_ONLY) as u64)?;
            }
            if fd < 0 {
                return Err(Untracked::failed("userfaultfd", Errno::from_raw(-fd as i32)));
            }
            let copy = task::pidfd(pid, remote.tid)
                .and_then(|pidfd| task::descriptor_of(&pidfd, fd as RawFd))
                .map_err(|errno| Untracked::failed("pidfd_getfd", errno));
            if !linger.is_zero() {
                std::thread::sleep(linger);
            }
            remote.call(libc::SYS_close, fd as u64)?;
            copy.map(Userfaultfd::from_fd)
        })
    })
}

/// Closes a descriptor in a task.
pub(crate) fn close(pid: i32, vdso: Span, mem: &File, fd: RawFd) -> Result<Injected<()>, Untracked> {
    let mem =
        mem.try_clone().map_err(|error| Untracked::Failed { what: "dup".into(), why: error.to_string() })?;
    in_a_thread(move |progress| {
        hijack(pid, vdso, &mem, progress, |remote| remote.call(libc::SYS_close, fd as u64).map(drop))
    })
}

/// Whether a thread has stopped, or is not waited for any more.
type Progress = AtomicU8;
const WAITING: u8 = 0;
const STOPPED: u8 = 1;
const ABANDONED: u8 = 2;

/// Runs it in a thread of its own, which can be left alone with a task that does not stop.
fn in_a_thread<T: Send + 'static>(
    work: impl FnOnce(&Progress) -> Result<T, Untracked> + Send + 'static,
) -> Result<T, Untracked> {
    let progress = Arc::new(Progress::new(WAITING));
    let (sender, receiver) = mpsc::channel();
    let shared = Arc::clone(&progress);
    std::thread::Builder::new()
        .name("inject".into())
        .spawn(move || drop(sender.send(work(&shared))))
        .map_err(|error| Untracked::Failed { what: "thread".into(), why: error.to_string() })?;
    match receiver.recv_timeout(STOP_PATIENCE) {
        Ok(result) => result,
        Err(_) => match progress.compare_exchange(WAITING, ABANDONED, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Err(Untracked::Busy),
            // It has registers that are not its own: this must end well.
            Err(_) => receiver.recv().unwrap_or(Err(Untracked::Busy)),
        },
    }
}

/// A stopped thread in which system calls can be run.
struct Remote {
    tid: i32,
    tracee: Tracee,
    saved: libc::user_regs_struct,
    syscall: u64,
}

fn hijack<T>(
    pid: i32,
    vdso: Span,
    mem: &File,
    progress: &Progress,
    work: impl FnOnce(&Remote) -> Result<T, Untracked>,
) -> Result<Injected<T>, Untracked> {
    let syscall = find_syscall(vdso, mem).ok_or(Untracked::NoSyscallInstruction)?;
    let tid = willing_thread(pid);
    let tracee = Tracee::seize(tid).map_err(|errno| match errno {
        Errno::ESRCH => Untracked::Gone,
        errno => Untracked::failed("ptrace", errno),
    })?;
    let mut start = Instant::now();
    let mut tries = 0;
    let saved = loop {
        stop(&tracee)?;
        let registers = tracee.registers().map_err(gone)?;
        if registers.cs != USER_CS {
            tracee.detach().map_err(gone)?;
            return Err(Untracked::Not64Bit);
        }
        if !tracee.unfiltered && is_filtered(pid) {
            tracee.detach().map_err(gone)?;
            return Err(Untracked::Filtered);
        }
        if tracee.dispatches() {
            tracee.detach().map_err(gone)?;
            return Err(Untracked::Dispatch);
        }
        if !in_restartable_sequence(&tracee, mem, registers.rip) {
            break registers;
        }
        // Leaving and re-entering a restartable sequence unnoticed would break its atomicity: elsewhere, then.
        tries += 1;
        if tries == TRIES {
            tracee.detach().map_err(gone)?;
            return Err(Untracked::Busy);
        }
        tracee.resume(Resume::Freely, 0).map_err(gone)?;
        std::thread::sleep(Duration::from_micros(100));
        start = Instant::now();
    };
    // whatever was known of it was known before the stop: after an exec there is no `syscall` instruction at that place
    if vdso_of(pid) != Some(vdso.start) {
        tracee.detach().map_err(gone)?;
        return Err(Untracked::Busy);
    }
    if progress.compare_exchange(WAITING, STOPPED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        tracee.detach().map_err(gone)?;
        return Err(Untracked::Busy);
    }
    let saved = restarted(saved);
    // Handlers must not run with our registers. SIGTRAP and faults need not be left out: none is raised.
    let blocked = tracee.blocked().map_err(gone)?;
    tracee.block(u64::MAX).map_err(gone)?;
    let remote = Remote { tid, tracee, saved, syscall };
    let result = work(&remote);
    if matches!(result, Err(Untracked::Gone)) {
        return Err(Untracked::Gone);
    }
    // The stop at the end of a call is not one in which the kernel looks whether a call is to be restarted, an interrupt's is.
    let tracee = &remote.tracee;
    tracee.interrupt().map_err(gone)?;
    tracee.resume(Resume::Freely, 0).map_err(gone)?;
    loop {
        match tracee.wait().map_err(gone)? {
            Stop::Event => break,
            Stop::Signal(signal) => tracee.resume(Resume::Freely, signal).map_err(gone)?,
            Stop::Syscall => tracee.resume(Resume::Freely, 0).map_err(gone)?,
            Stop::Gone => return Err(Untracked::Gone),
        }
    }
    tracee.set_registers(&remote.saved).map_err(gone)?;
    tracee.block(blocked).map_err(gone)?;
    tracee.detach().map_err(gone)?;
    result.map(|value| Injected { value, stopped: start.elapsed() })
}

/// An interrupted wait without end that the kernel would answer with EINTR, though no handler runs, as one that it repeats.
/// With a handler, it still is EINTR: signal(7), "Interruption of system calls and library functions by stop signals".
fn restarted(mut registers: libc::user_regs_struct) -> libc::user_regs_struct {
    /// `ERESTARTNOHAND`.
    const REPEAT_UNLESS_HANDLED: i64 = -514;
    let endless = match registers.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => registers.r10 as i32 == -1,
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => registers.r10 == 0,
        libc::SYS_semop => true,
        libc::SYS_rt_sigtimedwait => registers.rdx == 0,
        libc::SYS_io_getevents => registers.r8 == 0,
        _ => false,
    };
    if endless && registers.rax as i64 == -i64::from(libc::EINTR) {
        registers.rax = REPEAT_UNLESS_HANDLED as u64;
    }
    registers
}

/// Interrupts the thread and waits for it. A signal that comes first is delivered as it would have been.
fn stop(tracee: &Tracee) -> Result<(), Untracked> {
    tracee.interrupt().map_err(gone)?;
    loop {
        match tracee.wait().map_err(gone)? {
            Stop::Event => return Ok(()),
            Stop::Signal(signal) => {
                // Any stop eats the interrupt. Asked for now, the next comes before the next signal does.
                tracee.interrupt().map_err(gone)?;
                tracee.resume(Resume::Freely, signal).map_err(gone)?;
            }
            Stop::Syscall => tracee.resume(Resume::Freely, 0).map_err(gone)?,
            Stop::Gone => return Err(Untracked::Gone),
        }
    }
}

impl Remote {
    /// Runs a system call of one argument; gives its result, an error as the negative number.
    fn call(&self, number: i64, argument: u64) -> Result<i64, Untracked> {
        let mut registers = self.saved;
        registers.rip = self.syscall;
        registers.rax = number as u64;
        registers.orig_rax = u64::MAX;
        registers.rdi = argument;
        registers.rsi = 0;
        registers.rdx = 0;
        self.tracee.set_registers(&registers).map_err(gone)?;
        let mut ends = 0;
        self.tracee.resume(Resume::ToSyscall, 0).map_err(gone)?;
        loop {
            match self.tracee.wait().map_err(gone)? {
                Stop::Syscall => ends += 1,
                // Only SIGSTOP comes through; the kernel stops the thread again when we let it go.
                Stop::Signal(signal) => {
                    self.tracee.resume(Resume::ToSyscall, signal).map_err(gone)?;
                    continue;
                }
                Stop::Event => {}
                Stop::Gone => return Err(Untracked::Gone),
            }
            if ends == 2 {
                return Ok(self.tracee.registers().map_err(gone)?.rax as i64);
            }
            self.tracee.resume(Resume::ToSyscall, 0).map_err(gone)?;
        }
    }
}

/// Whether seccomp filters apply to a task; they may kill it for our call.
fn is_filtered(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() != "0"))
}

fn gone(_: Errno) -> Untracked {
    Untracked::Gone
}

/// Where the vDSO of a task is now: `AT_SYSINFO_EHDR` (33) in /proc/PID/auxv (getauxval(3), proc_pid_auxv(5)).
fn vdso_of(pid: i32) -> Option<u64> {
    const AT_SYSINFO_EHDR: u64 = 33;
    let auxv = std::fs::read(format!("/proc/{pid}/auxv")).ok()?;
    let mut words =
        auxv.chunks_exact(8).filter_map(|word| word.first_chunk().map(|word| u64::from_ne_bytes(*word)));
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        if key == AT_SYSINFO_EHDR {
            return Some(value);
        }
    }
    None
}

/// A `syscall` instruction (0f 05) in the vDSO.
fn find_syscall(vdso: Span, mem: &File) -> Option<u64> {
    let mut text = vec![0; vdso.bytes().min(1 << 16) as usize];
    let read = mem.read_at(&mut text, vdso.start).ok()?;
    let at = text[..read].windows(2).position(|code| code == [0x0f, 0x05])?;
    Some(vdso.start + at as u64)
}

/// The first thread unless it waits uninterruptibly or has ended; then one that does not, if there is one.
fn willing_thread(pid: i32) -> i32 {
    let willing = |tid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().bytes().next());
        state.is_some_and(|state| !b"DZXx".contains(&state))
    };
    if willing(pid) {
        return pid;
    }
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|&tid| willing(tid))
        .unwrap_or(pid)
}

/// Whether the thread is inside a restartable sequence: `struct rseq` and `struct rseq_cs` of include/uapi/linux/rseq.h.
fn in_restartable_sequence(tracee: &Tracee, mem: &File, rip: u64) -> bool {
    let word = |address: u64| {
        let mut bytes = [0; 8];
        mem.read_exact_at(&mut bytes, address).ok().map(|()| u64::from_ne_bytes(bytes))
    };
    let sequence = tracee.rseq().and_then(|rseq| word(rseq + 8)).filter(|&sequence| sequence != 0);
    sequence.is_some_and(|sequence| match (word(sequence + 8), word(sequence + 16)) {
        (Some(start), Some(length)) => rip.wrapping_sub(start) < length,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// What is known of a task before it executes another program, and what it is afterwards: here simply two processes.
    #[test]
    fn a_task_that_has_executed_another_program_since_is_left_alone() {
        if !nix::unistd::Uid::effective().is_root() {
            assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "required: root, for ptrace");
            return;
        }
        let own = i32::try_from(std::process::id()).unwrap();
        let mut other = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(other.id()).unwrap();
        // until it is the other program
        while vdso_of(pid).is_none_or(|there| Some(there) == vdso_of(own)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = vdso_of(own).unwrap();
        let vdso = Span { start, end: start + 4096 };
        let mem = File::open("/proc/self/mem").unwrap();
        let injected = userfaultfd(pid, vdso, &mem, Duration::ZERO);
        assert!(matches!(injected, Err(Untracked::Busy)), "{injected:?}");
        assert!(other.try_wait().unwrap().is_none(), "it lives");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
