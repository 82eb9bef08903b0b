//! `--on-timeout ask`: somebody says whether to switch over beyond the limit, and further rounds go on meanwhile.

use crate::stage::{Answer, Ended, Play, play};
use godwit_migration::plan::{Limits, OnTimeout};
use godwit_migration::{Disposition, FailureKind, Observer, Silent};
use std::time::Duration;

/// A limit that is never met.
fn asking(answer: Answer) -> Play {
    let play = Play::pages(1);
    Play { limits: Limits { on_timeout: OnTimeout::Ask, ..play.limits }, answer, ..play }
}

fn questions(ended: &Ended) -> Vec<&str> {
    ended.told.iter().filter_map(|(_, text)| text.strip_prefix("question: ")).collect()
}

#[test]
fn yes_switches_over() {
    let ended = play(asking(Answer::Says(true)));
    ended.assert_moved();
    assert_eq!(ended.summary().rounds.len(), 4, "one more after the answer");
    let asked = questions(&ended);
    assert_eq!(asked.len(), 1);
    assert!(
        asked[0].starts_with("expected downtime ") && asked[0].ends_with(": switch over all the same?"),
        "{asked:?}"
    );
    let why = "3 pre-copy rounds were made, and the answer was yes";
    assert!(ended.told.iter().any(|(_, text)| text.ends_with(why)), "{:?}", ended.told);
}

#[test]
fn anything_else_leaves_the_container_where_it_is() {
    for (answer, why) in [
        (Answer::Says(false), "the answer was no"),
        (Answer::Leaves, "nobody can answer"),
        (Answer::Nobody, "there is nobody to ask"),
    ] {
        let ended = play(asking(answer));
        ended.assert_sound(why);
        let failure = ended.failure();
        assert_eq!(failure.kind, FailureKind::NotConverged);
        assert_eq!(
            failure.message,
            format!("`fake:web` did not converge: 2 pre-copy rounds were made, and {why}")
        );
        assert!(!ended.calls().contains(&"source.freeze"), "never frozen");
    }
}

#[test]
fn a_limit_that_is_met_meanwhile_needs_no_answer() {
    let play_it = Play::busy();
    let limits = Limits { on_timeout: OnTimeout::Ask, throttle: 0, max_rounds: 2, ..play_it.limits };
    let ended = play(Play { limits, answer: Answer::CalmsDown, ..play_it });
    ended.assert_moved();
    assert_eq!(questions(&ended).len(), 1, "asked once");
    assert!(ended.summary().rounds.len() > 3, "rounds go on: {:?}", ended.told);
    let within = |text: &str| text.contains("within the limit of 200 ms");
    assert!(ended.told.iter().any(|(_, text)| within(text)), "{:?}", ended.told);
}

#[test]
fn ctrl_c_does_not_wait_for_an_answer() {
    let ended = play(asking(Answer::Interrupts));
    ended.assert_sound("Ctrl-C");
    let failure = ended.failure();
    assert_eq!((failure.kind, failure.disposition), (FailureKind::Interrupted, Disposition::RunningAtSource));
    assert!(ended.took < Duration::from_secs(2), "{:?}", ended.took);
}

#[test]
fn rounds_go_on_until_nobody_will_answer_any_more() {
    let ended = play(asking(Answer::Sleeps));
    ended.assert_sound("nobody answers");
    let failure = ended.failure();
    assert_eq!(
        (failure.kind, failure.disposition),
        (FailureKind::NotConverged, Disposition::RunningAtSource)
    );
    assert!(failure.message.ends_with("and nobody answered within 1.20 s"), "{}", failure.message);
    assert!(ended.took >= Duration::from_millis(1200), "{:?}", ended.took);
    let rounds = ended.told.iter().filter(|(_, text)| text.starts_with("round ")).count();
    assert!(rounds > 3, "they keep what is there fresh: {:?}", ended.told);
    assert_eq!(questions(&ended).len(), 1, "asked once");
    assert_eq!(Silent.patience(), Duration::from_secs(60), "what docs/downtime.md says");
}
