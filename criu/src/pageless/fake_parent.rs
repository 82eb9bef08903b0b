//! A parent image that claims to have every page of every task.
//!
//! With it and `track_mem` CRIU writes a page that is not soft-dirty as a hole, after having looked at the parent's list of
//! pages, not at the pages (page-xfer.c, check_pagehole_in_parent). A task that started after the parent's time gets its
//! pages written (mem.c, detect_pid_reuse).

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use super::mappings::{Mapping, read_mappings};
use super::take::PagemapName;
use super::tasks::own_pid;
use crate::dump::remove_stale;
use crate::error::CriuError;
use crate::images::file::{PARENT_LINK, create_private, write_private};
use crate::images::pagemap::PE_PRESENT;
use crate::images::{ImageError, Inventory, PAGE_SIZE, Pagemap, PagemapEntry};

/// Name of its directory inside the images directory.
pub(super) const DIRECTORY: &str = "fake-parent";

/// Makes it in the images directory for the tasks `pids`; one that is gone by now is left out.
pub(super) fn make(images: &Path, pids: &[i32]) -> Result<(), CriuError> {
    let dir = images.join(DIRECTORY);
    DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .map_err(CriuError::io(format!("cannot make `{}`", dir.display())))?;
    Inventory { img_version: 2, dump_uptime: Some(uptime()?), pre_dump_mode: Some(1), ..Default::default() }
        .write(&dir)?;
    for (pid, pages_id) in pids.iter().zip(1u32..) {
        let Ok(vpid) = own_pid(*pid) else { continue };
        let map = Pagemap { pages_id, entries: everything() };
        map.write(&dir.join(PagemapName::Task(vpid).file_name()))?;
        create_private(&dir.join(map.pages_name()))?;
    }
    Ok(())
}

/// Makes the images of the tasks `pids` like those of the other rungs: without holes, and with the pages that a restore wants to
/// find whatever else is left out (the vdso). CRIU has made holes of these too.
pub(super) fn complete(images: &Path, pids: &[i32]) -> Result<(), CriuError> {
    for pid in pids {
        let Ok(vpid) = own_pid(*pid) else { continue };
        let path = images.join(PagemapName::Task(vpid).file_name());
        if path.exists() {
            let map = Pagemap::read(&path)?;
            let mappings = read_mappings(&images.join(format!("mm-{vpid}.img")))?;
            let memory = File::open(format!("/proc/{pid}/mem"))
                .map_err(CriuError::io(format!("cannot open the memory of {pid}")))?;
            fill(images, &map, &mappings, &memory)?.write(&path)?;
        }
    }
    remove(images)?;
    remove_stale(&images.join(PARENT_LINK))
}

/// Writes the pages file anew: what is there, and the holes in mappings that are always written from `memory`. The list of it.
fn fill(images: &Path, map: &Pagemap, mappings: &[Mapping], memory: &File) -> Result<Pagemap, CriuError> {
    let mut full = Pagemap { pages_id: map.pages_id, entries: Vec::new() };
    let (mut pages, mut at) = (Vec::new(), 0);
    let path = images.join(map.pages_name());
    for entry in &map.entries {
        if entry.present() {
            let file = File::open(&path).map_err(ImageError::io("read", &path))?;
            let (from, length) = (pages.len(), entry.nr_pages * PAGE_SIZE);
            pages.resize(from + length as usize, 0);
            file.read_exact_at(&mut pages[from..], at).map_err(ImageError::io("read", &path))?;
            at += length;
            full.entries.push(*entry);
            continue;
        }
        for mapping in mappings.iter().filter(|mapping| mapping.always_written()) {
            let (start, end) = (entry.vaddr.max(mapping.start), entry.end().min(mapping.end));
            if start < end {
                let from = pages.len();
                pages.resize(from + (end - start) as usize, 0);
                memory
                    .read_exact_at(&mut pages[from..], start)
                    .map_err(CriuError::io(format!("cannot read memory at {start:#x}")))?;
                let nr_pages = (end - start) / PAGE_SIZE;
                full.entries.push(PagemapEntry { vaddr: start, nr_pages, flags: PE_PRESENT });
            }
        }
    }
    write_private(&path, &pages)?;
    Ok(full)
}

