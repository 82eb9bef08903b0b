//! Resuming, at the source: asks the destination where it stands, decides whose the container is, and makes it so on both
//! sides.

use crate::recovery::Interrupted;
use godwit_migration::journal::JournalState;
use godwit_migration::ownership::{
    Doubt, Presence, Standing, Verdict, decide, has_given_word, is_held, may_have_run,
};
use godwit_migration::{Disposition, Failure, FailureKind, MigrationId, Role};
use godwit_transfer::wire::RESUMES;
use godwit_transfer::{Message, Wire, WireError};
use godwit_witness::Witness;
use std::io;
use std::time::{Duration, Instant};

/// How long the destination may take to fill the memory of the running container.
const SETTLING: Duration = Duration::from_secs(600);
/// How long it may take from its claim until it runs there and the witness knows.
const GOING: Duration = Duration::from_secs(5);
/// How often the witness is asked meanwhile.
const LOOK_UP: Duration = Duration::from_millis(100);

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Where it is.
    pub disposition: Disposition,
    /// A person has decided so.
    pub by_decision: bool,
    /// Its first process at the destination.
    pub pid: Option<i32>,
    /// What could not be removed.
    pub leftovers: Vec<String>,
}

impl End {
    fn at(disposition: Disposition) -> Self {
        Self { disposition, by_decision: false, pid: None, leftovers: Vec::new() }
    }
}

/// A destination that has told where it stands.
pub struct Answer {
    wire: Wire,
    standing: Option<Standing>,
}

/// Asks a destination where it stands. With `forget` it keeps nothing of what has come for another attempt.
///
/// # Errors
/// When it cannot be spoken with, or somebody works on the migration there.
pub fn ask(mut wire: Wire, id: &MigrationId, host: &str, forget: bool) -> Result<Answer, WireError> {
    let version = wire.version();
    if version < RESUMES {
        return Err(WireError::Version { theirs_oldest: version, theirs_newest: version });
    }
    wire.say(&Message::Hello { godwit: env!("CARGO_PKG_VERSION").into(), host: host.into() })?;
    wire.expect("hello", |message| match message {
        Message::Hello { .. } => Ok(()),
        other => Err(other),
    })?;
    wire.say(&Message::Resume { migration: id.clone(), forget })?;
    let standing = wire.expect("where it stands", |message| match message {
        Message::Standing { standing } => Ok(standing),
        other => Err(other),
    })?;
    Ok(Answer { wire, standing })
}

/// Whether this side may let the container run without asking anybody.
pub fn needs_nobody(standing: Standing) -> bool {
    !has_given_word(standing.state) && standing.presence != Presence::Gone
}

/// Brings both sides to one end. `answer` is what the destination said, or why it cannot be asked; `keep` is whose the
/// container shall be where the two cannot decide it. `witness` is asked when the destination cannot be; it must be the one
/// that the migration was begun with.
///
/// # Errors
/// [`FailureKind::InDoubt`] when a person must decide, or the link is lost once more: nothing is worse then than before.
pub fn resume(
    here: &mut Interrupted,
    answer: Result<Answer, Failure>,
    keep: Option<Role>,
    witness: Option<&dyn Witness>,
) -> Result<End, Failure> {
    let standing = here.standing();
    if here.is_settled() {
        return answer.map_or_else(|_| Ok(end_of(standing.state)), |answer| tell_the_end(here, answer));
    }
    let answer = match answer {
        Ok(answer) => answer,
        Err(failure) => return alone(here, failure, keep, witness),
    };
    match (decide(standing, answer.standing), keep) {
        (Verdict::Destination, None) if is_free(standing, answer.standing) && !is_given(here, witness) => {
            source_s(here, Some(answer.wire))
        }
        (Verdict::Source, _) => source_s(here, Some(answer.wire)),
        (Verdict::Destination, _) => destination_s(here, answer.wire),
        (Verdict::Nobody, _) => bury(here, answer.wire),
        (Verdict::Undecided(doubt), Some(Role::Source)) if doubt != Doubt::Twice => {
            take_back_by_decision(here, Some(answer.wire))
        }
        (Verdict::Undecided(doubt), Some(Role::Destination)) if doubt != Doubt::Twice => {
            give_away(here, true)
        }
        (Verdict::Undecided(doubt), _) => {
            here.doubt(&doubt.to_string());
            Err(Failure::new(FailureKind::InDoubt, doubt.to_string()))
        }
    }
}

