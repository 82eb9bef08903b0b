//! Gives restored tasks their pages from the page store, while they run: what they ask for first, everything else behind.
//!
//! CRIU restores the tasks without their private memory, registers it with userfaultfd(2) and hands the descriptors over
//! on `lazy-pages.socket` (criu/uffd.c). [`Filler`] lives in the process that conducts the restore: it speaks with CRIU,
//! keeps a copy of every descriptor and starts a second process, the handler ([`run_fill`]), which does the work.
//!
//! The death of the handler loses nothing: the supervisor's copies keep the registrations alive, the tasks wait, and a
//! successor goes on with the same descriptors, lists and journal. The death of the supervisor loses nothing either: the
//! handler goes on to the end. What is not covered:
//!
//! - Both die at once: the kernel unregisters everything, missing pages read as zero.
//! - The handler and its guard are killed at once, just when it has read of a fork and not yet passed the child's
//!   descriptor on, some microseconds: the child's missing pages read as zero. [`FillReport::lost_forks`] counts such
//!   children. (All other events are read straight into the journal: none is lost, whenever it is killed.)
//! - After the death of the supervisor nobody starts another handler, and forked children are only known to the handler.
//!
//! The kernel tells of a change when it has been made and other threads may make the next: what two threads change at the same
//! addresses at the same moment may be heard of in the other order. A mapping that moves to where another just left is provided for
//! (`relocate` in `handler.rs`); one that is made where another was is not registered. Not provided for: a fork, or the death of the
//! handler, just between the two.

mod background;
mod guard;
mod handler;
mod journal;
mod lists;
mod message;
mod runs;
mod space;
mod supervisor;

pub use handler::run_fill;
pub use lists::TaskPages;
pub use supervisor::Filler;

use nix::errno::Errno;

/// What can go wrong with the fill.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The kernel refused something.
    #[error("cannot {doing}: {source}")]
    System {
        /// What.
        doing: &'static str,
        /// Why not.
        source: Errno,
    },
    /// A file or a process.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The other process said what it must not say.
    #[error("the handler of page faults and its supervisor do not understand each other")]
    Protocol,
    /// The handler died again and again. The tasks keep waiting for their pages, nothing is lost yet.
    #[error("the handler of page faults died {0} times")]
    Dying(u64),
    /// The handler died, and the journal has no room for what a successor must know.
    #[error(
        "the handler of page faults died, and the tasks changed their mappings too often to go on without it"
    )]
    Journal,
    /// It is not done by then; it goes on.
    #[error("the pages are not all in place yet, {left} of {total} are left")]
    Deadline {
        /// Pages left.
        left: u64,
        /// Pages in all.
        total: u64,
    },
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FillReport {
    /// Pages put into place.
    pub pages: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// Page faults answered.
    pub faults: u64,
    /// Of these, with a zero page.
    pub zero_faults: u64,
    /// Forks that were followed.
    pub forks: u64,
    /// Of these, children whose missing pages are zero now, since a handler was killed at the very moment of their birth.
    pub lost_forks: u64,
    /// madvise calls that gave up pages.
    pub removes: u64,
    /// Ranges that were unmapped.
    pub unmaps: u64,
    /// Ranges that were moved.
    pub remaps: u64,
    /// Pages that were in place before their turn came.
    pub existing: u64,
    /// Pages in the lists that CRIU did not register: it restored them itself, or they are not mapped any more.
    pub unregistered: u64,
    /// How often the handler was started again.
    pub restarts: u64,
    /// From the end of the restore to the last page.
    pub seconds: f64,
    /// Gigabytes per second in that time.
    pub gigabytes_per_second: f64,
}
