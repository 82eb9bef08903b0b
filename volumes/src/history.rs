//! Snapshots: taken, listed, found, let go of.
//!
//! A snapshot is a tree in the content store and a few facts, kept by the pin `snapshot/ID`. A pin without those facts is
//! somebody else's.

use crate::moment::{self, Moment, MomentError};
use crate::retention::{Policy, Reason};
use crate::{Volume, VolumeError};
use godwit_migration::calendar::date_of_day;
use godwit_migration::host_name;
use godwit_store::manifest::{Described, Tree};
use godwit_store::{Added, Digest, Lease, PinName, Restless, Stood, Store, StoreError, Writers, store_of};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Kind of the pins that keep snapshots.
const KIND: &str = "snapshot";
/// What an id has of the volume's name at most, bytes.
const LABEL: usize = 80;
/// What means the newest one, in the place of its time.
const LATEST: &str = "latest";

/// Why a snapshot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Asked,
    /// A rollback put away what the volume had become. No policy lets go of it.
    Stash,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Asked => "asked",
            Cause::Stash => "stash",
        })
    }
}

/// What a volume was at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name: `LABEL@20261122T084011.123456Z`, UTC.
    pub id: String,
    /// The volume's name.
    pub volume: String,
    /// Where it was.
    pub path: PathBuf,
    /// On which host.
    pub host: String,
    /// When it was begun, µs since 1970.
    pub made_unix_us: u64,
    /// Why.
    pub cause: Cause,
    /// For how long its writers stood still, so that it is of one moment, µs. None: each file is of some moment of its own, where
    /// somebody wrote meanwhile.
    pub stood_us: Option<u64>,
    /// The file system that has shown it as it was, without changes under the reader: as a host that lost power would find it.
    pub shown_by: Option<String>,
    /// What somebody wanted to be remembered.
    pub note: Option<String>,
    /// What the pin keeps.
    pub manifest: Digest,
    /// The tree: the same for two snapshots between which nothing has changed.
    pub tree: Digest,
}

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
}

impl History {
    /// Those in godwit's directory `root`. The store is made when there is none; `quota`: as [`Store::open`].
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(root: &Path, quota: Option<u64>) -> Result<Self, VolumeError> {
        Ok(Self { store: Store::open(&store_of(root), quota)?, locks: root.join("volumes") })
    }

    /// The same, if there is a store.
    ///
    /// # Errors
    /// As [`Store::find`].
    pub fn find_in(root: &Path) -> Result<Option<Self>, VolumeError> {
        let store = Store::find(&store_of(root), None)?;
        Ok(store.map(|store| Self { store, locks: root.join("volumes") }))
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
        let when = When { at: stood.at, stood: Some(stood.took), shown_by };
        note_down(&mut lease, volume, Cause::Asked, note, when, added)
    }

    pub(crate) fn take_locked(
        &self,
        lease: &mut Lease,
        volume: &Volume,
        cause: Cause,
        note: Option<&str>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Taken, VolumeError> {
        let moment = moment::means(&volume.path).map(Moment::now).transpose();
        if let Some(moment) = shown(moment.map_err(VolumeError::from))? {
            let added = lease.add_tree(&moment.tree(), progress)?;
            let when = When { at: moment.at, stood: None, shown_by: Some(moment.shown_by()) };
            return note_down(lease, volume, cause, note, when, added);
        }
        let when = When { at: SystemTime::now(), stood: None, shown_by: None };
        let added = lease.add_tree(&volume.path, progress)?;
        note_down(lease, volume, cause, note, when, added)
    }

    /// All snapshots, or those of one volume; oldest first.
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
            found.extend(snapshot(id, kept.manifest, described.tree, &described.facts));
        }
        found.retain(|snapshot| volume.is_none_or(|volume| snapshot.volume == volume));
        found.sort_by(|one, other| (one.made_unix_us, &one.id).cmp(&(other.made_unix_us, &other.id)));
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

