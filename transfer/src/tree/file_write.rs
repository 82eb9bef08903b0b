//! Writes one file at the destination: in place, verified, with holes where there are zeros.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::pwrite;
use nix::unistd::ftruncate;

use super::delta::{BLOCK, digest, is_zero, rebuild};
use super::entry::write_meta;
use super::file_read::read_full;
use super::index::FileRecord;
use super::{Body, Meta, SEGMENT, TreeError, TreePath};

/// A file between its beginning and its end.
pub(super) struct FileWriter {
    path: TreePath,
    file: OwnedFd,
    /// Bytes it had at the beginning: what deltas are from.
    old_size: u64,
    /// Bytes it may have at the end.
    announced: u64,
    /// Where the bytes that may be other than zero end.
    written: u64,
    base: Vec<u8>,
}

impl FileWriter {
    pub fn new(path: TreePath, file: OwnedFd, old_size: u64, announced: u64) -> FileWriter {
        FileWriter { path, file, old_size, announced, written: old_size, base: Vec::new() }
    }

    fn io(&self, act: &'static str) -> impl FnOnce(Errno) -> TreeError + use<> {
        TreeError::io(act, &self.path)
    }

    /// Bytes the segment may have.
    fn room(&self, index: u64) -> Result<usize, TreeError> {
        match FileRecord::segment_len(self.announced, index) {
            0 => Err(TreeError::Refused {
                path: self.path.clone(),
                why: "a segment lies beyond the size announced",
            }),
            len => Ok(len),
        }
    }

    /// Verifies, then writes a segment.
    pub fn segment(&mut self, index: u64, announced: [u8; 32], body: Body) -> Result<(), TreeError> {
        let room = self.room(index)?;
        let begin = index * SEGMENT;
        let base_len = match body {
            Body::Data(_) => 0,
            _ => FileRecord::segment_len(self.old_size, index),
        };
        self.base.resize(base_len, 0);
        let got = read_full(self.file.as_fd(), &mut self.base, begin).map_err(self.io("read"))?;
        let bytes = rebuild(body, &self.base[..got], room).map_err(|why| TreeError::Delta {
            path: self.path.clone(),
            segment: index,
            why,
        })?;
        if digest(&bytes) != announced {
            return Err(TreeError::Digest { path: self.path.clone(), segment: index });
        }
        self.write(begin, &bytes)
    }

    /// Makes a segment zeros.
    pub fn hole(&mut self, index: u64) -> Result<(), TreeError> {
        let room = self.room(index)?;
        self.punch(index * SEGMENT, room as u64)
    }

    fn write(&mut self, begin: u64, bytes: &[u8]) -> Result<(), TreeError> {
        let mut at = 0;
        let mut blocks = bytes.chunks(BLOCK).map(|block| (is_zero(block), block.len())).peekable();
        while let Some((zero, mut len)) = blocks.next() {
            while let Some((_, more)) = blocks.next_if(|(next, _)| *next == zero) {
                len += more;
            }
            let offset = begin + at as u64;
            if zero {
                self.punch(offset, len as u64)?;
            } else {
                self.write_all(offset, &bytes[at..at + len])?;
            }
            at += len;
        }
        Ok(())
    }

    fn write_all(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), TreeError> {
        while !bytes.is_empty() {
            match pwrite(&self.file, bytes, offset as i64) {
                Ok(0) => return Err(self.io("write")(Errno::EIO)),
                Ok(n) => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.io("write")(errno)),
            }
        }
        self.written = self.written.max(offset);
        Ok(())
    }

    /// Makes a range zeros, as a hole where the file system can; beyond what was ever written it is one.
    fn punch(&mut self, offset: u64, len: u64) -> Result<(), TreeError> {
        let len = len.min(self.written.saturating_sub(offset));
        if len == 0 {
            return Ok(());
        }
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, how, offset as i64, len as i64) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.write_all(offset, &vec![0; len as usize]),
            other => other.map_err(self.io("punch a hole in")),
        }
    }

    /// Gives the file its size and metadata.
    pub fn end(self, size: u64, meta: &Meta) -> Result<(), TreeError> {
        if size > self.announced {
            let why = "a file ends beyond the size announced";
            return Err(TreeError::Refused { path: self.path, why });
        }
        ftruncate(&self.file, size as i64).map_err(self.io("set the size of"))?;
        let path = &self.path;
        write_meta(self.file.as_fd(), false, meta).map_err(|(act, errno)| TreeError::io(act, path)(errno))
    }
}
