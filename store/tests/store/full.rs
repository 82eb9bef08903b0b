//! A disk without room: a small tmpfs in a mount namespace of its own.

use crate::ground::{BOTH, objects, scratch};
use crate::ground::{add, assert_whole, can_run, get, given, make_tree, name, process};
use godwit_store::{Goal, Store, StoreError};
use std::io::ErrorKind;
use std::process::Command;

#[test]
fn a_full_disk_is_an_error_and_nothing_more() {
    if !can_run(&["unshare", "mount"]) {
        return;
    }
    let dir = scratch();
    let inner = process("full::in_a_small_place", dir.path());
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-euc"]);
    outer.arg("mount -t tmpfs -o size=8m none \"$GODWIT_STORE_TEST\"; exec \"$@\"").arg("sh");
    outer.arg(inner.get_program()).args(inner.get_args()).env("GODWIT_STORE_TEST", dir.path());
    let out = outer.output().unwrap();
    assert!(
        out.status.success() && String::from_utf8_lossy(&out.stdout).contains("1 passed"),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
#[ignore = "started by `a_full_disk_is_an_error_and_nothing_more`"]
fn in_a_small_place() {
    let Some(dir) = given() else { return };
    let trees = tempfile::tempdir().unwrap();
    let tree = |number: u64| {
        let at = trees.path().join(number.to_string());
        make_tree(&at, 2 * number, 500_000);
        at
    };
    let store = Store::open(&dir.join("store"), None).unwrap();
    let mut lease = store.lease().unwrap();
    let pinned = add(&mut lease, &tree(0));
    lease.pin(&name("test/pinned"), pinned).unwrap();
    drop(lease);
    // what nobody needs gives its room: much more than there is, one after the other
    for number in 1..20 {
        add(&mut store.lease().unwrap(), &tree(number));
        assert_whole(&store, "while room is made");
    }
    // what somebody needs does not
    let mut lease = store.lease().unwrap();
    let error = (20..40).find_map(|number| lease.add_tree(&tree(number), &mut |_| {}).err());
    let error = error.expect("8 MiB cannot hold 20 MB");
    let full = matches!(&error, StoreError::Io { source, .. } if source.kind() == ErrorKind::StorageFull);
    assert!(full, "{error:?}");
    assert_whole(&store, "full");
    get(&store, pinned, &trees.path().join("to")).unwrap();
    drop(lease);
    store.collect(Goal::All, false).unwrap();
    assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    let kept = objects(&store, BOTH).len();
    add(&mut store.lease().unwrap(), &tree(50));
    assert!(objects(&store, BOTH).len() > kept);
    assert_whole(&store, "with room again");
}
