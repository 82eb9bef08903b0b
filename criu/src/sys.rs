//! The unsafe corner: what happens in the child between fork and exec, and an ioctl.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::null;

use godwit_shim::answer::{PAGE_IS_GUARD, PAGEMAP_SCAN, PageRegion, PmScanArg};

/// What a CRIU child does to itself before exec.
pub(crate) struct ChildSetup {
    /// Descriptors and the numbers they get in the child. The descriptors' own numbers must be above all the wanted ones.
    pub(crate) descriptors: Vec<(OwnedFd, RawFd)>,
    /// Open `cgroup.procs` files the child enters by writing `0`.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// A file, and another's place it is mounted at in a mount namespace of the child's own.
    pub(crate) bind: Option<(CString, CString)>,
}

/// Arranges for `command`'s child to start a session of its own, enter the cgroups, have umask 077, hold of all our
/// descriptors only 0 to 2 and the given ones, and see the file of `bind` in the other's place.
pub(crate) fn prepare(command: &mut Command, setup: ChildSetup) {
    // SAFETY: the closure runs after fork in a possibly multi-threaded program, so it may only make async-signal-safe calls:
    // setsid, umask, write, unshare, mount, dup2 and close_range are plain system calls, nothing is allocated, and errors are
    // errno values. The paths end with a zero byte.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(std::io::Error::last_os_error());
            }
            libc::umask(0o077);
            for cgroup in &setup.cgroups {
                if libc::write(cgroup.as_raw_fd(), b"0".as_ptr().cast(), 1) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            if let Some((file, over)) = &setup.bind {
                // Private first, or the mount would be seen outside.
                let private = libc::MS_REC | libc::MS_PRIVATE;
                if libc::unshare(libc::CLONE_NEWNS) != 0
                    || libc::mount(null(), c"/".as_ptr(), null(), private, null()) != 0
                    || libc::mount(file.as_ptr(), over.as_ptr(), null(), libc::MS_BIND, null()) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
            }
            // Close on exec, not at once: the pipe by which std reports a failed exec must live until then. Descriptors made by
            // dup2 afterwards are not marked. Kernels before 5.11 cannot do this; ours are marked from the beginning anyway.
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            for (fd, number) in &setup.descriptors {
                if libc::dup2(fd.as_raw_fd(), *number) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Takes ownership of a descriptor number the kernel has just given us.
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: callers pass only numbers fresh from F_DUPFD_CLOEXEC or SCM_RIGHTS, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A descriptor that becomes readable when process `pid` has ended (pidfd_open(2)).
pub(crate) fn open_process(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the call touches no memory of ours; the descriptor it gives is new.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    nix::errno::Errno::result(number).map(|number| adopt(number as RawFd))
}

/// Takes a descriptor that this process was started with, by its number.
pub(crate) fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: called once, in a process that was started for this descriptor alone and owns no other of that number; a
    // number that is not open makes the next use of it fail.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Whether the task whose `/proc/PID/pagemap` this is has guard pages (madvise(2), MADV_GUARD_INSTALL). Kernels before 6.15 do
/// not say, and answer EINVAL.
pub(crate) fn has_guard_pages(pagemap: &File) -> nix::Result<bool> {
    // No higher address is taken; with longer page tables no task has one that did not ask for it.
    const END: u64 = if cfg!(target_arch = "aarch64") { 0xffff_ffff_f000 } else { 0x7fff_ffff_f000 };
    let mut found = PageRegion::default();
    let mut scan = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        end: END,
        vec: (&raw mut found).expose_provenance() as u64,
        vec_len: 1,
        max_pages: 1,
        category_mask: PAGE_IS_GUARD,
        return_mask: PAGE_IS_GUARD,
        ..Default::default()
    };
    // SAFETY: the structures are those of this request, and live until it returns.
    let regions = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
    Ok(nix::errno::Errno::result(regions)? > 0)
}
