//! The contents the destination holds: which slot has which, and which slots are free.

use xxhash_rust::xxh3::xxh3_128_with_seed;

/// A slot of the store.
#[derive(Clone, Copy)]
struct Slot {
    digest: u128,
    /// How many pages have this content. A slot without any is free, or will be when the round ends.
    users: u32,
    /// When it was last sent,
    round: u32,
    /// and over which stream.
    stream: u32,
}

/// See the [module](self).
pub(super) struct Contents {
    seed: u64,
    room: u64,
    /// Those that were ever taken.
    slots: Vec<Slot>,
    /// A bit for each slot of the room that is free.
    free: Vec<u64>,
    free_count: u64,
    /// Where the search for a free slot goes on: slots are handed out in ascending order, so that pages that are added
    /// together lie together.
    cursor: usize,
    /// Of the free ones, how many have a content that is known and may be wanted again.
    kept: u64,
    /// Given up in this round; free when it has ended.
    released: Vec<u32>,
    round: u32,
    index: Index,
}

impl Contents {
    pub(super) fn new(room: u64, seed: u64) -> Self {
        let mut free = vec![u64::MAX; room.div_ceil(64) as usize];
        if let Some(last) = free.last_mut().filter(|_| !room.is_multiple_of(64)) {
            *last = (1 << (room % 64)) - 1;
        }
        Self {
            seed,
            room,
            slots: Vec::with_capacity(room as usize),
            free,
            free_count: room,
            cursor: 0,
            kept: 0,
            released: Vec::new(),
            // slots that were never sent have round 0
            round: 1,
            index: Index::new(room),
        }
    }

    /// The destination has this content in a slot from before. It stays free: whoever has the content takes it up again, and
    /// when there is no other room it makes way.
    pub(super) fn keep(&mut self, slot: u32, digest: u128) {
        if u64::from(slot) >= self.room || self.is_known(slot) {
            return;
        }
        self.grow_to(slot);
        self.slots[slot as usize].digest = digest;
        self.index.insert(digest, slot);
        self.kept += 1;
        // those behind it are used up first
        self.cursor = (slot as usize / 64 + 1) % self.free.len();
    }

    fn is_known(&self, slot: u32) -> bool {
        let digest = self.slots.get(slot as usize).map(|held| held.digest);
        digest.is_some_and(|digest| self.index.candidates(digest).any(|candidate| candidate == slot))
    }

    fn grow_to(&mut self, slot: u32) {
        if self.slots.len() <= slot as usize {
            self.slots.resize(slot as usize + 1, Slot { digest: 0, users: 0, round: 0, stream: 0 });
        }
    }

    pub(super) fn room(&self) -> u64 {
        self.room
    }

    pub(super) fn live(&self) -> u64 {
        self.room - self.free_count - self.released.len() as u64
    }

    pub(super) fn digest(&self, page: &[u8]) -> u128 {
        digest(page, self.seed)
    }

    /// Whether the slot has this content.
    pub(super) fn has(&self, slot: u32, digest: u128) -> bool {
        self.slots[slot as usize].digest == digest
    }

    /// Only one page has the content of this slot.
    pub(super) fn is_sole(&self, slot: u32) -> bool {
        self.slots[slot as usize].users == 1
    }

    /// A slot with this content that may be referred to over this stream.
    pub(super) fn find(&self, digest: u128, stream: usize) -> Option<u32> {
        self.index.candidates(digest).find(|&slot| {
            let held = &self.slots[slot as usize];
            held.digest == digest && (held.round != self.round || held.stream == stream as u32)
        })
    }

    /// One more page has the content of the slot.
    pub(super) fn share(&mut self, slot: u32) {
        let held = &mut self.slots[slot as usize];
        if held.users == 0 {
            self.free[slot as usize / 64] &= !(1 << (slot % 64));
            self.free_count -= 1;
            self.kept -= 1;
        }
        held.users += 1;
    }

