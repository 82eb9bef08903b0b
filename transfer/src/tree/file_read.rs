//! Reads a file segment by segment, over its holes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek64};

use super::SEGMENT;
use super::delta::is_zero;
use super::entry::magic_link;
use super::index::FileRecord;

/// Opens for reading what an `O_PATH` descriptor is known to be: the way never leads to another inode, so no device or
/// FIFO that has taken the name is opened by accident.
pub(super) fn open_for_reading(handle: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, &*magic_link(handle), flags, Mode::empty())
}

/// The segments of an open file.
pub(super) struct SegmentReader {
    file: OwnedFd,
    size: u64,
    buffer: Vec<u8>,
}

/// What a segment of a file holds.
pub(super) enum Segment<'a> {
    /// Bytes that are not all zero. Fewer than the size promised: the file ends here.
    Data(&'a [u8]),
    /// All zeros.
    Zeros,
    /// Nothing any more: the file has become shorter.
    Gone,
}

impl SegmentReader {
    /// Reads at most `size` bytes.
    pub fn new(file: OwnedFd, size: u64) -> SegmentReader {
        SegmentReader { file, size, buffer: Vec::new() }
    }

    /// The number of the first segment from `from` on that is not wholly in a hole.
    pub fn next_data(&self, from: u64) -> Result<Option<u64>, Errno> {
        let begin = from.saturating_mul(SEGMENT);
        if begin >= self.size {
            return Ok(None);
        }
        match lseek64(&self.file, begin as i64, Whence::SeekData) {
            Ok(at) => Ok(Some(at as u64 / SEGMENT).filter(|_| (at as u64) < self.size)),
            Err(Errno::ENXIO) => Ok(None),
            // A file system that does not know of holes.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(from)),
            Err(errno) => Err(errno),
        }
    }

    /// Reads one segment.
    pub fn read(&mut self, index: u64) -> Result<Segment<'_>, Errno> {
        let want = FileRecord::segment_len(self.size, index);
        if self.buffer.len() < want {
            self.buffer.resize(want, 0);
        }
        let got = read_full(self.file.as_fd(), &mut self.buffer[..want], index * SEGMENT)?;
        let bytes = &self.buffer[..got];
        Ok(match got {
            0 => Segment::Gone,
            // A short one is told as it is: its length says that the file ends.
            _ if got == want && is_zero(bytes) => Segment::Zeros,
            _ => Segment::Data(bytes),
        })
    }
}

/// Fills `buffer` from `offset` on, or as much of it as there is.
pub(super) fn read_full(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut got = 0;
    while got < buffer.len() {
        match pread(file, &mut buffer[got..], (offset + got as u64) as i64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(got)
}
