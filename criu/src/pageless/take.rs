//! The pages that CRIU wrote all the same, taken out of the images.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dump::remove_stale;
use crate::images::pagemap::is_pagemap_name;
use crate::images::{ImageError, PAGE_SIZE, PARENT_LINK, Pagemap};

/// Size of the buffer pages are read through, pages.
const AT_ONCE: u64 = 256;

/// Gets a page: whose image it is of, its address, its content.
pub type EachPage<'a, E> = dyn FnMut(PagemapName, u64, &[u8]) -> Result<(), E> + 'a;

/// Whose pages an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PagemapName {
    /// A task's, by its pid inside the container.
    Task(u32),
    /// A shared memory object's, by CRIU's id of it.
    Shared(u64),
}

impl PagemapName {
    /// Of the file name `pagemap-<pid>.img` or `pagemap-shmem-<id>.img`.
    pub fn of_file(name: &str) -> Option<Self> {
        let name = name.strip_prefix("pagemap-")?.strip_suffix(".img")?;
        match name.strip_prefix("shmem-") {
            Some(id) => id.parse().ok().map(PagemapName::Shared),
            None => name.parse().ok().map(PagemapName::Task),
        }
    }

    /// Its file name.
    pub fn file_name(self) -> String {
        match self {
            PagemapName::Task(pid) => format!("pagemap-{pid}.img"),
            PagemapName::Shared(id) => format!("pagemap-shmem-{id}.img"),
        }
    }
}

/// What was in the images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TakenPages {
    /// Pages of tasks, all given away.
    pub pages: u64,
    /// Pages of shared memory objects by CRIU's id, left in the images: CRIU restores them.
    pub shared: BTreeMap<u64, u64>,
}

/// Calls `each` for every page of a task in the images (whose image, address, content), ascending in each image, and leaves
/// the images without them: the pagemaps have their head only, the pages files are gone, and so is the link to a parent.
/// Pages of shared memory stay where they are.
///
/// # Errors
/// A broken image, or what `each` returns: then the images may be taken from again.
pub fn take_pages<E: From<ImageError>>(images: &Path, each: &mut EachPage<'_, E>) -> Result<TakenPages, E> {
    let mut taken = TakenPages::default();
    let mut done = Vec::new();
    for (name, map) in read_pagemaps(images)? {
        match name {
            PagemapName::Shared(id) => {
                taken.shared.insert(id, map.present_pages());
            }
            PagemapName::Task(_) => {
                taken.pages += map.present_pages();
                each_page(images, &map, |vaddr, page| each(name, vaddr, page))?;
                done.push((name, map));
            }
        }
    }
    for (name, map) in done {
        // The list goes first: pages without one are only a waste.
        if !map.entries.is_empty() {
            Pagemap { entries: Vec::new(), ..map }.write(&images.join(name.file_name()))?;
        }
        let pages = images.join(map.pages_name());
        remove_stale(&pages).map_err(|e| ImageError::broken(&pages, e.to_string()))?;
    }
    let parent = images.join(PARENT_LINK);
    remove_stale(&parent).map_err(|e| ImageError::broken(&parent, e.to_string()))?;
    Ok(taken)
}

/// The pagemaps in the images, by name.
pub(super) fn read_pagemaps(images: &Path) -> Result<BTreeMap<PagemapName, Pagemap>, ImageError> {
    let mut maps = BTreeMap::new();
    for entry in std::fs::read_dir(images).map_err(ImageError::io("list", images))? {
        let entry = entry.map_err(ImageError::io("list", images))?;
        let Ok(file_name) = entry.file_name().into_string() else { continue };
        if !is_pagemap_name(&file_name) {
            continue;
        }
        let name = PagemapName::of_file(&file_name)
            .ok_or_else(|| ImageError::broken(&entry.path(), "a pagemap of nothing known"))?;
        maps.insert(name, Pagemap::read(&entry.path())?);
    }
    Ok(maps)
}

