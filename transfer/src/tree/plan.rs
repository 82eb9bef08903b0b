//! Which inode of the destination becomes which inode of the source.
//!
//! Names come and go, inodes carry the data: a rename or a new hard link must move no data, and a file that an editor
//! has replaced is best told by what its predecessor held.

use std::collections::{HashMap, HashSet};

use nix::time::{ClockId, clock_gettime};

use super::entry::{FileType, InodeKey, Moment, Stat};
use super::index::NodeId;
use super::scan::Found;
use super::{Kind, Meta, TreeIndex};

/// An inode of the source as it was last read.
pub(super) struct Seen {
    pub stat: Stat,
    /// No write after the read can have left these times behind.
    pub settled: bool,
    pub meta: Meta,
    /// What it is; of a file without the contents.
    pub kind: Kind,
    /// The node of the index that it is, or shall become; none for a directory, which is known by its path.
    pub id: Option<NodeId>,
    /// Unchanged since the round before.
    pub known: bool,
    /// The index has what it holds now.
    pub done: bool,
}

/// The kind of an inode, of a file without its contents, of a link without where it points.
pub(super) fn bare_kind(stat: &Stat) -> Kind {
    match stat.file_type {
        FileType::Dir => Kind::Dir,
        FileType::File => Kind::File(Default::default()),
        FileType::Symlink => Kind::Symlink(Vec::new()),
        FileType::Fifo => Kind::Fifo,
        FileType::Device { block, major, minor } => Kind::Device { block, major, minor },
        FileType::Socket => Kind::Socket,
    }
}

/// Whether the inode `have` of the destination can become `want` in place.
fn can_become(have: &Kind, want: &Kind) -> bool {
    match (have, want) {
        (Kind::File(_), Kind::File(_)) => true,
        (Kind::Dir | Kind::Socket, _) => false,
        (have, want) => have == want,
    }
}

/// Gives each inode of the source that is no directory the node of the index that it is or best becomes: the one that it
/// was last time, else the one at its path if nobody else is that.
pub(super) fn assign(found: &[Found], inodes: &mut HashMap<InodeKey, Seen>, index: &TreeIndex) {
    let fits =
        |id: NodeId, kind: &Kind| index.nodes.get(&id).is_some_and(|node| can_become(&node.kind, kind));
    let mut taken = HashSet::new();
    for inode in inodes.values_mut() {
        inode.id = inode.id.filter(|&id| fits(id, &inode.kind) && taken.insert(id));
    }
    for entry in found.iter().filter(|entry| entry.stat.file_type != FileType::Dir) {
        if let Some(inode) = inodes.get_mut(&entry.stat.key)
            && inode.id.is_none()
        {
            inode.id = index.id(&entry.path).filter(|&id| fits(id, &inode.kind) && taken.insert(id));
        }
    }
}

/// The clock that file systems take their times from.
pub(super) fn now() -> Moment {
    match clock_gettime(ClockId::CLOCK_REALTIME_COARSE) {
        Ok(time) => Moment { s: time.tv_sec(), ns: time.tv_nsec() as u32 },
        // Nothing has settled.
        Err(_) => Moment::default(),
    }
}
