//! The page store: every page that came, in slots of one memfd that the source gives out, and which page of which image is
//! in which slot. It does what the batches say and thinks nothing of its own; but it checks everything they say.

use crate::batch::{Batch, BatchError, Kind, Run};
use crate::ledger::{PageLedger, is_zero};
use crate::sys::mapping::{self, Mapping};
use crate::table::{ABSENT, PageTable, Place, SLOT_LIMIT, ZERO, pieces};
use crate::{ImageId, PAGE_SIZE, PageRun, available_memory};
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory that must stay free beside the store, in bytes.
const SPARE: u64 = 64 << 20;
/// Page tables may have this many blocks of 2 KiB more than the store has slots: for tasks whose pages are all zero. It
/// keeps a broken peer from filling the memory with tables.
const SPARE_BLOCKS: u64 = 1 << 16;
const WHOLE: Range<u64> = 0..u64::MAX - (PAGE_SIZE - 1);

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is not enough memory.
    #[error("{needed} bytes of memory are needed for the pages, {available} are available")]
    Memory {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes there are, /proc/meminfo's `MemAvailable`.
        available: u64,
    },
    /// The kernel refused something.
    #[error("cannot {doing} the page store: {source}")]
    System {
        /// What.
        doing: &'static str,
        /// Why not.
        source: Errno,
    },
    /// A page could not be written.
    #[error("cannot write {pages} pages to the page store: {source}")]
    Write {
        /// How many.
        pages: u64,
        /// Why not.
        source: std::io::Error,
    },
    /// The source sent what is no batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The source speaks of slots that do not exist.
    #[error("the source uses slots {first} to {last}, the page store has room for {room}")]
    Slot {
        /// First slot.
        first: u64,
        /// Last slot.
        last: u64,
        /// Room, in pages.
        room: u64,
    },
    /// The source refers to a slot nothing was ever put into.
    #[error("the source refers to slot {slot}, which was never written")]
    Unwritten {
        /// The slot.
        slot: u64,
    },
    /// The page tables grew beyond what any memory of this size needs.
    #[error("the source names pages in more than {limit} blocks of 2 MiB")]
    Scattered {
        /// How many are accepted.
        limit: u64,
    },
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All zero.
    Zero,
    /// The page in this slot; of a run, its first page, and the others in the slots behind.
    Slot(u32),
}

impl Content {
    fn from_place(place: Place) -> Self {
        match place {
            ZERO => Self::Zero,
            slot => Self::Slot(slot),
        }
    }
}

/// What a batch did, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Pages of data.
    pub data: u64,
    /// Zero pages.
    pub zero: u64,
    /// References to content that was there.
    pub referenced: u64,
    /// Pages named as gone; not all need have been known.
    pub forgotten: u64,
}

/// See the [module](self). The memory is given back when it is dropped.
#[derive(Debug)]
pub struct PageStore {
    file: File,
    memory: Mapping,
    room: u64,
    maps: Mutex<Maps>,
}

struct Maps {
    images: BTreeMap<ImageId, PageTable>,
    blocks: u64,
    /// For each slot, how many pages refer to it.
    users: Vec<u32>,
    /// A bit for each slot that ever got content.
    written: Vec<u64>,
    recent: Recent,
}

/// A bit for each slot that got content in the present round, and in the one before. The first round does not count: it
/// brings everything.
struct Recent {
    rounds: [Vec<u64>; 2],
    begun: u32,
}

impl Recent {
    fn begin_round(&mut self) {
        self.begun += 1;
        let [present, before] = &mut self.rounds;
        std::mem::swap(present, before);
        present.fill(0);
    }

    fn mark(&mut self, slot: u64) {
        if self.begun > 1 {
            self.rounds[0][(slot / 64) as usize] |= 1 << (slot % 64);
        }
    }

    fn contains(&self, slot: u64) -> bool {
        self.rounds.iter().any(|round| round[(slot / 64) as usize] & 1 << (slot % 64) != 0)
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").field("images", &self.images.len()).field("blocks", &self.blocks).finish()
    }
}

