//! Whose a volume is: on one node at a time, by a record on each that knows it.
//!
//! ```text
//! volumes/HASH.owner   JSON, HASH of the directory's path; replaced as a whole. Beside the store, so that it outlasts it
//! ```
//!
//! The owner is the node on which the volume is written to. A migration passes it on when the container runs at the destination, and each time the
//! *generation* grows by one; so it does when somebody says that this node is the owner now. The highest generation that a node
//! has heard of counts, and no clock: an owner stays the owner, however long nothing is heard of it. Where nothing is written
//! down, a volume is its node's, in the first generation.

use crate::{Lineage, MigrationId, WriterId};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_128;

/// The format of a record.
const VERSION: u32 = 1;
/// How a record's name ends.
const ENDING: &str = "owner";
/// No higher generation is believed, so that there is always a next one.
const LAST: u64 = 1 << 48;

/// Who writes to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// This node.
    Here,
    /// Another one, as it is called: a host's name, or where a migration went to.
    Elsewhere(String),
}

/// What a node knows of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    version: u32,
    /// Its directory.
    pub path: String,
    /// What an engine calls it.
    pub name: Option<String>,
    /// Who writes to it.
    pub owner: Owner,
    /// How often it has changed hands, from 1: whose is higher knows better.
    pub generation: u64,
    /// Since when, as this node's clock had it, seconds since 1970: for people.
    pub since_unix_s: u64,
    /// The migration that brought it here or took it away.
    pub migration: Option<MigrationId>,
    /// What its content stems from.
    pub lineage: Lineage,
    /// The newest snapshot that its content stems from.
    pub stems_from: Option<String>,
    /// Under which name this node numbers snapshots of it, and how many there have been.
    writer: Option<(WriterId, u64)>,
}

impl Ownership {
    fn new(path: &Path) -> Self {
        Self {
            version: VERSION,
            path: path.to_string_lossy().into_owned(),
            name: None,
            owner: Owner::Here,
            generation: 1,
            since_unix_s: now(),
            migration: None,
            lineage: Lineage::default(),
            stems_from: None,
            writer: None,
        }
    }

    /// The node that it belongs to, if it is not this one.
    pub fn elsewhere(&self) -> Option<&str> {
        match &self.owner {
            Owner::Here => None,
            Owner::Elsewhere(node) => Some(node),
        }
    }

    fn belongs(&mut self, owner: Owner, generation: u64, migration: Option<&MigrationId>) {
        (self.owner, self.generation) = (owner, generation.min(LAST));
        (self.since_unix_s, self.migration) = (now(), migration.cloned());
    }

    /// The content is another one now.
    fn replaced(&mut self, lineage: Lineage, stems_from: Option<String>) {
        let is_one_row = |(writer, made): &(WriterId, u64)| lineage.made_by(writer) == *made;
        self.writer = self.writer.take().filter(is_one_row);
        (self.lineage, self.stems_from) = (lineage, stems_from);
    }
}

/// What a snapshot stems from, and whose time it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Of the volume's owner.
    pub generation: u64,
    /// The snapshots that went before, and it.
    pub lineage: Lineage,
    /// The newest of them.
    pub parent: Option<String>,
}

/// What a volume takes along when it moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The new owner's.
    pub generation: u64,
    /// What its content stems from.
    pub lineage: Lineage,
    /// The newest snapshot of it.
    #[serde(default)]
    pub stems_from: Option<String>,
}

/// The records of this node.
#[derive(Clone, Debug)]
pub struct VolumeOwners {
    dir: PathBuf,
}

impl VolumeOwners {
    /// Those in godwit's directory `root`.
    pub fn below(root: &Path) -> Self {
        Self { dir: root.join("volumes") }
    }

    /// What is known of the volume at `path`.
    ///
    /// # Errors
    /// When the record cannot be read, or is of a later version.
    pub fn of(&self, path: &Path) -> io::Result<Ownership> {
        Ok(read(&self.file(path))?.unwrap_or_else(|| Ownership::new(path)))
    }

