//! The kinds of memory that there are.

use std::fmt;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory.
    Anon,
    /// The same at a multiple of 2 MiB, with huge pages wanted.
    Thp,
    /// A private mapping of a file.
    PrivateFile,
    /// Blocks of `malloc`.
    Heap,
    /// Data segment above the heap.
    Brk,
    /// A buffer in a thread's stack.
    Stack,
    /// Every fourth page is PROT_NONE, as a mapping of its own.
    Guard,
    /// Data in pages that nobody may access.
    ProtNone,
    /// Locked in memory.
    Mlock,
    /// PROT_WRITE without PROT_READ.
    WriteOnly,
    /// Anonymous memory that the processes share.
    SharedAnon,
    /// A memfd that all map, also written by pwrite(2).
    Memfd,
    /// A memfd that nobody maps.
    MemfdUnmapped,
    /// A System V segment.
    SysV,
    /// Private pages of the huge page pool.
    HugeTlb,
    /// Every fourth page is a guard region of `MADV_GUARD_INSTALL`.
    GuardMarkers,
    /// A shared mapping of a file.
    SharedFile,
}

impl Kind {
    /// All of them with their names.
    pub const ALL: [(Self, &str); 17] = [
        (Self::Anon, "anon"),
        (Self::Thp, "thp"),
        (Self::PrivateFile, "private-file"),
        (Self::Heap, "heap"),
        (Self::Brk, "brk"),
        (Self::Stack, "stack"),
        (Self::Guard, "guard"),
        (Self::ProtNone, "protnone"),
        (Self::Mlock, "mlock"),
        (Self::WriteOnly, "writeonly"),
        (Self::SharedAnon, "shared-anon"),
        (Self::Memfd, "memfd"),
        (Self::MemfdUnmapped, "memfd-unmapped"),
        (Self::SysV, "sysv"),
        (Self::HugeTlb, "hugetlb"),
        (Self::GuardMarkers, "guard-markers"),
        (Self::SharedFile, "shared-file"),
    ];

    /// The kind of a name.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, of)| *of == name);
        found.map(|(kind, _)| *kind).ok_or_else(|| {
            format!(
                "there is no kind of memory `{name}`; there are {}",
                Self::ALL.map(|(_, name)| name).join(", ")
            )
        })
    }

    /// Whether every process sees what one writes.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::SharedAnon | Self::Memfd | Self::MemfdUnmapped | Self::SysV | Self::SharedFile)
    }

    /// Whether it needs the file.
    pub fn wants_file(self) -> bool {
        matches!(self, Self::PrivateFile | Self::SharedFile)
    }

    /// Whether a page of it is a guard, whose access must fail.
    pub fn is_guard(self, page: usize) -> bool {
        matches!(self, Self::Guard | Self::GuardMarkers) && page.is_multiple_of(4)
    }

    /// Whether it is private anonymous memory whose pages the program may give up and take anew.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Anon | Self::Thp)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}
