//! CRIU's images with the pages that came by themselves: which of them CRIU puts in place, and which are given to the
//! restored tasks as they touch them.

use godwit_criu::images::{ImageError, Mapping, PE_LAZY, PE_PRESENT, Pagemap, PagemapEntry, mappings};
use godwit_memory::destination::fill::TaskPages;
use godwit_memory::destination::{Content, EAGER_COW_PAGES, PageStore};
use godwit_memory::{ImageId, PAGE_SIZE, PageRun};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

/// A mapping with fewer pages is restored at once: a fault costs more than it saves.
const SMALL: u64 = 16;

/// What the tasks get later.
#[derive(Debug, Default)]
pub struct Composed {
    /// By task.
    pub lists: Vec<TaskPages>,
    /// Pages that CRIU puts in place.
    pub eager_pages: u64,
    /// Pages that come later.
    pub lazy_pages: u64,
    /// Pages that several tasks share copy-on-write and that will not be shared any more.
    pub unshared_pages: u64,
}

/// Why images could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// CRIU's images.
    #[error("the images do not hold together")]
    Image(#[from] ImageError),
    /// The pages cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// Where to.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Writes the pagemaps of all tasks in `images`, and the pages that CRIU is to put in place. With `lazy` as much as possible
/// is left for later.
///
/// # Errors
/// When an image cannot be read or written.
pub fn compose(images: &Path, store: &PageStore, lazy: bool) -> Result<Composed, ComposeError> {
    let mut composed = Composed::default();
    let tasks: Vec<u32> = store
        .images()
        .into_iter()
        .filter_map(|image| match image {
            ImageId::Task(vpid) => Some(vpid),
            ImageId::Shared(_) => None,
        })
        // a task that ended between the rounds has no image
        .filter(|vpid| images.join(format!("pagemap-{vpid}.img")).exists())
        .collect();
    let mut maps: BTreeMap<u32, Vec<Mapping>> = BTreeMap::new();
    let mut parts: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
    for vpid in &tasks {
        let mut of_task = mappings(&images.join(format!("mm-{vpid}.img")))?;
        parts.insert(*vpid, parts_of(&of_task));
        for mapping in &mut of_task {
            let large = (mapping.end - mapping.start) / PAGE_SIZE >= SMALL;
            mapping.lazy &= lazy && large && !mapping.grows_down;
        }
        maps.insert(*vpid, of_task);
    }
    let mut cow = if lazy && tasks.len() > 1 { shared_runs(store, &tasks, &maps) } else { BTreeMap::new() };
    let cow_pages: u64 = cow.values().flatten().map(|run| run.pages).sum();
    let keep_shared = cow_pages <= EAGER_COW_PAGES;
    composed.unshared_pages = if keep_shared { 0 } else { cow_pages };
    for vpid in tasks.iter().copied() {
        let of_task = maps.remove(&vpid).unwrap_or_default();
        let mut at_once = cow.remove(&vpid).filter(|_| keep_shared).unwrap_or_default();
        for part in parts.remove(&vpid).unwrap_or_default() {
            let first = store.runs(ImageId::Task(vpid), Some(part)).first().map(|(run, _)| run.start);
            first.into_iter().for_each(|page| include(&mut at_once, page));
        }
        task(images, store, vpid, &of_task, &at_once, &mut composed)?;
    }
    if composed.lazy_pages > 0 {
        keep_huge_pages_away(images, &tasks)?;
    }
    Ok(composed)
}

/// Adds a page to ascending runs, if it is in none of them.
fn include(runs: &mut Vec<PageRun>, page: u64) {
    let place = runs.partition_point(|run| run.end() <= page);
    if runs.get(place).is_none_or(|run| run.start > page) {
        runs.insert(place, PageRun { start: page, pages: 1 });
    }
}

/// Mappings beside each other that may be what is left of one that was cut for a while: a task took the right to write away from
/// some pages and will give it back (mprotect(2)), and then may move them all with one call (mremap(2)), which takes one mapping
/// only. The kernel makes one of them again if they have one anon_vma, and offsets that go on from one to the next
/// (`vma_merge_existing_range` in mm/vma.c).
///
/// So CRIU must put a page into each of them. It maps them one behind the other first, where they are one mapping, which gets its
/// anon_vma with a page; it and the offsets stay when they are moved to their places. Parts that are empty until then lose both: the
/// offset is set anew by the move, and `VM_ACCOUNT` goes with the right to write (mm/mprotect.c), so that none shares the anon_vma of
/// another.
fn parts_of(maps: &[Mapping]) -> Vec<Range<u64>> {
    let is_kin = |one: &Mapping, next: &Mapping| {
        one.end == next.start && [one, next].iter().all(|part| part.lazy && part.readable && !part.grows_down)
    };
    let parts = maps.chunk_by(is_kin).filter(|parts| parts.len() > 1).flatten();
    parts.map(|part| part.start..part.end).collect()
}

/// Where huge pages are always used, a page that CRIU puts in place brings up to 511 others with it, which are zero: they
/// would be there already when theirs come later. CRIU turns huge pages off until they can come no more, but only for a task
/// whose images have a parent (mem.c, `maybe_disable_thp`). So they get one, without pages.
fn keep_huge_pages_away(images: &Path, tasks: &[u32]) -> Result<(), ComposeError> {
    const DIRECTORY: &str = "no-pages";
    let unwritable = |path: &Path| {
        let path = path.display().to_string();
        move |source| ComposeError::Write { path, source }
    };
    let dir = images.join(DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(unwritable(&dir))?;
    for (vpid, pages_id) in tasks.iter().zip(1u32..) {
        let map = Pagemap { pages_id, entries: Vec::new() };
        map.write(&dir.join(format!("pagemap-{vpid}.img")))?;
        let path = dir.join(map.pages_name());
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.map_err(unwritable(&path))?;
    }
    let link = images.join("parent");
    match symlink(DIRECTORY, &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(unwritable(&link)(error)),
        _ => Ok(()),
    }
}

/// One task's pagemap and pages.
fn task(
    images: &Path,
    store: &PageStore,
    vpid: u32,
    maps: &[Mapping],
    at_once: &[PageRun],
    composed: &mut Composed,
) -> Result<(), ComposeError> {
    let path = images.join(format!("pagemap-{vpid}.img"));
    let mut map = Pagemap::read(&path)?;
    map.entries.clear();
    let pages_path = images.join(map.pages_name());
    let unwritable = |source| ComposeError::Write { path: pages_path.display().to_string(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&pages_path);
    let mut pages = BufWriter::with_capacity(1 << 20, file.map_err(unwritable)?);
    let mut list = TaskPages { vpid, ..TaskPages::default() };
    let mut anchors = Anchors::default();
    for (run, content) in store.runs(ImageId::Task(vpid), None) {
        for (piece, is_lazy) in pieces(run, maps, at_once) {
            let content = behind(content, (piece.start - run.start) / PAGE_SIZE);
            let flags = if is_lazy { PE_LAZY } else { PE_PRESENT };
            match map.entries.last_mut() {
                Some(last) if last.end() == piece.start && last.flags == flags => {
                    last.nr_pages += piece.pages
                }
                _ => map.entries.push(PagemapEntry { vaddr: piece.start, nr_pages: piece.pages, flags }),
            }
            if is_lazy {
                composed.lazy_pages += piece.pages;
                anchors.see(piece.start, maps);
                list.first.extend(store.recent(piece, content));
                list.pages.push((piece, content));
                continue;
            }
            composed.eager_pages += piece.pages;
            match content {
                Content::Slot(first) => {
                    pages.write_all(store.slice(first, piece.pages)).map_err(unwritable)?;
                }
                Content::Zero => {
                    for _ in 0..piece.pages {
                        pages.write_all(&[0; PAGE_SIZE as usize]).map_err(unwritable)?;
                    }
                }
            }
        }
    }
    pages.flush().map_err(unwritable)?;
    map.write(&path)?;
    list.anchors = anchors.addresses;
    if !list.pages.is_empty() {
        composed.lists.push(list);
    }
    Ok(())
}

/// The first page of each mapping, which comes before the task runs. With it the mapping gets its anon_vma: one that has none, and is
/// cut for a while (see [`parts_of`]), gets one for either side as pages come to them, and is never one again
/// (`find_mergeable_anon_vma` in mm/vma.c looks at direct neighbours only).
#[derive(Default)]
struct Anchors {
    addresses: Vec<u64>,
    /// Mappings up to this address have theirs.
    up_to: u64,
}

impl Anchors {
    /// There is a page, behind all those before.
    fn see(&mut self, address: u64, maps: &[Mapping]) {
        if address >= self.up_to {
            self.addresses.push(address);
            let mapping = maps.get(maps.partition_point(|mapping| mapping.end <= address));
            self.up_to = mapping.map_or(address + PAGE_SIZE, |mapping| mapping.end);
        }
    }
}

/// The content of the page so many pages further in a run.
fn behind(content: Content, pages: u64) -> Content {
    match content {
        Content::Zero => Content::Zero,
        Content::Slot(first) => Content::Slot(first + pages as u32),
    }
}

/// Cuts a run at the borders of mappings, and where pages must be there at once. What lies in no mapping is left out: CRIU
/// had a mapping of its own there while it dumped.
fn pieces(run: PageRun, maps: &[Mapping], at_once: &[PageRun]) -> Vec<(PageRun, bool)> {
    let mut cut = Vec::new();
    let mut at = run.start;
    while at < run.end() {
        let Some(mapping) = maps.get(maps.partition_point(|mapping| mapping.end <= at)) else { break };
        if mapping.start > at {
            at = mapping.start;
            continue;
        }
        let (mut is_lazy, mut end) = (mapping.lazy, mapping.end.min(run.end()));
        match at_once.get(at_once.partition_point(|shared| shared.end() <= at)) {
            Some(shared) if shared.start <= at => {
                is_lazy = false;
                end = end.min(shared.end());
            }
            Some(shared) => end = end.min(shared.start),
            None => {}
        }
        cut.push((PageRun { start: at, pages: (end - at) / PAGE_SIZE }, is_lazy));
        at = end;
    }
    cut
}

/// By task: the pages in lazy ranges that have the same content at the same address in another task. That is what
/// copy-on-write after a fork leaves; CRIU shares such pages again when it restores them itself.
fn shared_runs(
    store: &PageStore,
    tasks: &[u32],
    maps: &BTreeMap<u32, Vec<Mapping>>,
) -> BTreeMap<u32, Vec<PageRun>> {
    let mut shared: BTreeMap<u32, Vec<PageRun>> = BTreeMap::new();
    for vpid in tasks {
        let of_task = shared.entry(*vpid).or_default();
        for mapping in maps.get(vpid).into_iter().flatten().filter(|mapping| mapping.lazy) {
            for (run, content) in store.runs(ImageId::Task(*vpid), Some(mapping.start..mapping.end)) {
                let Content::Slot(first) = content else { continue };
                for page in 0..run.pages {
                    let slot = first + page as u32;
                    if store.shared_by(slot) < 2 {
                        continue;
                    }
                    let address = run.start + page * PAGE_SIZE;
                    let same = |other: &u32| {
                        other != vpid
                            && store.find(ImageId::Task(*other), address) == Some(Content::Slot(slot))
                    };
                    if !tasks.iter().any(same) {
                        continue;
                    }
                    match of_task.last_mut() {
                        Some(last) if last.end() == address => last.pages += 1,
                        _ => of_task.push(PageRun { start: address, pages: 1 }),
                    }
                }
            }
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, pages: u64) -> PageRun {
        PageRun { start: start * PAGE_SIZE, pages }
    }

    fn mapping(start: u64, end: u64) -> Mapping {
        let (start, end) = (start * PAGE_SIZE, end * PAGE_SIZE);
        Mapping { start, end, lazy: true, grows_down: false, readable: true }
    }

    #[test]
    fn a_run_is_cut_at_every_border() {
        let eager = |mapping| Mapping { lazy: false, ..mapping };
        let maps = [eager(mapping(0, 10)), mapping(10, 20), eager(mapping(20, 25)), mapping(30, 40)];
        let got = pieces(run(5, 40), &maps, &[run(12, 2), run(35, 1)]);
        let want = vec![
            (run(5, 5), false),
            (run(10, 2), true),
            (run(12, 2), false),
            (run(14, 6), true),
            (run(20, 5), false),
            (run(30, 5), true),
            (run(35, 1), false),
            (run(36, 4), true),
        ];
        assert_eq!(got, want);
        assert_eq!(pieces(run(50, 3), &maps, &[]), vec![]);
    }

    #[test]
    fn a_page_is_included_once() {
        let mut runs = vec![run(10, 5), run(20, 1)];
        [9, 10, 14, 15, 20, 30].iter().for_each(|page| include(&mut runs, page * PAGE_SIZE));
        assert_eq!(runs, [run(9, 1), run(10, 5), run(15, 1), run(20, 1), run(30, 1)]);
    }

    #[test]
    fn each_mapping_has_one_page_before_all_others() {
        let maps = [mapping(0, 40), mapping(40, 42), mapping(50, 100)];
        let mut anchors = Anchors::default();
        [3, 7, 39, 40, 41, 60, 99].iter().for_each(|page| anchors.see(page * PAGE_SIZE, &maps));
        assert_eq!(anchors.addresses, [3, 40, 60].map(|page| page * PAGE_SIZE));
    }

    #[test]
    fn what_was_cut_is_known_by_its_parts() {
        let parts = |maps: &[Mapping]| {
            parts_of(maps).iter().map(|part| part.start / PAGE_SIZE..part.end / PAGE_SIZE).collect::<Vec<_>>()
        };
        assert_eq!(parts(&[mapping(0, 3), mapping(4, 100)]), []);
        assert_eq!(parts(&[mapping(0, 40), mapping(40, 42), mapping(42, 99)]), [0..40, 40..42, 42..99]);
        assert_eq!(parts(&[mapping(0, 3), mapping(3, 5), mapping(6, 8)]), [0..3, 3..5]);
        // the guard of a stack is no part of it, nor is what is no plain memory
        let guard = Mapping { readable: false, ..mapping(0, 1) };
        let locked = Mapping { lazy: false, ..mapping(0, 1) };
        let stack = Mapping { grows_down: true, ..mapping(1, 100) };
        assert_eq!(parts(&[guard, mapping(1, 100)]), []);
        assert_eq!(parts(&[locked, mapping(1, 3)]), []);
        assert_eq!(parts(&[mapping(0, 1), stack]), []);
    }
}
