//! How changed memory is found: the seam behind which better ways are to come.

use crate::dumper::{Dumped, Dumper};
use godwit_criu::CriuError;
use godwit_criu::images::difference;
use godwit_engine::{EngineError, SourceContainer};
use godwit_migration::plan::{Strategy, Tracker};
use godwit_transfer::TreeId;
use std::path::{Path, PathBuf};

/// Why memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// CRIU said no.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The container could not be stopped or let go.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// An image directory to be sent.
#[derive(Clone, Debug)]
pub struct Images {
    /// Where it is.
    pub dir: PathBuf,
    /// Its name on the wire.
    pub tree: TreeId,
    /// What CRIU counted.
    pub dumped: Dumped,
}

/// Writes the memory of a running container, round by round, and at last all of it that is missing.
pub trait MemoryTracker: Send {
    /// Rounds that can bring the expected downtime down.
    fn useful_rounds(&self) -> u32;

    /// Whether the bytes of a round tell how much is written between two rounds.
    fn tells_dirty_rate(&self) -> bool;

    /// One round; the container runs before and after it.
    ///
    /// # Errors
    /// When it could not be written. The container runs.
    fn round(
        &mut self,
        container: &mut dyn SourceContainer,
        criu: &dyn Dumper,
    ) -> Result<Images, TrackerError>;

    /// Prepares the dump under the freeze; what it returns runs beside the files' last round.
    fn last(&mut self, container: &dyn SourceContainer) -> LastDump;
}

/// The dump under the freeze, ready to run.
pub struct LastDump {
    options: godwit_criu::DumpOptions,
    tree: TreeId,
    /// Complete images that the destination has: only what differs from them is to be sent.
    earlier: Option<PathBuf>,
}

impl LastDump {
    /// Writes the final images. The container stays frozen.
    ///
    /// # Errors
    /// What CRIU said. The container stays frozen.
    pub fn run(self, criu: &dyn Dumper) -> Result<Images, CriuError> {
        let dir = self.options.images_dir.clone();
        let dumped = criu.dump(self.options)?;
        let Some(earlier) = self.earlier else { return Ok(Images { dir, tree: self.tree, dumped }) };
        let changed = dir.with_extension("changed");
        difference(&earlier, &dir, &changed)?;
        Ok(Images { dir: changed, tree: self.tree, dumped })
    }
}

/// The tracker for a plan, writing below `job`.
pub fn tracker_for(strategy: Strategy, tracker: Option<Tracker>, job: &Path) -> Box<dyn MemoryTracker> {
    match (strategy, tracker) {
        (Strategy::PreCopy, Some(Tracker::PreDump)) => {
            Box::new(PreDump { images: job.join("images"), work: job.join("work"), rounds: 0 })
        }
        (Strategy::PreCopy, Some(Tracker::Checkpoint)) => {
            Box::new(Checkpoint { images: job.join("images"), work: job.join("work"), rounds: 0, useful: 1 })
        }
        // what reads from outside has no need of this
        (Strategy::StopAndCopy | Strategy::PreCopy | Strategy::Restart, _) => {
            Box::new(Checkpoint { images: job.join("images"), work: job.join("work"), rounds: 0, useful: 0 })
        }
    }
}

/// CRIU's own pre-dump rounds: each writes the pages that the kernel's soft-dirty bit names, and refers to the round
/// before it for the rest.
struct PreDump {
    images: PathBuf,
    work: PathBuf,
    rounds: u16,
}

impl PreDump {
    fn options(&self, container: &dyn SourceContainer) -> godwit_criu::DumpOptions {
        let name = self.rounds.to_string();
        let mut options = container.dump_options(&self.images.join(&name), &self.work.join(&name));
        options.track_mem = true;
        options.parent_dir = self.rounds.checked_sub(1).map(|before| format!("../{before}"));
        options
    }
}

impl MemoryTracker for PreDump {
    fn useful_rounds(&self) -> u32 {
        u32::MAX
    }

    fn tells_dirty_rate(&self) -> bool {
        true
    }

    fn round(
        &mut self,
        container: &mut dyn SourceContainer,
        criu: &dyn Dumper,
    ) -> Result<Images, TrackerError> {
        let options = self.options(container);
        let images = Images {
            dir: options.images_dir.clone(),
            tree: TreeId::images(self.rounds),
            dumped: criu.pre_dump(options)?,
        };
        self.rounds += 1;
        Ok(images)
    }

    fn last(&mut self, container: &dyn SourceContainer) -> LastDump {
        LastDump { options: self.options(container), tree: TreeId::images(self.rounds), earlier: None }
    }
}

/// Full checkpoints: one of the running container, and the final one, of which only the pages that differ from the first
/// are sent. With no round at all this is stop-and-copy.
struct Checkpoint {
    images: PathBuf,
    work: PathBuf,
    rounds: u16,
    useful: u32,
}

impl Checkpoint {
    fn options(&self, container: &dyn SourceContainer) -> godwit_criu::DumpOptions {
        let name = self.rounds.to_string();
        container.dump_options(&self.images.join(&name), &self.work.join(&name))
    }
}

impl MemoryTracker for Checkpoint {
    fn useful_rounds(&self) -> u32 {
        self.useful
    }

    fn tells_dirty_rate(&self) -> bool {
        false
    }

    /// A full dump cannot be made of a running tree: it stands still for as long as that takes, under the same lock and
    /// freeze as at the end, since CRIU reads its sockets, too.
    fn round(
        &mut self,
        container: &mut dyn SourceContainer,
        criu: &dyn Dumper,
    ) -> Result<Images, TrackerError> {
        let begun = std::time::Instant::now();
        container.lock_network()?;
        let dumped = container.freeze().map_err(TrackerError::from).and_then(|()| {
            let options = self.options(container);
            let dir = options.images_dir.clone();
            let dumped = criu.dump(options)?;
            Ok((dir, dumped))
        });
        // whatever happened, it goes on
        let unlocked = container.unlock_network();
        container.thaw()?;
        unlocked?;
        let (dir, mut dumped) = dumped?;
        dumped.frozen = begun.elapsed();
        let tree = TreeId::images(self.rounds);
        self.rounds += 1;
        Ok(Images { dir, tree, dumped })
    }

    fn last(&mut self, container: &dyn SourceContainer) -> LastDump {
        let earlier = self.rounds.checked_sub(1).map(|before| self.images.join(before.to_string()));
        LastDump { options: self.options(container), tree: TreeId::images(self.rounds), earlier }
    }
}
