//! The destination's half: carries out what the source emits, strictly beneath its root.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, mkfifoat, symlinkat, syncfs, unlinkat};

use super::beneath::{Beneath, beneath, refusal};
use super::entry::{FileType, Stat, write_meta};
use super::file_write::FileWriter;
use super::survey::{Keep, survey};
use super::{Meta, TreeError, TreeIndex, TreeOp, TreePath};

/// A tree that is made equal to a source's.
///
/// What it is told is not trusted: no operation reaches outside the root, through a symbolic link or across a mount
/// point. Within the root it is the source's to decide what there is, device nodes and set-id files included.
pub struct TreeDestination {
    tree: Beneath,
    file: Option<FileWriter>,
    /// What a layer hides need not be here: only what it has of its own is kept.
    is_of_changes: bool,
    broken: bool,
}

impl TreeDestination {
    /// Opens the directory that holds, or shall hold, the tree. Nobody else may write to it meanwhile.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(root: &Path) -> Result<TreeDestination, TreeError> {
        Ok(TreeDestination { tree: Beneath::open(root)?, file: None, is_of_changes: false, broken: false })
    }

    /// Opens the directory of a file that is, or shall be, the whole tree: nothing else in it is touched.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open_file(file: &Path) -> Result<TreeDestination, TreeError> {
        Ok(TreeDestination {
            tree: Beneath::open_file(file)?,
            file: None,
            is_of_changes: false,
            broken: false,
        })
    }

    /// Opens the directory that keeps what a layer has of its own, without the file system that it changes: what it removes of
    /// that need not be here. [`TreeSource::gone`](super::TreeSource::gone) says what that was.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_changes(root: &Path) -> Result<TreeDestination, TreeError> {
        Ok(TreeDestination { is_of_changes: true, ..Self::open(root)? })
    }

    /// Reads all that is here: the base for a source when a stale copy shall be made use of. Takes the time of reading
    /// every byte.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn index(&self) -> Result<TreeIndex, TreeError> {
        survey(&self.tree, Keep::Signatures)
    }

    /// Waits until all that was written is on disk (`syncfs(2)`: the whole file system).
    ///
    /// # Errors
    /// When the kernel could not write something.
    pub fn sync(&self) -> Result<(), TreeError> {
        syncfs(self.tree.root()).map_err(TreeError::io("sync", &TreePath::root()))
    }

    /// Carries out one operation.
    ///
    /// # Errors
    /// When it is refused or fails; every further one is then answered with [`TreeError::Broken`].
    pub fn apply(&mut self, op: TreeOp) -> Result<(), TreeError> {
        if self.broken {
            return Err(TreeError::Broken);
        }
        self.broken = true;
        if let Some(only) = self.tree.only()
            && let Some(path) = op.paths().into_iter().flatten().find(|path| *path != only)
        {
            return Err(TreeError::Refused {
                path: path.clone(),
                why: "the tree is one file, and not this one",
            });
        }
        self.carry_out(op)?;
        self.broken = false;
        Ok(())
    }

    fn carry_out(&mut self, op: TreeOp) -> Result<(), TreeError> {
        let out_of_order = |path: &TreePath, why| Err(TreeError::Refused { path: path.clone(), why });
        let root = TreePath::root();
        match (op, &mut self.file) {
            (TreeOp::Segment { index, digest, body }, Some(file)) => file.segment(index, digest, body),
            (TreeOp::Hole { index }, Some(file)) => file.hole(index),
            (TreeOp::FileEnd { size, meta }, file @ Some(_)) => {
                file.take().map_or(Ok(()), |file| file.end(size, &meta))
            }
            (TreeOp::Segment { .. } | TreeOp::Hole { .. } | TreeOp::FileEnd { .. }, None) => {
                out_of_order(&root, "contents without a file")
            }
            (_, Some(_)) => out_of_order(&root, "a file has not ended"),
            (TreeOp::Remove { path }, None) => {
                let (dir, name) = match self.tree.parent(&path) {
                    Err(TreeError::Io { errno: Errno::ENOENT, .. }) if self.is_of_changes => return Ok(()),
                    parent => parent?,
                };
                clear(dir.as_fd(), &name, &path)
            }
            (TreeOp::Rename { from, to }, None) => {
                let (from_dir, from_name) = self.tree.parent(&from)?;
                let (to_dir, to_name) = self.vacant(&to)?;
                renameat(&from_dir, &*from_name, &to_dir, &*to_name).map_err(TreeError::io("rename", &from))
            }
            (TreeOp::HardLink { path, to }, None) => {
                let (to_dir, to_name) = self.tree.parent(&to)?;
                let (dir, name) = self.vacant(&path)?;
                linkat(&to_dir, &*to_name, &dir, &*name, AtFlags::empty())
                    .map_err(TreeError::io("make the hard link", &path))
            }
            (TreeOp::Dir { path }, None) => self.make_directory(&path),
            (TreeOp::Symlink { path, destination, meta }, None) => {
                let (dir, name) = self.vacant(&path)?;
                symlinkat(&*destination, &dir, &*name).map_err(TreeError::io("make the link", &path))?;
                self.set_meta(&path, &meta)
            }
            (TreeOp::Fifo { path, meta }, None) => {
                let (dir, name) = self.vacant(&path)?;
                mkfifoat(&dir, &*name, Mode::S_IRUSR).map_err(TreeError::io("make the FIFO", &path))?;
                self.set_meta(&path, &meta)
            }
            (TreeOp::Device { path, block, major, minor, meta }, None) => {
                let (dir, name) = self.vacant(&path)?;
                let kind = if block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
                let device = makedev(major.into(), minor.into());
                mknodat(&dir, &*name, kind, Mode::S_IRUSR, device)
                    .map_err(TreeError::io("make the device node", &path))?;
                self.set_meta(&path, &meta)
            }
            (TreeOp::FileBegin { path, size, new }, None) => self.begin_file(path, size, new),
            (TreeOp::Meta { path, meta }, None) => self.set_meta(&path, &meta),
            (TreeOp::RoundEnd { .. }, None) => Ok(()),
        }
    }

    /// The directory and name of an entry to be made, with nothing in its place.
    fn vacant(&self, path: &TreePath) -> Result<(OwnedFd, CString), TreeError> {
        let (dir, name) = self.tree.parent(path)?;
        clear(dir.as_fd(), &name, path)?;
        Ok((dir, name))
    }

    fn make_directory(&self, path: &TreePath) -> Result<(), TreeError> {
        let (dir, name) = self.tree.parent(path)?;
        match Stat::of(dir.as_fd(), &name) {
            // A mount point, or left by a round that did not end.
            Ok(stat) if stat.file_type == FileType::Dir => return Ok(()),
            Ok(_) => clear(dir.as_fd(), &name, path)?,
            Err(_) => {}
        }
        mkdirat(&dir, &*name, Mode::S_IRWXU).map_err(TreeError::io("make the directory", path))
    }

    fn begin_file(&mut self, path: TreePath, size: u64, new: bool) -> Result<(), TreeError> {
        if size > i64::MAX as u64 {
            return Err(TreeError::Refused { path, why: "no file can be that large" });
        }
        let (dir, name) = self.tree.parent(&path)?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut flags = OFlag::O_RDWR | OFlag::O_NONBLOCK;
        if new {
            // What the index does not know is not written into: it may have names elsewhere.
            clear(dir.as_fd(), &name, &path)?;
            flags |= OFlag::O_CREAT | OFlag::O_EXCL;
        } else {
            // A device or FIFO must not even be opened.
            let stat = Stat::of(dir.as_fd(), &name).map_err(TreeError::io("look at", &path))?;
            if stat.file_type != FileType::File {
                return Err(TreeError::Refused { path, why: "contents for what is no regular file" });
            }
        }
        let mode = if new { mode } else { Mode::empty() };
        let file = beneath(dir.as_fd(), &name, flags, mode).map_err(refusal(&path, "open for writing"))?;
        let stat = Stat::of(file.as_fd(), c"").map_err(TreeError::io("look at", &path))?;
        self.file = Some(FileWriter::new(path, file, stat.size, size));
        Ok(())
    }

    fn set_meta(&self, path: &TreePath, meta: &Meta) -> Result<(), TreeError> {
        let (handle, stat) = match self.tree.handle(path) {
            Err(Errno::EXDEV) if self.is_mount_point(path) => return Ok(()),
            other => other.map_err(refusal(path, "open"))?,
        };
        let symlink = stat.file_type == FileType::Symlink;
        write_meta(handle.as_fd(), symlink, meta).map_err(|(act, errno)| TreeError::Io {
            act,
            path: path.clone(),
            errno,
        })
    }

    /// What is mounted on the tree keeps its own metadata.
    fn is_mount_point(&self, path: &TreePath) -> bool {
        let stat = self.tree.parent(path).map(|(dir, name)| Stat::of(dir.as_fd(), &name));
        matches!(stat, Ok(Ok(stat)) if stat.mount_root)
    }
}

