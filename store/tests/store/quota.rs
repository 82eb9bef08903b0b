//! No more than the quota: what was not used for longest goes first, and what is needed never.

use crate::ground::{BOTH, add, assert_whole, get, make_tree, name, objects, scratch};
use godwit_store::{Store, StoreError};

/// Bytes of all objects.
fn bytes(store: &Store) -> u64 {
    objects(store, BOTH).iter().map(|path| store.root().join(path).metadata().unwrap().len()).sum()
}

#[test]
fn the_least_recently_used_goes_and_pinned_stays() {
    let dir = scratch();
    // each tree has some 200 kB of its own
    let store = Store::open(&dir.path().join("store"), Some(1_000_000)).unwrap();
    let tree = |number: u64| {
        let at = dir.path().join(format!("tree-{number}"));
        make_tree(&at, 2 * number, 100_000);
        at
    };
    let put = |number: u64, pin: bool| {
        let mut lease = store.lease()?;
        let manifest = lease.add_tree(&tree(number), &mut |_| {})?.manifest;
        if pin {
            lease.pin(&name(&format!("test/{number}")), manifest)?;
        }
        // times of files are coarse
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok::<_, StoreError>(manifest)
    };
    let there = |manifest| store.lease().unwrap().hold(manifest).is_ok();
    let pinned = put(0, true).unwrap();
    let (old, older) = (put(1, false).unwrap(), put(2, false).unwrap());
    // asked for, it is the younger of the two
    assert!(there(old));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let young = put(3, false).unwrap();
    assert!(bytes(&store) <= 1_000_000);
    let newest = put(4, false).unwrap();
    assert!(bytes(&store) <= 1_000_000);
    assert_eq!(
        [pinned, older, old, young, newest].map(there),
        [true, false, true, true, true],
        "only the one that nobody has asked for is gone"
    );
    // until only pinned ones are left
    let mut number = 10;
    let error = loop {
        match put(number, true) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
        assert!(bytes(&store) <= 1_000_000);
    };
    assert!(matches!(error, StoreError::Full { quota: 1_000_000, .. }), "{error}");
    assert!(number >= 13, "{number}: pinned ones found no room");
    assert_eq!(store.pins().unwrap().len() as u64, number - 10 + 1);
    assert_whole(&store, "full");
    get(&store, pinned, &dir.path().join("to")).unwrap();
    // and it goes on when something may go
    store.unpin(&name("test/0")).unwrap();
    put(number, true).unwrap();
    assert!(bytes(&store) <= 1_000_000);
}

#[test]
fn what_a_writer_has_put_does_not_go_for_another() {
    let dir = scratch();
    let store = Store::open(&dir.path().join("store"), Some(500_000)).unwrap();
    let tree = |number: u64| {
        let at = dir.path().join(format!("tree-{number}"));
        make_tree(&at, 2 * number, 100_000);
        at
    };
    let mut first = store.lease().unwrap();
    let manifest = add(&mut first, &tree(0));
    let mut second = store.lease().unwrap();
    add(&mut second, &tree(1));
    let full = store.lease().unwrap().add_tree(&tree(2), &mut |_| {});
    assert!(matches!(full, Err(StoreError::Full { .. })), "{full:?}");
    first.pin(&name("test/first"), manifest).unwrap();
    drop((first, second));
    store.lease().unwrap().add_tree(&tree(2), &mut |_| {}).unwrap();
    get(&store, manifest, &dir.path().join("to")).unwrap();
    assert_whole(&store, "at the end");
}
