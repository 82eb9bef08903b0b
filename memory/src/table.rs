//! Which page has its content where: two levels, as cheap for one page as for millions in a row.

use crate::{PAGE_SIZE, PageRun};
use std::collections::BTreeMap;
use std::ops::Range;

/// Pages of a block.
pub(crate) const BLOCK_PAGES: u64 = 512;
/// Bytes of a block: 2 MiB.
pub(crate) const BLOCK_BYTES: u64 = BLOCK_PAGES * PAGE_SIZE;

/// Where the content of a page is: a slot number, or one of the two marks below.
pub(crate) type Place = u32;
/// Nowhere: the page is not known.
pub(crate) const ABSENT: Place = u32::MAX;
/// The page is all zero.
pub(crate) const ZERO: Place = u32::MAX - 1;
/// Slots are numbered below this.
pub(crate) const SLOT_LIMIT: u64 = ZERO as u64;

/// 2 MiB of an address space.
pub(crate) struct Block {
    places: [Place; BLOCK_PAGES as usize],
    known: u32,
}

impl Block {
    fn new() -> Box<Self> {
        Box::new(Self { places: [ABSENT; BLOCK_PAGES as usize], known: 0 })
    }

    /// The place of the page with this index.
    pub(crate) fn get(&self, index: usize) -> Place {
        self.places[index]
    }

    /// Puts the page with this index elsewhere, and gives where it was.
    pub(crate) fn set(&mut self, index: usize, place: Place) -> Place {
        let old = std::mem::replace(&mut self.places[index], place);
        self.known = self.known + u32::from(place != ABSENT) - u32::from(old != ABSENT);
        old
    }

    /// All its pages are known.
    pub(crate) fn is_full(&self) -> bool {
        u64::from(self.known) == BLOCK_PAGES
    }

    fn is_empty(&self) -> bool {
        self.known == 0
    }
}

/// The places of the pages of one image.
#[derive(Default)]
pub(crate) struct PageTable {
    blocks: BTreeMap<u64, Box<Block>>,
}

/// The part of a range that lies in one block.
pub(crate) struct Piece {
    /// Number of the block.
    pub(crate) block: u64,
    /// Indexes of the pages.
    pub(crate) pages: Range<usize>,
    /// Address of the first of these pages.
    pub(crate) start: u64,
}

/// Cuts pages at the borders of blocks.
pub(crate) fn pieces(start: u64, pages: u64) -> impl Iterator<Item = Piece> {
    let (mut page, end) = (start / PAGE_SIZE, start / PAGE_SIZE + pages);
    std::iter::from_fn(move || {
        let (block, first) = (page / BLOCK_PAGES, page % BLOCK_PAGES);
        let count = (end.checked_sub(page)?).min(BLOCK_PAGES - first);
        let piece = Piece { block, pages: first as usize..(first + count) as usize, start: page * PAGE_SIZE };
        page += count;
        (count > 0).then_some(piece)
    })
}

impl PageTable {
    /// The place of a page.
    pub(crate) fn get(&self, address: u64) -> Place {
        let page = address / PAGE_SIZE;
        match self.blocks.get(&(page / BLOCK_PAGES)) {
            Some(block) => block.get((page % BLOCK_PAGES) as usize),
            None => ABSENT,
        }
    }

    /// A block by its number, if it has a known page.
    pub(crate) fn block(&self, number: u64) -> Option<&Block> {
        self.blocks.get(&number).map(Box::as_ref)
    }

