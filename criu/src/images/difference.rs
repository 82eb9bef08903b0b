//! What differs between two complete images of the same tasks: the later one, with the pages left out that the earlier one
//! has with the same content at the same address. The result refers to the earlier images as a pre-dump does, so a
//! [`PageStore`](super::PageStore) that holds them makes it complete again.
//!
//! By address, since a pages file has no places of its own: one new page shifts all that come after it, which an rsync
//! difference of the files finds only within its window (it sent up to 212 MiB for a heap that had shrunk by 10 MiB).

use std::fs::{DirBuilder, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::file::{ImageError, create_private};
use super::flatten::link_others;
use super::page_store::{open_pages, read_pagemaps};
use super::pagemap::{PAGE_SIZE, PE_PARENT, Pagemap, PagemapEntry};

/// Pages that are compared at once.
const PIECE: u64 = 512;

/// What the comparison found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DifferenceReport {
    /// Pages of the later images.
    pub pages: u64,
    /// Those that differ, or that the earlier images do not have.
    pub changed_pages: u64,
    /// How long it took.
    pub wall: Duration,
}

/// A run of pages that both images have.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Number in the earlier pages file.
    earlier: u64,
    /// Number in the later one.
    later: u64,
    pages: u64,
}

/// Writes what of `later` differs from `earlier` to the new directory `out` (0700). Both must be complete; they stay as
/// they are. Files other than pages are hard links.
///
/// # Errors
/// When images do not hold together, or cannot be read or written.
pub fn difference(earlier: &Path, later: &Path, out: &Path) -> Result<DifferenceReport, ImageError> {
    let started = Instant::now();
    DirBuilder::new().mode(0o700).create(out).map_err(ImageError::io("make", out))?;
    let before = read_pagemaps(earlier)?;
    let now = read_pagemaps(later)?;
    let mut report = DifferenceReport::default();
    for (name, map) in &now {
        let later_pages = open_pages(&later.join(map.pages_name()), map, false)?;
        let same = match before.get(name) {
            Some(base) => {
                let earlier_pages = open_pages(&earlier.join(base.pages_name()), base, false)?;
                same_pages(&shared(base, map), map.present_pages(), &earlier_pages.file, &later_pages.file)
                    .map_err(ImageError::io("compare", &later_pages.path))?
            }
            None => vec![false; map.present_pages() as usize],
        };
        report.pages += map.present_pages();
        report.changed_pages += same.iter().filter(|same| !**same).count() as u64;
        marked(map, &same).write(&out.join(name))?;
        let pages = out.join(map.pages_name());
        write_changed(&same, &later_pages.file, &pages).map_err(ImageError::io("write", &pages))?;
    }
    let replaced: Vec<String> = now.values().map(Pagemap::pages_name).chain(now.keys().cloned()).collect();
    link_others(later, out, &replaced)?;
    report.wall = started.elapsed();
    tracing::debug!(?report, "images compared");
    Ok(report)
}

/// The present runs with the number of their first page in the pages file.
fn placed(map: &Pagemap) -> impl Iterator<Item = (PagemapEntry, u64)> {
    map.entries.iter().filter(|entry| entry.present()).scan(0, |next, entry| {
        let at = *next;
        *next += entry.nr_pages;
        Some((*entry, at))
    })
}

/// The pages that both have at the same address, in pieces.
fn shared(earlier: &Pagemap, later: &Pagemap) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut bases = placed(earlier).peekable();
    for (entry, at) in placed(later) {
        let mut address = entry.vaddr;
        while let Some((base, base_at)) = bases.peek().copied() {
            if base.end() <= address {
                bases.next();
                continue;
            }
            let begin = address.max(base.vaddr);
            let end = entry.end().min(base.end());
            if begin >= end {
                break;
            }
            let pages = (end - begin) / PAGE_SIZE;
            let earlier = base_at + (begin - base.vaddr) / PAGE_SIZE;
            let later = at + (begin - entry.vaddr) / PAGE_SIZE;
            pieces.extend((0..pages).step_by(PIECE as usize).map(|from| Piece {
                earlier: earlier + from,
                later: later + from,
                pages: PIECE.min(pages - from),
            }));
            address = end;
            if address == entry.end() {
                break;
            }
        }
    }
    pieces
}

/// For each page of the later file whether the earlier one has it just so. All processors help: the tasks are frozen.
fn same_pages(pieces: &[Piece], pages: u64, earlier: &File, later: &File) -> std::io::Result<Vec<bool>> {
    let next = AtomicUsize::new(0);
    let same = Mutex::new(vec![false; pages as usize]);
    let work = || -> std::io::Result<()> {
        let mut ours = vec![0; (PIECE * PAGE_SIZE) as usize];
        let mut theirs = ours.clone();
        let mut found = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let bytes = (piece.pages * PAGE_SIZE) as usize;
            earlier.read_exact_at(&mut theirs[..bytes], piece.earlier * PAGE_SIZE)?;
            later.read_exact_at(&mut ours[..bytes], piece.later * PAGE_SIZE)?;
            let size = PAGE_SIZE as usize;
            let equal =
                ours[..bytes].chunks(size).zip(theirs[..bytes].chunks(size)).map(|(one, two)| one == two);
            found.push((piece.later as usize, equal.collect::<Vec<bool>>()));
        }
        let mut same = same.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, equal) in found {
            // both lie within the file: `shared` cut them out of its own entries
            if let Some(range) = same.get_mut(at..at + equal.len()) {
                range.copy_from_slice(&equal);
            }
        }
        Ok(())
    };
    let helpers = std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).min(7);
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
        let own = work();
        helpers.into_iter().try_for_each(|helper| {
            helper.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread that compared pages died")))
        })?;
        own
    })?;
    Ok(same.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The later map, with the pages that are the same marked as the parent's.
fn marked(map: &Pagemap, same: &[bool]) -> Pagemap {
    let mut entries: Vec<PagemapEntry> = Vec::new();
    let mut next = 0;
    for entry in &map.entries {
        if !entry.present() {
            entries.push(*entry);
            continue;
        }
        for page in 0..entry.nr_pages {
            let flags = if same.get(next).copied().unwrap_or(false) { PE_PARENT } else { entry.flags };
            next += 1;
            let vaddr = entry.vaddr + page * PAGE_SIZE;
            match entries.last_mut() {
                Some(last) if page > 0 && last.flags == flags => last.nr_pages += 1,
                _ => entries.push(PagemapEntry { vaddr, nr_pages: 1, flags }),
            }
        }
    }
    Pagemap { pages_id: map.pages_id, entries }
}

fn write_changed(same: &[bool], later: &File, path: &Path) -> std::io::Result<()> {
    let file = create_private(path).map_err(std::io::Error::other)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut page = vec![0; PAGE_SIZE as usize];
    for (number, _) in same.iter().enumerate().filter(|(_, same)| !**same) {
        later.read_exact_at(&mut page, number as u64 * PAGE_SIZE)?;
        out.write_all(&page)?;
    }
    out.flush()
}
