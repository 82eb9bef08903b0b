//! Programs that do everything to memory of every kind, moved in the midst of it: afterwards every page of every process
//! is right. What a seed does is decided by it; when, by the machine.

use crate::bed::{Bed, SRC, quiet_bed};
use crate::godwit::Background;
use crate::workload::{Workload, push};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds, each a tree of processes: every one of [`FLAGS`] has its turn four times. `GODWIT_CHAOS_SEEDS` names more.
const SEEDS: u64 = 56;
/// Seeds in one container.
const TOGETHER: u64 = 2;
/// Containers that are moved at the same time.
const AT_ONCE: usize = 3;

/// What godwit is told, in turn. The first is the most likely one.
const FLAGS: [&[&str]; 7] = [
    &[],
    &["--tracker", "hash"],
    &["--restore", "eager"],
    &["--connections", "1", "--compress", "none"],
    &["--max-downtime", "1ms", "--max-rounds", "12", "--connections", "5"],
    &["--highest-rung", "fake-parent", "--compress", "zstd:1"],
    &["--highest-rung", "plain", "--restore", "local-lazy"],
];

/// How many processes and threads there are, how much memory, and how fast they go.
const SHAPES: [&str; 4] = [
    "--processes 3 --threads 2 --size 4 --rate 4000",
    "--processes 1 --threads 3 --size 8 --rate 10000",
    "--processes 5 --threads 1 --size 2 --rate 2000",
    "--processes 2 --threads 3 --size 6 --rate 20000",
];

/// How often one seed is moved when only that is asked for.
const AGAIN: u32 = 30;

/// Moves the seeds from `first` on, there and now and then back.
fn run(bed: &Bed, first: u64) {
    let number = first / TOGETHER;
    let flags = FLAGS[number as usize % FLAGS.len()];
    let seeds: Vec<String> = (first..first + TOGETHER)
        .map(|seed| format!("chaos --seed {seed} {}", SHAPES[seed as usize % SHAPES.len()]))
        .collect();
    let what = format!("{seeds:?} moved with {flags:?}");
    let mut workload = Workload::start(bed, &format!("chaos{number}"), "", &seeds);
    let moves = if number % 4 == 3 { 2 } else { 1 };
    for _ in 0..moves {
        let summary = workload.move_on(&[], flags);
        let pages = workload.assert_clean(&format!("{what}: {summary}"));
        assert!(pages > 1000, "{what}: only {pages} pages were compared");
    }
}

#[test]
fn whatever_programs_do_with_memory_every_page_is_right_afterwards() {
    let Some(bed) = quiet_bed() else { return };
    let bed = &*bed;
    push(bed);
    // one that went wrong, again and again
    if let Some(only) = std::env::var("GODWIT_CHAOS_ONLY").ok().and_then(|text| text.parse().ok()) {
        return (0..AGAIN).for_each(|_| run(bed, only));
    }
    let next = AtomicU64::new(0);
    let seeds = std::env::var("GODWIT_CHAOS_SEEDS").ok().map_or(SEEDS, |text| text.parse().unwrap());
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let first = next.fetch_add(TOGETHER, Ordering::Relaxed);
                if first >= seeds {
                    return failed;
                }
                // the message says which it was; the others are to be seen, too
                if catch_unwind(AssertUnwindSafe(|| run(bed, first))).is_err() {
                    failed.push(first);
                }
            }
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(failed, [0; 0], "seeds from these on went wrong, {TOGETHER} each");
}

/// Proportional set size of all of them on a host, in KiB.
fn pss(bed: &Bed, host: &str) -> u64 {
    let script = "cat $(for p in $(pgrep -x godwit-workload); do echo /proc/$p/smaps_rollup; done) |
        awk '/^Pss:/ { sum += $2 } END { print sum }'";
    bed.sh(host, script).parse().unwrap()
}

#[test]
fn what_children_share_with_their_parent_costs_no_more_than_before_or_it_is_said() {
    let Some(bed) = quiet_bed() else { return };
    push(&bed);
    let cases: [(u32, &[&str], bool); 3] =
        // each child's pages count: up to 8192 of them stay shared
        [(5, &[], true), (64, &[], false), (64, &["--restore", "eager"], true)];
    for (size, flags, keeps) in cases {
        let tree = format!("tree --size {size} --own 1 --children 4 --rate 20");
        let mut workload = Workload::start(&bed, "tree", "", &[tree]);
        std::thread::sleep(std::time::Duration::from_secs(1));
        let before = pss(&bed, SRC);
        // long rounds
        let flags = [flags, &["--bandwidth", "30MiB/s", "--compress", "none"]].concat();
        let words = workload.migration(&flags);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut migration = Background::start(&bed, SRC, &[&["godwit"], &words[..]].concat());
        migration.wait_for_phase("pre-copy");
        // the first round is over; what is read a second time is read
        migration.wait_for("a round", |line| line.contains(r#""message_type":"round""#));
        let during = pss(&bed, SRC);
        let said = migration.finish();
        let summary = said.summary();
        workload.moved();
        let there = pss(&bed, workload.host);
        workload.assert_clean(&summary.to_string());
        let what = format!(
            "{size} MiB {flags:?}: {before} KiB, during the rounds {during}, there {there}: {summary}"
        );
        assert!(during < before + before / 20 + 2048, "the source grew: {what}");
        let (until_frozen, _) = said.out.split_once(r#""phase":"freeze""#).unwrap();
        let warns = until_frozen.contains("copy-on-write");
        assert_eq!(warns, !keeps, "{what}\n{until_frozen}");
        assert_eq!(there < before + before / 10, keeps, "{what}");
    }
}
