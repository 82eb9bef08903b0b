//! What two tasks share, and descriptors of another task: kcmp(2), pidfd_open(2), pidfd_getfd(2).

use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `KCMP_FILE`.
const KCMP_FILE: libc::c_int = 0;
/// `KCMP_VM`.
const KCMP_VM: libc::c_int = 1;
/// `PIDFD_THREAD`, since 6.9.
const PIDFD_THREAD: libc::c_int = libc::O_EXCL;

/// A pidfd of a thread, or of its process where the kernel has none of threads.
pub(crate) fn pidfd(pid: i32, tid: i32) -> Result<OwnedFd, Errno> {
    let open = |id: i32, flags: libc::c_int| {
        // SAFETY: takes numbers only.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) })?;
        // SAFETY: a new descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    };
    match tid == pid {
        true => open(pid, 0),
        false => open(tid, PIDFD_THREAD).or_else(|_: Errno| open(pid, 0)),
    }
}

/// A copy of another task's descriptor; it is close-on-exec.
pub(crate) fn descriptor_of(pidfd: &OwnedFd, fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Whether two processes have one address space.
pub(crate) fn same_memory(one: i32, other: i32) -> Result<bool, Errno> {
    kcmp(one, other, KCMP_VM, 0, 0)
}

/// Whether our descriptor and one of another process are the same open file.
pub(crate) fn same_file(ours: RawFd, other: i32, fd: RawFd) -> Result<bool, Errno> {
    kcmp(std::process::id() as i32, other, KCMP_FILE, ours, fd)
}

fn kcmp(one: i32, other: i32, kind: libc::c_int, a: RawFd, b: RawFd) -> Result<bool, Errno> {
    // SAFETY: takes numbers only.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, one, other, kind, a as libc::c_ulong, b as libc::c_ulong) };
    Errno::result(order).map(|order| order == 0)
}

/// Raises the number of descriptors we may have to the limit of what is allowed: three for each task that is followed.
pub(crate) fn allow_many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the structure given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 && limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads the structure given. A failure shows later, as EMFILE.
        let _ = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_shares_its_memory_with_itself_only() {
        let me = std::process::id() as i32;
        assert!(same_memory(me, me).unwrap());
        assert!(!same_memory(me, 1).unwrap_or(false));
    }

    #[test]
    fn a_copy_of_a_descriptor_is_the_same_file() {
        let me = std::process::id() as i32;
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let other = std::fs::File::open("/proc/self/stat").unwrap();
        let copy = descriptor_of(&pidfd(me, me).unwrap(), file.as_raw_fd()).unwrap();
        assert!(same_file(file.as_raw_fd(), me, copy.as_raw_fd()).unwrap());
        assert!(!same_file(file.as_raw_fd(), me, other.as_raw_fd()).unwrap());
    }
}
