//! One address space while it is filled.

use super::journal::{Counter, Journal};
use super::message::SpaceId;
use super::runs::{Run, Runs};
use crate::sys::mapping::Mapping;
use crate::sys::userfaultfd::Userfaultfd;
use crate::{PAGE_SIZE, PageRun};
use nix::errno::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done.
    Done,
    /// The task is just changing its mappings, or the memory is short: later.
    Later,
    /// The address space exists no more.
    Gone,
}

/// An address space, as the fault thread and the background threads share it.
pub(super) struct Space {
    pub(super) id: SpaceId,
    pub(super) uffd: Userfaultfd,
    /// Held by background threads while they take pages from `todo` and copy them, and by the fault thread while it reads
    /// events and cuts `todo`. A task that gives up pages with madvise goes on as soon as its event is read: a copy that
    /// began with the list of before would bring the old content back. (While the event is not read, copies give EAGAIN.)
    gate: RwLock<()>,
    /// Pages nobody has put into place yet.
    todo: Mutex<Runs>,
    /// Those of them that come first, the last of the list before the others.
    first: Mutex<Vec<PageRun>>,
    gone: AtomicBool,
}

impl Space {
    pub(super) fn new(id: SpaceId, uffd: Userfaultfd, todo: Runs, mut first: Vec<PageRun>) -> Self {
        first.reverse();
        let (todo, first) = (Mutex::new(todo), Mutex::new(first));
        Self { id, uffd, gate: RwLock::new(()), todo, first, gone: AtomicBool::new(false) }
    }

    /// For those who copy.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For who reads events.
    pub(super) fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn todo(&self) -> MutexGuard<'_, Runs> {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first(&self) -> MutexGuard<'_, Vec<PageRun>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are pages left that the task will probably want first.
    pub(super) fn is_urgent(&self) -> bool {
        !self.first().is_empty()
    }

    /// What is left of these pages comes before all others.
    pub(super) fn hasten(&self, pages: PageRun) {
        let mut first = self.first();
        if first.last() != Some(&pages) {
            first.push(pages);
        }
    }

    /// Takes the next pages out of `todo`, `most` at most. One that comes first and was moved elsewhere comes later.
    pub(super) fn take(&self, most: u64) -> Vec<Run> {
        let (mut todo, mut first) = (self.todo(), self.first());
        while let Some(run) = first.pop() {
            let now = PageRun { pages: run.pages.min(most), ..run };
            if run.pages > most {
                first.push(PageRun { start: now.end(), pages: run.pages - most });
            }
            let taken = todo.cut(now.start, now.end());
            if !taken.is_empty() {
                return taken;
            }
        }
        todo.take(most).into_iter().collect()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Nothing is left to be done.
    pub(super) fn is_done(&self) -> bool {
        self.is_gone() || self.todo().is_empty()
    }

    /// The task has ended, or runs another program.
    pub(super) fn set_gone(&self, journal: &Journal) {
        let mut todo = self.todo();
        self.gone.store(true, Ordering::Release);
        let left = std::mem::take(&mut *todo);
        journal.counter(Counter::Remaining).fetch_sub(left.pages(), Ordering::Relaxed);
    }

    /// Puts one page in place, of its content or of zeros, if it is not there and can be put there now.
    pub(super) fn fill_one(&self, address: u64, store: &Mapping, journal: &Journal) {
        let _gate = self.enter();
        let page = self.todo().cut(address, address + PAGE_SIZE).pop();
        match page {
            Some(run) => drop(self.fill(run, store, journal)),
            None => drop(self.uffd.zero(address, PAGE_SIZE)),
        }
    }

    /// Copies pages that were taken from `todo`; what could not be copied now goes back there.
    pub(super) fn fill(&self, run: Run, store: &Mapping, journal: &Journal) -> Outcome {
        let (outcome, done) = self.copy(run, store, journal);
        journal.counter(Counter::Remaining).fetch_sub(done, Ordering::Relaxed);
        if let Some(rest) = run.without_first(done) {
            let mut todo = self.todo();
            match self.is_gone() {
                true => drop(journal.counter(Counter::Remaining).fetch_sub(rest.pages, Ordering::Relaxed)),
                false => todo.insert(rest),
            }
        }
        outcome
    }

    /// Copies pages where there are none yet. Gives how many are done with.
    fn copy(&self, run: Run, store: &Mapping, journal: &Journal) -> (Outcome, u64) {
        let mut done = 0;
        // A copy must lie within one mapping: where two meet, it is tried in smaller pieces.
        let mut step = run.pages;
        let mut doubted = false;
        while let Some(rest) = run.without_first(done) {
            let pages = rest.pages.min(step);
            let from = (rest.slot * PAGE_SIZE) as usize;
            let Some(bytes) = store.bytes().get(from..from + (pages * PAGE_SIZE) as usize) else {
                return (Outcome::Done, run.pages);
            };
            let (copied, errno) = self.uffd.copy(rest.start, bytes);
            journal.count(Counter::Pages, copied / PAGE_SIZE);
            done += copied / PAGE_SIZE;
            match errno {
                None => step = step.saturating_mul(2),
                // Not all of it: the next attempt tells why.
                Some(Errno::EAGAIN) if copied > 0 => {}
                Some(Errno::EAGAIN | Errno::ENOMEM) => return (Outcome::Later, done),
                Some(Errno::ESRCH) => return (Outcome::Gone, done),
                Some(Errno::EEXIST) => {
                    journal.count(Counter::Existing, 1);
                    done += 1;
                }
                Some(_) if pages > 1 => step = pages / 2,
                // It may just have been moved away: once more, since only what begins after that is told to try later.
                Some(_) if !doubted => {
                    doubted = true;
                    continue;
                }
                Some(_) => {
                    journal.count(Counter::Unregistered, 1);
                    done += 1;
                }
            }
            doubted = false;
        }
        (Outcome::Done, done)
    }

    /// Answers a fault: the page of the slot, or zero.
    pub(super) fn answer(&self, page: u64, slot: Option<u64>, store: &Mapping, journal: &Journal) -> Outcome {
        let bytes = slot.and_then(|slot| {
            let from = (slot * PAGE_SIZE) as usize;
            store.bytes().get(from..from + PAGE_SIZE as usize)
        });
        let attempt = || match bytes {
            Some(bytes) => self.uffd.copy(page, bytes),
            None => self.uffd.zero(page, PAGE_SIZE),
        };
        // as in `copy`
        let (done, errno) = match attempt() {
            (_, Some(Errno::ENOENT)) => attempt(),
            answered => answered,
        };
        match errno {
            None => {
                let counter = if bytes.is_some() { Counter::Pages } else { Counter::ZeroFaults };
                journal.count(counter, done / PAGE_SIZE);
                Outcome::Done
            }
            Some(Errno::EAGAIN | Errno::ENOMEM) => Outcome::Later,
            Some(Errno::ESRCH) => Outcome::Gone,
            // There already, or not ours any more: it will find out itself.
            Some(_) => match self.uffd.wake(page, PAGE_SIZE) {
                Err(Errno::ESRCH) => Outcome::Gone,
                _ => Outcome::Done,
            },
        }
    }
}
