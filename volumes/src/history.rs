//! Snapshots: taken, listed, found, let go of.
//!
//! A snapshot is a tree in the content store and a few facts, kept by the pin `snapshot/ID`. A pin without those facts is
//! somebody else's.

use crate::moment::{self, Kept, Moment, MomentError};
use crate::retention::{Policy, Reason};
use crate::snapshot::{Cause, KIND, Snapshot, id, label, pin};
use crate::{Volume, VolumeError};
use godwit_migration::host_name;
use godwit_migration::volume_owner::{Position, VolumeOwners};
use godwit_store::manifest::{Described, Tree};
use godwit_store::{Added, Digest, Lease, Restless, Stood, Store, StoreError, Writers, store_of};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What means the newest one, in the place of its time.
const LATEST: &str = "latest";

/// A snapshot that was just taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// It.
    pub snapshot: Snapshot,
    /// What it needed.
    pub added: Added,
}

/// All snapshots of this node.
#[derive(Debug)]
pub struct History {
    store: Store,
    locks: PathBuf,
    pub(crate) owners: VolumeOwners,
}

impl History {
    /// Those in godwit's directory `root`. The store is made when there is none; `quota`: as [`Store::open`].
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(root: &Path, quota: Option<u64>) -> Result<Self, VolumeError> {
        Ok(Self::of(Store::open(&store_of(root), quota)?, root))
    }

    /// The same, if there is a store.
    ///
    /// # Errors
    /// As [`Store::find`].
    pub fn find_in(root: &Path) -> Result<Option<Self>, VolumeError> {
        let store = Store::find(&store_of(root), None)?;
        Ok(store.map(|store| Self::of(store, root)))
    }

    fn of(store: Store, root: &Path) -> Self {
        Self { store, locks: root.join("volumes"), owners: VolumeOwners::below(root) }
    }

