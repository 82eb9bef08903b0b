//! A destination that lies: what the real source makes of it.

use crate::stage::{Ended, Liar, Play, play};
use godwit_migration::Disposition;
use godwit_migration::plan::Restoration;
use godwit_transfer::{Incoming, Message, Refusal, Wire};
use std::sync::Arc;
use std::time::Duration;

impl Ended {
    /// It runs at the source as before, which says so.
    fn assert_source_keeps_it(&self, context: &str) {
        self.assert_sound(context);
        assert_eq!(self.failure().disposition, Disposition::RunningAtSource, "{context}");
    }
}

/// A destination that lies: what the real source makes of it.
fn lied_to(answers: impl Fn(&Message) -> Vec<Message> + Send + Sync + 'static) -> Ended {
    play(Play { liar: Some(Liar(Arc::new(answers))), ..Play::stop_and_copy() })
}

fn accept() -> Message {
    Message::Accept {
        lacks_image: None,
        cooperates: false,
        gathers_image: false,
        bases: vec![godwit_transfer::TreeBase::Empty],
        process_start_us: 0,
        restoration: Restoration::Eager,
        restoration_why: String::new(),
        kept_pages: 0,
    }
}

/// What an honest destination answers, with nothing behind it.
fn honest(message: &Message) -> Vec<Message> {
    match message {
        Message::Hello { .. } => vec![Message::Hello { godwit: "0".into(), host: "liar".into() }],
        Message::Offer(_) => vec![accept()],
        Message::Prepare => vec![Message::Prepared],
        Message::RoundEnd { round: 0, .. } => vec![Message::RoundAck { round: 0 }],
        Message::RoundEnd { .. } => vec![Message::Ready { verify_us: 0 }],
        Message::Restore => vec![Message::Restored { pid: 1 }],
        Message::Go { .. } => vec![Message::Running { pid: 1 }],
        Message::Done => vec![Message::Settled { fill: None, leftovers: vec![] }],
        Message::Cancel { .. } => vec![Message::Undone { leftovers: vec![] }],
        _ => vec![],
    }
}

#[test]
fn a_destination_that_runs_ahead_of_its_answers_does_not_get_the_container() {
    let early: Vec<(&str, Message)> = vec![
        ("offer", Message::Running { pid: 1 }),
        ("offer", Message::Restored { pid: 1 }),
        ("prepare", Message::Ready { verify_us: 0 }),
        ("prepare", Message::Running { pid: 1 }),
        ("round-end", Message::Restored { pid: 1 }),
        ("round-end", Message::Running { pid: 1 }),
        ("round-end", Message::RoundAck { round: 99 }),
        ("restore", Message::Running { pid: 1 }),
        ("restore", Message::Settled { fill: None, leftovers: vec![] }),
        (
            "offer",
            Message::Accept {
                lacks_image: None,
                cooperates: false,
                gathers_image: false,
                bases: vec![godwit_transfer::TreeBase::Empty; 500],
                process_start_us: u64::MAX,
                restoration: Restoration::Eager,
                restoration_why: String::new(),
                kept_pages: 0,
            },
        ),
        ("offer", Message::Refuse { reasons: vec![Refusal::new("no")] }),
    ];
    for (at, lie) in early {
        let said = lie.clone();
        let ended =
            lied_to(move |message| if message.name() == at { vec![said.clone()] } else { honest(message) });
        let context = format!("{} for {at}", lie.name());
        ended.assert_source_keeps_it(&context);
        let code = ended.failure().kind.exit_code();
        let refused = matches!(lie, Message::Refuse { .. });
        assert_eq!(code, if refused { 12 } else { 1 }, "{context}: {:?}", ended.failure());
    }
}

#[test]
fn a_destination_that_says_running_before_go_changes_nothing_for_the_source() {
    // said together with `restored`: it is in the pipe when the source asks whether it may give its word
    let ended = lied_to(|message| match message {
        Message::Restore => vec![Message::Restored { pid: 1 }, Message::Running { pid: 1 }],
        other => honest(other),
    });
    // whoever lies about running has the container by his word: what counts is that it never runs here as well
    let world = ended.witness.look();
    assert!(!world.source_runs && !world.destination_runs, "{:?}", ended.source);
}

#[test]
fn a_destination_that_answers_everything_twice_or_never_is_no_trouble() {
    let twice =
        lied_to(|message| honest(message).into_iter().flat_map(|word| [word.clone(), word]).collect());
    twice.assert_source_keeps_it("everything twice");
    let closes = lied_to(|message| match message {
        Message::Prepare => vec![],
        other => honest(other),
    });
    closes.assert_source_keeps_it("no answer");
}

/// What is on the way to the destination, message by message.
pub fn liar(mut wire: Wire, answers: &dyn Fn(&Message) -> Vec<Message>) {
    wire.set_patience(Duration::from_secs(2));
    loop {
        match wire.hear() {
            Ok(Incoming::Message(message)) => {
                let words = answers(&message);
                if words.is_empty() && matches!(message, Message::Prepare) {
                    return;
                }
                if words.iter().any(|word| wire.say(word).is_err()) {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
