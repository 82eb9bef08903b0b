//! How much there is.

use std::fs::{File, TryLockError};

use crate::census::bytes_below;
use crate::disk::entries;
use crate::{Kind, Manifest, Store, StoreError};

/// See the fields. A moment's picture: others may write meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks.
    pub chunks: u64,
    /// Their bytes on disk.
    pub chunk_bytes: u64,
    /// Manifests.
    pub manifests: u64,
    /// Their bytes on disk.
    pub manifest_bytes: u64,
    /// Bytes of the files of all trees, as they would be outside of the store, holes included.
    pub file_bytes: u64,
    /// Names that keep something.
    pub pins: u64,
    /// Processes that read or write now.
    pub leases: u64,
    /// Bytes of what was moved aside since it was damaged.
    pub damaged_bytes: u64,
    /// Bytes of what is being written, or was when its writer died.
    pub unfinished_bytes: u64,
    /// Bytes that the store may have on disk.
    pub quota: Option<u64>,
}

impl Store {
    /// Counts what is there; reads the manifests, not the chunks.
    ///
    /// # Errors
    /// When the file system says no.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let (manifests, chunks) = (self.objects(Kind::Manifest)?.0, self.objects(Kind::Chunk)?.0);
        let mut stats = Stats {
            chunks: chunks.len() as u64,
            chunk_bytes: chunks.iter().map(|object| object.len).sum(),
            manifests: manifests.len() as u64,
            manifest_bytes: manifests.iter().map(|object| object.len).sum(),
            pins: self.pin_names()?.len() as u64,
            damaged_bytes: bytes_below(&self.path("damaged"))?,
            unfinished_bytes: bytes_below(&self.path("tmp"))?,
            quota: self.quota,
            ..Stats::default()
        };
        for object in &manifests {
            if let Ok(Ok(bytes)) = self.look_at(object.id)
                && let Ok(Manifest::Tree(tree)) = Manifest::decode(&bytes)
            {
                stats.file_bytes = stats.file_bytes.saturating_add(tree.file_bytes());
            }
        }
        for entry in entries(&self.path("leases"))? {
            let file = File::open(entry.path()).ok();
            let tried = file.as_ref().map(File::try_lock_shared);
            stats.leases += u64::from(matches!(tried, Some(Err(TryLockError::WouldBlock))));
        }
        Ok(stats)
    }
}
