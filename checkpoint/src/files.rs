//! The container's files, on their way out: one [`TreeSource`] for each tree of the offer.

use crate::layer_file;
use godwit_engine::Tree;
use godwit_migration::Cancel;
use godwit_migration::observer::{Event, Observer};
use godwit_migration::phase::Phase;
use godwit_transfer::message::{TreeId, TreeOffer};
use godwit_transfer::tree::{Options, RoundError, RoundStats, TreeError, TreeIndex, TreeSource};
use godwit_transfer::{Wire, WireError};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// From so many entries on the kernel is asked what is changed in a tree: a walk of fewer takes some milliseconds.
const WATCH_FROM: usize = 5000;

/// Why files could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// They could not be read.
    #[error("cannot read `{path}`")]
    Tree {
        /// The tree's root.
        path: String,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// What a layer in a checkpoint hides could not be read.
    #[error("cannot read what the container's layer hides")]
    Gone(#[source] std::io::Error),
    /// The wire broke.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Says how far the bytes are, a few times a second.
pub struct Meter<'a> {
    observer: &'a dyn Observer,
    phase: Phase,
    what: String,
    total: u64,
    done: u64,
    begun: Instant,
    said: Instant,
}

impl<'a> Meter<'a> {
    /// A meter for `total` bytes; 0 where nobody knows.
    pub fn new(observer: &'a dyn Observer, phase: Phase, what: impl Into<String>, total: u64) -> Self {
        let now = Instant::now();
        Self { observer, phase, what: what.into(), total, done: 0, begun: now, said: now }
    }

    /// So many bytes more.
    pub fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.said.elapsed() >= Duration::from_millis(200) {
            self.said = Instant::now();
            self.observer.event(&Event::Status {
                phase: self.phase,
                what: self.what.clone(),
                bytes_done: self.done,
                bytes_total: self.total,
                bandwidth_bytes_per_s: (self.done as f64 / self.begun.elapsed().as_secs_f64()) as u64,
            });
        }
    }
}

/// Sends one round of one tree over the wire.
///
/// # Errors
/// When the tree cannot be read or the wire breaks.
pub fn send_round(
    source: &mut TreeSource,
    tree: TreeId,
    root: &Path,
    also: &HashSet<(u64, u64)>,
    wire: &mut Wire,
    meter: &mut Meter<'_>,
) -> Result<RoundStats, FilesError> {
    let stats = source.round(also, &mut |op| {
        meter.add(op.weight() as u64);
        wire.operate(tree, &op)
    });
    match stats {
        Ok(stats) => Ok(stats),
        Err(RoundError::Tree(source)) => Err(FilesError::Tree { path: root.display().to_string(), source }),
        Err(RoundError::Emit(error)) => Err(error.into()),
    }
}

/// One tree of the container.
struct Outgoing {
    offer: TreeOffer,
    root: PathBuf,
    options: Options,
    source: TreeSource,
    /// There is nothing of it at the destination, and all that is in `root` shall come there.
    is_to_be_filled: bool,
    /// What the last round was.
    stats: RoundStats,
}

/// All trees of the container.
pub struct Files {
    trees: Vec<Outgoing>,
    watches: bool,
}

impl Files {
    /// No trees yet. `watches`: the kernel is asked what is changed in large ones.
    pub fn none_yet(watches: bool) -> Self {
        Self { trees: Vec::new(), watches }
    }

