//! The mappings of a task as CRIU saw them: `mm-<pid>.img` (mm.proto, vma.proto), as far as they say which pages CRIU writes
//! whatever it is told.

use std::path::Path;

use crate::images::ImageError;
use crate::images::file::{Kind, read_records};
use crate::images::wire::{Fields, Malformed};

/// A mapping all of whose pages are always written: `status` says vdso or AIO ring (CRIU's image.h; mem.c,
/// should_dump_entire_vma).
const ALWAYS_WRITTEN: u64 = 1 << 3 | 1 << 13;

/// No mapping, but a range of guard pages inside of one; these come behind the mappings (CRIU 4.2).
const GUARD: u64 = 1 << 16;

/// A mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// PROT_ flags of mmap(2).
    pub prot: u64,
    /// MAP_ flags of mmap(2).
    pub flags: u64,
    /// CRIU's VMA_ flags.
    pub status: u64,
}

impl Mapping {
    /// CRIU writes all its pages, whatever it is told.
    pub(super) fn always_written(&self) -> bool {
        self.status & ALWAYS_WRITTEN != 0
    }

    /// CRIU never looks for its pages in a parent (mem.c, generate_vma_iovs).
    pub(super) fn never_in_parent(&self) -> bool {
        self.always_written()
            || self.prot & libc::PROT_READ as u64 == 0
            || self.flags & libc::MAP_HUGETLB as u64 != 0
    }
}

/// The mappings in this image, ascending. Guard pages inside of one are not told.
pub fn read_mappings(mm_image: &Path) -> Result<Vec<Mapping>, ImageError> {
    let records = read_records(mm_image, Kind::Mm)?;
    let record = records.first().ok_or_else(|| ImageError::broken(mm_image, "it is empty"))?;
    parse(record).map_err(|_| ImageError::broken(mm_image, "its record is malformed"))
}

fn parse(record: &[u8]) -> Result<Vec<Mapping>, Malformed> {
    const VMAS: u32 = 14;
    let mut mappings: Vec<Mapping> = Vec::new();
    for field in Fields(record) {
        let (number, value) = field?;
        if number == VMAS {
            let mapping = mapping(value.bytes()?)?;
            if mapping.start >= mapping.end {
                return Err(Malformed);
            }
            if mapping.status & GUARD == 0 {
                mappings.push(mapping);
            }
        }
    }
    if mappings.is_sorted_by(|a, b| a.end <= b.start) { Ok(mappings) } else { Err(Malformed) }
}

fn mapping(vma: &[u8]) -> Result<Mapping, Malformed> {
    let mut mapping = Mapping { start: 0, end: 0, prot: 0, flags: 0, status: 0 };
    for field in Fields(vma) {
        let (number, value) = field?;
        match number {
            1 => mapping.start = value.u64()?,
            2 => mapping.end = value.u64()?,
            5 => mapping.prot = value.u64()?,
            6 => mapping.flags = value.u64()?,
            7 => mapping.status = value.u64()?,
            _ => {}
        }
    }
    Ok(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::wire::{put_bytes, put_varint};
    use proptest::prelude::*;

    fn vma(start: u64, prot: i32, flags: i32, status: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let fields =
            [(1, start), (2, start + 0x2000), (5, prot as u64), (6, flags as u64), (7, status), (4, 77)];
        fields.iter().for_each(|(number, value)| put_varint(&mut out, *number, *value));
        out
    }

    #[test]
    fn which_are_written_anyway() {
        let (read, private) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let mut record = Vec::new();
        let vmas = [
            vma(0x1000, read, private, 1 << 9 | 1),
            vma(0x4000, 0, private, 1 << 9 | 1),
            vma(0x8000, read, private | libc::MAP_HUGETLB, 1 << 9 | 1),
            vma(0xa000, read, private, 1 << 3 | 1),
            vma(0xc000, read, private, 1 << 13 | 1),
            vma(0x1000, 0, 0, GUARD),
        ];
        vmas.iter().for_each(|vma| put_bytes(&mut record, 14, vma));
        let mappings = parse(&record).unwrap();
        let of = |pick: fn(&Mapping) -> bool| mappings.iter().map(pick).collect::<Vec<_>>();
        assert_eq!(of(Mapping::always_written), [false, false, false, true, true]);
        assert_eq!(of(Mapping::never_in_parent), [false, true, true, true, true]);
        assert_eq!((mappings[1].start, mappings[1].end), (0x4000, 0x6000));
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
