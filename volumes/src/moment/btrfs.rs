//! Snapshots of btrfs (btrfs-subvolume(8)).
//!
//! A snapshot is of a whole subvolume, and subvolumes in it are empty directories there. It must lie in the same file system: beside
//! the volume's directory.

use super::{Kept, Means, MomentError, said_by};
use crate::mounts::{Mount, mounts};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};
use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The file system, and its program.
pub(crate) const NAME: &str = "btrfs";
/// How the directory of those that stay ends, beside the volume.
pub(crate) const KEEPING: &str = ".godwit-snapshots";
/// Inode of a subvolume's root: `BTRFS_FIRST_FREE_OBJECTID` of include/uapi/linux/btrfs_tree.h.
const ROOT_INODE: u64 = 256;

/// A directory of a subvolume.
#[derive(Debug)]
pub(super) struct Btrfs {
    /// The subvolume's root.
    subvolume: PathBuf,
    /// The volume in it; empty where it is all of it.
    below: PathBuf,
    /// Where the snapshot is made.
    place: PathBuf,
    /// Where those are that stay.
    keeping: PathBuf,
}

impl Btrfs {
    /// None when the volume lies on another file system.
    pub(super) fn of(volume: &Path) -> Result<Option<Self>, MomentError> {
        if !is_btrfs(volume) {
            return Ok(None);
        }
        let (Some(parent), Some(name)) = (volume.parent(), volume.file_name()) else {
            return Err(MomentError::Unfit("nothing can be made beside it"));
        };
        // each subvolume has a device number of its own
        let device = |path: &Path| path.symlink_metadata().map(|meta| meta.dev()).ok();
        let is_root = |path: &&Path| is_subvolume(path) && device(path) == device(volume);
        let part = MomentError::Unfit("its subvolume is not mounted as a whole");
        let subvolume = volume.ancestors().find(is_root).ok_or(part)?.to_owned();
        // what is mounted on the way from there may be elsewhere in the subvolume
        let is_between = |mount: &Mount| {
            let place = &mount.at;
            place.starts_with(&subvolume)
                && volume.starts_with(place)
                && (*place != subvolume || place == volume)
        };
        if mounts("self").map_err(MomentError::Mounts)?.iter().any(is_between) {
            return Err(MomentError::Unfit(
                "it is mounted, or in something that is: a snapshot has no place beside it",
            ));
        }
        let below = volume.strip_prefix(&subvolume).unwrap_or(Path::new("")).to_owned();
        let (place, keeping) = (beside(parent, name, ".godwit-moment"), beside(parent, name, KEEPING));
        Ok(Some(Self { subvolume, below, place, keeping }))
    }

    /// A subvolume in the volume, which a snapshot would show empty. btrfs names them as the whole file system has them.
    fn inner(&self) -> Result<Option<PathBuf>, MomentError> {
        let shown = said_by("btrfs", &["subvolume".as_ref(), "show".as_ref(), &self.subvolume])?;
        let own =
            Path::new(shown.lines().next().unwrap_or_default().trim_start_matches('/')).join(&self.below);
        let listed =
            said_by("btrfs", &["subvolume".as_ref(), "list".as_ref(), "-o".as_ref(), &self.subvolume])?;
        let paths =
            listed.lines().filter_map(|line| line.split_once(" path ").map(|(_, path)| Path::new(path)));
        Ok(paths.into_iter().find(|path| path.starts_with(&own)).map(Path::to_owned))
    }
}

/// What is hidden beside a volume.
pub(crate) fn beside(parent: &Path, name: &OsStr, ending: &str) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(ending);
    parent.join(hidden)
}

/// Whether a path lies on btrfs.
pub(crate) fn is_btrfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|facts| facts.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// What a read-only subvolume is known by, wherever it is: the UUID that it was received with, or its own. None if it can be written to.
pub(crate) fn mark(at: &Path) -> Result<Option<u128>, MomentError> {
    let shown = said_by(NAME, &["subvolume".as_ref(), "show".as_ref(), at])?;
    let fact = |name: &str| shown.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let uuid = |name: &str| u128::from_str_radix(&fact(name)?.replace('-', ""), 16).ok();
    let is_fixed = fact("Flags:").is_some_and(|flags| flags.split(',').any(|flag| flag.trim() == "readonly"));
    Ok(uuid("Received UUID:").or(uuid("UUID:")).filter(|_| is_fixed))
}

/// Makes a snapshot of a subvolume, or of another one.
pub(crate) fn snapshot(options: &[&str], of: &Path, at: &Path) -> Result<(), MomentError> {
    let words = ["subvolume", "snapshot"].iter().chain(options).map(Path::new);
    said_by(NAME, &words.chain([of, at]).collect::<Vec<_>>()).map(drop)
}

/// Takes a subvolume away, and the directory that has no other.
pub(crate) fn delete(at: &Path) -> Result<(), MomentError> {
    said_by(NAME, &["subvolume".as_ref(), "delete".as_ref(), at])?;
    if at
        .parent()
        .and_then(Path::file_name)
        .is_some_and(|name| name.as_encoded_bytes().ends_with(KEEPING.as_bytes()))
    {
        // others may be in it
        let _ = at.parent().map(std::fs::remove_dir);
    }
    Ok(())
}

pub(crate) fn is_subvolume(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir() && meta.ino() == ROOT_INODE)
}

impl Means for Btrfs {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Also writes down what is not on the disk yet: a snapshot waits for that.
    fn prepare(&self) -> Result<(), MomentError> {
        if is_subvolume(&self.place) {
            self.remove()?;
        } else if self.place.symlink_metadata().is_ok() {
            return Err(MomentError::Unfit("something of somebody else's is where the snapshot would be"));
        }
        if let Some(path) = self.inner()? {
            return Err(MomentError::Inside { path });
        }
        said_by("btrfs", &["filesystem".as_ref(), "sync".as_ref(), &self.subvolume]).map(drop)
    }

    fn make(&self) -> Result<(), MomentError> {
        snapshot(&["-r"], &self.subvolume, &self.place)
    }

    fn tree(&self) -> PathBuf {
        self.place.join(&self.below)
    }

    fn remove(&self) -> Result<(), MomentError> {
        delete(&self.place)
    }

    /// Of a subvolume as a whole: what is made of it again must be able to take its place.
    fn keep(&self, time: &str) -> Result<Kept, MomentError> {
        if !self.below.as_os_str().is_empty() {
            return Err(MomentError::Unfit("it is a directory of a subvolume, and none itself"));
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.keeping);
        made.map_err(|source| MomentError::Place { path: self.keeping.clone(), source })?;
        let at = self.keeping.join(time);
        snapshot(&["-r"], &self.subvolume, &at)?;
        Ok(Kept { by: NAME.into(), name: at.display().to_string(), at })
    }
}
