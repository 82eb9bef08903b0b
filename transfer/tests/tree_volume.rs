//! Bytes, time and memory.

#![allow(clippy::unwrap_used)]

mod trees;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use godwit_transfer::tree::{Options, TreeIndex, TreeSource};
use trees::{Pair, bash, can_run, noise, settle};

#[test]
fn few_changed_pages_are_few_bytes() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    let path = pair.from().join("db");
    fs::write(&path, noise(64 << 20, 1)).unwrap();
    let (first, _) = pair.round();
    assert!(first.bytes_sent >= 64 << 20);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for page in [3, 7_000, 16_000] {
        file.write_all_at(&noise(4096, page), page * 4096).unwrap();
    }
    let (pages, _) = pair.round();
    assert!(pages.bytes_sent < 100 << 10, "{} bytes for three pages", pages.bytes_sent);
    pair.assert_equal("three pages");

    // An insertion within the first segment shifts its rest, and what falls off its end.
    let mut bytes = noise(8 << 20, 9);
    fs::write(&path, &bytes).unwrap();
    pair.round();
    bytes.splice(1_000_000..1_000_000, *b"some inserted words");
    fs::write(&path, &bytes).unwrap();
    let (shift, _) = pair.round();
    assert!(shift.bytes_sent < 20 << 10, "{} bytes for an insertion", shift.bytes_sent);
    pair.assert_equal("insertion");
    println!(
        "64 MiB: first {:?}, three pages: {} bytes in {:?}; an insertion: {} bytes in {:?}",
        first.total, pages.bytes_sent, pages.total, shift.bytes_sent, shift.total
    );
}

/// What a round under the freeze costs: ten thousand files, one of them changed.
#[test]
fn a_quiet_round_of_ten_thousand_files_is_short() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    bash(
        &pair.from(),
        "for d in $(seq 100); do mkdir d$d; for f in $(seq 100); do echo $d $f >d$d/f$f; done; done; chmod 700 d1",
    );
    let begin = Instant::now();
    let (first, _) = pair.round();
    println!("10,000 files, first round {:?} ({} ops)", begin.elapsed(), first.ops);
    settle();
    pair.round();
    let mut times = Vec::new();
    for n in 0..20 {
        fs::write(pair.from().join("d50/f50"), format!("changed {n}")).unwrap();
        let (stats, _) = pair.round();
        assert_eq!(stats.files_read, 1);
        assert!(stats.ops <= 5, "{stats:?}");
        times.push((stats.total, stats.walk));
    }
    times.sort();
    println!(
        "10,000 files, one changed: median {:?} of which walk {:?}; longest {:?}",
        times[10].0, times[10].1, times[19].0
    );
    if !cfg!(debug_assertions) {
        assert!(times[10].0.as_millis() < 80, "{:?}", times[10]);
    }
    pair.assert_equal("ten thousand files");
}

/// Resident memory stays within a few segments, whatever the size of the file.
#[test]
fn large_files_stream() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    let path = pair.from().join("large");
    let file = fs::File::create(&path).unwrap();
    let block = noise(8 << 20, 1);
    for n in 0..128u64 {
        file.write_all_at(&block[n as usize..], n * (8 << 20)).unwrap();
    }
    let mut source = TreeSource::new(&pair.from(), TreeIndex::default(), Options::default()).unwrap();
    reset_peak();
    let before = peak_kib();
    let begin = Instant::now();
    let destination = &mut pair.destination;
    let stats = source.round(&pair.also, &mut |op| destination.apply(op)).unwrap();
    let (took, grown) = (begin.elapsed(), peak_kib().saturating_sub(before));
    // The index of 1 GiB is 3 MiB of that.
    println!("1 GiB: {took:?} for both sides, memory grew by {grown} KiB; reread unchanged:");
    assert!(grown < 100 << 10, "memory grew by {grown} KiB");
    assert!(stats.bytes_sent > 1 << 30 >> 1);
    let again = source.round(&pair.also, &mut |op| destination.apply(op)).unwrap();
    println!("  {:?} for {} bytes", again.total, again.bytes_read);
    assert_eq!(again.bytes_sent, 0);
    assert_eq!(bash(pair.dir.path(), "cmp source/large destination/large"), "");
    // All new: the search for what moved finds nothing.
    for n in 0..8u64 {
        file.write_all_at(&noise(8 << 20, n + 2), n * (8 << 20)).unwrap();
    }
    let again = source.round(&pair.also, &mut |_| Ok::<(), String>(())).unwrap();
    println!("  64 MiB of other contents: {:?}, {} sent", again.total, again.bytes_sent);
}

fn reset_peak() {
    // proc_pid_clear_refs(5): 5 resets the peak resident set size.
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
