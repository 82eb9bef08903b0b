//! What lies in the store, without reading it.

use std::fs::DirEntry;
use std::time::SystemTime;

use crate::digest::Shard;
use crate::{Kind, ObjectId, Store, StoreError};

/// An object on disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub id: ObjectId,
    /// Bytes on disk.
    pub len: u64,
    /// When it was written, or a manifest last asked for.
    pub used: SystemTime,
}

impl Stored {
    /// The object that an entry of a shard is.
    pub fn of(shard: Shard, entry: &DirEntry) -> Option<Stored> {
        let digest = entry.file_name().to_str()?.parse().ok()?;
        let id = ObjectId { kind: shard.kind, digest };
        let meta = entry.metadata().ok().filter(|meta| meta.is_file() && id.shard() == shard)?;
        Some(Stored { id, len: meta.len(), used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
    }
}

/// Bytes of the files in a directory and those below it.
pub(crate) fn bytes_below(path: &std::path::Path) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for entry in crate::disk::entries(path)? {
        bytes += match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path())?,
            Ok(meta) => meta.len(),
            // gone meanwhile
            Err(_) => 0,
        };
    }
    Ok(bytes)
}

impl Store {
    /// Bytes of all that counts against the quota: objects, what is being written, what was moved aside. What becomes an object
    /// meanwhile may count twice, never not at all.
    pub(crate) fn bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = bytes_below(&self.path("tmp"))? + bytes_below(&self.path("damaged"))?;
        for kind in Kind::ALL {
            bytes += self.objects(kind)?.0.iter().map(|object| object.len).sum::<u64>();
        }
        Ok(bytes)
    }
}
