//! Reads one file and emits what the index does not have of it.

use std::mem;
use std::os::fd::AsFd;

use super::delta::{body, digest, record};
use super::entry::{FileType, read_xattrs};
use super::file_read::{Segment, SegmentReader, open_for_reading};
use super::index::{FileRecord, NodeId};
use super::plan::{Seen, now};
use super::round::Round;
use super::scan::is_gone;
use super::source::RoundError;
use super::{Kind, SEGMENT, TreeError, TreeOp, TreePath};

impl<E> Round<'_, E> {
    /// Brings the file `path` into the node `id`, or into a new one; the node it is in then. None, and nothing emitted,
    /// when the name no longer leads to the inode that the walk found: the next round knows more.
    pub fn send_file(
        &mut self,
        path: &TreePath,
        inode: &mut Seen,
        id: Option<NodeId>,
    ) -> Result<Option<NodeId>, RoundError<E>> {
        // Before the times are taken, and these before the first byte is read.
        let read_at = now();
        let (handle, stat) = match self.source.tree.handle(path) {
            Ok((_, stat)) if stat.key != inode.stat.key || stat.file_type != FileType::File => {
                return Ok(None);
            }
            Ok(open) => open,
            Err(errno) if is_gone(errno) => return Ok(None),
            Err(errno) => return Err(TreeError::Io { act: "open", path: path.clone(), errno }.into()),
        };
        let xattrs =
            read_xattrs(handle.as_fd()).map_err(TreeError::io("read the extended attributes of", path))?;
        let file = open_for_reading(handle.as_fd()).map_err(TreeError::io("open", path))?;
        inode.stat = stat;
        inode.settled = stat.is_settled(read_at, self.source.options.racy_ms);
        inode.meta = stat.meta(xattrs);

        let mut known = match id.and_then(|id| self.source.index.nodes.get_mut(&id)) {
            Some(node) => match &mut node.kind {
                Kind::File(record) => mem::take(record),
                _ => FileRecord::default(),
            },
            None => FileRecord::default(),
        };
        let mut begin = Some(TreeOp::FileBegin { path: path.clone(), size: stat.size, new: id.is_none() });
        if id.is_none() || known.size != stat.size {
            self.emit_all(&mut begin, None)?;
        }
        let reader = SegmentReader::new(file, stat.size);
        let weight = self.stats.bytes_sent;
        known.size = self.send_segments(path, reader, stat.size, &mut known, &mut begin)?;
        known.segments.retain(|index, _| index * SEGMENT < known.size);
        self.stats.files_read += 1;
        self.stats.files_sent += u64::from(self.stats.bytes_sent > weight);

        let begun = begin.is_none();
        if begun {
            self.emit(TreeOp::FileEnd { size: known.size, meta: inode.meta.clone() })?;
        }
        inode.done = true;
        let Some(id) = id else {
            return Ok(Some(self.add(path, Kind::File(known), inode.meta.clone())));
        };
        if let Some(node) = self.source.index.nodes.get_mut(&id) {
            node.kind = Kind::File(known);
            if begun {
                node.meta = inode.meta.clone();
            }
        }
        self.set_meta(path, id, &inode.meta, false)?;
        Ok(Some(id))
    }

    /// Emits `op`, and the beginning of the file before it if that has not been emitted.
    fn emit_all(&mut self, begin: &mut Option<TreeOp>, op: Option<TreeOp>) -> Result<(), RoundError<E>> {
        begin.take().into_iter().chain(op).try_for_each(|op| self.emit(op))
    }

    /// Emits the segments that differ; the bytes the file turned out to have, at most `size`.
    fn send_segments(
        &mut self,
        path: &TreePath,
        mut reader: SegmentReader,
        size: u64,
        known: &mut FileRecord,
        begin: &mut Option<TreeOp>,
    ) -> Result<u64, RoundError<E>> {
        let failed = |errno| TreeError::Io { act: "read", path: path.clone(), errno };
        let count = size.div_ceil(SEGMENT);
        let mut next = 0;
        let mut data = reader.next_data(0).map_err(failed)?;
        loop {
            if data.is_some_and(|at| at < next) {
                data = reader.next_data(next).map_err(failed)?;
            }
            // What is neither here nor there is zeros on both sides.
            let recorded = known.segments.range(next..count.max(next)).next().map(|(&index, _)| index);
            let Some(index) = data.into_iter().chain(recorded).min() else { return Ok(size) };
            let segment =
                if data == Some(index) { reader.read(index).map_err(failed)? } else { Segment::Zeros };
            match segment {
                Segment::Gone => return Ok(index * SEGMENT),
                Segment::Zeros => {
                    if known.segments.remove(&index).is_some() {
                        self.emit_all(begin, Some(TreeOp::Hole { index }))?;
                    }
                }
                Segment::Data(bytes) => {
                    self.stats.bytes_read += bytes.len() as u64;
                    let digest = digest(bytes);
                    let base = known.segments.get(&index);
                    if base.is_none_or(|base| base.digest != digest || base.len as usize != bytes.len()) {
                        let new = record(bytes, digest);
                        let body = body(bytes, &new, base);
                        self.emit_all(begin, Some(TreeOp::Segment { index, digest, body }))?;
                        known.segments.insert(index, new);
                    }
                    if bytes.len() < FileRecord::segment_len(size, index) {
                        return Ok(index * SEGMENT + bytes.len() as u64);
                    }
                }
            }
            next = index + 1;
        }
    }
}