    /// Lets go of a snapshot. What only it needed stays in the store until room is needed, or it is collected.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn forget(&self, snapshot: &Snapshot) -> Result<(), VolumeError> {
        Ok(self.store.unpin(&pin(&snapshot.id)?)?)
    }

    /// Why each snapshot of a volume stays by a policy, oldest first; those without a reason would go. A stash is not the policy's.
    ///
    /// # Errors
    /// As [`History::list`].
    pub fn judge(&self, volume: &str, policy: &Policy) -> Result<Vec<(Snapshot, Vec<Reason>)>, VolumeError> {
        let mut judged = self.list(Some(volume))?;
        judged.retain(|snapshot| snapshot.cause != Cause::Stash);
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
        Ok(self.store.lease()?.tree(snapshot.tree)?)
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

    /// Makes the directory `to` of a snapshot; it is empty or is made. Gives its entries and the bytes of its files.
    ///
    /// # Errors
    /// As [`Lease::materialise`]; nothing is left of it then.
    pub fn restore(
        &self,
        snapshot: &Snapshot,
        to: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(u64, u64), VolumeError> {
        let tree = self.store.lease()?.materialise(snapshot.manifest, to, progress)?;
        Ok((tree.entries.len() as u64, tree.file_bytes()))
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
        let found = snapshot(String::new(), manifest, described.tree, &described.facts).ok_or_else(unfit)?;
        let found = Snapshot { id: id(&found.volume, found.made_unix_us), ..found };
        if self.list(None)?.iter().any(|here| here.id == found.id && here.manifest != manifest) {
            return Err(
                StoreError::Unfit(format!("`{}` is here already, and is another one", found.id)).into()
            );
        }
        lease.pin(&pin(&found.id)?, manifest)?;
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
fn at_rest<T>(
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

/// Of when a snapshot is.
struct When {
    at: SystemTime,
    stood: Option<Duration>,
    shown_by: Option<&'static str>,
}

/// Pins what was put into the store as a snapshot.
fn note_down(
    lease: &mut Lease,
    volume: &Volume,
    cause: Cause,
    note: Option<&str>,
    When { at, stood, shown_by }: When,
    added: Added,
) -> Result<Taken, VolumeError> {
    let made_unix_us = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let facts: BTreeMap<String, String> = [
        ("volume", Some(volume.name.clone())),
        ("path", Some(volume.path.display().to_string())),
        ("host", Some(host_name())),
        ("made_unix_us", Some(made_unix_us.to_string())),
        ("stood_us", stood.map(|stood| stood.as_micros().to_string())),
        ("shown_by", shown_by.map(str::to_owned)),
        ("cause", Some(cause.to_string())),
        ("note", note.map(str::to_owned)),
    ]
    .into_iter()
    .filter_map(|(name, fact)| Some((name.to_owned(), fact?)))
    .collect();
    let manifest = lease.describe(added.manifest, facts.clone())?;
    let id = id(&volume.name, made_unix_us);
    lease.pin(&pin(&id)?, manifest)?;
    let snapshot = snapshot(id, manifest, added.manifest, &facts)
        .ok_or_else(|| StoreError::Unfit("its facts are none of a snapshot".into()))?;
    Ok(Taken { snapshot, added })
}

fn pin(id: &str) -> Result<PinName, StoreError> {
    format!("{KIND}/{id}").parse()
}

/// What an id has of a volume's name: its end, in letters that a pin may have.
fn label(volume: &str) -> String {
    let plain: String = volume
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._:+-".contains(c) { c } else { '-' })
        .collect();
    let end = plain[plain.len().saturating_sub(LABEL)..].trim_start_matches(['-', '.']);
    if end.is_empty() { "volume".into() } else { end.to_owned() }
}

fn id(volume: &str, unix_us: u64) -> String {
    let since = Duration::from_micros(unix_us);
    let (day, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date_of_day(day);
    format!(
        "{}@{year:04}{month:02}{day:02}T{:02}{:02}{:02}.{:06}Z",
        label(volume),
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// From what the store has; none if it is not a snapshot's.
fn snapshot(
    id: String,
    manifest: Digest,
    tree: Digest,
    facts: &BTreeMap<String, String>,
) -> Option<Snapshot> {
    let fact = |name: &str| facts.get(name).cloned();
    Some(Snapshot {
        id,
        volume: fact("volume")?,
        path: fact("path")?.into(),
        host: fact("host")?,
        made_unix_us: fact("made_unix_us")?.parse().ok()?,
        cause: if fact("cause")? == Cause::Stash.to_string() { Cause::Stash } else { Cause::Asked },
        stood_us: fact("stood_us").and_then(|text| text.parse().ok()),
        shown_by: fact("shown_by"),
        note: fact("note"),
        manifest,
        tree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_pins_whatever_a_volume_is_called() {
        assert_eq!(id("podman:data", 951_782_400_000_007), "podman:data@20000229T000000.000007Z");
        assert_eq!(label("/srv/web data"), "srv-web-data");
        for name in ["/", "..", "/ä/b", &"/x".repeat(200), "a@b/c", "-"] {
            let id = id(name, 1);
            assert!(pin(&id).is_ok(), "{name}: {id}");
        }
    }
}
