//! Which pages an image has: `pagemap-<pid>.img` and `pagemap-shmem-<id>.img` (pagemap.proto).
//!
//! The present pages of a pagemap lie one after the other, in its order, in `pages-<pages_id>.img`, which has no header.

use std::path::Path;

use super::file::{ImageError, Kind, join_records, read_records, write_private};
use super::wire::{Fields, put_varint};

/// CRIU's page size on x86_64, and on arm64 kernels with 4 KiB pages; bytes.
pub const PAGE_SIZE: u64 = 4096;

/// The pages are in the parent image (pagemap.h).
pub const PE_PARENT: u32 = 1;
/// The pages may be filled in on demand.
pub const PE_LAZY: u32 = 2;
/// The pages are in this image.
pub const PE_PRESENT: u32 = 4;

/// A run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagemapEntry {
    /// Address of the first page; in shared memory its offset. Bytes.
    pub vaddr: u64,
    /// Number of pages, at least 1.
    pub nr_pages: u64,
    /// [`PE_PARENT`], [`PE_LAZY`], [`PE_PRESENT`].
    pub flags: u32,
}

impl PagemapEntry {
    /// Address after the last page, bytes.
    pub fn end(&self) -> u64 {
        self.vaddr + self.nr_pages * PAGE_SIZE
    }

    /// The pages are in this image's pages file.
    pub fn present(&self) -> bool {
        self.flags & PE_PRESENT != 0
    }

    /// The pages may be filled in on demand.
    pub fn lazy(&self) -> bool {
        self.flags & PE_LAZY != 0
    }

    /// The pages are in the parent.
    pub fn in_parent(&self) -> bool {
        self.flags & PE_PARENT != 0
    }
}

/// A pagemap image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pagemap {
    /// Number of the pages file.
    pub pages_id: u32,
    /// Ascending, without overlap.
    pub entries: Vec<PagemapEntry>,
}

impl Pagemap {
    /// Reads a pagemap and makes sure that its entries ascend, do not overlap and are each either present or in the parent.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let records = read_records(path, Kind::Pagemap)?;
        Self::parse(records.iter().map(Vec::as_slice)).map_err(|reason| ImageError::broken(path, reason))
    }

    pub(super) fn parse<'a>(mut records: impl Iterator<Item = &'a [u8]>) -> Result<Self, &'static str> {
        let head = records.next().ok_or("it has no head")?;
        let mut pages_id = None;
        for field in Fields(head) {
            let (number, value) = field?;
            if number == 1 {
                pages_id = Some(value.u32()?);
            }
        }
        let mut map = Pagemap { pages_id: pages_id.ok_or("its head has no pages id")?, entries: Vec::new() };
        let mut end = 0;
        for record in records {
            let entry = parse_entry(record)?;
            if entry.vaddr < end {
                return Err("its entries do not ascend");
            }
            end = entry.end();
            map.entries.push(entry);
        }
        Ok(map)
    }

    /// Writes the pagemap, with the number of pages in the field of old CRIUs and in that of 4.2 and newer.
    pub fn write(&self, path: &Path) -> Result<(), ImageError> {
        write_private(path, &self.to_bytes())
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut head = Vec::new();
        put_varint(&mut head, 1, self.pages_id.into());
        let records = std::iter::once(head).chain(self.entries.iter().map(|entry| {
            let mut record = Vec::with_capacity(24);
            put_varint(&mut record, 1, entry.vaddr);
            // 0 when too large for the old field, as CRIU 4.2 always writes it.
            put_varint(&mut record, 2, u32::try_from(entry.nr_pages).unwrap_or(0).into());
            if entry.in_parent() {
                put_varint(&mut record, 3, 1);
            }
            put_varint(&mut record, 4, entry.flags.into());
            put_varint(&mut record, 5, entry.nr_pages);
            record
        }));
        join_records(Kind::Pagemap, records)
    }

    /// Number of pages in the pages file.
    pub fn present_pages(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.present()).map(|entry| entry.nr_pages).sum()
    }

    /// Name of the pages file.
    pub fn pages_name(&self) -> String {
        pages_name(self.pages_id)
    }
}

/// Name of the pages file with this number.
pub fn pages_name(pages_id: u32) -> String {
    format!("pages-{pages_id}.img")
}

/// Whether a file of this name is a pagemap.
pub fn is_pagemap_name(name: &str) -> bool {
    name.starts_with("pagemap-") && name.ends_with(".img")
}

