//! What the source needs of CRIU, so that a fake one can stand in its place.

use godwit_criu::pageless::{Ladder, Rung};
use godwit_criu::{CriuBinary, CriuError, DumpOptions, DumpReport, NotifyAnswer};
use std::collections::BTreeSet;
use std::path::Path;
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

    /// Finds out how this CRIU can be kept from dumping pages; nothing is touched. `own_mounts` is whether the tree has a
    /// mount namespace of its own.
    ///
    /// # Errors
    /// When CRIU cannot be started.
    fn pageless(
        &self,
        work: &Path,
        own_mounts: bool,
        highest: Option<Rung>,
    ) -> Result<Box<dyn PagelessDumper>, CriuError>;
}

/// What a dump without pages gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagelessDumped {
    /// How long CRIU held the tasks still, by its own count.
    pub frozen: Duration,
    /// How it was kept from dumping pages.
    pub rung: Rung,
    /// The better ways that did not work, and why.
    pub fell: Vec<(Rung, String)>,
    /// Inode numbers of the shared objects whose content is not in the images.
    pub omitted: BTreeSet<u64>,
}

/// Dumps everything of a frozen tree but its pages; see [`godwit_criu::pageless`].
pub trait PagelessDumper: Send {
    /// How long a process of CRIU takes to start.
    fn start_time(&self) -> Duration;

    /// Notes what will be needed under the freeze. Right before it.
    fn snapshot(&mut self, pids: &BTreeSet<i32>);

    /// Writes everything but pages. The container stays frozen.
    ///
    /// # Errors
    /// What CRIU said on the last rung. The container stays frozen.
    fn dump(&mut self, options: DumpOptions) -> Result<PagelessDumped, CriuError>;
}

/// The real one.
struct CriuLadder {
    criu: CriuBinary,
    ladder: Ladder,
    start_time: Duration,
}

impl PagelessDumper for CriuLadder {
    fn start_time(&self) -> Duration {
        self.start_time
    }

    fn snapshot(&mut self, pids: &BTreeSet<i32>) {
        self.ladder.snapshot(pids);
    }

    fn dump(&mut self, options: DumpOptions) -> Result<PagelessDumped, CriuError> {
        let report = self.ladder.dump(&self.criu, options, &mut |_| NotifyAnswer::Continue)?;
        let omitted = report.omitted.iter().map(|object| object.inode).collect();
        let frozen = summary(&report.report).frozen;
        Ok(PagelessDumped { frozen, rung: report.rung, fell: report.fell, omitted })
    }
}

impl Dumper for CriuBinary {
    fn pageless(
        &self,
        work: &Path,
        own_mounts: bool,
        highest: Option<Rung>,
    ) -> Result<Box<dyn PagelessDumper>, CriuError> {
        let begun = std::time::Instant::now();
        self.version()?;
        let start_time = begun.elapsed();
        let ladder = Ladder::prepare(self, work, own_mounts, highest, true)?;
        Ok(Box::new(CriuLadder { criu: self.clone(), ladder, start_time }))
    }

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
