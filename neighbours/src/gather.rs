//! Gets chunks from several neighbours at once, in about the order in which they are needed.
//!
//! Each neighbour has a thread of its own, which asks what there is and then takes work from a common board: the next chunks that
//! this neighbour has and nobody was asked for. So whoever is quick gives more, and nothing has to be known of links and loads
//! beforehand. What somebody else was asked for long ago is asked for again by whoever has nothing else to do; the first answer
//! counts. A neighbour that fails, or gives what is not right, is asked no more, and what it was asked for is open again.
//!
//! There are two lines of chunks: those that are needed in order, and those [beside](Aside) them. Neither waits for the other, so that
//! whoever has only what stands far back in one line has work from the beginning.

mod aside;
mod lists;

pub use aside::{Aside, Needs, Take};
use lists::{Item, Lists};

use crate::question::{Known, MOST_ASKED, MOST_GIVEN, OfImage};
use godwit_migration::Cancel;
use godwit_migration::report::{CooperationReport, NeighbourReport};
use godwit_store::{Chunks, Digest, Manifest, ObjectId, Store, StoreError, object};
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Somebody who may have chunks.
pub trait Neighbour: Send {
    /// What it is called.
    fn name(&self) -> &str;

    /// Which of these chunks it has.
    ///
    /// # Errors
    /// Why it shall not be asked any more.
    fn has(&mut self, digests: &[Digest]) -> Result<Vec<bool>, String>;

    /// The checkpoints that it has of a container, the newest first.
    ///
    /// # Errors
    /// Why it shall not be asked any more.
    fn checkpoints(&mut self, container: &str) -> Result<Vec<Known>, String>;

    /// The checkpoints that it has of containers of an image, the newest first.
    ///
    /// # Errors
    /// Why it shall not be asked any more.
    fn of_image(&mut self, image: &str) -> Result<Vec<OfImage>, String>;

    /// A manifest, verified by its digest; none when it has it no more.
    ///
    /// # Errors
    /// Why it shall not be asked any more.
    fn manifest(&mut self, digest: Digest) -> Result<Option<Manifest>, String>;

    /// These chunks, each verified by its digest; none for what it has no more.
    ///
    /// # Errors
    /// Why it shall not be asked any more.
    fn give(&mut self, digests: &[Digest]) -> Result<Vec<Option<Vec<u8>>>, String>;
}

/// How many neighbours are made use of at most.
pub const MOST_NEIGHBOURS: usize = 64;
/// Chunks of each line that may be asked for ahead of the one that is needed next: 64 MiB of common ones, of files and of memory.
const AHEAD: [usize; 2] = [1024, 256];
/// The line of what is needed in order, and that of what is needed beside it.
const IN_ORDER: usize = 0;
const ASIDE: usize = 1;
/// Bytes of one question, about: a slow link shall not be busy with one for long.
const QUESTION: u64 = 2 << 20;
/// After this time somebody else may be asked, too.
const LATE: Duration = Duration::from_secs(1);
/// Chunks that are needed again later are kept up to this many bytes; beyond it the source sends them.
const KEPT: u64 = 64 << 20;
/// How often whoever waits looks around.
const LOOK_UP: Duration = Duration::from_millis(50);
/// When nothing has come for this long, nothing is waited for any more.
const GIVE_UP: Duration = Duration::from_secs(10);
/// The source is believed to be quicker only after this time.
const JUDGED: Duration = Duration::from_secs(2);

struct State {
    items: HashMap<Digest, Item>,
    /// Of each line the place of the chunk that is needed next, and the end.
    lines: [(usize, usize); 2],
    /// Somebody takes what is needed aside.
    is_aside_busy: bool,
    /// Neighbours that have not told yet what they have.
    silent: usize,
    /// Bytes of chunks that are kept for later uses.
    kept: u64,
    received: u64,
    last_received: Instant,
    is_over: bool,
    reports: Vec<NeighbourReport>,
}

struct Board<'a> {
    order: &'a [Digest],
    state: Mutex<State>,
    news: Condvar,
}

