//! The steps that make a tree of its manifest: those that a migration's destination carries out, too.

use std::collections::HashSet;

use godwit_transfer::tree::{Body, Meta, SEGMENT, TreeOp, TreePath};

use crate::manifest::{Content, Entry, Node, PAGE, Tree};
use crate::{Digest, StoreError};

/// Where the chunks of a tree come from.
pub trait Chunks {
    /// The bytes of a chunk, verified. None when they are not to be had: what they should be is left out.
    ///
    /// # Errors
    /// When nothing more is to be had, and the tree shall not be made.
    fn chunk(&mut self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Takes the steps.
type Emit<'a> = &'a mut dyn FnMut(TreeOp) -> Result<(), StoreError>;

impl Tree {
    /// Emits what makes the tree in an empty directory. Where chunks are not to be had, files have zeros, and a file of which there is
    /// nothing is left out, with all of its names. `progress` hears how many bytes of files were passed, of how many.
    ///
    /// # Errors
    /// Those of `chunks` and of `emit`, and [`StoreError::Manifest`] when a chunk does not fit.
    pub fn unfold(
        &self,
        chunks: &mut dyn Chunks,
        emit: Emit<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let (mut done, total) = (0, self.file_bytes());
        let mut left_out: HashSet<&TreePath> = HashSet::new();
        for Entry { path: at, node } in &self.entries {
            let path = at.clone();
            match node.clone() {
                Node::Dir { .. } if path.is_root() => {}
                Node::Dir { .. } => emit(TreeOp::Dir { path })?,
                Node::Link { to } if left_out.contains(&to) => {}
                Node::Link { to } => emit(TreeOp::HardLink { path, to })?,
                Node::Symlink { meta, to } => emit(TreeOp::Symlink { path, destination: to, meta })?,
                Node::Fifo { meta } => emit(TreeOp::Fifo { path, meta })?,
                Node::Device { meta, block, major, minor } => {
                    emit(TreeOp::Device { path, block, major, minor, meta })?;
                }
                Node::File { meta, size, content } => {
                    let mut file = Filling { emit, path: at, size, has_begun: false, segment: None };
                    let is_whole = write(&content, chunks, &mut file)?;
                    if !file.end(meta, is_whole)? {
                        left_out.insert(at);
                    }
                    done += size;
                    progress(done, total);
                }
            }
        }
        // the deepest first: all before moves the times of what it is in
        for Entry { path, node } in self.entries.iter().rev() {
            if let Node::Dir { meta } = node {
                emit(TreeOp::Meta { path: path.clone(), meta: meta.clone() })?;
            }
        }
        Ok(())
    }

    /// The chunks that it needs, in the order in which [`Tree::unfold`] asks for them, and how many bytes each has, as far as the
    /// manifest says.
    pub fn needs(&self) -> Vec<(Digest, u64)> {
        let of_file = |entry: &Entry| -> Vec<(Digest, u64)> {
            match &entry.node {
                Node::File { content: Content::Pieces(pieces), .. } => {
                    pieces.iter().map(|piece| (piece.chunk, piece.len.into())).collect()
                }
                Node::File { content: Content::Pages(groups), .. } => {
                    groups.iter().filter_map(|group| Some((group.chunk?, page_bytes(group.filled)))).collect()
                }
                _ => Vec::new(),
            }
        };
        self.entries.iter().flat_map(of_file).collect()
    }
}

impl Tree {
    /// The chunks of memory pages in it, in the order of their files and addresses, and how many bytes each has.
    pub fn page_chunks(&self) -> Vec<(Digest, u64)> {
        let groups = self.entries.iter().filter_map(|entry| match &entry.node {
            Node::File { content: Content::Pages(groups), .. } => Some(groups),
            _ => None,
        });
        groups.flatten().filter_map(|group| Some((group.chunk?, page_bytes(group.filled)))).collect()
    }
}

/// Bytes of the pages of a group that are not all zeros.
fn page_bytes(filled: u64) -> u64 {
    u64::from(filled.count_ones()) * PAGE as u64
}

/// Writes what is in a file, save its zeros. Whether all of it was to be had.
fn write(content: &Content, chunks: &mut dyn Chunks, file: &mut Filling<'_>) -> Result<bool, StoreError> {
    let mut at = 0;
    let mut is_whole = true;
    match content {
        Content::Pieces(pieces) => {
            for piece in pieces {
                at += piece.gap;
                match chunks.chunk(piece.chunk)? {
                    Some(bytes) if bytes.len() == piece.len as usize => file.write(at, &bytes)?,
                    Some(_) => return Err(file.does_not_fit(piece.chunk)),
                    None => is_whole = false,
                }
                at += u64::from(piece.len);
            }
        }
        Content::Pages(groups) => {
            for group in groups {
                let bytes = match group.chunk {
                    Some(chunk) => chunks.chunk(chunk)?,
                    None => Some(Vec::new()),
                };
                is_whole &= bytes.is_some();
                let filled = group.filled.count_ones() as usize * PAGE;
                if bytes.as_ref().is_some_and(|bytes| bytes.len() != filled) {
                    return Err(file.does_not_fit(group.chunk.unwrap_or(Digest([0; 32]))));
                }
                let bytes = bytes.unwrap_or_default();
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
    Ok(is_whole)
}

/// A file that is being written, segment by segment.
struct Filling<'a> {
    emit: Emit<'a>,
    path: &'a TreePath,
    size: u64,
    has_begun: bool,
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

    fn begin(&mut self) -> Result<(), StoreError> {
        if !std::mem::replace(&mut self.has_begun, true) {
            (self.emit)(TreeOp::FileBegin { path: self.path.clone(), size: self.size, new: true })?;
        }
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), StoreError> {
        let Some((index, bytes)) = self.segment.take() else { return Ok(()) };
        self.begin()?;
        let digest = *blake3::hash(&bytes).as_bytes();
        (self.emit)(TreeOp::Segment { index, digest, body: Body::Data(bytes) })
    }

    /// Ends the file, unless there is nothing of what should be in it. Whether there is one.
    fn end(mut self, meta: Meta, is_whole: bool) -> Result<bool, StoreError> {
        self.end_segment()?;
        if is_whole {
            self.begin()?;
        }
        if self.has_begun {
            (self.emit)(TreeOp::FileEnd { size: self.size, meta })?;
        }
        Ok(self.has_begun)
    }

    fn does_not_fit(&self, digest: Digest) -> StoreError {
        let why = format!("chunk {digest} has another length than `{}` needs", self.path);
        StoreError::Manifest { digest, why }
    }
}
