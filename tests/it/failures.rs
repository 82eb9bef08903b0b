//! Every step fails once, the link breaks everywhere, Ctrl-C comes at every moment: what must be true stays true
//! ([`Ended::assert_sound`]), the exit code answers where the container is, and the reason travels home.

use crate::link::Cut;
use crate::stage::{Ended, Play, play};
use godwit_migration::journal::{Event as Wrote, JournalState};
use godwit_migration::{Disposition, FailureKind, Phase, Role};
use godwit_restore::Outcome;
use godwit_transfer::Refusal;
use std::time::Duration;

/// Ends when the next step must be gone with a failure here, on either side.
const QUICK: Duration = Duration::from_secs(2);

/// Every way of moving memory.
const WAYS: [fn() -> Play; 5] = [
    Play::pre_dump,
    Play::checkpoint,
    Play::stop_and_copy,
    Play::pages_beside_all_else,
    Play::pages_by_themselves,
];

fn all_text(ended: &Ended) -> String {
    let failure = ended.failure();
    format!("{} {}", failure, failure.hints.join(" "))
}

#[test]
fn a_step_that_fails_at_the_source_is_rolled_back() {
    for scene in WAYS {
        for (call, nth) in [
            ("criu.pageless", 1),
            ("criu.warm_up", 1),
            ("memory.round", 1),
            ("memory.round", 2),
            ("memory.frozen", 1),
            ("memory.frozen", 2),
            ("criu.pre_dump", 1),
            ("criu.pre_dump", 2),
            ("criu.dump", 1),
            ("criu.dump", 2),
            ("source.mapped_files", 1),
            ("source.mapped_files", 2),
            ("source.complete_images", 1),
            ("source.complete_images", 2),
            ("source.lock_network", 1),
            ("source.lock_network", 2),
            ("source.freeze", 1),
            ("source.freeze", 2),
            ("source.verify_frozen", 1),
            ("source.verify_frozen", 2),
            ("source.disconnect", 1),
        ] {
            let ended = play(scene().failing(call, nth));
            ended.assert_sound(&format!("{call} fails the {nth}. time"));
            if ended.calls().iter().filter(|made| **made == call).count() < nth {
                // this strategy does not come here
                ended.assert_moved();
                continue;
            }
            let failure = ended.failure();
            assert_eq!(failure.kind, FailureKind::Failed, "{call} {nth}");
            assert_eq!(failure.kind.exit_code(), 1);
            assert!(all_text(&ended).contains("was told to fail by this test"), "{call}: {failure:?}");
            assert!(
                matches!(ended.destination, Some(Ok(Outcome::Undone { .. }))),
                "{call}: {:?}",
                ended.destination
            );
            assert!(ended.took < QUICK, "{call}: {:?}", ended.took);
        }
    }
}

#[test]
fn a_step_that_fails_at_the_destination_is_rolled_back_and_its_reason_travels_home() {
    for call in ["destination.prepare", "destination.restore"] {
        let ended = play(Play::pre_dump().failing(call, 1));
        ended.assert_sound(call);
        let failure = ended.failure();
        assert_eq!(failure.kind, FailureKind::Failed, "{call}");
        assert!(failure.message.starts_with("there: could not re"), "{call}: {failure:?}");
        let causes = failure.causes.join("\n");
        assert!(causes.contains(&format!("`{call}` was told to fail by this test")), "{call}: {failure:?}");
        assert!(!causes.contains("could not be told"), "{call}: {failure:?}");
        assert!(ended.took < QUICK, "{call}: {:?}", ended.took);
        assert_eq!(causes.contains("thawed here after"), call == "destination.restore", "{failure:?}");
    }
}

#[test]
fn a_destination_that_says_no_is_not_asked_to_undo() {
    let cases = [
        Play::pre_dump().failing("destination.usable", 1),
        Play::pre_dump().failing("destination.examine", 1),
        Play {
            unfit: Some(Refusal::new("criu is not on this host").hint("install criu")),
            ..Play::pre_dump()
        },
    ];
    let reasons = [
        "the container runtime `fake` cannot be used there",
        "`destination.examine` was told to fail by this test",
        "criu is not on this host",
    ];
    for (scene, reason) in cases.into_iter().zip(reasons) {
        let ended = play(scene);
        ended.assert_sound(reason);
        let failure = ended.failure();
        assert_eq!(failure.kind, FailureKind::Refused, "{failure:?}");
        assert_eq!(failure.message, "there cannot receive `fake:web`");
        assert_eq!(failure.causes.len(), 1, "{failure:?}");
        assert!(failure.causes[0].contains(reason), "{failure:?}");
        assert!(matches!(ended.destination, Some(Ok(Outcome::Refused { .. }))), "{:?}", ended.destination);
        assert!(ended.destination_journal.is_none(), "a refusal leaves no journal");
        assert!(ended.took < QUICK, "{:?}", ended.took);
    }
}

