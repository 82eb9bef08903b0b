//! Pages, and whose they are.

use serde::{Deserialize, Serialize};

/// Bytes of a page, as everywhere in CRIU's images on x86-64.
pub const PAGE_SIZE: u64 = 4096;

/// Whose address space an address is in, named as CRIU names its pagemaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ImageId {
    /// Private memory of a task, by its process number in its own pid namespace (`pagemap-<vpid>.img`). Addresses are
    /// virtual addresses.
    Task(u32),
    /// A shared object (anonymous shared memory, a memfd, a System V segment), numbered by the source in the order of
    /// discovery. Addresses are offsets in the object.
    Shared(u32),
}

/// Consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageRun {
    /// Address of the first, a multiple of [`PAGE_SIZE`].
    pub start: u64,
    /// How many, at least 1.
    pub pages: u64,
}

impl PageRun {
    /// Address behind the last.
    pub fn end(&self) -> u64 {
        self.start + self.pages * PAGE_SIZE
    }
}

/// A shared object of the tree, and the ways to it in the restored tree: the same addresses in the same tasks, or the
/// same descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    /// As in [`ImageId::Shared`].
    pub number: u32,
    /// Its inode number at the source, by which other readers of the same tasks know it.
    pub inode: u64,
    /// Its length.
    pub bytes: u64,
    /// What the kernel calls it in /proc/PID/maps: `/dev/zero (deleted)`, `/memfd:name (deleted)`, `/SYSV00000000 (deleted)`.
    pub name: String,
    /// Who maps it where, or has it open; at least one.
    pub doors: Vec<SharedDoor>,
}

/// A way to a shared object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedDoor {
    /// A mapping, as one line of /proc/PID/maps.
    Mapping {
        /// Task, in its own pid namespace.
        vpid: u32,
        /// First address.
        start: u64,
        /// Address behind the last.
        end: u64,
        /// Offset of the first address in the object.
        offset: u64,
    },
    /// An open descriptor.
    Descriptor {
        /// Task, in its own pid namespace.
        vpid: u32,
        /// Its number there.
        fd: i32,
    },
}
