//! Where a btrfs has what comes from other nodes: beside the volume, or where that would be.

use crate::moment::MomentError;
use crate::moment::btrfs::{KEEPING, NAME, beside, delete, is_btrfs, is_subvolume};
use crate::mounts::{is_mount_point, mounts};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is under way, in the directory of those that stay.
const COMING: &str = ".coming";

/// A directory for snapshots of one volume.
#[derive(Debug)]
pub(crate) struct Place {
    /// Of those that stay.
    pub(crate) keeping: PathBuf,
    /// Of what is under way.
    pub(crate) coming: PathBuf,
    /// Where the file system is mounted.
    pub(crate) mount: PathBuf,
}

impl Place {
    /// Nothing is made yet. The path is somebody else's word.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn of(volume: &Path) -> Result<Self, MomentError> {
        let (Some(parent), Some(name)) = (volume.parent(), volume.file_name()) else {
            return Err(MomentError::Unfit("that is no place of a volume"));
        };
        if !parent.canonicalize().is_ok_and(|plain| plain == parent) {
            return Err(MomentError::Unfit("the directory that the volume lies in is not there"));
        }
        if !is_btrfs(parent) || (volume.exists() && !is_btrfs(volume)) {
            return Err(MomentError::Unfit("the volume's place is not on btrfs there"));
        }
        if volume.symlink_metadata().is_ok() && !is_subvolume(volume) {
            return Err(MomentError::Unfit("the volume is no subvolume there"));
        }
        if is_mount_point(volume).map_err(MomentError::Mounts)? {
            return Err(MomentError::Unfit(
                "the volume is a mount point there: nothing has a place beside it",
            ));
        }
        if !is_ours(parent, 0o022) {
            return Err(MomentError::Unfit("others may write to the directory that the volume lies in"));
        }
        let keeping = beside(parent, name, KEEPING);
        let all = mounts("self").map_err(MomentError::Mounts)?;
        // of several at one place the last counts
        let mount = all.into_iter().filter(|mount| parent.starts_with(&mount.at));
        let mount = mount.max_by_key(|mount| mount.at.components().count());
        let mount = mount.ok_or(MomentError::Unfit("it is mounted nowhere"))?.at;
        Ok(Self { coming: keeping.join(COMING), keeping, mount })
    }

    /// Makes it, without what somebody who was killed has left. The caller has the volume's lock.
    ///
    /// # Errors
    /// When it cannot be made, or is somebody else's.
    pub(crate) fn make(&self) -> Result<(), MomentError> {
        self.clear()?;
        for path in [&self.keeping, &self.coming] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| MomentError::Place { path: path.clone(), source })?;
            if !is_ours(path, 0o077) {
                return Err(MomentError::Unfit("where it would be kept others may look"));
            }
        }
        Ok(())
    }

    /// Takes away what is under way.
    ///
    /// # Errors
    /// When something else is there.
    pub(crate) fn clear(&self) -> Result<(), MomentError> {
        let failed = |source| MomentError::Place { path: self.coming.clone(), source };
        let entries = match std::fs::read_dir(&self.coming) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            delete(&entry.map_err(failed)?.path())?;
        }
        std::fs::remove_dir(&self.coming).map_err(failed)?;
        // there may be others in it
        let _ = std::fs::remove_dir(&self.keeping);
        Ok(())
    }

    /// The one subvolume that has come.
    ///
    /// # Errors
    /// When there is none of this name, or more.
    pub(crate) fn came(&self, name: &Path) -> Result<PathBuf, String> {
        let entries = std::fs::read_dir(&self.coming).map_err(|error| error.to_string())?;
        let at = self.coming.join(name);
        match entries.count() == 1 && is_subvolume(&at) {
            true => Ok(at),
            false => Err(format!("{NAME} has made something else of it")),
        }
    }
}

/// A directory of this user's, to which others have none of these rights.
fn is_ours(path: &Path, rights: u32) -> bool {
    let ours = nix::unistd::geteuid().as_raw();
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == ours && meta.mode() & rights == 0)
}
