//! The way back: a volume becomes what it was, and what it had become is kept as one more snapshot.
//!
//! The old content is made beside the volume and exchanged with it in one step: whoever is killed meanwhile leaves the one or
//! the other, whole. What is beside it afterwards goes with the next rollback.

use crate::mounts::is_mount_point;
use crate::users::users;
use crate::{Cause, History, Snapshot, Volume, VolumeError};
use godwit_store::Lease;
use godwit_transfer::tree::empty_plainly;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// What the volume had become; none when it was that already, and nothing was exchanged.
    pub stash: Option<Snapshot>,
    /// What could not be taken away afterwards, and why.
    pub left: Option<String>,
}

impl History {
    /// Makes the volume of a snapshot what it was then. `progress` hears how many bytes were written, of how many. With `take` it is
    /// this node's afterwards.
    ///
    /// # Errors
    /// [`VolumeError::Elsewhere`], [`VolumeError::InUse`], [`VolumeError::Locked`], [`VolumeError::Fixed`], or what the store or the
    /// file system say; then the volume is as it was.
    pub fn roll_back(
        &self,
        snapshot: &Snapshot,
        take: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<RolledBack, VolumeError> {
        let volume = Volume::find(&snapshot.volume)?;
        let _lock = self.lock(&volume)?;
        let is_foreign = self.ownership(&volume.path)?.elsewhere().is_some();
        if !take {
            self.refuse_foreign(&volume)?;
        }
        refuse_users(&volume)?;
        let beside = beside(&volume)?;
        clear(&beside)?;
        let mut lease = self.lease()?;
        if is_foreign {
            self.take_over(&volume)?;
        }
        let note = format!("before the rollback to {}", snapshot.id);
        let stash = self.stash(&mut lease, &volume, snapshot, &note)?;
        if stash.kept.is_none() && snapshot.kept.is_none() && stash.tree == snapshot.tree {
            self.forget(&stash)?;
            return Ok(RolledBack { stash: None, left: None });
        }
        let made = self.make(&mut lease, snapshot, &beside, progress);
        let exchanged =
            made.and_then(|()| refuse_users(&volume)).and_then(|()| exchange(&beside, &volume.path));
        let cleared = clear(&beside);
        exchanged?;
        self.went_back(&volume, snapshot)?;
        let left = cleared.err().map(|error| format!("`{}`: {error}", beside.display()));
        Ok(RolledBack { stash: Some(stash), left })
    }
}

impl History {
    /// Keeps what the volume has become: as the file system does, where that keeps what it goes back to.
    fn stash(
        &self,
        lease: &mut Lease,
        volume: &Volume,
        to: &Snapshot,
        note: &str,
    ) -> Result<Snapshot, VolumeError> {
        if to.kept.is_some() {
            match self.keep_locked(lease, volume, Cause::Stash, Some(note), None) {
                Err(VolumeError::Moment(error)) => tracing::info!(%error, "it is put away in the store"),
                kept => return Ok(kept?.snapshot),
            }
        }
        Ok(self.take_locked(lease, volume, Cause::Stash, Some(note), &mut |_| {})?.snapshot)
    }
}

fn refuse_users(volume: &Volume) -> Result<(), VolumeError> {
    let users = users(&volume.path).map_err(VolumeError::io("look who uses", &volume.path))?;
    match users.is_empty() {
        true => Ok(()),
        false => Err(VolumeError::InUse { volume: volume.name.clone(), users }),
    }
}

/// The place beside a volume where its other content is made.
fn beside(volume: &Volume) -> Result<PathBuf, VolumeError> {
    let fixed = |why| VolumeError::Fixed { path: volume.path.clone(), why };
    if is_mount_point(&volume.path).map_err(VolumeError::io("look at the mounts of", &volume.path))? {
        return Err(fixed("it is a mount point"));
    }
    let (parent, name) =
        volume.path.parent().zip(volume.path.file_name()).ok_or_else(|| fixed("it is no directory's"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".godwit");
    Ok(parent.join(hidden))
}

/// In one step, on disk when this returns.
fn exchange(one: &Path, other: &Path) -> Result<(), VolumeError> {
    let done = renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE);
    done.map_err(|errno| match errno {
        Errno::EINVAL | Errno::EXDEV => VolumeError::Fixed {
            path: other.to_owned(),
            why: "its file system cannot exchange two directories",
        },
        errno => VolumeError::io("exchange", other)(errno.into()),
    })?;
    let parent = other.parent().unwrap_or(other);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(VolumeError::io("write", parent))
}

/// Takes a directory of ours away; it may not be there.
fn clear(path: &Path) -> Result<(), VolumeError> {
    empty_plainly(path)?;
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
