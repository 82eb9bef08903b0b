//! Every rung gives the same memory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use godwit_criu::images::Pagemap;
use godwit_criu::pageless::{Ladder, Rung};
use godwit_criu::{CriuBinary, CriuError, NotifyAnswer, Version, binary};

use crate::tree::{Memory, Tree, crc32, size_of_images, take};
use crate::{crius, dump, ladder};

/// What CRIU's pages and a reader's make together; CRIU's win.
fn together(read: Memory, own: Memory) -> Memory {
    let mut all = read;
    for (pid, pages) in own {
        all.entry(pid).or_default().extend(pages);
    }
    all
}

/// The same pages, with the same content but for the few that CRIU's own code in a task changes at each dump (where each
/// of the up to four threads keeps its rseq area).
fn assert_same(got: &Memory, want: &Memory, what: &str) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
    for (pid, pages) in want {
        let got = &got[pid];
        let only = |a: &std::collections::BTreeMap<u64, u32>, b: &std::collections::BTreeMap<u64, u32>| {
            a.keys()
                .filter(|vaddr| !b.contains_key(vaddr))
                .map(|vaddr| format!("{vaddr:x}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (only(got, pages), only(pages, got)),
            (vec![], vec![]),
            "{what}: pages of {pid} that only one has"
        );
        let differ: Vec<_> =
            pages.iter().filter(|(vaddr, sum)| got[vaddr] != **sum).map(|(v, _)| v).collect();
        println!("{what}: task {pid}, {} pages, {} differ", pages.len(), differ.len());
        assert!(differ.len() <= 5, "{what}: task {pid}: {differ:x?}");
    }
}

/// The images that are neither about pages nor the time, and are not the same in both directories.
fn others_that_differ(one: &Path, other: &Path) -> Vec<String> {
    const OF_THE_TIME: [&str; 2] = ["inventory.img", "timens-0.img"];
    let names = |dir: &Path| -> BTreeSet<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // An archive has the times of its files.
        let other =
            |name: &String| !["pages-", "pagemap-", "tmpfs-"].iter().any(|start| name.starts_with(start));
        names.filter(other).collect()
    };
    let all: BTreeSet<String> = names(one).union(&names(other)).cloned().collect();
    all.into_iter()
        .filter(|name| fs::read(one.join(name)).ok() != fs::read(other.join(name)).ok())
        .filter(|name| !OF_THE_TIME.contains(&name.as_str()))
        .collect()
}

fn every_rung(criu: &CriuBinary, own_mounts: bool) {
    let version = criu.version().unwrap();
    let knows_guards = version >= Version { major: 4, minor: 2, sublevel: 0 };
    let tree = Tree::start(24, if knows_guards { "guarded" } else { "tree" }, own_mounts);
    tree.freeze(true);
    // Each dump leaves traces in the tasks (stacks, a page that CRIU's code was in): a first one makes them.
    dump(&mut ladder(criu, &tree, own_mounts, Rung::Plain), criu, &tree, tree.options("first"));
    let rungs = Rung::ALL
        .into_iter()
        .filter(|rung| own_mounts || binary::soft_dirty_works().unwrap() || *rung != Rung::FakeParent);
    for (number, rung) in rungs.enumerate() {
        let what = format!("criu {version}, {rung}, own mounts {own_mounts}");
        let mut with = ladder(criu, &tree, own_mounts, rung);
        tree.freeze(false);
        if number % 2 == 0 {
            with.start(criu, &tree.options(&number.to_string())).unwrap();
        }
        with.snapshot(&tree.pids());
        tree.freeze(true);
        let images = tree.dir.join(number.to_string());
        let report = dump(&mut with, criu, &tree, tree.options(&number.to_string()));
        assert_eq!((report.rung, &report.fell[..]), (rung, &[][..]), "{what}");
        assert!(report.omitted.is_empty());
        println!(
            "{what}: {:?}, {} bytes of images, {} own pages",
            report.report.wall,
            size_of_images(&images),
            report.own_pages
        );
        let (own, taken) = take(&images);
        assert_eq!(taken.pages, report.own_pages, "{what}");
        // Two objects of shared memory, which CRIU wrote.
        let mut shared: Vec<u64> = taken.shared.values().copied().collect();
        shared.sort_unstable();
        assert_eq!(shared, [128, 400], "{what}");
        assert!(size_of_images(&images) < 400_000 + (128 + 400) * 4096, "{what}");
        for file in fs::read_dir(&images).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.file_name());
        }
        let expected_own = match rung {
            Rung::ShimWithSmaps | Rung::Shim => 0..=12,
            Rung::FakeParent => 0..=700,
            Rung::PageServer | Rung::Plain => 3 * 24 * 256..=u64::MAX,
        };
        assert!(expected_own.contains(&report.own_pages), "{what}: {}", report.own_pages);
        let got = if rung.is_complete() { own } else { together(tree.read(criu), own) };

        dump(
            &mut ladder(criu, &tree, own_mounts, Rung::Plain),
            criu,
            &tree,
            tree.options(&format!("{number}p")),
        );
        let (want, _) = take(&tree.dir.join(format!("{number}p")));
        assert_same(&got, &want, &what);
        // Everything else is alike too: mappings with their flags and, where CRIU knows them, guard pages; threads, files, …
        let differ = others_that_differ(&images, &tree.dir.join(format!("{number}p")));
        assert!(differ.is_empty(), "{what}: {differ:?}");
    }
}

