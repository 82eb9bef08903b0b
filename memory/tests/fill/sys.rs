//! Raw memory of the tenant processes.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

pub const PAGE: u64 = 4096;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, Register);

/// A userfaultfd as CRIU opens it: blocking, with the events FORK, REMAP, REMOVE and UNMAP.
pub fn userfaultfd() -> OwnedFd {
    // SAFETY: plain system calls; the structure outlives the call.
    unsafe {
        let raw = Errno::result(libc::syscall(libc::SYS_userfaultfd, 0)).unwrap();
        let fd = OwnedFd::from_raw_fd(raw as i32);
        let features = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
        let mut api = Api { api: 0xAA, features, ioctls: 0 };
        uffdio_api(fd.as_raw_fd(), &mut api).unwrap();
        fd
    }
}

pub fn register(fd: &OwnedFd, start: u64, len: u64) {
    let mut register = Register { start, len, mode: 1, ioctls: 0 };
    // SAFETY: as above.
    unsafe { uffdio_register(fd.as_raw_fd(), &mut register) }.unwrap();
}

pub fn send_descriptor(socket: &UnixStream, fd: &OwnedFd) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"*")], &rights, MsgFlags::empty(), None).unwrap();
}

/// Maps zeroes.
pub fn map(address: u64, len: u64) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the tests use addresses nobody else has.
    let got = unsafe { libc::mmap(address as *mut _, len as usize, access, flags, -1, 0) };
    assert_eq!(got as u64, address);
}

/// Makes another mapping of it, by another flag (`MADV_NOHUGEPAGE`) that changes nothing here.
pub fn split(address: u64, len: u64) {
    // SAFETY: as in `map`.
    Errno::result(unsafe { libc::madvise(address as *mut _, len as usize, libc::MADV_NOHUGEPAGE) }).unwrap();
}

/// Room that a mapping is about to take.
pub fn reserve(len: u64) -> u64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel likes.
    let room = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(room, libc::MAP_FAILED);
    room as u64
}

pub fn protect(address: u64, len: u64, access: i32) {
    // SAFETY: as in `map`.
    Errno::result(unsafe { libc::mprotect(address as *mut _, len as usize, access) }).unwrap();
}

pub fn unmap(address: u64, len: u64) {
    // SAFETY: as in `map`.
    Errno::result(unsafe { libc::munmap(address as *mut _, len as usize) }).unwrap();
}

pub fn give_up(address: u64, len: u64) {
    // SAFETY: as in `map`.
    Errno::result(unsafe { libc::madvise(address as *mut _, len as usize, libc::MADV_DONTNEED) }).unwrap();
}

pub fn relocate(from: u64, len: u64, to: u64) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: as in `map`.
    let got =
        unsafe { libc::mremap(from as *mut _, len as usize, len as usize, flags, to as *mut libc::c_void) };
    assert_eq!(got as u64, to, "{}", Errno::last());
}

pub fn read(address: u64) -> u64 {
    // SAFETY: the tests only read what they mapped.
    unsafe { (address as *const u64).read_volatile() }
}

pub fn write(address: u64, word: u64) {
    // SAFETY: as in `read`.
    unsafe { (address as *mut u64).write_volatile(word) }
}

/// None in the child.
pub fn fork() -> Option<nix::unistd::Pid> {
    // SAFETY: the child only works on its memory and leaves with `exit`.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => Some(child),
        nix::unistd::ForkResult::Child => None,
    }
}

pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