    /// Keeps what is in the volume as a snapshot. Where somebody writes to it, each file is of some moment of its own, unless the file
    /// system can show it ([`Snapshot::shown_by`]). `progress` hears how many bytes were read.
    ///
    /// # Errors
    /// [`VolumeError::Locked`], or the store's.
    pub fn take(
        &self,
        volume: &Volume,
        note: Option<&str>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Taken, VolumeError> {
        let _lock = self.lock(volume)?;
        self.take_locked(&mut self.store.lease()?, volume, Cause::Asked, note, progress)
    }

    /// The same as of one moment: those who write to the volume stand still for the last of it.
    ///
    /// # Errors
    /// As [`History::take`], and when they do not. They go on, whatever happens.
    pub fn take_of(
        &self,
        volume: &Volume,
        note: Option<&str>,
        writers: &mut dyn Writers,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Taken, VolumeError> {
        let _lock = self.lock(volume)?;
        let mut lease = self.store.lease()?;
        let position = self.draw(volume)?;
        let moment = moment::means(&volume.path).map(|means| at_rest(writers, || Moment::now(means)));
        let (added, stood, shown_by) = match shown(moment.transpose())? {
            Some((moment, stood)) => {
                (lease.add_tree(&moment.tree(), progress)?, stood, Some(moment.shown_by()))
            }
            None => {
                let (added, stood) = lease.add_tree_of(&volume.path, writers, progress)?;
                (added, stood, None)
            }
        };
        let when = When { at: stood.at, stood: Some(stood.took), shown_by, position };
        self.kept(volume, note_down(&mut lease, volume, Cause::Asked, note, when, added, None)?)
    }

    pub(crate) fn take_locked(
        &self,
        lease: &mut Lease,
        volume: &Volume,
        cause: Cause,
        note: Option<&str>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Taken, VolumeError> {
        let position = self.draw(volume)?;
        let moment = moment::means(&volume.path).map(Moment::now).transpose();
        if let Some(moment) = shown(moment.map_err(VolumeError::from))? {
            let added = lease.add_tree(&moment.tree(), progress)?;
            let when = When { at: moment.at, stood: None, shown_by: Some(moment.shown_by()), position };
            return self.kept(volume, note_down(lease, volume, cause, note, when, added, None)?);
        }
        let when = When { at: SystemTime::now(), stood: None, shown_by: None, position };
        let added = lease.add_tree(&volume.path, progress)?;
        self.kept(volume, note_down(lease, volume, cause, note, when, added, None)?)
    }

    pub(crate) fn draw(&self, volume: &Volume) -> Result<Position, VolumeError> {
        self.owners
            .draw(&volume.path, &volume.name)
            .map_err(VolumeError::io("number the snapshots of", &volume.path))
    }

    /// What is there now stems from it.
    pub(crate) fn kept(&self, volume: &Volume, taken: Taken) -> Result<Taken, VolumeError> {
        let noted = self.owners.stems_from(&volume.path, Some(&taken.snapshot.id));
        noted.map(|()| taken).map_err(VolumeError::io("write down the owner of", &volume.path))
    }

    /// Lets go of a snapshot that was just taken and is not wanted, as if it had not been.
    ///
    /// # Errors
    /// As [`History::forget`].
    pub fn take_back(&self, volume: &Volume, taken: &Snapshot) -> Result<(), VolumeError> {
        self.forget(taken)?;
        let parent = taken.position.as_ref().and_then(|position| position.parent.as_deref());
        let noted = self.owners.stems_from(&volume.path, parent);
        noted.map_err(VolumeError::io("write down the owner of", &volume.path))
    }

    /// All snapshots, or those of one volume; oldest first: by their owners' generations, and within one by its clock.
    ///
    /// # Errors
    /// When a pin or what it keeps cannot be read.
    pub fn list(&self, volume: Option<&str>) -> Result<Vec<Snapshot>, VolumeError> {
        let mut found = Vec::new();
        for kept in self.store.pins()? {
            let Some(id) = kept.name.to_string().strip_prefix(&format!("{KIND}/")).map(str::to_owned) else {
                continue;
            };
            let Some(described) = self.store.described(kept.manifest)? else { continue };
            found.extend(Snapshot::of(id, kept.manifest, described.tree, &described.facts));
        }
        found.retain(|snapshot| volume.is_none_or(|volume| snapshot.volume == volume));
        found.sort_by_cached_key(|snapshot| {
            (snapshot.generation(), snapshot.made_unix_us, snapshot.id.clone())
        });
        Ok(found)
    }

    /// The snapshot that a user means: its id, the beginning of one, its time, or `VOLUME@latest`.
    ///
    /// # Errors
    /// When none or several are meant.
    pub fn find(&self, text: &str) -> Result<Snapshot, VolumeError> {
        let name = text.strip_prefix("snapshot/").unwrap_or(text);
        let none = || VolumeError::NoSnapshot(text.to_owned());
        let all = self.list(None)?;
        if let Some((volume, LATEST)) = name.rsplit_once('@') {
            let of = |snapshot: &Snapshot| snapshot.volume == volume || label(&snapshot.volume) == volume;
            return all.into_iter().rev().find(of).ok_or_else(none);
        }
        if let Some(exact) = all.iter().find(|snapshot| snapshot.id == name) {
            return Ok(exact.clone());
        }
        let is_meant = |snapshot: &&Snapshot| {
            snapshot.id.starts_with(name)
                || snapshot.id.rsplit_once('@').is_some_and(|(_, time)| time == name)
        };
        let mut meant = all.iter().filter(is_meant);
        match (meant.next(), meant.next()) {
            (None, _) => Err(none()),
            (Some(one), None) if !name.is_empty() => Ok(one.clone()),
            _ => Err(VolumeError::Ambiguous {
                name: text.to_owned(),
                found: all.iter().filter(is_meant).map(|snapshot| snapshot.id.clone()).collect(),
            }),
        }
    }

    /// Lets go of a snapshot. What only it needed stays in the store until room is needed, or it is collected; what a file system keeps
    /// goes at once.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn forget(&self, snapshot: &Snapshot) -> Result<(), VolumeError> {
        snapshot.kept.as_ref().map_or(Ok(()), Kept::remove)?;
        Ok(self.store.unpin(&pin(&snapshot.id)?)?)
    }

    /// Why each snapshot of a volume stays by a policy, oldest first; those without a reason would go. A stash is not the policy's.
    ///
    /// # Errors
    /// As [`History::list`].
    pub fn judge(&self, volume: &str, policy: &Policy) -> Result<Vec<(Snapshot, Vec<Reason>)>, VolumeError> {
        let mut judged = self.list(Some(volume))?;
        judged.retain(|snapshot| snapshot.cause != Cause::Stash);
        judged.sort_by_key(|snapshot| snapshot.made_unix_us);
        let newest_first: Vec<u64> =
            judged.iter().rev().map(|snapshot| snapshot.made_unix_us / 1_000_000).collect();
        let reasons = policy.reasons(&newest_first);
        Ok(judged.into_iter().zip(reasons.into_iter().rev()).collect())
    }

    /// The tree of a snapshot.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn tree(&self, snapshot: &Snapshot) -> Result<Tree, VolumeError> {
        let mut lease = self.store.lease()?;
        let tree = self.content(&mut lease, snapshot)?;
        Ok(lease.tree(tree)?)
    }

    /// The tree of a volume as it is now. The store keeps none of it for longer than it likes.
    ///
    /// # Errors
    /// As [`History::take`].
    pub fn tree_now(&self, volume: &Volume, progress: &mut dyn FnMut(u64)) -> Result<Tree, VolumeError> {
        let mut lease = self.store.lease()?;
        let added = lease.add_tree(&volume.path, progress)?;
        Ok(lease.tree(added.manifest)?)
    }

    /// Makes the directory `to` of a snapshot; it is empty or is made. Gives its entries and the bytes of its files. Where that is the
    /// place of the snapshot's volume, the volume stems from the snapshot.
    ///
    /// # Errors
    /// As [`Lease::materialise`]; nothing is left of it then.
    pub fn restore(
        &self,
        snapshot: &Snapshot,
        to: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(u64, u64), VolumeError> {
        let mut lease = self.store.lease()?;
        let content = self.content(&mut lease, snapshot)?;
        let tree = lease.materialise(content, to, progress)?;
        if let Some(lineage) = snapshot.lineage().filter(|_| to == snapshot.path) {
            let noted = self.owners.restored(to, &snapshot.volume, lineage, &snapshot.id);
            noted.map_err(VolumeError::io("write down the owner of", to))?;
        }
        Ok((tree.entries.len() as u64, tree.file_bytes()))
    }

    /// The store of the snapshots.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// To read from the store of the snapshots, or write to it.
    ///
    /// # Errors
    /// As [`Store::lease`].
    pub fn lease(&self) -> Result<Lease, VolumeError> {
        Ok(self.store.lease()?)
    }

    /// Keeps a snapshot that another node has made, under the name that it has there. Of the lease: its manifest.
    ///
    /// # Errors
    /// When it is no snapshot, or the store says no.
    pub fn adopt(
        &self,
        lease: &mut Lease,
        manifest: Digest,
        described: &Described,
    ) -> Result<Snapshot, VolumeError> {
        let unfit = || StoreError::Unfit("its facts are none of a snapshot".into());
        let found = Snapshot::offered(manifest, described).ok_or_else(unfit)?;
        if self.list(None)?.iter().any(|here| here.id == found.id && here.manifest != manifest) {
            return Err(
                StoreError::Unfit(format!("`{}` is here already, and is another one", found.id)).into()
            );
        }
        lease.pin(&pin(&found.id)?, manifest)?;
        self.hear(&found)?;
        Ok(found)
    }

    /// Nobody else works on the volume as long as this lives.
    pub(crate) fn lock(&self, volume: &Volume) -> Result<File, VolumeError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.locks)
            .map_err(VolumeError::io("make", &self.locks))?;
        let path = self.locks.join(format!(
            "{}.lock",
            &Digest::of(volume.path.as_os_str().as_encoded_bytes()).to_string()[..32]
        ));
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(VolumeError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(VolumeError::Locked(volume.name.clone())),
            Err(TryLockError::Error(error)) => Err(VolumeError::io("lock", &path)(error)),
        }
    }
}

