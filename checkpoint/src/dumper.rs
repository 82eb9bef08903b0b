//! What the source needs of CRIU, so that a fake one can stand in its place.

use godwit_criu::{CriuBinary, CriuError, DumpOptions, DumpReport, NotifyAnswer};
use std::time::Duration;

/// What a dump gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    /// How long CRIU held the tasks still, by its own count.
    pub frozen: Duration,
    /// Bytes of pages written.
    pub memory_bytes: u64,
}

/// Dumps process trees.
pub trait Dumper: Send + Sync {
    /// Writes a complete image of the tree.
    ///
    /// # Errors
    /// What CRIU said. The tasks are as they were before: running or frozen.
    fn dump(&self, options: DumpOptions) -> Result<Dumped, CriuError>;

    /// Writes the tree's memory, and begins to track it; the tree runs on.
    ///
    /// # Errors
    /// What CRIU said. The tasks run.
    fn pre_dump(&self, options: DumpOptions) -> Result<Dumped, CriuError>;
}

impl Dumper for CriuBinary {
    fn dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        godwit_criu::dump::dump(self, options, &mut |_| NotifyAnswer::Continue).map(|report| summary(&report))
    }

    fn pre_dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        godwit_criu::dump::pre_dump(self, options, &mut |_| NotifyAnswer::Continue)
            .map(|report| summary(&report))
    }
}

/// Size of a page of the processors that CRIU runs on here.
const PAGE: u64 = 4096;

fn summary(report: &DumpReport) -> Dumped {
    let stats = report.stats.as_ref();
    Dumped {
        frozen: stats.map_or(report.wall, |stats| stats.frozen_time),
        memory_bytes: stats.map_or(0, |stats| stats.pages_written * PAGE),
    }
}
