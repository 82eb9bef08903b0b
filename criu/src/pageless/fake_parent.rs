//! A parent image that claims to have every page of every task.
//!
//! With it and `track_mem` CRIU writes a page that is not soft-dirty as a hole, after having looked at the parent's list of
//! pages, not at the pages (page-xfer.c, check_pagehole_in_parent). A task that started after the parent's time gets its
//! pages written (mem.c, detect_pid_reuse).

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::take::PagemapName;
use super::tasks::own_pid;
use crate::error::CriuError;
use crate::images::file::create_private;
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

/// Removes it.
pub(super) fn remove(images: &Path) -> Result<(), CriuError> {
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

    #[test]
    fn covers_everything_without_gaps() {
        let entries = everything();
        assert_eq!(entries[0].vaddr, 0x1000);
        assert_eq!(entries.last().unwrap().end(), 0x7fff_ffff_f000);
        assert!(entries.windows(2).all(|pair| pair[0].end() == pair[1].vaddr));
        assert!(entries.iter().all(|entry| u32::try_from(entry.nr_pages).is_ok()));
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
        assert_eq!(names, ["inventory.img".to_owned(), PagemapName::Task(own_pid(own).unwrap()).file_name(), "pages-1.img".into()]);
        remove(images.path()).unwrap();
        remove(images.path()).unwrap();
        assert!(!dir.exists());
    }
}
