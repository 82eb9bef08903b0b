//! A source that offers nonsense, what is not allowed here, or the same once more.

use super::{hello, listen, there};
use crate::stage::{Ended, Play, play};
use godwit_migration::FailureKind;
use godwit_restore::{Outcome, Policy};
use godwit_transfer::{Incoming, Message, Offer};
use std::path::Path;

#[test]
fn an_offer_of_nonsense_is_refused_before_anything_is_touched() {
    type Spoil = fn(&mut Offer, &Path);
    let cases: [(&str, Spoil); 8] = [
        ("no engine", |offer, _| offer.engine = "warp".into()),
        ("relative", |offer, _| offer.trees[0].path = "srv".into()),
        ("upwards", |offer, dir| offer.trees[0].path = dir.join("../../etc")),
        ("everything", |offer, _| offer.trees[0].path = "/".into()),
        ("network", |offer, _| offer.network = Some("{{{{".into())),
        ("network plan", |offer, _| offer.network_plan = "bridge=a/b".into()),
        ("giant files", |offer, _| offer.trees[0].bytes = u64::MAX),
        ("giant memory", |offer, _| (offer.memory_bytes, offer.room_pages) = (u64::MAX, Some(u64::MAX))),
    ];
    for (what, spoil) in cases {
        let there = there("");
        let mut offer = there.offer(vec![there.tree(0, "volume")]);
        spoil(&mut offer, there.dir.path());
        let outcome = there.hears(|wire| {
            hello(wire);
            wire.say(&Message::Offer(Box::new(offer))).unwrap();
            listen(wire);
        });
        assert!(matches!(outcome, Ok(Outcome::Refused { .. })), "{what}: {outcome:?}");
        assert!(!there.host.root.join("migrations").exists(), "{what}");
        there.assert_only(&[]);
    }
}

#[test]
fn the_policy_decides_before_anything_is_touched_and_names_its_rule() {
    let there = there("[[allow]]\nrule = \"small\"\npeers = [\"rack2\"]\nroots = [\"/srv\"]\n");
    let offer = there.offer(vec![there.tree(0, "volume")]);
    let outcome = there.hears(|wire| {
        hello(wire);
        wire.say(&Message::Offer(Box::new(offer))).unwrap();
        listen(wire);
    });
    let Ok(Outcome::Refused { reasons }) = outcome else { panic!("{outcome:?}") };
    assert!(reasons[0].reason.contains("rule `small` allows no files in `"), "{reasons:?}");
    assert!(there.witness.look().calls.iter().all(|call| *call == "destination.usable"));
    assert!(!there.host.root.join("migrations").exists());
    // the source says so, and its exit code is that of a refusal
    let policy = Policy::parse("[[allow]]\nrule = \"ssh only\"\npeers = [\"ssh:*\"]").unwrap();
    let ended: Ended = play(Play { policy, ..Play::pre_dump() });
    ended.assert_sound("the policy says no");
    let failure = ended.failure();
    assert_eq!((failure.kind, failure.kind.exit_code()), (FailureKind::Refused, 12), "{failure:?}");
    assert!(failure.causes[0].contains("it has no rule for `test:`"), "{failure:?}");
}

#[test]
fn a_migration_that_was_here_does_not_come_again() {
    let there = there("");
    let offer = there.offer(vec![]);
    for time in 0..2 {
        let again = offer.clone();
        let outcome = there.hears(|wire| {
            hello(wire);
            wire.say(&Message::Offer(Box::new(again))).unwrap();
            if time == 0 {
                let _ = wire.hear();
                wire.say(&Message::Cancel { reason: "for now".into(), again: false }).unwrap();
            }
            listen(wire);
        });
        assert_eq!(outcome.is_ok(), time == 0, "{outcome:?}");
    }
}

#[test]
fn a_broken_offer_of_any_kind_is_no_panic() {
    // every member of the offer once as something else
    let there = there("");
    let whole =
        serde_json::to_value(Message::Offer(Box::new(there.offer(vec![there.tree(0, "volume")])))).unwrap();
    let members: Vec<String> = whole.as_object().unwrap().keys().cloned().collect();
    for member in members.iter().filter(|member| *member != "message") {
        for other in [serde_json::json!(null), (-1).into(), "x".into(), serde_json::json!([[[]]])] {
            let mut broken = whole.clone();
            broken[member] = other;
            let Ok(message) = serde_json::from_value::<Message>(broken) else { continue };
            let outcome = there.hears(|wire| {
                hello(wire);
                wire.say(&message).unwrap();
                if let Ok(Incoming::Message(Message::Accept { .. })) = wire.hear() {
                    wire.say(&Message::Cancel { reason: "enough".into(), again: false }).unwrap();
                }
                listen(wire);
            });
            assert!(outcome.is_err() || !matches!(outcome, Ok(Outcome::Running { .. })));
        }
    }
}
