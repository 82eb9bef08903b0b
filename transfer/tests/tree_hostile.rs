//! A source that lies: every operation is refused, and nothing outside the root is touched.

#![allow(clippy::unwrap_used)]

mod trees;

use std::fs;
use std::os::unix::fs::MetadataExt;

use godwit_transfer::tree::{Body, ChangedBlock, Meta, TreeDestination, TreeIndex, TreeOp, TreePath};
use trees::{bash, can_run, noise, scratch};

fn path(bytes: &str) -> TreePath {
    TreePath::new(bytes.as_bytes()).unwrap()
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn begin(at: &str, size: u64, new: bool) -> TreeOp {
    TreeOp::FileBegin { path: path(at), size, new }
}

fn data(index: u64, bytes: &[u8]) -> TreeOp {
    TreeOp::Segment { index, digest: digest(bytes), body: Body::Data(bytes.to_vec()) }
}

/// Everything outside the destination, down to contents and times.
fn outside(dir: &std::path::Path) -> String {
    bash(
        dir,
        "find outside -printf '%p %y %m %U %G %s %T@ %l %n\\n' | sort; cat outside/file; getfattr -dm- outside/file",
    )
}

#[test]
fn lies_are_refused_and_nothing_is_written_outside() {
    if !can_run() {
        return;
    }
    let meta = || Meta { mode: 0o777, uid: 9, gid: 9, ..Meta::default() };
    let link = |at: &str, to: &str| TreeOp::Symlink {
        path: path(at),
        destination: to.as_bytes().to_vec(),
        meta: Meta::default(),
    };
    // Each list ends with the operation that must be refused.
    let table: Vec<(&str, Vec<TreeOp>)> = vec![
        ("file through a link", vec![link("l", "../outside"), begin("l/new", 1, true)]),
        (
            "file through an absolute link",
            vec![link("l", "/var/tmp"), begin("l/godwit-tree-hostile", 1, true)],
        ),
        ("existing file through a link", vec![link("l", "../outside"), begin("l/file", 1, false)]),
        ("writing to a link's file", vec![link("l", "../outside/file"), begin("l", 1, false)]),
        (
            "through a link within",
            vec![TreeOp::Dir { path: path("d") }, link("l", "d"), begin("l/f", 1, true)],
        ),
        ("through a link to the root", vec![link("l", "."), TreeOp::Dir { path: path("l/x") }]),
        ("directory through a link", vec![link("l", "../outside"), TreeOp::Dir { path: path("l/new") }]),
        ("removal through a link", vec![link("l", "../outside"), TreeOp::Remove { path: path("l/file") }]),
        ("link through a link", vec![link("l", "../outside"), link("l/x", "y")]),
        (
            "hard link to outside",
            vec![link("l", "../outside"), TreeOp::HardLink { path: path("h"), to: path("l/file") }],
        ),
        (
            "hard link into outside",
            vec![
                link("l", "../outside"),
                begin("f", 0, true),
                TreeOp::FileEnd { size: 0, meta: meta() },
                TreeOp::HardLink { path: path("l/h"), to: path("f") },
            ],
        ),
        (
            "rename out",
            vec![
                link("l", "../outside"),
                begin("f", 0, true),
                TreeOp::FileEnd { size: 0, meta: meta() },
                TreeOp::Rename { from: path("f"), to: path("l/file") },
            ],
        ),
        ("rename in", vec![link("l", "../outside"), TreeOp::Rename { from: path("l/file"), to: path("f") }]),
        (
            "metadata through a link",
            vec![link("l", "../outside"), TreeOp::Meta { path: path("l/file"), meta: meta() }],
        ),
        (
            "FIFO through a link",
            vec![link("l", "../outside"), TreeOp::Fifo { path: path("l/p"), meta: meta() }],
        ),
        (
            "device through a link",
            vec![
                link("l", "../outside"),
                TreeOp::Device { path: path("l/c"), block: false, major: 1, minor: 3, meta: meta() },
            ],
        ),
        ("proc's magic links", vec![link("l", "/proc/self/cwd"), TreeOp::Dir { path: path("l/x") }]),
        ("removal of the root", vec![TreeOp::Remove { path: TreePath::root() }]),
        ("the root as a file", vec![begin("", 1, true)]),
        ("the root as a link", vec![link("", "x")]),
        ("contents for a FIFO", vec![TreeOp::Fifo { path: path("p"), meta: meta() }, begin("p", 1, false)]),
        (
            "contents for a device",
            vec![
                TreeOp::Device { path: path("c"), block: false, major: 1, minor: 1, meta: meta() },
                begin("c", 1, false),
            ],
        ),
        ("contents for a directory", vec![TreeOp::Dir { path: path("d") }, begin("d", 1, false)]),
        ("a file that is not there", vec![begin("f", 1, false)]),
        ("contents before a file", vec![data(0, b"x")]),
        ("an end before a file", vec![TreeOp::FileEnd { size: 0, meta: meta() }]),
        ("another file before the end", vec![begin("f", 1, true), begin("g", 1, true)]),
        ("a round's end before the file's", vec![begin("f", 1, true), TreeOp::RoundEnd { round: 0 }]),
        ("too many bytes", vec![begin("f", 2, true), data(0, b"xyz")]),
        ("a segment beyond the end", vec![begin("f", 2, true), data(1, b"x")]),
        ("a segment far beyond the end", vec![begin("f", 2, true), data(u64::MAX, b"x")]),
        ("a hole beyond the end", vec![begin("f", 2, true), TreeOp::Hole { index: 1 }]),
        ("a larger end", vec![begin("f", 2, true), TreeOp::FileEnd { size: 3, meta: meta() }]),
        ("an impossible size", vec![begin("f", u64::MAX, true)]),
        (
            "wrong digest",
            vec![
                begin("f", 9, true),
                TreeOp::Segment { index: 0, digest: [0; 32], body: Body::Data(b"x".to_vec()) },
            ],
        ),
        (
            "a delta that is none",
            vec![
                begin("f", 9, true),
                TreeOp::Segment {
                    index: 0,
                    digest: [0; 32],
                    body: Body::Delta { len: 9, delta: vec![1; 50] },
                },
            ],
        ),
        (
            "a delta that grows",
            vec![
                begin("f", 9, true),
                TreeOp::Segment {
                    index: 0,
                    digest: [0; 32],
                    body: Body::Delta { len: u32::MAX, delta: vec![] },
                },
            ],
        ),
        (
            "blocks beyond",
            vec![
                begin("f", 9, true),
                TreeOp::Segment {
                    index: 0,
                    digest: [0; 32],
                    body: Body::Blocks { len: 9, blocks: vec![ChangedBlock { at: 9, data: vec![1] }] },
                },
            ],
        ),
        (
            "a directory into itself",
            vec![TreeOp::Dir { path: path("d") }, TreeOp::Rename { from: path("d"), to: path("d/e") }],
        ),
        (
            "a hard link to a directory",
            vec![TreeOp::Dir { path: path("d") }, TreeOp::HardLink { path: path("e"), to: path("d") }],
        ),
        (
            "an attribute with a NUL",
            vec![TreeOp::Meta {
                path: TreePath::root(),
                meta: Meta {
                    mode: 0o755,
                    xattrs: vec![godwit_transfer::tree::Xattr { name: b"user.\0".to_vec(), value: vec![] }],
                    ..Meta::default()
                },
            }],
        ),
    ];
    for (what, ops) in table {
        let dir = scratch();
        bash(
            dir.path(),
            "mkdir outside destination; echo precious >outside/file; setfattr -n user.x -v 1 outside/file",
        );
        let before = outside(dir.path());
        let mut destination = TreeDestination::open(&dir.path().join("destination")).unwrap();
        let count = ops.len();
        for (n, op) in ops.into_iter().enumerate() {
            match destination.apply(op) {
                Ok(()) => assert!(n + 1 < count, "{what}: was not refused"),
                Err(error) => assert!(n + 1 == count, "{what}: step {n} already was refused: {error}"),
            }
        }
        assert_eq!(outside(dir.path()), before, "{what}: something outside has changed");
        let after = destination.apply(TreeOp::Dir { path: path("after") }).unwrap_err();
        assert!(after.to_string().starts_with("an earlier error"), "{what}: {after}");
    }
    assert!(!std::path::Path::new("/var/tmp/godwit-tree-hostile").exists());
}

#[test]
fn paths_that_leave_the_tree_cannot_be_decoded() {
    for bad in ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b"] {
        // A removal on the wire: its number, then the path as bytes.
        let mut wire = postcard::to_stdvec(&TreeOp::Remove { path: path("x") }).unwrap();
        wire.truncate(1);
        wire.push(bad.len() as u8);
        wire.extend_from_slice(bad.as_bytes());
        let error = postcard::from_bytes::<TreeOp>(&wire);
        assert!(error.is_err(), "{bad:?} became {error:?}");
    }
}

