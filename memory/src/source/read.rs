//! Reading pages of a running task from outside.

use super::SinkError;
use super::maps::Span;
use super::scan::Scanner;
use crate::page::PAGE_SIZE;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

/// Bytes read at once: still in the cache when the sink looks at them.
const CHUNK: usize = 1 << 20;
/// Pieces read at once.
const PIECES: usize = 512;

/// What to read from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) pid: i32,
    pub(crate) mem: &'a File,
    pub(crate) pagemap: &'a File,
    /// No other task of the tree was forked from it, or it from one, since the last exec: its pages are its own unless the
    /// pagemap says otherwise.
    pub(crate) alone: bool,
}

/// Takes consecutive pages: address, content.
pub(crate) type Deliver<'a> = dyn FnMut(u64, &[u8]) -> Result<(), SinkError> + 'a;

/// Reads, with buffers that are reused.
#[derive(Debug)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    batch: Vec<Span>,
    remote: Vec<RemoteIoVec>,
    /// Test knob: process_vm_readv for all pages.
    pub(crate) unshare: bool,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; CHUNK],
            batch: Vec::with_capacity(PIECES),
            remote: Vec::with_capacity(PIECES),
            unshare: false,
        }
    }

    /// Hands the pages of the sorted spans to `deliver`. Those that cannot be read go to `failed`: they are gone, or
    /// nobody can read them. Gives how many were handed over.
    pub(crate) fn read(
        &mut self,
        origin: Origin<'_>,
        spans: &[Span],
        scanner: &mut Scanner,
        failed: &mut Vec<Span>,
        deliver: &mut Deliver<'_>,
    ) -> Result<u64, SinkError> {
        let mut pages = 0;
        let mut next = 0;
        let mut within = 0;
        while next < spans.len() {
            // process_vm_readv is twice as fast as /proc/PID/mem, but pins the pages, for which the kernel first copies
            // those that are shared with a forked task: the memory of the tree would grow.
            self.batch.clear();
            let mut room = CHUNK as u64;
            while let Some(span) = spans.get(next).filter(|_| room > 0 && self.batch.len() < PIECES) {
                let start = span.start + within;
                let end = span.end.min(start + room);
                room -= end - start;
                within += end - start;
                self.batch.push(Span { start, end });
                if end == span.end {
                    next += 1;
                    within = 0;
                }
            }
            let bytes = CHUNK as u64 - room;
            let fast = self.unshare
                || origin.alone && scanner.exclusive(origin.pagemap, &self.batch, bytes / PAGE_SIZE);
            let read = if fast { self.read_vm(origin.pid, bytes as usize) } else { 0 };
            pages += self.hand_over(origin.mem, read, failed, deliver)?;
        }
        Ok(pages)
    }

    /// Reads the batch into the buffer; gives how many bytes of it are there, of whole pages.
    fn read_vm(&mut self, pid: i32, bytes: usize) -> usize {
        self.remote.clear();
        self.remote.extend(
            self.batch
                .iter()
                .map(|span| RemoteIoVec { base: span.start as usize, len: span.bytes() as usize }),
        );
        let mut local = [IoSliceMut::new(&mut self.buffer[..bytes])];
        process_vm_readv(Pid::from_raw(pid), &mut local, &self.remote).unwrap_or(0)
            & !(PAGE_SIZE as usize - 1)
    }

    /// Hands the batch over: what was read already from the buffer, the rest by /proc/PID/mem.
    fn hand_over(
        &mut self,
        mem: &File,
        mut read: usize,
        failed: &mut Vec<Span>,
        deliver: &mut Deliver<'_>,
    ) -> Result<u64, SinkError> {
        let mut pages = 0;
        let mut at = 0;
        for &Span { mut start, end } in &self.batch {
            let here = read.min((end - start) as usize);
            if here > 0 {
                deliver(start, &self.buffer[at..at + here])?;
                read -= here;
                at += here;
                start += here as u64;
                pages += here as u64 / PAGE_SIZE;
            }
            while start < end {
                // What lies behind in the buffer is not needed once reading stopped short.
                let want = (end - start) as usize;
                match mem.read_at(&mut self.buffer[..want], start).unwrap_or(0) & !(PAGE_SIZE as usize - 1) {
                    0 => {
                        Span { start, end: start + PAGE_SIZE }.push_to(failed);
                        start += PAGE_SIZE;
                    }
                    bytes => {
                        deliver(start, &self.buffer[..bytes])?;
                        pages += bytes as u64 / PAGE_SIZE;
                        start += bytes as u64;
                    }
                }
            }
        }
        Ok(pages)
    }
}
