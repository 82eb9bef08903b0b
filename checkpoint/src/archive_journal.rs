//! The journal of a checkpoint while it is written: whoever finds the container frozen learns from it why, and what is to be done.
//! It goes when the checkpoint is complete: what there is to know of it then is in the checkpoint.

use crate::order::{Job, Parting};
use crate::recovery::Remains;
use godwit_engine::SourceContainer;
use godwit_migration::journal::{Event, Journal, JournalError, VERSION, checkpoint_as_peer};
use godwit_migration::{MigrationId, Role, remains};
use std::io;
use std::path::Path;

/// See the [module](self).
pub struct CheckpointJournal {
    job: Job,
    journal: Journal,
}

/// Why it could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointJournalError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What must outlast this process.
    #[error("cannot write below godwit's directory")]
    Io(#[from] io::Error),
    /// What the engine would have to know.
    #[error(transparent)]
    Engine(#[from] godwit_engine::EngineError),
}

impl CheckpointJournal {
    /// Of a checkpoint of `container` (`ENGINE:NAME`) at the absolute path `to`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(root: &Path, container: &str, to: &Path) -> Result<Self, CheckpointJournalError> {
        let job = Job::new(root, MigrationId::generate()?);
        let mut journal = Journal::create(&job.dir)?;
        journal.append(Event::Planned {
            version: VERSION,
            migration: job.id.clone(),
            role: Role::Source,
            container: container.to_owned(),
            peer: checkpoint_as_peer(to),
            godwit: env!("CARGO_PKG_VERSION").into(),
        })?;
        journal.append(Event::Prepared)?;
        Ok(Self { job, journal })
    }

    /// Names the checkpoint.
    pub(crate) fn id(&self) -> &MigrationId {
        &self.job.id
    }

    /// What whoever goes on after a crash must know is on disk when this returns.
    pub(crate) fn freezing(
        &mut self,
        container: &mut dyn SourceContainer,
    ) -> Result<(), CheckpointJournalError> {
        let engine = container.facts().engine.to_owned();
        remains::keep(
            &self.job.dir,
            &Remains { engine, container: container.remains()?, parting: Parting::default(), witness: None },
        )?;
        Ok(self.journal.append(Event::Freezing)?)
    }

    /// The images are complete.
    pub(crate) fn dumped(&mut self) -> Result<(), CheckpointJournalError> {
        Ok(self.journal.append(Event::Dumped)?)
    }

    /// The checkpoint is in its place: from here on the container is what it holds, and does not run here again.
    pub(crate) fn committed(&mut self) -> Result<(), CheckpointJournalError> {
        self.journal.append(Event::Restored)?;
        Ok(self.journal.append(Event::Committed)?)
    }

    /// All is as it was, or what could not be put back; a journal that cannot be written does not change that.
    pub(crate) fn undone(&mut self, reason: &str, put_back: &[String]) {
        let events = [
            Event::Failed { reason: reason.to_owned() },
            match put_back {
                [] => Event::RolledBack,
                errors => Event::InDoubt { reason: errors.join("; ") },
            },
        ];
        for event in events {
            if let Err(error) = self.journal.append(event) {
                tracing::warn!(%error, "the journal of the checkpoint could not be written");
            }
        }
    }

    /// It is over. Gives what could not be removed.
    pub(crate) fn close(self) -> Option<String> {
        std::fs::remove_dir_all(&self.job.dir)
            .err()
            .map(|error| format!("`{}`: {error}", self.job.dir.display()))
    }
}
