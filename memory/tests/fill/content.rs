//! What the pages of a tenant hold at first; the test and the tenant know it both.

use crate::sys::PAGE;

/// First address of a tenant's memory.
pub const BASE: u64 = 0x10_0000_0000;
/// A part of the memory has as much empty room behind it, to move pages to.
pub const PART_GAP: u64 = 2;

/// Every word of page `page` of this task.
pub fn word(vpid: u32, page: u64) -> u64 {
    match page {
        page if page % 7 == 3 => 0,
        // The same in all tasks.
        page if page % 11 == 5 => 0x5115_0000_0000 + page,
        page => (u64::from(vpid) << 40) + 0x1_0000_0000 + page,
    }
}

pub fn page(vpid: u32, page: u64) -> Vec<u8> {
    word(vpid, page).to_ne_bytes().repeat(PAGE as usize / 8)
}

/// Where page `page` is at first if the memory has parts of this many pages.
pub fn address(page: u64, part_pages: u64) -> u64 {
    let (part, at) = (page / part_pages, page % part_pages);
    BASE + (part * part_pages * PART_GAP + at) * PAGE
}

/// Xorshift: as random as it must be.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
