//! What a successor must know if the handler dies, in memory that outlives it: every change of the lists, written down
//! before it is acted on; and the counters.

use super::lists::List;
use super::message::SpaceId;
use super::runs::Runs;
use crate::sys::mapping::{self, Mapping};
use crate::sys::userfaultfd::{Change, EVENT_WORDS, RawEvent, raw_event};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Room for 1.6 million changes. A change is only noted if it takes or moves pages that are in the list, so that there are
/// seldom more than a few thousand. The memory is only taken as it is written.
pub(super) const BYTES: u64 = 64 << 20;
/// Words before the first record.
const HEADER: usize = 32;
/// Where the kernel writes an event that is being read, with the address space and the number of records at that time. It
/// is all in the first page, which never faults.
const INBOX: usize = 16;
const INBOX_SPACE: usize = INBOX + EVENT_WORDS;
const INBOX_RECORDS: usize = INBOX_SPACE + 1;
const INBOX_CHILD: usize = INBOX_SPACE + 2;
/// Words of a record.
const RECORD: usize = 5;

/// Counters, by their word in the header.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    /// Pages that were put into place.
    Pages = 2,
    /// Faults that were answered.
    Faults = 3,
    /// Of these, with a zero page.
    ZeroFaults = 4,
    /// Forks that were followed.
    Forks = 5,
    /// madvise calls that gave pages up.
    Removes = 6,
    /// Unmapped ranges.
    Unmaps = 7,
    /// Moved ranges.
    Remaps = 8,
    /// Pages that were there already.
    Existing = 9,
    /// Pages that are in a list but not registered.
    Unregistered = 10,
    /// Pages still to be filled.
    Remaining = 11,
    /// All pages to be filled, those of forked children included.
    Total = 12,
    /// Forks whose descriptor died with a handler.
    LostForks = 13,
    /// How often the anchors of all tasks were put in place: once for each handler.
    Anchored = 14,
    /// Not 0 once the tasks may run.
    Released = 15,
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// The address space of this task was handed over.
    Root { id: SpaceId, vpid: u32 },
    /// A child was forked; it has the list of its parent.
    Fork { id: SpaceId, parent: SpaceId },
    /// A range is not to be filled any more.
    Cut { id: SpaceId, start: u64, end: u64 },
    /// A range moved.
    Move { id: SpaceId, from: u64, to: u64, len: u64 },
}

