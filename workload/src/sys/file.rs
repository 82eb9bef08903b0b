//! Files by descriptor, read straight into pages. A descriptor is never closed: the whole program has a handful.

use super::memory::{PAGE, Pages, WORDS};
use super::{Failure, checked};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A memfd of `count` pages.
pub fn memfd(count: usize) -> Result<i32, Failure> {
    // SAFETY: the name is a constant string.
    let descriptor = unsafe { libc::memfd_create(c"workload".as_ptr(), libc::MFD_CLOEXEC) };
    checked("memfd_create", descriptor)?;
    // SAFETY: no memory of ours is passed.
    checked("ftruncate", unsafe { libc::ftruncate(descriptor, (count * PAGE) as i64) })?;
    Ok(descriptor)
}

/// Opens a file that is there. `flags` as in open(2).
pub fn open(path: &Path, flags: i32) -> Result<i32, Failure> {
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Failure { call: "open", errno: libc::EINVAL })?;
    // SAFETY: the path is a string that ends.
    let descriptor = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
    checked("open", descriptor).map(|_| descriptor)
}

/// Reads whole pages of a file, from page `from` on, into pages.
pub fn read_into(
    call: &'static str,
    descriptor: i32,
    from: usize,
    pages: &Pages,
    first: usize,
    count: usize,
) -> Result<(), Failure> {
    assert!(first + count <= pages.count());
    let to = pages.address(first) as *mut libc::c_void;
    // SAFETY: the pages are the caller's; they hold numbers that are valid whatever is read.
    let read = unsafe { libc::pread(descriptor, to, count * PAGE, (from * PAGE) as i64) };
    match checked(call, read as i64)? {
        n if n as usize == count * PAGE => Ok(()),
        _ => Err(Failure { call, errno: libc::EIO }),
    }
}

/// Writes one page of a file.
pub fn write_page(descriptor: i32, page: usize, words: &[u64; WORDS]) -> Result<(), Failure> {
    // SAFETY: the words are as long as a page.
    let wrote = unsafe { libc::pwrite(descriptor, words.as_ptr().cast(), PAGE, (page * PAGE) as i64) };
    match checked("pwrite", wrote as i64)? {
        n if n as usize == PAGE => Ok(()),
        _ => Err(Failure { call: "pwrite", errno: libc::EIO }),
    }
}

/// Reads one page of a file.
pub fn read_page(descriptor: i32, page: usize) -> Result<[u64; WORDS], Failure> {
    let mut words = [0_u64; WORDS];
    // SAFETY: the words are as long as a page.
    let read = unsafe { libc::pread(descriptor, words.as_mut_ptr().cast(), PAGE, (page * PAGE) as i64) };
    match checked("pread", read as i64)? {
        n if n as usize == PAGE => Ok(words),
        _ => Err(Failure { call: "pread", errno: libc::EIO }),
    }
}
