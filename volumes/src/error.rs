//! What can go wrong with a volume's past.

use crate::lineage::Divergence;
use crate::moment::MomentError;
use crate::users::User;
use godwit_store::StoreError;
use godwit_transfer::tree::TreeError;
use std::io;
use std::path::{Path, PathBuf};

/// Why nothing was done. Unless it says otherwise, the volume is as it was.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The content store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system said no.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file system was to show it as of one moment.
    #[error(transparent)]
    Moment(#[from] MomentError),
    /// A file system's own snapshot did not come, or did not go.
    #[error("{0}")]
    Stream(String),
    /// What was beside a volume could not be taken away.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It is no volume.
    #[error("`{volume}` is no volume: {why}")]
    NoVolume {
        /// As the user wrote it.
        volume: String,
        /// Why not.
        why: String,
    },
    /// No such snapshot.
    #[error("there is no snapshot `{0}`")]
    NoSnapshot(String),
    /// A name that means several snapshots.
    #[error("`{name}` means several snapshots: {}", found.join(", "))]
    Ambiguous {
        /// As the user wrote it.
        name: String,
        /// Which.
        found: Vec<String>,
    },
    /// Somebody uses the volume.
    #[error("`{volume}` is in use")]
    InUse {
        /// Its name.
        volume: String,
        /// By whom.
        users: Vec<User>,
    },
    /// It is written to on another node.
    #[error("`{volume}` belongs to {node}, in generation {generation}: what is here is a copy that stayed")]
    Elsewhere {
        /// Its name.
        volume: String,
        /// Whose it is.
        node: String,
        /// How often it has changed hands.
        generation: u64,
    },
    /// Snapshots of two nodes of which neither has what the other has.
    #[error("the histories of `{volume}` have diverged: {divergence}")]
    Diverged {
        /// Its name.
        volume: String,
        /// Since when, and what there is.
        divergence: Box<Divergence>,
    },
    /// Another command works on it.
    #[error("another godwit works on `{0}`")]
    Locked(String),
    /// Something is mounted there, or it lies where nothing can be put in its place at once.
    #[error("`{}` cannot be exchanged: {why}", path.display())]
    Fixed {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
}

impl VolumeError {
    /// `f` for `map_err`: the failed act, and on what.
    pub(crate) fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError + use<> {
        let path = path.to_owned();
        move |source| VolumeError::Io { act, path, source }
    }
}
