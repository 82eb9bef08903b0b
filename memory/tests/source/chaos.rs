//! Everything at once: rounds go on while a storm rages; then not one byte may differ.

use crate::child::Followed;
use crate::mirror::Mirror;
use godwit_memory::source::{Method, Rules, TreeMemory};
use std::time::{Duration, Instant};

/// What storms did, over some seeds.
#[derive(Debug, Default)]
pub struct Sum {
    runs: u64,
    freezes: u64,
    pages: u64,
    processes: usize,
    most: usize,
    attached: usize,
    longest: Duration,
    vanished: u64,
}

pub fn storms(method: Method, threads: u64, children: u64, budget: Duration, least: u64) -> Sum {
    let mut sum = Sum::default();
    let start = Instant::now();
    let directory = tempfile::tempdir_in(crate::directory()).unwrap();
    for seed in 0.. {
        if seed >= least && start.elapsed() > budget {
            break;
        }
        sum.runs += 1;
        let mut storm =
            Followed::start(&format!("storm {seed} {threads} {children} {}", directory.path().display()));
        storm.answer();
        let rules = Rules { direct_age: Duration::from_millis(300), ..Rules::default() };
        let mut memory = TreeMemory::with_rules(method, rules).unwrap();
        let mut mirror = Mirror::default();
        // Twice: a freeze that ends without a migration costs nothing but time.
        for freeze in 0..2 {
            for round in 0..5 {
                let pids = storm.find_kin();
                let stats = mirror.round(&mut memory, &pids);
                sum.attached += stats.attached;
                sum.longest = sum.longest.max(stats.longest_stop);
                sum.vanished += stats.vanished;
                std::thread::sleep(Duration::from_millis((seed * 7 + round * 13) % 40));
            }
            let pids = storm.freeze();
            let first = memory.frozen(&pids, &mut mirror).unwrap();
            let stats = memory.frozen(&pids, &mut mirror).unwrap();
            assert_eq!((&first.unreadable, &stats.unreadable), (&vec![], &vec![]));
            let verdict = mirror.compare(&mut memory, &pids);
            verdict.assert_clean(&format!("seed {seed}, freeze {freeze}, {first:?}, {stats:?}"));
            sum.freezes += 1;
            sum.pages += verdict.good;
            sum.processes += pids.len();
            sum.most = sum.most.max(pids.len());
            storm.thaw();
        }
    }
    eprintln!("{threads} threads, {children} children: {sum:?}");
    sum
}

pub fn budget() -> Duration {
    let seconds = std::env::var("GODWIT_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

#[test]
fn a_storm_in_one_process_is_followed_exactly() {
    if crate::tracks() {
        storms(Method::Uffd, 1, 0, budget(), 3);
    }
}

#[test]
fn a_storm_of_threads_is_followed_exactly() {
    if crate::tracks() {
        storms(Method::Uffd, 3, 0, budget(), 2);
    }
}

#[test]
fn a_storm_of_forking_processes_is_followed_exactly() {
    if crate::tracks() {
        let sum = storms(Method::Uffd, 2, 6, budget(), 3);
        assert!(sum.processes as u64 > sum.freezes, "nobody forked: {sum:?}");
    }
}

#[test]
fn a_storm_is_read_exactly_without_tracking() {
    if crate::tracks() {
        storms(Method::Hash, 2, 4, budget() / 3, 1);
    }
}
