//! Walks a tree: one `statx(2)` for every entry, no mount point crossed, no symbolic link followed.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::beneath::Beneath;
use super::entry::{FileType, Stat};
use super::{TreeError, TreePath};

/// An entry as the walk found it.
pub(super) struct Found {
    pub path: TreePath,
    pub stat: Stat,
}

/// Whether a failed open says that the entry is no longer what the walk found.
pub(super) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV)
}

/// Opens a directory to read it; none when it is no longer there.
pub(super) fn open_directory(tree: &Beneath, directory: &TreePath) -> Result<Option<Dir>, TreeError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOATIME;
    match tree.entry(directory, flags).and_then(Dir::from_fd) {
        Ok(open) => Ok(Some(open)),
        Err(errno) if is_gone(errno) => Ok(None),
        Err(errno) => Err(TreeError::Io { act: "open the directory", path: directory.clone(), errno }),
    }
}

/// All names in a directory, at once: their iterator borrows the descriptor.
pub(super) fn names_in(open: &mut Dir, directory: &TreePath) -> Result<Vec<CString>, TreeError> {
    let mut names = Vec::new();
    for entry in open.iter() {
        let entry = entry.map_err(TreeError::io("read the directory", directory))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// All entries in the order of their paths, the root first. What is mounted beneath the root shows as an empty
/// directory, or not at all when it is a file. Entries that vanish meanwhile are left out. A tree that is one file has no
/// root: its directory belongs to somebody else.
pub(super) fn scan(tree: &Beneath) -> Result<Vec<Found>, TreeError> {
    if let Some(path) = tree.only() {
        return match Stat::of(tree.root(), &path.to_cstring()) {
            Ok(mut stat) => {
                stat.mount_root = false;
                Ok(vec![Found { path: path.clone(), stat }])
            }
            Err(Errno::ENOENT) => Ok(Vec::new()),
            Err(errno) => Err(TreeError::Io { act: "look at", path: path.clone(), errno }),
        };
    }
    let root = TreePath::root();
    let mut stat = Stat::of(tree.root(), c"").map_err(TreeError::io("look at", &root))?;
    // A volume's root may be a mount point: it is the one that counts.
    stat.mount_root = false;
    let mut found = vec![Found { path: root.clone(), stat }];
    let mut pending = vec![root];
    while let Some(directory) = pending.pop() {
        let Some(mut open) = open_directory(tree, &directory)? else { continue };
        for name in names_in(&mut open, &directory)? {
            let path = directory.join(name.to_bytes())?;
            let stat = match Stat::of(open.as_fd(), &name) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(TreeError::Io { act: "look at", path, errno }),
            };
            if stat.file_type == FileType::Dir && !stat.mount_root {
                pending.push(path.clone());
            } else if stat.mount_root && stat.file_type != FileType::Dir {
                continue;
            }
            found.push(Found { path, stat });
        }
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    // A directory that is written to while it is read may show a name twice.
    found.dedup_by(|a, b| a.path == b.path);
    Ok(found)
}
