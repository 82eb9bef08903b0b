//! Whatever goes wrong, there is a dump, and it says how it came about.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use godwit_criu::pageless::{Ladder, PagelessReport, Rung};
use godwit_criu::{CriuBinary, CriuError, NotifyAnswer};

use crate::tree::{Tree, take};
use crate::{below_the_library, crius, dump, ladder};

fn is_whole(report: &PagelessReport, tree: &Tree, images: &str) {
    let (pages, _) = take(&tree.dir.join(images));
    let total: usize = pages.values().map(|pages| pages.len()).sum();
    assert_eq!(report.own_pages, total as u64);
    assert!(!report.rung.is_complete() || total >= 4 * 256, "{report:?}");
}

#[test]
fn a_library_that_crashes() {
    for criu in crius("a_library_that_crashes") {
        let tree = Tree::start(4, "plain", false);
        let mut with = ladder(&criu, &tree, false, Rung::ShimWithSmaps);
        // Its code is overwritten: every instruction is a trap.
        let library = tree.dir.join("ladder/shim/godwit-shim.so");
        let mut bytes = fs::read(&library).unwrap();
        let word =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let headers = word(&bytes, 32);
        let code =
            (0..8).map(|i| headers + i * 56).find(|at| bytes[*at] == 1 && bytes[*at + 4] & 1 == 1).unwrap();
        let (offset, length) = (word(&bytes, code + 8), word(&bytes, code + 32));
        bytes[offset..offset + length].fill(0xcc);
        fs::write(&library, bytes).unwrap();
        tree.freeze(true);
        let report = dump(&mut with, &criu, &tree, tree.options("1"));
        println!("{:?}", report.fell);
        assert_eq!(report.fell.iter().map(|(rung, _)| *rung).collect::<Vec<_>>(), [Rung::ShimWithSmaps]);
        assert_eq!(report.rung, below_the_library(), "the next, without the library");
        is_whole(&report, &tree, "1");
    }
}

