//! Puts a tree, or a checkpoint, into the store: a walk as for a migration's first round to an empty destination, whose steps are
//! written down instead of sent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use godwit_transfer::tree::{Body, Options, RoundError, SEGMENT, TreeIndex, TreeOp, TreePath, TreeSource};

use crate::cut::{Cutter, Keep};
use crate::manifest::{Content, Described, Entry, Manifest, Node, Tree};
use crate::page_cut::{PageCutter, PageRuns, page_files};
use crate::{Digest, Lease, StoreError};

/// Where a checkpoint of godwit's has CRIU's images.
const IMAGES: &[u8] = b"images";

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

    fn add(
        &mut self,
        root: &Path,
        pages: HashMap<TreePath, PageRuns>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Added, StoreError> {
        let before = self.written();
        let (tree, read_bytes) = walk(root, pages, &mut |bytes| self.put_chunk(bytes), progress)?;
        let (entries, file_bytes) = (tree.entries.len() as u64, tree.file_bytes());
        let manifest = self.put_manifest(&Manifest::Tree(tree))?;
        let written_bytes = self.written() - before;
        Ok(Added { manifest, entries, file_bytes, read_bytes, written_bytes })
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
        let mut read = 0;
        let mut name = |bytes: &[u8]| {
            read += bytes.len() as u64;
            progress(read).map(|()| Digest::of(bytes))
        };
        Ok(walk(root, HashMap::new(), &mut name, &mut |_| {})?.0)
    }
}

/// Walks a tree, cuts its files and has the pieces kept. Gives it, and how many bytes were read.
fn walk(
    root: &Path,
    pages: HashMap<TreePath, PageRuns>,
    keep: Keep<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<(Tree, u64), StoreError> {
    let mut source = TreeSource::new(root, TreeIndex::default(), Options::default())?;
    let mut recorder = Recorder { keep, pages, nodes: BTreeMap::new(), open: None };
    let mut read = 0;
    let round = source.round(&HashSet::new(), &mut |step| {
        read += step.weight() as u64;
        progress(read);
        recorder.record(step)
    });
    let stats = round.map_err(|error| match error {
        RoundError::Tree(error) => error.into(),
        RoundError::Emit(error) => error,
    })?;
    let entries = recorder.nodes.into_iter().map(|(path, node)| Entry { path, node }).collect();
    Ok((Tree { entries }, stats.bytes_read))
}

/// The tree as far as it was walked.
struct Recorder<'a> {
    keep: Keep<'a>,
    pages: HashMap<TreePath, PageRuns>,
    nodes: BTreeMap<TreePath, Node>,
    open: Option<(TreePath, Contents)>,
}

/// A file that is being read.
enum Contents {
    Pieces(Cutter),
    Pages(PageCutter),
}

impl Recorder<'_> {
    fn record(&mut self, step: TreeOp) -> Result<(), StoreError> {
        match step {
            TreeOp::Dir { path } => self.put(path, Node::Dir { meta: Default::default() }),
            TreeOp::Symlink { path, destination, meta } => {
                self.put(path, Node::Symlink { meta, to: destination })
            }
            TreeOp::Fifo { path, meta } => self.put(path, Node::Fifo { meta }),
            TreeOp::Device { path, block, major, minor, meta } => {
                self.put(path, Node::Device { meta, block, major, minor });
            }
            TreeOp::HardLink { path, to } => self.put(path, Node::Link { to }),
            TreeOp::Meta { path, meta: new } => match self.nodes.get_mut(&path) {
                Some(
                    Node::Dir { meta }
                    | Node::File { meta, .. }
                    | Node::Symlink { meta, .. }
                    | Node::Fifo { meta }
                    | Node::Device { meta, .. },
                ) => *meta = new,
                Some(Node::Link { .. }) => {}
                // the root is not made
                None => self.put(path, Node::Dir { meta: new }),
            },
            TreeOp::FileBegin { path, .. } => {
                let contents = match self.pages.remove(&path) {
                    Some(runs) => Contents::Pages(PageCutter::new(runs)),
                    None => Contents::Pieces(Cutter::default()),
                };
                self.open = Some((path, contents));
            }
            TreeOp::Segment { index, body: Body::Data(bytes), .. } => {
                self.contents(index * SEGMENT, &bytes)?
            }
            TreeOp::FileEnd { size, meta } => {
                if let Some((path, contents)) = self.open.take() {
                    let keep = &mut *self.keep;
                    let content = match contents {
                        Contents::Pieces(cutter) => Content::Pieces(cutter.finish(keep)?),
                        Contents::Pages(cutter) => {
                            let groups = cutter.finish(size, keep)?;
                            Content::Pages(groups.ok_or_else(|| changed(&path))?)
                        }
                    };
                    self.put(path, Node::File { meta, size, content });
                }
            }
            // the zeros of a file that is new are left out as they are; nothing else comes for an empty destination
            TreeOp::Hole { .. }
            | TreeOp::RoundEnd { .. }
            | TreeOp::Segment { .. }
            | TreeOp::Remove { .. }
            | TreeOp::Rename { .. } => {}
        }
        Ok(())
    }

    fn put(&mut self, path: TreePath, node: Node) {
        self.nodes.insert(path, node);
    }

    fn contents(&mut self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let keep = &mut *self.keep;
        match &mut self.open {
            Some((_, Contents::Pieces(cutter))) => cutter.take(at, bytes, keep),
            Some((path, Contents::Pages(cutter))) => {
                if cutter.take(at, bytes, keep)? {
                    Ok(())
                } else {
                    Err(changed(path))
                }
            }
            None => Ok(()),
        }
    }
}

fn changed(path: &TreePath) -> StoreError {
    StoreError::Changed { path: path.to_string() }
}
