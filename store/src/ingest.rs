//! Puts a tree, or a checkpoint, into the store: a walk as for a migration's first round to an empty destination, whose steps are
//! written down instead of sent. What somebody writes to is walked once more while he stands still, as in a migration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use godwit_transfer::tree::{Options, RoundError, TreeIndex, TreeOp, TreePath, TreeSource};

use crate::manifest::{Described, Manifest, Tree};
use crate::page_cut::{PageRuns, page_files};
use crate::record::{Recorder, Shelf};
use crate::{Digest, Lease, ObjectId, StoreError};

/// Where a checkpoint of godwit's has CRIU's images.
const IMAGES: &[u8] = b"images";

/// Entries from which on the kernel is asked what is changed.
const WATCHED: usize = 5000;
/// Rounds at most while the writers work, and how long one takes after which another is not worth it.
const ROUNDS: u32 = 4;
const SHORT: Duration = Duration::from_millis(200);
/// Bytes of changes that are taken while the writers stand still; they are in memory until they go on.
const MOST: usize = 1 << 30;

/// Files that the kernel does not tell all of: device and inode (`st_dev`, `st_ino`).
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Those that are open.
    pub open: HashSet<(u64, u64)>,
    /// Those that are mapped shared and writable.
    pub mapped: HashSet<(u64, u64)>,
}

/// Why writers do not stand still.
pub type Restless = Box<dyn Error + Send + Sync>;

/// Those who write to a tree.
pub trait Writers {
    /// The files that they have.
    ///
    /// # Errors
    /// When they cannot be looked at.
    fn files(&mut self) -> Result<Files, Restless>;

    /// Asks them to put away what is half done, right before they stand still.
    ///
    /// # Errors
    /// When they cannot: nobody stands still then. [`resume`](Self::resume) is called all the same.
    fn quiesce(&mut self) -> Result<(), Restless> {
        Ok(())
    }

    /// Has them stand still.
    ///
    /// # Errors
    /// When they do not; then all of them work.
    fn stop(&mut self) -> Result<(), Restless>;

    /// For how long they may stand still.
    fn limit(&self) -> Duration;

    /// Lets them go on.
    ///
    /// # Errors
    /// When they did not stand still all the time, or one of them still does.
    fn go_on(&mut self) -> Result<(), Restless>;

    /// Tells those who were asked to [quiesce](Self::quiesce) that it is over.
    fn resume(&mut self) {}
}

/// When and for how long writers stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stood {
    /// Since when.
    pub at: SystemTime,
    /// How long.
    pub took: Duration,
}

/// What was put into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its manifest.
    pub manifest: Digest,
    /// Entries of the tree.
    pub entries: u64,
    /// Bytes of its files, holes included.
    pub file_bytes: u64,
    /// Bytes that were read of them.
    pub read_bytes: u64,
    /// Bytes on disk that it needed besides what was there.
    pub written_bytes: u64,
}

impl Lease {
    /// Puts the tree at `root` into the store; it stays as long as this lease, or as it is pinned. Nobody should write to the tree
    /// meanwhile: each file is then of some moment of its own. `progress` hears how many bytes were read.
    ///
    /// # Errors
    /// When it cannot be read, or [`StoreError::Full`].
    pub fn add_tree(&mut self, root: &Path, progress: &mut dyn FnMut(u64)) -> Result<Added, StoreError> {
        self.add(root, HashMap::new(), progress)
    }

