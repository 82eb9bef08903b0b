//! The source's half: what it knows, and the round as its caller sees it.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::atlas::{Atlas, Part};
use super::beneath::Beneath;
use super::entry::InodeKey;
use super::index::NodeId;
use super::layer::Layer;
use super::plan::Seen;
use super::round::Round;
use super::watch::{Number, Watch};
use super::{TreeError, TreeIndex, TreeOp, TreePath};

/// How a tree is read.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// An inode whose newest time lies less than this before the moment it was read, in milliseconds, is read again in
    /// the next round: the kernel's times are coarse (one tick, 1-10 ms), so a write just after the read may not show.
    pub racy_ms: u32,
    /// Only the root itself counts, not what is in it.
    pub root_only: bool,
    /// With at least so many entries the kernel is asked which of them are changed, where it can tell; the others are not
    /// looked at in the next round. Whoever wants that names what is open in each round ([`TreeSource::look_at`]).
    pub watch_from: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { racy_ms: 100, root_only: false, watch_from: None }
    }
}

/// A tree that is kept equal elsewhere.
pub struct TreeSource {
    pub(super) tree: Beneath,
    /// Only what this says was changed counts.
    pub(super) layer: Option<Layer>,
    /// What the first round has to take away at the destination, before all else.
    pub(super) to_clear: Vec<TreePath>,
    pub(super) index: TreeIndex,
    pub(super) seen: HashMap<InodeKey, Seen>,
    pub(super) next_id: NodeId,
    pub(super) options: Options,
    /// Tells what is changed; none where nobody asks, or nobody can tell.
    watch: Option<Watch>,
    /// What the last round found, if that is known of all.
    pub(super) atlas: Option<Atlas>,
    /// Files that were not brought whole by the last round that saw them.
    pub(super) unfinished: HashSet<Number>,
    /// Files to look at, whatever the kernel tells.
    suspects: HashSet<Number>,
    /// Those that were mapped when the last round began: what was written to them since may show in no time.
    mapped: HashSet<Number>,
    round: u32,
    broken: bool,
}

/// What a round did.
#[derive(Debug, Clone, Default)]
pub struct RoundStats {
    /// Its number, from 0.
    pub round: u32,
    /// Entries of the tree.
    pub entries: u64,
    /// Those that were looked at: all, or those that the kernel has named.
    pub looked_at: u64,
    /// Operations emitted, the end of the round included.
    pub ops: u64,
    /// Files that were read since they may have changed.
    pub files_read: u64,
    /// Bytes of them, holes not counted.
    pub bytes_read: u64,
    /// Files of which bytes were emitted.
    pub files_sent: u64,
    /// File bytes emitted ([`TreeOp::weight`]).
    pub bytes_sent: u64,
    /// Time of the walk.
    pub walk: Duration,
    /// Time of the round, with the time that `emit` took.
    pub total: Duration,
}

/// Why a round did not end.
#[derive(Debug, thiserror::Error)]
pub enum RoundError<E> {
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// `emit` refused.
    #[error("the round was ended: {0}")]
    Emit(E),
}

impl TreeSource {
    /// Opens the tree at `root`. `base` says what the destination holds: [`TreeIndex::default`] for an empty directory.
    ///
    /// # Errors
    /// When the root cannot be opened or the base contradicts itself.
    pub fn new(root: &Path, base: TreeIndex, options: Options) -> Result<TreeSource, TreeError> {
        base.check()?;
        let tree = Beneath::open(root)?;
        let is_whole = tree.only().is_none() && !options.root_only;
        let watch = options.watch_from.filter(|_| is_whole).and_then(|_| match Watch::begin(&tree) {
            Ok(watch) => Some(watch),
            Err(errno) => {
                tracing::debug!(root = %root.display(), %errno, "the kernel does not tell what is changed here");
                None
            }
        });
        Ok(TreeSource {
            tree,
            watch,
            atlas: None,
            unfinished: HashSet::new(),
            suspects: HashSet::new(),
            mapped: HashSet::new(),
            layer: None,
            to_clear: Vec::new(),
            next_id: base.free_id(),
            index: base,
            seen: HashMap::new(),
            options,
            round: 0,
            broken: false,
        })
    }