/// Both hold it frozen: it can be either's.
fn is_free(here: Standing, there: Option<Standing>) -> bool {
    let is_held = there.is_some_and(|there| is_held(there.state) && there.presence == Presence::Frozen);
    here.presence == Presence::Frozen && is_held
}

/// Whether a witness, if there is one, lets the destination have it. The word that was given needs the witness's, and one that does not
/// answer must hold up nobody: the two who speak with each other can do without it, by the destination's removing its copy.
fn is_given(here: &Interrupted, witness: Option<&dyn Witness>) -> bool {
    let Some(witness) = witness else { return true };
    witness.claim(here.id(), Role::Source).is_ok_and(|whose| whose == Role::Destination)
}

/// Where a container is whose migration is over.
fn end_of(state: JournalState) -> End {
    End::at(match state {
        JournalState::Completed => Disposition::RunningAtDestination,
        JournalState::Lost => Disposition::NoContainer,
        _ => Disposition::RunningAtSource,
    })
}

/// It is over here; a destination that was away may not know it.
fn tell_the_end(here: &mut Interrupted, answer: Answer) -> Result<End, Failure> {
    let end = end_of(here.standing().state);
    let Some(there) = answer.standing.filter(|there| !there.state.is_settled()) else { return Ok(end) };
    match end.disposition {
        Disposition::RunningAtDestination => destination_s(here, answer.wire),
        Disposition::RunningAtSource if may_have_run(there.state) => {
            Err(Failure::new(FailureKind::InDoubt, Doubt::Twice.to_string()))
        }
        Disposition::RunningAtSource => source_s(here, Some(answer.wire)),
        _ => bury(here, answer.wire),
    }
}

/// Nobody can be asked.
fn alone(
    here: &mut Interrupted,
    failure: Failure,
    keep: Option<Role>,
    witness: Option<&dyn Witness>,
) -> Result<End, Failure> {
    let witness = witness.filter(|_| here.standing().presence == Presence::Frozen);
    match (keep, witness) {
        (None, _) if needs_nobody(here.standing()) || here.standing().state == JournalState::Untold => {
            source_s(here, None)
        }
        (None, Some(witness)) => by_witness(here, &failure, witness),
        (None, None) => {
            here.doubt(&failure.to_string());
            let mut doubt =
                Failure::new(FailureKind::InDoubt, "only the destination knows whether it runs there")
                    .because(&failure.message);
            doubt.causes.extend(failure.causes);
            Err(doubt)
        }
        (Some(Role::Source), _) => take_back_by_decision(here, None),
        (Some(Role::Destination), _) => give_away(here, true),
    }
}

/// The destination cannot be asked, and the witness can.
fn by_witness(here: &mut Interrupted, silence: &Failure, witness: &dyn Witness) -> Result<End, Failure> {
    let in_doubt = |here: &mut Interrupted, why: &str| {
        here.doubt(&silence.to_string());
        Failure::new(FailureKind::InDoubt, why).because(&silence.message)
    };
    let claimed = witness.claim(here.id(), Role::Source);
    let claimed =
        claimed.and_then(|whose| Ok((whose, whose == Role::Destination && runs_there(here, witness)?)));
    match claimed {
        Ok((Role::Source, _)) => {
            here.take_back("the witness says that it is the source's")?;
            here.leave_untold();
            Ok(End::at(Disposition::RunningAtSource))
        }
        Ok((Role::Destination, true)) => give_away(here, false),
        // this copy may be the only one
        Ok((Role::Destination, false)) => Err(in_doubt(
            here,
            "it is the destination's, and the witness does not know whether it runs there",
        )),
        Err(error) => {
            Err(in_doubt(here, "neither the destination nor the witness can be asked").because_of(&error))
        }
    }
}

/// Whether the destination has let it run that has claimed it, perhaps just now.
fn runs_there(here: &Interrupted, witness: &dyn Witness) -> io::Result<bool> {
    let until = Instant::now() + GOING;
    while !witness.is_running(here.id())? {
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(LOOK_UP);
    }
    Ok(true)
}

