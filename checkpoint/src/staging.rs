//! Where a checkpoint that shall be sealed is whole for a while: a directory in memory, so that no disk has it.
//!
//! ```text
//! ROOT/staging/ID/          0700, locked as long as its owner lives
//! ROOT/staging/ID/memory/   a tmpfs, 0700
//! ROOT/staging/ID/lent      a link to the place that was lent a directory of the tmpfs
//! ```
//!
//! What the dead have left is known by its lock, which nobody holds.

use crate::directory_lock::lock_directory;
use crate::files::size_of;
use godwit_engine::Facts;
use godwit_migration::MigrationId;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What a tmpfs has room for besides what was asked for, bytes: directories, logs, and what a container grows by.
const ROOM: u64 = 64 << 20;

/// A directory in memory; it goes when this is dropped.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    swappable: bool,
    _lock: Flock<File>,
}

impl Staging {
    /// Makes one below godwit's directory for so many bytes, and removes what the dead have left there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(root: &Path, bytes: u64) -> io::Result<Self> {
        clear(root)?;
        let dir = place(&std::path::absolute(root)?).join(MigrationId::generate()?.as_str());
        let lock = loop {
            match private_dir().recursive(true).create(&dir) {
                // somebody who cleared has removed the directory above
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                made => made?,
            }
            if let Some(lock) = lock_directory(&dir, FlockArg::LockExclusiveNonblock)? {
                break lock;
            }
        };
        let mut staging = Self { dir, swappable: false, _lock: lock };
        private_dir().create(staging.path())?;
        let options = format!("mode=0700,size={}", bytes.saturating_add(ROOM));
        // since Linux 6.4 (tmpfs(5))
        staging.swappable = match mount_memory(&staging.path(), &format!("{options},noswap")) {
            Err(Errno::EINVAL) => {
                mount_memory(&staging.path(), &options)?;
                true
            }
            mounted => {
                mounted?;
                false
            }
        };
        Ok(staging)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Whether what lies in it can come to a disk after all: the host swaps, and its kernel cannot except a tmpfs.
    pub fn is_swappable(&self) -> bool {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        // the first line is a heading
        self.swappable && swaps.lines().count() > 1
    }

    /// Whether a process sees it among its mounts, so that a dump of that process would hold it.
    ///
    /// # Errors
    /// When its mounts cannot be read.
    pub fn is_mounted_for(&self, pid: i32) -> io::Result<bool> {
        let device = self.path().metadata()?.dev();
        let device = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
        Ok(mounts.lines().any(|line| line.split(' ').nth(2) == Some(&device)))
    }

    /// Makes `place` a link to a directory in memory, for somebody who would write to a disk there.
    ///
    /// # Errors
    /// When there is something, or it cannot be made.
    pub fn lend(&self, place: &Path) -> io::Result<()> {
        let (place, inner) = (std::path::absolute(place)?, self.path().join("lent"));
        private_dir().create(&inner)?;
        // first: then whoever clears finds it
        symlink(&place, self.dir.join("lent"))?;
        private_dir().recursive(true).create(place.parent().unwrap_or(Path::new("/")))?;
        symlink(inner, place)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = dismantle(&self.dir) {
            tracing::warn!(%error, "`{}` is left over", self.dir.display());
        }
    }
}

/// Removes what the dead have left.
///
/// # Errors
/// When it cannot be removed.
pub fn clear(root: &Path) -> io::Result<()> {
    let place = place(root);
    let entries = match std::fs::read_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let dir = entry?.path();
        if let Some(_nobodys) = lock_directory(&dir, FlockArg::LockExclusiveNonblock)? {
            dismantle(&dir)?;
        }
    }
    // not while others use it
    let _ = std::fs::remove_dir(&place);
    Ok(())
}

fn place(root: &Path) -> PathBuf {
    root.join("staging")
}

fn private_dir() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn mount_memory(at: &Path, options: &str) -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("godwit-staging"), at, Some("tmpfs"), flags, Some(options))
}

/// Takes a staging apart, however far it came to be.
fn dismantle(dir: &Path) -> io::Result<()> {
    let (memory, lent) = (dir.join("memory"), dir.join("lent"));
    if let Ok(borrower) = std::fs::read_link(&lent) {
        if borrower.is_symlink() {
            std::fs::remove_file(&borrower)?;
        }
        // made for the link only, unless the borrower has come
        let _ = borrower.parent().map(std::fs::remove_dir);
        std::fs::remove_file(&lent)?;
    }
    if memory.exists() {
        // a mount namespace that was made meanwhile may have a copy of the mount: it shall be an empty one
        for entry in std::fs::read_dir(&memory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        loop {
            match umount2(&memory, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                // it is no mount (any more)
                Err(Errno::EINVAL) => break,
                // it ends with its last user
                Err(Errno::EBUSY) => umount2(&memory, MntFlags::MNT_DETACH)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        std::fs::remove_dir(&memory)?;
    }
    std::fs::remove_dir(dir)?;
    if let Some(place) = dir.parent() {
        // not while others use it
        let _ = std::fs::remove_dir(place);
    }
    Ok(())
}

/// Bytes that a checkpoint of a container will have, about, without its image: its memory, and its files as far as they take room.
#[must_use]
pub fn size(facts: &Facts) -> u64 {
    let trees: u64 = facts.trees.iter().map(|tree| size_of(&tree.content)).sum();
    facts.memory_bytes.saturating_add(trees)
}

#[cfg(test)]
#[path = "staging_tests.rs"]
mod tests;
