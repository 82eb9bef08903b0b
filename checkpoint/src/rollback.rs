//! Undoing: whatever was begun before the commit, in the order that hurts the container least.

use crate::files::Files;
use crate::source::{Source, SourceError};
use godwit_engine::SourceContainer;
use godwit_migration::hooks::Moment;
use godwit_migration::journal::{self, JournalState};
use godwit_migration::plan::Strategy;
use godwit_migration::quantity::show_duration;
use godwit_migration::{Disposition, Failure, FailureKind};
use godwit_transfer::{Incoming, Message, WireError};
use std::time::Duration;

/// How long the destination may take to undo what it made.
const UNDO_PATIENCE: Duration = Duration::from_secs(30);

/// Link, lock, thaw: in this order, since what the container says first must be able to leave. Each is tried whatever became of
/// the others; gives what could not be put back.
pub(crate) fn put_back(container: &mut dyn SourceContainer) -> Vec<String> {
    let done = [
        ("its network link", container.reconnect()),
        ("its network lock", container.unlock_network()),
        ("its freezer", container.thaw()),
        ("its cgroup", container.leave_as_found()),
    ];
    let failed = done.into_iter().filter_map(|(what, done)| Some((what, done.err()?)));
    failed.map(|(what, error)| format!("{what} could not be put back: {error}")).collect()
}

