//! The versions of a region's pages, apart from the pages. Its checksum is kept up with every change, so that a lost or
//! stale page of the table itself shows.

use crate::content::Entry;
use crate::random::mix;
use crate::sys::Failure;
use crate::sys::memory::{Pages, Source, WORDS};
use std::sync::atomic::Ordering;

const MAGIC: u64 = 0x7461_626c_6521_4757;
/// Words of the first page: what it is, and the checksum.
const MAGIC_WORD: usize = 0;
const SUM_WORD: usize = 1;

/// A table; its first page is the head, entries follow.
#[derive(Debug)]
pub struct Table {
    pages: Pages,
    entries: usize,
}

impl Table {
    /// A table of `entries` pages that are new; `shared` when other processes write to it, too.
    pub fn new(entries: usize, shared: bool) -> Result<Self, Failure> {
        let source = if shared { Source::Shared } else { Source::Private };
        let pages = Pages::map(source, 1 + entries.div_ceil(WORDS))?;
        let table = Self { pages, entries };
        table.pages.set(0, MAGIC_WORD, MAGIC ^ entries as u64);
        table.pages.set(0, SUM_WORD, table.sum());
        Ok(table)
    }

    /// How many entries it has room for.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Where its memory is, and how many pages that is.
    pub fn place(&self) -> (usize, usize) {
        (self.pages.address(0), self.pages.count())
    }

    /// What it knows of a page.
    pub fn get(&self, page: usize) -> Entry {
        assert!(page < self.entries);
        Entry(self.pages.get(1 + page / WORDS, page % WORDS))
    }

    /// Notes what a page is now. Of several processes, only one writes a given page's entry.
    pub fn set(&self, page: usize, entry: Entry) {
        let old = self.get(page);
        self.pages.set(1 + page / WORDS, page % WORDS, entry.0);
        let change = weight(page, entry).wrapping_sub(weight(page, old));
        self.pages.word(0, SUM_WORD).fetch_add(change, Ordering::Relaxed);
    }

    /// Notes the same for several pages.
    pub fn set_all(&self, first: usize, count: usize, entry: Entry) {
        (first..first + count).for_each(|page| self.set(page, entry));
    }

    /// Whether it is what was written to it.
    pub fn is_sound(&self) -> bool {
        self.pages.get(0, MAGIC_WORD) == MAGIC ^ self.entries as u64
            && self.pages.get(0, SUM_WORD) == self.sum()
    }

    fn sum(&self) -> u64 {
        (0..self.entries).fold(0, |sum, page| sum.wrapping_add(weight(page, self.get(page))))
    }
}

fn weight(page: usize, entry: Entry) -> u64 {
    mix(entry.0 ^ mix(page as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_follows_every_change() {
        for shared in [false, true] {
            let table = Table::new(3000, shared).unwrap();
            assert!(table.is_sound());
            table.set(2999, Entry::written(7));
            table.set_all(10, 600, Entry::written(8).or_zero());
            assert_eq!(table.get(609), Entry::written(8).or_zero());
            assert!(table.is_sound());
        }
    }

    #[test]
    fn a_lost_or_stale_page_shows() {
        let table = Table::new(3000, false).unwrap();
        table.set_all(0, 3000, Entry::written(1));
        for lost in 0..table.pages.count() {
            let kept: Vec<u64> = (0..WORDS).map(|word| table.pages.get(lost, word)).collect();
            (0..WORDS).for_each(|word| table.pages.set(lost, word, 0));
            assert!(!table.is_sound(), "page {lost} lost");
            kept.iter().enumerate().for_each(|(word, &value)| table.pages.set(lost, word, value));
            assert!(table.is_sound());
        }
        let stale = table.pages.get(1, 5);
        table.set(5, Entry::written(2));
        table.pages.set(1, 5, stale);
        assert!(!table.is_sound());
    }

    #[test]
    fn two_entries_that_change_places_show() {
        let table = Table::new(10, false).unwrap();
        table.set(1, Entry::written(1));
        table.pages.set(1, 1, 0);
        table.pages.set(1, 2, Entry::written(1).0);
        assert!(!table.is_sound());
    }
}
