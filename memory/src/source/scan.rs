//! Which pages exist, and which were written: the questions to /proc/PID/pagemap.

use super::maps::{Kind, Mapping, Span};
use crate::page::PAGE_SIZE;
use crate::sys::pagemap::{self, Query, Region, category::*, entry};
use nix::errno::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Regions asked for at once.
const REGIONS: usize = 8192;
/// Entries of the pagemap read at once where there is no scan.
const ENTRIES: usize = 32768;

/// Asks, with buffers that are reused.
#[derive(Debug)]
pub(crate) struct Scanner {
    regions: Vec<Region>,
    entries: Vec<u8>,
    /// Whether the kernel has PAGEMAP_SCAN (6.7).
    scans: bool,
    /// [`GUARD`] if the kernel knows it (6.15), else nothing.
    guard: u64,
    /// Pages that an application moves have no mark of a registration any more (6.13).
    clears_moved: bool,
    /// The frame of the kernel's page of zeroes, for the entries.
    zero_frame: Option<u64>,
    /// Regions seen since the last [`Scanner::take_count`].
    count: u64,
}

/// What the pagemap says of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry(u64);

impl Entry {
    /// Whether its soft-dirty bit is set.
    pub(crate) fn is_soft_dirty(self) -> bool {
        self.0 & entry::SOFT_DIRTY != 0
    }

    /// Its frame, or where in the swap space it is.
    pub(crate) fn place(self) -> u64 {
        self.0 & (entry::FRAME | entry::PRESENT | entry::SWAPPED)
    }
}

/// What the mapping's kind excludes: CRIU's `should_dump_page` (criu/mem.c).
fn excluded(kind: Kind) -> u64 {
    match kind {
        Kind::PrivateFile => PFNZERO | FILE,
        _ => PFNZERO,
    }
}

impl Scanner {
    pub(crate) fn new() -> Self {
        let mut scanner = Self {
            regions: vec![Region::default(); REGIONS],
            entries: Vec::new(),
            scans: false,
            guard: 0,
            clears_moved: kernel().is_some_and(|version| version >= (6, 13)),
            zero_frame: None,
            count: 0,
        };
        if let Ok(own) = File::open("/proc/self/pagemap") {
            let mut probe = |categories| {
                let query = Query { any: categories, returned: categories, ..Query::default() };
                pagemap::scan(&own, 0, PAGE_SIZE, &query, &mut scanner.regions).is_ok()
            };
            scanner.scans = probe(PRESENT);
            scanner.guard = if probe(GUARD) { GUARD } else { 0 };
        }
        if !scanner.scans {
            scanner.zero_frame = zero_frame();
        }
        scanner
    }

    /// Whether the kernel has PAGEMAP_SCAN.
    pub(crate) fn can_scan(&self) -> bool {
        self.scans
    }

    /// Whether pages that an application moves with mremap(2) look written afterwards (6.13; mm/mremap.c, `move_ptes`).
    pub(crate) fn clears_moved(&self) -> bool {
        self.clears_moved
    }

