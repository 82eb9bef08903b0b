//! Dumps of a frozen tree without its pages: CRIU writes everything else, godwit reads the memory itself.
//!
//! CRIU has no option for that, so there are several ways to it, each a rung of a ladder. The highest one that works is
//! found out before the freeze ([`Ladder::prepare`]) and checked after the dump; on a surprise the dump is made again one rung
//! lower. Whatever happens, the images are right: pages that CRIU has written after all are there, and
//! [`take_pages`] takes them out.
//!
//! ```text
//! running   Ladder::prepare     once for a migration; starts CRIU a few times, tens of milliseconds
//! running   Ladder::snapshot    right before the freeze
//! frozen    Ladder::dump        then read what is missing, and fill PagelessReport::omitted yourself
//! frozen    take_pages          the pages that CRIU wrote, which win over those read
//! ```

mod check;
mod fake_parent;
mod kdat;
mod ladder;
mod mappings;
mod preload;
mod server;
mod shared;
mod smaps;
mod take;
mod tasks;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use ladder::{Ladder, PageFilter, PagelessReport};
pub use mappings::{Mapping, read_mappings};
pub use shared::SharedObject;
pub use take::{EachPage, PagemapName, TakenPages, take_pages};

/// A way to dump without pages, the best first (so the best is the smallest).
///
/// Measured on two cores with one process of 2 GiB: see each. "Frozen" is CRIU's time between request and answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// A preload library answers CRIU that there are no pages, and gives it the list of mappings as it was just before the
    /// freeze, which spares the kernel the walk over all pages in it. Does not grow with memory.
    ShimWithSmaps,
    /// The preload library, without the list of mappings: about 13 ms a GiB.
    Shim,
    /// A parent image that claims to have every page: CRIU writes holes. About 30 ms a GiB. Where the kernel does not track
    /// soft-dirty pages, CRIU must see an altered feature cache, and for that be in a mount namespace of its own. Where it does,
    /// this resets all soft-dirty bits of the tree. Pages that cannot be read by the task itself, huge pages of
    /// hugetlbfs and all shared memory are written.
    FakeParent,
    /// CRIU sends all pages, and our page server keeps those that changed. Grows with memory like a plain dump.
    PageServer,
    /// CRIU writes all pages.
    Plain,
}

impl Rung {
    /// All of them, the best first.
    pub const ALL: [Rung; 5] =
        [Rung::ShimWithSmaps, Rung::Shim, Rung::FakeParent, Rung::PageServer, Rung::Plain];

    fn below(self) -> impl Iterator<Item = Rung> {
        Rung::ALL.into_iter().filter(move |rung| *rung > self)
    }

    /// Whether CRIU hands over every page on this rung, so that none has to be read besides.
    pub fn is_complete(self) -> bool {
        matches!(self, Rung::PageServer | Rung::Plain)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rung::ShimWithSmaps => "shim with smaps snapshot",
            Rung::Shim => "shim",
            Rung::FakeParent => "fake parent",
            Rung::PageServer => "page server",
            Rung::Plain => "plain dump",
        })
    }
}