/// It is this side's. Where the word was given, the destination removes its copy first; else the container comes first.
fn source_s(here: &mut Interrupted, wire: Option<Wire>) -> Result<End, Failure> {
    let reason = "resumed: it stays at the source";
    let mut end = End::at(Disposition::RunningAtSource);
    let dismiss = |mut wire: Wire| {
        wire.say(&Message::Cancel { reason: reason.into(), again: false })?;
        undone(&mut wire)
    };
    if here.standing().state == JournalState::Untold {
        let Some(wire) = wire else { return Ok(end) };
        end.leftovers = dismiss(wire).map_err(|error| {
            Failure::new(FailureKind::LinkLost, "the destination did not say that it has removed its copy")
                .because_of(&error)
                .at(Disposition::RunningAtSource)
        })?;
        here.take_back(reason)?;
        return Ok(end);
    }
    if has_given_word(here.standing().state) {
        if let Some(dismissed) = wire.map(dismiss) {
            end.leftovers = dismissed.map_err(|error| {
                Failure::new(FailureKind::InDoubt, "the destination did not say that it has removed its copy")
                    .because_of(&error)
            })?;
        }
        here.take_back("the destination does not have it, and never let it run")?;
        return Ok(end);
    }
    here.take_back(reason)?;
    match wire.map(dismiss) {
        Some(Ok(leftovers)) => end.leftovers = leftovers,
        Some(Err(error)) => {
            tracing::warn!(%error, "the destination could not be told; it removes its copy when it is asked");
            here.leave_untold();
        }
        None => here.leave_untold(),
    }
    Ok(end)
}

/// It is the destination's: the word, then nothing of it stays here.
fn destination_s(here: &mut Interrupted, mut wire: Wire) -> Result<End, Failure> {
    here.give_word()?;
    let running = wire.say(&Message::Go { volumes: here.passing() }).and_then(|()| {
        wire.expect("running", |message| match message {
            Message::Running { pid } => Ok(pid),
            other => Err(other),
        })
    });
    let pid = running.map_err(|error| {
        Failure::new(FailureKind::InDoubt, "lost contact with the destination after the word was given")
            .because_of(&error)
            .hint("resume once more")
    })?;
    let mut leftovers = here.conclude(pid)?;
    wire.set_patience(SETTLING);
    let settled = wire.say(&Message::Done).and_then(|()| {
        wire.expect("settled", |message| match message {
            Message::Settled { leftovers, .. } => Ok(leftovers),
            other => Err(other),
        })
    });
    match settled {
        Ok(there) => leftovers.extend(there.into_iter().map(|left| format!("on {}: {left}", here.peer))),
        Err(error) => tracing::warn!(%error, "the destination did not say that all is settled"),
    }
    here.close(&mut leftovers)?;
    Ok(End { pid: Some(pid), leftovers, ..End::at(Disposition::RunningAtDestination) })
}

fn bury(here: &mut Interrupted, mut wire: Wire) -> Result<End, Failure> {
    let reason = "nothing of it is left on either host".into();
    if let Err(error) = wire.say(&Message::Bury { reason }).and_then(|()| undone(&mut wire)) {
        tracing::warn!(%error, "the destination could not be told");
    }
    here.bury()?;
    Ok(End::at(Disposition::NoContainer))
}

/// A person takes it back, although it may have run at the destination.
fn take_back_by_decision(here: &mut Interrupted, wire: Option<Wire>) -> Result<End, Failure> {
    let reason = "a person decided that it is the source's";
    let is_told = wire.is_some();
    if let Some(mut wire) = wire {
        let told = wire.say(&Message::Bury { reason: reason.into() }).and_then(|()| undone(&mut wire));
        told.map_err(|error| {
            Failure::new(FailureKind::InDoubt, "the destination did not obey").because_of(&error)
        })?;
    }
    here.take_back(reason)?;
    if !is_told {
        here.leave_untold();
    }
    Ok(End { by_decision: true, ..End::at(Disposition::RunningAtSource) })
}

/// A person or the witness says that it is the destination's.
fn give_away(here: &mut Interrupted, by_decision: bool) -> Result<End, Failure> {
    let mut leftovers = here.give_away()?;
    here.close(&mut leftovers)?;
    Ok(End { by_decision, leftovers, ..End::at(Disposition::RunningAtDestination) })
}

fn undone(wire: &mut Wire) -> Result<Vec<String>, WireError> {
    wire.expect("undone", |message| match message {
        Message::Undone { leftovers } => Ok(leftovers),
        other => Err(other),
    })
}