fn each_page<E: From<ImageError>>(
    images: &Path,
    map: &Pagemap,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    if map.present_pages() == 0 {
        // CRIU makes the file with the first page.
        return Ok(());
    }
    let path = images.join(map.pages_name());
    let mut file = File::open(&path).map_err(ImageError::io("read", &path))?;
    let mut buffer = vec![0; (AT_ONCE * PAGE_SIZE) as usize];
    for entry in map.entries.iter().filter(|entry| entry.present()) {
        let mut vaddr = entry.vaddr;
        while vaddr < entry.end() {
            let length = (entry.end() - vaddr).min(AT_ONCE * PAGE_SIZE);
            let part = &mut buffer[..length as usize];
            file.read_exact(part).map_err(ImageError::io("read", &path))?;
            for page in part.chunks_exact(PAGE_SIZE as usize) {
                each(vaddr, page)?;
                vaddr += PAGE_SIZE;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::PagemapEntry;
    use crate::images::pagemap::{PE_PARENT, PE_PRESENT};

    fn entry(vaddr: u64, nr_pages: u64, flags: u32) -> PagemapEntry {
        PagemapEntry { vaddr, nr_pages, flags }
    }

    #[test]
    fn names() {
        for name in [PagemapName::Task(1), PagemapName::Shared(u64::MAX)] {
            assert_eq!(PagemapName::of_file(&name.file_name()), Some(name));
        }
        for other in ["pagemap-x.img", "pagemap-shmem-.img", "mm-1.img", "pagemap-1"] {
            assert_eq!(PagemapName::of_file(other), None);
        }
    }

    #[test]
    fn pages_are_given_away_once_and_shared_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path();
        let mut pages = Vec::new();
        for i in 0..300u32 {
            pages.extend(vec![i as u8; 4096]);
        }
        std::fs::write(images.join("pages-7.img"), &pages).unwrap();
        std::fs::write(images.join("pages-8.img"), &pages[..8192]).unwrap();
        let entries = vec![
            entry(0x10000, 1, PE_PRESENT),
            entry(0x20000, 9, PE_PARENT),
            entry(0x80000, 299, PE_PRESENT),
        ];
        Pagemap { pages_id: 7, entries }.write(&images.join("pagemap-5.img")).unwrap();
        Pagemap { pages_id: 8, entries: vec![entry(0, 2, PE_PRESENT)] }
            .write(&images.join("pagemap-shmem-99.img"))
            .unwrap();
        Pagemap { pages_id: 9, entries: vec![] }.write(&images.join("pagemap-6.img")).unwrap();
        std::os::unix::fs::symlink("nowhere", images.join("parent")).unwrap();

        let mut seen = Vec::new();
        let take = |seen: &mut Vec<(u64, u8)>| {
            take_pages::<ImageError>(images, &mut |name, vaddr, page| {
                assert_eq!((name, page.len()), (PagemapName::Task(5), 4096));
                seen.push((vaddr, page[4095]));
                Ok(())
            })
            .unwrap()
        };
        let taken = take(&mut seen);
        assert_eq!(taken, TakenPages { pages: 300, shared: [(99, 2)].into() });
        let want: Vec<(u64, u8)> = std::iter::once((0x10000, 0))
            .chain((0..299).map(|i| (0x80000 + i * 4096, (i + 1) as u8)))
            .collect();
        assert_eq!(seen, want);
        assert_eq!(
            Pagemap::read(&images.join("pagemap-5.img")).unwrap(),
            Pagemap { pages_id: 7, entries: vec![] }
        );
        assert!(!images.join("pages-7.img").exists() && images.join("pages-8.img").exists());
        assert!(images.join("parent").symlink_metadata().is_err());
        seen.clear();
        assert_eq!(take(&mut seen), TakenPages { pages: 0, shared: [(99, 2)].into() });
        assert!(seen.is_empty());
    }

    #[test]
    fn nothing_is_lost_when_a_page_is_refused_or_missing() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path();
        Pagemap { pages_id: 7, entries: vec![entry(0x10000, 2, PE_PRESENT)] }
            .write(&images.join("pagemap-5.img"))
            .unwrap();
        assert!(take_pages::<ImageError>(images, &mut |_, _, _| Ok(())).is_err(), "no pages file");
        std::fs::write(images.join("pages-7.img"), [1; 4096]).unwrap();
        assert!(take_pages::<ImageError>(images, &mut |_, _, _| Ok(())).is_err(), "too short");
        std::fs::write(images.join("pages-7.img"), [1; 8192]).unwrap();
        let refuse = &mut |_: PagemapName, _: u64, _: &[u8]| Err(ImageError::broken(images, "refused"));
        assert!(take_pages(images, refuse).is_err());
        let mut count = 0;
        take_pages::<ImageError>(images, &mut |_, _, _| {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(count, 2);
    }
}
