//! CRIU's image files: the few kinds godwit has to understand.
//!
//! A file is `u32 magic1, u32 magic2, { u32 size, protobuf } ...`, little-endian (CRIU's image.c and magic.h). Only the
//! fields that are needed are read; all bytes may come from the other host, so nothing in them is trusted.

mod cgroup;
pub mod contents;
pub mod difference;
mod extents;
pub mod file;
pub mod flatten;
pub mod inventory;
mod mm;
pub mod page_store;
pub mod pagemap;
pub mod pstree;
pub mod stats;
pub(crate) mod wire;

pub use cgroup::rename_cgroups;
pub use difference::{DifferenceReport, difference};
pub use file::{ImageError, PARENT_LINK, parent_of};
pub use flatten::{FlattenReport, chain_of, flatten};
pub use inventory::Inventory;
pub use mm::{Mapping, mappings};
pub use page_store::{AbsorbReport, PageStore};
pub use pagemap::{PAGE_SIZE, PE_LAZY, PE_PRESENT, Pagemap, PagemapEntry};
pub use pstree::{Task, read_tasks};
pub use stats::{DumpStats, RestoreStats};
