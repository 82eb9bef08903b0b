//! Takes away what a migration has made, by its path: whatever the source has put into its trees meanwhile, no symbolic link
//! is followed, neither in the tree nor on the way to it.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;

use super::beneath::plain_directory;
use super::destination::clear;
use super::entry::Stat;
use super::{TreeError, TreePath};

/// Removes what lies at `path`, a directory with all that is in it; it may not exist. `path` is absolute and without symbolic
/// links, as `canonicalize` makes it.
///
/// # Errors
/// When a symbolic link is on the way, something is mounted there, or the kernel refuses.
pub fn remove_plainly(path: &Path) -> Result<(), TreeError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let directory = match plain_directory(parent) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened.map_err(|errno| root(path, errno))?,
    };
    let tree_path = TreePath::new(name.as_bytes())?;
    clear(directory.as_fd(), &tree_path.to_cstring(), &tree_path)
}

/// Removes all that is in the directory `path`, but not what is mounted there; it may not exist. As [`remove_plainly`].
///
/// # Errors
/// As [`remove_plainly`].
pub fn empty_plainly(path: &Path) -> Result<(), TreeError> {
    let directory = match plain_directory(path) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened.map_err(|errno| root(path, errno))?,
    };
    let mut names: Vec<CString> = Vec::new();
    let read = directory.try_clone().map_err(|_| root(path, Errno::EMFILE))?;
    for entry in Dir::from_fd(read).map_err(|errno| root(path, errno))?.iter() {
        names.push(entry.map_err(|errno| root(path, errno))?.file_name().to_owned());
    }
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        if Stat::of(directory.as_fd(), name).is_ok_and(|stat| !stat.mount_root) {
            clear(directory.as_fd(), name, &TreePath::new(name.to_bytes())?)?;
        }
    }
    Ok(())
}

fn root(path: &Path, errno: Errno) -> TreeError {
    TreeError::Root { root: path.display().to_string(), errno }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_really_there_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (tree, precious) = (dir.join("tree"), dir.join("precious"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir_all(precious.join("b")).unwrap();
        std::fs::write(precious.join("b/file"), "kept").unwrap();
        // the source has put a link where a directory was
        std::fs::remove_dir_all(tree.join("a")).unwrap();
        symlink(&precious, tree.join("a")).unwrap();
        assert!(remove_plainly(&tree.join("a/b")).is_err());
        assert!(remove_plainly(&tree.join("a/b/file")).is_err());
        assert!(empty_plainly(&tree.join("a/b")).is_err());
        assert!(empty_plainly(&tree.join("a")).is_err());
        assert_eq!(std::fs::read(precious.join("b/file")).unwrap(), b"kept");
        // links within are removed, not followed
        symlink(&precious, tree.join("within")).unwrap();
        empty_plainly(&tree).unwrap();
        assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 0);
        symlink(&precious, tree.join("within")).unwrap();
        remove_plainly(&tree).unwrap();
        remove_plainly(&tree).unwrap();
        empty_plainly(&tree).unwrap();
        remove_plainly(&tree.join("x/y")).unwrap();
        assert_eq!(std::fs::read(precious.join("b/file")).unwrap(), b"kept");
    }
}