/// What a file system shows; none where it could not, so that the volume itself is to be read.
fn shown<T>(moment: Result<Option<T>, VolumeError>) -> Result<Option<T>, VolumeError> {
    match moment {
        Err(VolumeError::Moment(error)) => {
            tracing::warn!(%error, "its file system does not show it");
            Ok(None)
        }
        other => other,
    }
}

/// Does something short while those who write stand still.
pub(crate) fn at_rest<T>(
    writers: &mut dyn Writers,
    act: impl FnOnce() -> Result<T, MomentError>,
) -> Result<(T, Stood), VolumeError> {
    let refused = |error: Restless| VolumeError::from(StoreError::from(error));
    let rest = |writers: &mut dyn Writers| {
        writers.quiesce().map_err(refused)?;
        let (at, begun) = (SystemTime::now(), Instant::now());
        writers.stop().map_err(refused)?;
        let done = act();
        let went_on = writers.go_on();
        let done = done?;
        went_on.map_err(refused)?;
        Ok((done, Stood { at, took: begun.elapsed() }))
    };
    let rested = rest(writers);
    writers.resume();
    rested
}

/// Of when a snapshot is, and what it stems from.
pub(crate) struct When {
    pub(crate) at: SystemTime,
    pub(crate) stood: Option<Duration>,
    pub(crate) shown_by: Option<&'static str>,
    pub(crate) position: Position,
}

/// Pins what was put into the store as a snapshot.
pub(crate) fn note_down(
    lease: &mut Lease,
    volume: &Volume,
    cause: Cause,
    note: Option<&str>,
    When { at, stood, shown_by, position }: When,
    added: Added,
    kept: Option<Kept>,
) -> Result<Taken, VolumeError> {
    let made_unix_us = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let mut snapshot = Snapshot {
        id: id(&volume.name, made_unix_us),
        volume: volume.name.clone(),
        path: volume.path.clone(),
        host: host_name(),
        made_unix_us,
        cause,
        stood_us: stood.map(|stood| stood.as_micros() as u64),
        shown_by: shown_by.map(str::to_owned),
        note: note.map(str::to_owned),
        position: Some(position),
        kept,
        manifest: added.manifest,
        tree: added.manifest,
    };
    snapshot.manifest = lease.describe(added.manifest, snapshot.facts())?;
    lease.pin(&pin(&snapshot.id)?, snapshot.manifest)?;
    Ok(Taken { snapshot, added })
}
