//! What ends a migration early, at the source.

use crate::files::FilesError;
use crate::pages::PagesError;
use crate::tracker::TrackerError;
use godwit_engine::EngineError;
use godwit_memory::ledger::LedgerError;
use godwit_migration::journal::JournalError;
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::WireError;

/// Anything that ends a migration early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The wire, or the other side over it.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The container, its runtime or its kernel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] godwit_criu::CriuError),
    /// Its memory.
    #[error(transparent)]
    Pages(PagesError),
    /// The container's files.
    #[error(transparent)]
    Files(FilesError),
    /// The journal could not be written: nothing may go on without it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A failure that is complete already.
    #[error(transparent)]
    Failure(Box<Failure>),
}

impl SourceError {
    /// The container's memory outgrew what the destination keeps: that is mended by keeping more.
    pub(crate) fn is_outgrown(&self) -> bool {
        matches!(self, Self::Pages(PagesError::Room(LedgerError::Full { .. })))
    }
}

impl From<FilesError> for SourceError {
    /// What the other side said, or the user, is not about files although it came while they were sent.
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::Wire(error) => error.into(),
            error => Self::Files(error),
        }
    }
}

impl From<PagesError> for SourceError {
    /// As with files.
    fn from(error: PagesError) -> Self {
        match error {
            PagesError::Wire(error) => error.into(),
            PagesError::Criu(error) => error.into(),
            error => Self::Pages(error),
        }
    }
}

impl From<TrackerError> for SourceError {
    fn from(error: TrackerError) -> Self {
        match error {
            TrackerError::Criu(error) => error.into(),
            TrackerError::Engine(error) => error.into(),
        }
    }
}

/// A thread of this process ended as no thread may.
pub(crate) fn thread_died(what: &str) -> SourceError {
    SourceError::Failure(Box::new(Failure::new(FailureKind::Failed, format!("the thread of {what} died"))))
}
