//! What the source needs of CRIU, so that a fake one can stand in its place.

use godwit_criu::pageless::{Ladder, Rung};
use godwit_criu::{CriuBinary, CriuError, DumpOptions, DumpReport, NotifyAnswer};
use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
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

    /// Finds out how this CRIU can be kept from dumping pages; nothing is touched.
    ///
    /// # Errors
    /// When CRIU cannot be started.
    fn pageless(
        &self,
        work: &Path,
        circumstances: Circumstances,
    ) -> Result<Box<dyn PagelessDumper>, CriuError>;
}

/// What a dump without pages depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// The tree has a mount namespace of its own.
    pub own_mounts: bool,
    /// Written pages are found by the soft-dirty bits, which the dump must leave alone.
    pub by_soft_dirty: bool,
    /// No better way than this.
    pub highest: Option<Rung>,
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

    /// Does what can be done before the freeze: starts CRIU for a dump with such options, and notes what will be needed.
    ///
    /// # Errors
    /// When CRIU cannot be started.
    fn warm_up(&mut self, pids: &BTreeSet<i32>, options: &DumpOptions) -> Result<(), CriuError>;

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

    fn warm_up(&mut self, pids: &BTreeSet<i32>, options: &DumpOptions) -> Result<(), CriuError> {
        self.ladder.start(&self.criu, options)?;
        // the younger the better
        self.ladder.snapshot(pids);
        Ok(())
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
        circumstances: Circumstances,
    ) -> Result<Box<dyn PagelessDumper>, CriuError> {
        let Circumstances { own_mounts, by_soft_dirty, highest } = circumstances;
        let begun = std::time::Instant::now();
        self.version()?;
        let start_time = begun.elapsed();
        let mut ladder = Ladder::prepare(self, work, own_mounts, highest, true)?;
        if by_soft_dirty {
            ladder.keep_soft_dirty();
        }
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

/// For containers that are stopped and started: there is nothing to dump, and the images say only that.
pub struct NothingToDump;

impl Dumper for NothingToDump {
    fn dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        let dir = &options.images_dir;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.and_then(|()| std::fs::write(dir.join("stopped"), b""))
            .map_err(|source| CriuError::Io { what: format!("write into `{}`", dir.display()), source })?;
        Ok(Dumped::default())
    }

    fn pre_dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        self.dump(options)
    }

    fn pageless(&self, _: &Path, _: Circumstances) -> Result<Box<dyn PagelessDumper>, CriuError> {
        let detail = "what is stopped has no pages".to_owned();
        Err(CriuError::Protocol { operation: "dump without pages", detail })
    }
}
