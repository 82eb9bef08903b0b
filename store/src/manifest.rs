//! What is made of which chunks: trees, and what is known of them.
//!
//! A manifest has one encoding only: `GWM`, the version (1), then [`Manifest`] in postcard's format, entries in the order of
//! their paths. Its digest is its name, so equal trees have equal names. What is read was possibly written by somebody
//! else: nothing that breaks a rule gets past [`Manifest::decode`].

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use godwit_transfer::tree::{Meta, TreePath};
use serde::{Deserialize, Serialize};

use crate::object::MAX_MANIFEST;
use crate::{Digest, ObjectId};

const MAGIC: [u8; 4] = *b"GWM\x01";

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages of a group: one bit each.
pub const GROUP_PAGES: u64 = 64;

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manifest {
    /// Of a tree of files, as a volume or a layer is one.
    Tree(Tree),
    /// Of a tree that more is known of: a checkpoint, or a snapshot of a volume.
    Described(Described),
}

/// A tree of files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// In the order of their paths, the root first. Without the root: a file that is the whole tree.
    pub entries: Vec<Entry>,
}

/// An entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is.
    pub path: TreePath,
    /// What it is.
    pub node: Node,
}

/// What an entry is. Sockets are not kept: they mean nothing without the process that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// A directory.
    Dir {
        /// Owner, mode, time, attributes.
        meta: Meta,
    },
    /// A regular file.
    File {
        /// Owner, mode, time, attributes.
        meta: Meta,
        /// Bytes, holes included.
        size: u64,
        /// What is in it.
        content: Content,
    },
    /// A symbolic link.
    Symlink {
        /// Owner, time, attributes.
        meta: Meta,
        /// Where it points, not interpreted.
        #[serde(with = "serde_bytes")]
        to: Vec<u8>,
    },
    /// A FIFO.
    Fifo {
        /// Owner, mode, time, attributes.
        meta: Meta,
    },
    /// A device node.
    Device {
        /// Owner, mode, time, attributes.
        meta: Meta,
        /// A block device, not a character device.
        block: bool,
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// Another name of an entry before it that is no directory.
    Link {
        /// Its first name.
        to: TreePath,
    },
}

/// The bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Pieces, one after the other, cut where the content says (FastCDC): what is inserted moves no other cut.
    Pieces(Vec<Piece>),
    /// Memory pages of CRIU's, one after the other in the order of their addresses, cut where an address begins a group: what
    /// comes or goes elsewhere in memory moves no other cut.
    Pages(Vec<PageGroup>),
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Zeros before it, bytes.
    pub gap: u64,
    /// Its bytes.
    pub len: u32,
    /// The chunk that it is.
    pub chunk: Digest,
}

/// Pages of one group of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageGroup {
    /// Address of its first page, divided by the bytes of a group.
    pub number: u64,
    /// Those of its pages that are in the file; the lowest bit is the first page.
    pub present: u64,
    /// Those of them that are not all zeros.
    pub filled: u64,
    /// The filled ones, one after the other.
    pub chunk: Option<Digest>,
}

/// A tree, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// The manifest of the tree.
    pub tree: Digest,
    /// What whoever put it here knows of it: `container`, `volume`, `host` and such.
    pub facts: BTreeMap<String, String>,
}

impl Manifest {
    /// The one encoding.
    ///
    /// # Errors
    /// When it breaks a rule, or is larger than a manifest may be.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        self.check()?;
        self.to_bytes()
    }

    fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let bytes = postcard::to_extend(self, MAGIC.to_vec()).map_err(|error| error.to_string())?;
        if bytes.len() > MAX_MANIFEST {
            return Err(format!("it would have more than {MAX_MANIFEST} bytes"));
        }
        Ok(bytes)
    }

    /// Takes bytes as a manifest.
    ///
    /// # Errors
    /// Which rule they break.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, String> {
        let body =
            bytes.strip_prefix(&MAGIC).ok_or("it does not begin as a manifest of this version does")?;
        let manifest: Manifest = postcard::from_bytes(body).map_err(|error| error.to_string())?;
        manifest.check()?;
        // a second way to write the same would be a second name
        if manifest.to_bytes()? != bytes {
            return Err("it is not written in the one way in which it may be".into());
        }
        Ok(manifest)
    }

    /// Everything that it names itself.
    pub fn children(&self) -> BTreeSet<ObjectId> {
        match self {
            Manifest::Described(described) => BTreeSet::from([ObjectId::manifest(described.tree)]),
            Manifest::Tree(tree) => {
                tree.entries.iter().flat_map(Entry::chunks).map(ObjectId::chunk).collect()
            }
        }
    }
}

impl Tree {
    /// Bytes of all files, hard links counted once, holes included.
    pub fn file_bytes(&self) -> u64 {
        let size = |entry: &Entry| if let Node::File { size, .. } = &entry.node { *size } else { 0 };
        self.entries.iter().map(size).fold(0, u64::saturating_add)
    }
}

impl Entry {
    fn chunks(&self) -> Vec<Digest> {
        match &self.node {
            Node::File { content: Content::Pieces(pieces), .. } => {
                pieces.iter().map(|piece| piece.chunk).collect()
            }
            Node::File { content: Content::Pages(groups), .. } => {
                groups.iter().filter_map(|group| group.chunk).collect()
            }
            _ => Vec::new(),
        }
    }
}
