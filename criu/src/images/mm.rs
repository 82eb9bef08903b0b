//! Which parts of a task's memory may be filled on demand: the mappings in `mm-<pid>.img` (mm.proto, vma.proto).

use std::path::Path;

use super::file::{ImageError, Kind, read_records};
use super::wire::{Fields, Malformed};

/// One mapping of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// CRIU can restore it on demand: private anonymous memory that is neither locked nor of huge pages (CRIU's vma.h,
    /// vma_entry_can_be_lazy).
    pub lazy: bool,
    /// A stack that grows by itself: the page at its pointer must be there at once (CRIU's mem.c, is_stack).
    pub grows_down: bool,
    /// The task may read it at this moment (`PROT_READ`).
    pub readable: bool,
}

/// All mappings of a task, ascending.
///
/// # Errors
/// When the image cannot be read or is malformed.
pub fn mappings(mm_image: &Path) -> Result<Vec<Mapping>, ImageError> {
    let records = read_records(mm_image, Kind::Mm)?;
    let record = records.first().ok_or_else(|| ImageError::broken(mm_image, "it is empty"))?;
    parse(record).map_err(|_| ImageError::broken(mm_image, "its record is malformed"))
}

/// The address ranges CRIU restores on demand when asked to, ascending.
///
/// The flag in a pagemap was right at its round. A mapping locked since then is restored at once, and a page of it that is
/// still flagged would be skipped and never filled.
pub(super) fn lazy_ranges(mm_image: &Path) -> Result<Vec<(u64, u64)>, ImageError> {
    let lazy = mappings(mm_image)?.into_iter().filter(|mapping| mapping.lazy);
    Ok(lazy.map(|mapping| (mapping.start, mapping.end)).collect())
}

fn parse(record: &[u8]) -> Result<Vec<Mapping>, Malformed> {
    const VMAS: u32 = 14;
    let mut mappings = Vec::new();
    for field in Fields(record) {
        let (number, value) = field?;
        if number == VMAS {
            mappings.extend(mapping(value.bytes()?)?);
        }
    }
    if mappings.is_sorted_by(|one, next| one.end <= next.start) { Ok(mappings) } else { Err(Malformed) }
}

/// Nothing for a guard region, which CRIU notes besides the mapping that it is in.
fn mapping(vma: &[u8]) -> Result<Option<Mapping>, Malformed> {
    /// `status` of the vsyscall, vdso and vvar mappings (CRIU's image.h).
    const KERNELS_OWN: u64 = 1 << 2 | 1 << 3 | 1 << 12;
    /// `status` of a guard region (VMA_AREA_GUARD, CRIU 4.2).
    const GUARD: u64 = 1 << 16;
    let (mut start, mut end, mut protection, mut flags, mut status) = (0, 0, 0, 0, 0);
    for field in Fields(vma) {
        let (number, value) = field?;
        match number {
            1 => start = value.u64()?,
            2 => end = value.u64()?,
            5 => protection = value.u64()?,
            6 => flags = value.u64()?,
            7 => status = value.u64()?,
            _ => {}
        }
    }
    if status & GUARD != 0 {
        return Ok(None);
    }
    if start >= end {
        return Err(Malformed);
    }
    let flag = |bit: i32| flags & u64::from(bit.unsigned_abs()) != 0;
    let lazy = flag(libc::MAP_ANONYMOUS)
        && flag(libc::MAP_PRIVATE)
        && !flag(libc::MAP_LOCKED)
        && !flag(libc::MAP_HUGETLB)
        && status & KERNELS_OWN == 0;
    let readable = protection & u64::from(libc::PROT_READ.unsigned_abs()) != 0;
    Ok(Some(Mapping { start, end, lazy, grows_down: flag(libc::MAP_GROWSDOWN), readable }))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{put_bytes, put_varint};
    use super::*;
    use proptest::prelude::*;

    fn vma(start: u64, flags: i32, status: u64) -> Vec<u8> {
        let mut vma = Vec::new();
        for (number, value) in [(1, start), (2, start + 0x1000), (6, flags as u64), (7, status)] {
            put_varint(&mut vma, number, value);
        }
        vma
    }

    #[test]
    fn only_plain_private_memory_is_lazy() {
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let vmas = [
            vma(0x1000, anonymous, 1),
            vma(0x2000, libc::MAP_PRIVATE, 1),
            vma(0x3000, anonymous | libc::MAP_LOCKED, 1),
            vma(0x4000, anonymous | libc::MAP_HUGETLB, 1),
            vma(0x5000, libc::MAP_SHARED | libc::MAP_ANONYMOUS, 1),
            vma(0x6000, anonymous, 1 << 3),
            vma(0x7000, anonymous, 1 << 9),
            vma(0x8000, anonymous | libc::MAP_GROWSDOWN, 1),
        ];
        let mut record = Vec::new();
        put_varint(&mut record, 1, 0x400000);
        vmas.iter().for_each(|vma| put_bytes(&mut record, 14, vma));
        // the guard regions come last, wherever they are
        put_bytes(&mut record, 14, &vma(0x3000, anonymous, 1 << 16));
        let mappings = parse(&record).unwrap();
        assert_eq!(mappings.len(), vmas.len());
        let lazy: Vec<u64> =
            mappings.iter().filter(|mapping| mapping.lazy).map(|mapping| mapping.start).collect();
        assert_eq!(lazy, [0x1000, 0x7000, 0x8000]);
        assert!(mappings.iter().all(|mapping| mapping.grows_down == (mapping.start == 0x8000)));
        put_bytes(&mut record, 14, &vmas[0]);
        assert_eq!(parse(&record), Err(Malformed), "not ascending");
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