#[test]
fn a_criu_that_cannot_be_preloaded() {
    for criu in crius("a_criu_that_cannot_be_preloaded") {
        let tree = Tree::start(4, "plain", false);
        let script = tree.dir.join("criu");
        let text = format!(
            "#!/bin/bash\n# what a static program would do with it\nunset LD_PRELOAD\nexec {} \"$@\"\n",
            criu.path().display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let wrapper = CriuBinary::at(&script).unwrap();
        let mut with = Ladder::prepare(&wrapper, &tree.dir.join("ladder"), false, None, false).unwrap();
        assert_eq!(with.rung(), below_the_library());
        let missing: Vec<Rung> = with.missing().iter().map(|(rung, _)| *rung).collect();
        assert_eq!(missing[..2], [Rung::ShimWithSmaps, Rung::Shim]);
        assert!(with.missing()[0].1.contains("wrapper"));
        let no_fake_parent = with.missing().get(2).map(|(_, why)| why.contains("mount namespace"));
        assert_eq!(no_fake_parent, (below_the_library() == Rung::PageServer).then_some(true));
        tree.freeze(true);
        let report = dump(&mut with, &wrapper, &tree, tree.options("1"));
        assert_eq!(report.rung, below_the_library());
        let fell: Vec<Rung> = report.fell.iter().map(|(rung, _)| *rung).collect();
        assert_eq!(fell, missing, "it says which it had to do without");
        is_whole(&report, &tree, "1");
    }
}

/// A ladder made for one CRIU, and a dump by another that the library is not loaded into: what it finds in the images counts.
#[test]
fn a_library_that_is_ignored_after_all() {
    for criu in crius("a_library_that_is_ignored_after_all") {
        let tree = Tree::start(4, "plain", false);
        let script = tree.dir.join("criu");
        fs::write(&script, format!("#!/bin/bash\nunset LD_PRELOAD\nexec {} \"$@\"\n", criu.path().display()))
            .unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let mut with = ladder(&criu, &tree, false, Rung::ShimWithSmaps);
        with.snapshot(&tree.pids());
        tree.freeze(true);
        let report = dump(&mut with, &CriuBinary::at(&script).unwrap(), &tree, tree.options("1"));
        assert_eq!(report.rung, Rung::Plain);
        assert!(report.fell[0].1.contains("did not ask"), "{:?}", report.fell);
        is_whole(&report, &tree, "1");
    }
}

#[test]
fn mappings_that_changed_since_they_were_noted() {
    for criu in crius("mappings_that_changed_since_they_were_noted") {
        let tree = Tree::start(4, "tree", false);
        let mut with = ladder(&criu, &tree, false, Rung::ShimWithSmaps);
        // Of another process, so of other addresses: not valid for any task here.
        with.snapshot(&[std::process::id() as i32].into());
        tree.freeze(true);
        let report = dump(&mut with, &criu, &tree, tree.options("1"));
        assert_eq!(report.rung, Rung::Shim);
        assert!(report.fell[0].1.contains("valid"), "{:?}", report.fell);
        // Two of three tasks: the third one's are read by CRIU.
        let mut pids = tree.pids();
        pids.pop_last();
        with.snapshot(&pids);
        let report = dump(&mut with, &criu, &tree, tree.options("2"));
        assert_eq!((report.rung, report.fell.len()), (Rung::ShimWithSmaps, 0));
        // The images know the same mappings either way.
        for pid in tree.pids() {
            let image = |name: &str| fs::read(tree.dir.join(name).join(format!("mm-{pid}.img"))).unwrap();
            assert!(image("1") == image("2"), "mappings of {pid}");
        }
        // What was noted for one dump does not serve another.
        with.snapshot(&Default::default());
        let report = dump(&mut with, &criu, &tree, tree.options("3"));
        assert_eq!(report.rung, Rung::Shim);
    }
}

#[test]
fn statistics_that_are_missing() {
    for criu in crius("statistics_that_are_missing") {
        let tree = Tree::start(4, "plain", false);
        let mut with = ladder(&criu, &tree, false, Rung::ShimWithSmaps);
        with.snapshot(&tree.pids());
        tree.freeze(true);
        fs::create_dir(tree.dir.join("1")).unwrap();
        fs::write(tree.dir.join("1/of-the-caller"), "stays").unwrap();
        let (work, mut times) = (tree.work(), 0);
        let mut options = tree.options("0");
        options.images_dir = tree.dir.join("1");
        let report = with
            .dump(&criu, options, &mut |notify| {
                // CRIU writes them last, and cannot write through this.
                if notify.script == "post-dump" && times < 2 {
                    times += 1;
                    symlink("/nonexistent/file", work.join("stats-dump")).unwrap();
                }
                NotifyAnswer::Continue
            })
            .unwrap();
        let fell: Vec<Rung> = report.fell.iter().map(|(rung, _)| *rung).collect();
        assert_eq!((report.rung, &fell[..]), (below_the_library(), &[Rung::ShimWithSmaps, Rung::Shim][..]));
        assert!(report.fell[0].1.contains("statistics"));
        is_whole(&report, &tree, "1");
        assert_eq!(fs::read_to_string(tree.dir.join("1/of-the-caller")).unwrap(), "stays");
    }
}

#[test]
fn a_refusal_that_no_way_of_dumping_changes() {
    for criu in crius("a_refusal_that_no_way_of_dumping_changes") {
        let tree = Tree::start(4, "plain", false);
        let mut with = ladder(&criu, &tree, false, Rung::ShimWithSmaps);
        tree.freeze(true);
        let mut asked = 0;
        let result = with.dump(&criu, tree.options("1"), &mut |notify| {
            asked += usize::from(notify.script == "pre-dump");
            NotifyAnswer::Refuse
        });
        assert!(matches!(result, Err(CriuError::Failed { .. })), "{result:?}");
        assert_eq!(asked, 1, "the caller's word is final");
        assert!(tree.frozen());
        let report = dump(&mut with, &criu, &tree, tree.options("2"));
        assert_eq!(report.rung, Rung::Shim, "and nothing is spoilt: {report:?}");
    }
}
