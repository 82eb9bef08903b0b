//! The order of things when nothing fails.

use crate::fake::STEP;
use crate::stage::{Ended, Play, play};
use godwit_migration::downtime::Downtime;
use godwit_migration::journal::JournalState;
use godwit_migration::plan::{Limits, OnTimeout};
use godwit_migration::{Disposition, FailureKind, Role};
use std::time::Duration;

fn both(names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|name| [format!("{name} begin"), format!("{name} end")]).collect()
}

/// Where a call stands; the first one of that name.
fn at(ended: &Ended, call: &str) -> usize {
    ended
        .calls()
        .iter()
        .position(|made| *made == call)
        .unwrap_or_else(|| panic!("no `{call}` in {:?}", ended.calls()))
}

#[test]
fn both_sides_go_through_their_phases_in_order() {
    let ended = play(Play::pre_dump());
    ended.assert_moved();
    let source = ["negotiate", "prepare", "pre-copy", "freeze", "stop-and-copy", "restore", "commit"];
    assert_eq!(ended.phases(Role::Source), both(&source));
    let destination = ["negotiate", "prepare", "pre-copy", "restore", "commit"];
    assert_eq!(ended.phases(Role::Destination), both(&destination));
}

#[test]
fn calls_come_in_the_one_order_that_is_safe() {
    let ended = play(Play::pre_dump());
    ended.assert_moved();
    let order = [
        "destination.prepare",
        "criu.pre_dump",
        "source.lock_network",
        "source.freeze",
        "criu.dump",
        "destination.restore",
        "source.take_frames",
        "source.disconnect",
        "destination.go",
        "source.discard",
    ];
    let places: Vec<usize> = order.iter().map(|call| at(&ended, call)).collect();
    assert!(places.is_sorted(), "{:?}", ended.calls());
    let calls = ended.calls();
    let verified = calls.iter().rposition(|call| *call == "source.verify_frozen").unwrap();
    assert!(at(&ended, "destination.restore") < verified && verified < at(&ended, "source.disconnect"));
    let after_go = &calls[at(&ended, "destination.go")..];
    for undoing in ["source.thaw", "source.unlock_network", "source.reconnect", "destination.abandon"] {
        assert!(!after_go.contains(&undoing), "`{undoing}` after go: {calls:?}");
    }
}

#[test]
fn every_way_of_moving_memory_moves_all_of_it() {
    for (name, what, rounds) in [
        ("pre-dump", Play::pre_dump(), 2),
        ("checkpoint", Play::checkpoint(), 1),
        ("stop-and-copy", Play::stop_and_copy(), 1),
        ("pages over one connection", Play::pages(1), 2),
        ("pages over three connections", Play::pages(3), 2),
    ] {
        let ended = play(what);
        ended.assert_moved();
        let summary = ended.summary();
        assert_eq!(summary.rounds.len(), rounds + 1, "{name}: {:?}", summary.rounds);
        assert!(
            summary.rounds[..rounds].iter().all(|round| !round.last) && summary.rounds[rounds].last,
            "{name}"
        );
        assert_eq!(summary.disposition, Disposition::RunningAtDestination, "{name}");
        assert_eq!(summary.pid, crate::fake::PID, "{name}");
        assert!(summary.leftovers.is_empty(), "{name}: {:?}", summary.leftovers);
    }
}

#[test]
fn the_checkpoint_tracker_lets_the_container_run_on_between_its_dumps() {
    let ended = play(Play::checkpoint());
    ended.assert_moved();
    let calls = ended.calls();
    let (first, thaw) = (at(&ended, "criu.dump"), at(&ended, "source.thaw"));
    let second = calls.iter().rposition(|call| *call == "criu.dump").unwrap();
    assert!(first < thaw && thaw < second, "{calls:?}");
    let summary = ended.summary();
    assert!(!summary.rounds[0].frozen.is_zero(), "the container stood still, and it is not said");
}

#[test]
fn rounds_are_made_as_long_as_the_verdict_wants_them() {
    for max_rounds in [1, 3, 5] {
        let mut scene = Play::pre_dump();
        scene.limits.max_rounds = max_rounds;
        let ended = play(scene);
        ended.assert_moved();
        assert_eq!(ended.summary().rounds.len() as u32, max_rounds + 1);
        let dumps = ended.calls().iter().filter(|call| **call == "criu.pre_dump").count();
        assert_eq!(dumps as u32, max_rounds);
    }
    let mut generous = Play::pre_dump();
    generous.limits = Limits { max_downtime: Duration::from_secs(60), ..Limits::default() };
    let ended = play(generous);
    ended.assert_moved();
    assert_eq!(ended.summary().rounds.len(), 2, "the first round is within the limit already");
}

#[test]
fn a_limit_that_cannot_be_met_leaves_the_container_where_it_is() {
    let mut scene = Play::pre_dump();
    scene.limits.on_timeout = OnTimeout::Cancel;
    let ended = play(scene);
    ended.assert_sound("not converged");
    let failure = ended.failure();
    assert_eq!(failure.kind, FailureKind::NotConverged);
    assert_eq!(failure.message, "`fake:web` did not converge: 2 pre-copy rounds were made");
    assert!(failure.hints[0].contains("--max-downtime"));
    assert!(!ended.calls().contains(&"source.freeze"), "never frozen");
    assert_eq!(ended.destination_journal.as_ref().unwrap().1, JournalState::RolledBack);
}

#[test]
fn the_parts_of_the_downtime_add_up() {
    let ended = play(Play::pre_dump());
    let summary = ended.summary();
    assert_eq!(summary.downtime.total(), summary.downtime_total);
    assert!(summary.downtime_total <= summary.duration);
    assert_eq!(summary.rounds.last().unwrap().frozen, summary.downtime_total);
    let Downtime { freeze, dump, restore, resume, .. } = summary.downtime;
    for (name, part) in [("freeze", freeze), ("dump", dump), ("restore", restore), ("resume", resume)] {
        assert!(part >= STEP, "{name}: {part:?}");
    }
}

#[test]
fn what_the_destination_has_already_is_not_sent_again() {
    let ended = play(Play::stop_and_copy());
    ended.assert_moved();
    let first = ended.summary().rounds[0].wire_bytes;
    assert!(first > 70_000, "all files are sent once: {first}");
    let last = &ended.summary().rounds[1];
    let files = last.wire_bytes.saturating_sub(last.memory_bytes);
    assert!(files < 40_000, "under the freeze only what changed: {files}");
}
