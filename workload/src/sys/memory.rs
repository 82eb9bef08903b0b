//! Mappings, and the words in them.

use super::{Failure, checked};
use std::alloc::Layout;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Words of a page.
pub const WORDS: usize = PAGE / 8;
/// Bytes of a huge page on x86-64.
pub const HUGE: usize = 2 << 20;

/// `madvise` of Linux 6.1 and later: make huge pages now.
pub const MADV_COLLAPSE: i32 = 25;
/// `madvise` of Linux 6.13 and later: pages whose access is a fault, without a mapping of their own.
pub const MADV_GUARD_INSTALL: i32 = 102;

/// Held alone by who leaves a hole for a moment: another thread's mapping would get it, and be mapped over.
static LAYOUT: RwLock<()> = RwLock::new(());

/// What may be done with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Reading.
    Read,
    /// Writing; x86-64 allows reading all the same.
    Write,
    /// Both.
    Both,
}

impl Access {
    fn bits(self) -> i32 {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::Write => libc::PROT_WRITE,
            Self::Both => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// What a mapping is of.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// Private anonymous memory.
    Private,
    /// Anonymous memory that children share.
    Shared,
    /// Private huge pages of the pool.
    HugePool,
    /// A descriptor from its beginning, copied on write.
    PrivateFile(i32),
    /// A descriptor from its beginning.
    SharedFile(i32),
}

/// Pages of this process. Its owner is the only one to unmap or move them, and takes a new `Pages` for it.
#[derive(Debug)]
pub struct Pages {
    address: usize,
    count: usize,
}

impl Pages {
    /// Maps `count` pages where the kernel likes.
    pub fn map(source: Source, count: usize) -> Result<Self, Failure> {
        map_at("mmap", 0, source, count)
    }

    /// Maps `count` pages of private memory at a multiple of 2 MiB, where huge pages are possible.
    pub fn map_aligned(count: usize) -> Result<Self, Failure> {
        let room = reserve(count * PAGE + HUGE)?;
        let address = room.next_multiple_of(HUGE);
        unmap_at(room, address - room)?;
        unmap_at(address + count * PAGE, room + HUGE - address)?;
        map_at("mmap aligned", address, Source::Private, count)
    }

    /// Pages inside a stack or another thing that this program has anyway; `memory` must outlive their use.
    pub fn inside(memory: &mut [u64]) -> Self {
        let start = memory.as_mut_ptr() as usize;
        let address = start.next_multiple_of(PAGE);
        Self { address, count: (start + memory.len() * 8 - address) / PAGE }
    }

    /// Maps anew over itself: what was there is gone.
    pub fn replace(&mut self, source: Source) -> Result<(), Failure> {
        map_at("mmap over", self.address, source, self.count).map(|_| ())
    }

    /// Maps pages of itself anew; private anonymous memory only.
    pub fn punch(&mut self, first: usize, count: usize) -> Result<(), Failure> {
        let _alone = LAYOUT.write().unwrap_or_else(PoisonError::into_inner);
        unmap_at(self.at(first, count), count * PAGE)?;
        map_with("mmap into a hole", self.at(first, count), libc::MAP_FIXED_NOREPLACE, Source::Private, count)
            .map(|_| ())
    }

    /// Unmaps them.
    pub fn unmap(self) -> Result<(), Failure> {
        unmap_at(self.address, self.count * PAGE)
    }

    /// Moves them to an address where nothing was, which is a multiple of 2 MiB if `aligned`.
    pub fn relocate(&mut self, aligned: bool) -> Result<(), Failure> {
        let bytes = self.count * PAGE;
        let room = reserve(bytes + if aligned { HUGE } else { 0 })?;
        let to = if aligned { room.next_multiple_of(HUGE) } else { room };
        if aligned {
            unmap_at(room, to - room)?;
            unmap_at(to + bytes, room + HUGE - to)?;
        }
        // SAFETY: the new place was reserved just now and is nobody else's; the old one is `self`'s.
        let moved = unsafe {
            libc::mremap(
                self.address as *mut _,
                bytes,
                bytes,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                to as *mut libc::c_void,
            )
        };
        if moved == libc::MAP_FAILED {
            let failure = Failure::last("mremap move");
            // a part may have gone there: nothing is undone, the caller gives all of it up
            return Err(failure);
        }
        self.address = to;
        Ok(())
    }

