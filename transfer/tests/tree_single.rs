//! A tree that is one file: nothing beside it is read, sent or touched.
#![allow(clippy::unwrap_used)]

use godwit_transfer::tree::{Options, TreeDestination, TreeIndex, TreeOp, TreeSource, equal_digest};
use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn round(source: &mut TreeSource, copy: &mut TreeDestination) -> usize {
    let mut ops = 0;
    source
        .round::<Infallible>(&HashSet::new(), &mut |op| {
            ops += 1;
            copy.apply(op).unwrap();
            Ok(())
        })
        .unwrap();
    ops
}

#[test]
fn only_the_file_travels() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    for side in [&ours, &theirs] {
        fs::create_dir(side).unwrap();
        fs::write(side.join("other"), side.display().to_string()).unwrap();
    }
    fs::set_permissions(&ours, fs::Permissions::from_mode(0o711)).unwrap();
    let before = fs::metadata(&theirs).unwrap().permissions();
    let file = ours.join("hosts");
    fs::write(&file, "127.0.0.1 localhost\n").unwrap();

    let mut source = TreeSource::new(&file, TreeIndex::default(), Options::default()).unwrap();
    let mut copy = TreeDestination::open_file(&theirs.join("hosts")).unwrap();
    round(&mut source, &mut copy);
    assert_eq!(fs::read(theirs.join("hosts")).unwrap(), fs::read(&file).unwrap());
    assert_eq!(equal_digest(&theirs.join("hosts")).unwrap(), equal_digest(&file).unwrap());
    assert_eq!(fs::read_to_string(theirs.join("other")).unwrap(), theirs.display().to_string());
    assert_eq!(fs::metadata(&theirs).unwrap().permissions(), before, "the directory is somebody else's");
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 2);

    fs::write(&file, "127.0.0.1 localhost web\n").unwrap();
    round(&mut source, &mut copy);
    assert_eq!(fs::read(theirs.join("hosts")).unwrap(), fs::read(&file).unwrap());
    assert_eq!(TreeDestination::open(&theirs.join("hosts")).unwrap().index().unwrap(), *source.index());
}

#[test]
fn nothing_beside_it_can_be_written() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(dir.path().join("victim"), "precious").unwrap();
    let source_dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(source_dir.path().join("victim"), "overwritten").unwrap();
    let mut source = TreeSource::new(source_dir.path(), TreeIndex::default(), Options::default()).unwrap();
    let mut ops: Vec<TreeOp> = Vec::new();
    source
        .round::<Infallible>(&HashSet::new(), &mut |op| {
            ops.push(op);
            Ok(())
        })
        .unwrap();
    let mut copy = TreeDestination::open_file(&dir.path().join("hosts")).unwrap();
    let first_error = ops.into_iter().find_map(|op| copy.apply(op).err()).unwrap();
    assert!(first_error.to_string().contains("the tree is one file"), "{first_error}");
    assert_eq!(fs::read_to_string(dir.path().join("victim")).unwrap(), "precious");
    assert!(!dir.path().join("hosts").exists());
}
