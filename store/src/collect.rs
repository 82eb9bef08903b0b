//! Takes away what nobody needs: marks what pins and leases keep, plans, then sweeps shard by shard, each under its
//! exclusive lock and after another look at leases and pins (see [`lease`](crate::lease) for why none is missed).
//!
//! It can be killed at any instant. Manifests go before what they name, so that none is left that lacks something of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::census::{Stored, bytes_below};
use crate::digest::Shard;
use crate::disk::{entries, make_directory, remove, remove_directory};
use crate::plan::{Scene, plan};
use crate::{Digest, Kind, Manifest, ObjectId, Store, StoreError, lease};

/// How much shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// All that nobody needs.
    All,
    /// This many bytes, or all that nobody needs if that is less.
    Room(u64),
}

/// What went, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that went.
    pub manifests: u64,
    /// Chunks that went.
    pub chunks: u64,
    /// Bytes on disk that all had that went, damaged objects and what dead writers have left among it.
    pub bytes: u64,
    /// Leases of processes that are dead.
    pub dead_leases: u64,
    /// Objects that stay.
    pub kept: u64,
    /// Their bytes on disk.
    pub kept_bytes: u64,
}

/// Objects that went, or would.
#[derive(Default)]
struct Swept {
    manifests: u64,
    chunks: u64,
    bytes: u64,
}

impl Swept {
    fn count(&mut self, object: &Stored) {
        match object.id.kind {
            Kind::Manifest => self.manifests += 1,
            Kind::Chunk => self.chunks += 1,
        }
        self.bytes += object.len;
    }
}

impl Store {
    /// Collects, or with `dry_run` only says what would go. One collection at a time: another one is waited for.
    ///
    /// # Errors
    /// [`StoreError::LostPin`] when it cannot be known what a pin keeps: then nothing goes.
    pub fn collect(&self, goal: Goal, dry_run: bool) -> Result<Collected, StoreError> {
        let _one_at_a_time = self.lock_collections()?;
        let usage_before = self.usage()?;
        let mut collected = self.clear_away(dry_run)?;
        let mut marks = Marks::new(self);
        marks.look()?;
        // before the objects: what becomes one meanwhile counts twice rather than not at all
        let in_hand = bytes_below(&self.path("tmp"))?;
        let scene = self.scene(&marks, goal)?;
        let going = plan(&scene, goal);
        let mut swept = Swept::default();
        if dry_run {
            going.iter().for_each(|object| swept.count(object));
        } else {
            self.sweep(&going, &mut marks, &mut swept)?;
        }
        let total: u64 = scene.objects.iter().map(|object| object.len).sum();
        collected.manifests = swept.manifests;
        collected.chunks = swept.chunks;
        collected.bytes += swept.bytes;
        collected.kept = scene.objects.len() as u64 - swept.manifests - swept.chunks;
        collected.kept_bytes = total - swept.bytes;
        if !dry_run {
            let left = collected.kept_bytes + in_hand;
            // what others have added meanwhile counts on top
            let _ = self.change_usage(|now| Some(left + now.saturating_sub(usage_before)))?;
        }
        Ok(collected)
    }

    pub(crate) fn lock_collections(&self) -> Result<File, StoreError> {
        let (file, path) = self.collection_lock()?;
        file.lock().map(|()| file).map_err(StoreError::io("lock", &path))
    }