    /// Regions reported since the last call.
    pub(crate) fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.count)
    }

    /// Whether a mapping in the range is not registered. Looks at no page.
    pub(crate) fn unregistered(&mut self, pagemap: &File, span: Span) -> Result<bool, Errno> {
        // Registered mappings are not interesting to this query, so their page tables are not walked; the first one
        // that is not registered fails the check.
        let query = Query {
            check: true,
            inverted: WPALLOWED,
            all: WPALLOWED,
            returned: WPALLOWED,
            ..Query::default()
        };
        match pagemap::scan(pagemap, span.start, span.end, &query, &mut self.regions) {
            Ok(_) => Ok(false),
            Err(Errno::EPERM) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    /// The pages of mappings of one kind that were written since they were last asked for; they are write-protected
    /// again. EPERM: something in the range is not registered, and the answer is lost for some of the rest.
    pub(crate) fn written(
        &mut self,
        pagemap: &File,
        span: Span,
        kind: Kind,
        out: &mut Vec<Span>,
    ) -> Result<(), Errno> {
        let inverted = excluded(kind) | self.guard;
        let query = Query {
            protect: true,
            check: true,
            inverted,
            all: inverted | WRITTEN,
            any: PRESENT | SWAPPED,
            returned: WRITTEN,
        };
        self.run(pagemap, span, &query, out)
    }

    /// All pages of a mapping, written or not; with `protect`, they are write-protected as by [`Scanner::written`].
    pub(crate) fn all(
        &mut self,
        pagemap: &File,
        span: Span,
        kind: Kind,
        protect: bool,
        out: &mut Vec<Span>,
    ) -> Result<(), Errno> {
        if !self.scans {
            return self.pages(pagemap, span, kind, &mut |address, _| {
                Span { start: address, end: address + PAGE_SIZE }.push_to(out);
            });
        }
        let inverted = excluded(kind) | self.guard;
        let query = Query {
            protect,
            check: protect,
            inverted,
            all: inverted,
            any: PRESENT | SWAPPED,
            returned: WPALLOWED,
        };
        self.run(pagemap, span, &query, out)
    }

    /// The pages of a private mapping of a file that look swapped out: some are markers, left where a written page was
    /// given up.
    pub(crate) fn markers(&mut self, pagemap: &File, span: Span, out: &mut Vec<Span>) -> Result<(), Errno> {
        let inverted = FILE | self.guard;
        let query = Query { inverted, all: inverted | SWAPPED, returned: SWAPPED, ..Query::default() };
        self.run(pagemap, span, &query, out)
    }

    /// The pages of a mapping of a shared object that were written, or seen for the first time, through it. What was written
    /// and then unmapped, page by page, is not among them.
    pub(crate) fn written_shared(
        &mut self,
        pagemap: &File,
        span: Span,
        out: &mut Vec<Span>,
    ) -> Result<(), Errno> {
        // The kernel has a faster answer to a question without PRESENT and SWAPPED. But that also marks places without a
        // page, which in private memory look like pages from then on; and the mapping may have been replaced by private
        // memory a moment ago.
        let any = PRESENT | SWAPPED;
        let query =
            Query { protect: true, check: true, all: WRITTEN, any, returned: WRITTEN, ..Query::default() };
        self.run(pagemap, span, &query, out)
    }

    /// All pages of a mapping of a frozen task.
    pub(crate) fn existing(
        &mut self,
        pagemap: &File,
        mapping: &Mapping,
        out: &mut Vec<Span>,
    ) -> Result<(), Errno> {
        if mapping.kind != Kind::Anonymous || !self.scans {
            return self.all(pagemap, mapping.span, mapping.kind, false, out);
        }
        // Reporting a page costs the kernel five times as much as finding that it need not be reported, so the question
        // is which pages are not simply there.
        let query = Query {
            inverted: PRESENT,
            any: PRESENT | PFNZERO | self.guard,
            returned: SWAPPED | self.guard,
            ..Query::default()
        };
        let mut there = mapping.span.start;
        let mut start = mapping.span.start;
        while start < mapping.span.end {
            let (count, end) = pagemap::scan(pagemap, start, mapping.span.end, &query, &mut self.regions)?;
            self.count += count as u64;
            for region in &self.regions[..count] {
                Span { start: there, end: region.start }.push_to(out);
                there = if region.categories == SWAPPED { region.start } else { region.end };
            }
            if end <= start {
                break;
            }
            start = end;
        }
        Span { start: there, end: mapping.span.end }.push_to(out);
        Ok(())
    }

    /// Whether a page to carry is in the range.
    pub(crate) fn exists(&mut self, pagemap: &File, span: Span, kind: Kind) -> bool {
        let mut found = Vec::new();
        kind != Kind::Other && self.all(pagemap, span, kind, false, &mut found).is_ok() && !found.is_empty()
    }

    /// The pages of a mapping whose soft-dirty bit is set.
    pub(crate) fn soft_dirty(
        &mut self,
        pagemap: &File,
        span: Span,
        kind: Kind,
        out: &mut Vec<Span>,
    ) -> Result<(), Errno> {
        self.pages(pagemap, span, kind, &mut |address, page| {
            if page.is_soft_dirty() {
                Span { start: address, end: address + PAGE_SIZE }.push_to(out);
            }
        })
    }

    fn run(&mut self, pagemap: &File, span: Span, query: &Query, out: &mut Vec<Span>) -> Result<(), Errno> {
        let mut start = span.start;
        while start < span.end {
            let (count, end) = pagemap::scan(pagemap, start, span.end, query, &mut self.regions)?;
            self.count += count as u64;
            for region in &self.regions[..count] {
                Span { start: region.start, end: region.end }.push_to(out);
            }
            if end <= start {
                break;
            }
            start = end;
        }
        Ok(())
    }

    /// Every page to carry, by reading the pagemap.
    pub(crate) fn pages(
        &mut self,
        pagemap: &File,
        span: Span,
        kind: Kind,
        visit: &mut dyn FnMut(u64, Entry),
    ) -> Result<(), Errno> {
        self.entries.resize(ENTRIES * 8, 0);
        let mut start = span.start;
        while start < span.end {
            let want = ((span.end - start) / PAGE_SIZE * 8).min(self.entries.len() as u64) as usize;
            let read = pagemap
                .read_at(&mut self.entries[..want], start / PAGE_SIZE * 8)
                .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
            if read < 8 {
                return Ok(());
            }
            for bytes in self.entries[..read / 8 * 8].as_chunks::<8>().0 {
                let value = u64::from_ne_bytes(*bytes);
                if carried(value, kind, self.zero_frame) {
                    visit(start, Entry(value));
                }
                start += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Whether every page of these sorted spans that is present is mapped by this task only. Not asked, and false, when
    /// they lie so far apart that the question costs more than the answer is worth.
    pub(crate) fn exclusive(&mut self, pagemap: &File, spans: &[Span], pages: u64) -> bool {
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return true };
        let extent = Span { start: first.start, end: last.end };
        if extent.pages() > ENTRIES as u64 || extent.pages() > pages * 16 {
            return false;
        }
        let want = (extent.pages() * 8) as usize;
        self.entries.resize(ENTRIES * 8, 0);
        if pagemap.read_exact_at(&mut self.entries[..want], extent.start / PAGE_SIZE * 8).is_err() {
            return false;
        }
        spans.iter().all(|span| {
            let first = ((span.start - extent.start) / PAGE_SIZE * 8) as usize;
            let last = first + (span.pages() * 8) as usize;
            self.entries[first..last].as_chunks::<8>().0.iter().all(|bytes| {
                u64::from_ne_bytes(*bytes) & (entry::PRESENT | entry::EXCLUSIVE) != entry::PRESENT
            })
        })
    }
}

/// Whether an entry is that of a page to carry.
fn carried(value: u64, kind: Kind, zero_frame: Option<u64>) -> bool {
    let present = value & entry::PRESENT != 0;
    (present || value & entry::SWAPPED != 0)
        && value & entry::GUARD == 0
        && !(kind == Kind::PrivateFile && value & entry::FILE != 0)
        && !(present && zero_frame.is_some_and(|zero| value & entry::FRAME == zero))
}

/// The version of the kernel that runs: the first two numbers.
fn kernel() -> Option<(u32, u32)> {
    let name = nix::sys::utsname::uname().ok()?;
    let mut numbers = name.release().to_str()?.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The frame of the kernel's page of zeroes: what a new mapping of ours has after it was read. Needs CAP_SYS_ADMIN.
fn zero_frame() -> Option<u64> {
    let page = crate::sys::pagemap::zero_page()?;
    let mut bytes = [0; 8];
    let own = File::open("/proc/self/pagemap").ok()?;
    own.read_exact_at(&mut bytes, page.address() / PAGE_SIZE * 8).ok()?;
    let value = u64::from_ne_bytes(bytes);
    let frame = value & entry::FRAME;
    (value & entry::PRESENT != 0 && frame != 0).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart() {
        let zero = Some(77);
        assert!(carried(entry::PRESENT | 5, Kind::Anonymous, zero));
        assert!(carried(entry::SWAPPED | 77, Kind::Anonymous, zero));
        assert!(!carried(entry::PRESENT | 77, Kind::Anonymous, zero));
        assert!(!carried(0, Kind::Anonymous, zero));
        assert!(!carried(entry::SWAPPED | entry::GUARD, Kind::Anonymous, zero));
        assert!(!carried(entry::PRESENT | entry::FILE | 5, Kind::PrivateFile, zero));
        assert!(carried(entry::PRESENT | entry::FILE | 5, Kind::Anonymous, zero));
        assert!(carried(entry::SWAPPED, Kind::PrivateFile, zero));
        assert!(carried(entry::PRESENT | 77, Kind::Anonymous, None));
    }
}
