//! Which question is which: decisions on a call's arguments, without system calls.

/// `struct pm_scan_arg` of the kernel's uapi/linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PmScanArg {
    /// Size of this structure, bytes.
    pub size: u64,
    /// PM_SCAN_WP_MATCHING 1, PM_SCAN_CHECK_WPASYNC 2.
    pub flags: u64,
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Set by the kernel: where the walk ended.
    pub walk_end: u64,
    /// Address of an array of [`PageRegion`].
    pub vec: u64,
    /// Its length, elements.
    pub vec_len: u64,
    /// Most pages to report, 0 for no limit.
    pub max_pages: u64,
    /// Categories to be inverted before matching.
    pub category_inverted: u64,
    /// All of these must match.
    pub category_mask: u64,
    /// One of these must match.
    pub category_anyof_mask: u64,
    /// Reported categories.
    pub return_mask: u64,
}

/// `struct page_region` of the kernel's uapi/linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Categories that all pages of it have.
    pub categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
pub const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<PmScanArg>() as u64) << 16 | (b'f' as u64) << 8 | 16;
/// A page in memory.
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
/// A page in swap.
pub const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// A page of a guard region.
pub const PAGE_IS_GUARD: u64 = 1 << 8;

/// `whence` of lseek(2): the next data.
pub const SEEK_DATA: i32 = 3;
/// Number of resources with limits, see getrlimit(2).
pub const RESOURCES: usize = 16;

/// Whether a scan lists the pages that make up a task's memory, as CRIU's pagemap-cache.c does.
///
/// Not the probe for the ioctl, which has no room for an answer, and not the search for guard regions (CRIU 4.2's mem.c):
/// these are no pages, and without them the restored task would lack its guards.
pub fn lists_pages(scan: &PmScanArg) -> bool {
    scan.vec != 0
        && scan.vec_len > 1
        && scan.flags == 0
        && scan.category_anyof_mask & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED) != 0
        && scan.category_mask & PAGE_IS_GUARD == 0
}

/// Whether a read of `length` bytes from the file that `link` names lists pages: more than one entry of a pagemap.
/// CRIU reads single entries to find out what the kernel can do.
pub fn reads_pages(link: &[u8], length: usize) -> bool {
    length > 8 && link.ends_with(b"/pagemap")
}

/// Whether the file that `link` names is an object of shared memory: a memfd, anonymous shared memory, or a SysV segment.
pub fn is_shared_memory(link: &[u8]) -> bool {
    link.starts_with(b"/memfd:") || link == b"/dev/zero (deleted)" || link.starts_with(b"/SYSV")
}

/// The process whose smaps `path` is, opened in the directory that `link` names (when the path is relative).
pub fn smaps_of(path: &[u8], link: Option<&[u8]>) -> Option<u32> {
    let dir = path.strip_suffix(b"smaps")?;
    if dir.is_empty() {
        // The directory of a process; whatever /proc is called where it is mounted.
        let link = link?;
        return number(link.rsplit(|byte| *byte == b'/').next()?);
    }
    let dir = dir.strip_suffix(b"/")?;
    match dir.strip_prefix(b"/proc/") {
        Some(pid) => number(pid),
        None => number(dir).filter(|_| link == Some(b"/proc")),
    }
}

/// A decimal number without a sign.
pub fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u32, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The decimal digits of `number` at the end of `buffer`.
pub fn digits(number: u32, buffer: &mut [u8; 10]) -> &[u8] {
    let (mut rest, mut at) = (number, buffer.len());
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &buffer[at..];
        }
    }
}

