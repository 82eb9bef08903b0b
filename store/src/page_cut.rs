//! Cuts a file of memory pages by the pages' addresses, so that a later checkpoint of the same program shares what has not
//! changed, whatever has come or gone before it in the file.

use std::collections::HashMap;
use std::iter::Peekable;
use std::path::Path;

use godwit_criu::images::{Pagemap, pagemap};
use godwit_transfer::tree::TreePath;

use crate::StoreError;
use crate::cut::{Keep, is_zero};
use crate::manifest::{GROUP_PAGES, PAGE, PageGroup};

/// Runs of pages, in the order in which they lie in a file: number of the first page (its address divided by the page size), and how many.
pub(crate) type PageRuns = Vec<(u64, u64)>;

/// The files of pages in CRIU's images in `dir`, which is `below` the root of a tree. One that no pagemap describes, or several
/// do, or that has another size than its pagemap says, is left out: it is a file as any other.
pub(crate) fn page_files(dir: &Path, below: &TreePath) -> HashMap<TreePath, PageRuns> {
    let mut files: HashMap<TreePath, Option<PageRuns>> = HashMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(pagemap::is_pagemap_name) {
            continue;
        }
        let Ok(map) = Pagemap::read(&entry.path()) else { continue };
        let name = map.pages_name();
        let Ok(path) = below.join(name.as_bytes()) else { continue };
        let size = std::fs::symlink_metadata(dir.join(&name)).map_or(0, |meta| meta.len());
        let fits = map.present_pages().checked_mul(PAGE as u64) == Some(size);
        let is_aligned = map.entries.iter().all(|entry| entry.vaddr % PAGE as u64 == 0);
        let present = map.entries.iter().filter(|entry| entry.present());
        let runs = present.map(|entry| (entry.vaddr / PAGE as u64, entry.nr_pages)).collect();
        let is_first = !files.contains_key(&path);
        files.insert(path, Some(runs).filter(|_| fits && is_aligned && is_first));
    }
    files.into_iter().filter_map(|(path, runs)| Some((path, runs?))).collect()
}

/// A file of pages that is being cut.
pub(crate) struct PageCutter {
    pages: Peekable<Box<dyn Iterator<Item = u64>>>,
    /// Where in the file the next page lies, bytes.
    at: u64,
    groups: Vec<PageGroup>,
    open: Option<PageGroup>,
    bytes: Vec<u8>,
}

impl PageCutter {
    pub fn new(runs: PageRuns) -> PageCutter {
        let pages = runs.into_iter().flat_map(|(first, count)| first..first.saturating_add(count));
        PageCutter {
            pages: (Box::new(pages) as Box<dyn Iterator<Item = u64>>).peekable(),
            at: 0,
            groups: Vec::new(),
            open: None,
            bytes: Vec::new(),
        }
    }

    /// Takes bytes that lie at `at`, behind all before; what was left out between is zeros. False when they do not fit the pages.
    pub fn take(&mut self, at: u64, bytes: &[u8], keep: Keep<'_>) -> Result<bool, StoreError> {
        while self.at < at {
            if !self.page(&[], keep)? {
                return Ok(false);
            }
        }
        for page in bytes.chunks(PAGE) {
            if page.len() != PAGE || !self.page(page, keep)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The groups, if the file has `size` bytes.
    pub fn finish(mut self, size: u64, keep: Keep<'_>) -> Result<Option<Vec<PageGroup>>, StoreError> {
        if !self.take(size, &[], keep)? || self.at != size || self.pages.peek().is_some() {
            return Ok(None);
        }
        self.close(keep)?;
        Ok(Some(self.groups))
    }

    /// The next page in the file; empty: zeros.
    fn page(&mut self, page: &[u8], keep: Keep<'_>) -> Result<bool, StoreError> {
        let Some(number) = self.pages.next() else { return Ok(false) };
        let (group, bit) = (number / GROUP_PAGES, 1 << (number % GROUP_PAGES));
        if self.open.is_none_or(|open| open.number != group) {
            self.close(keep)?;
        }
        let open = self.open.get_or_insert(PageGroup { number: group, present: 0, filled: 0, chunk: None });
        open.present |= bit;
        if !is_zero(page) {
            open.filled |= bit;
            self.bytes.extend_from_slice(page);
        }
        self.at += PAGE as u64;
        Ok(true)
    }

    fn close(&mut self, keep: Keep<'_>) -> Result<(), StoreError> {
        let Some(mut group) = self.open.take() else { return Ok(()) };
        if group.filled != 0 {
            group.chunk = Some(keep(&self.bytes)?);
            self.bytes.clear();
        }
        self.groups.push(group);
        Ok(())
    }
}
