//! What ends a migration early, at the destination.

use crate::pages::PagesError;
use crate::recovery;
use crate::trees::TreesError;
use godwit_criu::images::ImageError;
use godwit_engine::EngineError;
use godwit_migration::MigrationId;
use godwit_migration::journal::JournalError;
use godwit_transfer::{Refusal, WireError};
use std::path::PathBuf;

impl DestinationError {
    /// The source comes again, or may.
    pub(crate) fn may_be_tried_again(&self) -> bool {
        matches!(self, Self::Cancelled { again: true, .. }) || self.is_link_lost()
    }

    /// The source cannot be heard any more: it may come back.
    pub(crate) fn is_link_lost(&self) -> bool {
        use crate::streams::StreamError;
        let (Self::Wire(error) | Self::Pages(PagesError::Stream(StreamError::Wire(error)))) = self else {
            return false;
        };
        matches!(error, WireError::Closed { .. } | WireError::Broken { .. } | WireError::Silent(_))
    }
}

/// Anything that ends a migration early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DestinationError {
    /// The source gave up.
    #[error("{reason}")]
    Cancelled {
        /// Why.
        reason: String,
        /// It tries again at once.
        again: bool,
    },
    /// This host said no.
    #[error("refused")]
    Refused(Vec<Refusal>),
    /// Somebody else has it.
    #[error("{0}")]
    Locked(String),
    /// The witness.
    #[error(transparent)]
    Witness(#[from] recovery::WitnessError),
    /// The source went after the preflight.
    #[error("only asked")]
    OnlyAsked,
    /// The wire.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The container, its runtime or the kernel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The files.
    #[error(transparent)]
    Trees(#[from] TreesError),
    /// The source resumes a migration that was broken off.
    #[error("migration {migration} is resumed")]
    Resumed {
        /// Which.
        migration: MigrationId,
        /// Nothing of what has come is to be kept.
        forget: bool,
    },
    /// A further connection of another process's migration.
    #[error("a further connection of migration {migration}")]
    Further {
        /// Whose.
        migration: MigrationId,
        /// Which.
        stream: u16,
    },
    /// Memory that comes by itself.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The images.
    #[error("the images do not hold together")]
    Images(#[from] ImageError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file of godwit's own.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}
