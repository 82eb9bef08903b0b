//! Trees and checkpoints, there and back.

use crate::ground::{add, assert_whole, bash, can_run, get, noise, objects, open, rsync, scratch};
use godwit_criu::images::{PE_PRESENT, Pagemap, PagemapEntry};
use godwit_store::StoreError;
use godwit_transfer::tree::equal_digest;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Each makes a tree.
const TREES: &[(&str, &str)] = &[
    ("empty", "true"),
    ("root", "chmod 1770 .; chown 5:6 .; setfattr -n user.x -v 1 .; touch -d '2001-02-03 04:05:06.789' ."),
    ("modes", "for m in 0 400 4755 2755 1777; do echo $m >f$m; chown 1000:2000 f$m; chmod $m f$m; done; mkdir d; chmod 3770 d"),
    ("names", r#"touch -- $'\xff\xfe' $'new\nline' ' ' '-rf' '*' "$(printf 'x%.0s' {1..255})"; mkdir a $'d\x01'; echo 1 >a/b; echo 2 >a-b"#),
    (
        "attributes",
        "echo x >f; mkdir d; setfattr -n user.a -v 1 f; setfattr -n trusted.t -v 2 f; setfacl -m u:1000:rwx f; setfacl -d -m u:1001:rx d
         setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 f; setfattr -n user.big -v $(printf 'y%.0s' {1..3000}) d",
    ),
    ("links", "ln -s /etc/passwd abs; ln -s ../.. up; ln -s nowhere dangling; chown -h 12:13 abs; touch -h -d '1999-01-01 00:00:00.5' abs"),
    ("special", "mkfifo p; mknod c c 1 3; mknod b b 7 4095; mknod white c 0 0; chmod 622 p; chown 3:4 c"),
    ("hard links", "echo 1 >a; ln a b; mkdir d; ln a d/c; ln -s q s; ln s s2; mkfifo p; ln p p2; echo z >z; ln z d/0"),
    (
        "holes",
        "truncate -s 40M all; truncate -s 30M some; dd if=/dev/urandom of=some bs=5000 count=1 seek=2000 conv=notrunc status=none
         echo end >>some; head -c 9000 /dev/zero >zeros; head -c 8388608 /dev/urandom >segment; head -c 8388609 /dev/urandom >more",
    ),
];

#[test]
fn trees_are_the_same_again() {
    if !can_run(&["rsync", "setfacl", "setfattr", "bash"]) {
        return;
    }
    let dir = scratch();
    let store = open(dir.path());
    for (what, script) in TREES {
        let (from, to) = (dir.path().join("from").join(what), dir.path().join("to").join(what));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        bash(&from, script);
        let mut lease = store.lease().unwrap();
        let manifest = add(&mut lease, &from);
        get(&store, manifest, &to).unwrap();
        assert_eq!(rsync(&from, &to), "", "{what}");
        assert_eq!(equal_digest(&from).unwrap(), equal_digest(&to).unwrap(), "{what}");
        let again = lease.add_tree(&to, &mut |_| {}).unwrap();
        // directories have times of their own only as far as they were set
        assert_eq!((again.manifest, again.written_bytes), (manifest, 0), "{what}: equal trees have one name");
    }
    let sparse = dir.path().join("to/holes/all").metadata().unwrap();
    assert_eq!((sparse.len(), sparse.blocks()), (40 << 20, 0), "zeros take no room");
    assert_whole(&store, "after all");
}

#[test]
fn one_file_is_a_tree() {
    let dir = scratch();
    let store = open(dir.path());
    let from = dir.path().join("config.json");
    std::fs::write(&from, noise(1, 100_000)).unwrap();
    let manifest = add(&mut store.lease().unwrap(), &from);
    let to = dir.path().join("to");
    get(&store, manifest, &to).unwrap();
    assert_eq!(std::fs::read(to.join("config.json")).unwrap(), noise(1, 100_000));
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1);
}

