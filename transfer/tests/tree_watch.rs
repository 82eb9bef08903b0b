//! Rounds that look only at what the kernel says was changed.
#![allow(clippy::unwrap_used)]

mod trees;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use godwit_transfer::tree::TreeOp;
use trees::sys::Mapped;
use trees::{Pair, bash, can_run, scratch, settle};

/// Directories, and files in each.
const DIRECTORIES: usize = 20;
const FILES: usize = 50;

fn filled() -> Pair {
    let pair = Pair::watched();
    for directory in 0..DIRECTORIES {
        let path = pair.from().join(format!("d{directory}"));
        fs::create_dir(&path).unwrap();
        (0..FILES).for_each(|file| {
            fs::write(path.join(format!("f{file}")), format!("{directory} {file}")).unwrap()
        });
    }
    pair
}

/// A round that finds out something; how many entries it looked at.
fn round(pair: &mut Pair, what: &str) -> u64 {
    let (stats, _) = pair.round();
    pair.assert_equal(what);
    assert_eq!(stats.entries as usize, bash(&pair.from(), "find . ! -type s").lines().count(), "{what}");
    stats.looked_at
}

#[test]
fn a_round_costs_what_was_changed() {
    if !can_run() {
        return;
    }
    let mut pair = filled();
    let all = round(&mut pair, "the first round walks");
    assert_eq!(all as usize, 1 + DIRECTORIES * (FILES + 1));
    assert_eq!(round(&mut pair, "nothing was changed"), 1);
    fs::write(pair.from().join("d3/f4"), "other").unwrap();
    assert_eq!(round(&mut pair, "a file, its directory, the root"), 3);
    fs::create_dir_all(pair.from().join("new/deep")).unwrap();
    fs::write(pair.from().join("new/deep/file"), "in a new directory").unwrap();
    assert_eq!(round(&mut pair, "two directories, a file, the root"), 4);
    fs::write(pair.from().join("new/deep/file"), "again").unwrap();
    assert_eq!(round(&mut pair, "it is known by now"), 4);
    settle();
    let (stats, ops) = pair.round();
    assert_eq!((stats.looked_at, stats.files_read), (1, 0));
    assert!(matches!(ops[..], [TreeOp::RoundEnd { .. }]), "{ops:?}");
}

#[test]
fn whole_directories_come_and_go() {
    if !can_run() {
        return;
    }
    let mut pair = filled();
    let outside = scratch();
    round(&mut pair, "all");
    let script = |pair: &mut Pair, script: &str| {
        bash(&pair.from(), &script.replace("OUTSIDE", outside.path().to_str().unwrap()));
        round(pair, script)
    };
    assert!(script(&mut pair, "mv d1 moved") < 120);
    script(&mut pair, "mv d2/f1 moved/f1; rm -r d3; mkdir d3; echo x > d3/f1");
    script(&mut pair, "mv d4 OUTSIDE/; echo away >> OUTSIDE/d4/f1");
    script(
        &mut pair,
        "echo more >> OUTSIDE/d4/f2; rm OUTSIDE/d4/f3; mv OUTSIDE/d4 back; echo here >> back/f4",
    );
    script(&mut pair, "mv d5 t; mv d6 d5; mv t d6; echo x >> d5/f1; echo y >> d6/f2");
    script(&mut pair, "rm -r d7; echo file > d7; rm d8/f1; mkdir d8/f1; echo x > d8/f1/file");
    script(
        &mut pair,
        "rm d7; mkdir -p d7/a/b/c; ln d9/f1 d7/a/b/c/f1; ln -sf f1 d9/f2; chmod 700 d10; touch -d @1 d11",
    );
}

#[test]
fn a_file_with_several_names_is_changed_by_any_of_them() {
    if !can_run() {
        return;
    }
    let mut pair = filled();
    let outside = scratch();
    bash(&pair.from(), "ln d1/f1 d2/other; ln d1/f1 d3/third");
    fs::hard_link(pair.from().join("d4/f4"), outside.path().join("name")).unwrap();
    round(&mut pair, "all");
    let append =
        |path: &Path| fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b" more").unwrap();
    append(&pair.from().join("d3/third"));
    assert!(round(&mut pair, "by the last name") < 10);
    append(&outside.path().join("name"));
    assert!(round(&mut pair, "by a name outside") < 10);
    // whose name goes while it is written to
    let mut open = fs::OpenOptions::new().append(true).open(pair.from().join("d2/other")).unwrap();
    fs::remove_file(pair.from().join("d2/other")).unwrap();
    open.write_all(b" and more").unwrap();
    assert!(round(&mut pair, "by a name that is gone") < 10);
}

#[test]
fn what_the_kernel_does_not_tell_is_looked_at_where_it_is_named() {
    if !can_run() {
        return;
    }
    let mut pair = filled();
    let path = pair.from().join("d1/f1");
    fs::write(&path, vec![1; 8192]).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut mapped = Mapped::new(&file);
    settle();
    round(&mut pair, "all");
    mapped.write(5, 9);
    let (stats, _) = pair.round();
    assert_eq!(stats.looked_at, 1, "the kernel tells nothing of it: {stats:?}");
    let meta = path.metadata().unwrap();
    pair.source.look_at([(meta.dev(), meta.ino())]);
    assert!(round(&mut pair, "it was named") < 10);
    mapped.write(6, 9);
    drop((mapped, file));
    pair.also.insert((meta.dev(), meta.ino()));
    assert!(round(&mut pair, "it was mapped") < 10);
}

#[test]
fn small_trees_are_walked() {
    if !can_run() {
        return;
    }
    let dir = scratch();
    let options = godwit_transfer::tree::Options { watch_from: Some(5), ..Default::default() };
    let mut source = godwit_transfer::tree::TreeSource::new(dir.path(), Default::default(), options).unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    let mut none = |_| Ok::<_, ()>(());
    assert!(source.is_watched());
    source.round(&Default::default(), &mut none).unwrap();
    assert!(!source.is_watched());
    assert_eq!(source.round(&Default::default(), &mut none).unwrap().looked_at, 2);
}
