//! The directory of a store: made, opened, read.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::census::Stored;
use crate::digest::{Digest, Shard};
use crate::disk::{entries, make_directory, replace, sync_directory};
use crate::manifest::{Described, Manifest};
use crate::{Kind, ObjectId, StoreError, object};

/// What `format` says.
const FORMAT: &str = "godwit store 1\n";
const FORMAT_FILE: &str = "format";

/// Where a node's store is, in godwit's directory.
pub fn store_of(godwit_root: &Path) -> PathBuf {
    godwit_root.join("store")
}

/// A store. Any number of processes may have it open at a time, each as often as it likes.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    pub(crate) quota: Option<u64>,
}

impl Store {
    /// Opens the store at `root`, an absolute path; makes it when there is none. `quota`: bytes that it may have on disk, as far as
    /// this process is asked.
    ///
    /// # Errors
    /// When it cannot be made, or `root` holds something else.
    pub fn open(root: &Path, quota: Option<u64>) -> Result<Store, StoreError> {
        if let Some(store) = Self::find(root, quota)? {
            return Ok(store);
        }
        let store = Store { root: root.to_owned(), quota };
        store.make()?;
        Ok(store)
    }

    /// Opens the store at `root` if there is one.
    ///
    /// # Errors
    /// When `root` holds something else, or the store of another version.
    pub fn find(root: &Path, quota: Option<u64>) -> Result<Option<Store>, StoreError> {
        let path = root.join(FORMAT_FILE);
        let mut found = String::new();
        match File::open(&path).and_then(|file| file.take(64).read_to_string(&mut found)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(StoreError::io("read", &path))?,
        };
        if found != FORMAT {
            let why = format!("its format is `{}`", found.trim_end().escape_debug());
            return Err(StoreError::Format { path: root.to_owned(), why });
        }
        Ok(Some(Store { root: root.to_owned(), quota }))
    }

