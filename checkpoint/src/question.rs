//! Asking whether to switch over although the limit cannot be met, while further rounds keep the connection alive and the
//! memory over there fresh.

use crate::source::{Source, SourceError};
use godwit_migration::convergence::Verdict;
use godwit_migration::observer::Question;
use godwit_migration::quantity::show_duration;
use godwit_transfer::WireError;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Rounds while the answer is waited for begin this far apart: they must not take the link and the processors for nothing.
const PAUSE: Duration = Duration::from_millis(500);
/// How long Ctrl-C may wait.
const LOOK: Duration = Duration::from_millis(50);

/// A question that was asked.
pub(crate) struct Asked {
    answer: Receiver<bool>,
    since: Instant,
    /// The answer was yes, one more round ago.
    yes: bool,
}

impl Source<'_> {
    /// Turns the verdict to ask into one of the others: another round as long as there is no answer. Every other verdict stays
    /// what it is; a limit that is met meanwhile needs no answer.
    pub(crate) fn answered(
        &self,
        verdict: Verdict,
        asked: &mut Option<Asked>,
    ) -> Result<Verdict, SourceError> {
        let Verdict::Ask { expected, why } = verdict else { return Ok(verdict) };
        if asked.is_none() {
            let question = Question { expected, limit: self.plan.limits.max_downtime };
            *asked = self.observer.ask(&question).map(|answer| Asked {
                answer,
                since: Instant::now(),
                yes: false,
            });
        }
        let Some(asked) = asked else {
            return Ok(Verdict::GiveUp { expected, why: format!("{why}, and there is nobody to ask") });
        };
        let give_up = |reason: &str| Verdict::GiveUp { expected, why: format!("{why}, and {reason}") };
        if asked.yes {
            let why = format!("{why}, and the answer was yes");
            return Ok(Verdict::Switchover { expected, over_limit: Some(why) });
        }
        let next_round = Instant::now() + PAUSE;
        loop {
            match asked.answer.recv_timeout(LOOK) {
                Ok(true) => {
                    // what was written while the answer was waited for must not wait for the freeze
                    asked.yes = true;
                    return Ok(Verdict::Another { expected });
                }
                Ok(false) => return Ok(give_up("the answer was no")),
                Err(RecvTimeoutError::Disconnected) => return Ok(give_up("nobody can answer")),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.cancel.is_raised() {
                return Err(WireError::Interrupted.into());
            }
            let patience = self.observer.patience();
            if asked.since.elapsed() >= patience {
                return Ok(give_up(&format!("nobody answered within {}", show_duration(patience))));
            }
            if Instant::now() >= next_round {
                return Ok(Verdict::Another { expected });
            }
        }
    }
}
