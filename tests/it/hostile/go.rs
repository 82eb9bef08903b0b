//! A source that gives its word twice, or without having heard that the container is held: it is let run once at most.

use super::hello;
use crate::link::{Cut, Instead};
use crate::stage::{Ended, Play, play};
use godwit_migration::journal::JournalState;
use godwit_migration::{Cancel, Disposition, Failure, Silent};
use godwit_restore::{Outcome, receive};
use godwit_transfer::wire::NEWEST;
use godwit_transfer::{Descriptors, Incoming, Message, Transport, Wire};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(2);

/// A message as it goes over the wire.
fn frame(message: &Message) -> Vec<u8> {
    let (near, mut far) = Descriptors::pair().unwrap();
    Wire::agreed(Box::new(near), Cancel::default(), SOON, NEWEST).say(message).unwrap();
    let mut bytes = vec![0; 4096];
    let length = far.receive(&mut bytes, SOON).unwrap();
    bytes.truncate(length);
    bytes
}

fn starts(ended: &Ended) -> usize {
    ended.calls().iter().filter(|call| **call == "destination.go").count()
}

/// The source says something else where it would say `message`.
fn saying(scene: Play, message: &'static str, bytes: Vec<u8>) -> Ended {
    let instead = Instead { message, bytes, said: Arc::default() };
    let said = instead.said.clone();
    let ended = play(Play { instead: Some(instead), ..scene });
    assert!(said.load(Ordering::Relaxed), "`{message}` was never said");
    ended
}

/// The whole of a host's part in it.
fn outcome(ended: &Ended) -> (usize, Option<JournalState>) {
    (starts(ended), ended.destination_journal.as_ref().map(|journal| journal.1))
}

#[test]
fn a_word_that_is_given_twice_starts_it_once() {
    let go = frame(&Message::Go { volumes: vec![] });
    let twice = [&go[..], &go].concat();
    for scene in [Play::pre_dump(), Play::stop_and_copy(), Play::pages(3)] {
        let ended = saying(scene, "go", twice.clone());
        assert_eq!(outcome(&ended), (1, Some(JournalState::Completed)));
        // to the second one there is no answer but the end: it is no farewell
        ended.assert_moved();
    }
    // a second one where only the farewell was due
    let ended = saying(Play::pre_dump(), "done", go);
    assert_eq!(outcome(&ended), (1, Some(JournalState::Completed)));
    ended.assert_moved();
}

#[test]
fn a_word_in_the_place_of_another_lets_nothing_run() {
    let go = frame(&Message::Go { volumes: vec![] });
    let cases: Vec<(&str, Play, &'static str)> = vec![
        ("before anything was sent", Play::pre_dump(), "prepare"),
        ("in a round", Play::pre_dump(), "round-end"),
        ("when everything is there, and nothing restored", Play::pre_dump(), "restore"),
        ("the same with pages over connections of their own", Play::pages(3), "restore"),
    ];
    for (what, scene, message) in cases {
        let ended = saying(scene, message, go.clone());
        assert_eq!(starts(&ended), 0, "{what}");
        ended.assert_sound(what);
        assert_eq!(ended.failure().disposition, Disposition::RunningAtSource, "{what}");
        assert!(
            ended.destination.as_ref().is_some_and(|there| !matches!(there, Ok(Outcome::Running { .. })))
        );
    }
}

#[test]
fn a_word_after_a_restore_that_failed_lets_nothing_run() {
    // where the source would say that it takes the container back
    let scene = Play::pre_dump().failing("destination.restore", 1);
    let ended = saying(scene, "cancel", frame(&Message::Go { volumes: vec![] }));
    assert_eq!(outcome(&ended), (0, Some(JournalState::RolledBack)));
    let world = ended.witness.look();
    assert!(world.violations.is_empty() && world.source_runs && !world.destination_runs);
    assert!(world.held.is_none() && !world.made, "something was left");
}

/// Somebody resumes the migration with the destination, and says `go` whatever he hears.
fn resumed_with_go(ended: &Ended) -> (Result<Outcome, Failure>, Option<Message>) {
    ended.witness.look().resumed = true;
    let host = ended.host_there();
    let (near, far) = Descriptors::pair().unwrap();
    std::thread::scope(|scope| {
        let real = scope.spawn(|| {
            let wire = Wire::open(Box::new(far), Cancel::default(), SOON).unwrap();
            receive(wire, &host, &Silent)
        });
        let mut wire = Wire::open(Box::new(near), Cancel::default(), SOON).unwrap();
        hello(&mut wire);
        wire.say(&Message::Resume { migration: ended.id.clone(), forget: false }).unwrap();
        assert!(matches!(wire.hear().unwrap(), Incoming::Message(Message::Standing { .. })));
        wire.say(&Message::Go { volumes: vec![] }).unwrap();
        let answer = match wire.hear() {
            Ok(Incoming::Message(message)) => Some(message),
            _ => None,
        };
        drop(wire);
        (real.join().unwrap(), answer)
    })
}

#[test]
fn a_word_that_comes_again_by_resuming_starts_nothing() {
    let ended = play(Play::pre_dump());
    for _ in 0..2 {
        let (_, answer) = resumed_with_go(&ended);
        assert!(matches!(answer, Some(Message::Running { .. })), "{answer:?}");
        assert_eq!(outcome(&ended), (1, Some(JournalState::Completed)));
    }
    ended.assert_moved();
}

#[test]
fn a_word_by_resuming_lets_nothing_run_whose_restore_was_never_finished() {
    // held there, while it runs on at the source
    let ended = play(Play::pre_dump().cut_destination(Cut::Before("restored")));
    assert!(ended.witness.look().held.is_some() && ended.witness.look().source_runs);
    // a crash before that line leaves the journal so
    let journal = ended.roots.1.join("migrations").join(ended.id.as_str()).join("journal");
    let lines = std::fs::read_to_string(&journal).unwrap();
    let kept: String =
        lines.split_inclusive('\n').take_while(|line| !line.contains("\"restored\"")).collect();
    assert!(kept.contains("\"restoring\"") && kept != lines);
    std::fs::write(&journal, kept).unwrap();
    let (there, answer) = resumed_with_go(&ended);
    let failure = there.expect_err("it was let run");
    assert!(failure.to_string().contains("it may not be let run here"), "{failure:?} {answer:?}");
    assert_eq!(starts(&ended), 0);
    let world = ended.witness.look();
    assert!(!world.destination_runs && world.violations.is_empty(), "{:?}", world.violations);
}