impl Board<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.news.wait_timeout(state, LOOK_UP).map_or_else(|poisoned| poisoned.into_inner().0, |both| both.0)
    }

    /// All that one neighbour does.
    fn employ(&self, number: usize, mut neighbour: Box<dyn Neighbour + '_>) {
        let mut has_told = false;
        let worked = self.work(number, neighbour.as_mut(), &mut has_told);
        let mut state = self.lock();
        if let Err(why) = worked
            && !state.is_over
        {
            tracing::info!(neighbour = neighbour.name(), why, "a neighbour is asked no more");
            state.reports[number].failed = Some(why);
            let bit = 1 << number;
            state.items.values_mut().for_each(|item| {
                item.holders &= !bit;
                item.asked &= !bit;
            });
        }
        if !has_told {
            state.silent -= 1;
        }
        self.news.notify_all();
    }

    fn work(&self, number: usize, neighbour: &mut dyn Neighbour, has_told: &mut bool) -> Result<(), String> {
        let bit = 1u64 << number;
        for digests in self.order.chunks(MOST_ASKED) {
            let has = neighbour.has(digests)?;
            let mut state = self.lock();
            for (digest, _) in digests.iter().zip(has).filter(|(_, has)| *has) {
                if let Some(item) = state.items.get_mut(digest) {
                    item.holders |= bit;
                }
            }
            if state.is_over {
                return Ok(());
            }
            self.news.notify_all();
        }
        self.lock().silent -= 1;
        *has_told = true;
        self.news.notify_all();
        while let Some(digests) = self.next_question(bit) {
            let chunks = neighbour.give(&digests)?;
            let mut state = self.lock();
            for (digest, chunk) in digests.iter().zip(chunks) {
                state.take(number, digest, chunk);
            }
            self.news.notify_all();
        }
        Ok(())
    }

    /// What to ask a neighbour for; none when there is nothing more to do.
    fn next_question(&self, bit: u64) -> Option<Vec<Digest>> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                return None;
            }
            let question = state.question(self.order, bit);
            if !question.is_empty() {
                return Some(question);
            }
            state = self.wait(state);
        }
    }
}

impl State {
    fn question(&mut self, order: &[Digest], bit: u64) -> Vec<Digest> {
        let windows = [IN_ORDER, ASIDE].map(|line| {
            let (next, end) = self.lines[line];
            &order[next..end.min(next + AHEAD[line])]
        });
        let mut late = Vec::new();
        let mut fresh = Vec::new();
        let mut bytes = 0;
        for digest in windows.into_iter().flatten() {
            let Some(item) = self.items.get(digest) else { continue };
            if item.is_settled || item.content.is_some() || item.holders & bit == 0 || item.asked & bit != 0 {
                continue;
            }
            if item.asked == 0 {
                fresh.push(*digest);
                bytes += item.bytes;
            } else if item.asked_at.elapsed() > LATE && late.len() < MOST_GIVEN {
                late.push(*digest);
            }
            if fresh.len() == MOST_GIVEN || bytes >= QUESTION {
                break;
            }
        }
        let question = if fresh.is_empty() { late } else { fresh };
        for digest in &question {
            if let Some(item) = self.items.get_mut(digest) {
                item.asked |= bit;
                item.asked_at = Instant::now();
            }
        }
        question
    }

    /// Whether a chunk may come yet.
    fn is_awaited(&self, digest: &Digest) -> bool {
        let may_come = |item: &Item| {
            let is_lost = self.silent == 0 && item.holders == 0;
            item.content.is_none() && !item.is_settled && !is_lost
        };
        self.items.get(digest).is_some_and(may_come)
    }

    /// What has come of a chunk; it is kept if it is needed again and there is room.
    fn use_up(&mut self, digest: &Digest) -> Option<Vec<u8>> {
        let item = self.items.get_mut(digest)?;
        item.uses = item.uses.saturating_sub(1);
        let content = item.content.take()?;
        if std::mem::take(&mut item.is_kept) {
            self.kept -= item.bytes;
        }
        if item.uses > 0 && self.kept + item.bytes <= KEPT {
            item.content = Some(content.clone());
            item.is_kept = true;
            self.kept += item.bytes;
        } else {
            item.is_settled = true;
        }
        Some(content)
    }

    fn take(&mut self, number: usize, digest: &Digest, chunk: Option<Vec<u8>>) {
        let Some(item) = self.items.get_mut(digest) else { return };
        item.asked &= !(1 << number);
        match chunk {
            None => item.holders &= !(1 << number),
            Some(bytes) if item.content.is_none() && !item.is_settled => {
                self.received += bytes.len() as u64;
                self.last_received = Instant::now();
                self.reports[number].bytes += bytes.len() as u64;
                item.content = Some(bytes);
            }
            Some(_) => {}
        }
    }
}

/// Chunks as they come: from this host's store, and from neighbours.
pub struct Gathering<'a> {
    board: &'a Board<'a>,
    line: usize,
    own: Option<&'a Store>,
    source_bytes_per_s: u64,
    begun: Instant,
    own_bytes: u64,
    /// Of the own store, those that were counted: what is needed twice counts once.
    counted: HashMap<Digest, u64>,
    /// Told now and then while chunks are waited for; may end it.
    alive: &'a mut dyn FnMut() -> Result<(), StoreError>,
    has_given_up: bool,
}

impl Chunks for Gathering<'_> {
    fn chunk(&mut self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        (self.alive)()?;
        if self.counted.contains_key(&digest) {
            return Ok(self.of_own_store(digest));
        }
        let mut state = self.board.lock();
        if let Some(item) = state.items.get(&digest) {
            let at = item.at;
            let (next, _) = &mut state.lines[self.line];
            *next = at.max(*next);
        }
        while !self.has_given_up && state.is_awaited(&digest) {
            if self.is_hopeless(&state) {
                self.has_given_up = true;
                break;
            }
            drop(self.board.wait(state));
            (self.alive)()?;
            state = self.board.lock();
        }
        Ok(state.use_up(&digest))
    }
}

