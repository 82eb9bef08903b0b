//! Gives visitors the snapshots that this node's file systems keep.

use godwit_neighbours::custody::told;
use godwit_neighbours::question::MOST_KNOWN;
use godwit_neighbours::stream::STREAM_PIECE;
use godwit_neighbours::{Giver, Mark};
use godwit_store::{Digest, Lease};
use godwit_volumes::{History, Sending, Snapshot, VolumeError};
use std::path::{Path, PathBuf};

/// What one visitor is given.
pub struct Treasurer {
    root: PathBuf,
    quota: Option<u64>,
    sending: Option<Sending>,
    /// Holds what was read for the visitor.
    lease: Option<Lease>,
}

impl Treasurer {
    /// Nothing is looked for yet.
    pub fn new(root: &Path, quota: Option<u64>) -> Self {
        Self { root: root.to_owned(), quota, sending: None, lease: None }
    }

    fn all(&self, volume: &str) -> Result<Vec<(Digest, Option<Mark>)>, VolumeError> {
        let Some(history) = History::find_in(&self.root)? else { return Ok(Vec::new()) };
        let marked = history.marked(volume, MOST_KNOWN)?;
        let mark =
            |snapshot: &Snapshot| marked.iter().find(|(one, _)| one == snapshot).map(|(_, mark)| *mark);
        let all = history.list(Some(volume))?.into_iter().rev().filter(|snapshot| snapshot.kept.is_some());
        Ok(all.take(MOST_KNOWN).map(|snapshot| (snapshot.manifest, mark(&snapshot))).collect())
    }

    /// One that a file system of this node keeps.
    fn find(&self, manifest: Digest) -> Result<(History, Snapshot), String> {
        let history = History::open(&self.root, self.quota).map_err(|error| told(&error))?;
        let all = history.list(None).map_err(|error| told(&error))?;
        let is_meant = |one: &Snapshot| one.manifest == manifest && one.kept.is_some();
        let found = all.into_iter().find(is_meant).ok_or("there is no such snapshot any more")?;
        Ok((history, found))
    }
}

impl Giver for Treasurer {
    fn kept(&mut self, volume: &str) -> Vec<(Digest, Option<Mark>)> {
        self.all(volume).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is kept cannot be listed");
            Vec::new()
        })
    }

    fn give(&mut self, manifest: Digest, parent: Option<Mark>) -> Result<(), String> {
        let (history, snapshot) = self.find(manifest)?;
        let marked = history.marked(&snapshot.volume, usize::MAX).map_err(|error| told(&error))?;
        let parent = match parent {
            None => None,
            Some(mark) => {
                let found = marked.iter().find(|(_, one)| *one == mark);
                Some(&found.ok_or("what it would build upon is not here any more")?.0)
            }
        };
        let sending = history.send(&snapshot, parent).map_err(|error| told(&error))?;
        self.sending = Some(sending);
        Ok(())
    }

    fn more(&mut self) -> Result<Vec<u8>, String> {
        let sending = self.sending.as_mut().ok_or("nothing was asked for")?;
        let piece = sending.piece(STREAM_PIECE).map_err(|error| told(&error));
        if !matches!(piece, Ok(Some(_))) {
            self.sending = None;
        }
        piece.map(Option::unwrap_or_default)
    }

    fn read(&mut self, manifest: Digest, progress: &mut dyn FnMut(u64)) -> Result<Digest, String> {
        self.sending = None;
        let (history, snapshot) = self.find(manifest)?;
        let mut lease = history.lease().map_err(|error| told(&error))?;
        let read = history.read(&mut lease, &snapshot, progress).map_err(|error| told(&error))?;
        self.lease = Some(lease);
        Ok(read.manifest)
    }
}