    /// All records; one that cannot be read is left out.
    ///
    /// # Errors
    /// When their directory cannot be read.
    pub fn all(&self) -> io::Result<Vec<Ownership>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?.collect::<io::Result<Vec<_>>>()?,
        };
        let paths = entries.into_iter().map(|entry| entry.path());
        let records = paths.filter(|path| path.extension().is_some_and(|ending| ending == ENDING));
        let mut found: Vec<Ownership> = records.filter_map(|path| read(&path).ok()?).collect();
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    /// The number of the next snapshot of a volume, whatever becomes of it. It is drawn before the first byte is read: what a
    /// migration takes away meanwhile stems from it.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn draw(&self, path: &Path, name: &str) -> io::Result<Position> {
        self.change(path, |known| {
            known.name = Some(name.to_owned());
            let (writer, made) = match known.writer.take() {
                Some(writer) => writer,
                None => (WriterId::generate()?, 0),
            };
            known.lineage = known.lineage.next(&writer);
            known.writer = Some((writer, made + 1));
            let Ownership { generation, lineage, stems_from, .. } = known.clone();
            Ok(Position { generation, lineage, parent: stems_from })
        })
    }

    /// The snapshot that what is there now stems from.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn stems_from(&self, path: &Path, snapshot: Option<&str>) -> io::Result<()> {
        self.change(path, |known| {
            known.stems_from = snapshot.map(str::to_owned);
            Ok(())
        })
    }

    /// What the volume at `path` takes along when it moves: said with the word that lets the container run elsewhere.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn passing(&self, path: &Path, migration: &MigrationId) -> io::Result<Passed> {
        let Ownership { generation, lineage, stems_from, migration: last, .. } = self.of(path)?;
        let has_passed = last.as_ref() == Some(migration);
        Ok(Passed { generation: generation + u64::from(!has_passed), lineage, stems_from })
    }

    /// It has moved to `node`. The same again when it was written down before.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn pass(&self, path: &Path, node: &str, migration: &MigrationId) -> io::Result<()> {
        self.change(path, |known| {
            if known.migration.as_ref() != Some(migration) {
                known.belongs(Owner::Elsewhere(node.to_owned()), known.generation + 1, Some(migration));
            }
            Ok(())
        })
    }

    /// It has come here. The same again when it was written down before.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn arrived(&self, path: &Path, passed: Passed, migration: &MigrationId) -> io::Result<()> {
        self.change(path, |known| {
            if known.migration.as_ref() != Some(migration) {
                let generation = passed.generation.max(known.generation + 1);
                known.belongs(Owner::Here, generation, Some(migration));
                known.replaced(passed.lineage, passed.stems_from);
            }
            Ok(())
        })
    }

    /// Another node has made a snapshot of the volume in `generation`: if that is higher than what is known, it is the owner. Whether
    /// that is news.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn heard(&self, path: &Path, name: &str, node: &str, generation: u64) -> io::Result<bool> {
        let is_known = read(&self.file(path))?.is_some_and(|known| generation <= known.generation);
        if is_known || generation > LAST {
            return Ok(false);
        }
        self.change(path, |known| {
            known.name = Some(name.to_owned());
            known.belongs(Owner::Elsewhere(node.to_owned()), generation, None);
            Ok(true)
        })
    }

    /// A person says that this node is the owner now, and that what is here goes on from all of `others`, too.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn take(&self, path: &Path, name: &str, others: &Lineage) -> io::Result<Ownership> {
        self.change(path, |known| {
            known.name = Some(name.to_owned());
            known.belongs(Owner::Here, known.generation + 1, None);
            known.lineage = known.lineage.joined(others);
            Ok(known.clone())
        })
    }

    /// The volume has become what a snapshot has. What it was before went before, too: it is kept. With what another node had made of
    /// it a generation begins, so that that one hears of it.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn went_back(&self, path: &Path, lineage: &Lineage, snapshot: &str) -> io::Result<()> {
        self.change(path, |known| {
            let joined = known.lineage.joined(lineage);
            if joined != known.lineage {
                known.belongs(Owner::Here, known.generation + 1, None);
            }
            known.lineage = joined;
            known.stems_from = Some(snapshot.to_owned());
            Ok(())
        })
    }

    /// Where nothing was, there is now what a snapshot has.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn restored(&self, path: &Path, name: &str, lineage: &Lineage, snapshot: &str) -> io::Result<()> {
        self.change(path, |known| {
            known.name = Some(name.to_owned());
            known.replaced(lineage.clone(), Some(snapshot.to_owned()));
            Ok(())
        })
    }

    fn file(&self, path: &Path) -> PathBuf {
        self.dir.join(format!("{:032x}.{ENDING}", xxh3_128(path.as_os_str().as_bytes())))
    }

    /// Changes a record, one process at a time; on disk when this returns.
    fn change<T>(&self, path: &Path, act: impl FnOnce(&mut Ownership) -> io::Result<T>) -> io::Result<T> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut options = OpenOptions::new();
        let lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.dir.join("owners.lock"))?;
        lock.lock()?;
        let mut known = self.of(path)?;
        let done = act(&mut known)?;
        let (place, new) = (self.file(path), self.dir.join("owner.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&mut file, &known)?;
        file.flush()?;
        file.sync_all()?;
        std::fs::rename(&new, place)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(done)
    }
}

