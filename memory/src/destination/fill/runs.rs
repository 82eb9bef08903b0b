//! Pages of an address space and the slots of their content, to be cut and moved as the task changes its mappings.

use crate::{PAGE_SIZE, PageRun};
use std::collections::BTreeMap;

/// Consecutive pages with their content in consecutive slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) pages: u64,
    /// Slot of the first page.
    pub(super) slot: u64,
}

impl Run {
    pub(super) fn end(&self) -> u64 {
        PageRun { start: self.start, pages: self.pages }.end()
    }

    /// What lies behind its first `pages` pages.
    pub(super) fn without_first(&self, pages: u64) -> Option<Run> {
        let run = Run {
            start: self.start + pages * PAGE_SIZE,
            pages: self.pages.checked_sub(pages)?,
            slot: self.slot + pages,
        };
        (run.pages > 0).then_some(run)
    }

    fn first(&self, pages: u64) -> Option<Run> {
        (pages > 0).then_some(Run { pages, ..*self })
    }
}

/// Runs that do not overlap, by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    /// Start to pages and slot.
    map: BTreeMap<u64, (u64, u64)>,
    pages: u64,
}

impl Runs {
    /// From runs that do not overlap.
    pub(super) fn collect(runs: impl Iterator<Item = Run>) -> Self {
        let mut pages = 0;
        let map =
            runs.inspect(|run| pages += run.pages).map(|run| (run.start, (run.pages, run.slot))).collect();
        Self { map, pages }
    }

    /// How many pages all runs have.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The run an address lies in.
    pub(super) fn find(&self, address: u64) -> Option<Run> {
        let (&start, &(pages, slot)) = self.map.range(..=address).next_back()?;
        let run = Run { start, pages, slot };
        (address < run.end()).then_some(run)
    }

    /// Some page lies in the range.
    pub(super) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.find(start).is_some() || self.map.range(start..end.max(start)).next().is_some()
    }

    /// Adds a run; the addresses must be free.
    pub(super) fn insert(&mut self, run: Run) {
        self.pages += run.pages;
        self.map.insert(run.start, (run.pages, run.slot));
    }

    /// Takes out all pages of a range.
    pub(super) fn cut(&mut self, start: u64, end: u64) -> Vec<Run> {
        let mut taken = Vec::new();
        // The first run may begin before the range.
        let mut next = self.find(start).or_else(|| self.first_from(start));
        while let Some(run) = next.filter(|run| run.start < end) {
            self.map.remove(&run.start);
            self.pages -= run.pages;
            let before = start.saturating_sub(run.start) / PAGE_SIZE;
            let within = (end.min(run.end()) - start.max(run.start)) / PAGE_SIZE;
            for outside in [run.first(before), run.without_first(before + within)].into_iter().flatten() {
                self.insert(outside);
            }
            taken.extend(run.without_first(before).and_then(|run| run.first(within)));
            next = self.first_from(end.min(run.end()));
        }
        taken
    }

    /// Moves what lies in a range to another place; what was known of that place is dropped.
    pub(super) fn move_range(&mut self, from: u64, to: u64, len: u64) {
        let moved = self.cut(from, from.saturating_add(len));
        self.cut(to, to.saturating_add(len));
        for run in moved {
            self.insert(Run { start: run.start - from + to, ..run });
        }
    }

    /// Takes out the first pages, consecutive ones, `most` at most.
    pub(super) fn take(&mut self, most: u64) -> Option<Run> {
        let (&start, &(pages, slot)) = self.map.first_key_value()?;
        let run = Run { start, pages, slot };
        self.map.remove(&start);
        self.pages -= pages;
        if let Some(rest) = run.without_first(most) {
            self.insert(rest);
        }
        run.first(pages.min(most))
    }

    fn first_from(&self, address: u64) -> Option<Run> {
        let (&start, &(pages, slot)) = self.map.range(address..).next()?;
        Some(Run { start, pages, slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn flat(runs: &Runs) -> BTreeMap<u64, u64> {
        let mut pages = BTreeMap::new();
        for (&start, &(count, slot)) in &runs.map {
            for at in 0..count {
                assert!(pages.insert(start / PAGE_SIZE + at, slot + at).is_none(), "two runs overlap");
            }
        }
        assert_eq!(pages.len() as u64, runs.pages);
        pages
    }

    proptest! {
        #[test]
        fn cutting_and_moving_is_done_page_by_page(
            list in prop::collection::vec((0..4u64, 1..6u64, 0..100u64), 0..8),
            steps in prop::collection::vec((0..3u8, 0..40u64, 0..40u64, 0..10u64), 0..12),
        ) {
            let mut at = 0;
            let mut runs = Runs::collect(list.iter().map(|&(gap, pages, slot)| {
                let run = Run { start: (at + gap) * PAGE_SIZE, pages, slot };
                at += gap + pages;
                run
            }));
            let mut model = flat(&runs);
            for (step, a, b, len) in steps {
                match step {
                    0 => {
                        let touched = runs.overlaps(a * PAGE_SIZE, (a + len) * PAGE_SIZE);
                        let cut = runs.cut(a * PAGE_SIZE, (a + len) * PAGE_SIZE);
                        let taken = flat(&Runs::collect(cut.into_iter()));
                        let expected: BTreeMap<u64, u64> = model.range(a..a + len).map(|(k, v)| (*k, *v)).collect();
                        prop_assert!(len == 0 || touched != expected.is_empty());
                        prop_assert_eq!(taken, expected);
                        model.retain(|page, _| *page < a || *page >= a + len);
                    }
                    1 if a + len <= b || b + len <= a => {
                        runs.move_range(a * PAGE_SIZE, b * PAGE_SIZE, len * PAGE_SIZE);
                        let moved: Vec<_> = model.range(a..a + len).map(|(k, v)| (*k - a + b, *v)).collect();
                        model.retain(|page, _| (*page < a || *page >= a + len) && (*page < b || *page >= b + len));
                        model.extend(moved);
                    }
                    _ => {
                        let taken = runs.take(len.max(1));
                        prop_assert_eq!(taken.is_none(), model.is_empty());
                        for at in 0..taken.map_or(0, |run| run.pages) {
                            let first = model.pop_first();
                            prop_assert_eq!(first, taken.map(|run| (run.start / PAGE_SIZE + at, run.slot + at)));
                        }
                    }
                }
                prop_assert_eq!(&flat(&runs), &model);
                for page in 0..60 {
                    let found = runs.find(page * PAGE_SIZE + 5).map(|run| run.slot + page - run.start / PAGE_SIZE);
                    prop_assert_eq!(found, model.get(&page).copied());
                }
            }
        }
    }
}
