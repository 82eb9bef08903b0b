//! What the processes of one run know of each other: a page that they all share. By it they all stand still while one
//! check looks at all of them.

use crate::sys::Failure;
use crate::sys::memory::{Pages, Source};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many processes there may be at once.
pub const SLOTS: usize = 60;
const HEAD_WORDS: usize = 8;
const SLOT_WORDS: usize = 8;

/// A number that all processes see.
#[derive(Clone, Copy, Debug)]
pub enum Shared {
    /// Number of the check that is wanted; all stand still for it.
    Wanted,
    /// Number of the check that is over.
    Over,
    /// Not 0 when all are to end.
    Ending,
}

/// A number of one process that all see.
#[derive(Clone, Copy, Debug)]
pub enum Own {
    /// 0 when there is no such process, else 1.
    Alive,
    /// The check that it stands still for.
    Still,
    /// The check that it has told its findings of.
    Told,
    /// How many operations it has done.
    Operations,
}

/// The shared page.
#[derive(Debug)]
pub struct Team {
    page: Pages,
}

impl Team {
    /// A team of nobody.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self { page: Pages::map(Source::Shared, 1)? })
    }

    fn shared(&self, what: Shared) -> &AtomicU64 {
        self.page.word(0, what as usize)
    }

    fn own(&self, slot: usize, what: Own) -> &AtomicU64 {
        assert!(slot < SLOTS);
        self.page.word(0, HEAD_WORDS + slot * SLOT_WORDS + what as usize)
    }

    /// Reads a number of all.
    pub fn get(&self, what: Shared) -> u64 {
        self.shared(what).load(Ordering::SeqCst)
    }

    /// Sets a number of all.
    pub fn set(&self, what: Shared, value: u64) {
        self.shared(what).store(value, Ordering::SeqCst);
    }

    /// Reads a number of one process.
    pub fn of(&self, slot: usize, what: Own) -> u64 {
        self.own(slot, what).load(Ordering::SeqCst)
    }

    /// Sets a number of one process.
    pub fn note(&self, slot: usize, what: Own, value: u64) {
        self.own(slot, what).store(value, Ordering::SeqCst);
    }

    /// Takes a slot for a process that is about to be; fails when it is taken.
    pub fn claim(&self, slot: usize) -> bool {
        let taken = self.own(slot, Own::Alive).compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst);
        if taken.is_ok() {
            let over = self.get(Shared::Over);
            self.note(slot, Own::Still, over);
            self.note(slot, Own::Told, over);
            self.note(slot, Own::Operations, 0);
        }
        taken.is_ok()
    }

    /// Gives a slot back.
    pub fn leave(&self, slot: usize) {
        self.note(slot, Own::Alive, 0);
    }

    /// The slots of living processes.
    pub fn living(&self) -> impl Iterator<Item = usize> + '_ {
        (0..SLOTS).filter(|&slot| self.of(slot, Own::Alive) != 0)
    }

    /// Whether all living processes have a number at least.
    pub fn all(&self, what: Own, least: u64) -> bool {
        self.living().all(|slot| self.of(slot, what) >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_means_the_living() {
        let team = Team::new().unwrap();
        assert!(team.claim(0) && team.claim(5) && !team.claim(5));
        team.note(0, Own::Still, 1);
        assert!(!team.all(Own::Still, 1));
        team.note(5, Own::Still, 1);
        assert!(team.all(Own::Still, 1));
        team.leave(5);
        assert_eq!(team.living().collect::<Vec<_>>(), [0]);
        team.set(Shared::Over, 1);
        assert!(team.claim(SLOTS - 1) && team.all(Own::Told, 0));
        assert_eq!(team.of(SLOTS - 1, Own::Told), 1, "a newcomer is not waited for by a check that is over");
    }
}
