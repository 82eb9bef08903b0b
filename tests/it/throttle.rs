//! A container that writes faster than the link carries is throttled where that was allowed, and never longer than until the
//! freeze or the end of the attempt ([`Ended::assert_sound`] looks at every end).

use crate::link::Cut;
use crate::stage::{Ended, Play, play};
use godwit_migration::journal::Event as Wrote;
use godwit_migration::plan::{Limits, OnTimeout};
use godwit_migration::{FailureKind, Phase, Role};
use std::time::Duration;

fn count(ended: &Ended, call: &str) -> usize {
    ended.calls().iter().filter(|made| **made == call).count()
}

fn notes(ended: &Ended, part: &str) -> usize {
    ended.told.iter().filter(|(_, text)| text.contains(part)).count()
}

#[test]
fn it_is_throttled_in_steps_and_has_its_limit_back_at_the_freeze() {
    let ended = play(Play::busy());
    ended.assert_moved();
    assert!(count(&ended, "source.throttle") >= 1, "{:?}", ended.told);
    assert_eq!(notes(&ended, "throttled to 40 % of its CPU time"), 1, "{:?}", ended.told);
    let report = ended.summary().throttle.unwrap();
    assert_eq!(report.most_percent, 60);
    assert!(report.duration > Duration::from_millis(1) && report.duration < ended.summary().duration);
    let lines = &ended.source_journal.as_ref().unwrap().0;
    let place = |wanted: &str| lines.iter().rposition(|line| line.event.name() == wanted).unwrap();
    assert!(place("throttling") < place("unthrottled") && place("unthrottled") < place("frozen"));
    assert!(
        matches!(&lines[place("throttling")].event, Wrote::Throttling(change) if change.original == "max 100")
    );
}

#[test]
fn nobody_is_throttled_who_need_not_be_or_must_not_be() {
    let met = Limits { max_downtime: Duration::from_secs(60), ..Play::busy().limits };
    let not_allowed = Limits { throttle: 0, ..Play::busy().limits };
    for limits in [met, not_allowed] {
        let ended = play(Play { limits, ..Play::busy() });
        ended.assert_moved();
        assert_eq!(count(&ended, "source.throttle") + count(&ended, "source.unthrottle"), 0);
        assert_eq!(ended.summary().throttle, None);
    }
}

#[test]
fn a_container_that_cannot_be_throttled_moves_without() {
    for call in ["source.cpu_time", "source.plan_throttle", "source.throttle"] {
        let ended = play(Play::busy().failing(call, 1));
        ended.assert_moved();
        assert_eq!(notes(&ended, "`fake:web` cannot be throttled: "), 1, "{call}: {:?}", ended.told);
        assert_eq!(ended.summary().throttle, None, "{call}");
    }
}

#[test]
fn it_has_its_limit_back_on_every_way_out() {
    let limits = Limits { on_timeout: OnTimeout::Cancel, ..Play::busy().limits };
    let mut scenes = vec![
        ("not converged", Play { limits: Limits { max_rounds: 4, throttle: 20, ..limits }, ..Play::busy() }),
        ("the link breaks", Play::busy().cut_source(Cut::Before("restore"))),
        ("the link breaks there", Play::busy().cut_destination(Cut::Before("ready"))),
    ];
    for (call, nth) in [
        ("memory.round", 4),
        ("source.lock_network", 1),
        ("source.unthrottle", 1),
        ("source.freeze", 1),
        ("criu.dump", 1),
        ("destination.restore", 1),
        ("source.disconnect", 1),
        ("destination.go", 1),
    ] {
        scenes.push((call, Play::busy().failing(call, nth)));
    }
    for phase in [Phase::Freeze, Phase::StopAndCopy, Phase::Commit] {
        scenes.push(("Ctrl-C", Play { interrupt: Some((Role::Source, phase)), ..Play::busy() }));
    }
    scenes.push(("Ctrl-C in a round", Play::busy().interrupted_in(Role::Source, "source.throttle")));
    scenes.push((
        "Ctrl-C there",
        Play { interrupt: Some((Role::Destination, Phase::Restore)), ..Play::busy() },
    ));
    for (what, scene) in scenes {
        let ended = play(scene);
        ended.assert_sound(what);
        assert!(count(&ended, "source.throttle") >= 1, "{what}: {:?}", ended.told);
        let failure = ended.failure();
        assert_ne!(failure.kind, FailureKind::Refused, "{what}");
        let lines = &ended.source_journal.as_ref().unwrap().0;
        let back = lines.iter().filter(|line| line.event == Wrote::Unthrottled).count();
        assert_eq!(back, 1, "{what}: {lines:?}");
    }
}
