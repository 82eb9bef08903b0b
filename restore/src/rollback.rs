//! Undoing: whatever was begun before the source gave its word.

use crate::destination::{Destination, Outcome};
use crate::error::DestinationError;
use crate::job::{Job, remove_images};
use crate::pages::IncomingPages;
use crate::parked::{Attempt, Parking};
use crate::recovery::WitnessError;
use crate::streams;
use godwit_migration::journal::{self, JournalState};
use godwit_migration::{Disposition, Failure, FailureKind};
use godwit_transfer::{Incoming, Message, WireError};
use std::time::Duration;

impl Destination<'_> {
    /// Removes what was made here, unless the container may already be this side's to run.
    pub(crate) fn undo(mut self, error: DestinationError) -> Result<Outcome, Failure> {
        let reason = error.to_string();
        let Some(mut job) = self.job.take() else { return self.not_begun(error) };
        let state = job.journal.state();
        if matches!(state, JournalState::Committed | JournalState::Running) {
            let failure = in_doubt(
                &job,
                &error,
                "the source gave its word, but the container could not be let run here",
            );
            let _ = job.journal.append(journal::Event::InDoubt { reason });
            let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
            return Err(failure);
        }
        let link_lost = error.is_link_lost();
        if state == JournalState::Restored && link_lost {
            let failure = in_doubt(&job, &error, "the link was lost while the container is held frozen here");
            let _ = job.journal.append(journal::Event::InDoubt { reason });
            return Err(failure);
        }
        if matches!(error, DestinationError::Witness(WitnessError::Silent(_))) {
            // the claim may stand: were this copy removed, the witness would give the container to nobody
            let failure = in_doubt(&job, &error, "the container is held frozen here");
            let _ = job.journal.append(journal::Event::InDoubt { reason });
            let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
            return Err(failure);
        }
        self.wire.ignore_cancel();
        let failure = self.describe(&job, &error);
        if let Some(failure) = &failure {
            // the source first: it thaws as soon as it knows
            let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
        }
        let _ = job.journal.append(journal::Event::Failed { reason: reason.clone() });
        let mut leftovers = job.container.as_mut().map(|container| container.abandon()).unwrap_or_default();
        match &self.host.parking {
            Some(parking) if error.may_be_tried_again() && state == JournalState::PreCopy => {
                leftovers.extend(self.park(parking, &mut job));
            }
            _ => {
                job.pages.iter_mut().for_each(IncomingPages::abandon);
                leftovers.extend(job.trees.undo());
            }
        }
        leftovers.extend(remove_images(&job.dir).err().map(|error| format!("images: {error}")));
        let _ = job.journal.append(journal::Event::RolledBack);
        self.say_undone(failure.is_some(), &leftovers);
        match failure {
            Some(mut failure) => {
                failure.causes.extend(leftovers.into_iter().map(|left| format!("left over here: {left}")));
                Err(failure)
            }
            None if matches!(error, DestinationError::OnlyAsked) => Ok(Outcome::Examined),
            None => Ok(Outcome::Undone { container: job.name, reason }),
        }
    }

    /// Undoes it for everybody but the next attempt. Gives what could not be removed.
    fn park(&self, parking: &Parking, job: &mut Job) -> Vec<String> {
        let pages = job.pages.take().and_then(IncomingPages::keep);
        let trees = job.trees.close();
        let attempt =
            Attempt { migration: &job.offer.migration, container: &job.name, peer: &self.host.peer.name };
        let left = parking.park(&self.host.root, attempt, trees, pages);
        let removed = left.into_iter().map(|tree| (tree.path().display().to_string(), tree.put_back()));
        removed.filter_map(|(path, done)| Some(format!("`{path}`: {}", done.err()?))).collect()
    }

    /// Answers the source's `Cancel`; after a failure of our own it is still to come.
    fn say_undone(&mut self, wait_for_cancel: bool, leftovers: &[String]) {
        self.wire.set_patience(Duration::from_secs(10));
        let mut cancelled = !wait_for_cancel;
        while !cancelled {
            match self.wire.hear() {
                Ok(incoming) => cancelled = matches!(incoming, Incoming::Message(Message::Cancel { .. })),
                Err(_) => return,
            }
        }
        let _ = self.wire.say(&Message::Undone { leftovers: leftovers.to_vec() });
    }

    /// It ended before anything was made.
    fn not_begun(mut self, error: DestinationError) -> Result<Outcome, Failure> {
        match error {
            DestinationError::Refused(reasons) => Ok(Outcome::Refused { reasons }),
            DestinationError::Cancelled { reason, .. } => {
                self.say_undone(false, &[]);
                Ok(Outcome::Undone { container: String::new(), reason })
            }
            DestinationError::Wire(WireError::Closed { .. }) => Ok(Outcome::Examined),
            DestinationError::Further { migration, stream } => {
                streams::pass_on(self.wire, &self.host.root, &migration, stream).map_err(|error| {
                    Failure::new(FailureKind::Failed, format!("nobody here receives migration {migration}"))
                        .because_of(&error)
                })?;
                Ok(Outcome::PassedOn)
            }
            DestinationError::Resumed { migration, forget } => {
                crate::resume::serve(self.wire, self.host, &migration, forget)
            }
            DestinationError::Locked(why) => {
                let failure = Failure::new(FailureKind::Locked, why);
                let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
                self.say_undone(true, &[]);
                Err(failure)
            }
            error => {
                let failure =
                    Failure::new(FailureKind::Failed, "the offer could not be accepted").because_of(&error);
                let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
                self.say_undone(true, &[]);
                Err(failure)
            }
        }
    }

    /// The failure for an error of this side; none when the source wanted to stop.
    fn describe(&self, job: &Job, error: &DestinationError) -> Option<Failure> {
        let failure =
            |message: String| Failure::new(FailureKind::Failed, message).at(Disposition::RunningAtSource);
        let name = &job.name;
        Some(match error {
            DestinationError::Cancelled { .. } | DestinationError::OnlyAsked => return None,
            DestinationError::Wire(WireError::Interrupted) => {
                Failure::new(FailureKind::Interrupted, format!("receiving `{name}` was interrupted"))
                    .at(Disposition::RunningAtSource)
            }
            DestinationError::Wire(WireError::Peer(reason)) => {
                failure(format!("the source gave up: {}", reason.message))
            }
            DestinationError::Wire(error) => {
                failure(format!("lost contact with the source of `{name}`")).because_of(error)
            }
            error if job.journal.state() == JournalState::Restoring => {
                failure(format!("could not restore `{name}`")).because_of(error)
            }
            error => failure(format!("could not receive `{name}`")).because_of(error),
        })
    }
}

fn in_doubt(job: &Job, error: &DestinationError, message: &str) -> Failure {
    Failure::new(FailureKind::InDoubt, format!("`{}`: {message}", job.name))
        .because_of(error)
        .hint("look on the source: if it runs there, remove the frozen copy here; if it is frozen there, too, decide where it shall run")
}
