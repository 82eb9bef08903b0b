//! Trees that are written to during rounds, and changes that times do not show.

#![allow(clippy::unwrap_used)]

mod trees;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trees::sys::Mapped;
use trees::{Pair, bash, can_run, noise, scratch, settle};

/// Everything that can happen to a name while it is read.
fn disturb(root: &std::path::Path, step: u64) {
    let name = |n: u64| root.join(format!("{}/f{}", n % 3, n % 7));
    let at = name(step * 7919 / 13);
    let other = name(step * 104_729 / 17);
    match step * 31 % 12 {
        0 => drop(fs::remove_file(&at)),
        1 => drop(fs::rename(&at, &other)),
        2 => drop(fs::hard_link(&at, &other)),
        3 => drop(fs::create_dir(&at)),
        4 => drop(fs::remove_dir_all(&at)),
        5 => drop(std::os::unix::fs::symlink("/etc/passwd", &at)),
        6 => nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRUSR).unwrap_or(()),
        7 => drop(fs::rename(root.join(format!("{}", step % 3)), root.join("moved"))),
        8 => drop(fs::rename(root.join("moved"), root.join(format!("{}", step % 3)))),
        op => {
            // Never open a FIFO or a link for writing.
            if fs::symlink_metadata(&at).is_ok_and(|m| !m.is_file()) {
                return drop(fs::remove_file(&at));
            }
            let Ok(file) = OpenOptions::new().create(true).truncate(false).write(true).open(&at) else {
                return drop(fs::create_dir_all(root.join(format!("{}", step % 3))));
            };
            match op {
                9 => drop(file.set_len(step * 7_777_777 % 30_000_000)),
                10 => drop(file.write_all_at(&noise(50_000, step), step * 999_983 % 20_000_000)),
                _ => drop(file.write_all_at(&noise(9_000_000, step), 0)),
            }
        }
    }
}

#[test]
fn rounds_during_writes_do_not_fail_and_a_quiet_one_makes_equal() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    let root = pair.from();
    bash(&root, "mkdir 0 1 2");
    let stop = AtomicBool::new(false);
    let (mut rounds, mut steps) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut step = 0;
            while !stop.load(Ordering::Relaxed) {
                disturb(&root, step);
                step += 1;
            }
            step
        });
        let begin = Instant::now();
        let mut failed = None;
        while begin.elapsed() < Duration::from_secs(8) && failed.is_none() {
            match pair.try_round() {
                Ok(_) => rounds += 1,
                Err(error) => failed = Some(error),
            }
        }
        stop.store(true, Ordering::Relaxed);
        steps = writer.join().unwrap();
        assert!(failed.is_none(), "after {rounds} rounds: {failed:?}");
    });
    println!("{rounds} rounds during {steps} disturbances");
    assert!(rounds > 5 && steps > 100, "{rounds} rounds, {steps} steps");
    pair.round();
    pair.assert_equal("after the quiet round");
}

/// A file that is rewritten, with the same size, as soon as the round has read it, within the same tick of the clock.
/// On a ramfs, since kernels from 6.13 on give ext4 and others times that are finer than a tick.
#[test]
fn rewrites_within_a_tick_are_found() {
    if !can_run() {
        return;
    }
    let dir = scratch();
    bash(dir.path(), "mount -t ramfs none .");
    let tested = std::panic::catch_unwind(|| {
        let stamp = |path: &std::path::Path| {
            let m = path.metadata().unwrap();
            (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())
        };
        let mut moved_no_time = 0;
        for n in 0..60u8 {
            let here = tempfile::tempdir_in(dir.path()).unwrap();
            let mut pair = Pair::in_dir(here, |_| {});
            let path = pair.from().join("f");
            fs::write(&path, [n; 100]).unwrap();
            pair.round();
            let before = stamp(&path);
            OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[n + 1; 100], 0).unwrap();
            moved_no_time += u32::from(stamp(&path) == before);
            pair.round();
            assert_eq!(fs::read(pair.to().join("f")).unwrap(), [n + 1; 100]);
        }
        moved_no_time
    });
    bash("/".as_ref(), &format!("umount {}", dir.path().display()));
    let moved_no_time = tested.unwrap();
    println!("{moved_no_time} of 60 rewrites moved no time");
    assert!(moved_no_time > 0, "the case did not occur");
}

