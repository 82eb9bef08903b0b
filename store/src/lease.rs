//! What a living process writes or reads stays, until it has ended: by a file in `leases` that it holds locked, and in which it names each
//! object before it relies on it. The kernel lets go of the lock when the process dies, however it dies.
//!
//! Naming and taking away cannot miss each other: an object is named and looked for under the shared lock of its shard, and taken away under
//! the exclusive one after all leases were read. Either the name was written first and is seen, or the object is gone
//! when it is looked for.

use std::collections::{BTreeSet, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::digest::Shard;
use crate::disk::{
    entries, make_directory, remove, remove_directory, replace, sync_all, sync_directory, write_new,
};
use crate::{Digest, Goal, Kind, Manifest, ObjectId, PinName, Store, StoreError, object, pin};

/// Bytes of an object's name in a lease: its kind, its digest.
const RECORD: usize = 33;
/// Objects, and bytes of them, that are brought to disk together.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 16 << 20;

/// The right to rely on what was named. Dropped, all that was not pinned may go.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    path: PathBuf,
    /// Held locked.
    log: File,
    /// Files that are being written.
    tmp: PathBuf,
    files: AtomicU64,
    /// What was named, and is in the store or in the batch.
    named: HashSet<ObjectId>,
    batch: Vec<(ObjectId, Vec<u8>)>,
    batch_bytes: usize,
    /// Shards in which a name that we rely on may not be on disk.
    unsettled: BTreeSet<Shard>,
    /// Bytes on disk of the objects that this lease has written.
    written: u64,
}

impl Store {
    /// Begins to read or to write.
    ///
    /// # Errors
    /// When the file system says no.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let id = format!("{}-{:x}-{number}", std::process::id(), since.as_nanos());
            let path = self.path("leases").join(&id);
            let failed = StoreError::io("write", &path);
            let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path);
            let locked = file.and_then(|log| {
                log.lock()?;
                Ok((log.metadata()?.nlink(), log))
            });
            let (links, log) = locked.map_err(failed)?;
            // a collection may have taken it for a dead one's before it was locked
            if links == 0 {
                continue;
            }
            let tmp = self.path("tmp").join(&id);
            make_directory(&tmp)?;
            return Ok(Lease {
                store: self.clone(),
                path,
                log,
                tmp,
                files: AtomicU64::new(0),
                named: HashSet::new(),
                batch: Vec::new(),
                batch_bytes: 0,
                unsettled: BTreeSet::new(),
                written: 0,
            });
        }
    }
}

impl Lease {
    /// The store that it is of.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Bytes on disk of what this lease has added.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// A path for a file that is moved to its place when it is whole.
    pub(crate) fn file_in_progress(&self, what: &str) -> PathBuf {
        self.tmp.join(format!("{what}-{}", self.files.fetch_add(1, Ordering::Relaxed)))
    }

