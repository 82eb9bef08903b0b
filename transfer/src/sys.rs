//! The raw system calls of this crate: `statx(2)` and the extended attribute calls, which `nix` does not wrap.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// The largest value of one extended attribute (`XATTR_SIZE_MAX`) and of a list of names
/// (`XATTR_LIST_MAX`), in bytes; linux/limits.h.
const XATTR_MAX: usize = 65536;

/// `statx(2)` of `name` beneath `dir`, or of `dir` itself when `name` is empty; a symbolic link is not followed.
pub(crate) fn statx(dir: BorrowedFd<'_>, name: &CStr) -> Result<libc::statx, Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_EMPTY_PATH;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` is NUL-terminated and `stat` is a writable `struct statx`; both outlive the call.
    let res = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, stat.as_mut_ptr()) };
    Errno::result(res)?;
    // SAFETY: all bytes were zeroed, which is a valid `struct statx`, and the kernel filled it in.
    Ok(unsafe { stat.assume_init() })
}

/// The names of the extended attributes of what `path` leads to, NUL-separated (`listxattr(2)`).
pub(crate) fn listxattr(path: &CStr) -> Result<Vec<u8>, Errno> {
    sized(|buf, len| {
        // SAFETY: `path` is NUL-terminated; `buf` is null with length 0, or writable for `len` bytes.
        unsafe { libc::listxattr(path.as_ptr(), buf.cast(), len) }
    })
}

/// The value of one extended attribute of what `path` leads to (`getxattr(2)`).
pub(crate) fn getxattr(path: &CStr, name: &CStr) -> Result<Vec<u8>, Errno> {
    sized(|buf, len| {
        // SAFETY: both strings are NUL-terminated; `buf` is null with length 0, or writable for `len` bytes.
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf.cast(), len) }
    })
}

/// Sets one extended attribute of what `path` leads to (`setxattr(2)`).
pub(crate) fn setxattr(path: &CStr, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated and `value` is readable for its length.
    let res = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(res).map(drop)
}

/// Removes one extended attribute of what `path` leads to (`removexattr(2)`).
pub(crate) fn removexattr(path: &CStr, name: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated.
    let res = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(res).map(drop)
}

/// Calls `call` for the length, then for the bytes, again when they grew in between.
fn sized(call: impl Fn(*mut u8, usize) -> libc::ssize_t) -> Result<Vec<u8>, Errno> {
    let len = Errno::result(call(std::ptr::null_mut(), 0))? as usize;
    if len == 0 {
        return Ok(Vec::new());
    }
    let mut buf = vec![0; len];
    let got = match Errno::result(call(buf.as_mut_ptr(), buf.len())) {
        Err(Errno::ERANGE) => {
            buf.resize(XATTR_MAX, 0);
            Errno::result(call(buf.as_mut_ptr(), buf.len()))?
        }
        other => other?,
    };
    buf.truncate(got as usize);
    Ok(buf)
}
