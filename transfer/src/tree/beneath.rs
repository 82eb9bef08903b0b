//! Opens entries strictly beneath a root directory: `openat2(2)` with the kernel refusing `..`, absolute paths,
//! symbolic links, magic links and mount points on the way, whatever others do to the tree meanwhile.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::entry::Stat;
use super::{TreeError, TreePath};

/// A root directory, of which only one entry may count.
pub(super) struct Beneath {
    root: OwnedFd,
    only: Option<TreePath>,
}

impl Beneath {
    /// Opens the root; it may itself be a symbolic link or a mount point. When it is a file, the tree is that file alone.
    pub fn open(root: &Path) -> Result<Beneath, TreeError> {
        if root.metadata().is_ok_and(|meta| !meta.is_dir()) {
            return Self::open_file(root);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(root, flags, Mode::empty())
            .map(|root| Beneath { root, only: None })
            .map_err(|errno| TreeError::Root { root: root.display().to_string(), errno })
    }

    /// Opens the directory of a file that is, or shall be, the only entry of the tree.
    pub fn open_file(file: &Path) -> Result<Beneath, TreeError> {
        let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
            return Err(TreeError::Root { root: file.display().to_string(), errno: Errno::EISDIR });
        };
        let only = TreePath::new(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(dir, flags, Mode::empty())
            .map(|root| Beneath { root, only: Some(only) })
            .map_err(|errno| TreeError::Root { root: dir.display().to_string(), errno })
    }

    /// The one entry that counts, when it is not all of them.
    pub fn only(&self) -> Option<&TreePath> {
        self.only.as_ref()
    }

    /// The root's descriptor.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens an entry; `O_CLOEXEC | O_NOFOLLOW` are added. `ELOOP`: a symbolic link is in the way; `EXDEV`: a mount
    /// point is.
    pub fn entry(&self, path: &TreePath, flags: OFlag) -> Result<OwnedFd, Errno> {
        beneath(self.root(), &path.to_cstring(), flags, Mode::empty())
    }

    /// Opens the directory that an entry is, or shall be, in, for calls that take it and a name.
    ///
    /// # Errors
    /// [`TreeError::Refused`] for the root and when the way leads through a symbolic link or a mount point.
    pub fn parent(&self, path: &TreePath) -> Result<(OwnedFd, CString), TreeError> {
        let Some((parent, name)) = path.split() else {
            return Err(TreeError::Refused { path: path.clone(), why: "the root itself stays as it is" });
        };
        let dir = self
            .entry(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .map_err(refusal(path, "open the directory of"))?;
        // A path holds no NUL, so the default is never taken.
        Ok((dir, CString::new(name).unwrap_or_default()))
    }

    /// Opens whatever the entry is, without reading it, and says what it is.
    pub fn handle(&self, path: &TreePath) -> Result<(OwnedFd, Stat), Errno> {
        let fd = self.entry(path, OFlag::O_PATH)?;
        let stat = Stat::of(fd.as_fd(), c"")?;
        Ok((fd, stat))
    }
}

/// Opens a directory by an absolute path that must not lead through any symbolic link, also none that somebody has just put
/// there; mount points on the way are none of its business.
pub(super) fn plain_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        match openat2(nix::fcntl::AT_FDCWD, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Opens (or creates, with `O_CREAT`) `path` beneath `dir`.
pub(super) fn beneath(
    dir: BorrowedFd<'_>,
    path: &std::ffi::CStr,
    flags: OFlag,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).mode(mode).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    );
    loop {
        match openat2(dir, path, how) {
            // Something was renamed while the kernel walked (openat2(2)).
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// The error for a path that could not be opened beneath the root.
pub(super) fn refusal(path: &TreePath, act: &'static str) -> impl FnOnce(Errno) -> TreeError + use<> {
    let path = path.clone();
    move |errno| match errno {
        Errno::ELOOP => TreeError::Refused { path, why: "the way leads through a symbolic link" },
        Errno::EXDEV => TreeError::Refused { path, why: "the way leaves the tree or crosses a mount point" },
        Errno::ENOTDIR => {
            TreeError::Refused { path, why: "the way leads through something that is no directory" }
        }
        errno => TreeError::Io { act, path, errno },
    }
}
