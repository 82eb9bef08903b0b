//! A snapshot that comes as a stream: beside those that stay, until all of it is there and was looked at.
//!
//! What writes it is btrfs-receive(8), confined to a directory in which nothing else is, in a mount namespace in which no device of it can
//! be opened: it writes by paths to what it has just made, and that may be a link or a device.

use super::guard::Guard;
use super::place::Place;
use super::sending::said;
use crate::moment::btrfs::{self, NAME};
use crate::moment::{Kept, MomentError};
use crate::{History, Snapshot, VolumeError};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

/// `$1`: the directory, `$2`: where its file system is mounted.
const CONFINED: &str = "mount --bind \"$1\" \"$1\"\nmount -o remount,bind,nodev,nosuid,noexec \"$1\"\n\
                        exec btrfs receive --quiet --chroot -e -m \"$2\" \"$1\"";

/// A snapshot that is coming. Dropped, nothing of it stays.
#[derive(Debug)]
pub struct Reception {
    offered: Snapshot,
    mark: u128,
    /// The mark of what it builds upon.
    parent: Option<u128>,
    place: Place,
    /// Where it will be.
    at: PathBuf,
    guard: Guard,
    child: Child,
    stream: Option<ChildStdin>,
    /// Bytes that may come yet.
    room: u64,
    _lock: File,
}

impl Reception {
    /// The caller has looked that nothing is at `at`; `room`: bytes that the stream may have.
    pub(super) fn begin(
        offered: Snapshot,
        (mark, parent): (u128, Option<(u128, PathBuf)>),
        (place, at): (Place, PathBuf),
        room: u64,
        lock: File,
    ) -> Result<Self, VolumeError> {
        place.make()?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", CONFINED, "sh"]);
        command.arg(&place.coming).arg(&place.mount).env("LC_ALL", "C");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|source| MomentError::Start { program: "unshare", source })?;
        let stream = child.stdin.take();
        let known = parent.as_ref().map(|(mark, _)| *mark);
        let guard = Guard::new(mark, parent);
        Ok(Self { offered, mark, parent: known, place, at, guard, child, stream, room, _lock: lock })
    }

    /// The mark of the snapshot that the stream has to build upon.
    pub fn parent(&self) -> Option<u128> {
        self.parent
    }

    /// A piece of the stream has come.
    ///
    /// # Errors
    /// Why it is not taken: nothing of it will be kept.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), VolumeError> {
        let too_long = || VolumeError::Stream("the stream has more bytes than this node lets come".into());
        self.room = self.room.checked_sub(piece.len() as u64).ok_or_else(too_long)?;
        let refused = |why| VolumeError::Stream(format!("the stream is not taken: {why}"));
        let passed = self.guard.pass(piece).map_err(refused)?;
        let stream = self.stream.as_mut().ok_or_else(|| VolumeError::Stream("the stream is over".into()))?;
        match stream.write_all(&passed) {
            Ok(()) => Ok(()),
            // it says why, if it has ended
            Err(error) => {
                self.stream = None;
                said(&mut self.child, "btrfs receive")?;
                Err(VolumeError::Stream(format!("btrfs takes no more: {error}")))
            }
        }
    }

    /// That was all: it is looked at, and kept.
    ///
    /// # Errors
    /// Why it is not kept: nothing of it is there.
    pub fn keep(mut self, history: &History) -> Result<Snapshot, VolumeError> {
        let refused = |why| VolumeError::Stream(format!("what came is not kept: {why}"));
        let name = self.guard.ended().map_err(refused)?.to_owned();
        self.stream = None;
        said(&mut self.child, "btrfs receive")?;
        let came = self.place.came(&name).map_err(refused)?;
        if btrfs::mark(&came)? != Some(self.mark) {
            return Err(refused("it is another snapshot than was said".into()));
        }
        // one that cannot be written to cannot be moved to another directory, either; this is on disk when it returns
        btrfs::snapshot(&["-r"], &came, &self.at)?;
        let shown = self.at.display().to_string();
        let kept = Kept { by: NAME.into(), name: shown, at: self.at.clone() };
        history.note_received(&self.offered, kept).inspect_err(|_| {
            if let Err(error) = btrfs::delete(&self.at) {
                tracing::warn!(%error, "`{}` is left over", self.at.display());
            }
        })
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.stream = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(error) = self.place.clear() {
            tracing::warn!(%error, "left over; the next snapshot that comes takes it away");
        }
    }
}