    /// One page less has it; the last one gives the slot up.
    pub(super) fn release(&mut self, slot: u32) {
        let held = &mut self.slots[slot as usize];
        held.users -= 1;
        if held.users == 0 {
            self.index.remove(held.digest, slot);
            self.released.push(slot);
        }
    }

    /// A free slot, for one page; it must be written now.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.free_count == 0 {
            return None;
        }
        while self.free[self.cursor] == 0 {
            self.cursor = (self.cursor + 1) % self.free.len();
        }
        let bit = self.free[self.cursor].trailing_zeros();
        self.free[self.cursor] &= self.free[self.cursor] - 1;
        self.free_count -= 1;
        let slot = self.cursor as u32 * 64 + bit;
        self.grow_to(slot);
        if self.kept > 0 && self.is_known(slot) {
            self.index.remove(self.slots[slot as usize].digest, slot);
            self.kept -= 1;
        }
        Some(slot)
    }

    /// Content is sent for a slot that was just taken, or whose only page changes.
    pub(super) fn write(&mut self, slot: u32, digest: u128, stream: usize) {
        let held = &mut self.slots[slot as usize];
        if held.users == 1 {
            self.index.remove(held.digest, slot);
        }
        *held = Slot { digest, users: 1, round: self.round, stream: stream as u32 };
        self.index.insert(digest, slot);
    }

    /// What was given up is free from now on.
    pub(super) fn end_round(&mut self) {
        for slot in self.released.drain(..) {
            self.free[slot as usize / 64] |= 1 << (slot % 64);
            self.free_count += 1;
        }
        self.round += 1;
    }
}

/// Of a page.
pub(super) fn digest(page: &[u8], seed: u64) -> u128 {
    xxh3_128_with_seed(page, seed)
}

/// Digest to slot: open addressing with linear probing. An entry is the low half of the digest's first word and the slot
/// plus one; 0 is an empty one. The same digest can be there more than once (sent over two streams in one round).
struct Index {
    entries: Vec<u64>,
}

impl Index {
    fn new(room: u64) -> Self {
        // At most two thirds full; zeroed memory costs nothing until it is used.
        Self { entries: vec![0; (room + room / 2).max(8).next_power_of_two() as usize] }
    }

    fn home(&self, tag: u32) -> usize {
        // The table can have more than 2^32 entries only beyond 11 TiB of room: it is just fuller in places then.
        tag as usize & (self.entries.len() - 1)
    }

    fn entry(digest: u128, slot: u32) -> u64 {
        (digest as u64) << 32 | (u64::from(slot) + 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    /// The slots whose digest has the same tag.
    fn candidates(&self, digest: u128) -> impl Iterator<Item = u32> + '_ {
        let tag = digest as u32;
        let mut at = self.home(tag);
        std::iter::from_fn(move || {
            loop {
                let entry = self.entries[at];
                if entry == 0 {
                    return None;
                }
                at = self.next(at);
                if (entry >> 32) as u32 == tag {
                    return Some((entry as u32).wrapping_sub(1));
                }
            }
        })
    }

    fn insert(&mut self, digest: u128, slot: u32) {
        let mut at = self.home(digest as u32);
        while self.entries[at] != 0 {
            at = self.next(at);
        }
        self.entries[at] = Self::entry(digest, slot);
    }

    fn remove(&mut self, digest: u128, slot: u32) {
        let wanted = Self::entry(digest, slot);
        let mut hole = self.home(digest as u32);
        while self.entries[hole] != wanted {
            if self.entries[hole] == 0 {
                return;
            }
            hole = self.next(hole);
        }
        // Whatever behind the hole could stand in it moves up, so that no search ends too early.
        let mut at = self.next(hole);
        while self.entries[at] != 0 {
            let home = self.home((self.entries[at] >> 32) as u32);
            let mask = self.entries.len() - 1;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.entries[hole] = self.entries[at];
                hole = at;
            }
            at = self.next(at);
        }
        self.entries[hole] = 0;
    }
}