#[test]
fn every_rung_gives_the_same_memory() {
    for criu in crius("every_rung_gives_the_same_memory") {
        every_rung(&criu, false);
    }
}

#[test]
fn every_rung_gives_the_same_memory_of_a_tree_with_mounts_of_its_own() {
    for criu in crius("every_rung_gives_the_same_memory_of_a_tree_with_mounts_of_its_own") {
        every_rung(&criu, true);
    }
}

#[test]
fn shared_memory_is_left_out_only_when_it_is_filled_by_us() {
    for criu in crius("shared_memory_is_left_out_only_when_it_is_filled_by_us") {
        let tree = Tree::start(4, "tree", false);
        let mut with = Ladder::prepare(&criu, &tree.dir.join("ladder"), false, None, true).unwrap();
        with.snapshot(&tree.pids());
        tree.freeze(true);
        let report = dump(&mut with, &criu, &tree, tree.options("1"));
        assert_eq!((report.rung, report.omitted.len()), (Rung::ShimWithSmaps, 2), "{report:?}");
        let (_, taken) = take(&tree.dir.join("1"));
        assert!(taken.shared.values().all(|pages| *pages == 0) && taken.shared.len() <= 2, "{taken:?}");
        // The objects are those that the tasks have mapped.
        let maps = fs::read_to_string(format!("/proc/{}/maps", tree.pid)).unwrap();
        for object in &report.omitted {
            let line = maps.lines().find(|line| line.contains(&format!(" {} ", object.inode))).unwrap();
            assert!(
                line.contains(" rw-s ")
                    && (line.contains("/memfd:godwit-test") || line.contains("/dev/zero"))
            );
        }
        // Lower rungs write them.
        let mut plain =
            Ladder::prepare(&criu, &tree.dir.join("ladder2"), false, Some(Rung::Plain), true).unwrap();
        let report = dump(&mut plain, &criu, &tree, tree.options("2"));
        assert!(report.omitted.is_empty());
        assert_eq!(take(&tree.dir.join("2")).1.shared.values().sum::<u64>(), 528);
    }
}

#[test]
fn the_page_server_drops_what_is_unchanged() {
    for criu in crius("the_page_server_drops_what_is_unchanged") {
        let tree = Tree::start(16, "tree", false);
        tree.freeze(true);
        dump(&mut ladder(&criu, &tree, false, Rung::Plain), &criu, &tree, tree.options("1"));
        let (known, _) = take(&tree.dir.join("1"));
        let total: usize = known.values().map(|pages| pages.len()).sum();
        let mut with = ladder(&criu, &tree, false, Rung::PageServer);
        with.filter_pages(Box::new(move |name, vaddr, page| {
            let godwit_criu::pageless::PagemapName::Task(pid) = name else { panic!("{name:?}") };
            known.get(&pid).and_then(|pages| pages.get(&vaddr)) == Some(&crc32(page))
        }));
        let report = dump(&mut with, &criu, &tree, tree.options("2"));
        assert_eq!(report.rung, Rung::PageServer);
        println!("{} of {total} pages kept", report.own_pages);
        assert!(report.own_pages < 64 && total > 3 * 16 * 256);
        let map = Pagemap::read(&tree.dir.join("2").join(format!("pagemap-{}.img", tree.pid))).unwrap();
        assert!(map.pages_id > 0x1_0000);
    }
}

