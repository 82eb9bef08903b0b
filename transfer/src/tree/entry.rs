//! What an entry of a tree is: its kind, and the metadata that every kind has.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, readlinkat};
use nix::libc;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use serde::{Deserialize, Serialize};

use super::index::FileRecord;
use crate::sys;

/// Attributes that an overlay file system keeps for itself about this very host's layers (Documentation/filesystems/
/// overlayfs.rst: origin and uuid name a file handle and a file system, impure caches a scan).
const OVERLAY_LOCAL: [&[u8]; 6] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.uuid",
    b"user.overlay.origin",
    b"user.overlay.impure",
    b"user.overlay.uuid",
];

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File(FileRecord),
    /// A symbolic link.
    Symlink(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A FIFO.
    Fifo,
    /// A block or character device.
    Device {
        /// A block device.
        block: bool,
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// A socket; the source skips them, a stale copy may have one.
    Socket,
}

/// What every entry has beside its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permission, set-id and sticky bits (`07777`); of no meaning for a symbolic link.
    pub mode: u32,
    /// Last modification, seconds since the epoch.
    pub mtime_s: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes in the order of their names, POSIX ACLs among them.
    pub xattrs: Vec<Xattr>,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// Its full name, as in `user.mime_type`.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Its value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// A moment of a file system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Moment {
    pub s: i64,
    pub ns: u32,
}

impl Moment {
    pub fn plus_ms(self, ms: u32) -> Moment {
        let ns = self.ns + ms % 1000 * 1_000_000;
        let carry = i64::from(ns >= 1_000_000_000);
        Moment { s: self.s.saturating_add(i64::from(ms / 1000) + carry), ns: ns % 1_000_000_000 }
    }
}

/// An inode, and no other that had its number before (where the file system knows the time of birth).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct InodeKey {
    pub dev: u64,
    pub ino: u64,
    birth: (i64, u32),
}

/// The type bits of `st_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    Dir,
    File,
    Symlink,
    Fifo,
    Device { block: bool, major: u32, minor: u32 },
    Socket,
}

/// What `statx(2)` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub key: InodeKey,
    pub file_type: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Moment,
    pub ctime: Moment,
    /// Something is mounted here.
    pub mount_root: bool,
}

impl Stat {
    /// Of `name` in `dir`, or of `dir` itself when `name` is empty.
    pub fn of(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
        let x = sys::statx(dir, name)?;
        let file_type = match u32::from(x.stx_mode) & libc::S_IFMT {
            libc::S_IFDIR => FileType::Dir,
            libc::S_IFREG => FileType::File,
            libc::S_IFLNK => FileType::Symlink,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            other => FileType::Device {
                block: other == libc::S_IFBLK,
                major: x.stx_rdev_major,
                minor: x.stx_rdev_minor,
            },
        };
        let known_birth = x.stx_mask & libc::STATX_BTIME != 0;
        Ok(Stat {
            key: InodeKey {
                dev: libc::makedev(x.stx_dev_major, x.stx_dev_minor),
                ino: x.stx_ino,
                birth: if known_birth { (x.stx_btime.tv_sec, x.stx_btime.tv_nsec) } else { (0, 0) },
            },
            file_type,
            mode: u32::from(x.stx_mode) & 0o7777,
            uid: x.stx_uid,
            gid: x.stx_gid,
            size: x.stx_size,
            mtime: Moment { s: x.stx_mtime.tv_sec, ns: x.stx_mtime.tv_nsec },
            ctime: Moment { s: x.stx_ctime.tv_sec, ns: x.stx_ctime.tv_nsec },
            mount_root: x.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
        })
    }

    /// Whether no write after `read_at` can have left these times as they are: both are older by `racy_ms`. A
    /// modification far in the future was set by hand; then the time of change, which cannot be set, has to do.
    pub fn is_settled(&self, read_at: Moment, racy_ms: u32) -> bool {
        let old = |time: Moment| time.plus_ms(racy_ms) < read_at;
        old(self.ctime) && (old(self.mtime) || read_at.plus_ms(60_000) < self.mtime)
    }

    /// The metadata, with these attributes.
    pub fn meta(&self, xattrs: Vec<Xattr>) -> Meta {
        Meta {
            uid: self.uid,
            gid: self.gid,
            mode: self.mode,
            mtime_s: self.mtime.s,
            mtime_ns: self.mtime.ns,
            xattrs,
        }
    }
}

/// `/proc/self/fd/N`: leads to exactly what the descriptor is open on, a symbolic link included, also for the calls
/// that refuse an `O_PATH` descriptor (open(2)).
pub(super) fn magic_link(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// Where the symbolic link that the descriptor is open on points.
pub(super) fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    readlinkat(fd, c"").map(OsStringExt::into_vec)
}

/// All extended attributes of what the descriptor is open on, in the order of their names, less those that hold only
/// for this host.
pub(super) fn read_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    let path = magic_link(fd);
    let names = match sys::listxattr(&path) {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut xattrs = Vec::new();
    for name in names.split_inclusive(|&byte| byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if OVERLAY_LOCAL.contains(&name.to_bytes()) {
            continue;
        }
        match sys::getxattr(&path, name) {
            Ok(value) => xattrs.push(Xattr { name: name.to_bytes().to_vec(), value }),
            // Taken away since the list was read: its time of change tells the next round.
            Err(Errno::ENODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// Gives what the descriptor is open on this metadata.
///
/// The order matters: a change of owner clears the set-id bits and the capabilities, a change of mode rewrites an ACL's
/// mask, and every change before it moves the time.
pub(super) fn write_meta(
    fd: BorrowedFd<'_>,
    symlink: bool,
    meta: &Meta,
) -> Result<(), (&'static str, Errno)> {
    let path = magic_link(fd);
    let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    fchownat(fd, c"", owner.0, owner.1, AtFlags::AT_EMPTY_PATH).map_err(|e| ("set the owner of", e))?;
    let attributes = |errno| ("set the extended attributes of", errno);
    let have = read_xattrs(fd).map_err(attributes)?;
    for gone in have.iter().filter(|have| meta.xattrs.iter().all(|want| want.name != have.name)) {
        if gone.name == b"security.selinux" {
            // A host with SELinux labels every inode and lets no label be taken away.
            continue;
        }
        let name = CString::new(&*gone.name).map_err(|_| attributes(Errno::EINVAL))?;
        sys::removexattr(&path, &name).map_err(attributes)?;
    }
    if !symlink {
        let mode = Mode::from_bits_truncate(meta.mode & 0o7777);
        fchmodat(AT_FDCWD, &*path, mode, FchmodatFlags::FollowSymlink).map_err(|e| ("set the mode of", e))?;
    }
    for want in meta.xattrs.iter().filter(|want| !have.contains(want)) {
        let name = CString::new(&*want.name).map_err(|_| attributes(Errno::EINVAL))?;
        sys::setxattr(&path, &name, &want.value).map_err(attributes)?;
    }
    let mtime = TimeSpec::new(meta.mtime_s, i64::from(meta.mtime_ns));
    let keep = TimeSpec::UTIME_OMIT;
    utimensat(AT_FDCWD, &*path, &keep, &mtime, UtimensatFlags::FollowSymlink)
        .map_err(|errno| ("set the time of", errno))
}
