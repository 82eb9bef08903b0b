//! Where the latest content of each page lies: runs of pages over files.

use std::collections::BTreeMap;

use super::pagemap::PAGE_SIZE;

/// A place in one of a list of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the file.
    pub(crate) file: usize,
    /// Number of the page in it.
    pub(crate) page: u64,
}

impl Place {
    pub(crate) fn plus(self, pages: u64) -> Place {
        Place { page: self.page + pages, ..self }
    }
}

/// Pages at consecutive addresses that lie one after the other in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Address of the first page, bytes.
    pub(crate) vaddr: u64,
    /// Number of pages.
    pub(crate) pages: u64,
    /// The pages may be restored on demand.
    pub(crate) lazy: bool,
    /// Place of the first page.
    pub(crate) place: Place,
}

impl Run {
    fn end(&self) -> u64 {
        self.vaddr + self.pages * PAGE_SIZE
    }
}

/// The pages of one image. Runs do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extents {
    /// By address.
    runs: BTreeMap<u64, Run>,
}

impl Extents {
    /// Adds a run behind all others, joining it to the last where it continues it.
    pub(crate) fn append(&mut self, run: Run) {
        if let Some(mut last) = self.runs.last_entry() {
            let last = last.get_mut();
            if last.end() == run.vaddr && last.place.plus(last.pages) == run.place && last.lazy == run.lazy {
                last.pages += run.pages;
                return;
            }
        }
        self.runs.insert(run.vaddr, run);
    }

    /// Calls `each` for the pieces that make up the pages, in order; `Err(vaddr)` is the first page that is nowhere.
    pub(crate) fn resolve(&self, vaddr: u64, pages: u64, mut each: impl FnMut(Run)) -> Result<(), u64> {
        let end = vaddr + pages * PAGE_SIZE;
        let mut at = vaddr;
        let from = self.runs.range(..=vaddr).next_back().map_or(vaddr, |(start, _)| *start);
        for run in self.runs.range(from..end).map(|(_, run)| run).filter(|run| run.end() > vaddr) {
            if run.vaddr > at {
                break;
            }
            let pages = (run.end().min(end) - at) / PAGE_SIZE;
            let place = run.place.plus((at - run.vaddr) / PAGE_SIZE);
            each(Run { vaddr: at, pages, lazy: run.lazy, place });
            at += pages * PAGE_SIZE;
            if at == end {
                return Ok(());
            }
        }
        Err(at)
    }

    /// The parts of these runs that are in none of `kept`'s: the same address at the same place.
    pub(crate) fn without(&self, kept: &Extents) -> Vec<Run> {
        let mut gone = Vec::new();
        for run in self.runs.values() {
            let mut at = run.vaddr;
            let from = kept.runs.range(..=run.vaddr).next_back().map_or(run.vaddr, |(start, _)| *start);
            for keeper in kept.runs.range(from..run.end()).map(|(_, keeper)| keeper) {
                let start = keeper.vaddr.max(run.vaddr);
                let end = keeper.end().min(run.end());
                let same = start < end
                    && keeper.place.plus((start - keeper.vaddr) / PAGE_SIZE)
                        == run.place.plus((start - run.vaddr) / PAGE_SIZE);
                if same {
                    gone.extend(run.part(at, start));
                    at = end;
                }
            }
            gone.extend(run.part(at, run.end()));
        }
        gone
    }

    /// The same pages, lazy only where one of `ranges` (address of begin and end, ascending) has them too.
    pub(crate) fn lazy_only_in(&self, ranges: &[(u64, u64)]) -> Extents {
        let mut extents = Extents::default();
        for run in self.runs.values() {
            let mut at = run.vaddr;
            let first = ranges.partition_point(|(_, end)| *end <= run.vaddr);
            for (start, end) in ranges[first..].iter().take_while(|(start, _)| *start < run.end()) {
                let (start, end) = ((*start).max(at), (*end).min(run.end()));
                run.part(at, start)
                    .into_iter()
                    .for_each(|eager| extents.append(Run { lazy: false, ..eager }));
                run.part(start, end).into_iter().for_each(|same| extents.append(same));
                at = end.max(at);
            }
            run.part(at, run.end())
                .into_iter()
                .for_each(|eager| extents.append(Run { lazy: false, ..eager }));
        }
        extents
    }

