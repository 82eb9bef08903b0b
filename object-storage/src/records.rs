//! Lists of packs that a place has beside its indexes: `uploads/ID`, what an upload relies on that is under way, and `condemned/ID`, what a
//! collection has found that nobody needs. Each is written once, under a name that nothing else ever has, and its age is told by the
//! place's own clock: that of its last change there.
//!
//! ```text
//! godwit packs 1
//! DIGEST
//! …
//! ```
//!
//! They are never encrypted: the names of packs can be seen anyway.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use godwit_migration::MigrationId;
use godwit_store::Digest;

use crate::{Place, PlaceError};

const HEAD: &str = "godwit packs 1";

/// How long a pack is condemned before it goes, how long an upload may take from its list to its index, and how old a pack is before
/// anybody asks who needs it. By the place's clock.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// By how much an upload keeps away from the end of [`GRACE`]: more than clocks of one place's servers differ, and than a network file
/// system needs to show what is there.
pub(crate) const SLACK: Duration = Duration::from_secs(3600);

/// What a list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// What uploads rely on that are under way.
    Uploads,
    /// What nobody needs.
    Condemned,
}

impl Records {
    /// Where such lists are.
    pub const fn directory(self) -> &'static str {
        match self {
            Records::Uploads => "uploads",
            Records::Condemned => "condemned",
        }
    }
}

/// A list that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The object.
    pub object: String,
    /// When it was written.
    pub written: SystemTime,
    /// What it lists.
    pub packs: Vec<Digest>,
}

/// A name that nothing else has.
pub(crate) fn fresh_name() -> Result<String, PlaceError> {
    let id = MigrationId::generate();
    id.map(|id| id.to_string()).map_err(|error| PlaceError::Unusable(error.to_string()))
}

impl Place {
    /// The lists of a sort. One that goes meanwhile is left out.
    pub(crate) fn records(&self, sort: Records) -> Result<Vec<Record>, PlaceError> {
        let mut found = Vec::new();
        for (name, listed) in self.named(sort.directory())? {
            if name.parse::<MigrationId>().is_err() {
                continue;
            }
            let object = format!("{}/{name}", sort.directory());
            match self.get(&object) {
                Ok(bytes) => {
                    let packs = read(&bytes).ok_or_else(|| PlaceError::Damaged {
                        object: object.clone(),
                        why: "it is no list of packs".into(),
                    })?;
                    found.push(Record { object, written: listed.modified, packs });
                }
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Writes a list.
    pub(crate) fn put_record(&self, object: &str, packs: &[Digest]) -> Result<(), PlaceError> {
        let lines = packs.iter().map(|pack| format!("{pack}\n"));
        self.put(object, format!("{HEAD}\n{}", lines.collect::<String>()).into())
    }
}

fn read(bytes: &[u8]) -> Option<Vec<Digest>> {
    let rest = std::str::from_utf8(bytes).ok()?.strip_prefix(HEAD)?.strip_prefix('\n')?;
    rest.lines().map(|line| line.parse().ok()).collect()
}

/// Since when each pack is condemned: the first time counts.
pub(crate) fn since(condemned: &[Record]) -> HashMap<Digest, SystemTime> {
    let mut since: HashMap<Digest, SystemTime> = HashMap::new();
    for record in condemned {
        for pack in &record.packs {
            let first = since.entry(*pack).or_insert(record.written);
            *first = record.written.min(*first);
        }
    }
    since
}

/// How old something is; what is of the future is of now.
pub(crate) fn age(written: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(written).unwrap_or_default()
}

/// The list of an upload under way: as long as it is there, and is not older than [`GRACE`], no collection takes what it names.
pub(crate) struct Reservation<'a> {
    place: &'a Place,
    object: String,
    may_be_there: Cell<bool>,
}

impl<'a> Reservation<'a> {
    /// One that is not there yet.
    pub fn new(place: &'a Place) -> Result<Self, PlaceError> {
        Ok(Self {
            place,
            object: format!("{}/{}", Records::Uploads.directory(), fresh_name()?),
            may_be_there: Cell::new(false),
        })
    }

    /// Names the packs, of which it is known how large they are, in the place of those that it has named before. Gives when that was, and
    /// those that cannot be relied on: they are not there, or condemned for so long that a collection may be about to take them away which
    /// has not seen this.
    pub fn hold(&self, packs: &[(Digest, u64)]) -> Result<(SystemTime, HashSet<Digest>), PlaceError> {
        let names: Vec<Digest> = packs.iter().map(|(name, _)| *name).collect();
        self.may_be_there.set(true);
        self.place.put_record(&self.object, &names)?;
        let held = self.place.modified(&self.object)?;
        // in this order: a list is only taken away when its packs are gone for long
        let since = since(&self.place.records(Records::Condemned)?);
        let there = self.place.packs()?;
        let is_lost = |(name, bytes): &&(Digest, u64)| {
            there.get(name).is_none_or(|listed| listed.bytes != *bytes) || is_doomed(&since, *name, held)
        };
        Ok((held, packs.iter().filter(is_lost).map(|(name, _)| *name).collect()))
    }

    /// Whether an index came in time that was written after [`Reservation::hold`] at `held`: no collection has taken the list for a dead one's.
    pub fn was_in_time(held: SystemTime, index: SystemTime) -> bool {
        age(held, index) < GRACE - SLACK
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.may_be_there.get() {
            self.place.remove_at_last(&self.object);
        }
    }
}

/// Whether nobody may rely on a pack any more that does not yet.
pub(crate) fn is_doomed(since: &HashMap<Digest, SystemTime>, pack: Digest, now: SystemTime) -> bool {
    since.get(&pack).is_some_and(|since| age(*since, now) >= GRACE - SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_and_nothing_else_is_one() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(read(format!("{HEAD}\n{one}\n{two}\n").as_bytes()), Some(vec![one, two]));
        assert_eq!(read(format!("{HEAD}\n").as_bytes()), Some(vec![]));
        for text in ["", HEAD, "godwit packs 2\n", &format!("{HEAD}\n{one}\nx\n"), &format!("{HEAD}{one}\n")]
        {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }
}
