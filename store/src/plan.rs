//! What is to go, decided before anything goes: a pure function.

use std::collections::{HashMap, HashSet};

use crate::census::Stored;
use crate::{Digest, Goal, Kind, ObjectId};

/// What there is to decide from.
pub(crate) struct Scene {
    /// All objects of the store.
    pub objects: Vec<Stored>,
    /// Those that must stay, all that pinned and leased manifests need among them.
    pub kept: HashSet<ObjectId>,
    /// What the manifests that need not stay name. One that cannot be read names nothing.
    pub children: HashMap<Digest, Vec<ObjectId>>,
}

/// What goes: nothing that is kept; no object that a manifest needs which stays; as much as the goal wants, if there is as much.
/// First chunks that no manifest names, the oldest first, then manifests with all that only they need, the least recently used first.
pub(crate) fn plan(scene: &Scene, goal: Goal) -> Vec<Stored> {
    let mut free: Vec<Stored> =
        scene.objects.iter().filter(|object| !scene.kept.contains(&object.id)).copied().collect();
    free.sort_unstable_by_key(|object| (object.id.kind == Kind::Manifest, object.used, object.id));
    let room = match goal {
        Goal::All => return free,
        Goal::Room(room) => room,
    };
    let mut plan = Plan {
        scene,
        stored: free.iter().map(|object| (object.id, *object)).collect(),
        needed_by: HashMap::new(),
        going: Vec::new(),
        bytes: 0,
    };
    for object in free.iter().filter(|object| object.id.kind == Kind::Manifest) {
        for child in plan.children(object.id) {
            *plan.needed_by.entry(*child).or_default() += 1;
        }
    }
    // one that another needs goes with the last of them
    let roots: Vec<ObjectId> =
        free.iter().map(|object| object.id).filter(|id| !plan.needed_by.contains_key(id)).collect();
    for root in roots {
        if plan.bytes >= room {
            break;
        }
        plan.remove(root);
    }
    plan.going
}

struct Plan<'a> {
    scene: &'a Scene,
    stored: HashMap<ObjectId, Stored>,
    /// How many manifests that may go, and have not, need an object.
    needed_by: HashMap<ObjectId, usize>,
    going: Vec<Stored>,
    bytes: u64,
}

impl<'a> Plan<'a> {
    fn children(&self, id: ObjectId) -> &'a [ObjectId] {
        match id.kind {
            Kind::Chunk => &[],
            Kind::Manifest => self.scene.children.get(&id.digest).map_or(&[], Vec::as_slice),
        }
    }

    /// An object goes, and all that only it needed.
    fn remove(&mut self, root: ObjectId) {
        let mut pending = vec![root];
        while let Some(id) = pending.pop() {
            // kept, or not in the store
            let Some(object) = self.stored.remove(&id) else { continue };
            self.bytes += object.len;
            self.going.push(object);
            for child in self.children(id) {
                if let Some(count) = self.needed_by.get_mut(child) {
                    *count -= 1;
                    if *count == 0 {
                        pending.push(*child);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    fn id(kind: Kind, number: usize) -> ObjectId {
        ObjectId { kind, digest: Digest([number as u8; 32]) }
    }

    /// Chunks, manifests with the chunks that each names and its age, which of them are pinned.
    type Drawn = (usize, Vec<(Vec<usize>, u64, bool)>);

    fn drawn() -> impl Strategy<Value = Drawn> {
        let manifest = (proptest::collection::vec(0usize..20, 0..6), 0u64..50, proptest::bool::weighted(0.3));
        (0usize..20, proptest::collection::vec(manifest, 0..8))
    }

    fn scene((chunks, manifests): &Drawn) -> Scene {
        let stored =
            |id, used| Stored { id, len: 10, used: SystemTime::UNIX_EPOCH + Duration::from_secs(used) };
        let mut objects: Vec<Stored> =
            (0..*chunks).map(|number| stored(id(Kind::Chunk, number), 7)).collect();
        let (mut kept, mut children) = (HashSet::new(), HashMap::new());
        for (number, (names, used, pinned)) in manifests.iter().enumerate() {
            let manifest = id(Kind::Manifest, number);
            objects.push(stored(manifest, *used));
            let names: HashSet<ObjectId> = names.iter().map(|name| id(Kind::Chunk, *name)).collect();
            if *pinned {
                kept.insert(manifest);
                kept.extend(names);
            } else {
                children.insert(manifest.digest, names.into_iter().collect());
            }
        }
        Scene { objects, kept, children }
    }

    proptest! {
        #[test]
        fn rules(drawn in drawn(), room in 0u64..300, all: bool) {
            let scene = scene(&drawn);
            let goal = if all { Goal::All } else { Goal::Room(room) };
            let going = plan(&scene, goal);
            let ids: HashSet<ObjectId> = going.iter().map(|object| object.id).collect();
            prop_assert_eq!(ids.len(), going.len(), "something goes twice");
            prop_assert!(ids.is_disjoint(&scene.kept));
            for (manifest, children) in &scene.children {
                if !ids.contains(&ObjectId::manifest(*manifest)) {
                    prop_assert!(children.iter().all(|child| !ids.contains(child)), "a manifest lost a child");
                }
            }
            let free = scene.objects.iter().filter(|object| !scene.kept.contains(&object.id)).count() as u64 * 10;
            let bytes = going.len() as u64 * 10;
            match goal {
                Goal::All => prop_assert_eq!(bytes, free),
                Goal::Room(room) => prop_assert!(bytes >= room.min(free)),
            }
        }

        #[test]
        fn the_least_recently_used_goes_first(drawn in drawn(), room in 1u64..300) {
            let scene = scene(&drawn);
            let ids: HashSet<ObjectId> = plan(&scene, Goal::Room(room)).iter().map(|object| object.id).collect();
            let manifests = || scene.objects.iter().filter(|object| object.id.kind == Kind::Manifest && !scene.kept.contains(&object.id));
            let last_gone = manifests().filter(|object| ids.contains(&object.id)).map(|object| object.used).max();
            let first_left = manifests().filter(|object| !ids.contains(&object.id)).map(|object| object.used).min();
            if let (Some(gone), Some(left)) = (last_gone, first_left) {
                prop_assert!(gone <= left);
            }
        }
    }
}
