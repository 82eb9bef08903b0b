//! Pins, leases and collections in any order, beside a model of what has to be there.

use crate::ground::{BOTH, add, assert_whole, make_tree, name, objects, open, scratch};
use godwit_store::{Digest, Goal, Lease, Store};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const TREES: u64 = 5;

#[derive(Debug, Clone)]
enum Act {
    /// Adds a tree under a lease, and pins it.
    Pin {
        tree: u64,
        pin: u8,
    },
    Unpin {
        pin: u8,
    },
    /// Adds a tree under a lease that goes on.
    Lease {
        tree: u64,
        slot: u8,
    },
    /// Takes a lease on what may be there.
    Hold {
        tree: u64,
        slot: u8,
    },
    End {
        slot: u8,
    },
    /// Adds a tree and lets it be.
    Add {
        tree: u64,
    },
    Collect,
    DryRun,
    Room {
        bytes: u64,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let (tree, pin, slot) = (0..TREES, 0u8..3, 0u8..2);
    prop_oneof![
        (tree.clone(), pin.clone()).prop_map(|(tree, pin)| Act::Pin { tree, pin }),
        pin.prop_map(|pin| Act::Unpin { pin }),
        (tree.clone(), slot.clone()).prop_map(|(tree, slot)| Act::Lease { tree, slot }),
        (tree.clone(), slot.clone()).prop_map(|(tree, slot)| Act::Hold { tree, slot }),
        slot.prop_map(|slot| Act::End { slot }),
        tree.prop_map(|tree| Act::Add { tree }),
        Just(Act::Collect),
        Just(Act::DryRun),
        (0u64..200_000).prop_map(|bytes| Act::Room { bytes }),
    ]
}

/// A tree, its manifest, and the objects that it needs.
type Needs = (PathBuf, Digest, BTreeSet<PathBuf>);

/// The trees, in `dir`, each learnt of from a store of its own.
fn trees(dir: &Path) -> Vec<Needs> {
    let needs = |tree: u64| {
        let at = dir.join(format!("tree-{tree}"));
        make_tree(&at, tree, 30_000);
        let alone = Store::open(&dir.join(format!("alone-{tree}")), None).unwrap();
        let manifest = add(&mut alone.lease().unwrap(), &at);
        (at, manifest, objects(&alone, BOTH))
    };
    (0..TREES).map(needs).collect()
}

#[test]
fn collections_take_what_nobody_needs_and_nothing_else() {
    let dir = scratch();
    let needs = trees(dir.path());
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&vec(act(), 1..24), |acts| follow(&needs, acts));
    run.unwrap_or_else(|error| panic!("{error}"));
}

/// Does it all, and compares after each act.
fn follow(needs: &[Needs], acts: Vec<Act>) -> Result<(), TestCaseError> {
    let dir = scratch();
    let store = open(dir.path());
    let mut pins: BTreeMap<u8, u64> = BTreeMap::new();
    let mut leases: BTreeMap<u8, (Lease, BTreeSet<u64>)> = BTreeMap::new();
    let lease = |slot: u8, leases: &mut BTreeMap<u8, (Lease, BTreeSet<u64>)>| {
        leases.entry(slot).or_insert_with(|| (store.lease().unwrap(), BTreeSet::new()));
    };
    for act in acts {
        let before = objects(&store, BOTH);
        match act {
            Act::Pin { tree, pin } => {
                let mut lease = store.lease().unwrap();
                let (at, manifest, _) = &needs[tree as usize];
                prop_assert_eq!(add(&mut lease, at), *manifest);
                lease.pin(&name(&format!("test/{pin}")), *manifest).unwrap();
                pins.insert(pin, tree);
            }
            Act::Unpin { pin } => {
                let unpinned = store.unpin(&name(&format!("test/{pin}")));
                prop_assert_eq!(unpinned.is_ok(), pins.remove(&pin).is_some());
            }
            Act::Lease { tree, slot } => {
                lease(slot, &mut leases);
                let (lease, held) = leases.get_mut(&slot).unwrap();
                add(lease, &needs[tree as usize].0);
                held.insert(tree);
            }
            Act::Hold { tree, slot } => {
                lease(slot, &mut leases);
                let (lease, held) = leases.get_mut(&slot).unwrap();
                let (_, manifest, needed) = &needs[tree as usize];
                prop_assert_eq!(lease.hold(*manifest).is_ok(), needed.is_subset(&before));
                if needed.is_subset(&before) {
                    held.insert(tree);
                }
            }
            Act::End { slot } => drop(leases.remove(&slot)),
            Act::Add { tree } => drop(add(&mut store.lease().unwrap(), &needs[tree as usize].0)),
            Act::Collect => {
                let collected = store.collect(Goal::All, false).unwrap();
                let after = objects(&store, BOTH);
                // what a lease has asked for in vain it may still have named; it is not there
                let needed: BTreeSet<PathBuf> = pins
                    .values()
                    .chain(leases.values().flat_map(|(_, held)| held))
                    .flat_map(|tree| needs[*tree as usize].2.clone())
                    .collect();
                let named: BTreeSet<PathBuf> = after.difference(&needed).cloned().collect();
                if leases.is_empty() {
                    prop_assert!(named.is_empty(), "not needed and not gone: {:?}", named);
                }
                prop_assert_eq!(collected.manifests + collected.chunks, (before.len() - after.len()) as u64);
                prop_assert_eq!(collected.kept, after.len() as u64);
            }
            Act::DryRun => {
                let would = store.collect(Goal::All, true).unwrap();
                prop_assert_eq!(&objects(&store, BOTH), &before);
                prop_assert_eq!(would.kept + would.manifests + would.chunks, before.len() as u64);
            }
            Act::Room { bytes } => {
                let collected = store.collect(Goal::Room(bytes), false).unwrap();
                let after = objects(&store, BOTH);
                prop_assert!(after.is_subset(&before));
                prop_assert!(collected.bytes >= bytes || store.collect(Goal::All, true).unwrap().bytes == 0);
            }
        }
        let after = objects(&store, BOTH);
        for tree in pins.values().chain(leases.values().flat_map(|(_, held)| held)) {
            prop_assert!(needs[*tree as usize].2.is_subset(&after), "tree {tree} is needed and not whole");
        }
    }
    assert_whole(&store, "at the end");
    let pinned: Vec<Digest> = store.pins().unwrap().into_iter().map(|pin| pin.manifest).collect();
    let expected: Vec<Digest> = pins.values().map(|tree| needs[*tree as usize].1).collect();
    prop_assert_eq!(pinned, expected);
    Ok(())
}
