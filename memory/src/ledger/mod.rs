//! What the destination has already, kept at the source: of every page that was read, decides what must travel.
//!
//! The ledger alone gives out the slots of the destination's [`PageStore`](crate::destination::PageStore), which only
//! does what the batches say. One slot holds one content, however many pages of however many tasks have it.
//!
//! Pages go over several streams, a 2 MiB block always over the same, so that two versions of a page never overtake each
//! other. A reference may only be made to what the same stream carried before, or to an earlier round: the caller waits
//! for the destination to have everything of a round before it adds to the next.

mod contents;
mod sharing;

use crate::batch::{BatchBuilder, Kind, Run};
use crate::table::{ABSENT, BLOCK_BYTES, BLOCK_PAGES, Block, PageTable, Place, SLOT_LIMIT, ZERO, pieces};
use crate::{ImageId, PAGE_SIZE, PageRun};
use contents::Contents;
use std::collections::BTreeMap;

/// A batch is cut when it has this much data, in bytes,
const BATCH_DATA: usize = 1 << 20;
/// or this many bytes altogether, if most of it is runs.
const BATCH_LEN: usize = 2 << 20;
/// Behind the last whole page there can be.
const END: u64 = u64::MAX - (PAGE_SIZE - 1);

/// Why a page could not be added. The destination's store is not complete then; the ledger cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError<E> {
    /// More different pages than the store has room for.
    #[error("the destination has room for {room} pages, the containers' memory needs more")]
    Full {
        /// The room, in pages.
        room: u64,
    },
    /// The bytes are not whole pages.
    #[error("{bytes} bytes at {address:#x} are not whole pages")]
    Unaligned {
        /// Where they are from.
        address: u64,
        /// How many.
        bytes: usize,
    },
    /// The batch could not be sent.
    #[error(transparent)]
    Send(E),
}

/// What the ledger did, in pages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LedgerStatistics {
    /// Pages that were added.
    pub added: u64,
    /// Of these, the destination had this content at this address already.
    pub unchanged: u64,
    /// Of these, all zero and not so before.
    pub zero: u64,
    /// Of these, had the content of another page that was sent before: what the de-duplication saved.
    pub referenced: u64,
    /// Of these, sent.
    pub data: u64,
    /// Pages that were forgotten since they exist no more.
    pub forgotten: u64,
    /// Different contents the destination holds now.
    pub live: u64,
}

/// Takes a finished batch and the number of its stream. May take the buffer (and leave another one, to be used again).
pub type Send<'a, E> = &'a mut dyn FnMut(usize, &mut Vec<u8>) -> Result<(), E>;

/// See the [module](self).
pub struct PageLedger {
    images: BTreeMap<ImageId, PageTable>,
    contents: Contents,
    streams: Vec<BatchBuilder>,
    statistics: LedgerStatistics,
}

impl PageLedger {
    /// For a store with room for `room_pages`, over this many streams (at least one). `seed` is a random number of this
    /// migration: it keeps a tenant from making up two pages with the same digest.
    pub fn new(streams: usize, room_pages: u64, seed: u64) -> Self {
        Self {
            images: BTreeMap::new(),
            contents: Contents::new(room_pages.min(SLOT_LIMIT), seed),
            streams: (0..streams.max(1)).map(|_| BatchBuilder::default()).collect(),
            statistics: LedgerStatistics::default(),
        }
    }

    /// The store has contents from an earlier attempt, by slot and by digest (of the same seed): pages with one of them need not
    /// travel again. To be called before anything is added.
    pub fn keep(&mut self, kept: impl IntoIterator<Item = (u32, u128)>) {
        kept.into_iter().for_each(|(slot, digest)| self.contents.keep(slot, digest));
    }

    /// The digest of a page, which is compared instead of its content.
    pub fn digest(page: &[u8], seed: u64) -> u128 {
        contents::digest(page, seed)
    }

