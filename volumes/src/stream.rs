//! Snapshots that a file system keeps travel as its own stream (btrfs-send(8), btrfs-receive(8)), and of those of which both nodes have an
//! earlier one only the difference.
//!
//! What both have is known by its *mark*: the UUID that btrfs has given the first of them, and that each that was received from it has as
//! its received UUID. A name says nothing. What was received and can be written to has lost it.
//!
//! What does not go so goes by way of the store: [`History::read`] makes an ordinary snapshot of it.

mod guard;
mod place;
mod reception;
mod sending;

pub use reception::Reception;
pub use sending::Sending;

use crate::moment::btrfs::{self, NAME};
use crate::moment::{Kept, MomentError};
use crate::snapshot::{pin, time};
use crate::{History, Snapshot, Volume, VolumeError};
use godwit_store::manifest::Tree;
use godwit_store::{Lease, Manifest};
use place::Place;
use std::path::PathBuf;

/// What becomes of a snapshot that is offered as a stream.
#[derive(Debug)]
pub enum Awaited {
    /// It is here.
    There(Box<Snapshot>),
    /// It may come.
    Stream(Box<Reception>),
}

impl History {
    /// The snapshots of a volume that can be sent, and their marks; the newest first, `most` at most.
    ///
    /// # Errors
    /// As [`History::list`].
    pub fn marked(&self, volume: &str, most: usize) -> Result<Vec<(Snapshot, u128)>, VolumeError> {
        let all = self.list(Some(volume))?.into_iter().rev();
        Ok(all.filter_map(|snapshot| mark(&snapshot).map(|mark| (snapshot, mark))).take(most).collect())
    }

    /// Begins to send a snapshot, which has to be one of [`History::marked`]; upon the parent what differs from that.
    ///
    /// # Errors
    /// When btrfs cannot.
    pub fn send(&self, snapshot: &Snapshot, parent: Option<&Snapshot>) -> Result<Sending, VolumeError> {
        let at = |snapshot: &Snapshot| {
            let kept = snapshot.kept.as_ref().filter(|kept| kept.by == NAME);
            kept.map(|kept| kept.at.clone()).ok_or(MomentError::Unfit("it is not kept by btrfs"))
        };
        Sending::begin(&at(snapshot)?, parent.map(at).transpose()?.as_deref())
    }

    /// Gets ready for the stream of a snapshot that another node has. `parents`: the marks of what that could build upon, the best first;
    /// `room`: bytes that it may have.
    ///
    /// # Errors
    /// [`VolumeError::Moment`] where only the store can keep it, [`VolumeError::Locked`], or the store's.
    pub fn await_stream(
        &self,
        offered: &Snapshot,
        mark: u128,
        parents: &[u128],
        room: u64,
    ) -> Result<Awaited, VolumeError> {
        if let Some(here) = self.same(offered)? {
            return Ok(Awaited::There(Box::new(here)));
        }
        let place = Place::of(&offered.path)?;
        let volume = Volume { name: offered.volume.clone(), path: offered.path.clone() };
        let lock = self.lock(&volume)?;
        let at = place.keeping.join(time(offered.made_unix_us));
        if at.symlink_metadata().is_ok() {
            // whoever was killed before it was written down had all of it
            if !btrfs::is_subvolume(&at) || btrfs::mark(&at)? != Some(mark) {
                return Err(MomentError::Unfit("something else is where it would be kept").into());
            }
            let kept = Kept { by: NAME.into(), name: at.display().to_string(), at };
            return self.note_received(offered, kept).map(|here| Awaited::There(Box::new(here)));
        }
        let mine: Vec<(u128, PathBuf)> = self
            .marked(&offered.volume, usize::MAX)?
            .into_iter()
            .filter_map(|(snapshot, mark)| Some((mark, snapshot.kept?.at)))
            .filter(|(_, at)| at.parent() == Some(&place.keeping))
            .collect();
        let parent = parents.iter().find_map(|mark| mine.iter().find(|(own, _)| own == mark));
        let marks = (mark, parent.cloned());
        let reception = Reception::begin(offered.clone(), marks, (place, at), room, lock)?;
        Ok(Awaited::Stream(Box::new(reception)))
    }

    /// This one, if this node has it, whatever keeps it.
    ///
    /// # Errors
    /// As [`History::list`].
    pub fn same(&self, offered: &Snapshot) -> Result<Option<Snapshot>, VolumeError> {
        Ok(self.list(Some(&offered.volume))?.into_iter().find(|here| here.is(offered)))
    }

    /// Reads what a file system keeps into the store, and describes it as an ordinary snapshot, which stays as long as the lease. What is one
    /// already is given back as it is.
    ///
    /// # Errors
    /// When it cannot be read, or the store says no.
    pub fn read(
        &self,
        lease: &mut Lease,
        snapshot: &Snapshot,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Snapshot, VolumeError> {
        let Some(kept) = &snapshot.kept else { return Ok(snapshot.clone()) };
        let tree = lease.add_tree(&kept.at, progress)?.manifest;
        let mut read = Snapshot { kept: None, tree, ..snapshot.clone() };
        read.manifest = lease.describe(tree, read.facts())?;
        Ok(read)
    }

    /// Writes down one that a file system of this node has received.
    pub(crate) fn note_received(&self, offered: &Snapshot, kept: Kept) -> Result<Snapshot, VolumeError> {
        let mut lease = self.lease()?;
        let tree = lease.put_manifest(&Manifest::Tree(Tree::default()))?;
        let mut snapshot = Snapshot { kept: Some(kept), tree, ..offered.clone() };
        snapshot.manifest = lease.describe(tree, snapshot.facts())?;
        lease.pin(&pin(&snapshot.id)?, snapshot.manifest)?;
        self.hear(&snapshot)?;
        Ok(snapshot)
    }
}

/// What a snapshot is known by elsewhere; none if it cannot be sent.
fn mark(snapshot: &Snapshot) -> Option<u128> {
    let kept = snapshot.kept.as_ref().filter(|kept| kept.by == NAME)?;
    btrfs::mark(&kept.at).unwrap_or_else(|error| {
        tracing::info!(%error, id = snapshot.id, "it cannot be sent");
        None
    })
}
