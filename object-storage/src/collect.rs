//! Images are let go of, and packs that no image needs go, too: at first they are condemned, and a day later they are taken away. Others
//! may put images there meanwhile, and collect themselves; `docs/object-storage.md` has the argument why no image loses a pack.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt, stream};
use godwit_store::Digest;

use crate::index::Keys;
use crate::ledger::Ledger;
use crate::place::{AT_ONCE, Listed, PACKS};
use crate::records::{GRACE, Record, Records, age, fresh_name, since};
use crate::unfinished::Unfinished;
use crate::{Kind, Place, PlaceError, leftovers};

/// What is to go.
pub struct Collection<'a> {
    /// The images that are let go of.
    pub forget: &'a [(Kind, Digest)],
    /// What opens the indexes that are encrypted.
    pub keys: Keys<'a>,
    /// The directory of this host's ledgers.
    pub ledgers: &'a Path,
    /// Whether it is only to be said what would go.
    pub dry_run: bool,
}

/// Packs, and how many bytes they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub packs: u64,
    /// Their bytes in the place.
    pub bytes: u64,
}

/// What went, and what did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// What images need, or uploads that are under way.
    pub kept: Amount,
    /// What nobody needs and is too young to go: it may be of an upload that has not said so yet.
    pub young: Amount,
    /// What was condemned now.
    pub condemned: Amount,
    /// What was condemned before, and not for long enough.
    pub waiting: Amount,
    /// What is gone.
    pub removed: Amount,
    /// What dead uploads had left, and is gone: of this host's those in parts, files, and lists.
    pub leftovers: u64,
    /// Uploads in parts that were begun a day ago, by whichever host, and are gone.
    pub uploads_removed: u64,
    /// Uploads in parts that may still come to their end.
    pub uploads_young: u64,
    /// Why it is not known which there are.
    pub uploads_unlisted: Option<String>,
}