#[test]
fn what_is_in_the_way_is_left_alone() {
    let dir = scratch();
    let store = open(dir.path());
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    std::fs::write(from.join("file"), "new").unwrap();
    let manifest = add(&mut store.lease().unwrap(), &from);
    let to = dir.path().join("to");
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("file"), "old").unwrap();
    assert!(matches!(get(&store, manifest, &to), Err(StoreError::NotEmpty(_))));
    assert_eq!(std::fs::read_to_string(to.join("file")).unwrap(), "old");
    let unknown = godwit_store::Digest::of(b"nobody");
    let nowhere = dir.path().join("nowhere");
    assert!(matches!(get(&store, unknown, &nowhere), Err(StoreError::Missing(_))));
    assert!(!nowhere.exists());
}

#[test]
fn a_missing_chunk_is_told_before_anything_is_made() {
    let dir = scratch();
    let store = open(dir.path());
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    std::fs::write(from.join("file"), noise(3, 500_000)).unwrap();
    let manifest = add(&mut store.lease().unwrap(), &from);
    let chunk = objects(&store, &["chunks"]).into_iter().next().unwrap();
    std::fs::remove_file(store.root().join(chunk)).unwrap();
    let to = dir.path().join("to");
    assert!(matches!(get(&store, manifest, &to), Err(StoreError::Missing(_))));
    assert!(!to.exists());
    // whoever has the tree puts back what is missing
    assert_eq!(add(&mut store.lease().unwrap(), &from), manifest);
    get(&store, manifest, &to).unwrap();
}

/// CRIU's images of one process with these pages: number and content.
fn images(at: &Path, pages: &BTreeMap<u64, Vec<u8>>) {
    std::fs::create_dir_all(at).unwrap();
    let entry = |number: &u64| PagemapEntry { vaddr: number * 4096, nr_pages: 1, flags: PE_PRESENT };
    let map = Pagemap { pages_id: 1, entries: pages.keys().map(entry).collect() };
    map.write(&at.join("pagemap-7.img")).unwrap();
    let bytes: Vec<u8> = pages.values().flatten().copied().collect();
    std::fs::write(at.join("pages-1.img"), bytes).unwrap();
}

#[test]
fn a_later_checkpoint_shares_what_has_not_changed() {
    let dir = scratch();
    let store = open(dir.path());
    let page = |number: u64| match number % 5 {
        0 => vec![0; 4096],
        _ => noise(number, 4096),
    };
    let mut pages: BTreeMap<u64, Vec<u8>> =
        (0x1000..0x1400u64).map(|number| (number, page(number))).collect();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    images(&first.join("images"), &pages);
    // new memory at a lower address moves all that follows in the file, and one page changes
    pages.extend((0x100..0x10bu64).map(|number| (number, noise(number, 4096))));
    pages.insert(0x1234, noise(99, 4096));
    images(&second.join("images"), &pages);

    let facts = |name: &str| BTreeMap::from([("container".to_owned(), name.to_owned())]);
    let mut lease = store.lease().unwrap();
    let one = lease.add_checkpoint(&first, facts("runc:web"), &mut |_| {}).unwrap();
    let before = objects(&store, &["chunks"]);
    let two = lease.add_checkpoint(&second, facts("runc:web"), &mut |_| {}).unwrap();
    let new = objects(&store, &["chunks"]).difference(&before).count();
    // the group that changed, the new one, and the pagemap
    assert_eq!(new, 3, "of {} chunks", before.len());
    assert!(two.written_bytes < one.written_bytes / 4, "{one:?} {two:?}");
    for (added, from) in [(one, &first), (two, &second)] {
        let to = dir.path().join("to").join(added.manifest.to_string());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        lease.materialise(added.manifest, &to, &mut |_, _| {}).unwrap();
        assert_eq!(equal_digest(from).unwrap(), equal_digest(&to).unwrap());
    }
    assert_whole(&store, "after both");
}

#[test]
fn pages_that_do_not_fit_their_map_are_a_file_as_any_other() {
    let dir = scratch();
    let store = open(dir.path());
    let from = dir.path().join("from");
    images(&from, &BTreeMap::from([(1, noise(1, 4096)), (2, noise(2, 4096))]));
    std::fs::write(from.join("pages-1.img"), noise(1, 5000)).unwrap();
    let added = store.lease().unwrap().add_checkpoint(&from, BTreeMap::new(), &mut |_| {}).unwrap();
    get(&store, added.manifest, &dir.path().join("to")).unwrap();
    assert_eq!(std::fs::read(dir.path().join("to/pages-1.img")).unwrap(), noise(1, 5000));
}