    /// No collection begins as long as the file lives; none when there is one under way.
    pub(crate) fn lock_out_collections(&self) -> Result<Option<File>, StoreError> {
        let (file, path) = self.collection_lock()?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path)(error)),
        }
    }

    fn collection_lock(&self) -> Result<(File, PathBuf), StoreError> {
        let path = self.path("collection.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        Ok((file.map_err(StoreError::io("open", &path))?, path))
    }

    /// Leases of the dead, what they were writing, and what was moved aside.
    fn clear_away(&self, dry_run: bool) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        // in this order: whoever writes has its lease before its directory
        let written = entries(&self.path("tmp"))?;
        let mut living: HashSet<OsString> = HashSet::new();
        for entry in entries(&self.path("leases"))? {
            let Ok(file) = File::open(entry.path()) else { continue };
            match file.try_lock() {
                Ok(()) => {
                    collected.dead_leases += 1;
                    if !dry_run {
                        remove(&entry.path())?;
                    }
                }
                Err(TryLockError::WouldBlock) => {
                    living.insert(entry.file_name());
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &entry.path())(error)),
            }
        }
        for directory in written.iter().filter(|entry| !living.contains(&entry.file_name())) {
            collected.bytes += bytes_below(&directory.path())?;
            if !dry_run {
                remove_directory(&directory.path())?;
            }
        }
        let damaged = self.path("damaged");
        collected.bytes += bytes_below(&damaged)?;
        if !dry_run {
            remove_directory(&damaged)?;
            make_directory(&damaged)?;
        }
        Ok(collected)
    }

    fn scene(&self, marks: &Marks<'_>, goal: Goal) -> Result<Scene, StoreError> {
        let mut objects = self.objects(Kind::Manifest)?.0;
        let mut children = HashMap::new();
        let is_free = |object: &&Stored| !marks.kept.contains(&object.id);
        for object in objects.iter().filter(is_free).filter(|_| goal != Goal::All) {
            if let Some(manifest) = self.readable(object.id.digest)? {
                children.insert(object.id.digest, manifest.children().into_iter().collect());
            }
        }
        objects.extend(self.objects(Kind::Chunk)?.0);
        Ok(Scene { objects, kept: marks.kept.clone(), children })
    }

    /// A manifest, if it is there and is one.
    fn readable(&self, digest: Digest) -> Result<Option<Manifest>, StoreError> {
        match self.look_at(ObjectId::manifest(digest)) {
            Ok(bytes) => Ok(bytes.ok().and_then(|bytes| Manifest::decode(&bytes).ok())),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sweep(&self, going: &[Stored], marks: &mut Marks<'_>, swept: &mut Swept) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            let mut shards: BTreeMap<Shard, Vec<&Stored>> = BTreeMap::new();
            for object in going.iter().filter(|object| object.id.kind == kind) {
                shards.entry(object.id.shard()).or_default().push(object);
            }
            for (shard, objects) in shards {
                let _nobody_names_one = self.lock_shard(shard, true)?;
                marks.look()?;
                for object in objects {
                    if !marks.kept.contains(&object.id) && remove(&self.object(object.id))? {
                        swept.count(object);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is known to be needed; it only ever grows.
struct Marks<'s> {
    store: &'s Store,
    kept: HashSet<ObjectId>,
    /// How far each lease was read.
    read: HashMap<OsString, u64>,
    /// Manifests whose children are marked.
    opened: HashSet<Digest>,
}

impl<'s> Marks<'s> {
    fn new(store: &'s Store) -> Marks<'s> {
        Marks { store, kept: HashSet::new(), read: HashMap::new(), opened: HashSet::new() }
    }

    /// Marks what leases and pins keep now. Leases first: one that has ended meanwhile has pinned before what it wanted to stay.
    fn look(&mut self) -> Result<(), StoreError> {
        for entry in entries(&self.store.path("leases"))? {
            let from = self.read.entry(entry.file_name()).or_default();
            let mut log = Vec::new();
            let read = File::open(entry.path()).and_then(|mut file| {
                file.seek(SeekFrom::Start(*from))?;
                file.read_to_end(&mut log)
            });
            match read {
                // it has ended
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                read => read.map_err(StoreError::io("read", &entry.path()))?,
            };
            let (ids, length) = lease::names(&log);
            *from += length as u64;
            for id in ids {
                self.kept.insert(id);
                // it may not be there yet, or no more: whoever named it finds out
                if id.kind == Kind::Manifest && !self.opened.contains(&id.digest) {
                    let _ = self.open(id.digest);
                }
            }
        }
        for pin in self.store.pins()? {
            self.open(pin.manifest).map_err(|source| match source {
                source @ StoreError::LostPin { .. } => source,
                source => StoreError::LostPin { pin: pin.name.to_string(), source: Box::new(source) },
            })?;
        }
        Ok(())
    }

    /// Marks a manifest and all that it needs.
    fn open(&mut self, root: Digest) -> Result<(), StoreError> {
        let mut pending = vec![root];
        while let Some(digest) = pending.pop() {
            let id = ObjectId::manifest(digest);
            self.kept.insert(id);
            if self.opened.contains(&digest) {
                continue;
            }
            let bytes = self.store.look_at(id)?.map_err(|why| StoreError::Damaged { id, why })?;
            let manifest = Manifest::decode(&bytes).map_err(|why| StoreError::Manifest { digest, why })?;
            self.opened.insert(digest);
            for child in manifest.children() {
                self.kept.insert(child);
                if child.kind == Kind::Manifest {
                    pending.push(child.digest);
                }
            }
        }
        Ok(())
    }
}
