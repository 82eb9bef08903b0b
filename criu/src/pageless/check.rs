//! What a dump left in the images, against what its rung should have.

use std::path::Path;

use super::mappings::{Mapping, read_mappings};
use super::take::{PagemapName, read_pagemaps};
use crate::images::{ImageError, Pagemap};

/// The pages in the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Found {
    /// Tasks with images of their memory.
    pub(super) tasks: u64,
    /// Pages of tasks.
    pub(super) pages: u64,
    /// Those of them that CRIU did not have to write.
    pub(super) needless: u64,
}

/// Counts the pages in the images; `must` says whether those of a mapping have to be there.
pub(super) fn find_pages(images: &Path, must: fn(&Mapping) -> bool) -> Result<Found, ImageError> {
    let mut found = Found::default();
    for (name, map) in read_pagemaps(images)? {
        let PagemapName::Task(pid) = name else { continue };
        found.tasks += 1;
        if map.present_pages() > 0 {
            let mappings = read_mappings(&images.join(format!("mm-{pid}.img")))?;
            found.pages += map.present_pages();
            found.needless += needless(&map, &mappings, must);
        }
    }
    Ok(found)
}

fn needless(map: &Pagemap, mappings: &[Mapping], must: fn(&Mapping) -> bool) -> u64 {
    let must_be_there = |vaddr: u64, end: u64| {
        // Entries may go over mappings that touch.
        let mut at = vaddr;
        let first = mappings.partition_point(|mapping| mapping.end <= vaddr);
        for mapping in &mappings[first..] {
            if mapping.start > at || at >= end || !must(mapping) {
                break;
            }
            at = mapping.end;
        }
        at >= end
    };
    let present = map.entries.iter().filter(|entry| entry.present());
    present.filter(|entry| !must_be_there(entry.vaddr, entry.end())).map(|entry| entry.nr_pages).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::PagemapEntry;
    use crate::images::pagemap::{PE_PARENT, PE_PRESENT};

    #[test]
    fn pages_that_need_not_be_there() {
        let mapping = |start: u64, end: u64, status| Mapping { start, end, prot: 1, flags: 2, status };
        let mappings = [
            mapping(0x1000, 0x5000, 1),
            mapping(0x5000, 0x7000, 1 << 3),
            mapping(0x7000, 0x8000, 1 << 13),
            mapping(0x9000, 0xf000, 1),
        ];
        let count = |vaddr, nr_pages, flags| {
            let map = Pagemap { pages_id: 1, entries: vec![PagemapEntry { vaddr, nr_pages, flags }] };
            needless(&map, &mappings, Mapping::always_written)
        };
        assert_eq!(count(0x5000, 2, PE_PRESENT), 0);
        assert_eq!(count(0x5000, 3, PE_PRESENT), 0, "two mappings that touch");
        assert_eq!(count(0x6000, 1, PE_PRESENT), 0);
        assert_eq!(count(0x2000, 1, PE_PRESENT), 1);
        assert_eq!(count(0x4000, 2, PE_PRESENT), 2, "begins in another");
        assert_eq!(count(0x7000, 3, PE_PRESENT), 3, "ends in another");
        assert_eq!(count(0x8000, 1, PE_PRESENT), 1, "in none");
        assert_eq!(count(0x20000, 1, PE_PRESENT), 1, "behind all");
        assert_eq!(count(0x2000, 9, PE_PARENT), 0);
    }
}