    /// All blocks with their numbers.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.blocks.iter().map(|(number, block)| (*number, block.as_ref()))
    }

    /// A block by its number, to be changed.
    pub(crate) fn block_mut(&mut self, number: u64) -> &mut Block {
        self.blocks.entry(number).or_insert_with(Block::new)
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Forgets the pages of a range; `gone` is told the address and the former place of each that was known.
    pub(crate) fn forget(&mut self, range: Range<u64>, gone: &mut dyn FnMut(u64, Place)) {
        let (first, last) = (range.start / BLOCK_BYTES, range.end.div_ceil(BLOCK_BYTES));
        let mut emptied = Vec::new();
        for (&number, block) in self.blocks.range_mut(first..last) {
            let base = number * BLOCK_BYTES;
            let from = range.start.saturating_sub(base) / PAGE_SIZE;
            let to = ((range.end - base) / PAGE_SIZE).min(BLOCK_PAGES);
            for index in from as usize..to as usize {
                let old = block.set(index, ABSENT);
                if old != ABSENT {
                    gone(base + index as u64 * PAGE_SIZE, old);
                }
            }
            if block.is_empty() {
                emptied.push(number);
            }
        }
        for number in emptied {
            self.blocks.remove(&number);
        }
    }

    /// Runs of pages in a range that lie one behind the other in address and in place (all slots consecutive, or all zero).
    pub(crate) fn runs(&self, range: Range<u64>) -> Vec<(PageRun, Place)> {
        let mut runs: Vec<(PageRun, Place)> = Vec::new();
        if range.is_empty() {
            return runs;
        }
        for (&number, block) in self.blocks.range(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES))
        {
            let base = number * BLOCK_BYTES;
            let from = (range.start.saturating_sub(base) / PAGE_SIZE) as usize;
            let to = ((range.end - base) / PAGE_SIZE).min(BLOCK_PAGES) as usize;
            let mut index = from;
            while index < to {
                let place = block.places[index];
                let follows = |next: Place, by: usize| match place {
                    ZERO => next == ZERO,
                    slot => next < ZERO && u64::from(next) == u64::from(slot) + by as u64,
                };
                let mut behind = index + 1;
                if place != ABSENT {
                    while behind < to && follows(block.places[behind], behind - index) {
                        behind += 1;
                    }
                    let run =
                        PageRun { start: base + index as u64 * PAGE_SIZE, pages: (behind - index) as u64 };
                    match runs.last_mut() {
                        Some((last, first))
                            if last.end() == run.start
                                && match (*first, place) {
                                    (ZERO, ZERO) => true,
                                    (ZERO, _) | (_, ZERO) => false,
                                    (first, place) => u64::from(first) + last.pages == u64::from(place),
                                } =>
                        {
                            last.pages += run.pages;
                        }
                        _ => runs.push((run, place)),
                    }
                }
                index = behind;
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_follow_slots_across_blocks_and_stop_at_marks() {
        let mut table = PageTable::default();
        for piece in pieces(BLOCK_BYTES - 2 * PAGE_SIZE, 4) {
            for index in piece.pages {
                let page = piece.block * BLOCK_PAGES + index as u64;
                table.block_mut(piece.block).set(index, (page - (BLOCK_PAGES - 2) + 7) as u32);
            }
        }
        table.block_mut(1).set(2, ZERO);
        table.block_mut(1).set(3, ZERO);
        // Slots right below the marks must not seem to continue into them.
        table.block_mut(3).set(0, ZERO - 1);
        table.block_mut(3).set(1, ZERO);
        let run = |page: u64, pages| PageRun { start: page * PAGE_SIZE, pages };
        assert_eq!(
            table.runs(0..u64::MAX - 0xfff),
            [(run(510, 4), 7), (run(514, 2), ZERO), (run(1536, 1), ZERO - 1), (run(1537, 1), ZERO)]
        );
        assert_eq!(table.runs(511 * PAGE_SIZE..513 * PAGE_SIZE), [(run(511, 2), 8)]);
        let mut gone = Vec::new();
        table.forget(511 * PAGE_SIZE..514 * PAGE_SIZE, &mut |address, place| {
            gone.push((address / PAGE_SIZE, place))
        });
        assert_eq!(gone, [(511, 8), (512, 9), (513, 10)]);
        table.forget(0..BLOCK_BYTES, &mut |_, _| ());
        assert_eq!(table.len(), 2);
    }
}