    /// Puts the checkpoint in the directory `root` into the store, memory by its addresses. `facts`: what shall be known of it.
    ///
    /// # Errors
    /// As [`Lease::add_tree`].
    pub fn add_checkpoint(
        &mut self,
        root: &Path,
        facts: BTreeMap<String, String>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Added, StoreError> {
        let mut pages = page_files(root, &TreePath::root());
        if let Ok(images) = TreePath::new(IMAGES) {
            pages.extend(page_files(&root.join(images.as_path()), &images));
        }
        let tree = self.add(root, pages, progress)?;
        let manifest = self.describe(tree.manifest, facts)?;
        Ok(Added { manifest, ..tree })
    }

    /// The manifest of a tree that is in the store, with what shall be known of it.
    ///
    /// # Errors
    /// As [`Lease::put_manifest`].
    pub fn describe(&mut self, tree: Digest, facts: BTreeMap<String, String>) -> Result<Digest, StoreError> {
        self.put_manifest(&Manifest::Described(Described { tree, facts }))
    }

    /// Puts the tree at `root` into the store as it is at one moment: those who write to it stand still for the last round, which
    /// only finds what the rounds before did not see.
    ///
    /// # Errors
    /// As [`Lease::add_tree`], and [`StoreError::Writers`] when they cannot stand still, or not for so long. They go on, whatever happens.
    pub fn add_tree_of(
        &mut self,
        root: &Path,
        writers: &mut dyn Writers,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Added, Stood), StoreError> {
        let before = self.written();
        // the kernel tells what is changed where there is so much that a walk would take long
        let options = Options { watch_from: Some(WATCHED), ..Options::default() };
        let mut source = TreeSource::new(root, TreeIndex::default(), options)?;
        let (mut recorder, mut last) = (Recorder::default(), Duration::MAX);
        let (mut read, mut told) = (0, 0);
        for round in 0..ROUNDS {
            let begun = Instant::now();
            let files = writers.files()?;
            source.look_at(files.open);
            let stats = source.round(&files.mapped, &mut |step| {
                told += step.weight() as u64;
                progress(told);
                recorder.record(step, self)
            });
            read += stats.map_err(plain)?.bytes_read;
            let took = begun.elapsed();
            // the next would find about as much
            if round > 0 && (took < SHORT || took > last / 2) {
                break;
            }
            last = took;
        }
        let (steps, last_read, stood) = last_round(&mut source, writers)?;
        steps.into_iter().try_for_each(|step| recorder.record(step, self))?;
        let added = self.keep_tree(recorder.finish(), read + last_read, before)?;
        Ok((added, stood))
    }

    fn keep_tree(&mut self, tree: Tree, read_bytes: u64, before: u64) -> Result<Added, StoreError> {
        let (entries, file_bytes) = (tree.entries.len() as u64, tree.file_bytes());
        let manifest = self.put_manifest(&Manifest::Tree(tree))?;
        let written_bytes = self.written() - before;
        Ok(Added { manifest, entries, file_bytes, read_bytes, written_bytes })
    }

    fn add(
        &mut self,
        root: &Path,
        pages: HashMap<TreePath, PageRuns>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Added, StoreError> {
        let before = self.written();
        let (tree, read_bytes) = walk(root, pages, self, progress)?;
        self.keep_tree(tree, read_bytes, before)
    }
}

impl Tree {
    /// What the tree at `root` is made of, as [`Lease::add_tree`] would cut it; nothing is stored. `progress` hears how many bytes
    /// were read, and may end it.
    ///
    /// # Errors
    /// When it cannot be read, and those of `progress`.
    pub fn list(
        root: &Path,
        progress: &mut dyn FnMut(u64) -> Result<(), StoreError>,
    ) -> Result<Tree, StoreError> {
        Ok(walk(root, HashMap::new(), &mut Naming { read: 0, progress }, &mut |_| {})?.0)
    }
}

/// Keeps nothing, and says what it would be called.
struct Naming<'a> {
    read: u64,
    progress: &'a mut dyn FnMut(u64) -> Result<(), StoreError>,
}

impl Shelf for Naming<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
        self.read += bytes.len() as u64;
        (self.progress)(self.read).map(|()| Digest::of(bytes))
    }

    fn chunk(&mut self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        Err(StoreError::Missing(ObjectId::chunk(digest)))
    }
}

/// Walks a tree, cuts its files and has the pieces kept. Gives it, and how many bytes were read.
fn walk(
    root: &Path,
    pages: HashMap<TreePath, PageRuns>,
    shelf: &mut dyn Shelf,
    progress: &mut dyn FnMut(u64),
) -> Result<(Tree, u64), StoreError> {
    let mut source = TreeSource::new(root, TreeIndex::default(), Options::default())?;
    let mut recorder = Recorder::of_pages(pages);
    let mut read = 0;
    let round = source.round(&HashSet::new(), &mut |step| {
        read += step.weight() as u64;
        progress(read);
        recorder.record(step, shelf)
    });
    let stats = round.map_err(plain)?;
    Ok((recorder.finish(), stats.bytes_read))
}

fn plain(error: RoundError<StoreError>) -> StoreError {
    match error {
        RoundError::Tree(error) => error.into(),
        RoundError::Emit(error) => error,
    }
}

/// The last round: its steps, which are written down when all work again, and the bytes that it read.
fn last_round(
    source: &mut TreeSource,
    writers: &mut dyn Writers,
) -> Result<(Vec<TreeOp>, u64, Stood), StoreError> {
    let read = writers.quiesce().map_err(StoreError::from).and_then(|()| round_at_rest(source, writers));
    writers.resume();
    read
}

/// The round for which they stand still.
fn round_at_rest(
    source: &mut TreeSource,
    writers: &mut dyn Writers,
) -> Result<(Vec<TreeOp>, u64, Stood), StoreError> {
    let (at, begun) = (SystemTime::now(), Instant::now());
    writers.stop()?;
    let (mut steps, mut bytes) = (Vec::new(), 0);
    let limit = writers.limit();
    let found = writers.files().map_err(StoreError::from).and_then(|files| {
        source.look_at(files.open);
        let round = source.round(&files.mapped, &mut |step| {
            bytes += step.weight();
            if bytes > MOST || begun.elapsed() > limit {
                let what = if bytes > MOST {
                    "more than 1 GiB was changed"
                } else {
                    "it takes longer than they may stand still"
                };
                return Err(StoreError::Writers(what.into()));
            }
            steps.push(step);
            Ok(())
        });
        round.map(|stats| stats.bytes_read).map_err(plain)
    });
    let went_on = writers.go_on();
    let read = found?;
    went_on?;
    Ok((steps, read, Stood { at, took: begun.elapsed() }))
}
