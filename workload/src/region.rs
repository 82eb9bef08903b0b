//! A piece of memory of one kind, and what must be in each of its pages.

use crate::content::{Content, Entry, Unwritten};
use crate::kind::Kind;
use crate::random::mix;
use crate::report::Findings;
use crate::sys::memory::{self, Access, MADV_GUARD_INSTALL, Pages, Source, WORDS};
use crate::sys::{Failure, file};
use crate::table::Table;

/// How far back a page is compared with what it was before.
const HISTORY: u32 = 4096;

/// Where the pages are.
#[derive(Debug)]
pub enum Backing {
    /// Mapped.
    Mapped(Pages),
    /// Only in a descriptor, of so many pages.
    Descriptor(i32, usize),
}

/// Which pages of a shared region a process writes: those with this remainder.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Divisor.
    pub of: usize,
    /// Remainder.
    pub mine: usize,
}

/// A piece of memory.
#[derive(Debug)]
pub struct Region {
    /// Different from every other's.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub backing: Backing,
    /// What must be in it.
    pub table: Table,
    /// What it maps, if that is a descriptor or a segment.
    pub object: i32,
    /// Whether it is one mapping for sure: mremap(2) takes no more than one at a time.
    pub is_whole: bool,
    version: u32,
    share: Share,
}

impl Region {
    /// Makes one of `count` pages; it may have room for twice that later. `file` is needed by some kinds.
    pub fn new(number: u64, kind: Kind, count: usize, file: Option<i32>) -> Result<Self, Failure> {
        let mut object = -1;
        let pages = match kind {
            Kind::Thp => Pages::map_aligned(count)?,
            Kind::HugeTlb => Pages::map(Source::HugePool, count)?,
            Kind::SharedAnon => Pages::map(Source::Shared, count)?,
            Kind::Memfd | Kind::MemfdUnmapped => {
                object = file::memfd(count)?;
                if kind == Kind::MemfdUnmapped {
                    let backing = Backing::Descriptor(object, count);
                    return Self::with(number, kind, backing, Table::new(count, true)?, object);
                }
                Pages::map(Source::SharedFile(object), count)?
            }
            Kind::SysV => {
                object = memory::segment(count)?;
                memory::attach(object, count)?
            }
            Kind::PrivateFile | Kind::SharedFile => {
                object = file.ok_or(Failure { call: "mmap without a file", errno: libc::EBADF })?;
                let shared = kind == Kind::SharedFile;
                Pages::map(
                    if shared { Source::SharedFile(object) } else { Source::PrivateFile(object) },
                    count,
                )?
            }
            Kind::Heap => memory::heap(count)?,
            Kind::Brk => memory::grow_data(count)?,
            _ => Pages::map(Source::Private, count)?,
        };
        match kind {
            Kind::Thp => pages.advise("madvise huge", 0, count, libc::MADV_HUGEPAGE)?,
            Kind::Guard => {
                (0..count)
                    .filter(|&page| kind.is_guard(page))
                    .try_for_each(|page| pages.protect(page, 1, Access::None))?;
            }
            Kind::GuardMarkers => (0..count)
                .filter(|&page| kind.is_guard(page))
                .try_for_each(|page| pages.advise("madvise guard", page, 1, MADV_GUARD_INSTALL))?,
            Kind::ProtNone => pages.protect(0, count, Access::None)?,
            Kind::WriteOnly => pages.protect(0, count, Access::Write)?,
            Kind::Mlock => pages.lock()?,
            _ => {}
        }
        let table = Table::new(count * if kind == Kind::Anon { 2 } else { 1 }, kind.is_shared())?;
        let mut region = Self::with(number, kind, Backing::Mapped(pages), table, object)?;
        if kind == Kind::Heap {
            region.write_all()?;
        }
        Ok(region)
    }

    /// One in a stack; `memory` must be there as long as it.
    pub fn in_stack(number: u64, memory: &mut [u64]) -> Result<Self, Failure> {
        let pages = Pages::inside(memory);
        let table = Table::new(pages.count(), false)?;
        let mut region = Self::with(number, Kind::Stack, Backing::Mapped(pages), table, -1)?;
        region.write_all()?;
        Ok(region)
    }