/// What the index does not know is not written into: a new file is a new inode.
#[test]
fn a_new_file_leaves_other_names_of_the_old_alone() {
    if !can_run() {
        return;
    }
    let dir = scratch();
    bash(dir.path(), "mkdir destination; echo precious >store; ln store destination/f");
    let mut destination = TreeDestination::open(&dir.path().join("destination")).unwrap();
    for op in [begin("f", 4, true), data(0, b"mine"), TreeOp::FileEnd { size: 4, meta: Meta::default() }] {
        destination.apply(op).unwrap();
    }
    assert_eq!(fs::read(dir.path().join("store")).unwrap(), b"precious\n");
    assert_eq!(fs::read(dir.path().join("destination/f")).unwrap(), b"mine");
    assert_eq!(dir.path().join("store").metadata().unwrap().nlink(), 1);
}

#[test]
fn an_index_that_lies_is_refused() {
    if !can_run() {
        return;
    }
    let dir = scratch();
    bash(dir.path(), "mkdir d; echo x >d/f; ln d/f g; ln -s a l");
    let index = TreeDestination::open(dir.path()).unwrap().index().unwrap();
    let good = index.to_bytes().unwrap();
    assert_eq!(TreeIndex::from_bytes(&good).unwrap(), index);
    // No mutation makes it panic, neither decoding nor a round over it.
    let mut accepted = 0;
    for at in 0..good.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = byte;
            if let Ok(index) = TreeIndex::from_bytes(&bad) {
                accepted += 1;
                let mut source =
                    godwit_transfer::tree::TreeSource::new(dir.path(), index, Default::default()).unwrap();
                source.round(&Default::default(), &mut |_| Ok::<(), String>(())).unwrap();
            }
        }
    }
    println!("{accepted} of {} mutations are still an index", good.len() * 4);
    assert!(accepted > 0 && accepted < good.len() * 4);
    assert!(TreeIndex::from_bytes(&noise(1000, 1)).is_err());
}
