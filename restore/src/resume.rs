//! What a source that resumes a migration hears from this host: where it stands, and then whatever the source decides.

use crate::destination::{Host, Outcome};
use crate::parked;
use crate::recovery::Orphan;
use godwit_migration::{Failure, FailureKind, MigrationId, journal};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Incoming, Message, Wire};

/// Answers `Resume`.
pub(crate) fn serve(mut wire: Wire, host: &Host, id: &MigrationId, forget: bool) -> Result<Outcome, Failure> {
    if !may_resume(host, id) {
        let failure = Failure::new(FailureKind::Refused, format!("migration {id} was begun by another host"));
        let _ = wire.say(&Message::Failed { failure: failure.clone() });
        return Err(failure);
    }
    let adopted = Orphan::adopt(&host.root, &host.engines, id);
    let mut orphan = match adopted {
        Ok(orphan) => orphan,
        Err(failure) => {
            let _ = wire.say(&Message::Failed { failure: failure.clone() });
            return Err(failure);
        }
    };
    let lost = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::InDoubt, "lost contact with the source").because_of(error)
    };
    if forget {
        parked::forget(&host.root, id);
    }
    let standing = orphan.as_ref().map(Orphan::standing);
    wire.say(&Message::Standing { standing }).map_err(|error| lost(&error))?;
    let done = match (wire.hear().map_err(|error| lost(&error))?, orphan.as_mut()) {
        (Incoming::Message(Message::Cancel { reason, .. }), orphan) => {
            let undone = orphan.map_or(Ok(vec![]), |orphan| orphan.abandon(&reason));
            undone.map(|leftovers| (Message::Undone { leftovers }, reason))
        }
        (Incoming::Message(Message::Bury { reason }), orphan) => {
            let buried = orphan.map_or(Ok(vec![]), Orphan::bury);
            buried.map(|leftovers| (Message::Undone { leftovers }, reason))
        }
        (Incoming::Message(Message::Go { volumes }), Some(orphan)) => match orphan.go(volumes) {
            Ok(pid) => {
                wire.say(&Message::Running { pid }).map_err(|error| lost(&error))?;
                return Ok(settle(wire, orphan, id, pid));
            }
            Err(failure) => Err(failure),
        },
        (other, _) => return Err(lost(&unexpected(&other, "a decision"))),
    };
    match done {
        Ok((answer, reason)) => {
            let _ = wire.say(&answer);
            Ok(Outcome::Undone { container: orphan.map(|orphan| orphan.name).unwrap_or_default(), reason })
        }
        Err(failure) => {
            let _ = wire.say(&Message::Failed { failure: failure.clone() });
            Err(failure)
        }
    }
}

/// Whoever has proved by TLS which host it is may only decide about what that host has sent. Over the other ways it is root
/// who asks.
fn may_resume(host: &Host, id: &MigrationId) -> bool {
    let name = &host.peer.name;
    if name.contains(':') {
        return true;
    }
    let lines = journal::read(&journal::dir_of(&host.root, id).join("journal"));
    // what is not known here can be answered to anybody
    let Ok((lines, _)) = lines else { return true };
    let begun_by = |line: &journal::Line| match &line.event {
        journal::Event::Planned { peer, .. } => peer.starts_with(&format!("{name} (")),
        _ => false,
    };
    lines.first().is_none_or(begun_by)
}

/// It runs here, and the source knows.
fn settle(mut wire: Wire, orphan: &mut Orphan, id: &MigrationId, pid: i32) -> Outcome {
    let farewell = wire.expect("the farewell", |message| match message {
        Message::Done => Ok(()),
        other => Err(other),
    });
    if let Err(error) = farewell {
        tracing::warn!(%error, "the source said no farewell");
    }
    let leftovers = orphan.complete();
    let _ = wire.say(&Message::Settled { fill: None, leftovers: leftovers.clone() });
    Outcome::Running { migration: id.clone(), container: orphan.name.clone(), pid, leftovers }
}