/// Removes it.
fn remove(images: &Path) -> Result<(), CriuError> {
    let dir = images.join(DIRECTORY);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ImageError::io("remove", &dir)(e).into()),
        _ => Ok(()),
    }
}

/// Every address a task can have, in entries whose number of pages also fits into old CRIUs' field.
fn everything() -> Vec<PagemapEntry> {
    /// End of the user's half of the address space with 4-level page tables; no page lies higher unless asked for.
    const END: u64 = 0x7fff_ffff_f000;
    const LONGEST: u64 = 1 << 30;
    let mut entries = Vec::new();
    let mut vaddr = PAGE_SIZE;
    while vaddr < END {
        let nr_pages = LONGEST.min((END - vaddr) / PAGE_SIZE);
        entries.push(PagemapEntry { vaddr, nr_pages, flags: PE_PRESENT });
        vaddr += nr_pages * PAGE_SIZE;
    }
    entries
}

/// Microseconds since the boot, as CRIU counts them for the start of tasks.
fn uptime() -> Result<u64, CriuError> {
    let clock = nix::time::ClockId::CLOCK_BOOTTIME;
    let now = clock.now().map_err(|e| CriuError::io("cannot read the time")(e.into()))?;
    Ok(std::time::Duration::from(now).as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::pagemap::PE_PARENT;

    #[test]
    fn covers_everything_without_gaps() {
        let entries = everything();
        assert_eq!(entries[0].vaddr, 0x1000);
        assert_eq!(entries.last().unwrap().end(), 0x7fff_ffff_f000);
        assert!(entries.windows(2).all(|pair| pair[0].end() == pair[1].vaddr));
        assert!(entries.iter().all(|entry| u32::try_from(entry.nr_pages).is_ok()));
    }

    #[test]
    fn holes_that_must_not_be_are_filled() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path();
        let page = |byte: u8| vec![byte; 4096];
        std::fs::write(images.join("pages-3.img"), [page(1), page(2)].concat()).unwrap();
        // Memory that has the number of its page in every byte.
        std::fs::write(images.join("memory"), (0..32).flat_map(page).collect::<Vec<u8>>()).unwrap();
        let memory = File::open(images.join("memory")).unwrap();
        let entry = |page: u64, nr_pages, flags| PagemapEntry { vaddr: page << 12, nr_pages, flags };
        let vdso = Mapping { start: 0x10000, end: 0x12000, prot: 1, flags: 2, status: 1 << 3 };
        let heap = Mapping { start: 0x4000, end: 0x10000, prot: 3, flags: 2, status: 1 };
        let entries = vec![entry(5, 1, PE_PRESENT), entry(8, 10, PE_PARENT), entry(20, 1, PE_PRESENT)];
        let full = fill(images, &Pagemap { pages_id: 3, entries }, &[heap, vdso], &memory).unwrap();
        let want = [entry(5, 1, PE_PRESENT), entry(16, 2, PE_PRESENT), entry(20, 1, PE_PRESENT)];
        assert_eq!(full, Pagemap { pages_id: 3, entries: want.to_vec() });
        let pages = std::fs::read(images.join("pages-3.img")).unwrap();
        assert_eq!(pages, [page(1), page(16), page(17), page(2)].concat());
    }

    #[test]
    fn has_an_image_for_each_task_there_is() {
        let images = tempfile::tempdir().unwrap();
        let own = std::process::id() as i32;
        make(images.path(), &[own, i32::MAX]).unwrap();
        let dir = images.path().join(DIRECTORY);
        let inventory = Inventory::read(&dir).unwrap();
        assert!(inventory.dump_uptime.unwrap() > 0 && inventory.pre_dump_mode == Some(1));
        let mut names: Vec<_> =
            std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "inventory.img".to_owned(),
                PagemapName::Task(own_pid(own).unwrap()).file_name(),
                "pages-1.img".into()
            ]
        );
        remove(images.path()).unwrap();
        remove(images.path()).unwrap();
        assert!(!dir.exists());
    }
}
