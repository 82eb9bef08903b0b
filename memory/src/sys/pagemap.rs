//! /proc/PID/pagemap and its PAGEMAP_SCAN ioctl: include/uapi/linux/fs.h, Documentation/admin-guide/mm/pagemap.rst.

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// What a page can be, by bit (`PAGE_IS_*`).
pub(crate) mod category {
    /// `PAGE_IS_WPALLOWED`: its mapping is registered for asynchronous write protection.
    pub(crate) const WPALLOWED: u64 = 1 << 0;
    /// `PAGE_IS_WRITTEN`: it is not write-protected.
    pub(crate) const WRITTEN: u64 = 1 << 1;
    /// `PAGE_IS_FILE`: it is the page cache's.
    pub(crate) const FILE: u64 = 1 << 2;
    /// `PAGE_IS_PRESENT`.
    pub(crate) const PRESENT: u64 = 1 << 3;
    /// `PAGE_IS_SWAPPED`: swapped out, or a marker that looks like it.
    pub(crate) const SWAPPED: u64 = 1 << 4;
    /// `PAGE_IS_PFNZERO`: the kernel's page of zeroes.
    pub(crate) const PFNZERO: u64 = 1 << 5;
    /// `PAGE_IS_GUARD`, since 6.15.
    pub(crate) const GUARD: u64 = 1 << 8;
}

/// Bits of an eight-byte entry of /proc/PID/pagemap.
pub(crate) mod entry {
    /// Soft-dirty.
    pub(crate) const SOFT_DIRTY: u64 = 1 << 55;
    /// Mapped by this address space only.
    pub(crate) const EXCLUSIVE: u64 = 1 << 56;
    /// A guard page, since 6.15.
    pub(crate) const GUARD: u64 = 1 << 58;
    /// Page cache, or shared anonymous memory.
    pub(crate) const FILE: u64 = 1 << 61;
    /// Swapped out, or a marker.
    pub(crate) const SWAPPED: u64 = 1 << 62;
    /// Present.
    pub(crate) const PRESENT: u64 = 1 << 63;
    /// The page frame number of a present page.
    pub(crate) const FRAME: u64 = (1 << 55) - 1;
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`: consecutive pages of the same categories.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Region {
    /// First address.
    pub(crate) start: u64,
    /// Behind the last.
    pub(crate) end: u64,
    /// Those asked for in [`Query::returned`].
    pub(crate) categories: u64,
}

/// Which pages to report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Query {
    /// `PM_SCAN_WP_MATCHING`: write-protects what it reports.
    pub(crate) protect: bool,
    /// `PM_SCAN_CHECK_WPASYNC`: EPERM if a mapping in the range is not registered.
    pub(crate) check: bool,
    /// Categories to negate before they are compared.
    pub(crate) inverted: u64,
    /// All of these are needed.
    pub(crate) all: u64,
    /// At least one of these is needed, unless there are none.
    pub(crate) any: u64,
    /// These are reported.
    pub(crate) returned: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);

/// Scans `start..end` until `regions` is full. Gives how many regions there are and the address behind the last page that
/// was looked at.
pub(crate) fn scan(
    pagemap: &File,
    start: u64,
    end: u64,
    query: &Query,
    regions: &mut [Region],
) -> Result<(usize, u64), Errno> {
    let mut argument = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: u64::from(query.protect) | u64::from(query.check) << 1,
        start,
        end,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: query.inverted,
        category_mask: query.all,
        category_anyof_mask: query.any,
        return_mask: query.returned,
    };
    // SAFETY: the argument has the kernel's layout (checked by a test); it writes at most `vec_len` regions to `vec`, which
    // is `regions`, mutably borrowed for the call.
    let count = unsafe { pagemap_scan(pagemap.as_raw_fd(), &mut argument) }?;
    Ok((count as usize, argument.walk_end))
}

/// A page of ours that is the kernel's page of zeroes, as long as it lives.
pub(crate) struct ZeroPage(*mut libc::c_void);

/// Maps a page and reads it.
pub(crate) fn zero_page() -> Option<ZeroPage> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping where the kernel likes.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0) };
    (page != libc::MAP_FAILED).then(|| {
        // SAFETY: the page is mapped readable.
        unsafe { page.cast::<u8>().read_volatile() };
        ZeroPage(page)
    })
}

impl ZeroPage {
    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for ZeroPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `zero_page`, and nobody has a reference into it.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<PmScanArg>(), 96);
        assert_eq!(size_of::<Region>(), 24);
    }
}
