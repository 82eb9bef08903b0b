//! The memory of a running process tree, followed from outside and given back at its new place. CRIU carries everything
//! else of a process; no page passes through it.
//!
//! ```text
//! source, running    [`source::TreeMemory`] finds what was written and reads it, nothing stops
//!                    [`ledger::PageLedger`] drops what did not change, and gives the rest a slot over there
//! wire               [`batch`]
//! destination        [`destination::PageStore`] keeps every page once, in memory
//! restored           [`destination::fill`] gives the pages to the restored tasks: faults first, the rest behind
//! ```

mod available;
pub mod batch;
pub mod destination;
pub mod ledger;
pub mod page;
pub mod source;
mod sys;
mod table;

pub use available::available_memory;
pub use page::{ImageId, PAGE_SIZE, PageRun, SharedDoor, SharedObject};