impl Source<'_> {
    /// Makes it as if nothing had been tried, and says so. After the commit nothing is undone: nobody can know then
    /// whether the destination has let it run.
    pub(crate) fn undo(mut self, error: SourceError) -> Failure {
        let reason = error.to_string();
        self.member.iter_mut().for_each(|member| member.fail(&reason));
        if matches!(self.journal.state(), JournalState::Committed | JournalState::Running) {
            return self.in_doubt(error);
        }
        // whether there may be something of it at the destination, which may not notice that the link is gone
        let is_there = self.journal.state() != JournalState::Planned;
        let journaled = self.journal.append(journal::Event::Failed { reason: reason.clone() });
        // the container first, and at once: the peer can wait
        let throttled = self.unthrottle().err();
        // what is open here an engine cannot mount again
        self.files = Files::none_yet(false);
        let here = put_back(&mut *self.container);
        let stopped_for = self.stopped_for();
        // who waits for it to run
        let untold = if here.is_empty() { self.tell(Moment::Rollback) } else { None };
        // it runs: now there is time to let go of its memory, and of the further connections
        self.pages = None;
        self.streams = None;
        let (cancelled, undone) = self.cancel_peer(&reason, error.is_outgrown());
        let leftovers = [
            journaled.err().map(|error| error.to_string()),
            self.job.remove_images().err().map(|error| format!("images: {error}")),
            throttled.map(|error| format!("its CPU limit could not be put back: {error}")),
            untold,
        ];
        let mut failure = self.describe(error);
        if let Some(stopped_for) = stopped_for {
            let how = if self.plan.strategy == Strategy::Restart { "started again" } else { "thawed" };
            failure = failure.because(format!("it was {how} here after {}", show_duration(stopped_for)));
        }
        failure.causes.extend(self.container.damage());
        failure.causes.extend(cancelled);
        failure.causes.extend(leftovers.into_iter().flatten());
        if !here.is_empty() {
            let why = here.join("; ");
            let _ = self.journal.append(journal::Event::InDoubt { reason: why.clone() });
            failure.kind = FailureKind::InDoubt;
            return failure.because(why).hint("thaw its cgroup by hand").at(Disposition::InDoubt);
        }
        let untold = (is_there && !undone).then_some(journal::Event::Untold);
        for event in [Some(journal::Event::RolledBack), untold].into_iter().flatten() {
            if let Err(error) = self.journal.append(event) {
                failure = failure.because(error);
            }
        }
        if !self.container.is_alive() {
            return failure.because("it has ended here by itself meanwhile").at(Disposition::NoContainer);
        }
        failure.at(Disposition::RunningAtSource)
    }

    /// Tells the destination to undo what it made, but for what another attempt can use where one follows; gives what to tell the
    /// user of it, and whether it was undone.
    fn cancel_peer(&mut self, reason: &str, again: bool) -> (Vec<String>, bool) {
        if self.was_refused {
            return (vec![], true);
        }
        self.wire.ignore_cancel();
        self.bandwidth.set(0);
        self.wire.set_patience(UNDO_PATIENCE);
        let host = &self.plan.destination;
        if let Err(error) = self.wire.say(&Message::Cancel { reason: reason.to_owned(), again }) {
            return match error {
                // it gave up by itself, and said so: then it has undone everything
                WireError::Peer(_) => (vec![], true),
                error => (vec![format!("{host} could not be told to undo: {error}")], false),
            };
        }
        loop {
            match self.wire.hear() {
                Ok(Incoming::Message(Message::Undone { leftovers })) => {
                    let left = leftovers.into_iter().map(|left| format!("left over on {host}: {left}"));
                    return (left.collect(), true);
                }
                // what was under way when we gave up
                Ok(_) => {}
                Err(WireError::Peer(_)) => return (vec![], true),
                Err(WireError::Closed { .. } | WireError::Broken { .. }) => return (vec![], false),
                Err(error) => {
                    return (vec![format!("{host} did not say that it has undone: {error}")], false);
                }
            }
        }
    }

    fn in_doubt(mut self, error: SourceError) -> Failure {
        let reason = error.to_string();
        let _ = self.journal.append(journal::Event::InDoubt { reason });
        let host = &self.plan.destination;
        let message = match &error {
            SourceError::Wire(WireError::Peer(_)) => format!("{host} failed after switchover was granted"),
            SourceError::Wire(_) => format!("lost contact with {host} after switchover was granted"),
            _ => "this side failed after switchover was granted".to_owned(),
        };
        Failure::new(FailureKind::InDoubt, message)
        .because(error)
        .hint(format!(
            "look on {}: if `{}` runs there, remove the frozen copy here; if not, and only then, thaw it here",
            self.plan.destination, self.name
        ))
        .hint(format!("`godwit log {}` on both hosts tells what was done", self.job.id))
    }

    /// The failure for an error, without where the container is.
    fn describe(&self, error: SourceError) -> Failure {
        let host = &self.plan.destination;
        let name = &self.name;
        let is_outgrown = error.is_outgrown();
        match error {
            SourceError::Failure(failure) => *failure,
            SourceError::Wire(WireError::Interrupted) => {
                Failure::new(FailureKind::Interrupted, format!("the migration of `{name}` was interrupted"))
            }
            SourceError::Wire(WireError::Peer(reason)) => {
                let mut failure = *reason;
                failure.message = format!("{host}: {}", failure.message);
                failure.kind = match failure.kind {
                    kind @ (FailureKind::Refused | FailureKind::Missing | FailureKind::Locked) => kind,
                    _ => FailureKind::Failed,
                };
                failure
            }
            SourceError::Wire(error @ (WireError::Version { .. } | WireError::NotGodwit(_))) => {
                Failure::new(FailureKind::Refused, format!("{host} cannot be spoken with")).because(error)
            }
            SourceError::Wire(error) => {
                let kind = if error.may_pass() { FailureKind::LinkLost } else { FailureKind::Failed };
                Failure::new(kind, format!("lost contact with {host}")).because_of(&error)
            }
            SourceError::Criu(error) => {
                let hint = error.explanation().and_then(|explanation| explanation.hint.clone());
                let last =
                    error.explanation().map(|explanation| explanation.last_lines.clone()).unwrap_or_default();
                let mut failure = Failure::new(FailureKind::Failed, format!("CRIU could not dump `{name}`"))
                    .because_of(&error);
                failure.causes.extend(last.into_iter().map(|line| format!("criu: {line}")));
                failure.hints.extend(hint);
                failure
            }
            SourceError::Engine(godwit_engine::EngineError::Blocked { blockers, .. }) => {
                let failure = Failure::new(FailureKind::Missing, format!("`{name}` cannot be moved"));
                blockers.into_iter().fold(failure, |failure, blocker| {
                    let failure = failure.because(blocker.reason);
                    blocker.hint.into_iter().fold(failure, Failure::hint)
                })
            }
            SourceError::Engine(error) => {
                Failure::new(FailureKind::Failed, format!("`{name}` could not be moved")).because_of(&error)
            }
            SourceError::Pages(error) => {
                let message = format!("the memory of `{name}` could not be sent");
                let failure = Failure::new(FailureKind::Failed, message).because_of(&error);
                match is_outgrown {
                    true => Failure { kind: FailureKind::Outgrown, ..failure }.hint(
                        "it grows while it is copied: `--pace full` and more `--bandwidth` copy faster",
                    ),
                    false => failure,
                }
            }
            SourceError::Files(error) => {
                Failure::new(FailureKind::Failed, format!("the files of `{name}` could not be sent"))
                    .because_of(&error)
            }
            SourceError::Journal(error) => {
                Failure::new(FailureKind::Failed, "the journal cannot be written").because_of(&error)
            }
        }
    }
}