    /// All runs, ascending.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }
}

impl Run {
    /// The part of the run from one address to another; `None` when that is nothing.
    fn part(&self, from: u64, to: u64) -> Option<Run> {
        (from < to).then(|| Run {
            vaddr: from,
            pages: (to - from) / PAGE_SIZE,
            lazy: self.lazy,
            place: self.place.plus((from - self.vaddr) / PAGE_SIZE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(vaddr: u64, pages: u64, file: usize, page: u64) -> Run {
        Run { vaddr: vaddr * PAGE_SIZE, pages, lazy: false, place: Place { file, page } }
    }

    #[test]
    fn resolves_over_runs_and_names_the_first_hole() {
        let mut extents = Extents::default();
        for r in [run(10, 5, 0, 0), run(15, 5, 1, 7), run(30, 1, 0, 5)] {
            extents.append(r);
        }
        let mut pieces = Vec::new();
        extents.resolve(12 * PAGE_SIZE, 6, |r| pieces.push(r)).unwrap();
        assert_eq!(pieces, [run(12, 3, 0, 2), run(15, 3, 1, 7)]);
        assert_eq!(extents.resolve(18 * PAGE_SIZE, 4, |_| {}), Err(20 * PAGE_SIZE));
        assert_eq!(extents.resolve(5 * PAGE_SIZE, 6, |_| {}), Err(5 * PAGE_SIZE));
        assert_eq!(extents.resolve(30 * PAGE_SIZE, 2, |_| {}), Err(31 * PAGE_SIZE));
        assert_eq!(extents.resolve(99 * PAGE_SIZE, 1, |_| {}), Err(99 * PAGE_SIZE));
    }

    #[test]
    fn appending_what_continues_makes_one_run() {
        let mut extents = Extents::default();
        extents.append(run(1, 2, 0, 0));
        extents.append(run(3, 2, 0, 2));
        extents.append(run(5, 1, 0, 9));
        assert_eq!(extents.runs().copied().collect::<Vec<_>>(), [run(1, 4, 0, 0), run(5, 1, 0, 9)]);
    }

    #[test]
    fn lazy_only_where_it_may_be() {
        let mut extents = Extents::default();
        extents.append(Run { lazy: true, ..run(10, 10, 0, 0) });
        extents.append(run(30, 2, 0, 10));
        let pages = |from: u64, to: u64| (from * PAGE_SIZE, to * PAGE_SIZE);
        let cut = extents.lazy_only_in(&[pages(1, 5), pages(8, 12), pages(14, 16), pages(19, 40)]);
        let want = [
            Run { lazy: true, ..run(10, 2, 0, 0) },
            run(12, 2, 0, 2),
            Run { lazy: true, ..run(14, 2, 0, 4) },
            run(16, 3, 0, 6),
            Run { lazy: true, ..run(19, 1, 0, 9) },
            run(30, 2, 0, 10),
        ];
        assert_eq!(cut.runs().copied().collect::<Vec<_>>(), want);
        assert!(extents.lazy_only_in(&[]).runs().all(|run| !run.lazy));
    }

    #[test]
    fn what_was_superseded() {
        let (mut old, mut new) = (Extents::default(), Extents::default());
        old.append(run(10, 10, 0, 0));
        for r in [run(8, 3, 1, 0), run(11, 2, 0, 1), run(13, 1, 1, 3), run(14, 3, 0, 4)] {
            new.append(r);
        }
        assert_eq!(old.without(&new), [run(10, 1, 0, 0), run(13, 1, 0, 3), run(17, 3, 0, 7)]);
        assert_eq!(old.without(&old), []);
        assert_eq!(old.without(&Extents::default()), [run(10, 10, 0, 0)]);
    }
}
