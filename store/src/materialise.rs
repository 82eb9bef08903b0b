//! Makes a tree of what the store has of it, by the same steps as a migration's destination: nothing reaches outside of its
//! directory, whatever the manifest says.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use godwit_transfer::tree::{Body, SEGMENT, TreeDestination, TreeOp, TreePath, empty_plainly};

use crate::manifest::{Content, Entry, Manifest, Node, PAGE, Tree};
use crate::{Digest, Lease, StoreError};

impl Lease {
    /// Makes the tree of a manifest, or the one that it describes, in the directory `root`, which is empty or is made; its parent has to
    /// be there. `progress` hears how many bytes were written, of how many. When it fails, what was made is taken away.
    ///
    /// # Errors
    /// [`StoreError::Missing`] before anything is made, [`StoreError::NotEmpty`], or the file system's.
    pub fn materialise(
        &mut self,
        manifest: Digest,
        root: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Tree, StoreError> {
        let tree = self.tree(manifest)?;
        let made = make_empty(root)?;
        let filled = self.fill(&tree, root, progress);
        if filled.is_err() {
            let cleared = root.canonicalize().map_err(StoreError::io("find", root)).and_then(|plain| {
                empty_plainly(&plain)?;
                if made { std::fs::remove_dir(root).map_err(StoreError::io("remove", root)) } else { Ok(()) }
            });
            if let Err(error) = cleared {
                tracing::warn!(%error, "what was made of it is still there");
            }
        }
        filled.map(|()| tree)
    }

    /// The tree of a manifest, or the one that it describes, held.
    ///
    /// # Errors
    /// As [`Lease::hold`].
    pub fn tree(&mut self, manifest: Digest) -> Result<Tree, StoreError> {
        match self.hold(manifest)? {
            Manifest::Tree(tree) => Ok(tree),
            Manifest::Described(described) => match self.hold(described.tree)? {
                Manifest::Tree(tree) => Ok(tree),
                Manifest::Described(_) => Err(StoreError::Manifest {
                    digest: described.tree,
                    why: "what is described is no tree".into(),
                }),
            },
        }
    }

    fn fill(
        &mut self,
        tree: &Tree,
        root: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let mut destination = TreeDestination::open(root)?;
        let (mut done, total) = (0, tree.file_bytes());
        for Entry { path, node } in &tree.entries {
            let path = path.clone();
            match node.clone() {
                Node::Dir { .. } if path.is_root() => {}
                Node::Dir { .. } => destination.apply(TreeOp::Dir { path })?,
                Node::Link { to } => destination.apply(TreeOp::HardLink { path, to })?,
                Node::Symlink { meta, to } => {
                    destination.apply(TreeOp::Symlink { path, destination: to, meta })?;
                }
                Node::Fifo { meta } => destination.apply(TreeOp::Fifo { path, meta })?,
                Node::Device { meta, block, major, minor } => {
                    destination.apply(TreeOp::Device { path, block, major, minor, meta })?;
                }
                Node::File { meta, size, content } => {
                    destination.apply(TreeOp::FileBegin { path: path.clone(), size, new: true })?;
                    let mut file =
                        Filling { destination: &mut destination, path: &path, size, segment: None };
                    self.write(&content, &mut file)?;
                    file.end_segment()?;
                    destination.apply(TreeOp::FileEnd { size, meta })?;
                    done += size;
                    progress(done, total);
                }
            }
        }
        // the deepest first: all before moves the times of what it is in
        for Entry { path, node } in tree.entries.iter().rev() {
            if let Node::Dir { meta } = node {
                destination.apply(TreeOp::Meta { path: path.clone(), meta: meta.clone() })?;
            }
        }
        Ok(())
    }

    /// Writes what is in a file, save its zeros.
    fn write(&mut self, content: &Content, file: &mut Filling<'_>) -> Result<(), StoreError> {
        let mut at = 0;
        match content {
            Content::Pieces(pieces) => {
                for piece in pieces {
                    let bytes = self.chunk(piece.chunk)?;
                    if bytes.len() != piece.len as usize {
                        return Err(file.does_not_fit(piece.chunk));
                    }
                    at += piece.gap;
                    file.write(at, &bytes)?;
                    at += bytes.len() as u64;
                }
            }
            Content::Pages(groups) => {
                for group in groups {
                    let bytes = group.chunk.map_or(Ok(Vec::new()), |chunk| self.chunk(chunk))?;
                    if bytes.len() != group.filled.count_ones() as usize * PAGE {
                        return Err(file.does_not_fit(group.chunk.unwrap_or(Digest([0; 32]))));
                    }
                    let mut pages = bytes.chunks(PAGE);
                    for bit in (0..u64::BITS).map(|bit| 1u64 << bit).filter(|bit| group.present & bit != 0) {
                        if group.filled & bit != 0 {
                            file.write(at, pages.next().unwrap_or_default())?;
                        }
                        at += PAGE as u64;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A file that is being written, segment by segment.
struct Filling<'a> {
    destination: &'a mut TreeDestination,
    path: &'a TreePath,
    size: u64,
    /// The segment that is being made: its number and its bytes.
    segment: Option<(u64, Vec<u8>)>,
}

impl Filling<'_> {
    /// Bytes at a place behind all before, within the size.
    fn write(&mut self, mut at: u64, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let index = at / SEGMENT;
            if self.segment.as_ref().is_none_or(|(open, _)| *open != index) {
                self.end_segment()?;
                let len = (self.size - index * SEGMENT).min(SEGMENT) as usize;
                self.segment = Some((index, vec![0; len]));
            }
            let Some((_, segment)) = &mut self.segment else { break };
            let begin = (at % SEGMENT) as usize;
            let len = bytes.len().min(segment.len() - begin);
            let (now, later) = bytes.split_at(len);
            segment[begin..begin + len].copy_from_slice(now);
            (at, bytes) = (at + len as u64, later);
        }
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), StoreError> {
        let Some((index, bytes)) = self.segment.take() else { return Ok(()) };
        let digest = *blake3::hash(&bytes).as_bytes();
        self.destination.apply(TreeOp::Segment { index, digest, body: Body::Data(bytes) })?;
        Ok(())
    }

    fn does_not_fit(&self, digest: Digest) -> StoreError {
        let why = format!("chunk {digest} has another length than `{}` needs", self.path);
        StoreError::Manifest { digest, why }
    }
}

/// Makes a directory, or sees that it is empty; whether it was made.
fn make_empty(root: &Path) -> Result<bool, StoreError> {
    match std::fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut entries = std::fs::read_dir(root).map_err(StoreError::io("read", root))?;
            if entries.next().is_some() { Err(StoreError::NotEmpty(root.to_owned())) } else { Ok(false) }
        }
        Err(error) => Err(StoreError::io("make", root)(error)),
    }
}