#[test]
fn of_two_migrations_of_one_name_one_wins() {
    let ended = play(Play { locked_there: true, ..Play::pre_dump() });
    ended.assert_sound("locked there");
    let failure = ended.failure();
    assert_eq!(failure.kind.exit_code(), 11);
    assert_eq!(failure.message, "there: another migration of `fake:web` is under way there");
    assert!(ended.destination_journal.is_none() && ended.took < QUICK, "{:?}", ended.took);
}

#[test]
fn other_content_in_the_way_is_refused_and_left_alone() {
    let ended = play(Play { in_the_way: Some("precious"), ..Play::pre_dump() });
    ended.assert_sound("foreign content");
    let failure = ended.failure();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.causes[0].contains("exists there with other content"), "{failure:?}");
    assert_eq!(std::fs::read(ended.volumes.1.join("theirs")).unwrap(), b"precious");
    assert!(!ended.calls().contains(&"destination.prepare"));
}

#[test]
fn a_container_that_cannot_be_put_back_is_said_to_be_in_doubt() {
    for call in ["source.unlock_network", "source.thaw", "source.reconnect"] {
        let ended = play(Play::stop_and_copy().failing("destination.restore", 1).failing(call, 1));
        let failure = ended.failure();
        assert_eq!(failure.kind, FailureKind::InDoubt, "{call}: {failure:?}");
        assert_eq!(failure.disposition, Disposition::InDoubt);
        assert!(all_text(&ended).contains("could not be put back"), "{call}: {failure:?}");
        assert_eq!(ended.source_journal.as_ref().unwrap().1, JournalState::Stuck, "{call}");
        assert!(!ended.witness.look().destination_runs);
    }
}

#[test]
fn what_fails_after_the_switchover_never_undoes_it() {
    let ended = play(Play::pre_dump().failing("source.discard", 1));
    assert_eq!(ended.summary().leftovers, ["`source.discard` was told to fail by this test"]);
    assert_eq!(ended.summary().disposition, Disposition::RunningAtDestination);
    let ended = play(Play::pre_dump().failing("destination.settle", 1));
    ended.summary();
    assert!(
        matches!(&ended.destination, Some(Ok(Outcome::Running { leftovers, .. })) if leftovers.len() == 1),
        "{:?}",
        ended.destination
    );
}

#[test]
fn a_destination_that_cannot_let_it_run_leaves_both_in_doubt_and_frozen() {
    let ended = play(Play::pre_dump().failing("destination.go", 1));
    ended.assert_sound("go fails");
    let failure = ended.failure();
    assert_eq!(failure.kind, FailureKind::InDoubt);
    assert!(
        failure.causes.join("\n").contains("`destination.go` was told to fail by this test"),
        "{failure:?}"
    );
    assert!(!failure.message.contains("lost contact"), "it answered: {failure:?}");
    let world = ended.witness.look();
    assert!(!world.source_runs && !world.destination_runs && world.held.is_some());
}

#[test]
fn leftovers_of_the_destination_are_told_at_the_source() {
    let ended = play(Play::pre_dump().failing("destination.restore", 1).failing("destination.abandon", 1));
    let failure = ended.failure();
    assert_eq!(failure.disposition, Disposition::RunningAtSource);
    assert!(failure.causes.iter().any(|cause| cause.starts_with("left over on there:")), "{failure:?}");
}

#[test]
fn ctrl_c_at_the_source_rolls_back_until_the_commit() {
    for phase in [
        Phase::Negotiate,
        Phase::Prepare,
        Phase::PreCopy,
        Phase::Freeze,
        Phase::StopAndCopy,
        Phase::Restore,
        Phase::Commit,
    ] {
        let ended = play(Play { interrupt: Some((Role::Source, phase)), ..Play::pre_dump() });
        assert_interrupted(&ended, &format!("Ctrl-C in {phase}"));
    }
    for call in [
        "criu.pre_dump",
        "criu.dump",
        "source.freeze",
        "destination.restore",
        "destination.prepare",
        "source.disconnect",
    ] {
        let ended = play(Play::pre_dump().interrupted_in(Role::Source, call));
        assert_interrupted(&ended, &format!("Ctrl-C in {call}"));
    }
}

