//! ptrace(2) of one thread by PTRACE_SEIZE, as far as running a system call in it needs. All of a thread's calls must come
//! from the thread of ours that seized it; when that one ends, the kernel lets the tracee go.

use nix::errno::Errno;

/// `PTRACE_EVENT_STOP`, in the third byte of a wait status.
const EVENT_STOP: i32 = 128;
/// `PTRACE_GET_RSEQ_CONFIGURATION`.
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
/// `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG`.
const GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
/// `PTRACE_O_SUSPEND_SECCOMP`.
const SUSPEND_SECCOMP: usize = 1 << 21;

/// Why a tracee stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// By our interrupt, or because its process is stopped (`PTRACE_EVENT_STOP`).
    Event,
    /// A signal is about to be delivered to it; it is, if it is given to the next resume.
    Signal(i32),
    /// At the begin or the end of a system call.
    Syscall,
    /// It ended.
    Gone,
}

/// Where to, from a stop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resume {
    /// To the next begin or end of a system call.
    ToSyscall,
    /// To the next stop of another kind.
    Freely,
}

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RseqConfiguration {
    rseq_abi_pointer: u64,
    rseq_abi_size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// `struct ptrace_sud_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct DispatchConfiguration {
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

/// A seized thread.
#[derive(Debug)]
pub(crate) struct Tracee {
    tid: i32,
    /// Whether its seccomp filters do not apply while we trace it.
    pub(crate) unfiltered: bool,
}

impl Tracee {
    /// Seizes the thread, without stopping it; its seccomp filters do not apply while we trace it, if we may ask for that.
    pub(crate) fn seize(tid: i32) -> Result<Self, Errno> {
        let options = libc::PTRACE_O_TRACESYSGOOD as usize;
        let mut tracee = Self { tid, unfiltered: true };
        if tracee.request(libc::PTRACE_SEIZE, 0, options | SUSPEND_SECCOMP).is_err() {
            tracee.request(libc::PTRACE_SEIZE, 0, options)?;
            tracee.unfiltered = false;
        }
        Ok(tracee)
    }

    /// Makes it stop soon, or again when it is stopped already.
    pub(crate) fn interrupt(&self) -> Result<(), Errno> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0)
    }

    /// Waits for a stop, however long it takes. Asking again and again instead would let others run in between.
    pub(crate) fn wait(&self) -> Result<Stop, Errno> {
        loop {
            let mut status = 0;
            // SAFETY: waitpid only writes `status`.
            match Errno::result(unsafe { libc::waitpid(self.tid, &mut status, libc::__WALL) }) {
                Ok(_) if !libc::WIFSTOPPED(status) => return Ok(Stop::Gone),
                Ok(_) if status >> 16 == EVENT_STOP => return Ok(Stop::Event),
                Ok(_) if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 => return Ok(Stop::Syscall),
                Ok(_) => return Ok(Stop::Signal(libc::WSTOPSIG(status))),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Lets it run on, delivering `signal` (0: none).
    pub(crate) fn resume(&self, how: Resume, signal: i32) -> Result<(), Errno> {
        let request = match how {
            Resume::ToSyscall => libc::PTRACE_SYSCALL,
            Resume::Freely => libc::PTRACE_CONT,
        };
        self.request(request, 0, signal as usize)
    }

    /// Lets it go. It must be stopped.
    pub(crate) fn detach(&self) -> Result<(), Errno> {
        self.request(libc::PTRACE_DETACH, 0, 0)
    }

    /// Its registers.
    pub(crate) fn registers(&self) -> Result<libc::user_regs_struct, Errno> {
        // SAFETY: all bit patterns of this structure of integers are valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, 0, &raw mut registers as usize)?;
        Ok(registers)
    }

    /// Changes its registers.
    pub(crate) fn set_registers(&self, registers: &libc::user_regs_struct) -> Result<(), Errno> {
        self.request(libc::PTRACE_SETREGS, 0, &raw const *registers as usize)
    }

    /// The signals it blocks, by bit.
    pub(crate) fn blocked(&self) -> Result<u64, Errno> {
        let mut mask = 0u64;
        self.request(libc::PTRACE_GETSIGMASK, size_of::<u64>(), &raw mut mask as usize)?;
        Ok(mask)
    }

    /// Changes the signals it blocks; SIGKILL and SIGSTOP cannot be.
    pub(crate) fn block(&self, mask: u64) -> Result<(), Errno> {
        self.request(libc::PTRACE_SETSIGMASK, size_of::<u64>(), &raw const mask as usize)
    }

    /// Where its `struct rseq` is, if it has registered one.
    pub(crate) fn rseq(&self) -> Option<u64> {
        let mut rseq = RseqConfiguration::default();
        self.request(GET_RSEQ_CONFIGURATION, size_of_val(&rseq), &raw mut rseq as usize).ok()?;
        (rseq.rseq_abi_pointer != 0).then_some(rseq.rseq_abi_pointer)
    }

    /// Whether its system calls are turned into signals (prctl(PR_SET_SYSCALL_USER_DISPATCH)).
    pub(crate) fn dispatches(&self) -> bool {
        let mut dispatch = DispatchConfiguration::default();
        let size = size_of_val(&dispatch);
        self.request(GET_SYSCALL_USER_DISPATCH_CONFIG, size, &raw mut dispatch as usize).is_ok()
            && dispatch.mode != 0
    }

    fn request(&self, request: u32, address: usize, data: usize) -> Result<(), Errno> {
        // SAFETY: the requests of this file either take no pointer, or one to a structure of the kernel's layout that lives
        // in the caller's frame; glibc's own handling of PEEK requests does not apply to any of them.
        Errno::result(unsafe { libc::ptrace(request, self.tid, address, data) }).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<RseqConfiguration>(), 24);
        assert_eq!(size_of::<DispatchConfiguration>(), 32);
    }
}