    /// Opens the upper directory of an overlay file system that is mounted at `merged`. What the destination holds is the same
    /// file system without the upper directory's contents.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn of_layer(upper: &Path, merged: &Path, options: Options) -> Result<TreeSource, TreeError> {
        let source = TreeSource::new(merged, TreeIndex::default(), Options { watch_from: None, ..options })?;
        Ok(TreeSource { layer: Some(Layer::open(upper)?), ..source })
    }

    /// Opens the directory of a [`TreeDestination::open_changes`](super::TreeDestination::open_changes), with what the layer
    /// hid. What the destination holds is the file system that the layer changes.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn of_changes(root: &Path, gone: Vec<TreePath>, options: Options) -> Result<TreeSource, TreeError> {
        let source = TreeSource::new(root, TreeIndex::default(), options)?;
        Ok(TreeSource { to_clear: gone, ..source })
    }

    /// Of a layer: what it hid, or replaced as a whole, of the file system below when the last round looked. What is above
    /// comes first.
    pub fn gone(&self) -> Vec<TreePath> {
        self.layer.as_ref().map(Layer::hides).unwrap_or_default()
    }

    /// What the destination holds after all that was emitted.
    pub fn index(&self) -> &TreeIndex {
        &self.index
    }

    /// Has the next round look at these files (`st_dev`, `st_ino`): the kernel does not tell of all that is written to a file before
    /// it is closed.
    pub fn look_at(&mut self, files: impl IntoIterator<Item = (u64, u64)>) {
        self.suspects.extend(files);
    }

    /// Emits what makes the destination equal to the tree as it is now.
    ///
    /// While the tree is being written the result may mix moments; what changed during the round is found by the next.
    /// On a tree that stands still the destination is equal after the round.
    ///
    /// `also`: device and inode numbers (`st_dev`, `st_ino`) of files to read whatever their times say, since they are
    /// mapped `MAP_SHARED` and writable: only the first write to a page after its write-back moves the time. Those of the round before
    /// are read once more: they may have been unmapped since.
    ///
    /// # Errors
    /// When the tree cannot be read or `emit` refuses. It is then unknown what the destination holds: this source
    /// answers [`TreeError::Broken`] from then on.
    pub fn round<E>(
        &mut self,
        also: &HashSet<(u64, u64)>,
        emit: &mut dyn FnMut(TreeOp) -> Result<(), E>,
    ) -> Result<RoundStats, RoundError<E>> {
        if self.broken {
            return Err(TreeError::Broken.into());
        }
        self.broken = true;
        let begin = Instant::now();
        let number = self.round;
        let mapped = std::mem::replace(&mut self.mapped, also.clone());
        let also = also.union(&mapped).copied().collect();
        let part = self.part(&also)?;
        let mut stats = Round::new(self, &also, emit, number).run(part)?;
        if self.options.watch_from.is_some_and(|least| (stats.entries as usize) < least) {
            // looking at all costs less than the host's other writers would pay
            self.watch = None;
            self.atlas = None;
        }
        stats.total = begin.elapsed();
        self.round += 1;
        self.broken = false;
        tracing::debug!(
            round = number,
            entries = stats.entries,
            looked_at = stats.looked_at,
            ops = stats.ops,
            bytes_read = stats.bytes_read,
            bytes_sent = stats.bytes_sent,
            total_us = stats.total.as_micros() as u64,
            "tree round"
        );
        Ok(stats)
    }

    /// What was changed since the last round; none when all has to be looked at.
    fn part(&mut self, also: &HashSet<Number>) -> Result<Option<Part>, TreeError> {
        let suspects = std::mem::take(&mut self.suspects);
        let Some(watch) = &self.watch else { return Ok(None) };
        // before anything is looked at: what is changed from now on is told to the next round
        let told = watch.take();
        let (Some(told), Some(atlas)) = (told, &self.atlas) else { return Ok(None) };
        let numbers = suspects.iter().chain(also).chain(&self.unfinished).copied();
        atlas.part(&self.tree, &told, numbers).map(Some)
    }

    /// Whether the kernel tells what is changed.
    pub fn is_watched(&self) -> bool {
        self.watch.is_some()
    }
}
