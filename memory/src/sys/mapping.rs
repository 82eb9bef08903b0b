//! Memory that processes share: a memfd and its mappings (memfd_create(2), mmap(2)).

use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// What is given back at a time, about 50 µs of work for the kernel, which may not be interrupted by others who wait for
/// the processor until the next tick.
const PIECE: usize = 1 << 20;
/// How long others may have the processor between two pieces: most of the time.
const REST: Duration = Duration::from_micros(100);

/// A new memfd of this length, without memory of its own yet; closed on exec.
pub(crate) fn memfd(name: &std::ffi::CStr, bytes: u64) -> Result<File, Errno> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let file = File::from(nix::sys::memfd::memfd_create(name, flags)?);
    nix::unistd::ftruncate(&file, bytes as libc::off_t)?;
    Ok(file)
}

/// A shared mapping of a whole memfd.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping is plain memory of the process; see `bytes` and `words` for who may change it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes for reading.
    pub(crate) fn read_only(file: impl AsFd, len: u64) -> Result<Self, Errno> {
        Self::new(file, len, false)
    }

    /// Maps the first `len` bytes for reading and writing.
    pub(crate) fn writable(file: impl AsFd, len: u64) -> Result<Self, Errno> {
        Self::new(file, len, true)
    }

    fn new(file: impl AsFd, len: u64, writable: bool) -> Result<Self, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        if len == 0 {
            return Ok(Self { start: NonNull::dangling(), len, writable });
        }
        let access = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(start.cast()).map(|start| Self { start, len, writable }).ok_or(Errno::ENOMEM)
    }

    /// The memory. It is only ever written by system calls on the file: readers see old or new bytes.
    ///
    /// # Panics
    /// If it is a writable mapping.
    pub(crate) fn bytes(&self) -> &[u8] {
        assert!(!self.writable, "a writable mapping is read by words");
        // SAFETY: `start` is valid for `len` bytes for as long as `self` lives; no Rust code writes to a mapping without PROT_WRITE.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The memory in words that several processes read and write.
    ///
    /// # Panics
    /// If it is not a writable mapping.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        assert!(self.writable, "words are atomics, which need a writable mapping");
        // SAFETY: page aligned, valid for `len` bytes while `self` lives, and only used through atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / size_of::<AtomicU64>()) }
    }

    /// Sets up the page tables of a range for reading, so that reading it faults no more (`MADV_POPULATE_READ`, Linux 5.14).
    pub(crate) fn populate(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len).ok_or(Errno::EINVAL)?;
        if offset == end {
            return Ok(());
        }
        // SAFETY: the range is within the mapping, and the advice changes no content.
        Errno::result(unsafe {
            libc::madvise(self.start.as_ptr().add(offset).cast(), len, libc::MADV_POPULATE_READ)
        })
        .map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        for from in (0..self.len).step_by(PIECE) {
            let len = PIECE.min(self.len - from);
            // SAFETY: a part of what `new` mapped, once for each; borrows of it have ended.
            unsafe { libc::munmap(self.start.as_ptr().add(from).cast(), len) };
            if self.len > PIECE {
                std::thread::sleep(REST);
            }
        }
    }
}

/// Gives the memory of a memfd back piece by piece (fallocate(2), `FALLOC_FL_PUNCH_HOLE`); it reads as zeroes from then on.
pub(crate) fn give_back(file: &File, bytes: u64) -> Result<(), Errno> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for from in (0..bytes).step_by(PIECE) {
        let len = (PIECE as u64).min(bytes - from);
        fallocate(file, hole, from as libc::off_t, len as libc::off_t)?;
        std::thread::sleep(REST);
    }
    Ok(())
}
