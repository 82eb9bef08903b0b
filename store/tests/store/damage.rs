//! What a disk can do to files.

use crate::ground::{BOTH, add, assert_whole, get, make_tree, name, noise, objects, open, scratch};
use godwit_store::{Digest, Goal, Kind, Store, StoreError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A store with a pinned tree.
fn pinned() -> (TempDir, Store, Digest) {
    let dir = scratch();
    let store = open(dir.path());
    let tree = dir.path().join("tree");
    make_tree(&tree, 1, 300_000);
    // something that is compressed
    std::fs::write(tree.join("text"), "the same words again and again\n".repeat(2000)).unwrap();
    let mut lease = store.lease().unwrap();
    let manifest = add(&mut lease, &tree);
    lease.pin(&name("test/tree"), manifest).unwrap();
    drop(lease);
    (dir, store, manifest)
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// A way to damage a file of some bytes.
type Damage = (&'static str, fn(&Path));

fn damages() -> Vec<Damage> {
    fn len(path: &Path) -> u64 {
        path.metadata().unwrap().len()
    }
    fn cut(path: &Path, len: u64) {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
    }
    vec![
        ("the first byte", |path| flip(path, 0)),
        ("the kind", |path| flip(path, 4)),
        ("the codec", |path| flip(path, 5)),
        ("the length", |path| flip(path, 9)),
        ("the middle", |path| flip(path, len(path) / 2)),
        ("the end", |path| flip(path, len(path) - 1)),
        ("emptied", |path| cut(path, 0)),
        ("a header alone", |path| cut(path, 12)),
        ("cut", |path| cut(path, len(path) - 1)),
        ("longer", |path| cut(path, len(path) + 4096)),
        ("another's bytes", |path| std::fs::write(path, noise(77, 5000)).unwrap()),
    ]
}

#[test]
fn a_damaged_chunk_is_moved_aside_and_can_be_put_again() {
    let (dir, store, manifest) = pinned();
    let chunks: Vec<PathBuf> = objects(&store, &["chunks"]).into_iter().collect();
    for (number, (what, damage)) in damages().into_iter().enumerate() {
        let chunk = store.root().join(&chunks[number % chunks.len()]);
        damage(&chunk);
        let checked = store.check(false, &mut |_, _| {}).unwrap();
        assert_eq!(checked.damaged.len(), 1, "{what}: {checked:?}");
        assert!(
            checked.incomplete.contains_key(&manifest) && checked.broken_pins.contains("test/tree"),
            "{what}"
        );
        assert!(chunk.exists(), "{what}: a check alone moves nothing");
        let to = dir.path().join("to");
        let error = get(&store, manifest, &to).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{what}: {error}");
        assert!(!to.exists() && !chunk.exists(), "{what}: something was made of it");
        assert_eq!(std::fs::read_dir(store.root().join("damaged")).unwrap().count(), 1, "{what}");
        assert!(matches!(get(&store, manifest, &to), Err(StoreError::Missing(_))), "{what}");
        // whoever has the tree puts it back
        assert_eq!(add(&mut store.lease().unwrap(), &dir.path().join("tree")), manifest, "{what}");
        assert_whole(&store, what);
        get(&store, manifest, &to).unwrap();
        std::fs::remove_dir_all(&to).unwrap();
        store.collect(Goal::All, false).unwrap();
        assert_eq!(std::fs::read_dir(store.root().join("damaged")).unwrap().count(), 0, "{what}");
    }
}

#[test]
fn nothing_is_collected_while_it_is_not_known_what_a_pin_keeps() {
    for (what, damage) in damages() {
        let (_dir, store, manifest) = pinned();
        let path = store.root().join(objects(&store, &["manifests"]).into_iter().next().unwrap());
        damage(&path);
        let before = objects(&store, BOTH);
        for goal in [Goal::All, Goal::Room(1)] {
            let error = store.collect(goal, false).unwrap_err();
            assert!(
                matches!(&error, StoreError::LostPin { pin, .. } if pin == "test/tree"),
                "{what}: {error}"
            );
            assert_eq!(objects(&store, BOTH), before, "{what}");
        }
        let checked = store.check(true, &mut |_, _| {}).unwrap();
        assert_eq!(
            checked.damaged.keys().map(|id| (id.kind, id.digest)).collect::<Vec<_>>(),
            [(Kind::Manifest, manifest)]
        );
        assert!(checked.repaired && checked.broken_pins.contains("test/tree"), "{what}: {checked:?}");
        assert_whole(&store, what);
        assert_eq!(store.pins().unwrap(), [], "{what}");
        store.collect(Goal::All, false).unwrap();
        assert!(objects(&store, BOTH).is_empty(), "{what}");
    }
}

#[test]
fn a_damaged_pin_stops_collections_too() {
    let (_dir, store, manifest) = pinned();
    let path = store.root().join("pins/test/tree");
    for bytes in [&b""[..], b"godwit pin 1 ", b"godwit pin 2 00\n", b"\xff\xff"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(store.collect(Goal::All, false).is_err(), "{}", bytes.escape_ascii());
        store.lease().unwrap().hold(manifest).unwrap();
    }
    assert_eq!(store.check(true, &mut |_, _| {}).unwrap().broken_pins.len(), 1);
    store.collect(Goal::All, false).unwrap();
}

#[test]
fn repair_keeps_what_is_whole() {
    let (dir, store, lost) = pinned();
    let other = dir.path().join("other");
    make_tree(&other, 8, 200_000);
    let mut lease = store.lease().unwrap();
    let kept = add(&mut lease, &other);
    lease.pin(&name("test/other"), kept).unwrap();
    drop(lease);
    let only_lost = |store: &Store| {
        let mut chunks = objects(store, &["chunks"]).into_iter();
        // one that the other tree has not
        let alone = Store::open(&dir.path().join("alone"), None).unwrap();
        add(&mut alone.lease().unwrap(), &other);
        let others = objects(&alone, &["chunks"]);
        chunks.find(|chunk| !others.contains(chunk)).unwrap()
    };
    std::fs::remove_file(store.root().join(only_lost(&store))).unwrap();
    let checked = store.check(true, &mut |_, _| {}).unwrap();
    assert_eq!(checked.incomplete.keys().collect::<Vec<_>>(), [&lost]);
    assert_whole(&store, "repaired");
    assert_eq!(store.pins().unwrap().len(), 1);
    get(&store, kept, &dir.path().join("to")).unwrap();
}

#[test]
fn what_is_no_store_is_left_alone() {
    let dir = scratch();
    std::fs::write(dir.path().join("letter"), "dear").unwrap();
    assert!(matches!(Store::open(dir.path(), None), Err(StoreError::Format { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let store = open(dir.path());
    std::fs::write(store.root().join("format"), "godwit store 2\n").unwrap();
    let error = Store::open(store.root(), None).unwrap_err();
    assert!(error.to_string().contains("godwit store 2"), "{error}");
}

#[test]
fn a_store_that_is_deleted_is_begun_anew() {
    let (dir, store, manifest) = pinned();
    let mut lease = store.lease().unwrap();
    lease.hold(manifest).unwrap();
    std::fs::remove_dir_all(store.root()).unwrap();
    let tree = lease.tree(manifest);
    assert!(matches!(tree, Err(StoreError::Missing(_))), "{tree:?}");
    assert!(lease.add_tree(&dir.path().join("tree"), &mut |_| {}).is_err());
    drop(lease);
    // what was made of it meanwhile is no store
    let _ = std::fs::remove_dir_all(store.root());
    let store = open(dir.path());
    assert_eq!(add(&mut store.lease().unwrap(), &dir.path().join("tree")), manifest);
    assert_whole(&store, "anew");
}