    fn with(number: u64, kind: Kind, backing: Backing, table: Table, object: i32) -> Result<Self, Failure> {
        let version = mix(number) as u32;
        Ok(Self {
            number,
            kind,
            backing,
            table,
            object,
            is_whole: true,
            version,
            share: Share { of: 1, mine: 0 },
        })
    }

    /// After a fork the two sides count on from different versions, so that a page of one is never right in the other.
    pub fn part_from_parent(&mut self, share: Share, salt: u64) {
        self.version = mix(salt ^ self.number) as u32;
        self.share_out(share);
    }

    /// From now on this process writes its share of a shared region.
    pub fn share_out(&mut self, share: Share) {
        if self.kind.is_shared() {
            self.share = share;
        }
    }

    /// How many pages.
    pub fn count(&self) -> usize {
        match &self.backing {
            Backing::Mapped(pages) => pages.count(),
            Backing::Descriptor(_, count) => *count,
        }
    }

    /// Whether this process may write a page.
    pub fn is_mine(&self, page: usize) -> bool {
        page % self.share.of == self.share.mine && !self.kind.is_guard(page)
    }

    /// A page that this process may write, near `page`.
    pub fn mine_near(&self, page: usize) -> Option<usize> {
        (page..self.count()).chain(0..page).find(|&page| self.is_mine(page))
    }

    /// What a page must hold if `entry` is right.
    fn content_of(&self, page: usize, entry: Entry) -> Content {
        let unwritten = if self.kind.wants_file() { Unwritten::File } else { Unwritten::Zero };
        Content::of(self.number, page, entry, unwritten)
    }

    /// Where it is, as JSON; `fd` is -1 and `address` 0 where there is none.
    pub fn describe(&self) -> String {
        let (address, fd) = match &self.backing {
            Backing::Mapped(pages) => (pages.address(0), -1),
            Backing::Descriptor(descriptor, _) => (0, *descriptor),
        };
        let (kind, number, pages, table) = (self.kind, self.number, self.count(), self.table.place().0);
        format!(
            r#"{{"kind":"{kind}","region":{number},"pages":{pages},"address":{address},"fd":{fd},"table":{table}}}"#
        )
    }

    fn next_version(&mut self) -> u32 {
        self.version = self.version.wrapping_add(1);
        self.version
    }

    /// Writes a whole page.
    pub fn write(&mut self, page: usize) -> Result<(), Failure> {
        let entry = Entry::written(self.next_version());
        let content = self.content_of(page, entry);
        match &self.backing {
            Backing::Descriptor(descriptor, _) => file::write_page(*descriptor, page, &content.words())?,
            Backing::Mapped(pages) => accessible(self.kind, pages, page, 1, || {
                (0..WORDS).for_each(|word| pages.set(page, word, content.word(word)));
                Ok(())
            })?,
        }
        self.table.set(page, entry);
        Ok(())
    }

    /// Writes a whole page of what is mapped through its descriptor.
    pub fn write_through(&mut self, page: usize) -> Result<(), Failure> {
        let entry = Entry::written(self.next_version());
        file::write_page(self.object, page, &self.content_of(page, entry).words())?;
        self.table.set(page, entry);
        Ok(())
    }

    /// Writes one word of a page.
    pub fn poke(&mut self, page: usize) -> Result<(), Failure> {
        let old = self.table.get(page);
        let Backing::Mapped(pages) = &self.backing else { return self.write(page) };
        if old.may_be_zero() {
            // what the word would be written into is not known
            return self.write(page);
        }
        let version = self.version.wrapping_add(1);
        let entry = old.poked(version);
        let (before, after) = (self.content_of(page, old), self.content_of(page, entry));
        accessible(self.kind, pages, page, 1, || {
            for (word, value) in before.unpoked().into_iter().chain(after.poked()) {
                pages.set(page, word, value);
            }
            Ok(())
        })?;
        self.version = version;
        self.table.set(page, entry);
        Ok(())
    }