/// Whether a `prlimit` that was refused only reads the limits of another task.
pub fn only_reads_limits(pid: i32, resource: u32, new: usize, old: usize) -> bool {
    pid > 0 && (resource as usize) < RESOURCES && new == 0 && old != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn layouts() {
        assert_eq!(size_of::<PmScanArg>(), 96);
        assert_eq!(size_of::<PageRegion>(), 24);
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
        assert_eq!(offset_of!(PmScanArg, walk_end), 32);
        assert_eq!(offset_of!(PmScanArg, vec_len), 48);
        assert_eq!(offset_of!(PmScanArg, return_mask), 88);
        assert_eq!(offset_of!(PageRegion, categories), 16);
    }

    /// The scans of CRIU 4.1.1 and 4.2: kerndat.c's two probes, mem.c's guards, pagemap-cache.c's pages.
    #[test]
    fn only_the_list_of_pages_is_answered() {
        const PFNZERO_OR_FILE: u64 = 1 << 5 | 1 << 2;
        let pages = PmScanArg {
            size: 96,
            start: 0x1000,
            end: 0x9000,
            vec: 0x5555_0000,
            vec_len: 1000,
            category_inverted: PFNZERO_OR_FILE,
            category_mask: PFNZERO_OR_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | 1 << 7 | PAGE_IS_GUARD,
            ..Default::default()
        };
        assert!(lists_pages(&pages));
        assert!(!lists_pages(&PmScanArg { vec: 0, ..pages }));
        assert!(!lists_pages(&PmScanArg { vec_len: 0, ..pages }));
        assert!(!lists_pages(&PmScanArg { flags: 1, ..pages }), "one that changes something");
        let guards = PmScanArg {
            size: 96,
            end: 0x7fff_ffff_f000,
            vec: 0x5555_0000,
            vec_len: 1000,
            category_mask: PAGE_IS_GUARD,
            return_mask: PAGE_IS_GUARD,
            ..Default::default()
        };
        assert!(!lists_pages(&guards));
        assert!(!lists_pages(&PmScanArg { size: 96, ..Default::default() }), "the probe");
    }

    #[test]
    fn reads_of_pagemaps() {
        assert!(reads_pages(b"/proc/77/pagemap", 16));
        assert!(reads_pages(b"/77/pagemap", 4096), "of a /proc that is mounted nowhere");
        assert!(!reads_pages(b"/proc/77/pagemap", 8), "a probe");
        assert!(!reads_pages(b"/srv/pagemap-1.img", 4096));
        assert!(!reads_pages(b"/srv/mypagemap", 4096));
    }

    #[test]
    fn shared_memory() {
        for link in [&b"/memfd:x (deleted)"[..], b"/dev/zero (deleted)", b"/SYSV00000000 (deleted)"] {
            assert!(is_shared_memory(link));
        }
        for link in [&b"/dev/zero"[..], b"/srv/memfd:x", b"/dev/shm/x", b"", b"/anon_hugepage (deleted)"] {
            assert!(!is_shared_memory(link), "{link:?}");
        }
    }

    #[test]
    fn whose_smaps() {
        let proc = Some(&b"/proc"[..]);
        assert_eq!(smaps_of(b"smaps", Some(b"/proc/1234")), Some(1234));
        assert_eq!(smaps_of(b"smaps", Some(b"/1234")), Some(1234));
        assert_eq!(smaps_of(b"smaps", None), None, "in the working directory");
        assert_eq!(smaps_of(b"smaps", Some(b"/proc/self")), None);
        assert_eq!(smaps_of(b"smaps", Some(b"/proc/1234/task/99x")), None);
        assert_eq!(smaps_of(b"12/smaps", proc), Some(12));
        assert_eq!(smaps_of(b"12/smaps", Some(b"/srv")), None);
        assert_eq!(smaps_of(b"/proc/5/smaps", None), Some(5));
        assert_eq!(smaps_of(b"/proc/5/smaps", Some(b"/srv")), Some(5));
        for other in [
            &b"/proc/5/smaps_rollup"[..],
            b"/proc/self/smaps",
            b"/srv/5/smaps",
            b"maps",
            b"/proc//smaps",
            b"",
        ] {
            assert_eq!(smaps_of(other, proc), None, "{other:?}");
        }
    }

    #[test]
    fn numbers() {
        let mut buffer = [0; 10];
        for value in [0, 7, 10, 4_194_304, u32::MAX] {
            let text = value.to_string();
            assert_eq!(digits(value, &mut buffer), text.as_bytes());
            assert_eq!(number(text.as_bytes()), Some(value));
        }
        for bad in [&b""[..], b"-1", b"4294967296", b"1 ", b"x"] {
            assert_eq!(number(bad), None);
        }
    }

    #[test]
    fn limits_that_are_only_read() {
        assert!(only_reads_limits(77, 0, 0, 0x1000));
        assert!(!only_reads_limits(77, 0, 0x1000, 0x1000), "would be set, and must not seem to");
        assert!(!only_reads_limits(77, 0, 0, 0));
        assert!(!only_reads_limits(0, 0, 0, 0x1000), "one's own");
        assert!(!only_reads_limits(77, 16, 0, 0x1000));
    }
}
