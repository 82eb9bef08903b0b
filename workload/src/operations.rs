//! What a worker does to memory. Every change is noted in the region's table once it is done.

use crate::content::Entry;
use crate::kind::Kind;
use crate::random::{Random, mix};
use crate::region::{Backing, Region};
use crate::report::Findings;
use crate::sys::memory::{self, Access, MADV_COLLAPSE, Source};
use crate::sys::{Failure, process};
use std::hint::black_box;
use std::time::Duration;

/// The file that pages are read from.
#[derive(Clone, Copy, Debug)]
pub struct Files {
    /// Read through the page cache.
    pub buffered: i32,
    /// The same past the page cache, if the file system can.
    pub direct: Option<i32>,
    /// How many pages it has.
    pub pages: usize,
}

/// An operation, and out of how many thousands it is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Write,
    Poke,
    Sweep,
    Read,
    ReadDirect,
    Look,
    DontNeed,
    Free,
    Replace,
    Renew,
    Punch,
    Move,
    Resize,
    Protect,
    Collapse,
    WriteThrough,
    Deep,
    Exec,
    Sleep,
}

/// Names for the report, and weights.
const OPERATIONS: [(Operation, &str, usize); 19] = [
    (Operation::Write, "write", 5000),
    (Operation::Poke, "poke", 9000),
    (Operation::Sweep, "sweep", 400),
    (Operation::Read, "read", 800),
    (Operation::ReadDirect, "read-direct", 800),
    (Operation::Look, "look", 1000),
    (Operation::DontNeed, "dontneed", 400),
    (Operation::Free, "free", 200),
    (Operation::Replace, "mmap-over", 80),
    (Operation::Renew, "munmap-mmap", 80),
    (Operation::Punch, "punch", 100),
    (Operation::Move, "mremap-move", 150),
    (Operation::Resize, "mremap-resize", 100),
    (Operation::Protect, "mprotect", 200),
    (Operation::Collapse, "collapse", 60),
    (Operation::WriteThrough, "pwrite", 300),
    (Operation::Deep, "deep-stack", 200),
    (Operation::Exec, "exec", 1),
    (Operation::Sleep, "sleep", 20),
];

/// What one thread owns and does.
#[derive(Debug)]
pub struct Worker {
    /// Its memory.
    pub regions: Vec<Region>,
    /// Its choices.
    pub random: Random,
    /// What failed or was found bad on the way, since the process began.
    pub found: Findings,
    /// What it reads from.
    pub files: Files,
    counts: [u64; OPERATIONS.len()],
}

impl Worker {
    /// A worker that has done nothing yet.
    pub fn new(regions: Vec<Region>, seed: u64, files: Files) -> Self {
        let counts = [0; OPERATIONS.len()];
        Self { regions, random: Random::new(seed), found: Findings::default(), files, counts }
    }

    /// In a new process it has done nothing yet, either.
    pub fn begin_anew(&mut self, seed: u64) {
        *self = Self::new(std::mem::take(&mut self.regions), seed, self.files);
    }