    /// Makes it longer or shorter; it may move.
    pub fn resize(&mut self, count: usize) -> Result<(), Failure> {
        let _no_holes = LAYOUT.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: without MREMAP_FIXED the kernel takes room that nobody has.
        let moved = unsafe {
            libc::mremap(self.address as *mut _, self.count * PAGE, count * PAGE, libc::MREMAP_MAYMOVE)
        };
        if moved == libc::MAP_FAILED {
            return Err(Failure::last("mremap resize"));
        }
        *self = Self { address: moved as usize, count };
        Ok(())
    }

    /// `madvise` on some of them; `call` is its name in a failure.
    pub fn advise(&self, call: &'static str, first: usize, count: usize, advice: i32) -> Result<(), Failure> {
        // SAFETY: the range is `self`'s, whose words are only read and written atomically.
        let done = unsafe { libc::madvise(self.at(first, count) as *mut _, count * PAGE, advice) };
        checked(call, done).map(|_| ())
    }

    /// `mprotect` on some of them.
    pub fn protect(&self, first: usize, count: usize, access: Access) -> Result<(), Failure> {
        // SAFETY: as above.
        let done = unsafe { libc::mprotect(self.at(first, count) as *mut _, count * PAGE, access.bits()) };
        checked("mprotect", done).map(|_| ())
    }

    /// `mlock`.
    pub fn lock(&self) -> Result<(), Failure> {
        // SAFETY: it changes no content.
        checked("mlock", unsafe { libc::mlock(self.address as *const _, self.count * PAGE) }).map(|_| ())
    }

    /// The lines of `/proc/self/smaps` that tell the range and the flags of each mapping that they lie in, proc_pid_smaps(5).
    pub fn mappings(&self) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let end = self.address + self.count * PAGE;
        let mut is_inside = false;
        let mut lines = Vec::new();
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let address = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((from, to)) = range.and_then(|(from, to)| Some((address(from)?, address(to)?))) {
                is_inside = from < end && to > self.address;
                if is_inside {
                    lines.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
                }
            } else if is_inside && line.starts_with("VmFlags") {
                lines.push(line.trim_end().into());
            }
        }
        lines
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Address of a page.
    pub fn address(&self, page: usize) -> usize {
        self.at(page, 1)
    }

    fn at(&self, first: usize, count: usize) -> usize {
        assert!(first + count <= self.count, "{first}+{count} of {} pages", self.count);
        self.address + first * PAGE
    }

    /// A word of a page.
    pub fn word(&self, page: usize, word: usize) -> &AtomicU64 {
        assert!(word < WORDS);
        let address = self.at(page, 1) + word * 8;
        // SAFETY: it is inside the mapping, aligned, and nobody accesses it but atomically.
        unsafe { AtomicU64::from_ptr(address as *mut u64) }
    }

    /// Reads a word of a page.
    pub fn get(&self, page: usize, word: usize) -> u64 {
        self.word(page, word).load(Ordering::Relaxed)
    }

    /// Writes a word of a page.
    pub fn set(&self, page: usize, word: usize, value: u64) {
        self.word(page, word).store(value, Ordering::Relaxed);
    }

    /// Whether a page can be read, without a fault when not: a system call looks at it.
    pub fn is_readable(&self, page: usize) -> bool {
        // SAFETY: the kernel copies a path from there, or fails.
        let looked = unsafe { libc::access(self.at(page, 1) as *const libc::c_char, libc::F_OK) };
        looked == 0 || Failure::last("access").errno != libc::EFAULT
    }
}

fn map_at(call: &'static str, address: usize, source: Source, count: usize) -> Result<Pages, Failure> {
    let _no_holes = LAYOUT.read().unwrap_or_else(PoisonError::into_inner);
    map_with(call, address, if address == 0 { 0 } else { libc::MAP_FIXED }, source, count)
}

