//! A tree as the steps of rounds tell it: names, what each leads to, and the pieces of files.

use std::collections::{BTreeMap, HashMap};

use godwit_transfer::tree::{Body, SEGMENT, TreeOp, TreePath};

use crate::cut::Cutter;
use crate::manifest::{Content, Entry, Node, Tree};
use crate::page_cut::{PageCutter, PageRuns};
use crate::recut::{Base, Changes};
use crate::{Digest, Lease, StoreError};

/// Takes the bytes of pieces, and gives them back.
pub(crate) trait Shelf {
    /// The digest of the chunk that these bytes are.
    fn put(&mut self, bytes: &[u8]) -> Result<Digest, StoreError>;
    /// The bytes of a chunk that was put.
    fn chunk(&mut self, digest: Digest) -> Result<Vec<u8>, StoreError>;
}

impl Shelf for Lease {
    fn put(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
        self.put_chunk(bytes)
    }

    fn chunk(&mut self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        Lease::chunk(self, digest)
    }
}

/// What is not a directory may have several names.
type NodeId = u64;

/// The tree as far as it was told.
#[derive(Default)]
pub(crate) struct Recorder {
    /// How files of memory pages are cut.
    pages: HashMap<TreePath, PageRuns>,
    names: BTreeMap<TreePath, NodeId>,
    nodes: HashMap<NodeId, Node>,
    next: NodeId,
    open: Option<(TreePath, Contents)>,
}

/// A file that is being told.
enum Contents {
    Pieces(Cutter),
    Pages(PageCutter),
    /// Of one that is known: what has become of some of its segments.
    Changes(Changes),
}

impl Recorder {
    /// For a tree with files of memory pages.
    pub fn of_pages(pages: HashMap<TreePath, PageRuns>) -> Self {
        Self { pages, ..Self::default() }
    }

    /// The tree.
    pub fn finish(mut self) -> Tree {
        let mut first: HashMap<NodeId, TreePath> = HashMap::new();
        let entries = self.names.into_iter().filter_map(|(path, id)| {
            let node = match self.nodes.remove(&id) {
                Some(node) => {
                    first.insert(id, path.clone());
                    node
                }
                None => Node::Link { to: first.get(&id)?.clone() },
            };
            Some(Entry { path, node })
        });
        Tree { entries: entries.collect() }
    }

    /// Takes the next step.
    ///
    /// # Errors
    /// The shelf's, and when a step does not fit those before.
    pub fn record(&mut self, step: TreeOp, shelf: &mut dyn Shelf) -> Result<(), StoreError> {
        match step {
            TreeOp::Dir { path } => self.put(path, Node::Dir { meta: Default::default() }),
            TreeOp::Symlink { path, destination, meta } => {
                self.put(path, Node::Symlink { meta, to: destination });
            }
            TreeOp::Fifo { path, meta } => self.put(path, Node::Fifo { meta }),
            TreeOp::Device { path, block, major, minor, meta } => {
                self.put(path, Node::Device { meta, block, major, minor });
            }
            TreeOp::HardLink { path, to } => {
                let id = self.id(&to)?;
                self.names.insert(path, id);
            }
            TreeOp::Rename { from, to } => {
                let id = self.id(&from)?;
                self.names.remove(&from);
                self.names.insert(to, id);
            }
            TreeOp::Remove { path } => self.remove(&path),
            TreeOp::Meta { path, meta: new } => match self.node(&path) {
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
            TreeOp::FileBegin { path, new, .. } => {
                let contents = match self.pages.remove(&path) {
                    _ if !new => Contents::Changes(Changes::new()),
                    Some(runs) => Contents::Pages(PageCutter::new(runs)),
                    None => Contents::Pieces(Cutter::default()),
                };
                self.open = Some((path, contents));
            }
            TreeOp::Segment { index, body, digest } => match (&mut self.open, body) {
                (Some((_, Contents::Pieces(cutter))), Body::Data(bytes)) => {
                    cutter.take(index * SEGMENT, &bytes, &mut |bytes| shelf.put(bytes))?;
                }
                (Some((path, Contents::Pages(cutter))), Body::Data(bytes)) => {
                    let fits = cutter.take(index * SEGMENT, &bytes, &mut |bytes| shelf.put(bytes))?;
                    if !fits {
                        return Err(changed(path));
                    }
                }
                (Some((_, Contents::Changes(changes))), body) => {
                    changes.insert(index, Some((body, digest)));
                }
                _ => {}
            },
            TreeOp::Hole { index } => {
                // the zeros of a file that is new are left out as they are
                if let Some((_, Contents::Changes(changes))) = &mut self.open {
                    changes.insert(index, None);
                }
            }
            TreeOp::FileEnd { size, meta } => {
                let Some((path, contents)) = self.open.take() else { return Ok(()) };
                let content = match contents {
                    Contents::Pieces(cutter) => {
                        Content::Pieces(cutter.finish(&mut |bytes| shelf.put(bytes))?)
                    }
                    Contents::Pages(cutter) => {
                        let groups = cutter.finish(size, &mut |bytes| shelf.put(bytes))?;
                        Content::Pages(groups.ok_or_else(|| changed(&path))?)
                    }
                    Contents::Changes(changes) => {
                        let Some(Node::File { size: old, content: Content::Pieces(pieces), .. }) =
                            self.node(&path)
                        else {
                            return Err(unknown(&path));
                        };
                        let base = Base::new(*old, pieces);
                        let content = Content::Pieces(base.changed(size, changes, shelf)?);
                        // by all of its names
                        if let Some(known) = self.node(&path) {
                            *known = Node::File { meta, size, content };
                        }
                        return Ok(());
                    }
                };
                self.put(path, Node::File { meta, size, content });
            }
            TreeOp::RoundEnd { .. } => {}
        }
        Ok(())
    }

    fn id(&self, path: &TreePath) -> Result<NodeId, StoreError> {
        self.names.get(path).copied().ok_or_else(|| unknown(path))
    }

    fn node(&mut self, path: &TreePath) -> Option<&mut Node> {
        self.nodes.get_mut(self.names.get(path)?)
    }

    fn put(&mut self, path: TreePath, node: Node) {
        self.next += 1;
        self.names.insert(path, self.next);
        self.nodes.insert(self.next, node);
    }

    /// Takes a name away, a directory's with all that is beneath. What has no name any more is in no tree.
    fn remove(&mut self, path: &TreePath) {
        let alike = self.names.range(path..).map(|(name, _)| name);
        let alike = alike.take_while(|name| name.as_bytes().starts_with(path.as_bytes()));
        let gone: Vec<TreePath> =
            alike.filter(|name| *name == path || name.is_beneath(path)).cloned().collect();
        for name in gone {
            self.names.remove(&name);
        }
    }
}

fn changed(path: &TreePath) -> StoreError {
    StoreError::Changed { path: path.to_string() }
}

fn unknown(path: &TreePath) -> StoreError {
    StoreError::Unfit(format!("a change of `{path}`, which was not there"))
}
