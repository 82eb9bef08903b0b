//! Why a checkpoint could not be written or read.

use crate::archive_journal::CheckpointJournalError;
use crate::digests::DigestError;
use crate::sealed::SealError;
use godwit_criu::CriuError;
use godwit_engine::EngineError;
use godwit_transfer::tree::TreeError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The container, its runtime or the kernel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The files.
    #[error("cannot copy `{}`", path.display())]
    Tree {
        /// Which tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// The checkpoint's own files.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a checkpoint of this format.
    #[error("`{}` is not a checkpoint: {reason}", path.display())]
    NotOne {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Its journal: nothing may be frozen without it.
    #[error("the journal cannot be written")]
    Journal(#[from] CheckpointJournalError),
    /// Its digests.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// It is not what was written.
    #[error("`{}` is damaged: {}", path.display(), damages.join("; "))]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What of it, a line each.
        damages: Vec<String>,
    },
    /// The checkpoint that it shares content with.
    #[error("`{}` needs its parent, the checkpoint {id}: {reason}", path.display())]
    Parent {
        /// The directory of the one that needs it.
        path: PathBuf,
        /// The parent's id.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No checkpoint can share content with it.
    #[error("`{}` cannot be the parent of a checkpoint: {reason}", path.display())]
    NoParent {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The seal.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl ArchiveError {
    /// What to do about it, where the checkpoint is what is wrong.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Parent { .. } => {
                "put its parent beside it, as it was written: checkpoints that share content are copied and kept together"
            }
            Self::NoParent { .. } => "write a whole one, without `--parent`",
            Self::NotOne { .. } => "name the directory or file that `godwit checkpoint --to` wrote",
            _ => "use another copy of it",
        }
    }
}

pub(crate) fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Io { act, path, source }
}
