//! Keeps a directory tree at the destination equal to one at the source, in rounds, while it is being written.
//!
//! The source holds a [`TreeIndex`]: what the destination holds, down to the digest and the rolling signature of each
//! [`SEGMENT`] of each file. A round of [`TreeSource`] walks the tree, compares it with the index and emits [`TreeOp`]s
//! for the differences; [`TreeDestination`] applies them. Nothing comes back, so the round under the freeze costs one
//! walk and the bytes that changed.
//!
//! ```text
//!  TreeSource::round ── TreeOp, TreeOp, … ──▶ TreeDestination::apply
//!       │  ▲
//!       ▼  │  what was sent is what the destination holds
//!     TreeIndex ◀── round 0 only: TreeDestination::index of a stale copy, or empty
//! ```

mod atlas;
mod beneath;
mod delta;
mod destination;
mod entry;
mod equal;
mod file_read;
mod file_send;
mod file_write;
mod index;
mod layer;
mod op;
mod path;
mod plan;
mod removal;
mod round;
mod scan;
mod source;
mod survey;
mod watch;

pub use destination::TreeDestination;
pub use entry::{Kind, Meta, Xattr};
pub use equal::{Digest, equal_digest, timeless_digest};
pub use index::{FileRecord, Node, NodeId, SegmentRecord, TreeIndex};
pub use op::{Body, ChangedBlock, TreeOp};
pub use path::{PathError, TreePath};
pub use removal::{empty_plainly, remove_plainly};
pub use source::{Options, RoundError, RoundStats, TreeSource};
pub use watch::ChangeNotice;

use nix::errno::Errno;

/// Bytes of a segment: the piece of a file that is compared, sent and verified as one.
pub const SEGMENT: u64 = 8 << 20;

/// Why a tree could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call failed.
    #[error("cannot {act} `{path}`: {errno}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which entry.
        path: TreePath,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The root of the tree cannot be opened.
    #[error("cannot open the tree `{root}`: {errno}")]
    Root {
        /// The directory.
        root: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// An operation or an index that breaks the rules; nothing of it was carried out.
    #[error("refused `{path}`: {why}")]
    Refused {
        /// The entry it was about.
        path: TreePath,
        /// Which rule.
        why: &'static str,
    },
    /// A path that may not be in a tree.
    #[error("refused a path: {0}")]
    Path(#[from] PathError),
    /// The bytes that would have been written are not the bytes the source read.
    #[error("segment {segment} of `{path}` does not have the digest that the source announced")]
    Digest {
        /// The file.
        path: TreePath,
        /// The segment's number.
        segment: u64,
    },
    /// A delta that does not fit the bytes it is applied to.
    #[error("the delta of segment {segment} of `{path}` cannot be applied: {why}")]
    Delta {
        /// The file.
        path: TreePath,
        /// The segment's number.
        segment: u64,
        /// What does not fit.
        why: String,
    },
    /// Bytes that are no index.
    #[error("the index cannot be decoded: {0}")]
    Decode(#[from] postcard::Error),
    /// An earlier error left it unknown what the destination holds.
    #[error("an earlier error ended this transfer; begin again from the destination's index")]
    Broken,
}

impl TreeError {
    /// `f` for `map_err`: the failed act and its entry.
    fn io(act: &'static str, path: &TreePath) -> impl FnOnce(Errno) -> TreeError + use<> {
        let path = path.clone();
        move |errno| TreeError::Io { act, path, errno }
    }
}
