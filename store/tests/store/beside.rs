//! Several processes at once, and such as are killed in the midst.

use crate::ground::{BOTH, add, assert_whole, get, given, make_tree, name, objects, open, process, scratch};
use godwit_store::{Goal, Store};
use std::path::Path;
use std::time::{Duration, Instant};

const TREES: u64 = 6;

fn make_trees(dir: &Path) {
    (0..TREES).for_each(|seed| make_tree(&dir.join(format!("tree-{seed}")), seed, 60_000));
}

/// Random numbers as of xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }
}

/// Adds, pins, reads back, unpins and collects, until it has done `rounds` or is killed. What it has pinned or holds is there, whatever
/// others do.
fn work(dir: &Path, rounds: u64) {
    let mut random = Random(u64::from(std::process::id()) | 1 << 40);
    let store = Store::open(&dir.join("store"), Some(2_000_000)).unwrap();
    let pin = name(&format!("process/{}", std::process::id()));
    let mut pinned = None;
    for round in 0..rounds {
        let tree = dir.join(format!("tree-{}", random.below(TREES)));
        let place = tempfile::tempdir_in(dir).unwrap();
        match random.below(6) {
            0 | 1 => {
                let mut lease = store.lease().unwrap();
                let manifest = add(&mut lease, &tree);
                lease.pin(&pin, manifest).unwrap();
                pinned = Some((manifest, tree));
            }
            2 => drop(store.collect(Goal::All, false).unwrap()),
            3 => drop(store.collect(Goal::Room(100_000), false).unwrap()),
            4 => {
                let mut lease = store.lease().unwrap();
                let manifest = add(&mut lease, &tree);
                store.collect(Goal::All, false).unwrap();
                lease.materialise(manifest, &place.path().join("to"), &mut |_, _| {}).unwrap();
            }
            _ if round % 2 == 0 && store.unpin(&pin).is_ok() => pinned = None,
            _ => {}
        }
        if let Some((manifest, tree)) = &pinned {
            let to = place.path().join("pinned");
            get(&store, *manifest, &to).unwrap();
            assert!(std::fs::read(to.join("own")).unwrap() == std::fs::read(tree.join("own")).unwrap());
        }
    }
}

#[test]
#[ignore = "started by the others"]
fn worker() {
    let Some(dir) = given() else { return };
    let rounds = std::env::var("GODWIT_STORE_ROUNDS").map_or(u64::MAX, |text| text.parse().unwrap());
    work(&dir, rounds);
}

#[test]
fn several_at_once() {
    let dir = scratch();
    make_trees(dir.path());
    let start = || process("beside::worker", dir.path()).env("GODWIT_STORE_ROUNDS", "30").spawn().unwrap();
    let workers: Vec<_> = (0..4).map(|_| start()).collect();
    for mut worker in workers {
        assert!(worker.wait().unwrap().success());
    }
    let store = open(dir.path());
    assert_whole(&store, "after all");
    for pin in store.pins().unwrap() {
        store.unpin(&pin.name).unwrap();
    }
    store.collect(Goal::All, false).unwrap();
    assert!(objects(&store, BOTH).is_empty());
    assert_eq!(std::fs::read_dir(store.root().join("leases")).unwrap().count(), 0);
}

#[test]
fn killed_at_any_moment() {
    let dir = scratch();
    make_trees(dir.path());
    let mut random = Random(0x676f_6477_6974);
    let mut seen_halfway = 0;
    for round in 0..40 {
        let mut workers: Vec<_> =
            (0..2).map(|_| process("beside::worker", dir.path()).spawn().unwrap()).collect();
        // once it works, at any moment
        let begun = Instant::now();
        while !dir.path().join("store/leases").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no worker begins");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random.below(120_000)));
        // SIGKILL
        workers[0].kill().unwrap();
        workers[0].wait().unwrap();
        assert!(workers[1].try_wait().unwrap().is_none(), "round {round}: the other one fails");
        workers[1].kill().unwrap();
        workers[1].wait().unwrap();
        let store = open(dir.path());
        let leftovers = std::fs::read_dir(store.root().join("leases")).unwrap().count();
        seen_halfway += u64::from(leftovers > 0);
        assert_whole(&store, &format!("round {round}"));
        for pin in store.pins().unwrap() {
            let place = tempfile::tempdir_in(dir.path()).unwrap();
            get(&store, pin.manifest, &place.path().join("to")).unwrap();
        }
        store.collect(Goal::All, false).unwrap();
        assert_whole(&store, &format!("round {round}, collected"));
        for empty in ["leases", "tmp", "damaged"] {
            assert_eq!(
                std::fs::read_dir(store.root().join(empty)).unwrap().count(),
                0,
                "round {round}: {empty}"
            );
        }
        for pin in store.pins().unwrap() {
            store.unpin(&pin.name).unwrap();
        }
    }
    assert!(seen_halfway > 5, "only {seen_halfway} of 40 were killed while they had a lease");
}
