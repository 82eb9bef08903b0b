//! A source that writes where it was not let in.

use super::{listen, prepared, there};
use godwit_transfer::tree::{TreeOp, TreePath};
use godwit_transfer::{Message, TreeId};
use std::path::Path;

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn link(at: &str, to: &Path) -> TreeOp {
    use std::os::unix::ffi::OsStrExt;
    TreeOp::Symlink {
        path: path(at),
        destination: to.as_os_str().as_bytes().to_vec(),
        meta: Default::default(),
    }
}

#[test]
fn what_is_written_or_undone_through_a_link_that_was_sent_first_reaches_nothing() {
    let there = there("");
    let precious = there.dir.path().join("precious");
    std::fs::create_dir_all(precious.join("sub")).unwrap();
    std::fs::write(precious.join("sub/file"), "kept").unwrap();
    // an empty directory within the place of another tree, and a place that is not there yet beneath another one
    for dir in ["volume/empty", "volume/there"] {
        std::fs::create_dir_all(there.dir.path().join(dir)).unwrap();
    }
    let trees =
        || vec![there.tree(0, "volume"), there.tree(1, "volume/empty"), there.tree(2, "volume/there/sub")];
    let through: Vec<TreeOp> = vec![
        TreeOp::Dir { path: path("empty/new") },
        TreeOp::FileBegin { path: path("empty/sub/file"), size: 1, new: true },
        TreeOp::Remove { path: path("empty/sub/file") },
        TreeOp::HardLink { path: path("stolen"), to: path("empty/sub/file") },
        TreeOp::Rename { from: path("empty/sub/file"), to: path("stolen") },
        TreeOp::Meta { path: path("empty/sub/file"), meta: Default::default() },
        TreeOp::Device {
            path: path("empty/sub/node"),
            block: true,
            major: 8,
            minor: 0,
            meta: Default::default(),
        },
    ];
    for op in through {
        let offer = there.offer(trees());
        let outcome = there.hears(|wire| {
            prepared(wire, offer);
            wire.say(&Message::RoundBegin { round: 0, last: false }).unwrap();
            for place in ["empty", "there"] {
                wire.operate(TreeId(0), &TreeOp::Remove { path: path(place) }).unwrap();
                wire.operate(TreeId(0), &link(place, &precious)).unwrap();
            }
            let _ = wire.operate(TreeId(0), &op);
            let _ = wire.flush();
            listen(wire);
        });
        let failure = outcome.unwrap_err();
        let said = failure.to_string();
        // a directory is not what a link is
        let refused =
            said.contains("through a symbolic link") || said.contains("something that is no directory");
        assert!(refused, "{op:?}: {failure:?}");
        assert_eq!(
            std::fs::read(precious.join("sub/file")).unwrap(),
            b"kept",
            "{op:?}: undone through a link"
        );
        assert_eq!(std::fs::read_dir(&precious).unwrap().count(), 1, "{op:?}");
        assert_eq!(std::fs::read_dir(precious.join("sub")).unwrap().count(), 1, "{op:?}");
        for place in ["volume/empty", "volume/there"] {
            let place = there.dir.path().join(place);
            let _ = std::fs::remove_file(&place);
            std::fs::create_dir_all(place).unwrap();
        }
    }
}

#[test]
fn trees_that_were_not_offered_do_not_exist() {
    for tree in [TreeId(1), TreeId(0x7fff)] {
        let there = there("");
        let offer = there.offer(vec![there.tree(0, "volume")]);
        let failure = there
            .hears(|wire| {
                prepared(wire, offer);
                wire.say(&Message::RoundBegin { round: 0, last: false }).unwrap();
                let _ = wire.operate(tree, &TreeOp::Dir { path: path("new") });
                let _ = wire.flush();
                listen(wire);
            })
            .unwrap_err();
        assert!(failure.to_string().contains("that was not offered"), "{failure:?}");
        there.assert_only(&[]);
    }
}