/// Lets go of images, and takes away what nobody needs any more. `progress` hears how many of the indexes were read.
///
/// # Errors
/// When an index cannot be read that stays: then nothing was touched, since nobody knows what it needs. Or when the place says no; what is left goes the
/// next time.
pub fn collect(
    place: &Place,
    order: &Collection<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Collected, PlaceError> {
    place.claim()?;
    let seen = Seen::look(place, order, progress)?;
    let (collected, verdict) = seen.judge();
    if order.dry_run {
        return collected.with_unfinished(place, seen.now, true);
    }
    for (kind, manifest) in order.forget {
        place.remove(&[format!("{}/{manifest}", kind.directory())])?;
    }
    if !verdict.condemn.is_empty() {
        let object = format!("{}/{}", Records::Condemned.directory(), fresh_name()?);
        place.put_record(&object, &verdict.condemn)?;
    }
    let gone: Vec<String> = verdict.remove.iter().map(|pack| format!("{PACKS}/{pack}")).collect();
    place.remove(&gone)?;
    let mut leftovers = seen.remove_dead_lists(place)?;
    leftovers += leftovers::remove_files(place, seen.now)?;
    for mut ledger in Ledger::of_place(order.ledgers, place.name())? {
        leftovers += ledger.clear(place)?;
    }
    Collected { leftovers, ..collected }.with_unfinished(place, seen.now, false)
}

impl Collected {
    /// Lets go of uploads in parts that nobody brings to an end. A bucket that does not tell which there are holds up nothing: all else was done.
    fn with_unfinished(mut self, place: &Place, now: SystemTime, dry_run: bool) -> Result<Self, PlaceError> {
        match place.unfinished(now) {
            Ok(Unfinished { dead, young }) => {
                self.uploads_young = young;
                self.uploads_removed = if dry_run { dead.len() as u64 } else { place.let_go(&dead)? };
            }
            Err(PlaceError::Interrupted) => return Err(PlaceError::Interrupted),
            Err(error) => self.uploads_unlisted = Some(error.to_string()),
        }
        Ok(self)
    }
}

/// What a place had when it was looked at.
struct Seen {
    /// When that was begun.
    now: SystemTime,
    condemned: Vec<Record>,
    packs: HashMap<Digest, Listed>,
    uploads: Vec<Record>,
    /// What images need.
    needed: HashSet<Digest>,
}

/// What happens to packs.
#[derive(Default)]
struct Verdict {
    condemn: Vec<Digest>,
    remove: Vec<Digest>,
}

impl Seen {
    /// In this order: the clock before everything that it judges, so that a pack on a list of two days ago was put before the packs are
    /// listed; the lists of uploads before the indexes, since an upload writes its index first and then takes its list away.
    fn look(
        place: &Place,
        order: &Collection<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Seen, PlaceError> {
        let now = place.now()?;
        let condemned = place.records(Records::Condemned)?;
        let packs = place.packs()?;
        let uploads = place.records(Records::Uploads)?;
        let mut images = Vec::new();
        for kind in [Kind::Checkpoint, Kind::Snapshot] {
            images.extend(place.images(kind)?.into_iter().map(|manifest| (kind, manifest)));
        }
        images.retain(|image| !order.forget.contains(image));
        let mut needed = HashSet::new();
        for (done, (kind, manifest)) in images.iter().enumerate() {
            progress(done as u64, images.len() as u64);
            match place.index(*kind, *manifest, order.keys) {
                Ok(index) => needed.extend(index.packs.iter().map(|pack| pack.name)),
                // somebody else has let go of it meanwhile
                Err(PlaceError::NoImage(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Seen { now, condemned, packs, uploads, needed })
    }

    fn judge(&self) -> (Collected, Verdict) {
        let since = since(&self.condemned);
        let alive = self.uploads.iter().filter(|upload| age(upload.written, self.now) < GRACE);
        let relied_on: HashSet<Digest> = alive.flat_map(|upload| &upload.packs).copied().collect();
        let (mut collected, mut verdict) = (Collected::default(), Verdict::default());
        for (name, listed) in &self.packs {
            let amount = if self.needed.contains(name) || relied_on.contains(name) {
                &mut collected.kept
            } else if let Some(since) = since.get(name) {
                match age(*since, self.now) >= GRACE {
                    true => {
                        verdict.remove.push(*name);
                        &mut collected.removed
                    }
                    false => &mut collected.waiting,
                }
            } else if age(listed.modified, self.now) >= GRACE {
                verdict.condemn.push(*name);
                &mut collected.condemned
            } else {
                &mut collected.young
            };
            amount.packs += 1;
            amount.bytes += listed.bytes;
        }
        verdict.condemn.sort_unstable();
        (collected, verdict)
    }

    /// Takes away the lists of uploads that are dead, and of condemned packs that are gone for long; how many.
    fn remove_dead_lists(&self, place: &Place) -> Result<u64, PlaceError> {
        let is_over = |record: &&Record| {
            let are_gone = !record.packs.iter().any(|pack| self.packs.contains_key(pack));
            are_gone && age(record.written, self.now) >= 2 * GRACE
        };
        let is_dead = |record: &&Record| age(record.written, self.now) >= GRACE;
        let condemned = self.condemned.iter().filter(is_over);
        let uploads: Vec<String> =
            self.uploads.iter().filter(is_dead).map(|record| record.object.clone()).collect();
        place.remove(&condemned.map(|record| record.object.clone()).collect::<Vec<_>>())?;
        place.remove(&uploads)?;
        Ok(uploads.len() as u64)
    }
}

impl Place {
    /// Takes objects away, several at once; those that are there.
    fn remove(&self, objects: &[String]) -> Result<(), PlaceError> {
        let store = self.objects();
        let paths = objects.iter().map(|object| store.path(object));
        self.wait(async {
            let removed = stream::iter(paths).map(|path| {
                let store = store.clone();
                async move { store.delete(&path).await }
            });
            removed.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await.map(drop)
        })
    }
}

#[cfg(test)]
mod scene;
#[cfg(test)]
mod stage;
#[cfg(test)]
mod tests;
