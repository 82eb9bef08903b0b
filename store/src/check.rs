//! Reads all of the store, and says what is not as it should be.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use crate::disk::{remove, sync_directory};
use crate::{Digest, Kind, Manifest, ObjectId, Store, StoreError};

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Objects that are not what their names say, and why.
    pub damaged: BTreeMap<ObjectId, String>,
    /// Manifests that need what is not there, and how many objects each.
    pub incomplete: BTreeMap<Digest, u64>,
    /// Pins that keep something which is not whole.
    pub broken_pins: BTreeSet<String>,
    /// Files that are nothing that a store has.
    pub strangers: Vec<PathBuf>,
    /// Damaged objects were moved aside, manifests that lack something and pins of theirs taken away.
    pub repaired: bool,
}

impl Checked {
    /// Whether all is as it should be.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.incomplete.is_empty() && self.broken_pins.is_empty()
    }
}

impl Store {
    /// Reads and verifies every object, and what each manifest and pin needs. With `repair` what is damaged is moved aside, and manifests
    /// that lack something are taken away with their pins: all that is left is whole then. `progress` hears how many
    /// objects were read, of how many.
    ///
    /// # Errors
    /// When the file system says no.
    pub fn check(&self, repair: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<Checked, StoreError> {
        // so that nothing goes while it is looked for
        let _no_collection = self.lock_collections()?;
        let mut checked = Checked { repaired: repair, ..Checked::default() };
        // manifests first: what one needs that is written meanwhile is there before it
        let manifests = self.read_all(Kind::Manifest, &mut checked, &mut |_, _| {})?;
        self.read_all(Kind::Chunk, &mut checked, progress)?;
        checked.damaged.retain(|id, _| self.is_still_bad(*id));
        let incomplete = self.incomplete(&manifests, &checked)?;
        let lost: HashSet<Digest> = incomplete.keys().copied().collect();
        checked.incomplete = incomplete;
        for name in self.pin_names()? {
            let is_whole = self.pin(&name).is_ok_and(|pin| {
                pin.is_none_or(|digest| {
                    !lost.contains(&digest)
                        && self.look_at(ObjectId::manifest(digest)).is_ok_and(|bytes| bytes.is_ok())
                })
            });
            if !is_whole {
                checked.broken_pins.insert(name.to_string());
            }
        }
        if repair {
            self.repair(&checked)?;
        }
        Ok(checked)
    }

    fn read_all(
        &self,
        kind: Kind,
        checked: &mut Checked,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BTreeMap<Digest, Manifest>, StoreError> {
        let (objects, strangers) = self.objects(kind)?;
        checked.strangers.extend(strangers);
        let mut manifests = BTreeMap::new();
        for (number, object) in objects.iter().enumerate() {
            progress(number as u64, objects.len() as u64);
            let bytes = match self.look_at(object.id) {
                // gone meanwhile: somebody who read it has moved it aside
                Err(StoreError::Missing(_)) => continue,
                looked => looked?,
            };
            checked.objects += 1;
            checked.bytes += object.len;
            let found = bytes.map_err(str::to_owned).and_then(|bytes| match kind {
                Kind::Chunk => Ok(None),
                Kind::Manifest => Manifest::decode(&bytes).map(Some),
            });
            match found {
                Ok(manifest) => manifests.extend(manifest.map(|manifest| (object.id.digest, manifest))),
                Err(why) => drop(checked.damaged.insert(object.id, why)),
            }
        }
        progress(objects.len() as u64, objects.len() as u64);
        Ok(manifests)
    }

    /// A good one may have come in a bad one's place. A manifest whose bytes are right may still break the rules.
    fn is_still_bad(&self, id: ObjectId) -> bool {
        let good = |bytes: &[u8]| id.kind == Kind::Chunk || Manifest::decode(bytes).is_ok();
        !matches!(self.look_at(id), Ok(Ok(bytes)) if good(&bytes))
    }

    fn incomplete(
        &self,
        manifests: &BTreeMap<Digest, Manifest>,
        checked: &Checked,
    ) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let mut incomplete = BTreeMap::new();
        let is_there = |id: &ObjectId| !checked.damaged.contains_key(id) && self.object(*id).exists();
        // trees first, since a checkpoint lacks what its tree lacks
        let (trees, others): (Vec<_>, Vec<_>) =
            manifests.iter().partition(|(_, manifest)| matches!(manifest, Manifest::Tree(_)));
        for (digest, manifest) in trees.into_iter().chain(others) {
            let lacks = |child: &&ObjectId| !is_there(child) || incomplete.contains_key(&child.digest);
            let count = manifest.children().iter().filter(lacks).count() as u64;
            if count > 0 {
                incomplete.insert(*digest, count);
            }
        }
        Ok(incomplete)
    }

    fn repair(&self, checked: &Checked) -> Result<(), StoreError> {
        for name in
            self.pin_names()?.into_iter().filter(|name| checked.broken_pins.contains(&name.to_string()))
        {
            self.unpin(&name)?;
        }
        for digest in checked.incomplete.keys() {
            let id = ObjectId::manifest(*digest);
            let _lock = self.lock_shard(id.shard(), true)?;
            remove(&self.object(id))?;
            sync_directory(&self.shard(id.shard()))?;
        }
        for id in checked.damaged.keys() {
            let _lock = self.lock_shard(id.shard(), true)?;
            if self.is_still_bad(*id) {
                self.put_aside(*id)?;
            }
        }
        Ok(())
    }
}