impl<'a> Gathering<'a> {
    fn new(
        board: &'a Board<'a>,
        line: usize,
        own: Option<&'a Store>,
        counted: HashMap<Digest, u64>,
        source_bytes_per_s: u64,
        alive: &'a mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Self {
        let begun = Instant::now();
        Self {
            board,
            line,
            own,
            source_bytes_per_s,
            begun,
            own_bytes: 0,
            counted,
            alive,
            has_given_up: false,
        }
    }

    fn of_own_store(&mut self, digest: Digest) -> Option<Vec<u8>> {
        let chunk = self.own?.chunk_as_stored(digest).ok()?;
        let bytes = object::decode(ObjectId::chunk(digest), &chunk).ok()?;
        self.own_bytes += self.counted.insert(digest, 0).unwrap_or(0);
        Some(bytes)
    }

    /// Whether it is better not to wait any more: nothing comes, or the source would be quicker.
    fn is_hopeless(&self, state: &State) -> bool {
        let spent = self.begun.elapsed();
        let rate = state.received as f64 / spent.as_secs_f64().max(1e-3);
        state.last_received.elapsed() > GIVE_UP || spent > JUDGED && rate < self.source_bytes_per_s as f64
    }
}

/// Has `work` done with the chunks that are needed in order, as far as they are to be had, and those aside taken meanwhile.
/// `over` is raised when nothing more is wanted of any neighbour. `source_bytes_per_s`: what the source could send meanwhile, 0 when that
/// is not known. `alive` is called at least ten times a second as long as chunks are asked for, or come aside; when it says no more, nothing
/// more comes.
pub fn gather<T>(
    needs: Needs<'_>,
    own: Option<&Store>,
    neighbours: Vec<Box<dyn Neighbour + '_>>,
    over: &Cancel,
    source_bytes_per_s: u64,
    alive: &mut dyn FnMut() -> Result<(), StoreError>,
    work: impl FnOnce(&mut Gathering<'_>) -> T,
) -> (T, CooperationReport) {
    let begun = Instant::now();
    let Needs { in_order, aside } = needs;
    let mut lists = Lists::default();
    let of_own = lists.line_up(in_order, own);
    let end = lists.order.len();
    let all_aside = aside.as_ref().map_or(&[][..], |aside| aside.needs);
    let only_aside: Vec<_> =
        all_aside.iter().filter(|(digest, _)| !lists.items.contains_key(digest)).copied().collect();
    let of_own_aside = lists.line_up(&only_aside, own);
    let Lists { order, items, wanted_bytes } = lists;
    let neighbours: Vec<_> = neighbours.into_iter().take(MOST_NEIGHBOURS).collect();
    let state = State {
        items,
        lines: [(0, end), (end, order.len())],
        is_aside_busy: aside.is_some(),
        silent: neighbours.len(),
        kept: 0,
        received: 0,
        last_received: begun,
        is_over: false,
        reports: neighbours.iter().map(|neighbour| report_of(neighbour.as_ref())).collect(),
    };
    let board = Board { order: &order, state: Mutex::new(state), news: Condvar::new() };
    let (worked, own_bytes) = std::thread::scope(|scope| {
        let board = &board;
        for (number, neighbour) in neighbours.into_iter().enumerate() {
            scope.spawn(move || board.employ(number, neighbour));
        }
        let aside = aside.map(|aside| {
            let aside = Aside { needs: &only_aside, ..aside };
            scope.spawn(move || {
                let mut alive = || board.go_on();
                let mut gathering =
                    Gathering::new(board, ASIDE, own, of_own_aside, source_bytes_per_s, &mut alive);
                aside.take_all(board, &mut gathering);
                gathering.own_bytes
            })
        });
        let mut gathering = Gathering::new(board, IN_ORDER, own, of_own, source_bytes_per_s, alive);
        let worked = work(&mut gathering);
        let own_bytes_aside = aside.map(|aside| {
            board.wait_for(&aside, gathering.alive);
            aside.join().unwrap_or_default()
        });
        board.lock().is_over = true;
        over.raise();
        board.news.notify_all();
        (worked, gathering.own_bytes + own_bytes_aside.unwrap_or_default())
    });
    let state = board.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    let report = CooperationReport {
        wanted_bytes,
        pages: 0,
        own_bytes,
        neighbours: state.reports,
        earlier: None,
        duration: begun.elapsed(),
    };
    (worked, report)
}

fn report_of(neighbour: &dyn Neighbour) -> NeighbourReport {
    NeighbourReport { neighbour: neighbour.name().to_owned(), ..NeighbourReport::default() }
}

#[cfg(test)]
mod tests;