    /// Opens a tree of this host; `base` is what the destination holds of it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn add(&mut self, offer: TreeOffer, tree: &Tree, base: TreeIndex) -> Result<(), FilesError> {
        let content = &tree.content;
        let failed = |source| FilesError::Tree { path: content.display().to_string(), source };
        // what is read once need not be watched
        let watch_from = (self.watches && !offer.read_only).then_some(WATCH_FROM);
        let options = Options { watch_from, ..Options::default() };
        let is_to_be_filled = tree.merged.is_none() && tree.gone.is_none() && base.is_empty();
        let opened = match (&tree.merged, &tree.gone) {
            (Some(merged), _) => TreeSource::of_layer(content, merged, options),
            (None, Some(gone)) => {
                let gone = layer_file::read(gone).map_err(FilesError::Gone)?;
                TreeSource::of_changes(content, gone, options)
            }
            (None, None) => TreeSource::new(content, base, options),
        };
        let source = opened.map_err(failed)?;
        self.trees.push(Outgoing {
            offer,
            root: content.clone(),
            options,
            source,
            is_to_be_filled,
            stats: RoundStats::default(),
        });
        Ok(())
    }

    /// The same for a tree of which only the root counts: owner, mode and attributes of the directory.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn add_root(&mut self, offer: TreeOffer, tree: &Tree) -> Result<(), FilesError> {
        let content = &tree.content;
        let options = Options { root_only: true, ..Options::default() };
        let source = TreeSource::new(content, TreeIndex::default(), options)
            .map_err(|source| FilesError::Tree { path: content.display().to_string(), source })?;
        self.trees.push(Outgoing {
            offer,
            root: content.clone(),
            options,
            source,
            is_to_be_filled: false,
            stats: RoundStats::default(),
        });
        Ok(())
    }

    /// The trees of at least so many bytes of which the destination has nothing: id, root, bytes.
    pub fn to_be_filled(&self, least: u64) -> Vec<(TreeId, PathBuf, u64)> {
        let wanted = |tree: &&Outgoing| tree.is_to_be_filled && tree.offer.bytes >= least;
        let facts = |tree: &Outgoing| (tree.offer.id, tree.root.clone(), tree.offer.bytes);
        self.trees.iter().filter(wanted).map(facts).collect()
    }

    /// The destination has something of a tree by now. Before the first round.
    ///
    /// # Errors
    /// When the tree cannot be opened, or what it is said to have contradicts itself.
    pub fn rebase(&mut self, id: TreeId, base: TreeIndex) -> Result<(), FilesError> {
        for tree in self.trees.iter_mut().filter(|tree| tree.offer.id == id) {
            let failed = |source| FilesError::Tree { path: tree.root.display().to_string(), source };
            tree.source = TreeSource::new(&tree.root, base.clone(), tree.options).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the next round needs to be told what is open ([`Files::look_at`]).
    pub fn are_watched(&self) -> bool {
        self.trees.iter().any(|tree| tree.source.is_watched())
    }

    /// As [`TreeSource::look_at`], for all trees.
    pub fn look_at(&mut self, open: &HashSet<(u64, u64)>) {
        self.trees.iter_mut().for_each(|tree| tree.source.look_at(open.iter().copied()));
    }

    /// What the kernel has spared in the last round, for people.
    pub fn spared(&self) -> Option<String> {
        let watched = self.trees.iter().filter(|tree| tree.source.is_watched());
        let (looked_at, entries) = watched.fold((0, 0), |(looked_at, entries), tree| {
            (looked_at + tree.stats.looked_at, entries + tree.stats.entries)
        });
        (looked_at < entries).then(|| {
            format!("the kernel told what is changed in large volumes: {looked_at} of {entries} entries were looked at")
        })
    }

    /// Sends what changed; gives the bytes that were read because they may have changed, and those that were sent (before
    /// compression). `writable_only` leaves out what the container cannot write to.
    ///
    /// # Errors
    /// When a tree cannot be read or the wire breaks.
    pub fn round(
        &mut self,
        writable_only: bool,
        also: &HashSet<(u64, u64)>,
        wire: &mut Wire,
        observer: &dyn Observer,
        phase: Phase,
        cancel: &Cancel,
    ) -> Result<(u64, u64), FilesError> {
        let mut sum = (0, 0);
        for tree in self.trees.iter_mut().filter(|tree| !(writable_only && tree.offer.read_only)) {
            if cancel.is_raised() {
                return Err(WireError::Interrupted.into());
            }
            let mut meter =
                Meter::new(observer, phase, tree.offer.path.display().to_string(), tree.offer.bytes);
            tree.stats = send_round(&mut tree.source, tree.offer.id, &tree.root, also, wire, &mut meter)?;
            sum = (sum.0 + tree.stats.bytes_read, sum.1 + tree.stats.bytes_sent);
        }
        Ok(sum)
    }
}

/// Bytes of file data below a directory, or of one file: what must find room at the destination.
pub fn size_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.blocks() * 512;
    }
    let mut links = HashSet::new();
    let mut sum = 0u64;
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(entry_meta) = entry.metadata() else { continue };
            if entry_meta.dev() != meta.dev() {
                continue;
            }
            if entry_meta.is_dir() {
                todo.push(entry.path());
            } else if entry_meta.nlink() == 1 || links.insert(entry_meta.ino()) {
                sum += entry_meta.blocks() * 512;
            }
        }
    }
    sum
}
