//! The raw system calls of this crate: `statx(2)`, the extended attribute calls and `open_by_handle_at(2)`, which `nix` does not wrap.
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
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
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

/// Opens (`O_PATH`) what a handle leads to, on the file system that `mount` is on (`open_by_handle_at(2)`; the handle is a
/// `struct file_handle` of linux/fanotify.h and fcntl.h: its length, its type, its bytes). `ESTALE`: it is no more.
pub(crate) fn open_by_handle(
    mount: BorrowedFd<'_>,
    kind: i32,
    handle: &[u8],
) -> Result<std::os::fd::OwnedFd, Errno> {
    use std::os::fd::{FromRawFd, OwnedFd};
    if handle.len() > libc::MAX_HANDLE_SZ as usize {
        return Err(Errno::EINVAL);
    }
    let mut words = [0u32; 2 + libc::MAX_HANDLE_SZ as usize / 4];
    words[0] = handle.len() as u32;
    words[1] = kind as u32;
    for (word, bytes) in words[2..].iter_mut().zip(handle.chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(padded);
    }
    let flags = libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `words` has the layout and the alignment of a `struct file_handle` with as many bytes as it says, and outlives the call.
    let raw = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), words.as_mut_ptr().cast(), flags) };
    let raw = Errno::result(raw)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sends `bytes` with two descriptors over a unix socket (`SCM_RIGHTS`, unix(7)).
pub(crate) fn send_descriptors(
    socket: &std::os::unix::net::UnixStream,
    bytes: &[u8],
    descriptors: [BorrowedFd<'_>; 2],
) -> std::io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw = descriptors.map(|descriptor| descriptor.as_raw_fd());
    let parts = [std::io::IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(&raw)];
    match sendmsg::<()>(socket.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)? {
        sent if sent == bytes.len() => Ok(()),
        _ => Err(std::io::ErrorKind::WriteZero.into()),
    }
}

/// Receives exactly `bytes.len()` bytes and two descriptors, all in one message.
pub(crate) fn receive_descriptors(
    socket: &std::os::unix::net::UnixStream,
    bytes: &mut [u8],
) -> std::io::Result<[std::os::fd::OwnedFd; 2]> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{FromRawFd, OwnedFd};
    let wanted = bytes.len();
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
    let mut parts = [std::io::IoSliceMut::new(bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut got = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just installed these descriptors in our table for this message; nobody else owns them.
            got.extend(descriptors.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    let complete = message.bytes == wanted;
    match (complete, <[OwnedFd; 2]>::try_from(got)) {
        (true, Ok(descriptors)) => Ok(descriptors),
        _ => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "not the descriptors of a connection")),
    }
}
