//! Whoever wants to hear of the migration is called.

use crate::rounds::Insight;
use crate::source::{Source, SourceError};
use godwit_hooks::CallError;
use godwit_migration::downtime::Stopwatch;
use godwit_migration::hooks::Moment;
use godwit_migration::{Failure, FailureKind, Phase};
use godwit_transfer::WireError;

impl From<CallError> for SourceError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Journal(error) => error.into(),
            CallError::Interrupted => WireError::Interrupted.into(),
            CallError::Hook { moment, why } => {
                let failure = Failure::new(FailureKind::Failed, format!("the hook `{moment}` failed"));
                SourceError::Failure(Box::new(why.into_iter().fold(failure, Failure::because)))
            }
        }
    }
}

impl Source<'_> {
    /// Before the first round; from here on a rollback is told.
    pub(crate) fn call_pre_copy(&mut self) -> Result<(), SourceError> {
        self.calls.announce(&mut self.journal)?;
        self.call(Moment::PreCopy)
    }

    /// The application gets ready. What it has written meanwhile goes in a round of its own, so that it is not left to the freeze.
    pub(crate) fn shut_down(&mut self) -> Result<(), SourceError> {
        if !self.calls.wants(Moment::Shutdown) {
            return Ok(());
        }
        self.phase(Phase::Shutdown, |source| {
            source.call(Moment::Shutdown)?;
            // another way of reading memory would stop it once more
            if source.pages.is_some() {
                source.one_more_round(&mut Insight::default())?;
            }
            source.calls.close_door();
            Ok(())
        })
    }

    /// The application stands still by itself, right before it is made to.
    pub(crate) fn quiesce(&mut self) -> Result<(), SourceError> {
        if !self.calls.wants(Moment::Quiesce) {
            return Ok(());
        }
        self.phase(Phase::Quiesce, |source| source.call(Moment::Quiesce))
    }

    /// Under the freeze: what it takes has its own part of the downtime.
    pub(crate) fn call_post_freeze(&mut self) -> Result<(), SourceError> {
        if self.calls.wants(Moment::PostFreeze) {
            self.call(Moment::PostFreeze)?;
            self.lap(Stopwatch::hooked);
        }
        Ok(())
    }

    /// Everybody of a moment before the commit.
    pub(crate) fn call(&mut self, moment: Moment) -> Result<(), SourceError> {
        Ok(self.calls.call(moment, &mut self.journal, Some(&self.cancel))?)
    }

    /// Those who must be told, whatever becomes of it. Gives what went wrong.
    pub(crate) fn tell(&mut self, moment: Moment) -> Option<String> {
        self.calls.close_door();
        self.calls.call(moment, &mut self.journal, None).err().map(|error| error.to_string())
    }
}
