//! What reading does to those who are read.

use crate::child::{ANONYMOUS, Followed, READ, WRITE};
use crate::mirror::Mirror;
use godwit_memory::source::{Method, Rules, TreeMemory};
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;

/// Proportional set size of some processes, in KiB: pages that two have count once.
fn memory_of(pids: &BTreeSet<i32>) -> u64 {
    pids.iter()
        .map(|pid| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

/// Five processes that share 64 MiB: 64 MiB before, during and after.
#[test]
fn pages_that_forked_tasks_share_stay_shared() {
    if !crate::tracks() {
        return;
    }
    for (keep, method) in [(true, Method::Uffd), (true, Method::Hash), (false, Method::Uffd)] {
        let mut shell = Followed::shell();
        let place = shell.map_alone(64 * MIB, READ | WRITE, ANONYMOUS, -1);
        shell.fill(place, 64 * MIB, 1);
        for child in 0..4 {
            shell.fork(place, 16384, child, true);
        }
        let pids = shell.find_kin();
        assert_eq!(pids.len(), 5);
        let before = memory_of(&pids);
        let rules = Rules { keep_shared: keep, ..Rules::default() };
        let mut memory = TreeMemory::with_rules(method, rules).unwrap();
        let mut mirror = Mirror::default();
        let stats = mirror.round(&mut memory, &pids);
        mirror.round(&mut memory, &pids);
        let after = memory_of(&pids);
        eprintln!("{method:?}, careful {keep}: {before} KiB before, {after} KiB after: {stats:?}");
        match keep {
            true => assert!(after < before + 2048, "{before} KiB before, {after} KiB after"),
            false => assert!(after > before + 3 * 65536, "{before} KiB before, {after} KiB after"),
        }
        let pids = shell.freeze();
        memory.frozen(&pids, &mut mirror).unwrap();
        mirror.compare(&mut memory, &pids).assert_clean("shared pages");
    }
}

/// A task whose relatives are not followed: the pagemap tells that its pages are shared.
#[test]
fn pages_shared_with_a_stranger_stay_shared() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(64 * MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, 64 * MIB, 1);
    shell.fork(place, 4096, 2, true);
    let both = shell.find_kin();
    let before = memory_of(&both);
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    let mut mirror = Mirror::default();
    let one = BTreeSet::from([shell.pid()]);
    mirror.round(&mut memory, &one);
    let after = memory_of(&both);
    assert!(after < before + 2048, "{before} KiB before, {after} KiB after");
}

/// All three methods hand over the same memory.
#[test]
fn every_page_read_each_round_is_a_method_too() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(4 * MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, 4 * MIB, 1);
    shell.fork(place, 8192, 5, true);
    let mut memory = TreeMemory::new(Method::Hash).unwrap();
    let mut mirror = Mirror::default();
    let pids = shell.find_kin();
    let stats = mirror.round(&mut memory, &pids);
    assert_eq!((stats.tracked, stats.untracked.len(), stats.attached), (0, 2, 0), "{stats:?}");
    shell.fill(place, 65536, 7);
    let pids = shell.freeze();
    memory.frozen(&pids, &mut mirror).unwrap();
    mirror.compare(&mut memory, &pids).assert_clean("hash");
}

/// A task that appears under the freeze is read without being touched.
#[test]
fn a_task_that_is_new_under_the_freeze_is_read_in_full() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, MIB, 1);
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    let mut mirror = Mirror::default();
    let pids = shell.find_kin();
    mirror.round(&mut memory, &pids);
    shell.fork(place, 8192, 5, true);
    // A mapping that is new under the freeze, too.
    let new = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(new, MIB, 8);
    let pids = shell.freeze();
    let lines =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().matches(" uw").count();
    let before: Vec<_> = pids.iter().map(|&pid| lines(pid)).collect();
    let stats = memory.frozen(&pids, &mut mirror).unwrap();
    assert_eq!((stats.tracked, stats.untracked.len(), stats.attached), (1, 1, 0), "{stats:?}");
    mirror.compare(&mut memory, &pids).assert_clean("first look");
    let again = memory.frozen(&pids, &mut mirror).unwrap();
    mirror.compare(&mut memory, &pids).assert_clean("second look");
    assert!(again.pages <= stats.pages, "{again:?}");
    assert_eq!(before, pids.iter().map(|&pid| lines(pid)).collect::<Vec<_>>(), "something was registered");
    // The freeze ends without a migration: all goes on.
    shell.thaw();
    shell.fill(new, 8192, 9);
    let stats = mirror.round(&mut memory, &pids);
    assert_eq!((stats.tracked, stats.attached), (2, 1), "{stats:?}");
    shell.fill(new + 8192, 8192, 9);
    let pids = shell.freeze();
    memory.frozen(&pids, &mut mirror).unwrap();
    mirror.compare(&mut memory, &pids).assert_clean("second freeze");
}

/// An error of the receiver stops the round.
#[test]
fn a_receiver_can_refuse() {
    if !crate::tracks() {
        return;
    }
    struct Full;
    impl godwit_memory::source::PageSink for Full {
        fn pages(
            &mut self,
            _: godwit_memory::ImageId,
            _: u64,
            _: &[u8],
        ) -> Result<(), godwit_memory::source::SinkError> {
            Err(godwit_memory::source::SinkError("the store is full".into()))
        }
    }
    let mut shell = Followed::shell();
    let pids = shell.find_kin();
    let error = TreeMemory::new(Method::Uffd).unwrap().round(&pids, &mut Full).unwrap_err();
    assert!(error.to_string().contains("the store is full"), "{error}");
}
