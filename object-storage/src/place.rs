//! A place that is open: objects are put, read, listed.
//!
//! ```text
//! godwit                    `godwit place 1`
//! packs/DIGEST              chunks
//! checkpoints/DIGEST        indexes of checkpoints, by the digests of their manifests
//! snapshots/DIGEST          and of volumes
//! uploads/ID                packs that an upload under way relies on
//! condemned/ID              packs that nobody needs
//! ```

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use godwit_migration::Cancel;
use godwit_store::Digest;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::runtime::Runtime;

use crate::bucket::{Environment, environment, open_bucket};
use crate::error::Refusal;
use crate::index::Keys;
use crate::ledger::Begun;
use crate::name::At;
use crate::records::Records;
use crate::unfinished::Asker;
use crate::{Index, Kind, PlaceError, PlaceName};

/// What says that a place is godwit's, and of which version.
const MARK: &str = "godwit";
const FORMAT: &str = "godwit place 1\n";
/// Where packs are.
pub(crate) const PACKS: &str = "packs";
/// All that is in it.
pub(crate) const DIRECTORIES: [&str; 5] = [
    PACKS,
    Kind::Checkpoint.directory(),
    Kind::Snapshot.directory(),
    Records::Uploads.directory(),
    Records::Condemned.directory(),
];

/// Bytes from which on an object is uploaded in parts of so many.
pub(crate) const PART: usize = 8 << 20;
/// Most bytes of an object that is read: an index.
const LARGEST: u64 = 1 << 30;
/// Uploads or downloads at once.
pub(crate) const AT_ONCE: usize = 4;

/// How often somebody's wish to stop is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// An open place.
pub struct Place {
    name: PlaceName,
    objects: Objects,
    /// Of a bucket.
    asker: Option<Asker>,
    pub(crate) runtime: Runtime,
    cancel: Cancel,
}

/// An object that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// How many bytes it has.
    pub bytes: u64,
    /// When it was written, by the place's clock.
    pub modified: SystemTime,
}

/// The objects of a place, for whoever is busy with them.
#[derive(Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Where large objects are uploaded in parts.
    pub parts: Option<Arc<dyn MultipartStore>>,
    root: Path,
}

impl Place {
    /// Opens a place; nothing is asked of it yet. Credentials and endpoint are those of the environment (`AWS_…`). Once `cancel` is
    /// raised nothing more is waited for.
    ///
    /// # Errors
    /// When the environment says nothing that can be used.
    pub fn open(name: &PlaceName, cancel: Cancel) -> Result<Place, PlaceError> {
        Place::open_in(&environment(), name, cancel, true)
    }

