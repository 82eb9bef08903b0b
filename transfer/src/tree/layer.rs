//! The upper directory of an overlay file system: what a container has changed of its image.
//!
//! The directory says what was changed, and the mounted file system what it is now: contents are read there. So a file that
//! was only given another mode (`metacopy`) and a directory that was renamed (`redirect`) arrive whole, and the destination
//! writes through a mounted overlay of its own, which makes whiteouts and opaque directories by itself
//! (Documentation/filesystems/overlayfs.rst).

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use super::beneath::Beneath;
use super::entry::{FileType, InodeKey, Stat, magic_link};
use super::scan::{Found, is_gone, names_in, open_directory};
use super::{TreeError, TreePath};
use crate::sys;

/// A directory with one of these shows nothing of what lies below it under its name. As root, and as an ordinary user.
const REPLACES: [&std::ffi::CStr; 4] = [
    c"trusted.overlay.opaque",
    c"trusted.overlay.redirect",
    c"user.overlay.opaque",
    c"user.overlay.redirect",
];

/// An upper directory, and what the destination was told of it.
pub(super) struct Layer {
    upper: Beneath,
    gone: BTreeSet<TreePath>,
    replaced: HashMap<TreePath, InodeKey>,
}

/// What a walk has found.
pub(super) struct Changes {
    /// Entries as the container sees them, in the order of their paths, the root first.
    pub found: Vec<Found>,
    /// What has to go at the destination before anything is made: of the image, or of an earlier state.
    pub to_clear: Vec<TreePath>,
}

impl Layer {
    /// Opens an upper directory.
    pub fn open(upper: &Path) -> Result<Self, TreeError> {
        Ok(Self { upper: Beneath::open(upper)?, gone: BTreeSet::new(), replaced: HashMap::new() })
    }

    /// What was gone or replaced when it was last walked; what is above comes first.
    pub fn hides(&self) -> Vec<TreePath> {
        let mut paths: Vec<TreePath> = self.gone.iter().chain(self.replaced.keys()).cloned().collect();
        paths.sort_unstable();
        paths
    }

    /// Walks it. `merged` is where the file system is mounted.
    pub fn scan(&mut self, merged: &Beneath) -> Result<Changes, TreeError> {
        let mut walk = Walk {
            upper: &self.upper,
            merged,
            found: Vec::new(),
            gone: BTreeSet::new(),
            replaced: HashMap::new(),
        };
        walk.run()?;
        let Walk { mut found, gone, replaced, .. } = walk;
        let mut to_clear: Vec<TreePath> = gone.difference(&self.gone).cloned().collect();
        to_clear.extend(
            replaced
                .iter()
                .filter(|(path, key)| self.replaced.get(*path) != Some(key))
                .map(|(path, _)| path.clone()),
        );
        // what is above comes first
        to_clear.sort_unstable();
        self.gone = gone;
        self.replaced = replaced;
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        found.dedup_by(|a, b| a.path == b.path);
        Ok(Changes { found, to_clear })
    }
}

struct Walk<'a> {
    upper: &'a Beneath,
    merged: &'a Beneath,
    found: Vec<Found>,
    gone: BTreeSet<TreePath>,
    replaced: HashMap<TreePath, InodeKey>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), TreeError> {
        let root = TreePath::root();
        let mut stat = Stat::of(self.merged.root(), c"").map_err(TreeError::io("look at", &root))?;
        stat.mount_root = false;
        self.found.push(Found { path: root.clone(), stat });
        // with each directory whether all that is in it counts
        let mut pending = vec![(root, false)];
        while let Some((directory, whole)) = pending.pop() {
            let Some(mut merged) = open_directory(self.merged, &directory)? else { continue };
            let names = match whole {
                true => names_in(&mut merged, &directory)?,
                false => match open_directory(self.upper, &directory)? {
                    Some(mut upper) => names_in(&mut upper, &directory)?,
                    None => continue,
                },
            };
            for name in names {
                let path = directory.join(name.to_bytes())?;
                let stat = match Stat::of(merged.as_fd(), &name) {
                    Ok(stat) => stat,
                    Err(Errno::ENOENT) => {
                        self.note_gone(path);
                        continue;
                    }
                    Err(errno) => return Err(TreeError::Io { act: "look at", path, errno }),
                };
                if stat.file_type == FileType::Dir && !stat.mount_root {
                    let replaces = !whole && self.replaces(&path, &stat)?;
                    pending.push((path.clone(), whole || replaces));
                }
                self.found.push(Found { path, stat });
            }
        }
        Ok(())
    }

    /// It is in the upper directory and does not show: a whiteout, if it did not just vanish.
    fn note_gone(&mut self, path: TreePath) {
        let is_whiteout =
            |stat: &Stat| matches!(stat.file_type, FileType::Device { block: false, major: 0, minor: 0 });
        if self.upper.handle(&path).is_ok_and(|(_, stat)| is_whiteout(&stat)) {
            self.gone.insert(path);
        }
    }

    /// Whether nothing of the layers below shows in this directory, or something else of them.
    fn replaces(&mut self, path: &TreePath, stat: &Stat) -> Result<bool, TreeError> {
        let handle = match self.upper.handle(path) {
            Ok((handle, _)) => handle,
            Err(errno) if is_gone(errno) => return Ok(false),
            Err(errno) => return Err(TreeError::Io { act: "look at", path: path.clone(), errno }),
        };
        let link = magic_link(handle.as_fd());
        let replaces =
            REPLACES.iter().any(|name| sys::getxattr(&link, name).is_ok_and(|value| value != b"x"));
        if replaces {
            self.replaced.insert(path.clone(), stat.key);
        }
        Ok(replaces)
    }
}