/// Takes away `name` in `dir`, a directory with all that is in it; it may not exist. Refused when something is mounted
/// on it or beneath it, in the latter case after what comes before it.
pub(super) fn clear(dir: BorrowedFd<'_>, name: &CStr, path: &TreePath) -> Result<(), TreeError> {
    let failed = TreeError::io("remove", path);
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    // One level after the other by path, so that no depth uses up descriptors or the stack: a directory is met again
    // when all beneath it is gone.
    let mut pending: Vec<(TreePath, bool)> = vec![(TreePath::new(name.to_bytes())?, false)];
    while let Some((inner, emptied)) = pending.pop() {
        if emptied {
            remove_directory(dir, &inner).map_err(TreeError::io("remove", path))?;
            continue;
        }
        pending.push((inner.clone(), true));
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut open = beneath(dir, &inner.to_cstring(), flags, Mode::empty())
            .and_then(Dir::from_fd)
            .map_err(refusal(path, "remove"))?;
        let mut names: Vec<CString> = Vec::new();
        for entry in open.iter() {
            names.push(entry.map_err(TreeError::io("remove", path))?.file_name().to_owned());
        }
        for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
            match unlinkat(open.as_fd(), &**name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EISDIR | Errno::EPERM) => pending.push((inner.join(name.to_bytes())?, false)),
                Err(errno) => return Err(TreeError::io("remove", path)(errno)),
            }
        }
    }
    Ok(())
}

/// Removes an empty directory beneath `dir`, following nothing on the way.
fn remove_directory(dir: BorrowedFd<'_>, inner: &TreePath) -> Result<(), Errno> {
    let Some((parent, name)) = inner.split() else { return Err(Errno::EINVAL) };
    let parent = beneath(dir, &parent.to_cstring(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
    unlinkat(&parent, name, UnlinkatFlags::RemoveDir)
}