fn assert_interrupted(ended: &Ended, context: &str) {
    ended.assert_sound(context);
    let failure = ended.failure();
    assert_eq!(failure.kind, FailureKind::Interrupted, "{context}: {failure:?}");
    assert_eq!(failure.kind.exit_code(), 130);
    assert_eq!(failure.message, "the migration of `fake:web` was interrupted", "{context}");
    assert!(!failure.causes.iter().any(|cause| cause.contains("there")), "{context}: {failure:?}");
    assert!(
        matches!(ended.destination, Some(Ok(Outcome::Undone { .. }))),
        "{context}: {:?}",
        ended.destination
    );
    assert!(ended.took < QUICK, "{context}: {:?}", ended.took);
}

#[test]
fn ctrl_c_after_the_commit_changes_nothing() {
    for role in [Role::Source, Role::Destination] {
        for call in ["destination.go", "source.discard", "destination.settle"] {
            play(Play::pre_dump().interrupted_in(role, call)).assert_moved();
        }
    }
}

#[test]
fn ctrl_c_at_the_destination_thaws_the_source() {
    for phase in [Phase::Negotiate, Phase::Prepare, Phase::PreCopy, Phase::Restore] {
        let ended = play(Play { interrupt: Some((Role::Destination, phase)), ..Play::pre_dump() });
        let context = format!("Ctrl-C there in {phase}");
        ended.assert_sound(&context);
        let failure = ended.failure();
        assert_eq!(failure.kind, FailureKind::Failed, "{context}: {failure:?}");
        assert!(all_text(&ended).contains("interrupted"), "{context}: {failure:?}");
        assert!(ended.took < QUICK, "{context}: {:?}", ended.took);
    }
    // once it holds the tree it has no say any more: the source may have given its word already
    for call in ["source.disconnect", "source.take_frames"] {
        play(Play::pre_dump().interrupted_in(Role::Destination, call)).assert_moved();
    }
}

#[test]
fn a_source_learns_at_once_that_the_destination_has_failed_while_it_sends() {
    // far more than fits between the two, so that the destination fails in the midst of it
    let ended = play(Play { bulk: 48 << 20, ..Play::stop_and_copy().losing_the_volume_there() });
    ended.assert_sound("fails while the source sends");
    let failure = ended.failure();
    assert!(failure.message.starts_with("there: could not receive"), "{failure:?}");
    let sent = *ended.marks.0.last().unwrap();
    assert!(sent < 16 << 20, "the source sent {sent} bytes to nobody");
    assert!(ended.took < QUICK, "{:?}", ended.took);
}

#[test]
fn ctrl_c_is_heard_while_the_link_is_slow() {
    for (bulk, bandwidth, context) in
        [(4 << 20, 128 << 10, "Ctrl-C on a slow link"), (24 << 20, 0, "Ctrl-C while the link is full")]
    {
        let ended = play(Play { bulk, bandwidth, interrupt_when_full: true, ..Play::stop_and_copy() });
        assert_interrupted(&ended, context);
    }
}

/// The messages of each side, in their order.
const SOURCE_SAYS: &[&str] =
    &["hello", "offer", "prepare", "round-begin", "round-end", "restore", "go", "done"];
const DESTINATION_SAYS: &[&str] =
    &["hello", "accept", "prepared", "round-ack", "ready", "restored", "running"];

#[test]
fn the_link_breaks_at_each_message() {
    for scene in WAYS {
        for message in SOURCE_SAYS {
            for cut in [Cut::Before(message), Cut::After(message)] {
                check_cut(scene().cut_source(cut), &format!("the source's link, {cut:?}"));
            }
        }
        for message in DESTINATION_SAYS {
            for cut in [Cut::Before(message), Cut::After(message)] {
                check_cut(scene().cut_destination(cut), &format!("the destination's link, {cut:?}"));
            }
        }
    }
}

fn check_cut(scene: Play, context: &str) {
    let ended = play(scene);
    ended.assert_sound(context);
    assert!(ended.took < QUICK, "{context}: {:?}", ended.took);
    if let Some(Err(failure)) = &ended.source {
        assert!(matches!(failure.kind.exit_code(), 1 | 20), "{context}: {failure:?}");
    }
}

