//! Snapshots that stay the file system's own: nothing is read, and nothing copied, until somebody wants what is in them.
//!
//! The store has the facts of such a snapshot, with a tree without entries, so that it is listed, judged and let go of like any other. Its
//! content is where the file system keeps it, and travels by [`stream`](crate::stream).

use crate::history::{When, at_rest, note_down};
use crate::moment;
use crate::snapshot::time;
use crate::{Cause, History, Snapshot, Taken, Volume, VolumeError};
use godwit_store::manifest::Tree;
use godwit_store::{Added, Digest, Lease, Manifest, Writers};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

impl History {
    /// Has the volume's file system keep it as it is now. `writers`, if there are any, stand still meanwhile.
    ///
    /// # Errors
    /// [`VolumeError::Locked`], and [`VolumeError::Moment`] where the file system cannot.
    pub fn keep(
        &self,
        volume: &Volume,
        note: Option<&str>,
        writers: Option<&mut dyn Writers>,
    ) -> Result<Taken, VolumeError> {
        let _lock = self.lock(volume)?;
        self.keep_locked(&mut self.lease()?, volume, Cause::Asked, note, writers)
    }

    pub(crate) fn keep_locked(
        &self,
        lease: &mut Lease,
        volume: &Volume,
        cause: Cause,
        note: Option<&str>,
        writers: Option<&mut dyn Writers>,
    ) -> Result<Taken, VolumeError> {
        let means = moment::needed(&volume.path)?;
        let position = self.draw(volume)?;
        let now = SystemTime::now();
        let name = time(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64);
        let (kept, at, stood) = match writers {
            None => (means.keep(&name)?, now, None),
            Some(writers) => {
                let (kept, stood) = at_rest(writers, || means.keep(&name))?;
                (kept, stood.at, Some(stood.took))
            }
        };
        let when = When { at, stood, shown_by: Some(means.name()), position };
        let noted = lease.put_manifest(&Manifest::Tree(Tree::default())).map_err(VolumeError::from);
        let noted = noted.and_then(|manifest| {
            let added = Added { manifest, entries: 0, file_bytes: 0, read_bytes: 0, written_bytes: 0 };
            note_down(lease, volume, cause, note, when, added, Some(kept.clone()))
        });
        match noted {
            Ok(taken) => self.kept(volume, taken),
            Err(error) => {
                if let Err(error) = kept.remove() {
                    tracing::warn!(%error, "`{}` is left over", kept.name);
                }
                Err(error)
            }
        }
    }

    /// The tree of what is in a snapshot, by the lease: what its file system keeps is read into the store.
    pub(crate) fn content(&self, lease: &mut Lease, snapshot: &Snapshot) -> Result<Digest, VolumeError> {
        match &snapshot.kept {
            None => Ok(snapshot.tree),
            Some(kept) => Ok(lease.add_tree(&kept.at, &mut |_| {})?.manifest),
        }
    }

    /// Makes what is in a snapshot at `at`, where nothing is.
    pub(crate) fn make(
        &self,
        lease: &mut Lease,
        snapshot: &Snapshot,
        at: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), VolumeError> {
        if let Some(kept) = &snapshot.kept
            && kept.copy(at)?
        {
            return Ok(());
        }
        let content = self.content(lease, snapshot)?;
        lease.materialise(content, at, progress)?;
        Ok(())
    }
}
