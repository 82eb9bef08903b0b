//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use godwit_transfer::tree::TreeError;

use crate::{Digest, ObjectId};

/// Why the store could not do what it was asked for. No container depends on it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
    /// The directory holds something else, or the store of another godwit.
    #[error("`{}` is no store that this godwit knows: {why}", path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// It is not in the store.
    #[error("the store has no {0}")]
    Missing(ObjectId),
    /// It is not what its name says; it was moved aside, and is missing from now on.
    #[error("{id} was damaged and has been moved aside: {why}")]
    Damaged {
        /// Which.
        id: ObjectId,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no room left within the quota: all that is in the store is pinned, or being read or written.
    #[error(
        "the store's quota of {quota} bytes has no room for {need} bytes more: {used} are in use and nothing of that may go"
    )]
    Full {
        /// Bytes to be written.
        need: u64,
        /// Bytes that are there.
        used: u64,
        /// Bytes that may be there.
        quota: u64,
    },
    /// A manifest that breaks the rules.
    #[error("manifest {digest} cannot be used: {why}")]
    Manifest {
        /// Which.
        digest: Digest,
        /// Which rule.
        why: String,
    },
    /// What shall be kept can be no manifest.
    #[error("what was read cannot be kept: {0}")]
    Unfit(String),
    /// It is not known any more what a pin keeps, so nothing can be said to be superfluous.
    #[error("the pin `{pin}` keeps what cannot be read")]
    LostPin {
        /// Which.
        pin: String,
        /// Why not.
        #[source]
        source: Box<StoreError>,
    },
    /// Whoever wanted it does not any more.
    #[error("it was interrupted")]
    Interrupted,
    /// No name for a pin.
    #[error("`{0}` is no name for a pin: it is written KIND/NAME, with letters, digits and `._:@+-`")]
    PinName(String),
    /// No such pin.
    #[error("there is no pin `{0}`")]
    NoPin(String),
    /// A tree that cannot be read or written.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A directory that shall be filled has something in it.
    #[error("`{}` is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// Those who write to a tree did not stand still while it was read.
    #[error("what writes to it does not stand still")]
    Writers(#[from] crate::Restless),
    /// What was being read became something else.
    #[error("`{path}` was changed while it was read")]
    Changed {
        /// Which entry of the tree.
        path: String,
    },
}

impl StoreError {
    /// `f` for `map_err`: the failed act, and on what.
    pub(crate) fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Io { act, path, source }
    }
}