    /// Adds pages as they are now: whole pages from `address` on. What must travel is put into batches; `send` is called
    /// for every batch that is full.
    pub fn add<E>(
        &mut self,
        image: ImageId,
        address: u64,
        bytes: &[u8],
        send: Send<'_, E>,
    ) -> Result<(), LedgerError<E>> {
        if !address.is_multiple_of(PAGE_SIZE) || !(bytes.len() as u64).is_multiple_of(PAGE_SIZE) {
            return Err(LedgerError::Unaligned { address, bytes: bytes.len() });
        }
        let table = self.images.entry(image).or_default();
        let mut pages = bytes.chunks_exact(PAGE_SIZE as usize);
        for piece in pieces(address, bytes.len() as u64 / PAGE_SIZE) {
            let stream = stream_of(image, piece.block, self.streams.len());
            let out = &mut self.streams[stream];
            let block = table.block_mut(piece.block);
            let mut at = piece.start;
            for (index, page) in piece.pages.zip(pages.by_ref()) {
                let old = block.get(index);
                if let Some((new, kind)) = decide(&mut self.contents, &mut self.statistics, old, page, stream)
                    .map_err(|Full| LedgerError::Full { room: self.contents.room() })?
                {
                    block.set(index, new);
                    let run = Run { image, pages: PageRun { start: at, pages: 1 }, kind };
                    out.push(run, if matches!(kind, Kind::Data { .. }) { page } else { &[] });
                    if out.data_len() >= BATCH_DATA || out.len() >= BATCH_LEN {
                        cut(stream, out, send)?;
                    }
                }
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Sends what waits in batches that are not full.
    pub fn flush<E>(&mut self, send: Send<'_, E>) -> Result<(), LedgerError<E>> {
        for (stream, out) in self.streams.iter_mut().enumerate() {
            cut(stream, out, send)?;
        }
        Ok(())
    }

    /// Ends a round: flushes. Before anything is added again the destination must have applied everything.
    pub fn end_round<E>(&mut self, send: Send<'_, E>) -> Result<(), LedgerError<E>> {
        self.flush(send)?;
        self.contents.end_round();
        Ok(())
    }

    /// Compares with the pages that exist in the image (ascending): those that exist no more are forgotten here and there,
    /// those that exist and were never added are the result.
    pub fn reconcile<E>(
        &mut self,
        image: ImageId,
        existing: &[PageRun],
        send: Send<'_, E>,
    ) -> Result<Vec<PageRun>, LedgerError<E>> {
        let mut missing: Vec<PageRun> = Vec::new();
        let mut behind = 0;
        for run in existing {
            self.forget(image, behind, run.start, send)?;
            behind = behind.max(run.end());
            let table = self.images.get(&image);
            for piece in pieces(run.start, run.pages) {
                let block = table.and_then(|table| table.block(piece.block));
                if block.is_some_and(Block::is_full) {
                    continue;
                }
                for (index, at) in piece.pages.zip((piece.start..).step_by(PAGE_SIZE as usize)) {
                    if block.is_some_and(|block| block.get(index) != ABSENT) {
                        continue;
                    }
                    match missing.last_mut() {
                        Some(last) if last.end() == at => last.pages += 1,
                        _ => missing.push(PageRun { start: at, pages: 1 }),
                    }
                }
            }
        }
        self.forget(image, behind, END, send)?;
        Ok(missing)
    }

    /// Forgets all pages of an image: its task or object is gone.
    pub fn forget_image<E>(&mut self, image: ImageId, send: Send<'_, E>) -> Result<(), LedgerError<E>> {
        self.forget(image, 0, END, send)?;
        self.images.remove(&image);
        Ok(())
    }

    /// The page was added, and not forgotten since.
    pub fn contains(&self, image: ImageId, address: u64) -> bool {
        self.images.get(&image).is_some_and(|table| table.get(address) != ABSENT)
    }

    /// The images with pages.
    pub fn images(&self) -> impl Iterator<Item = ImageId> + '_ {
        self.images.iter().filter(|(_, table)| table.len() > 0).map(|(image, _)| *image)
    }

    /// More than half of the destination's room is in use.
    pub fn is_half_full(&self) -> bool {
        self.contents.live() > self.contents.room() / 2
    }

    /// What happened so far.
    pub fn statistics(&self) -> LedgerStatistics {
        LedgerStatistics { live: self.contents.live(), ..self.statistics }
    }

    fn forget<E>(
        &mut self,
        image: ImageId,
        start: u64,
        end: u64,
        send: Send<'_, E>,
    ) -> Result<(), LedgerError<E>> {
        let Some(table) = self.images.get_mut(&image) else { return Ok(()) };
        let mut result = Ok(());
        let streams = self.streams.len();
        table.forget(start..end, &mut |at, place| {
            self.statistics.forgotten += 1;
            if place != ZERO {
                self.contents.release(place);
            }
            let stream = stream_of(image, at / BLOCK_BYTES, streams);
            let out = &mut self.streams[stream];
            out.push(Run { image, pages: PageRun { start: at, pages: 1 }, kind: Kind::Forget }, &[]);
            if result.is_ok() && out.len() >= BATCH_LEN {
                result = cut(stream, out, send);
            }
        });
        result
    }
}

/// No free slot.
struct Full;

/// What is to be done about a page that is at `old` and has this content now; nothing if it is unchanged.
fn decide(
    contents: &mut Contents,
    statistics: &mut LedgerStatistics,
    old: Place,
    page: &[u8],
    stream: usize,
) -> Result<Option<(Place, Kind)>, Full> {
    statistics.added += 1;
    if is_zero(page) {
        if old == ZERO {
            statistics.unchanged += 1;
            return Ok(None);
        }
        if old != ABSENT {
            contents.release(old);
        }
        statistics.zero += 1;
        return Ok(Some((ZERO, Kind::Zero)));
    }
    let digest = contents.digest(page);
    let held = (old != ABSENT && old != ZERO).then_some(old);
    if held.is_some_and(|held| contents.has(held, digest)) {
        statistics.unchanged += 1;
        return Ok(None);
    }
    if let Some(slot) = contents.find(digest, stream) {
        contents.share(slot);
        if let Some(held) = held {
            contents.release(held);
        }
        statistics.referenced += 1;
        return Ok(Some((slot, Kind::Reference { first: slot })));
    }
    let slot = match held {
        Some(held) if contents.is_sole(held) => held,
        _ => {
            let slot = contents.take().ok_or(Full)?;
            if let Some(held) = held {
                contents.release(held);
            }
            slot
        }
    };
    contents.write(slot, digest, stream);
    statistics.data += 1;
    Ok(Some((slot, Kind::Data { first: slot })))
}

pub(crate) fn is_zero(page: &[u8]) -> bool {
    // In words of 64 bytes, which the compiler turns into vectors; most pages that are not zero show it in the first.
    page.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The same block of the same image always goes over the same stream.
fn stream_of(image: ImageId, block: u64, streams: usize) -> usize {
    let (ImageId::Task(number) | ImageId::Shared(number)) = image;
    ((block + u64::from(number)) % streams as u64) as usize
}

fn cut<E>(stream: usize, out: &mut BatchBuilder, send: Send<'_, E>) -> Result<(), LedgerError<E>> {
    if out.is_empty() {
        return Ok(());
    }
    let sent = send(stream, out.seal());
    out.reuse();
    sent.map_err(LedgerError::Send)
}

const _: () = assert!(BATCH_LEN + BLOCK_PAGES as usize * PAGE_SIZE as usize <= crate::batch::MAX_BATCH);
