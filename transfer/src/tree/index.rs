//! What the destination holds, kept at the source.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::delta::signature_len;
use super::{Kind, Meta, SEGMENT, TreeError, TreePath};

/// A node of an index: names with the same id are hard links to one inode of the destination.
pub type NodeId = u64;

/// What the destination holds: every entry's kind and metadata, every file's segments. Empty by default: a destination
/// that holds nothing but its root directory.
///
/// About 12 bytes for every 4 KiB of file data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeIndex {
    pub(super) names: BTreeMap<TreePath, NodeId>,
    pub(super) nodes: HashMap<NodeId, Node>,
}

/// An inode of the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// What it is, with its contents.
    pub kind: Kind,
    /// Its metadata.
    pub meta: Meta,
    /// How many names it has.
    pub links: u64,
}

/// The contents of a regular file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Bytes.
    pub size: u64,
    /// The segments by number; one that is not here is all zeros.
    pub segments: BTreeMap<u64, SegmentRecord>,
}

/// The contents of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Bytes, at most [`SEGMENT`].
    pub len: u32,
    /// BLAKE3 of them.
    pub digest: [u8; 32],
    /// For each 4096-byte block the rolling and the short hash of `fast_rsync`.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl TreeIndex {
    /// The bytes to send; [`TreeIndex::from_bytes`] takes them.
    ///
    /// # Errors
    /// Never in practice: encoding to memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TreeError> {
        Ok(postcard::to_stdvec(self)?)
    }

    /// Takes an index that another host has sent.
    ///
    /// # Errors
    /// [`TreeError::Decode`] when the bytes are no index, [`TreeError::Refused`] when it contradicts itself.
    pub fn from_bytes(bytes: &[u8]) -> Result<TreeIndex, TreeError> {
        let index: TreeIndex = postcard::from_bytes(bytes)?;
        index.check()?;
        Ok(index)
    }

    /// Whether the destination holds nothing.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The entries in the order of their paths; the root is the empty path.
    pub fn entries(&self) -> impl Iterator<Item = (&TreePath, &Node)> {
        self.names.iter().filter_map(|(path, id)| Some((path, self.nodes.get(id)?)))
    }

    /// The entry at a path.
    pub fn get(&self, path: &TreePath) -> Option<&Node> {
        self.nodes.get(self.names.get(path)?)
    }

    /// Bytes of all files, hard links counted once, holes included.
    pub fn file_bytes(&self) -> u64 {
        let size = |node: &Node| if let Kind::File(file) = &node.kind { file.size } else { 0 };
        self.nodes.values().map(size).fold(0, u64::saturating_add)
    }

    /// An id that no node has.
    pub(super) fn free_id(&self) -> NodeId {
        self.nodes.keys().max().map_or(0, |id| id.saturating_add(1))
    }

    pub(super) fn id(&self, path: &TreePath) -> Option<NodeId> {
        self.names.get(path).copied()
    }

    pub(super) fn is_dir(&self, path: &TreePath) -> bool {
        self.get(path).is_some_and(|node| node.kind == Kind::Dir)
    }

    /// A new entry.
    pub(super) fn insert(&mut self, path: TreePath, id: NodeId, kind: Kind, meta: Meta) {
        self.names.insert(path, id);
        self.nodes.insert(id, Node { kind, meta, links: 1 });
    }

    /// Another name for a node.
    pub(super) fn link(&mut self, path: TreePath, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.links += 1;
            self.names.insert(path, id);
        }
    }

    /// One name away, and the node with the last one.
    pub(super) fn unlink(&mut self, path: &TreePath) -> Option<NodeId> {
        let id = self.names.remove(path)?;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.links -= 1;
            if node.links == 0 {
                self.nodes.remove(&id);
            }
        }
        Some(id)
    }

    /// An entry and all beneath it away; the names that went.
    pub(super) fn remove(&mut self, path: &TreePath) -> Vec<(TreePath, NodeId)> {
        // A path sorts before all beneath it, but `a-b` sorts between `a` and `a/b`.
        let beneath = |name: &&TreePath| name.is_beneath(path);
        let first = path.join(b"\x01").unwrap_or_else(|_| path.clone());
        let mut gone: Vec<TreePath> =
            self.names.range(first..).map(|(name, _)| name).take_while(beneath).cloned().collect();
        gone.push(path.clone());
        gone.into_iter()
            .filter_map(|name| {
                let id = self.unlink(&name)?;
                Some((name, id))
            })
            .collect()
    }

    /// Whether the index is one that a destination could have made.
    pub(super) fn check(&self) -> Result<(), TreeError> {
        let refuse = |path: &TreePath, why| Err(TreeError::Refused { path: path.clone(), why });
        let mut links: HashMap<NodeId, u64> = HashMap::new();
        let mut checked = HashSet::new();
        for (path, id) in &self.names {
            let Some(node) = self.nodes.get(id) else {
                return refuse(path, "the index has a name without a node");
            };
            let count = links.entry(*id).or_default();
            *count += 1;
            if *count > 1 && node.kind == Kind::Dir {
                return refuse(path, "the index has a directory with two names");
            }
            if path.is_root() {
                if node.kind != Kind::Dir {
                    return refuse(path, "the index has a root that is no directory");
                }
            } else if !path.parent().is_root() && !self.is_dir(&path.parent()) {
                return refuse(path, "the index has an entry in what is no directory");
            }
            if let Kind::File(file) = &node.kind
                && checked.insert(id)
                && !file.is_sound()
            {
                return refuse(path, "the index has a segment that does not fit its file");
            }
        }
        if self.nodes.iter().any(|(id, node)| links.get(id) != Some(&node.links) || *id >= NodeId::MAX >> 1) {
            return refuse(&TreePath::root(), "the index has a node with wrong links");
        }
        Ok(())
    }
}

impl FileRecord {
    /// Bytes of the segment `index` of a file of `size` bytes; 0 beyond the end.
    pub(super) fn segment_len(size: u64, index: u64) -> usize {
        let begin = index.saturating_mul(SEGMENT);
        size.saturating_sub(begin).min(SEGMENT) as usize
    }

    fn is_sound(&self) -> bool {
        self.size <= i64::MAX as u64
            && self.segments.iter().all(|(&index, segment)| {
                let len = segment.len as usize;
                len > 0
                    && len == FileRecord::segment_len(self.size, index)
                    && segment.signature.len() == signature_len(len)
            })
    }
}