fn read(file: &Path) -> io::Result<Option<Ownership>> {
    let text = match std::fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let unfit =
        |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("`{}`: {why}", file.display()));
    let known: Ownership = serde_json::from_slice(&text).map_err(|error| unfit(error.to_string()))?;
    match known.version {
        VERSION => Ok(Some(known)),
        other => Err(unfit(format!("its version is {other}, and this godwit knows {VERSION}"))),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn nodes() -> (tempfile::TempDir, VolumeOwners, VolumeOwners) {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| VolumeOwners::below(&dir.path().join(name)));
        (dir, one, other)
    }

    #[test]
    fn a_volume_that_moves_there_and_back_is_owned_once_and_has_one_history() {
        let (_dir, here, there) = nodes();
        let path = Path::new("/srv/data");
        assert_eq!(here.of(path).unwrap().generation, 1);
        let first = here.draw(path, "podman:data").unwrap();
        here.stems_from(path, Some("data@1")).unwrap();
        for (number, (from, to, name)) in
            [(&here, &there, "there"), (&there, &here, "here")].iter().enumerate()
        {
            let migration = MigrationId::generate().unwrap();
            let passed = from.passing(path, &migration).unwrap();
            for _ in 0..2 {
                to.arrived(path, passed.clone(), &migration).unwrap();
                from.pass(path, name, &migration).unwrap();
            }
            let (left, arrived) = (from.of(path).unwrap(), to.of(path).unwrap());
            assert_eq!((left.elsewhere(), left.generation), (Some(*name), number as u64 + 2));
            assert_eq!((arrived.elsewhere(), arrived.generation), (None, number as u64 + 2));
            assert_eq!(arrived.lineage, left.lineage);
            if number == 0 {
                assert_eq!(arrived.stems_from.as_deref(), Some("data@1"));
                assert!(there.draw(path, "podman:data").unwrap().lineage > first.lineage);
            }
        }
        let last = here.draw(path, "podman:data").unwrap();
        assert_eq!(
            (last.generation, last.lineage.to_string().matches('=').count()),
            (3, 2),
            "the same writer"
        );
    }

    #[test]
    fn what_was_written_to_a_copy_that_stayed_does_not_count_as_known_when_the_volume_comes_back() {
        let (_dir, here, there) = nodes();
        let path = Path::new("/srv/data");
        let migration = MigrationId::generate().unwrap();
        there.arrived(path, here.passing(path, &migration).unwrap(), &migration).unwrap();
        here.pass(path, "there", &migration).unwrap();
        let astray = here.draw(path, "/srv/data").unwrap();
        let migration = MigrationId::generate().unwrap();
        here.arrived(path, there.passing(path, &migration).unwrap(), &migration).unwrap();
        there.pass(path, "here", &migration).unwrap();
        let next = here.draw(path, "/srv/data").unwrap();
        assert_eq!(next.lineage.partial_cmp(&astray.lineage), None);
        // until somebody says so
        here.take(path, "/srv/data", &astray.lineage).unwrap();
        assert!(here.draw(path, "/srv/data").unwrap().lineage > astray.lineage);
    }

    #[test]
    fn the_higher_generation_counts_and_an_equal_one_changes_nothing() {
        let (_dir, here, _) = nodes();
        let path = Path::new("/srv/data");
        here.draw(path, "/srv/data").unwrap();
        assert!(!here.heard(path, "/srv/data", "rack2", 1).unwrap());
        assert!(!here.heard(path, "/srv/data", "rack2", u64::MAX).unwrap());
        assert!(here.heard(path, "/srv/data", "rack2", 7).unwrap());
        assert_eq!(here.of(path).unwrap().elsewhere(), Some("rack2"));
        let taken = here.take(path, "/srv/data", &Lineage::default()).unwrap();
        assert_eq!((taken.elsewhere(), taken.generation), (None, 8));
    }

    #[test]
    fn a_record_is_private_and_one_of_a_later_version_is_not_taken_for_nothing() {
        let (_dir, here, _) = nodes();
        let path = Path::new("/srv/data");
        here.draw(path, "/srv/data").unwrap();
        assert_eq!(std::fs::metadata(here.file(path)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(here.all().unwrap().len(), 1);
        let text = std::fs::read_to_string(here.file(path)).unwrap();
        std::fs::write(here.file(path), text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(here.of(path).is_err() && here.draw(path, "/srv/data").is_err());
    }
}
