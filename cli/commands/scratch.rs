//! What `godwit restore` keeps only while it runs: the half that reads the checkpoint has its journal below `restoring` in
//! godwit's directory.
//!
//! A restore holds a lock on that directory which others may hold, too. Whoever gets it alone knows that all of its content was
//! left by the dead.

use godwit_checkpoint::directory_lock::lock_directory;
use godwit_checkpoint::staging;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The directory, in use; it is removed when nobody uses it any more.
pub struct Scratch {
    /// Where it is.
    pub path: PathBuf,
    lock: Option<Flock<File>>,
}

impl Scratch {
    /// Makes it (0700) below godwit's directory, or uses it together with others. What the dead have left is removed.
    ///
    /// # Errors
    /// When it cannot be made, or what is left in it cannot be removed.
    pub fn make(root: &Path) -> io::Result<Self> {
        clear(root)?;
        let path = place(root);
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            if let Some(lock) = lock_directory(&path, FlockArg::LockShared)? {
                return Ok(Self { path, lock: Some(lock) });
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.lock = None;
        let cleared = self.path.parent().map_or(Ok(()), clear);
        if let Err(error) = cleared {
            tracing::warn!(%error, "`{}` is left over", self.path.display());
        }
    }
}

/// Removes what dead processes have left, if nobody else uses the directory; and what they have left in memory.
///
/// # Errors
/// When it cannot be removed.
pub fn clear(root: &Path) -> io::Result<()> {
    staging::clear(root)?;
    let path = place(root);
    match lock_directory(&path, FlockArg::LockExclusiveNonblock)? {
        Some(_alone) => std::fs::remove_dir_all(&path),
        None => Ok(()),
    }
}

fn place(root: &Path) -> PathBuf {
    root.join("restoring")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_dead_have_left_goes_and_what_is_in_use_stays() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        clear(root).unwrap();
        let left = place(root).join("migrations/dead/journal");
        std::fs::create_dir_all(left.parent().unwrap()).unwrap();
        std::fs::write(&left, "").unwrap();
        let one = Scratch::make(root).unwrap();
        assert!(!left.exists() && one.path.is_dir());
        let used = one.path.join("mine");
        std::fs::write(&used, "").unwrap();
        let two = Scratch::make(root).unwrap();
        clear(root).unwrap();
        drop(two);
        assert!(used.exists());
        drop(one);
        assert!(!place(root).exists());
    }
}