impl Record {
    pub(super) fn of(id: SpaceId, change: Change) -> Self {
        match change {
            Change::Remap { from, to, len } => Self::Move { id, from, to, len },
            Change::Remove { start, end } | Change::Unmap { start, end } => Self::Cut { id, start, end },
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Journal {
    memory: Mapping,
}

impl Journal {
    /// A new one, and its file for the handlers.
    pub(super) fn create() -> Result<(Self, std::fs::File), Errno> {
        let file = mapping::memfd(c"godwit-fill-journal", BYTES)?;
        Ok((Self { memory: Mapping::writable(&file, BYTES)? }, file))
    }

    /// One that exists.
    pub(super) fn open(file: impl AsFd, bytes: u64) -> Result<Self, Errno> {
        match bytes >= (HEADER * size_of::<u64>()) as u64 {
            true => Ok(Self { memory: Mapping::writable(file, bytes)? }),
            false => Err(Errno::EINVAL),
        }
    }

    pub(super) fn counter(&self, counter: Counter) -> &AtomicU64 {
        &self.memory.words()[counter as usize]
    }

    pub(super) fn count(&self, counter: Counter, by: u64) {
        self.counter(counter).fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn get(&self, counter: Counter) -> u64 {
        self.counter(counter).load(Ordering::Relaxed)
    }

    /// Something did not fit any more: no successor can continue.
    pub(super) fn is_overfull(&self) -> bool {
        self.memory.words()[1].load(Ordering::Acquire) != 0
    }

    /// Writes a change down. Only one thread of one process may do so at a time.
    pub(super) fn note(&self, record: Record) {
        let words = self.memory.words();
        let number = words[0].load(Ordering::Relaxed);
        let at = HEADER + number as usize * RECORD;
        let Some(place) = words.get(at..at + RECORD) else {
            words[1].store(1, Ordering::Release);
            return;
        };
        let parts = match record {
            Record::Root { id, vpid } => [1, id, u64::from(vpid), 0, 0],
            Record::Fork { id, parent } => [2, id, parent, 0, 0],
            Record::Cut { id, start, end } => [3, id, start, end, 0],
            Record::Move { id, from, to, len } => [4, id, from, to, len],
        };
        for (word, part) in place.iter().zip(parts) {
            word.store(part, Ordering::Relaxed);
        }
        // The record is there when its number says so, whenever the process is killed.
        words[0].store(number + 1, Ordering::Release);
    }

    /// The place for the next event of an address space (`child` is the number of its child should it be a fork); to be [cleared](Self::clear_inbox) when it was acted on.
    pub(super) fn inbox(&self, id: SpaceId, child: SpaceId) -> &[AtomicU64; EVENT_WORDS] {
        let words = self.memory.words();
        self.clear_inbox();
        words[INBOX_SPACE].store(id, Ordering::Release);
        words[INBOX_CHILD].store(child, Ordering::Release);
        words[INBOX_RECORDS].store(words[0].load(Ordering::Relaxed), Ordering::Release);
        self.inbox_words()
    }

    /// The event was acted on.
    pub(super) fn clear_inbox(&self) {
        self.inbox_words()[0].store(0, Ordering::Release);
    }

    fn inbox_words(&self) -> &[AtomicU64; EVENT_WORDS] {
        static NOWHERE: [AtomicU64; EVENT_WORDS] = [const { AtomicU64::new(0) }; EVENT_WORDS];
        self.memory.words()[INBOX..].first_chunk().unwrap_or(&NOWHERE)
    }

    /// A fork that was read and not passed on: the child's number, the parent's, and the descriptor in the handler.
    pub(super) fn unpassed_fork(&self) -> Option<(SpaceId, SpaceId, RawFd)> {
        let words = self.memory.words();
        match raw_event(self.inbox_words()) {
            RawEvent::Fork { fd } => {
                let word = |at: usize| words[at].load(Ordering::Acquire);
                Some((word(INBOX_CHILD), word(INBOX_SPACE), fd))
            }
            _ => None,
        }
    }

    /// Makes good for a predecessor that was killed between reading an event and noting it.
    pub(super) fn settle(&self) {
        let words = self.memory.words();
        let noted = words[0].load(Ordering::Acquire) != words[INBOX_RECORDS].load(Ordering::Acquire);
        let id = words[INBOX_SPACE].load(Ordering::Acquire);
        match raw_event(self.inbox_words()) {
            RawEvent::Change(change) if !noted => self.note(Record::of(id, change)),
            RawEvent::Fork { .. } if !noted => {
                tracing::error!(
                    "a handler died with the descriptor of a forked child: its missing pages are zero"
                );
                self.count(Counter::LostForks, 1);
            }
            _ => {}
        }
        self.clear_inbox();
    }

    fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let words = self.memory.words();
        let count = words[0].load(Ordering::Acquire) as usize;
        words[HEADER..].chunks_exact(RECORD).take(count).filter_map(|place| {
            let word = |at: usize| place[at].load(Ordering::Relaxed);
            let id = word(1);
            Some(match word(0) {
                1 => Record::Root { id, vpid: word(2) as u32 },
                2 => Record::Fork { id, parent: word(2) },
                3 => Record::Cut { id, start: word(2), end: word(3) },
                4 => Record::Move { id, from: word(2), to: word(3), len: word(4) },
                _ => return None,
            })
        })
    }

    /// The lists of all address spaces there ever were, as they are by now.
    pub(super) fn replay(&self, lists: &HashMap<u32, List>) -> HashMap<SpaceId, Runs> {
        let mut spaces: HashMap<SpaceId, Runs> = HashMap::new();
        for record in self.records() {
            match record {
                Record::Root { id, vpid } => {
                    spaces.insert(id, lists.get(&vpid).map(|list| list.runs.clone()).unwrap_or_default());
                }
                Record::Fork { id, parent } => {
                    spaces.insert(id, spaces.get(&parent).cloned().unwrap_or_default());
                }
                Record::Cut { id, start, end } => {
                    if let Some(list) = spaces.get_mut(&id) {
                        list.cut(start, end);
                    }
                }
                Record::Move { id, from, to, len } => {
                    if let Some(list) = spaces.get_mut(&id) {
                        list.move_range(from, to, len);
                    }
                }
            }
        }
        spaces
    }
}

#[cfg(test)]
mod tests {
    use super::super::runs::Run;
    use super::*;

    #[test]
    fn a_successor_reads_what_was_noted() {
        let (journal, file) = Journal::create().unwrap();
        let runs = Runs::collect([Run { start: 0x10000, pages: 16, slot: 0 }].into_iter());
        let lists = HashMap::from([(5, List { runs, ..List::default() })]);
        for record in [
            Record::Root { id: 0, vpid: 5 },
            Record::Cut { id: 0, start: 0x10000, end: 0x12000 },
            Record::Fork { id: 9, parent: 0 },
            Record::Move { id: 9, from: 0x14000, to: 0x50000, len: 0x1000 },
        ] {
            journal.note(record);
        }
        let successor = Journal::open(&file, BYTES).unwrap();
        let spaces = successor.replay(&lists);
        assert_eq!((spaces[&0].pages(), spaces[&9].pages()), (14, 14));
        assert_eq!(spaces[&9].find(0x50000), Some(Run { start: 0x50000, pages: 1, slot: 4 }));
        assert!(spaces[&0].find(0x14000).is_some() && spaces[&9].find(0x14000).is_none());
    }

    #[test]
    fn an_event_that_was_read_and_not_noted_is_noted_by_the_successor() {
        let (journal, _file) = Journal::create().unwrap();
        let remove = |inbox: &[AtomicU64; EVENT_WORDS]| {
            for (word, value) in inbox.iter().zip([0x15, 0x1000, 0x3000, 0]) {
                word.store(value, Ordering::Release);
            }
        };
        let change = Record::Cut { id: 4, start: 0x1000, end: 0x3000 };
        remove(journal.inbox(4, 9));
        journal.settle();
        journal.settle();
        assert_eq!(journal.records().collect::<Vec<_>>(), [change], "once");
        remove(journal.inbox(4, 9));
        journal.note(change);
        journal.settle();
        assert_eq!(journal.records().count(), 2, "it was noted already");
        let inbox = journal.inbox(4, 9);
        inbox[1].store(0, Ordering::Release);
        inbox[0].store(0x13, Ordering::Release);
        assert_eq!(journal.unpassed_fork(), Some((9, 4, 0)));
        journal.settle();
        assert_eq!(journal.get(Counter::LostForks), 1);
    }

    #[test]
    fn a_full_journal_says_so() {
        let file = mapping::memfd(c"test", 4096).unwrap();
        let journal = Journal::open(&file, 4096).unwrap();
        for id in 0..96 {
            journal.note(Record::Root { id, vpid: 1 });
            assert!(!journal.is_overfull());
        }
        journal.note(Record::Root { id: 96, vpid: 1 });
        assert!(journal.is_overfull());
        assert_eq!(journal.replay(&HashMap::new()).len(), 96);
    }
}