fn parse_entry(record: &[u8]) -> Result<PagemapEntry, &'static str> {
    let (mut vaddr, mut compat, mut pages, mut in_parent, mut flags) = (None, 0, None, false, None);
    for field in Fields(record) {
        let (number, value) = field?;
        match number {
            1 => vaddr = Some(value.u64()?),
            2 => compat = value.u64()?,
            3 => in_parent = value.u64()? != 0,
            4 => flags = Some(value.u32()?),
            5 => pages = Some(value.u64()?),
            _ => {}
        }
    }
    let vaddr = vaddr.ok_or("an entry has no address")?;
    let nr_pages = pages.unwrap_or(compat);
    // Images of before the flags have `in_parent` only (CRIU's pagemap.c, init_pagemaps).
    let flags = flags.unwrap_or(0);
    let flags = match (in_parent, flags & (PE_PARENT | PE_PRESENT | PE_LAZY)) {
        (true, _) => PE_PARENT | (flags & PE_LAZY),
        (false, 0) => PE_PRESENT,
        (false, known) => known,
    };
    if vaddr % PAGE_SIZE != 0 {
        return Err("an entry does not begin at a page");
    }
    if nr_pages == 0 {
        return Err("an entry has no pages");
    }
    let length = nr_pages.checked_mul(PAGE_SIZE).ok_or("an entry is too long")?;
    vaddr.checked_add(length).ok_or("an entry is too long")?;
    if flags & PE_PARENT != 0 && flags & PE_PRESENT != 0 {
        return Err("an entry is both here and in the parent");
    }
    Ok(PagemapEntry { vaddr, nr_pages, flags })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(fields: &[(u32, u64)]) -> Vec<u8> {
        let mut record = Vec::new();
        for (number, value) in fields {
            put_varint(&mut record, *number, *value);
        }
        record
    }

    #[test]
    fn page_counts_of_old_and_new_criu() {
        let parsed = |fields| parse_entry(&entry(fields));
        let want = PagemapEntry { vaddr: 0x1000, nr_pages: 3, flags: PE_PRESENT };
        assert_eq!(parsed(&[(1, 0x1000), (2, 3), (4, 4)]), Ok(want), "up to 4.1");
        assert_eq!(parsed(&[(1, 0x1000), (2, 0), (4, 4), (5, 3)]), Ok(want), "4.2");
        assert_eq!(parsed(&[(1, 0x1000), (2, 3)]), Ok(want), "without flags");
        assert_eq!(parsed(&[(1, 0x1000), (2, 3), (3, 1)]).unwrap().flags, PE_PARENT);
        let bytes = Pagemap { pages_id: 7, entries: vec![want] }.to_bytes();
        let records = super::super::file::split_records(&bytes, Kind::Pagemap).unwrap();
        let fields: Vec<_> = Fields(records[1]).map(|f| f.unwrap()).collect();
        assert_eq!(
            fields.iter().filter(|(number, _)| matches!(number, 2 | 5)).count(),
            2,
            "both are written"
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let bad: &[&[(u32, u64)]] = &[
            &[(2, 1), (4, 4)],
            &[(1, 0x1000), (2, 0), (4, 4)],
            &[(1, 0x1001), (2, 1), (4, 4)],
            &[(1, 0x1000), (2, 0), (5, u64::MAX), (4, 4)],
            &[(1, u64::MAX - 4095), (2, 1), (4, 4)],
            &[(1, 0x1000), (2, 1), (4, 5)],
        ];
        for fields in bad {
            assert!(parse_entry(&entry(fields)).is_err(), "{fields:?}");
        }
        let head = entry(&[(1, 1)]);
        let two = [entry(&[(1, 0x2000), (2, 2), (4, 4)]), entry(&[(1, 0x3000), (2, 1), (4, 4)])];
        let records = [&head[..], &two[0], &two[1]];
        assert!(Pagemap::parse(records.into_iter()).is_err(), "overlap");
        assert!(Pagemap::parse([&two[0][..0]].into_iter()).is_err(), "no pages id");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(gaps in proptest::collection::vec((0u64..5, 1u64..1 << 34, 0usize..4), 0..30), pages_id in any::<u32>()) {
            let mut at = 0;
            let entries = gaps.into_iter().map(|(gap, nr_pages, kind)| {
                let flags = [PE_PRESENT, PE_PARENT, PE_PRESENT | PE_LAZY, PE_LAZY][kind];
                let entry = PagemapEntry { vaddr: at + gap * PAGE_SIZE, nr_pages, flags };
                at = entry.end();
                entry
            }).collect();
            let map = Pagemap { pages_id, entries };
            let bytes = map.to_bytes();
            let records = super::super::file::split_records(&bytes, Kind::Pagemap).unwrap();
            prop_assert_eq!(Pagemap::parse(records.into_iter()).unwrap(), map);
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100), cut in 0usize..100) {
            let _ = parse_entry(&bytes);
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let _ = Pagemap::parse([a, b].into_iter());
        }
    }
}