impl PageStore {
    /// A store with room for this many pages. The memory is really taken now, which costs about 0.2 s per GiB and saves
    /// that time later.
    pub fn reserve(pages: u64) -> Result<Self, StoreError> {
        Self::with_room(None, pages)
    }

    /// A store with at least this much room that goes on with the memfd of an earlier one: its contents are there to be
    /// referred to, and no page is known.
    pub fn adopt(file: File, pages: u64) -> Result<Self, StoreError> {
        Self::with_room(Some(file), pages)
    }

    fn with_room(kept: Option<File>, pages: u64) -> Result<Self, StoreError> {
        let system = |doing| move |source| StoreError::System { doing, source };
        let io_error =
            |doing| move |error: std::io::Error| StoreError::System { doing, source: errno(&error) };
        let before = match &kept {
            Some(file) => file.metadata().map_err(io_error("look at"))?.len(),
            None => 0,
        };
        let pages = pages.max(before / PAGE_SIZE);
        let available = available_memory().map_err(io_error("find the memory for"))?;
        let needed = pages.saturating_mul(PAGE_SIZE);
        if pages > SLOT_LIMIT || (needed - before).saturating_add(SPARE) > available {
            return Err(StoreError::Memory { needed: needed - before, available });
        }
        let file = match kept {
            Some(file) => file,
            None => mapping::memfd(c"godwit-pages", needed).map_err(system("create"))?,
        };
        file.set_len(needed).map_err(io_error("enlarge"))?;
        if needed > 0 {
            nix::fcntl::fallocate(&file, FallocateFlags::empty(), 0, needed as i64)
                .map_err(system("take the memory of"))?;
        }
        let memory = Mapping::read_only(&file, needed).map_err(system("map"))?;
        let bits = || vec![0; pages.div_ceil(64) as usize];
        let mut maps = Maps {
            images: BTreeMap::new(),
            blocks: 0,
            users: vec![0; pages as usize],
            written: bits(),
            recent: Recent { rounds: [bits(), bits()], begun: 0 },
        };
        let slots = memory.bytes().chunks_exact(PAGE_SIZE as usize).take((before / PAGE_SIZE) as usize);
        for (slot, page) in slots.enumerate() {
            if !is_zero(page) {
                maps.mark_written(slot as u64);
            }
        }
        Ok(Self { file, memory, room: pages, maps: Mutex::new(maps) })
    }