    /// What it has done, added to `sums`.
    pub fn add_counts(&self, sums: &mut Vec<(&'static str, u64)>) {
        sums.resize(OPERATIONS.len(), ("", 0));
        for (sum, ((_, name, _), count)) in sums.iter_mut().zip(OPERATIONS.iter().zip(self.counts)) {
            *sum = (name, sum.1 + count);
        }
    }

    /// Does one thing, out of all that there are.
    pub fn chaos(&mut self) {
        let operation = self.choose();
        let number = self.random.below(self.regions.len());
        let done = match operation {
            Operation::Deep => {
                if !deep(self.random.below(40), self.random.next()) {
                    self.found.bad_page(Kind::Stack, 0, 0, 0, "another frame");
                }
                Ok(true)
            }
            Operation::Exec => process::exec_self("nothing").map(|()| true),
            Operation::Sleep => {
                std::thread::sleep(Duration::from_micros(500));
                Ok(true)
            }
            _ => self.on_region(number, operation),
        };
        match done {
            Ok(true) => self.count(operation),
            Ok(false) => self.gentle_on(number),
            Err(failure) => self.found.failure(failure),
        }
    }

    /// Writes a page or a word of one.
    pub fn gentle(&mut self) {
        let number = self.random.below(self.regions.len());
        self.gentle_on(number);
    }

    fn gentle_on(&mut self, number: usize) {
        let operation = if self.random.one_in(4) { Operation::Write } else { Operation::Poke };
        match self.on_region(number, operation) {
            Ok(_) => self.count(operation),
            Err(failure) => self.found.failure(failure),
        }
    }

    fn count(&mut self, operation: Operation) {
        self.counts[operation as usize] += 1;
    }

    fn choose(&mut self) -> Operation {
        let total = OPERATIONS.iter().map(|(_, _, weight)| weight).sum();
        let mut left = self.random.below(total);
        for (operation, _, weight) in OPERATIONS {
            if left < weight {
                return operation;
            }
            left -= weight;
        }
        Operation::Poke
    }

    /// Does something to a region; `false` when that cannot be done to one of its kind.
    fn on_region(&mut self, number: usize, operation: Operation) -> Result<bool, Failure> {
        let (random, files, found) = (&mut self.random, self.files, &mut self.found);
        let region = &mut self.regions[number];
        let (kind, count) = (region.kind, region.count());
        if region.mine_near(0).is_none() {
            return Ok(true);
        }
        match operation {
            Operation::Write => {
                for _ in 0..=random.below(4) {
                    with_page(region, random, Region::write)?;
                }
            }
            Operation::Poke => {
                for _ in 0..=random.below(8) {
                    with_page(region, random, Region::poke)?;
                }
            }
            Operation::Sweep => {
                let (first, length) = random.range(count, 64);
                for page in first..first + length {
                    if region.is_mine(page) {
                        region.poke(page)?;
                    }
                }
            }
            Operation::Read | Operation::ReadDirect => {
                let descriptor =
                    if operation == Operation::Read { Some(files.buffered) } else { files.direct };
                let Some(descriptor) = descriptor else { return Ok(false) };
                let most = if random.one_in(20) { 256 } else { 8 };
                let (first, length) = span(region, random, most.min(files.pages));
                let from = random.below(files.pages - length + 1);
                region.read(descriptor, from, first, length)?;
            }
            Operation::Look => look(region, random.below(count), found),
            Operation::WriteThrough if kind == Kind::Memfd => {
                with_page(region, random, Region::write_through)?
            }
            _ => {
                let Region { backing: Backing::Mapped(pages), table, object, is_whole, .. } = region else {
                    return Ok(false);
                };
                let (first, length) = random.range(count, 128);
                match operation {
                    Operation::DontNeed if kind.is_plain() || kind == Kind::PrivateFile => {
                        pages.advise("madvise dontneed", first, length, libc::MADV_DONTNEED)?;
                        table.set_all(first, length, Entry::NEW);
                    }
                    Operation::DontNeed if kind.is_shared() => {
                        pages.advise("madvise dontneed", first, length, libc::MADV_DONTNEED)?;
                    }
                    Operation::Free if kind.is_plain() => {
                        pages.advise("madvise free", first, length, libc::MADV_FREE)?;
                        (first..first + length).for_each(|page| table.set(page, table.get(page).or_zero()));
                    }
                    Operation::Replace if kind.is_plain() => {
                        pages.replace(Source::Private)?;
                        *is_whole = true;
                        table.set_all(0, count, Entry::NEW);
                        huge_again(kind, pages)?;
                    }
                    Operation::Replace if kind == Kind::PrivateFile => {
                        pages.replace(Source::PrivateFile(*object))?;
                        table.set_all(0, count, Entry::NEW);
                    }
                    Operation::Punch if kind.is_plain() => {
                        pages.punch(first, length)?;
                        // what was moved once does not merge with what is mapped at its place
                        *is_whole = false;
                        table.set_all(first, length, Entry::NEW);
                    }
                    Operation::Move if may_move(kind) && *is_whole => {
                        if let Err(failure) = pages.relocate(kind == Kind::Thp) {
                            found.failure_in(failure, &pages.mappings());
                            // what is where now is not known
                            renew(region, false)?;
                        }
                    }
                    Operation::Resize if kind == Kind::Anon && *is_whole => {
                        let wanted = 1 + random.below(table.entries());
                        if let Err(failure) = pages.resize(wanted) {
                            found.failure_in(failure, &pages.mappings());
                            renew(region, false)?;
                        } else if wanted < count {
                            table.set_all(wanted, count - wanted, Entry::NEW);
                        }
                    }
                    Operation::Renew
                        if kind.is_plain()
                            || matches!(kind, Kind::PrivateFile | Kind::Heap | Kind::Memfd | Kind::SysV) =>
                    {
                        renew(region, true)?;
                    }
                    Operation::Protect if may_move(kind) => {
                        pages.protect(first, length, Access::Read)?;
                        black_box(pages.get(first, 0));
                        pages.protect(first, length, Access::Both)?;
                    }
                    Operation::Collapse if kind == Kind::Thp => {
                        // the kernel may find no room, or a page that cannot be moved
                        let _ = pages.advise("madvise collapse", 0, count, MADV_COLLAPSE);
                    }
                    _ => return Ok(false),
                }
            }
        }
        Ok(true)
    }
}

fn with_page(
    region: &mut Region,
    random: &mut Random,
    act: impl FnOnce(&mut Region, usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (page, _) = span(region, random, 1);
    act(region, page)
}

/// Pages that this process may write: first, how many.
fn span(region: &Region, random: &mut Random, most: usize) -> (usize, usize) {
    let (first, length) = random.range(region.count(), most);
    if (first..first + length).all(|page| region.is_mine(page)) {
        return (first, length);
    }
    (region.mine_near(first).unwrap_or(first), 1)
}

/// Compares a page while everything goes on.
fn look(region: &Region, page: usize, found: &mut Findings) {
    if region.is_mine(page)
        && let Backing::Mapped(pages) = &region.backing
        && region.kind != Kind::ProtNone
    {
        let mut findings = Findings::default();
        region.verify_mapped(pages, page, &mut findings);
        findings.pages = 0;
        found.add(&findings);
    }
}

fn may_move(kind: Kind) -> bool {
    kind.is_plain() || matches!(kind, Kind::PrivateFile | Kind::SharedAnon | Kind::Memfd)
}

fn huge_again(kind: Kind, pages: &memory::Pages) -> Result<(), Failure> {
    match kind {
        Kind::Thp => pages.advise("madvise huge", 0, pages.count(), libc::MADV_HUGEPAGE),
        _ => Ok(()),
    }
}

/// Unmaps a region and maps it anew, elsewhere as likely as not. Without `unmap` what was there stays where it is.
fn renew(region: &mut Region, unmap: bool) -> Result<(), Failure> {
    let (kind, count, object) = (region.kind, region.count(), region.object);
    let new = match kind {
        Kind::Thp => memory::Pages::map_aligned(count),
        Kind::PrivateFile => memory::Pages::map(Source::PrivateFile(object), count),
        Kind::Memfd => memory::Pages::map(Source::SharedFile(object), count),
        Kind::SysV => memory::attach(object, count),
        Kind::Heap => memory::heap(count),
        Kind::SharedAnon => return Ok(()),
        _ => memory::Pages::map(Source::Private, count),
    }?;
    huge_again(kind, &new)?;
    region.is_whole = true;
    if let Backing::Mapped(old) = std::mem::replace(&mut region.backing, Backing::Mapped(new))
        && unmap
    {
        match kind {
            Kind::SysV => memory::detach(old)?,
            Kind::Heap => memory::free_heap(old),
            _ => old.unmap()?,
        }
    }
    if kind == Kind::Heap {
        return region.write_all();
    }
    if !kind.is_shared() {
        region.table.set_all(0, region.table.entries(), Entry::NEW);
    }
    Ok(())
}

/// Goes `depth` frames of 8 KiB down the stack, stays there a little, and comes back; false when a frame has changed.
fn deep(depth: usize, seed: u64) -> bool {
    let mut frame = [0_u64; 1024];
    for (number, word) in frame.iter_mut().enumerate() {
        *word = mix(seed ^ (depth * 1024 + number) as u64);
    }
    let frame = black_box(frame);
    let below = if depth > 0 {
        deep(depth - 1, seed)
    } else {
        std::thread::sleep(Duration::from_micros(100));
        true
    };
    below
        && frame.iter().enumerate().all(|(number, &word)| word == mix(seed ^ (depth * 1024 + number) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file;

    /// A memfd as the file that is read from.
    fn files(pages: usize) -> Files {
        let buffered = file::memfd(pages).unwrap();
        for page in 0..pages {
            file::write_page(buffered, page, &crate::content::Content::of_file(page).words()).unwrap();
        }
        Files { buffered, direct: None, pages }
    }

    #[test]
    fn the_table_of_operations_is_in_order() {
        for (number, (operation, ..)) in OPERATIONS.iter().enumerate() {
            assert_eq!(*operation as usize, number);
        }
    }

    #[test]
    fn chaos_on_every_kind_checks_clean() {
        let files = files(64);
        for (kind, name) in Kind::ALL {
            if matches!(kind, Kind::HugeTlb | Kind::GuardMarkers | Kind::SharedFile | Kind::Stack) {
                continue;
            }
            let count = match kind {
                Kind::Thp => 1024,
                Kind::Heap => 24,
                _ => 64,
            };
            let region = Region::new(7, kind, count, Some(files.buffered)).unwrap();
            let mut worker = Worker::new(vec![region], 5, files);
            for round in 0..20 {
                (0..100).for_each(|_| worker.chaos());
                let mut findings = Findings::default();
                worker.regions[0].verify(&mut findings);
                findings.add(&worker.found);
                assert!(findings.is_pass(), "{name} in round {round}: {findings:?}");
            }
            if kind == Kind::SysV {
                memory::remove_segment(worker.regions[0].object).unwrap();
            }
        }
    }
}