    /// A private directory for what is put together before it is added. It goes with the lease.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn workplace(&self) -> Result<PathBuf, StoreError> {
        let path = self.file_in_progress("work");
        make_directory(&path)?;
        Ok(path)
    }

    /// Adds a chunk of at most [`object::MAX_CHUNK`] bytes, if it is not there; its digest. It is on disk when
    /// something that needs it is pinned.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the file system's.
    pub fn put_chunk(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
        self.put(ObjectId::chunk(Digest::of(bytes)), bytes)
    }

    /// Adds a manifest whose children are all in the store; its digest. It and they are on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Missing`] for a child that is not there, else as [`Lease::put_chunk`].
    pub fn put_manifest(&mut self, manifest: &Manifest) -> Result<Digest, StoreError> {
        let bytes = manifest.encode().map_err(StoreError::Unfit)?;
        self.name_all(&manifest.children())?;
        // no manifest is on disk before its chunks
        self.settle()?;
        let digest = self.put(ObjectId::manifest(Digest::of(&bytes)), &bytes)?;
        self.settle()?;
        Ok(digest)
    }

    fn put(&mut self, id: ObjectId, bytes: &[u8]) -> Result<Digest, StoreError> {
        if self.named.contains(&id) {
            return Ok(id.digest);
        }
        if bytes.len() > id.kind.limit() {
            let why = io::Error::new(io::ErrorKind::FileTooLarge, format!("it has {} bytes", bytes.len()));
            return Err(StoreError::io("keep", &self.store.object(id))(why));
        }
        if !self.name(id.shard(), &[id])?.is_empty() {
            let object = object::encode(id.kind, bytes);
            self.batch_bytes += object.len();
            self.batch.push((id, object));
        }
        self.named.insert(id);
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(id.digest)
    }

    /// Names objects of one shard, and looks for them; those that are not there.
    fn name(&mut self, shard: Shard, ids: &[ObjectId]) -> Result<Vec<ObjectId>, StoreError> {
        let _lock = self.store.lock_shard(shard, false)?;
        let mut records = Vec::with_capacity(ids.len() * RECORD);
        for id in ids {
            records.push(id.kind.byte());
            records.extend_from_slice(&id.digest.0);
        }
        self.log.write_all(&records).map_err(StoreError::io("write", &self.path))?;
        self.unsettled.insert(shard);
        let mut missing = Vec::new();
        for id in ids {
            let path = self.store.object(*id);
            match File::open(&path) {
                // the last use is what decides who goes first; not worth failing for
                Ok(file) if id.kind == Kind::Manifest => drop(file.set_modified(SystemTime::now())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(*id),
                Err(error) => return Err(StoreError::io("read", &path)(error)),
            }
        }
        Ok(missing)
    }

    /// Names objects, each of which has to be there.
    fn name_all(&mut self, ids: &BTreeSet<ObjectId>) -> Result<(), StoreError> {
        let ids: Vec<ObjectId> = ids.iter().filter(|id| !self.named.contains(id)).copied().collect();
        for ids in ids.chunk_by(|a, b| a.shard() == b.shard()) {
            if let Some(missing) = self.name(ids[0].shard(), ids)?.first() {
                return Err(StoreError::Missing(*missing));
            }
            self.named.extend(ids);
        }
        Ok(())
    }

    /// Keeps a manifest and all that it needs for as long as this lease lives.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when something of it is not there, [`StoreError::Damaged`].
    pub fn hold(&mut self, manifest: Digest) -> Result<Manifest, StoreError> {
        self.name_all(&BTreeSet::from([ObjectId::manifest(manifest)]))?;
        let held = self.manifest(manifest)?;
        self.name_all(&held.children())?;
        if let Manifest::Described(described) = &held {
            let digest = described.tree;
            match self.manifest(digest)? {
                tree @ Manifest::Tree(_) => self.name_all(&tree.children())?,
                Manifest::Described(_) => {
                    let why = "what is described is no tree".into();
                    return Err(StoreError::Manifest { digest, why });
                }
            }
        }
        Ok(held)
    }

    /// The bytes of a chunk.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there, [`StoreError::Damaged`] when it is not what it was: it is missing from
    /// then on, and may be put anew.
    pub fn chunk(&mut self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let id = ObjectId::chunk(digest);
        if self.batch.iter().any(|(waits, _)| *waits == id) {
            self.flush()?;
        }
        self.name_all(&BTreeSet::from([id]))?;
        self.read(id)
    }

    fn manifest(&mut self, digest: Digest) -> Result<Manifest, StoreError> {
        let bytes = self.read(ObjectId::manifest(digest))?;
        Manifest::decode(&bytes).map_err(|why| StoreError::Manifest { digest, why })
    }

    /// Reads what was named. What cannot be read may be put again.
    fn read(&mut self, id: ObjectId) -> Result<Vec<u8>, StoreError> {
        self.store.read(id).inspect_err(|_| {
            self.named.remove(&id);
        })
    }

    /// Keeps a manifest that this lease has put or holds under a name, beyond the end of this process. Another manifest of that
    /// name is kept by it no more. It is on disk when this returns.
    ///
    /// # Errors
    /// When it was not held, or the file system says no.
    pub fn pin(&mut self, name: &PinName, manifest: Digest) -> Result<(), StoreError> {
        let id = ObjectId::manifest(manifest);
        if !self.named.contains(&id) {
            return Err(StoreError::Missing(id));
        }
        self.settle()?;
        let path = self.store.pin_path(name);
        let pins = self.store.path("pins");
        make_directory(&pins.join(&name.kind))?;
        sync_directory(&pins)?;
        replace(&path, &self.file_in_progress("pin"), format!("{}{manifest}\n", pin::HEAD).as_bytes())
    }

    /// Brings all to disk that was put: bytes first, then names.
    fn settle(&mut self) -> Result<(), StoreError> {
        self.flush()?;
        while let Some(shard) = self.unsettled.first().copied() {
            sync_directory(&self.store.shard(shard))?;
            self.unsettled.remove(&shard);
        }
        Ok(())
    }

    /// Writes the batch. What could not be written was never put.
    fn flush(&mut self) -> Result<(), StoreError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let bytes = std::mem::take(&mut self.batch_bytes) as u64;
        let mut written = self.write_batch(&batch, bytes);
        if matches!(&written, Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull)
        {
            // what nobody needs gives its room
            self.store.collect(Goal::Room(bytes.saturating_mul(2)), false)?;
            written = self.write_batch(&batch, bytes);
        }
        if written.is_ok() {
            self.written += bytes;
        } else {
            for (id, _) in &batch {
                self.named.remove(id);
            }
        }
        written
    }

    fn write_batch(&self, batch: &[(ObjectId, Vec<u8>)], bytes: u64) -> Result<(), StoreError> {
        self.store.reserve(bytes)?;
        let written = self.write_files(batch);
        if written.is_err() {
            // a part may have got its place: then the number is too large until it is counted again
            self.clear();
            if let Err(error) = self.store.change_usage(|_| self.store.bytes().ok()) {
                tracing::debug!(%error, "usage was not counted");
            }
        }
        written
    }

    /// Takes away the files that were being written; what is in a workplace stays.
    fn clear(&self) {
        for entry in entries(&self.tmp).into_iter().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file())
                && let Err(error) = remove(&entry.path())
            {
                tracing::debug!(%error, "it goes with the lease");
            }
        }
    }

    fn write_files(&self, batch: &[(ObjectId, Vec<u8>)]) -> Result<(), StoreError> {
        let mut files = Vec::with_capacity(batch.len());
        for (_, object) in batch {
            let path = self.file_in_progress("object");
            let file = write_new(&path, object)?;
            files.push((path, file));
        }
        sync_all(&files)?;
        for ((id, _), (path, _)) in batch.iter().zip(&files) {
            let _lock = self.store.lock_shard(id.shard(), false)?;
            let place = self.store.object(*id);
            std::fs::rename(path, &place).map_err(StoreError::io("write", &place))?;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A collection that is under way may have looked for manifests before ours was there: from what we have named it learns that
        // the chunks of it stay. What stays of us is a dead lease's, which the next one clears away.
        let ended = remove_directory(&self.tmp).and_then(|()| match self.store.lock_out_collections()? {
            Some(_none_begins) => remove(&self.path).map(drop),
            None => Ok(()),
        });
        if let Err(error) = ended {
            tracing::debug!(%error, "a lease was not cleared away");
        }
    }
}

/// The objects that a part of a lease names, and how many of its bytes that takes.
pub(crate) fn names(log: &[u8]) -> (Vec<ObjectId>, usize) {
    let records = log.chunks_exact(RECORD);
    let ids = records.clone().filter_map(|record| {
        let digest = Digest(record[1..].try_into().ok()?);
        Some(ObjectId { kind: Kind::from_byte(record[0])?, digest })
    });
    (ids.collect(), records.len() * RECORD)
}
