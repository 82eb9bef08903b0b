//! Words in the wrong order, from strangers, or of another version.

use super::{SOON, listen, prepared, there};
use crate::stage::{Ended, Play, play};
use godwit_migration::hooks::{Hooks, Target};
use godwit_migration::plan::Strategy;
use godwit_migration::{Cancel, FailureKind, MigrationId};
use godwit_restore::Joins;
use godwit_transfer::wire::{ENGINE_PLACES, NEWEST, OLDEST, RESUME_HOOKS, WireError};
use godwit_transfer::{Descriptors, Message, Wire};

#[test]
fn words_in_the_wrong_order_let_nothing_run() {
    let begin = || Message::RoundBegin { round: 0, last: true };
    let end = || Message::RoundEnd { round: 0, streams: 0 };
    let wrong: Vec<(&str, Vec<Message>)> = vec![
        ("go at once", vec![Message::Go { volumes: vec![] }]),
        ("restore at once", vec![Message::Restore]),
        ("go before restored", vec![begin(), Message::Go { volumes: vec![] }]),
        ("a last round without memory, then go", vec![begin(), end(), Message::Go { volumes: vec![] }]),
        ("done at once", vec![Message::Done]),
        ("prepare twice", vec![Message::Prepare]),
        ("a round that ends as another", vec![begin(), Message::RoundEnd { round: 7, streams: 0 }]),
        ("a round in a round", vec![begin(), begin()]),
        ("another offer", vec![Message::Prepared]),
        ("the other side's words", vec![Message::Running { pid: 1 }]),
        ("shared memory that was not offered", vec![begin(), Message::Shared { objects: vec![] }]),
    ];
    for (what, words) in wrong {
        let there = there("");
        let offer = there.offer(vec![]);
        let mut heard = Vec::new();
        let outcome = there.hears(|wire| {
            prepared(wire, offer);
            for word in &words {
                if wire.say(word).is_err() {
                    break;
                }
            }
            heard = listen(wire);
        });
        let failure = outcome.expect_err(what);
        assert_eq!(failure.kind.exit_code(), 1, "{what}: {failure:?}");
        assert_eq!(heard.last().map(String::as_str), Some("undone"), "{what}: {heard:?}");
        there.assert_only(&[]);
    }
}

#[test]
fn nothing_is_done_for_who_does_not_introduce_himself() {
    for word in [Message::Prepare, Message::Go { volumes: vec![] }, Message::Restore, Message::Joined] {
        let there = there("");
        let failure = there
            .hears(|wire| {
                wire.say(&word).unwrap();
                listen(wire);
            })
            .unwrap_err();
        assert!(failure.causes.iter().any(|cause| cause.contains("where hello was due")), "{failure:?}");
        assert!(!there.host.root.join("migrations").exists());
    }
    // pages, before anybody knows whose
    let there = there("");
    assert!(
        there
            .hears(|wire| {
                wire.send_pages(&[0; 64]).unwrap();
                wire.flush().unwrap();
                listen(wire);
            })
            .is_err()
    );
    // a further connection of what is not received here
    assert!(
        there
            .hears(|wire| {
                wire.say(&Message::Join { migration: MigrationId::generate().unwrap(), stream: 0 }).unwrap();
                listen(wire);
            })
            .is_err()
    );
}

#[test]
fn one_version_back_is_spoken_and_two_are_refused_in_words() {
    for scene in [Play::pre_dump(), Play::pages(3)] {
        let ended = play(Play { peers_speak: Some((OLDEST, NEWEST - 1)), ..scene });
        ended.assert_moved();
    }
    // one from the future that still speaks ours
    play(Play { peers_speak: Some((NEWEST, NEWEST + 7)), ..Play::pre_dump() }).assert_moved();
    for (oldest, newest, who) in [(1, OLDEST - 1, "older"), (NEWEST + 1, NEWEST + 2, "newer")] {
        let ended = play(Play { peers_speak: Some((oldest, newest)), ..Play::pre_dump() });
        assert!(ended.source.is_none() && ended.destination.is_none(), "{who}");
        ended.assert_sound(who);
        let error = WireError::Version { theirs_oldest: oldest, theirs_newest: newest }.to_string();
        assert!(error.contains(&format!("the godwit there is {who}")), "{error}");
    }
}

/// What came with the newest version a godwit before it would not understand: it is refused before either side is touched, and
/// with a godwit of today it is not.
#[test]
fn what_an_older_godwit_does_not_know_is_refused_before_anything_is_touched() {
    let resume = Target::Url("http://127.0.0.1:8080/up".parse().unwrap());
    let told = Play { hooks: Hooks { resume: Some(resume), ..Hooks::default() }, ..Play::pre_dump() };
    let started = Play { strategy: Strategy::Restart, tracker: None, ..Play::pre_dump() };
    let of_an_engine = Play { made_there: true, ..Play::pre_dump() };
    for (scene, since, why) in [
        (told, RESUME_HOOKS, "too old to tell the application that it goes on"),
        (started, ENGINE_PLACES, "too old for `--strategy restart`"),
        (of_an_engine, ENGINE_PLACES, "too old for containers of fake"),
    ] {
        let is_too_old = |ended: &Ended| matches!(&ended.source, Some(Err(failure)) if failure.causes.iter().any(|cause| cause.contains(why)));
        let ended = play(Play { peers_speak: Some((OLDEST, since - 1)), ..scene.clone() });
        ended.assert_sound(why);
        assert!(is_too_old(&ended), "{why}: {:?}", ended.source);
        let failure = ended.failure();
        assert_eq!(failure.kind, FailureKind::Refused, "{why}");
        assert!(failure.hints.iter().any(|hint| hint.contains("bring the godwit there up to date")), "{why}");
        // what puts back what was done, which is nothing: all of it is idempotent
        let puts_back = ["source.reconnect", "source.unlock_network", "source.thaw", "source.leave_as_found"];
        let touched: Vec<_> = ended.calls().into_iter().filter(|call| !puts_back.contains(call)).collect();
        assert_eq!(touched, [""; 0], "{why}");
        assert!(ended.destination_journal.is_none(), "{why}");
        let ended = play(Play { peers_speak: Some((OLDEST, since)), ..scene });
        assert!(!is_too_old(&ended), "{why}: {:?}", ended.source);
    }
}

#[test]
fn a_further_connection_must_come_from_the_same_host() {
    let joins = Joins::default();
    let (near, far) = Descriptors::pair().unwrap();
    let other = std::thread::spawn(move || Wire::open(Box::new(far), Cancel::default(), SOON).unwrap());
    let _near = Wire::open(Box::new(near), Cancel::default(), SOON).unwrap();
    let error = joins.join(other.join().unwrap(), &MigrationId::generate().unwrap(), "rack3").unwrap_err();
    assert!(error.to_string().contains("no migration"), "{error}");
}