fn map_with(
    call: &'static str,
    address: usize,
    fixed: i32,
    source: Source,
    count: usize,
) -> Result<Pages, Failure> {
    let (flags, descriptor) = match source {
        Source::Private => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        Source::Shared => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
        Source::HugePool => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, -1),
        Source::PrivateFile(descriptor) => (libc::MAP_PRIVATE, descriptor),
        Source::SharedFile(descriptor) => (libc::MAP_SHARED, descriptor),
    };
    // SAFETY: a fixed address is of a mapping that the caller owns, or reserved.
    let mapped = unsafe {
        libc::mmap(address as *mut _, count * PAGE, Access::Both.bits(), flags | fixed, descriptor, 0)
    };
    if mapped == libc::MAP_FAILED {
        return Err(Failure::last(call));
    }
    Ok(Pages { address: mapped as usize, count })
}

/// Room in the address space that a mapping is about to take.
fn reserve(bytes: usize) -> Result<usize, Failure> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let _no_holes = LAYOUT.read().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: a new mapping where the kernel likes.
    let room = unsafe { libc::mmap(null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    if room == libc::MAP_FAILED { Err(Failure::last("mmap room")) } else { Ok(room as usize) }
}

fn unmap_at(address: usize, bytes: usize) -> Result<(), Failure> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the range is the caller's.
    checked("munmap", unsafe { libc::munmap(address as *mut _, bytes) }).map(|_| ())
}

/// Pages of the heap, with unknown content.
pub fn heap(count: usize) -> Result<Pages, Failure> {
    // SAFETY: the layout is not of size zero, and valid.
    let address = unsafe { std::alloc::alloc(heap_layout(count)) };
    if address.is_null() {
        return Err(Failure { call: "malloc", errno: libc::ENOMEM });
    }
    Ok(Pages { address: address as usize, count })
}

/// Gives pages of [`heap`] back.
pub fn free_heap(pages: Pages) {
    // SAFETY: `heap` gave them, with this layout, and they are given up here.
    unsafe { std::alloc::dealloc(pages.address as *mut u8, heap_layout(pages.count)) };
}

fn heap_layout(count: usize) -> Layout {
    Layout::from_size_align(count.max(1) * PAGE, PAGE).unwrap_or(Layout::new::<[u64; WORDS]>())
}

/// Makes `malloc` take mappings of their own for blocks from `bytes` on, for good: once the end of the data segment was
/// moved by another than itself, glibc fails to find room for big blocks there.
pub fn keep_out_of_heap(bytes: i32) {
    // SAFETY: a plain setting.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
}

/// Moves the end of the data segment up by whole pages; no other thread may use the heap meanwhile.
pub fn grow_data(count: usize) -> Result<Pages, Failure> {
    // SAFETY: glibc's malloc copes with a foreign sbrk; the new pages are nobody else's.
    let end = unsafe { libc::sbrk(0) } as usize;
    let skip = end.next_multiple_of(PAGE) - end;
    // SAFETY: as above.
    let old = unsafe { libc::sbrk((skip + count * PAGE) as isize) };
    if old as isize == -1 {
        return Err(Failure::last("brk"));
    }
    Ok(Pages { address: old as usize + skip, count })
}

/// A System V segment; returns its number. It stays until [`remove_segment`].
pub fn segment(count: usize) -> Result<i32, Failure> {
    // SAFETY: a new segment.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, count * PAGE, libc::IPC_CREAT | 0o600) };
    checked("shmget", id).map(|_| id)
}

/// Attaches a segment of `count` pages.
pub fn attach(id: i32, count: usize) -> Result<Pages, Failure> {
    let _no_holes = LAYOUT.read().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the kernel takes room that nobody has.
    let address = unsafe { libc::shmat(id, null_mut(), 0) };
    if address as isize == -1 {
        return Err(Failure::last("shmat"));
    }
    Ok(Pages { address: address as usize, count })
}

/// Detaches a segment.
pub fn detach(pages: Pages) -> Result<(), Failure> {
    // SAFETY: `attach` gave it, and it is given up here.
    checked("shmdt", unsafe { libc::shmdt(pages.address as *const _) }).map(|_| ())
}

/// Removes a segment once nobody has it attached.
pub fn remove_segment(id: i32) -> Result<(), Failure> {
    // SAFETY: no memory of ours is passed.
    checked("shmctl", unsafe { libc::shmctl(id, libc::IPC_RMID, null_mut()) }).map(|_| ())
}