    /// Puts pages into slots from `first` on that no batch has spoken of, as far as there is room: their contents are there to be
    /// referred to, and no page is known. Pages that are all zero are not worth a slot. The first slot behind them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn preset(&self, first: u64, pages: &[u8]) -> Result<u64, StoreError> {
        let mut slot = first;
        for page in pages.chunks_exact(PAGE_SIZE as usize).filter(|page| !is_zero(page)) {
            if slot >= self.room {
                break;
            }
            let written = self.file.write_all_at(page, slot * PAGE_SIZE);
            written.map_err(|source| StoreError::Write { pages: 1, source })?;
            self.maps().mark_written(slot);
            slot += 1;
        }
        Ok(slot)
    }

    /// Every slot with content, and its digest.
    pub fn digests(&self, seed: u64) -> Vec<(u32, u128)> {
        let maps = self.maps();
        let written = (0..self.room as u32).filter(|slot| maps.is_written(u64::from(*slot)));
        written.map(|slot| (slot, PageLedger::digest(self.slice(slot, 1), seed))).collect()
    }

    /// Its room, in pages.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Gives all memory back, little by little, so that the tasks that now run need not wait for it. To be called when
    /// every page is in its place: all slots read as zeroes from then on.
    pub fn give_back(&self) {
        let bytes = self.memory.bytes().len() as u64;
        if let Err(error) = mapping::give_back(&self.file, bytes) {
            tracing::debug!(%error, "the page store is given back at once");
        }
    }

    /// The memfd with the pages: slot number times [`PAGE_SIZE`] is the offset.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A round begins: what comes from now on was written more recently than all before.
    pub fn begin_round(&self) {
        self.maps().recent.begin_round();
    }

    /// Those of the pages that came in this round or the one before, unless that was the first. Whoever wrote them a moment
    /// ago will soon want them again.
    pub fn recent(&self, pages: PageRun, content: Content) -> Vec<PageRun> {
        let Content::Slot(first) = content else { return Vec::new() };
        let maps = self.maps();
        let mut recent: Vec<PageRun> = Vec::new();
        for page in 0..pages.pages {
            if !maps.recent.contains(u64::from(first) + page) {
                continue;
            }
            let start = pages.start + page * PAGE_SIZE;
            match recent.last_mut() {
                Some(last) if last.end() == start => last.pages += 1,
                _ => recent.push(PageRun { start, pages: 1 }),
            }
        }
        recent
    }

    /// Carries out a batch. Several threads may do so at once as long as each gets the batches of its own stream, in
    /// order. After an error the store's content is not to be used.
    pub fn apply(&self, batch: &[u8]) -> Result<Applied, StoreError> {
        let batch = Batch::decode(batch)?;
        // First the content, without the lock; nobody reads it before the tables speak of it.
        for (run, data) in batch.runs() {
            match run.kind {
                Kind::Data { first } => {
                    self.check_slots(first, run.pages.pages)?;
                    let offset = u64::from(first) * PAGE_SIZE;
                    self.file
                        .write_all_at(data, offset)
                        .map_err(|source| StoreError::Write { pages: run.pages.pages, source })?;
                }
                Kind::Reference { first } => self.check_slots(first, run.pages.pages)?,
                Kind::Zero | Kind::Forget => {}
            }
        }
        let mut applied = Applied::default();
        let maps = &mut *self.maps();
        for (run, _) in batch.runs() {
            let pages = run.pages.pages;
            match run.kind {
                Kind::Data { first } => {
                    (u64::from(first)..u64::from(first) + pages).for_each(|slot| maps.mark_written(slot));
                    applied.data += pages;
                    maps.put(run, first, 1, self.room)?;
                }
                Kind::Reference { first } => {
                    let mut slots = u64::from(first)..u64::from(first) + pages;
                    if let Some(slot) = slots.find(|&slot| !maps.is_written(slot)) {
                        return Err(StoreError::Unwritten { slot });
                    }
                    applied.referenced += pages;
                    maps.put(run, first, 1, self.room)?;
                }
                Kind::Zero => {
                    applied.zero += pages;
                    maps.put(run, ZERO, 0, self.room)?;
                }
                Kind::Forget => {
                    applied.forgotten += pages;
                    maps.forget(run.image, run.pages);
                }
            }
        }
        Ok(applied)
    }

    /// The images that have pages.
    pub fn images(&self) -> Vec<ImageId> {
        self.maps().images.keys().copied().collect()
    }

    /// The pages of an image, ascending, in runs as long as they can be; only those in `range` if one is given (page
    /// aligned).
    pub fn runs(&self, image: ImageId, range: Option<Range<u64>>) -> Vec<(PageRun, Content)> {
        let maps = self.maps();
        let runs = maps.images.get(&image).map(|table| table.runs(range.unwrap_or(WHOLE)));
        let content = |(run, place)| (run, Content::from_place(place));
        runs.unwrap_or_default().into_iter().map(content).collect()
    }

    /// What a page holds, if it is known.
    pub fn find(&self, image: ImageId, address: u64) -> Option<Content> {
        let place = self.maps().images.get(&image)?.get(address);
        (place != ABSENT).then(|| Content::from_place(place))
    }

    /// Copies a page; false if it is not known.
    pub fn read(&self, image: ImageId, address: u64, into: &mut [u8; PAGE_SIZE as usize]) -> bool {
        match self.find(image, address) {
            None => return false,
            Some(Content::Zero) => into.fill(0),
            Some(Content::Slot(slot)) => into.copy_from_slice(self.slice(slot, 1)),
        }
        true
    }

    /// The content of consecutive slots; as much of it as exists. To be used when nothing more is applied.
    pub fn slice(&self, slot: u32, pages: u64) -> &[u8] {
        let first = u64::from(slot).min(self.room);
        let end = first.saturating_add(pages).min(self.room);
        &self.memory.bytes()[(first * PAGE_SIZE) as usize..(end * PAGE_SIZE) as usize]
    }

    /// How many pages of all images have the content of this slot.
    pub fn shared_by(&self, slot: u32) -> u32 {
        self.maps().users.get(slot as usize).copied().unwrap_or(0)
    }

    /// How many pages are known, and how many slots they use.
    pub fn used(&self) -> (u64, u64) {
        let maps = self.maps();
        let pages = maps.images.values().flat_map(|table| table.runs(WHOLE)).map(|(run, _)| run.pages).sum();
        (pages, maps.users.iter().filter(|&&users| users > 0).count() as u64)
    }

    /// Gives the memory of slots that nobody uses back to the system; nothing may be applied afterwards.
    pub fn shrink(&mut self) -> Result<(), StoreError> {
        let maps = self.maps();
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let mut slot = 0;
        while slot < maps.users.len() {
            let unused = maps.users[slot..].iter().take_while(|&&users| users == 0).count();
            if unused > 0 {
                let (offset, len) = (slot as u64 * PAGE_SIZE, unused as u64 * PAGE_SIZE);
                nix::fcntl::fallocate(&self.file, flags, offset as i64, len as i64)
                    .map_err(|source| StoreError::System { doing: "shrink", source })?;
            }
            slot += unused;
            slot += maps.users[slot..].iter().take_while(|&&users| users > 0).count();
        }
        Ok(())
    }

    fn check_slots(&self, first: u32, pages: u64) -> Result<(), StoreError> {
        let (first, end) = (u64::from(first), u64::from(first) + pages);
        match end <= self.room {
            true => Ok(()),
            false => Err(StoreError::Slot { first, last: end - 1, room: self.room }),
        }
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    fn mark_written(&mut self, slot: u64) {
        self.written[(slot / 64) as usize] |= 1 << (slot % 64);
        self.recent.mark(slot);
    }

    fn is_written(&self, slot: u64) -> bool {
        self.written[(slot / 64) as usize] & 1 << (slot % 64) != 0
    }

    /// Puts pages at `first` and the places behind it (`step` 1), or all at the same (0).
    fn put(&mut self, run: Run, first: Place, step: u32, room: u64) -> Result<(), StoreError> {
        let table = self.images.entry(run.image).or_default();
        let limit = room + SPARE_BLOCKS;
        let mut place = first;
        for piece in pieces(run.pages.start, run.pages.pages) {
            let before = table.len();
            let block = table.block_mut(piece.block);
            for index in piece.pages {
                if place < ZERO {
                    // More than 2^32 users can only be a lie of the peer; a wrong count harms nobody.
                    let users = &mut self.users[place as usize];
                    *users = users.wrapping_add(1);
                }
                let old = block.set(index, place);
                if old < ZERO {
                    let users = &mut self.users[old as usize];
                    *users = users.wrapping_sub(1);
                }
                place = place.wrapping_add(step);
            }
            self.blocks += (table.len() - before) as u64;
            if self.blocks > limit {
                return Err(StoreError::Scattered { limit });
            }
        }
        Ok(())
    }

    fn forget(&mut self, image: ImageId, pages: PageRun) {
        let Some(table) = self.images.get_mut(&image) else { return };
        let before = table.len();
        let users = &mut self.users;
        table.forget(pages.start..pages.end(), &mut |_, old| {
            if old < ZERO {
                users[old as usize] = users[old as usize].wrapping_sub(1);
            }
        });
        let left = table.len();
        self.blocks -= (before - left) as u64;
        if left == 0 {
            self.images.remove(&image);
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