/// CRIU packs the files of a tmpfs with tar: one in its place tells what it was given.
#[test]
fn nothing_that_criu_starts_sees_the_library_or_the_altered_cache() {
    for criu in crius("nothing_that_criu_starts_sees_the_library_or_the_altered_cache") {
        let tree = Tree::start(4, "plain", true);
        let (bin, told) = (tree.dir.join("bin"), tree.dir.join("told"));
        fs::create_dir(&bin).unwrap();
        let script = format!(
            "#!/bin/bash\ncat /proc/$$/environ >> {0}\nmd5sum /run/criu.kdat >> {0}\nexec /usr/bin/tar \"$@\"\n",
            told.display()
        );
        fs::write(bin.join("tar"), script).unwrap();
        fs::set_permissions(bin.join("tar"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        for rung in [Rung::ShimWithSmaps, Rung::FakeParent, Rung::Plain] {
            let mut with = ladder(&criu, &tree, true, rung);
            with.snapshot(&tree.pids());
            // A cache of another CRIU's it makes anew, which is none of our doing.
            criu.features().unwrap();
            let cache = || fs::read(Path::new("/run/criu.kdat")).unwrap();
            let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
            let (cache_before, mounts_before) = (cache(), mounts());
            tree.freeze(true);
            let mut options = tree.options(&format!("{rung:?}"));
            options.env.push(("PATH".into(), path.clone().into()));
            let report = dump(&mut with, &criu, &tree, options);
            tree.freeze(false);
            assert_eq!(report.rung, rung, "{report:?}");
            assert!(cache() == cache_before && mounts() == mounts_before);
            let text = String::from_utf8_lossy(&fs::read(&told).unwrap()).into_owned();
            fs::remove_file(&told).unwrap();
            assert!(text.contains("PATH=") && text.contains("criu.kdat"), "{text}");
            assert!(!text.contains("LD_PRELOAD") && !text.contains("GODWIT_SHIM"), "{rung}: {text}");
        }
    }
}

/// CRIU asks for the limits of each task, which for another user's takes CAP_SYS_RESOURCE.
#[test]
fn tasks_of_another_user() {
    for criu in crius("tasks_of_another_user") {
        let tree = Tree::start(4, "user", false);
        for rung in [Rung::ShimWithSmaps, Rung::PageServer, Rung::Plain] {
            let mut with = ladder(&criu, &tree, false, rung);
            with.snapshot(&tree.pids());
            tree.freeze(true);
            let report = dump(&mut with, &criu, &tree, tree.options(&format!("{rung:?}")));
            tree.freeze(false);
            assert_eq!((report.rung, report.fell.len()), (rung, 0), "{report:?}");
        }
        // By itself it cannot, where the capability (number 24) is missing.
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        if u64::from_str_radix(effective, 16).unwrap() & 1 << 24 == 0 {
            tree.freeze(true);
            let result =
                godwit_criu::dump::dump(&criu, tree.options("alone"), &mut |_| NotifyAnswer::Continue);
            assert!(matches!(result, Err(CriuError::Failed { .. })), "{result:?}");
        }
    }
}

/// Before 4.2 CRIU does not know guard pages: it fails to dump them, and left to itself would not notice that there are any.
#[test]
fn guard_pages_are_not_lost() {
    for criu in crius("guard_pages_are_not_lost") {
        let tree = Tree::start(4, "guarded", false);
        let mut with = ladder(&criu, &tree, false, Rung::ShimWithSmaps);
        with.snapshot(&tree.pids());
        tree.freeze(true);
        let result = with.dump(&criu, tree.options("1"), &mut |_| NotifyAnswer::Continue);
        let kernel = nix::sys::utsname::uname().unwrap().release().to_str().unwrap().to_owned();
        let mut numbers = kernel.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
        let kernel_tells = (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15);
        if criu.version().unwrap() < (Version { major: 4, minor: 2, sublevel: 0 }) && kernel_tells {
            let Err(error @ CriuError::Unusable { .. }) = result else { panic!("{result:?}") };
            assert!(error.to_string().contains("guard pages"), "{error}");
        } else {
            assert_eq!(result.unwrap().rung, Rung::ShimWithSmaps);
        }
    }
}
