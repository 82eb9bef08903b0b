//! Files by their handles (open_by_handle_at(2)), which nix does not open.

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `MAX_HANDLE_SZ`, linux/exportfs.h.
const LONGEST: usize = 128;

/// `struct file_handle`, with room for the longest one.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    content: [u8; LONGEST],
}

/// Opens the file with a handle in the file system that `mount` is on, as a mere place (`O_PATH`).
///
/// # Errors
/// [`Errno::ESTALE`] when the file system finds no file by it or does not open handles, [`Errno::EINVAL`] also when it is too
/// long.
pub(crate) fn open(mount: &File, kind: i32, content: &[u8]) -> Result<OwnedFd, Errno> {
    let mut handle = Handle { bytes: 0, kind, content: [0; LONGEST] };
    handle.content.get_mut(..content.len()).ok_or(Errno::EINVAL)?.copy_from_slice(content);
    handle.bytes = u32::try_from(content.len()).map_err(|_| Errno::EINVAL)?;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the handle has the kernel's layout and as many bytes as it says; the call only reads it. The descriptor it gives
    // is new, and nobody else's.
    unsafe {
        let number =
            libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast::<libc::file_handle>(), flags);
        Errno::result(number).map(|number| OwnedFd::from_raw_fd(number))
    }
}

/// An inotify descriptor that watches these files.
#[cfg(test)]
pub(crate) fn watch(paths: &[&std::path::Path]) -> OwnedFd {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: the descriptor is new; each path ends with a zero and lives until the call returns.
    unsafe {
        let watching = OwnedFd::from_raw_fd(Errno::result(libc::inotify_init1(libc::IN_CLOEXEC)).unwrap());
        for path in paths {
            let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
            let added = libc::inotify_add_watch(watching.as_raw_fd(), path.as_ptr(), libc::IN_MODIFY);
            Errno::result(added).unwrap();
        }
        watching
    }
}
