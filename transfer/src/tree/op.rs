//! What travels: the operations that turn the destination's tree into the source's.

use serde::{Deserialize, Serialize};

use super::{Meta, TreePath};

/// One step. Paths name entries of the destination's tree as the steps before have left it. None is larger than one
/// [`SEGMENT`](super::SEGMENT) and its frame, about 8.1 MiB, save an entry with uncommonly many extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeOp {
    /// Takes an entry away, a directory with all that is in it.
    Remove {
        /// The entry.
        path: TreePath,
    },
    /// Moves an entry that is no directory.
    Rename {
        /// Where it is.
        from: TreePath,
        /// Where it shall be.
        to: TreePath,
    },
    /// Gives an entry that is no directory another name.
    HardLink {
        /// The new name.
        path: TreePath,
        /// A name it has.
        to: TreePath,
    },
    /// Makes a directory; its [`TreeOp::Meta`] follows when its contents are there.
    Dir {
        /// The directory.
        path: TreePath,
    },
    /// Makes a symbolic link.
    Symlink {
        /// The link.
        path: TreePath,
        /// Where it points, not interpreted.
        #[serde(with = "serde_bytes")]
        destination: Vec<u8>,
        /// Owner, time, attributes.
        meta: Meta,
    },
    /// Makes a FIFO.
    Fifo {
        /// The FIFO.
        path: TreePath,
        /// Owner, mode, time, attributes.
        meta: Meta,
    },
    /// Makes a device node.
    Device {
        /// The node.
        path: TreePath,
        /// A block device, not a character device.
        block: bool,
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
        /// Owner, mode, time, attributes.
        meta: Meta,
    },
    /// Opens a regular file; [`TreeOp::Segment`] and [`TreeOp::Hole`] are about it until [`TreeOp::FileEnd`].
    FileBegin {
        /// The file.
        path: TreePath,
        /// Bytes it will have at most.
        size: u64,
        /// The destination has no such file yet: it begins empty, in an inode of its own. Otherwise it is written in
        /// place.
        new: bool,
    },
    /// The bytes of one segment of the open file.
    Segment {
        /// Its number; it begins at `index` × [`SEGMENT`](super::SEGMENT).
        index: u64,
        /// BLAKE3 of all its bytes after this step.
        digest: [u8; 32],
        /// The bytes.
        body: Body,
    },
    /// A segment of the open file that has become all zeros.
    Hole {
        /// Its number.
        index: u64,
    },
    /// Ends the open file.
    FileEnd {
        /// Its bytes: what lies beyond is cut off, what is missing is a hole. At most the size announced.
        size: u64,
        /// Owner, mode, time, attributes.
        meta: Meta,
    },
    /// Sets owner, mode, time and attributes of an entry of any kind.
    Meta {
        /// The entry.
        path: TreePath,
        /// What it shall have.
        meta: Meta,
    },
    /// Ends a round: the destination now equals the source as the walk found it.
    RoundEnd {
        /// The number of the round, from 0.
        round: u32,
    },
}

/// How the bytes of a segment are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// As they are.
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The blocks that differ from the segment that the destination has.
    Blocks {
        /// Bytes of the segment after this step.
        len: u32,
        /// In ascending order.
        blocks: Vec<ChangedBlock>,
    },
    /// A `fast_rsync` delta from the segment that the destination has.
    Delta {
        /// Bytes of the segment after this step.
        len: u32,
        /// The delta.
        #[serde(with = "serde_bytes")]
        delta: Vec<u8>,
    },
}

/// A run of changed bytes within a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedBlock {
    /// Where it begins in the segment, in bytes.
    pub at: u32,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl Body {
    /// Bytes that travel, roughly.
    pub fn weight(&self) -> usize {
        match self {
            Body::Data(data) => data.len(),
            Body::Blocks { blocks, .. } => blocks.iter().map(|block| block.data.len() + 8).sum(),
            Body::Delta { delta, .. } => delta.len(),
        }
    }
}

impl TreeOp {
    /// File bytes that travel with this step, roughly: for progress and for shaping. 0 when it only tells of names and
    /// The entries that it names.
    pub(super) fn paths(&self) -> [Option<&TreePath>; 2] {
        match self {
            TreeOp::Remove { path }
            | TreeOp::Dir { path }
            | TreeOp::Symlink { path, .. }
            | TreeOp::Fifo { path, .. }
            | TreeOp::Device { path, .. }
            | TreeOp::FileBegin { path, .. }
            | TreeOp::Meta { path, .. } => [Some(path), None],
            TreeOp::Rename { from, to } => [Some(from), Some(to)],
            TreeOp::HardLink { path, to } => [Some(path), Some(to)],
            TreeOp::Segment { .. }
            | TreeOp::Hole { .. }
            | TreeOp::FileEnd { .. }
            | TreeOp::RoundEnd { .. } => [None, None],
        }
    }

    /// metadata.
    pub fn weight(&self) -> usize {
        match self {
            TreeOp::Segment { body, .. } => body.weight(),
            _ => 0,
        }
    }
}