    /// Reads pages of the file, from page `from` on, into it.
    pub fn read(&mut self, descriptor: i32, from: usize, first: usize, count: usize) -> Result<(), Failure> {
        let Backing::Mapped(pages) = &self.backing else { return Ok(()) };
        accessible(self.kind, pages, first, count, || {
            file::read_into("pread into memory", descriptor, from, pages, first, count)
        })?;
        (0..count).for_each(|page| self.table.set(first + page, Entry::read(from + page)));
        Ok(())
    }

    /// Writes every page that is this process's.
    pub fn write_all(&mut self) -> Result<(), Failure> {
        (0..self.count())
            .filter(|&page| self.is_mine(page))
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|page| self.write(page))
    }

    /// Compares every page with what it must hold, and the table with its checksum.
    pub fn verify(&self, findings: &mut Findings) {
        if !self.table.is_sound() {
            let (address, count) = self.table.place();
            findings.bad_table(self.kind, self.number, address, count);
        }
        match &self.backing {
            Backing::Descriptor(descriptor, count) => {
                for page in 0..*count {
                    match file::read_page(*descriptor, page) {
                        Ok(words) => self.verify_page(page, 0, |word| words[word], findings),
                        Err(failure) => findings.failure(failure),
                    }
                }
            }
            Backing::Mapped(pages) => {
                if self.kind == Kind::ProtNone && pages.is_readable(0) {
                    findings.bad_page(self.kind, self.number, 0, pages.address(0), "what nobody may read");
                }
                let compared = accessible(self.kind, pages, 0, pages.count(), || {
                    (0..pages.count()).for_each(|page| self.verify_mapped(pages, page, findings));
                    Ok(())
                });
                if let Err(failure) = compared {
                    findings.failure(failure);
                }
            }
        }
    }

    pub fn verify_mapped(&self, pages: &Pages, page: usize, findings: &mut Findings) {
        if self.kind.is_guard(page) {
            findings.pages += 1;
            if pages.is_readable(page) {
                findings.bad_page(self.kind, self.number, page, pages.address(page), "guard is readable");
            }
            return;
        }
        self.verify_page(page, pages.address(page), |word| pages.get(page, word), findings);
    }

    fn verify_page(&self, page: usize, address: usize, read: impl Fn(usize) -> u64, findings: &mut Findings) {
        findings.pages += 1;
        let entry = self.table.get(page);
        let Some(word) = self.content_of(page, entry).first_difference(&read) else { return };
        // the kernel may take a page between two looks at it, but not give it back
        if entry.may_be_zero() && Content::ZERO.first_difference(&read).is_none() {
            return;
        }
        findings.bad_page(
            self.kind,
            self.number,
            page,
            address,
            &self.what_it_holds(page, entry, word, read),
        );
    }

    /// What a bad page holds instead.
    fn what_it_holds(&self, page: usize, entry: Entry, word: usize, read: impl Fn(usize) -> u64) -> String {
        if Content::ZERO.first_difference(&read).is_none() {
            return "zero".into();
        }
        if Content::of_file(page).first_difference(&read).is_none() {
            return "the file's page".into();
        }
        let content = self.content_of(page, entry);
        let different = (0..WORDS).filter(|&word| read(word) != content.word(word)).count();
        if different <= 2 {
            return format!("{different} words differ, the first at {word}: an older poke?");
        }
        for back in 1..=HISTORY {
            let older = self.content_of(page, Entry::written(self.version.wrapping_sub(back)));
            let same = (0..8).filter(|&word| read(word) == older.word(word)).count();
            if same >= 6 {
                return format!("what was written {back} writes of this region ago");
            }
        }
        format!("{different} words differ, the first at {word}: {:#018x}", read(word))
    }
}

/// Does something with pages that may have to be made accessible for it.
fn accessible(
    kind: Kind,
    pages: &Pages,
    first: usize,
    count: usize,
    act: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    if kind != Kind::ProtNone {
        return act();
    }
    pages.protect(first, count, Access::Both)?;
    let done = act();
    pages.protect(first, count, Access::None)?;
    done
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod tests;
