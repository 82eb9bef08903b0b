//! Whether two trees are the same, by one number.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::beneath::Beneath;
use super::survey::{Keep, survey};
use super::{Kind, Meta, Node, NodeId, TreeError, TreeIndex, TreePath};

/// A BLAKE3 digest of a tree: names, kinds, owners, modes, contents, where links point, device numbers, extended
/// attributes, which names are hard links to one inode, and the times of everything but directories. Sockets and what
/// is mounted within the tree do not count; nor does which zeros are holes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The digest of the tree at `root`: reads all of it, and nobody may write to it meanwhile.
///
/// # Errors
/// When something cannot be read.
pub fn equal_digest(root: &Path) -> Result<Digest, TreeError> {
    survey(&Beneath::open(root)?, Keep::Digests).map(|index| index.equal_digest())
}

/// The same without any times: not every way of copying a directory keeps them to the nanosecond.
///
/// # Errors
/// When something cannot be read.
pub fn timeless_digest(root: &Path) -> Result<Digest, TreeError> {
    let mut index = survey(&Beneath::open(root)?, Keep::Digests)?;
    for node in index.nodes.values_mut() {
        (node.meta.mtime_s, node.meta.mtime_ns) = (0, 0);
    }
    Ok(index.equal_digest())
}

impl TreeIndex {
    /// What [`equal_digest`] gives for the tree that this is the index of, without reading it.
    pub fn equal_digest(&self) -> Digest {
        let mut hash = blake3::Hasher::new();
        let mut first_names: HashMap<NodeId, &TreePath> = HashMap::new();
        for (path, id) in &self.names {
            let Some(node) = self.nodes.get(id).filter(|node| node.kind != Kind::Socket) else { continue };
            blob(&mut hash, path.as_bytes());
            let first = first_names.entry(*id).or_insert(path);
            if *first == path {
                hash.update(b"+");
                node_into(&mut hash, node);
            } else {
                hash.update(b"=");
                blob(&mut hash, first.as_bytes());
            }
        }
        Digest(*hash.finalize().as_bytes())
    }
}

fn blob(hash: &mut blake3::Hasher, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}

fn node_into(hash: &mut blake3::Hasher, node: &Node) {
    let Meta { uid, gid, mode, mtime_s, mtime_ns, xattrs } = &node.meta;
    hash.update(&uid.to_le_bytes()).update(&gid.to_le_bytes());
    // Linux gives every symbolic link 0777, but a file system may keep others.
    let mode = if matches!(node.kind, Kind::Symlink(_)) { 0o777 } else { *mode };
    hash.update(&mode.to_le_bytes());
    if node.kind != Kind::Dir {
        hash.update(&mtime_s.to_le_bytes()).update(&mtime_ns.to_le_bytes());
    }
    hash.update(&(xattrs.len() as u64).to_le_bytes());
    for xattr in xattrs {
        blob(hash, &xattr.name);
        blob(hash, &xattr.value);
    }
    match &node.kind {
        Kind::Dir => hash.update(b"d"),
        Kind::File(file) => {
            hash.update(b"f").update(&file.size.to_le_bytes());
            hash.update(&(file.segments.len() as u64).to_le_bytes());
            for (index, segment) in &file.segments {
                hash.update(&index.to_le_bytes()).update(&segment.digest);
            }
            hash
        }
        Kind::Symlink(to) => {
            hash.update(b"l");
            blob(hash, to);
            hash
        }
        Kind::Fifo => hash.update(b"p"),
        Kind::Device { block, major, minor } => {
            hash.update(if *block { b"b" } else { b"c" });
            hash.update(&major.to_le_bytes()).update(&minor.to_le_bytes())
        }
        Kind::Socket => hash.update(b"s"),
    };
}
