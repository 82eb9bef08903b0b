//! Writing through a shared mapping.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::libc;

const PAGE: usize = 4096;

/// A shared, writable mapping of the first page of a file.
pub struct Mapped(*mut libc::c_void);

impl Mapped {
    pub fn new(file: &File) -> Mapped {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at)
    }

    pub fn write(&mut self, at: usize, byte: u8) {
        assert!(at < PAGE);
        // SAFETY: within the page that `self` has mapped writable; the file is at least as long.
        unsafe { self.0.cast::<u8>().add(at).write_volatile(byte) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new` and nobody else refers to it.
        unsafe { libc::munmap(self.0, PAGE) };
    }
}