    /// The same in an environment. `outlives_crashes`: whether anybody wants to find there what was put before one.
    pub(crate) fn open_in(
        environment: &Environment,
        name: &PlaceName,
        cancel: Cancel,
        outlives_crashes: bool,
    ) -> Result<Place, PlaceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| unusable(&error))?;
        let (objects, asker) = match &name.at {
            At::Bucket { bucket, prefix } => {
                let asker = open_bucket(environment, bucket)?;
                let (store, parts) = (asker.bucket.clone(), asker.bucket.clone());
                let root = Path::from(prefix.as_str());
                (Objects { store, parts: Some(parts), root }, Some(asker))
            }
            At::Directory(path) => {
                let root = Path::from_absolute_path(path).map_err(|error| unusable(&error))?;
                let store = Arc::new(LocalFileSystem::new().with_fsync(outlives_crashes));
                (Objects { store, parts: None, root }, None)
            }
        };
        Ok(Place { name: name.clone(), objects, asker, runtime, cancel })
    }

    /// Over a store that a test has made.
    #[cfg(test)]
    pub(crate) fn over(name: &PlaceName, store: Arc<dyn ObjectStore>) -> Place {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        Place {
            name: name.clone(),
            objects: Objects::of(store),
            asker: None,
            runtime,
            cancel: Cancel::default(),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &PlaceName {
        &self.name
    }

    pub(crate) fn objects(&self) -> Objects {
        self.objects.clone()
    }

    pub(crate) fn asker(&self) -> Option<&Asker> {
        self.asker.as_ref()
    }

    /// Sees that it can be written to, and makes it godwit's.
    ///
    /// # Errors
    /// When it cannot, or belongs to another version of godwit.
    pub fn claim(&self) -> Result<(), PlaceError> {
        if let At::Directory(path) = &self.name.at {
            for directory in DIRECTORIES.map(|name| path.join(name)) {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
                made.map_err(PlaceError::io("make", &directory))?;
            }
        }
        if !self.is_claimed()? {
            tracing::debug!(place = %self.name, "new");
        }
        self.put(MARK, FORMAT.into())
    }

    /// Whether it is godwit's.
    ///
    /// # Errors
    /// When it cannot be asked, or belongs to another version of godwit.
    pub fn is_claimed(&self) -> Result<bool, PlaceError> {
        match self.get(MARK) {
            Ok(bytes) if bytes == FORMAT.as_bytes() => Ok(true),
            Ok(bytes) => {
                let found = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).escape_debug().to_string();
                let object = self.objects.path(MARK).to_string();
                Err(PlaceError::Format { object, why: format!("its format is `{found}`") })
            }
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The images of a kind that are complete, in no particular order.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn images(&self, kind: Kind) -> Result<Vec<Digest>, PlaceError> {
        Ok(self.list(kind.directory())?.into_keys().collect())
    }

    /// When the index of an image was written there, by the place's clock.
    ///
    /// # Errors
    /// When it cannot be asked, or there is none.
    pub fn written(&self, kind: Kind, manifest: Digest) -> Result<SystemTime, PlaceError> {
        self.modified(&format!("{}/{manifest}", kind.directory()))
    }

    /// The index of an image.
    ///
    /// # Errors
    /// When there is none, it is not what was written, or no key opens it.
    pub fn index(&self, kind: Kind, manifest: Digest, keys: Keys<'_>) -> Result<Index, PlaceError> {
        let object = format!("{}/{manifest}", kind.directory());
        let bytes = self.get(&object).map_err(|error| match error.is_missing() {
            true => PlaceError::NoImage(format!("{} {manifest}", kind.word())),
            false => error,
        })?;
        Index::decode(&object, manifest, bytes, keys)
    }

    /// What the place's clock said when it was claimed: no earlier than the last time that this process did.
    pub(crate) fn now(&self) -> Result<SystemTime, PlaceError> {
        self.modified(MARK)
    }

    /// When an object was written, by the place's clock.
    pub(crate) fn modified(&self, object: &str) -> Result<SystemTime, PlaceError> {
        let path = self.objects.path(object);
        let meta = self.wait(async {
            let meta = self.objects.store.head(&path).await;
            meta.map_err(PlaceError::object("look at", &path))
        })?;
        Ok(meta.last_modified.into())
    }

    /// The packs that are there.
    pub(crate) fn packs(&self) -> Result<HashMap<Digest, Listed>, PlaceError> {
        self.list(PACKS)
    }

    /// The objects of a directory that are named by digests.
    fn list(&self, directory: &str) -> Result<HashMap<Digest, Listed>, PlaceError> {
        let named = self.named(directory)?.into_iter();
        Ok(named.filter_map(|(name, listed)| Some((name.parse().ok()?, listed))).collect())
    }

    /// The objects of a directory, by their names in it.
    pub(crate) fn named(&self, directory: &str) -> Result<Vec<(String, Listed)>, PlaceError> {
        let path = self.objects.path(directory);
        let listed = self.wait(async {
            let listed = self.objects.store.list(Some(&path)).try_collect::<Vec<_>>().await;
            listed.map_err(PlaceError::object("list", &path))
        });
        let listed = match listed {
            Err(error) if error.is_missing() => Vec::new(),
            listed => listed?,
        };
        let named = |object: &object_store::ObjectMeta| {
            let rest = object.location.as_ref().strip_prefix(path.as_ref())?.strip_prefix('/')?;
            Some((rest.to_owned(), Listed { bytes: object.size, modified: object.last_modified.into() }))
        };
        Ok(listed.iter().filter_map(named).collect())
    }

    pub(crate) fn put(&self, object: &str, bytes: Vec<u8>) -> Result<(), PlaceError> {
        self.wait(self.objects.put(self.objects.path(object), bytes))
    }

    pub(crate) fn get(&self, object: &str) -> Result<Vec<u8>, PlaceError> {
        self.wait(self.objects.get(self.objects.path(object)))
    }

    /// Lets go of an upload in parts; whether the server knows nothing of it any more.
    pub(crate) fn abort(&self, (object, upload): &Begun) -> bool {
        let Some(parts) = &self.objects.parts else { return true };
        let path = Path::from(object.as_str());
        // also when somebody wants to stop: that is when it matters
        match self.runtime.block_on(parts.abort_multipart(&path, upload)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => true,
            Err(error) => {
                tracing::warn!(%error, object, "a part of an upload is left over: the next one takes it away");
                false
            }
        }
    }

    /// Takes an object away that is of no use any more, if it is there; also when somebody wants to stop. Where that fails the next
    /// collection does it.
    pub(crate) fn remove_at_last(&self, object: &str) {
        let path = self.objects.path(object);
        if let Err(error) = self.runtime.block_on(self.objects.delete(&path)) {
            tracing::warn!(%error, "it is left over: the next collection takes it away");
        }
    }

    /// Waits for what was asked, or until somebody wants to stop.
    pub(crate) fn wait<T>(
        &self,
        asked: impl Future<Output = Result<T, PlaceError>>,
    ) -> Result<T, PlaceError> {
        let stopped = async {
            while !self.cancel.is_raised() {
                tokio::time::sleep(LOOK).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                answer = asked => answer,
                () = stopped => Err(PlaceError::Interrupted),
            }
        })
    }
}

impl Objects {
    /// Of a store that a test has made.
    #[cfg(test)]
    pub fn of(store: Arc<dyn ObjectStore>) -> Objects {
        Objects { store, parts: None, root: Path::default() }
    }

    /// The whole name of an object.
    pub fn path(&self, object: &str) -> Path {
        object.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    /// Puts an object, all of it or nothing.
    pub async fn put(&self, path: Path, bytes: Vec<u8>) -> Result<(), PlaceError> {
        let put = self.store.put(&path, PutPayload::from(bytes)).await;
        put.map(drop).map_err(PlaceError::object("write", &path))
    }

    /// What they are kept in.
    pub fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    /// Whether that is a directory.
    pub fn is_directory(&self) -> bool {
        self.parts.is_none()
    }

    /// Takes an object away, if it is there.
    pub async fn delete(&self, path: &Path) -> Result<(), PlaceError> {
        match self.store.delete(path).await.map_err(PlaceError::object("remove", path)) {
            Err(error) if error.is_missing() => Ok(()),
            deleted => deleted,
        }
    }

    /// Reads an object, one of at most [`LARGEST`] bytes.
    pub async fn get(&self, path: Path) -> Result<Vec<u8>, PlaceError> {
        self.get_at_most(path, LARGEST).await
    }

    /// Reads an object, one of at most so many bytes.
    pub async fn get_at_most(&self, path: Path, most: u64) -> Result<Vec<u8>, PlaceError> {
        let is_fit = |size| if size > most { Err(format!("it has {size} bytes")) } else { Ok(()) };
        self.get_if(path, is_fit).await
    }

    /// Reads an object that has to be there and to have so many bytes.
    pub async fn get_sized(&self, path: Path, size: u64) -> Result<Vec<u8>, PlaceError> {
        let is_fit = |found| match found == size {
            true => Ok(()),
            false => Err(format!("it has {found} bytes instead of {size}")),
        };
        self.get_if(path, is_fit).await.map_err(|error| match error {
            PlaceError::Object { object, refusal: Refusal::Missing, .. } => {
                PlaceError::Damaged { object, why: "it is missing".into() }
            }
            error => error,
        })
    }

    async fn get_if(
        &self,
        path: Path,
        is_fit: impl FnOnce(u64) -> Result<(), String>,
    ) -> Result<Vec<u8>, PlaceError> {
        let failed = || PlaceError::object("read", &path);
        let got = self.store.get(&path).await.map_err(failed())?;
        is_fit(got.meta.size).map_err(|why| PlaceError::Damaged { object: path.to_string(), why })?;
        Ok(got.bytes().await.map_err(failed())?.into())
    }
}

pub(crate) fn unusable(error: &dyn std::error::Error) -> PlaceError {
    let mut why = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        why = format!("{why}: {error}");
        next = error.source();
    }
    PlaceError::Unusable(why)
}
