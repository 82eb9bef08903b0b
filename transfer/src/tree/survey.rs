//! Reads a whole tree into an index.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::beneath::Beneath;
use super::delta::{digest, record};
use super::entry::{FileType, InodeKey, Stat, read_link, read_xattrs};
use super::file_read::{Segment, SegmentReader, open_for_reading};
use super::index::{FileRecord, SegmentRecord};
use super::plan::bare_kind;
use super::scan::{Found, is_gone, scan};
use super::{Kind, TreeError, TreeIndex};

/// What of a file's contents to keep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Digests and signatures: a base to send deltas to.
    Signatures,
    /// Digests alone.
    Digests,
}

/// Reads everything beneath the root.
pub(super) fn survey(tree: &Beneath, keep: Keep) -> Result<TreeIndex, TreeError> {
    let mut index = TreeIndex::default();
    let mut known: HashMap<InodeKey, u64> = HashMap::new();
    for (id, Found { path, stat }) in (0..).zip(scan(tree)?) {
        if let Some(&first) = known.get(&stat.key)
            && stat.file_type != FileType::Dir
        {
            index.link(path, first);
            continue;
        }
        if stat.mount_root {
            index.insert(path, id, Kind::Dir, stat.meta(Vec::new()));
            continue;
        }
        let (handle, stat) = match tree.handle(&path) {
            Ok(open) => open,
            Err(errno) if is_gone(errno) => continue,
            Err(errno) => return Err(TreeError::Io { act: "open", path, errno }),
        };
        let xattrs =
            read_xattrs(handle.as_fd()).map_err(TreeError::io("read the extended attributes of", &path))?;
        let kind = read_kind(handle.as_fd(), &stat, keep).map_err(TreeError::io("read", &path))?;
        known.insert(stat.key, id);
        index.insert(path, id, kind, stat.meta(xattrs));
    }
    Ok(index)
}

fn read_kind(handle: BorrowedFd<'_>, stat: &Stat, keep: Keep) -> Result<Kind, Errno> {
    Ok(match bare_kind(stat) {
        Kind::File(_) => Kind::File(read_file(handle, stat.size, keep)?),
        Kind::Symlink(_) => Kind::Symlink(read_link(handle)?),
        kind => kind,
    })
}

fn read_file(handle: BorrowedFd<'_>, size: u64, keep: Keep) -> Result<FileRecord, Errno> {
    let mut file = FileRecord { size, ..FileRecord::default() };
    let mut reader = SegmentReader::new(open_for_reading(handle)?, size);
    let mut next = 0;
    while let Some(index) = reader.next_data(next)? {
        next = index + 1;
        let bytes = match reader.read(index)? {
            Segment::Zeros => continue,
            Segment::Data(bytes) if bytes.len() == FileRecord::segment_len(size, index) => bytes,
            // It becomes shorter as it is read, but nobody may write to what is surveyed.
            _ => return Err(Errno::EBUSY),
        };
        let digest = digest(bytes);
        let segment = match keep {
            Keep::Signatures => record(bytes, digest),
            Keep::Digests => SegmentRecord { len: bytes.len() as u32, digest, signature: Vec::new() },
        };
        file.segments.insert(index, segment);
    }
    Ok(file)
}
