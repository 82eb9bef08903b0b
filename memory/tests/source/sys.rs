//! Raw memory, for the processes that are followed.
#![allow(unsafe_code)]

/// Any system call; a failure is the negative error number.
pub fn syscall(number: i64, a: [u64; 6]) -> i64 {
    // SAFETY: what the tests ask for is about mappings they made for it.
    let result = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    match result {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        result => result,
    }
}

/// The same for a child of a fork.
pub fn raw_syscall(number: i64, a: [u64; 6]) -> i64 {
    // SAFETY: as in `syscall`; `errno` is the thread's own.
    unsafe {
        match libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) {
            -1 => -i64::from(*libc::__errno_location()),
            result => result,
        }
    }
}

/// Writes eight bytes; the address must be mapped.
pub fn poke(address: u64, value: u64) {
    // SAFETY: the tests only write to mappings they made.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// Reads eight bytes; the address must be mapped.
pub fn peek(address: u64) -> u64 {
    // SAFETY: as in `poke`.
    unsafe { (address as *const u64).read_volatile() }
}

/// Forks; the child gets 0 and may only use this module's functions that do not allocate.
pub fn fork() -> i32 {
    // SAFETY: the child makes system calls and writes memory, no more.
    unsafe { libc::fork() }
}

/// Forks as vfork does, but without stopping the parent: the child runs `work` on a stack of its own in the same memory.
pub fn clone_sharing_memory(work: extern "C" fn(*mut libc::c_void) -> i32, argument: u64) -> i32 {
    let stack = Box::leak(vec![0u8; 64 << 10].into_boxed_slice());
    // SAFETY: the stack is never freed; `work` uses no thread-local state.
    unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast();
        libc::clone(work, top, libc::CLONE_VM | libc::SIGCHLD, argument as *mut libc::c_void)
    }
}

/// Ends the process at once.
pub fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Ignores a signal, or counts it.
pub fn count_signal(signal: i32) {
    extern "C" fn count(_: i32) {
        SIGNALS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    // SAFETY: the handler only changes an atomic number.
    unsafe { libc::signal(signal, count as *const () as libc::sighandler_t) };
}

/// Signals counted by [`count_signal`].
pub static SIGNALS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Children leave no zombies.
pub fn ignore_children() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
