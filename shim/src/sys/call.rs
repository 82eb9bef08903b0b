//! System calls, made without libc, whose functions are the ones hooked. They return what the kernel does: an error is a
//! negative errno.

use core::arch::asm;

/// Operation not permitted, as the kernel returns it.
pub const EPERM: isize = -1;
/// No such device or address: no more data, for lseek(2).
pub const ENXIO: isize = -6;
/// The working directory, for openat(2).
pub const AT_FDCWD: i32 = -100;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: usize = 0;
    pub const CLOSE: usize = 3;
    pub const LSEEK: usize = 8;
    pub const MMAP: usize = 9;
    pub const IOCTL: usize = 16;
    pub const PREAD64: usize = 17;
    pub const GETPID: usize = 39;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const NEWFSTATAT: usize = 262;
    pub const READLINKAT: usize = 267;
    pub const PRLIMIT64: usize = 302;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const IOCTL: usize = 29;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const LSEEK: usize = 62;
    pub const READ: usize = 63;
    pub const PREAD64: usize = 67;
    pub const READLINKAT: usize = 78;
    pub const NEWFSTATAT: usize = 79;
    pub const EXIT_GROUP: usize = 94;
    pub const GETPID: usize = 172;
    pub const MMAP: usize = 222;
    pub const PRLIMIT64: usize = 261;
}

/// Number of prlimit64(2).
pub const PRLIMIT64: usize = number::PRLIMIT64;

/// Any system call.
///
/// # Safety
/// As that of the call: pointers among the arguments must be what the kernel is told they are.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn raw(number: usize, args: [usize; 6]) -> isize {
    let result;
    // SAFETY: the registers are those of the kernel's calling convention (syscall(2)); what the call does is the caller's.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Any system call.
///
/// # Safety
/// As that of the call: pointers among the arguments must be what the kernel is told they are.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub unsafe fn raw(number: usize, args: [usize; 6]) -> isize {
    let result;
    // SAFETY: the registers are those of the kernel's calling convention (syscall(2)); what the call does is the caller's.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => result,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5],
            options(nostack),
        );
    }
    result
}

/// ioctl(2).
///
/// # Safety
/// `argument` must be what `request` wants.
pub unsafe fn ioctl(fd: i32, request: u64, argument: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { raw(number::IOCTL, [fd as usize, request as usize, argument, 0, 0, 0]) }
}

/// lseek(2).
pub fn lseek(fd: i32, offset: i64, whence: i32) -> isize {
    // SAFETY: no pointers.
    unsafe { raw(number::LSEEK, [fd as usize, offset as usize, whence as usize, 0, 0, 0]) }
}

/// pread(2) to a place of the caller's.
///
/// # Safety
/// There must be `length` bytes to write at `buffer`.
pub unsafe fn pread(fd: i32, buffer: usize, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise.
    unsafe { raw(number::PREAD64, [fd as usize, buffer, length, offset as usize, 0, 0]) }
}

/// read(2).
pub fn read(fd: i32, buffer: &mut [u8]) -> isize {
    // SAFETY: the kernel writes at most the buffer's length.
    unsafe { raw(number::READ, [fd as usize, buffer.as_mut_ptr().addr(), buffer.len(), 0, 0, 0]) }
}

/// openat(2).
///
/// # Safety
/// `path` must be the address of a string that ends with a zero byte.
pub unsafe fn openat(dir: i32, path: usize, flags: i32, mode: u32) -> isize {
    // SAFETY: the caller's promise.
    unsafe { raw(number::OPENAT, [dir as usize, path, flags as usize, mode as usize, 0, 0]) }
}

/// Opens the file of this name, which must end with a zero byte, for a while: not inherited.
pub fn open(path: &[u8], flags: i32) -> Option<i32> {
    const O_CLOEXEC: i32 = 0o2_000_000;
    if path.last() != Some(&0) {
        return None;
    }
    // SAFETY: the path ends with a zero byte.
    let fd = unsafe { openat(AT_FDCWD, path.as_ptr().addr(), flags | O_CLOEXEC, 0) };
    i32::try_from(fd).ok().filter(|fd| *fd >= 0)
}

/// close(2).
pub fn close(fd: i32) {
    // SAFETY: no pointers; callers close what they opened.
    unsafe { raw(number::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// readlink(2) of the absolute `path`, which must end with a zero byte: what fits of it.
pub fn readlink<'a>(path: &[u8], buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    if path.last() != Some(&0) {
        return None;
    }
    let args = [AT_FDCWD as usize, path.as_ptr().addr(), buffer.as_mut_ptr().addr(), buffer.len(), 0, 0];
    // SAFETY: the path ends with a zero byte, and the kernel writes at most the buffer's length.
    let length = unsafe { raw(number::READLINKAT, args) };
    buffer.get(..usize::try_from(length).ok()?)
}

/// `st_dev` and `st_ino` of the file at the absolute `path`, which must end with a zero byte.
pub fn identity(path: &[u8]) -> Option<(u64, u64)> {
    if path.last() != Some(&0) {
        return None;
    }
    // `struct stat` begins with these two on both processors, and has 144 or 128 bytes.
    let mut stat = [0u64; 32];
    let args = [AT_FDCWD as usize, path.as_ptr().addr(), stat.as_mut_ptr().addr(), 0, 0, 0];
    // SAFETY: the path ends with a zero byte, and a stat fits.
    let result = unsafe { raw(number::NEWFSTATAT, args) };
    (result == 0).then_some((stat[0], stat[1]))
}

/// prlimit64(2) with addresses of `struct rlimit64`, 0 for none.
pub fn prlimit64(pid: i32, resource: u32, new: usize, old: usize) -> isize {
    // SAFETY: the kernel checks the addresses; callers pass those of their own or of their caller's structures.
    unsafe { raw(number::PRLIMIT64, [pid as usize, resource as usize, new, old, 0, 0]) }
}

/// Maps the first `length` bytes of a file, shared, to read and write.
pub fn map_shared(fd: i32, length: usize) -> Option<usize> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_SHARED: usize = 1;
    // SAFETY: a new mapping, nothing is mapped over.
    let address = unsafe { raw(number::MMAP, [0, length, PROT_READ_WRITE, MAP_SHARED, fd as usize, 0]) };
    (address > 0).then_some(address as usize)
}

/// getpid(2).
pub fn getpid() -> i32 {
    // SAFETY: no pointers.
    unsafe { raw(number::GETPID, [0; 6]) as i32 }
}

/// Ends the process.
pub fn abort() -> ! {
    loop {
        // SAFETY: no pointers; 134 is what a shell says of an abort.
        unsafe { raw(number::EXIT_GROUP, [134, 0, 0, 0, 0, 0]) };
    }
}