/// The rule itself, whatever this kernel's clock: a file is read again in a round soon after, and no more once settled.
#[test]
fn young_files_are_read_again_until_they_settle() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    fs::write(pair.from().join("f"), "x").unwrap();
    assert_eq!(pair.round().0.files_read, 1);
    assert_eq!(pair.round().0.files_read, 1, "young when it was read");
    settle();
    assert_eq!(pair.round().0.files_read, 1, "young when it was read last");
    assert_eq!(pair.round().0.files_read, 0, "settled when it was read last");
    bash(&pair.from(), "touch -d 2000-01-01 f");
    assert_eq!(pair.round().0.files_read, 1, "its time of change is young");
    bash(&pair.from(), "touch -d 2100-01-01 f");
    settle();
    pair.round();
    assert_eq!(pair.round().0.files_read, 0, "a time in the future was set by hand");
    fs::write(pair.from().join("f"), "y").unwrap();
    bash(&pair.from(), "touch -d 2100-01-01 f");
    assert_eq!(pair.round().0.files_sent, 1, "the time of change shows the write");
}

#[test]
fn files_written_through_mappings_are_found() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    let path = pair.from().join("mapped");
    File::create(&path).unwrap().write_all(&noise(10_000, 1)).unwrap();
    fs::write(pair.from().join("other"), "x").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut map = Mapped::new(&file);
    map.write(5, 1);
    settle();
    pair.round();
    let times = |m: fs::Metadata| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    let before = times(file.metadata().unwrap());
    map.write(5, 2);
    map.write(6, 3);
    assert_eq!(times(file.metadata().unwrap()), before, "the page is writable: no fault, no time");
    let (stats, _) = pair.round();
    assert_eq!(stats.files_read, 0, "times alone do not show it");
    let m = file.metadata().unwrap();
    pair.also.insert((m.dev(), m.ino()));
    let (stats, _) = pair.round();
    assert_eq!((stats.files_read, stats.files_sent), (1, 1));
    assert!(stats.bytes_sent < 5000, "one page, not {} bytes", stats.bytes_sent);
    pair.assert_equal("mapped");
    // nor does what is written between a round and the end of the mapping
    map.write(7, 4);
    drop((map, file));
    pair.also.clear();
    assert_eq!(pair.round().0.files_sent, 1);
    pair.assert_equal("mapped until just now");
    assert_eq!(pair.round().0.files_read, 0);
}

#[test]
fn a_round_that_emit_ends_leaves_no_doubt() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    bash(&pair.from(), "for i in $(seq 20); do head -c 100000 /dev/urandom >f$i; done");
    let mut left = 15;
    let destination = &mut pair.destination;
    let ended = pair.source.round(&pair.also, &mut |op| {
        left -= 1;
        if left == 0 {
            return Err("cancelled".to_owned());
        }
        destination.apply(op).map_err(|error| error.to_string())
    });
    assert_eq!(ended.unwrap_err().to_string(), "the round was ended: cancelled");
    let again = pair.try_round().unwrap_err();
    assert!(again.to_string().starts_with("an earlier error"), "{again}");
    // A new source begins from what the destination says it holds.
    let destination = godwit_transfer::tree::TreeDestination::open(&pair.to()).unwrap();
    let base = destination.index().unwrap();
    assert!(base.entries().count() > 3);
    pair.destination = destination;
    pair.source = godwit_transfer::tree::TreeSource::new(&pair.from(), base, Default::default()).unwrap();
    pair.round();
    pair.assert_equal("begun again");
}