    /// Makes all of it, its format last; two may do so at once.
    fn make(&self) -> Result<(), StoreError> {
        for stranger in entries(&self.root)? {
            if !DIRECTORIES.iter().any(|name| stranger.file_name() == *name) {
                let why = format!("it has `{}` in it", stranger.file_name().display());
                return Err(StoreError::Format { path: self.root.clone(), why });
            }
        }
        let parents: Vec<&Path> = self.root.ancestors().skip(1).take_while(|path| !path.exists()).collect();
        for path in parents.into_iter().rev().chain([&*self.root]) {
            make_directory(path)?;
        }
        for name in DIRECTORIES {
            make_directory(&self.root.join(name))?;
        }
        for shard in Kind::ALL.into_iter().flat_map(Shard::all) {
            make_directory(&self.shard(shard))?;
        }
        Kind::ALL.into_iter().try_for_each(|kind| sync_directory(&self.path(kind.directory())))?;
        let lease = self.lease()?;
        replace(&self.path(FORMAT_FILE), &lease.file_in_progress("format"), FORMAT.as_bytes())?;
        sync_directory(self.root.parent().unwrap_or(&self.root))
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that it may have on disk.
    pub fn quota(&self) -> Option<u64> {
        self.quota
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn shard(&self, shard: Shard) -> PathBuf {
        self.root.join(shard.kind.directory()).join(format!("{:02x}", shard.first))
    }

    pub(crate) fn object(&self, id: ObjectId) -> PathBuf {
        self.shard(id.shard()).join(id.digest.to_string())
    }

    /// Locks a shard until the file is dropped: shared to name or add objects, exclusive to take some away.
    pub(crate) fn lock_shard(&self, shard: Shard, exclusive: bool) -> Result<File, StoreError> {
        let path = self.shard(shard);
        let open = || File::open(&path);
        let directory = open().or_else(|error| {
            // somebody has deleted the store under us, or a part of it
            if error.kind() == io::ErrorKind::NotFound
                && DirBuilder::new().recursive(true).mode(0o700).create(&path).is_ok()
            {
                open()
            } else {
                Err(error)
            }
        });
        let locked = directory.and_then(|directory| {
            if exclusive { directory.lock() } else { directory.lock_shared() }.map(|()| directory)
        });
        locked.map_err(StoreError::io("lock", &path))
    }

    /// Reads and verifies an object; leaves it where it is whatever it is.
    pub(crate) fn look_at(&self, id: ObjectId) -> Result<Result<Vec<u8>, &'static str>, StoreError> {
        Ok(object::decode(id, &self.raw(id)?))
    }

    /// Reads and verifies an object; a bad one is moved aside.
    pub(crate) fn read(&self, id: ObjectId) -> Result<Vec<u8>, StoreError> {
        match self.look_at(id)? {
            Ok(bytes) => Ok(bytes),
            Err(why) => Err(self.move_aside(id, why)?),
        }
    }

    /// Whether there seems to be a chunk: it may go, or turn out to be damaged.
    pub fn has_chunk(&self, digest: Digest) -> bool {
        self.object(ObjectId::chunk(digest)).exists()
    }

    /// A chunk as it lies on disk, verified: [`object::decode`] takes it apart. It may go at any moment; nothing is held.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Damaged`].
    pub fn chunk_as_stored(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let id = ObjectId::chunk(digest);
        let object = self.raw(id)?;
        match object::decode(id, &object) {
            Ok(_) => Ok(object),
            Err(why) => Err(self.move_aside(id, why)?),
        }
    }

    fn raw(&self, id: ObjectId) -> Result<Vec<u8>, StoreError> {
        let path = self.object(id);
        let mut object = Vec::new();
        let limit = id.kind.disk_limit() + 1;
        match File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut object)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Missing(id)),
            read => read.map(|_| object).map_err(StoreError::io("read", &path)),
        }
    }

    /// The bytes of a manifest, verified. It may go at any moment, unless it is pinned.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Damaged`].
    pub fn manifest_bytes(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        self.read(ObjectId::manifest(digest))
    }

    /// What is known of a tree, without the tree; none where the manifest is that of a tree alone. It may go at any moment, unless it
    /// is pinned.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Damaged`].
    pub fn described(&self, manifest: Digest) -> Result<Option<Described>, StoreError> {
        let bytes = self.read(ObjectId::manifest(manifest))?;
        match Manifest::decode(&bytes) {
            Ok(Manifest::Described(described)) => Ok(Some(described)),
            Ok(Manifest::Tree(_)) => Ok(None),
            Err(why) => Err(StoreError::Manifest { digest: manifest, why }),
        }
    }

    /// Moves an object aside if it is bad; what is to be said of it.
    pub(crate) fn move_aside(&self, id: ObjectId, why: &'static str) -> Result<StoreError, StoreError> {
        let _lock = self.lock_shard(id.shard(), true)?;
        // a good one may have come in its place
        if matches!(self.look_at(id), Ok(Err(_))) {
            self.put_aside(id)?;
            tracing::warn!(object = %id, why, "damaged: moved aside");
        }
        Ok(StoreError::Damaged { id, why })
    }

    /// Moves an object aside, whose shard is locked; it need not be there any more.
    pub(crate) fn put_aside(&self, id: ObjectId) -> Result<(), StoreError> {
        let from = self.object(id);
        let to = self.path("damaged").join(format!("{}-{}", id.kind.directory(), id.digest));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("move aside", &from)(error))
            }
            _ => Ok(()),
        }
    }

    /// All objects of a kind, and the paths of what is no object.
    pub(crate) fn objects(&self, kind: Kind) -> Result<(Vec<Stored>, Vec<PathBuf>), StoreError> {
        let (mut objects, mut strangers) = (Vec::new(), Vec::new());
        for shard in Shard::all(kind) {
            for entry in entries(&self.shard(shard))? {
                match Stored::of(shard, &entry) {
                    Some(stored) => objects.push(stored),
                    None => strangers.push(entry.path()),
                }
            }
        }
        Ok((objects, strangers))
    }
}

/// What is in a store besides files.
const DIRECTORIES: [&str; 6] = ["chunks", "manifests", "pins", "leases", "tmp", "damaged"];
