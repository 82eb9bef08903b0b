//! CRIU's images with the pages that came by themselves: which of them CRIU puts in place, and which are given to the
//! restored tasks as they touch them.

use godwit_criu::images::{ImageError, Mapping, PE_LAZY, PE_PRESENT, Pagemap, PagemapEntry, mappings};
use godwit_memory::destination::fill::TaskPages;
use godwit_memory::destination::{Content, EAGER_COW_PAGES, PageStore};
use godwit_memory::{ImageId, PAGE_SIZE, PageRun};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufWriter, Write};
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
    for vpid in &tasks {
        let mut of_task = mappings(&images.join(format!("mm-{vpid}.img")))?;
        for mapping in &mut of_task {
            let large = (mapping.end - mapping.start) / PAGE_SIZE >= SMALL;
            mapping.lazy &= lazy && large && !mapping.grows_down;
        }
        maps.insert(*vpid, of_task);
    }
    let cow = if lazy && tasks.len() > 1 { shared_runs(store, &tasks, &maps) } else { BTreeMap::new() };
    let cow_pages: u64 = cow.values().flatten().map(|run| run.pages).sum();
    let keep_shared = cow_pages <= EAGER_COW_PAGES;
    composed.unshared_pages = if keep_shared { 0 } else { cow_pages };
    for vpid in tasks.iter().copied() {
        let of_task = maps.remove(&vpid).unwrap_or_default();
        let at_once = if keep_shared { cow.get(&vpid).map_or(&[][..], Vec::as_slice) } else { &[] };
        task(images, store, vpid, &of_task, at_once, &mut composed)?;
    }
    if composed.lazy_pages > 0 {
        keep_huge_pages_away(images, &tasks)?;
    }
    Ok(composed)
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
    if !list.pages.is_empty() {
        composed.lists.push(list);
    }
    Ok(())
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

    #[test]
    fn a_run_is_cut_at_every_border() {
        let mapping = |start, end, lazy| Mapping {
            start: start * PAGE_SIZE,
            end: end * PAGE_SIZE,
            lazy,
            grows_down: false,
        };
        let maps =
            [mapping(0, 10, false), mapping(10, 20, true), mapping(20, 25, false), mapping(30, 40, true)];
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
}
