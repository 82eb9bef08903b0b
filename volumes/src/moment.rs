//! A volume as it was, while everybody goes on writing to it: shown by a file system that copies on write.
//!
//! Such a snapshot takes milliseconds, whatever the volume's size. It is read into the content store and taken away again. Where the
//! file system has none, or would not show all of the volume, the caller reads the volume itself.
//!
//! What it shows is what a host that lost power would find: all that was synced before (fsync(2)), and of the rest what was written
//! out. btrfs writes out file after file first, so of two writes that nobody has synced the later may be in it and the earlier
//! not. It is of one moment where nobody writes meanwhile.

pub(crate) mod btrfs;
mod zfs;

use crate::mounts::mounts;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Why a file system shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum MomentError {
    /// Its program cannot be started.
    #[error("{program} cannot be started: {source}")]
    Start {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("`{command}`: {said}")]
    Failed {
        /// What was called.
        command: String,
        /// What it said last.
        said: String,
    },
    /// What it would show is not all of the volume.
    #[error("`{}` is in the volume, and no part of a snapshot", path.display())]
    Inside {
        /// A subvolume or a mount.
        path: PathBuf,
    },
    /// Nothing can be made beside it.
    #[error("cannot make `{}`", path.display())]
    Place {
        /// What was to be made.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It has no snapshots of its own.
    #[error("its file system has no snapshots that godwit knows: btrfs and ZFS have")]
    None,
    /// Nobody knows what is mounted in it.
    #[error("the mounts of this host cannot be read: {0}")]
    Mounts(#[source] io::Error),
    /// Not where it is.
    #[error("{0}")]
    Unfit(&'static str),
}

/// A file system that can show a directory of its as it is now.
pub(crate) trait Means {
    /// The file system.
    fn name(&self) -> &'static str;

    /// What can be done beforehand, so that [`make`](Self::make) is short.
    fn prepare(&self) -> Result<(), MomentError>;

    /// Makes it.
    fn make(&self) -> Result<(), MomentError>;

    /// The directory in it, once it is made.
    fn tree(&self) -> PathBuf;

    /// Takes it away.
    fn remove(&self) -> Result<(), MomentError>;

    /// Makes one that stays, named after the time.
    fn keep(&self, time: &str) -> Result<Kept, MomentError>;
}

/// A snapshot that a file system keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which file system.
    pub by: String,
    /// What it is called there.
    pub name: String,
    /// Where its content can be read.
    pub at: PathBuf,
}

impl Kept {
    /// Takes it away; it may be gone already.
    pub(crate) fn remove(&self) -> Result<(), MomentError> {
        match self.at.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ if self.by == btrfs::NAME => btrfs::delete(&self.at),
            _ => zfs::destroy(Path::new(zfs::NAME), &self.name),
        }
    }

    /// Makes a writable copy of it at `at`, which shares all content with it; whether its file system can.
    pub(crate) fn copy(&self, at: &Path) -> Result<bool, MomentError> {
        match self.by == btrfs::NAME {
            true => btrfs::snapshot(&[], &self.at, at).map(|()| true),
            false => Ok(false),
        }
    }
}

/// The means of a volume's file system; none where it has none, or they do not serve. Nothing is made. The caller has the volume's lock:
/// what one that was killed has left is taken away.
pub(crate) fn means(volume: &Path) -> Option<Box<dyn Means>> {
    fit(volume).unwrap_or_else(|error| {
        tracing::info!(%error, volume = %volume.display(), "its file system does not show it");
        None
    })
}

/// The same where nothing else will do.
pub(crate) fn needed(volume: &Path) -> Result<Box<dyn Means>, MomentError> {
    fit(volume)?.ok_or(MomentError::None)
}

fn fit(volume: &Path) -> Result<Option<Box<dyn Means>>, MomentError> {
    let found = match btrfs::Btrfs::of(volume) {
        Ok(Some(btrfs)) => Ok(Some(Box::new(btrfs) as Box<dyn Means>)),
        Ok(None) => zfs::Zfs::of(volume).map(|zfs| zfs.map(|zfs| Box::new(zfs) as Box<dyn Means>)),
        Err(error) => Err(error),
    };
    found.and_then(|means| match means {
        Some(means) => mounted_in(volume).and_then(|()| means.prepare()).map(|()| Some(means)),
        None => Ok(None),
    })
}

/// A directory as it was. Dropped, it is taken away.
pub(crate) struct Moment {
    means: Box<dyn Means>,
    /// When it was.
    pub(crate) at: SystemTime,
}

impl Moment {
    pub(crate) fn now(means: Box<dyn Means>) -> Result<Self, MomentError> {
        let at = SystemTime::now();
        means.make()?;
        Ok(Self { means, at })
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.means.tree()
    }

    pub(crate) fn shown_by(&self) -> &'static str {
        self.means.name()
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        if let Err(error) = self.means.remove() {
            tracing::warn!(%error, "left over; the next snapshot of the volume takes it away");
        }
    }
}

/// What is mounted in the volume is of another file system.
fn mounted_in(volume: &Path) -> Result<(), MomentError> {
    let all = mounts("self").map_err(MomentError::Mounts)?;
    match all.into_iter().find(|mount| mount.at != volume && mount.at.starts_with(volume)) {
        Some(mount) => Err(MomentError::Inside { path: mount.at }),
        None => Ok(()),
    }
}

/// What a program prints.
fn said_by(program: &'static str, arguments: &[&Path]) -> Result<String, MomentError> {
    said(Command::new(program).args(arguments), program)
}

fn said(command: &mut Command, program: &'static str) -> Result<String, MomentError> {
    let output =
        command.env("LC_ALL", "C").output().map_err(|source| MomentError::Start { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = errors.trim().lines().last().unwrap_or("it failed").to_owned();
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    Err(MomentError::Failed { command: format!("{program} {}", words.join(" ")), said })
}