#[test]
fn a_link_lost_around_the_commit_is_told_as_it_is() {
    // the word never left, or nobody knows: in doubt, and frozen here
    for cut in [Cut::Before("go"), Cut::After("go")] {
        let ended = play(Play::pre_dump().cut_source(cut));
        ended.assert_sound("go");
        assert_eq!(ended.failure().kind, FailureKind::InDoubt, "{cut:?}");
        assert!(ended.failure().message.contains("after switchover was granted"), "{cut:?}");
        assert_eq!(ended.witness.look().destination_runs, cut == Cut::After("go"), "{cut:?}");
    }
    // it runs there, although the source could not be told
    let ended = play(Play::pre_dump().cut_destination(Cut::Before("running")));
    ended.assert_sound("running");
    assert_eq!(ended.failure().kind, FailureKind::InDoubt);
    assert_eq!(ended.destination_journal.as_ref().unwrap().1, JournalState::Completed);
    // held there, and the source cannot know it: it runs here, the held tree stays for a person to look at
    let ended = play(Play::pre_dump().cut_destination(Cut::Before("restored")));
    ended.assert_sound("restored");
    assert_eq!(ended.failure().disposition, Disposition::RunningAtSource);
    assert_eq!(ended.source_journal.as_ref().unwrap().1, JournalState::Untold);
    assert_eq!(ended.destination_journal.as_ref().unwrap().1, JournalState::Waiting);
    // only the farewell is missing
    play(Play::pre_dump().cut_source(Cut::Before("done"))).assert_moved();
}

#[test]
fn the_link_breaks_at_every_place() {
    for scene in [Play::pre_dump, Play::pages_beside_all_else] {
        let whole = play(scene());
        whole.assert_moved();
        let (ours, theirs) = &whole.marks;
        for at in places(ours, 90) {
            check_cut(scene().cut_source(Cut::AfterBytes(at)), &format!("after {at} bytes of the source"));
        }
        for at in places(theirs, 60) {
            check_cut(
                scene().cut_destination(Cut::AfterBytes(at)),
                &format!("after {at} bytes of the destination"),
            );
        }
    }
}

#[test]
fn more_memory_than_there_is_room_for_leaves_the_container_where_it_is() {
    for scene in [Play::pages_beside_all_else, Play::pages_by_themselves] {
        for (call, nth) in [("memory.round", 1), ("memory.round", 2), ("memory.frozen", 1)] {
            let ended = play(scene().flooded_at(call, nth));
            ended.assert_sound(call);
            let text = all_text(&ended);
            assert!(text.contains("the destination has room for 16404 pages"), "{call} {nth}: {text}");
            assert_eq!(ended.failure().kind, FailureKind::Outgrown, "{call} {nth}");
            assert!(ended.took < QUICK, "{call}: {:?}", ended.took);
        }
    }
}

/// Each place where a side began to speak, one byte to both sides of it, and `between` places spread over all.
fn places(marks: &[u64], between: u64) -> Vec<u64> {
    let end = *marks.last().unwrap();
    let mut places: Vec<u64> = marks.iter().flat_map(|mark| [mark - 1, *mark, mark + 1]).collect();
    places.extend((0..between).map(|part| end * part / between));
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn the_journals_tell_what_was_done() {
    let names = |ended: &Ended, role: Role| -> Vec<String> {
        let journal = if role == Role::Source { &ended.source_journal } else { &ended.destination_journal };
        journal.as_ref().unwrap().0.iter().map(|line| line.event.name()).collect()
    };
    let ended = play(Play::pre_dump());
    assert_eq!(
        names(&ended, Role::Source),
        [
            "planned",
            "accepted",
            "prepared",
            "round",
            "round",
            "freezing",
            "frozen",
            "dumped",
            "restored",
            "committed",
            "running",
            "discarded",
            "completed"
        ]
    );
    assert_eq!(
        names(&ended, Role::Destination),
        [
            "planned",
            "accepted",
            "prepared",
            "round",
            "round",
            "ready",
            "restoring",
            "restored",
            "going",
            "running",
            "completed"
        ]
    );
    let ended = play(Play::pre_dump().failing("destination.restore", 1));
    let ours = names(&ended, Role::Source);
    assert_eq!(ours[ours.len() - 3..], ["dumped", "failed", "rolled-back"]);
    let reason = ended.source_journal.as_ref().unwrap().0.iter().find_map(|line| match &line.event {
        Wrote::Failed { reason } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.unwrap().contains("told to fail"), "the peer's reason is in our journal");
}
