//! What this host has put into a place, in `places/` of godwit's directory: a file for each place and its recipients, with a line for each pack
//! that is written before the pack is put, and for each upload in parts while it lasts.
//!
//! A pack of the ledger counts when the place has it, too. So whatever was broken off goes on, and a ledger that is lost costs
//! time and room, and nothing else.
//!
//! ```text
//! godwit ledger 1
//! place NAME
//! pack DIGEST BYTES DIGEST:BYTES,DIGEST:BYTES…      the pack, and the chunks that are in it one after the other
//! begun OBJECT UPLOAD
//! ended OBJECT UPLOAD
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use godwit_store::Digest;

use crate::pack::PackEntry;
use crate::{Place, PlaceError, PlaceName};

const HEAD: &str = "godwit ledger 1";

/// An upload in parts: the object, and the server's name for it.
pub type Begun = (String, String);

/// See the [module](self). As long as it lives, no other process has it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    /// Of which place it is, if it says so.
    place: Option<String>,
    packs: BTreeMap<Digest, PackEntry>,
    begun: BTreeSet<Begun>,
}

impl Ledger {
    /// The one of a place, for some recipients, in the directory `places`, which is made.
    ///
    /// # Errors
    /// [`PlaceError::Locked`], or the file system's.
    pub fn open(places: &Path, place: &PlaceName, recipients: &[String]) -> Result<Ledger, PlaceError> {
        let key = Digest::of(format!("{}\n{}", place.whole(), recipients.join("\n")).as_bytes());
        let path = places.join(&key.to_string()[..32]);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(places)
            .map_err(PlaceError::io("make", places))?;
        let mut ledger = Ledger::read(path)?;
        let name = place.whole().to_string();
        if ledger.place.as_ref() != Some(&name) {
            ledger.say(&format!("place {name}"))?;
        }
        Ok(ledger)
    }

    /// Those of a place, for whomever, that no other process has.
    ///
    /// # Errors
    /// The file system's.
    pub fn of_place(places: &Path, place: &PlaceName) -> Result<Vec<Ledger>, PlaceError> {
        let name = place.whole().to_string();
        let entries = match std::fs::read_dir(places) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(PlaceError::io("read", places))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(PlaceError::io("read", places))?.path();
            match Ledger::read(path) {
                Err(PlaceError::Locked) => {}
                ledger => found.push(ledger?),
            }
        }
        found.retain(|ledger| ledger.place.as_ref() == Some(&name));
        Ok(found)
    }

    fn read(path: PathBuf) -> Result<Ledger, PlaceError> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(PlaceError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PlaceError::Locked),
            Err(TryLockError::Error(error)) => return Err(PlaceError::io("lock", &path)(error)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(PlaceError::io("read", &path))?;
        // a line that a dead one has not ended says nothing
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        let text = String::from_utf8_lossy(&bytes);
        // another godwit's, or none: what it says is not needed
        let is_ours = text.lines().next() == Some(HEAD);
        let mut ledger = Ledger { path, file, place: None, packs: BTreeMap::new(), begun: BTreeSet::new() };
        let kept = if is_ours { bytes.len() as u64 } else { 0 };
        ledger.file.set_len(kept).map_err(PlaceError::io("write", &ledger.path))?;
        match is_ours {
            true => text.lines().for_each(|line| ledger.take(line)),
            false => ledger.write(HEAD)?,
        }
        Ok(ledger)
    }

    /// What is no line of ours says nothing.
    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["place", name] => self.place = Some(name.to_owned()),
            ["pack", name, bytes, chunks] => {
                self.packs.extend(PackEntry::read(name, bytes, chunks).map(|pack| (pack.name, pack)));
            }
            ["begun", object, upload] => {
                self.begun.insert((object.to_owned(), upload.to_owned()));
            }
            ["ended", object, upload] => {
                self.begun.remove(&(object.to_owned(), upload.to_owned()));
            }
            _ => {}
        }
    }

    /// The packs that were put, or were about to be.
    pub fn packs(&self) -> impl Iterator<Item = &PackEntry> {
        self.packs.values()
    }

    /// The uploads that were not brought to an end.
    pub fn begun(&self) -> Vec<Begun> {
        self.begun.iter().cloned().collect()
    }

    /// A pack is about to be put. On disk when this returns.
    ///
    /// # Errors
    /// The file system's.
    pub fn note(&mut self, pack: &PackEntry) -> Result<(), PlaceError> {
        self.say(&format!("pack {pack}"))
    }

    /// An upload in parts was begun.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(&mut self, (object, upload): &Begun) -> Result<(), PlaceError> {
        self.say(&format!("begun {object} {upload}"))
    }

    /// It is complete, or the server knows nothing of it any more.
    ///
    /// # Errors
    /// The file system's.
    pub fn end(&mut self, (object, upload): &Begun) -> Result<(), PlaceError> {
        self.say(&format!("ended {object} {upload}"))
    }

    /// Lets go of the uploads in parts that nobody brings to an end any more; how many.
    pub(crate) fn clear(&mut self, place: &Place) -> Result<u64, PlaceError> {
        let mut cleared = 0;
        for begun in self.begun() {
            if place.abort(&begun) {
                self.end(&begun)?;
                cleared += 1;
            }
        }
        Ok(cleared)
    }

    fn say(&mut self, line: &str) -> Result<(), PlaceError> {
        self.write(line)?;
        self.take(line);
        Ok(())
    }

    fn write(&mut self, line: &str) -> Result<(), PlaceError> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.and_then(|()| self.file.sync_data()).map_err(PlaceError::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(of: &[u8]) -> PackEntry {
        PackEntry {
            name: Digest::of(of),
            bytes: 30,
            chunks: vec![(Digest::of(b"1"), 10), (Digest::of(b"2"), 20)],
        }
    }

    #[test]
    fn what_was_noted_is_there_again_and_a_torn_line_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place: PlaceName = "s3://bucket/a".parse().unwrap();
        let open = || Ledger::open(dir.path(), &place, &[]);
        let mut ledger = open().unwrap();
        let upload = ("a/packs/x".to_owned(), "upload".to_owned());
        ledger.note(&pack(b"one")).unwrap();
        ledger.begin(&upload).unwrap();
        assert!(matches!(open(), Err(PlaceError::Locked)));
        assert!(Ledger::open(dir.path(), &place, &["age1".into()]).unwrap().packs().next().is_none());
        let of = |place: &str| Ledger::of_place(dir.path(), &place.parse().unwrap()).unwrap().len();
        assert_eq!((of("s3://bucket/a"), of("s3://bucket/b")), (1, 0), "one is in use, the other is not");
        let path = ledger.path.clone();
        drop(ledger);
        let whole = std::fs::read_to_string(&path).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let mut torn = open().unwrap();
            assert!(torn.packs().all(|known| *known == pack(b"one")), "{end}");
            torn.note(&pack(b"two")).unwrap();
            drop(torn);
            assert!(open().unwrap().packs().any(|known| *known == pack(b"two")), "{end}");
        }
        std::fs::write(&path, &whole).unwrap();
        let mut ledger = open().unwrap();
        assert_eq!((ledger.packs().count(), ledger.begun()), (1, vec![upload.clone()]));
        ledger.end(&upload).unwrap();
        drop(ledger);
        assert_eq!(open().unwrap().begun(), []);
    }
}
