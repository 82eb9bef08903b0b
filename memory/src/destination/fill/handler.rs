//! The handler process: one thread that answers faults and follows what the tasks do to their mappings, and the background
//! threads.

use super::FillError;
use super::background::Pool;
use super::guard::Guard;
use super::journal::{Counter, Journal, Record};
use super::lists::{self, List};
use super::message::{FORKED_FROM, Message, SpaceId};
use super::runs::{Run, Runs};
use super::space::{Outcome, Space};
use crate::sys::mapping::Mapping;
use crate::sys::process;
use crate::sys::userfaultfd::{Change, Event, Userfaultfd};
use crate::{PAGE_SIZE, PageRun};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Around a page that was asked for, the others of this aligned piece follow at once: 16 KiB. The next fault waits for them.
const WINDOW: u64 = 4 * PAGE_SIZE;
/// Those of this aligned piece come next of all that is filled in the background: 512 KiB.
const NEIGHBOURHOOD: u64 = 128 * PAGE_SIZE;
/// Events of one address space before another one has its turn.
const EVENTS: usize = 256;
/// Where user space begins and ends, for a wake of everything.
const USER_SPACE: std::ops::Range<u64> = 0x10000..0x7fff_ffff_f000;
/// Nice value of the thread that answers faults, where it cannot come first of all: it has little to do, and a task waits for it.
const NICE: i32 = -20;
/// How often a fault is tried again at once before it is only tried every millisecond.
const EAGER_RETRIES: u32 = 200;

/// Before that it leaves the processor for so long: whoever it waits for does not get it otherwise.
const MAKE_WAY: Duration = Duration::from_micros(10);

/// Where lists keep, out of user space, what was at an address when something else was moved there: it was moved away or unmapped
/// itself just before, and that is yet to be heard.
const PARKING: u64 = 1 << 60;
/// That a range is unmapped is heard so soon after that it was moved, or not at all (`MREMAP_DONTUNMAP`).
const VACATED: Duration = Duration::from_secs(1);
/// What became of parked pages is heard so soon, or never: who would have told is dead.
const PARKED: Duration = Duration::from_secs(10);
/// How often that is looked at, in ms.
const PARKED_LOOK: u16 = 500;

const CONTROL: u64 = u64::MAX;
const DONE: u64 = u64::MAX - 1;

/// An address space, as the fault thread knows it.
struct Entry {
    space: Arc<Space>,
    /// All its pages with content, filled or not: what a fault is answered from.
    list: Runs,
    /// Ranges that were moved away, and when it was heard: that they are unmapped is told as well, after it.
    vacated: Vec<(u64, u64, Instant)>,
    /// Pages that nobody has put in place yet of what is parked (see [`PARKING`]).
    parked: Runs,
    parked_at: Instant,
    /// Pages that are put in place when the restore has ended ([`TaskPages::anchors`](super::TaskPages)).
    anchors: Vec<u64>,
    /// The supervisor was asked to let go of it.
    leaving: bool,
}

struct Handler {
    control: OwnedFd,
    /// Gone, it is not told anything any more; the fill goes on.
    supervised: bool,
    epoll: Epoll,
    pool: Arc<Pool>,
    lists: HashMap<u32, List>,
    /// What a predecessor left: address spaces by number that were not handed over again yet.
    inherited: HashMap<SpaceId, Runs>,
    spaces: BTreeMap<SpaceId, Entry>,
    next_fork: SpaceId,
    /// Faults that could not be answered yet.
    waiting: Vec<(SpaceId, u64)>,
    retries: u32,
}

/// Runs the handler until everything is filled; `control` is the socket from [`Filler`](super::Filler).
pub fn run_fill(control: OwnedFd) -> Result<(), FillError> {
    // A session of its own: what ends the supervisor's must not end this.
    let _ = nix::unistd::setsid();
    process::raise_descriptor_limit();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let system = |doing| move |source| FillError::System { doing, source };
    let Some((Message::Hello { store, journal }, files)) =
        Message::receive(&control, true).map_err(system("hear from the supervisor"))?
    else {
        return Err(FillError::Protocol);
    };
    let [store_file, journal_file] = <[OwnedFd; 2]>::try_from(files).map_err(|_| FillError::Protocol)?;
    let store = Mapping::read_only(&store_file, store).map_err(system("map the page store"))?;
    let journal = Journal::open(&journal_file, journal).map_err(system("map the journal"))?;
    let _guard = Guard::start(control.as_fd(), &journal).map_err(system("start the guard"))?;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let done = EventFd::from_flags(flags).map_err(system("make an event descriptor"))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("make an epoll"))?;
    let watch =
        |fd: std::os::fd::BorrowedFd<'_>, data| epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, data));
    watch(control.as_fd(), CONTROL).and(watch(done.as_fd(), DONE)).map_err(system("watch the supervisor"))?;
    // A predecessor's count of what is left has no meaning any more: all is looked at again.
    for counter in [Counter::Remaining, Counter::Total] {
        journal.counter(counter).store(0, Ordering::Relaxed);
    }
    let pool = Arc::new(Pool::new(store, journal, done));
    let threads = pool.spawn();
    process::set_pace(NICE);
    process::come_first();
    let mut handler = Handler {
        control,
        supervised: true,
        epoll,
        pool: pool.clone(),
        lists: HashMap::new(),
        inherited: HashMap::new(),
        spaces: BTreeMap::new(),
        next_fork: FORKED_FROM,
        waiting: Vec::new(),
        retries: 0,
    };
    let result = handler.run();
    process::come_last();
    pool.stop();
    drop(handler);
    for thread in threads {
        let _ = thread.join();
    }
    result
}

impl Handler {
    fn run(&mut self) -> Result<(), FillError> {
        while self.hear(true)? != Some(Message::Resume) {}
        let mut events = vec![EpollEvent::empty(); 64];
        let mut faults = Vec::new();
        while !(self.pool.is_started() && self.spaces.is_empty()) {
            let parked: Vec<SpaceId> =
                self.spaces.iter().filter(|(_, entry)| !entry.parked.is_empty()).map(|(id, _)| *id).collect();
            let timeout = match self.waiting.is_empty() {
                true if parked.is_empty() => EpollTimeout::NONE,
                true => EpollTimeout::from(PARKED_LOOK),
                false if self.retries < EAGER_RETRIES => EpollTimeout::ZERO,
                false => EpollTimeout::from(1u8),
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                result => result.map_err(|source| FillError::System { doing: "wait for faults", source })?,
            };
            let mut touched = parked;
            for event in &events[..count] {
                match event.data() {
                    CONTROL => while self.hear(false)?.is_some() {},
                    DONE => {
                        let _ = self.pool.done().read();
                        touched.extend(self.spaces.keys().copied());
                    }
                    id => {
                        self.read_events(id, &mut faults);
                        touched.push(id);
                    }
                }
            }
            let waited = self.waiting.len();
            faults.append(&mut self.waiting);
            self.answer(&faults);
            faults.clear();
            self.retries = if waited > 0 && !self.waiting.is_empty() { self.retries + 1 } else { 0 };
            if !self.waiting.is_empty() {
                std::thread::sleep(MAKE_WAY);
            }
            if self.pool.is_started() {
                for id in touched {
                    self.finish(id);
                }
            }
        }
        if self.supervised {
            let _ = Message::Finished.send(&self.control, &[], true);
        }
        Ok(())
    }

    /// Does the next thing the supervisor says. Gives what it was; nothing if there is nothing, without `wait`.
    fn hear(&mut self, wait: bool) -> Result<Option<Message>, FillError> {
        let (message, descriptors) = match Message::receive(&self.control, wait) {
            Err(Errno::EAGAIN) => return Ok(None),
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => {
                // Whatever became of it: the tasks need their pages.
                self.supervised = false;
                let _ = self.epoll.delete(&self.control);
                self.start();
                return Ok(wait.then_some(Message::Resume));
            }
        };
        match (message, descriptors.into_iter().next()) {
            (Message::Lists, Some(file)) => self.take_lists(File::from(file))?,
            (Message::Root { id, vpid }, Some(uffd)) => {
                let List { runs, anchors, first } = self.lists.get(&vpid).cloned().unwrap_or_default();
                let list = self.inherited.remove(&id).unwrap_or_else(|| {
                    self.pool.journal.note(Record::Root { id, vpid });
                    runs
                });
                self.adopt(id, Userfaultfd::from_fd(uffd), list.clone(), list, first)?;
                if let Some(entry) = self.spaces.get_mut(&id) {
                    entry.anchors = anchors;
                }
            }
            (Message::Forked { id, parent }, Some(uffd)) => {
                let list = self.inherited.remove(&id).unwrap_or_else(|| {
                    // The predecessor could not even note it: nothing happened to the parent since.
                    self.pool.journal.note(Record::Fork { id, parent });
                    let list = self.spaces.get(&parent).map(|entry| &entry.list);
                    list.or_else(|| self.inherited.get(&parent)).cloned().unwrap_or_default()
                });
                self.next_fork = self.next_fork.max(id + 1);
                self.adopt(id, Userfaultfd::from_fd(uffd), list.clone(), list, Vec::new())?;
            }
            (Message::Resume, _) => {}
            (Message::Start, _) => self.start(),
            (Message::Left { id }, _) => self.drop_space(id),
            _ => return Err(FillError::Protocol),
        }
        Ok(Some(message))
    }

    fn take_lists(&mut self, file: File) -> Result<(), FillError> {
        let room = self.pool.store.bytes().len() as u64 / PAGE_SIZE;
        self.lists = lists::read(file, room).map_err(|_| FillError::Protocol)?;
        self.pool.journal.settle();
        self.inherited = self.pool.journal.replay(&self.lists);
        let forks = self.inherited.keys().copied().filter(|&id| id >= FORKED_FROM).max();
        self.next_fork = forks.map_or(FORKED_FROM, |last| last + 1);
        Ok(())
    }

    /// Takes an address space over: from CRIU, from a fork, or from a predecessor that may have read a fault and not
    /// answered it.
    fn adopt(
        &mut self,
        id: SpaceId,
        uffd: Userfaultfd,
        list: Runs,
        mut todo: Runs,
        first: Vec<PageRun>,
    ) -> Result<(), FillError> {
        let system = |doing| move |source| FillError::System { doing, source };
        let flags = fcntl(&uffd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        flags
            .and_then(|flags| fcntl(&uffd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
            .map_err(system("use a userfaultfd"))?;
        let _ = uffd.wake(USER_SPACE.start, USER_SPACE.end - USER_SPACE.start);
        self.epoll
            .add(&uffd, EpollEvent::new(EpollFlags::EPOLLIN, id))
            .map_err(system("watch a userfaultfd"))?;
        self.pool.count_todo(todo.pages());
        let parked = Runs::collect(todo.cut(PARKING, PARKING << 1).into_iter());
        let space = Arc::new(Space::new(id, uffd, todo, first));
        self.pool.add(space.clone());
        self.spaces.insert(
            id,
            Entry {
                space,
                list,
                vacated: Vec::new(),
                parked,
                parked_at: Instant::now(),
                anchors: Vec::new(),
                leaving: false,
            },
        );
        Ok(())
    }

    fn start(&mut self) {
        for entry in self.spaces.values_mut() {
            for address in std::mem::take(&mut entry.anchors) {
                entry.space.fill_one(address, &self.pool.store, &self.pool.journal);
            }
        }
        self.pool.journal.count(Counter::Anchored, 1);
        self.pool.start();
        let ids: Vec<SpaceId> = self.spaces.keys().copied().collect();
        for id in ids {
            // Without a supervisor there is nobody to wait for.
            if !self.supervised && self.spaces.get(&id).is_some_and(|entry| entry.leaving) {
                self.drop_space(id);
            } else {
                self.finish(id);
            }
        }
    }

    /// Reads what happened to an address space. Faults are collected, the rest is acted on.
    fn read_events(&mut self, id: SpaceId, faults: &mut Vec<(SpaceId, u64)>) {
        let Some(entry) = self.spaces.get_mut(&id) else { return };
        let space = entry.space.clone();
        let mut forked = Vec::new();
        let gate = space.close_gate();
        for _ in 0..EVENTS {
            let event = match space.uffd.next_event(self.pool.journal.inbox(id, self.next_fork)) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(id, %error, "cannot read the events of an address space");
                    break;
                }
            };
            let journal = &self.pool.journal;
            match event {
                Event::Fault { address } => faults.push((id, address & !(PAGE_SIZE - 1))),
                Event::Fork(uffd) => {
                    journal.count(Counter::Forks, 1);
                    let child = self.next_fork;
                    self.next_fork += 1;
                    let todo = space.todo().clone();
                    // A child whose parent has all its pages has them as well: closing the descriptor is enough.
                    if todo.is_empty() {
                        journal.clear_inbox();
                        continue;
                    }
                    if self.supervised {
                        let message = Message::Forked { id: child, parent: id };
                        match message.send(&self.control, &[uffd.as_fd()], false) {
                            // It is safe now.
                            Ok(()) => journal.clear_inbox(),
                            Err(error) => {
                                tracing::warn!(%error, "a forked child would not outlive the handler")
                            }
                        }
                    }
                    journal.note(Record::Fork { id: child, parent: id });
                    forked.push((child, Userfaultfd::from_fd(uffd), entry.list.clone(), todo));
                }
                Event::Change(Change::Remap { from, to, len }) => {
                    journal.count(Counter::Remaps, 1);
                    relocate(entry, &space, journal, from, to, len);
                }
                Event::Change(Change::Remove { start, end }) => {
                    journal.count(Counter::Removes, 1);
                    cut(entry, &space, journal, start, end);
                }
                Event::Change(Change::Unmap { start, end }) => {
                    journal.count(Counter::Unmaps, 1);
                    unmap(entry, &space, journal, start, end);
                }
            }
            journal.clear_inbox();
        }
        drop(gate);
        for (child, uffd, list, todo) in forked {
            if let Err(error) = self.adopt(child, uffd, list, todo, Vec::new()) {
                tracing::warn!(%error, "cannot follow a forked child");
            }
        }
    }

    /// Answers faults: first everybody's page, then what lies around.
    fn answer(&mut self, faults: &[(SpaceId, u64)]) {
        for &(id, page) in faults {
            let Some(entry) = self.spaces.get(&id) else { continue };
            let slot = entry.list.find(page).map(|run| run.slot + (page - run.start) / PAGE_SIZE);
            let (store, journal) = (&self.pool.store, &self.pool.journal);
            match entry.space.answer(page, slot, store, journal) {
                Outcome::Later => self.waiting.push((id, page)),
                Outcome::Gone => entry.space.set_gone(journal),
                Outcome::Done => {
                    journal.count(Counter::Faults, 1);
                    let filled: u64 =
                        entry.space.todo().cut(page, page + PAGE_SIZE).iter().map(|run| run.pages).sum();
                    journal.counter(Counter::Remaining).fetch_sub(filled, Ordering::Relaxed);
                }
            }
        }
        if !faults.is_empty() {
            self.pool.note_fault();
        }
        for &(id, page) in faults {
            let Some(entry) = self.spaces.get(&id) else { continue };
            let start = page & !(NEIGHBOURHOOD - 1);
            entry.space.hasten(PageRun { start, pages: NEIGHBOURHOOD / PAGE_SIZE });
            let start = page & !(WINDOW - 1);
            let around = entry.space.todo().cut(start, start + WINDOW);
            for run in around {
                let _ = entry.space.fill(run, &self.pool.store, &self.pool.journal);
            }
        }
    }

    /// Lets go of an address space that has all its pages: first the supervisor, then this process, so that the kernel
    /// forgets the registration with the last descriptor, and no fault is left without an answer in between.
    fn finish(&mut self, id: SpaceId) {
        let Some(entry) = self.spaces.get_mut(&id) else { return };
        if entry.leaving || !entry.space.is_done() {
            return;
        }
        if !entry.parked.is_empty() {
            if entry.parked_at.elapsed() < PARKED {
                return;
            }
            let pages = std::mem::take(&mut entry.parked).pages();
            tracing::warn!(id, pages, "nothing was heard any more of where pages were moved");
            self.pool.journal.counter(Counter::Remaining).fetch_sub(pages, Ordering::Relaxed);
        }
        // Whoever copies now may give something back.
        drop(entry.space.close_gate());
        if !entry.space.is_done() {
            return;
        }
        let asked = self.supervised && Message::Leave { id }.send(&self.control, &[], true).is_ok();
        match self.spaces.get_mut(&id) {
            Some(entry) if asked => entry.leaving = true,
            _ => self.drop_space(id),
        }
    }

    fn drop_space(&mut self, id: SpaceId) {
        if let Some(entry) = self.spaces.remove(&id) {
            let _ = self.epoll.delete(&entry.space.uffd);
            self.pool.remove(&entry.space);
            self.waiting.retain(|(other, _)| *other != id);
        }
    }
}

/// A range was moved (mremap(2)). The kernel moves, gives the lock of the address space back and tells of it then: another thread may
/// have moved something to where this one was, and be heard first. So what the list still has there is parked until it is heard of.
fn relocate(entry: &mut Entry, space: &Space, journal: &Journal, from: u64, to: u64, len: u64) {
    let ends = (from.saturating_add(len), to.saturating_add(len));
    entry.vacated.retain(|(.., when)| when.elapsed() < VACATED);
    entry.vacated.push((from, ends.0, Instant::now()));
    let from = if entry.list.overlaps(PARKING | from, PARKING | ends.0) { PARKING | from } else { from };
    let move_all = |entry: &mut Entry, from: u64, to: u64| {
        journal.note(Record::Move { id: space.id, from, to, len });
        entry.list.move_range(from, to, len);
        let mut todo = space.todo();
        let before = todo.pages() + entry.parked.pages();
        let runs = [&mut *todo, &mut entry.parked].map(|runs| runs.cut(from, from.saturating_add(len)));
        let target = if to & PARKING == 0 { &mut *todo } else { &mut entry.parked };
        target.cut(to, to.saturating_add(len));
        for run in runs.into_iter().flatten() {
            target.insert(Run { start: run.start - from + to, ..run });
        }
        let left = todo.pages() + entry.parked.pages();
        journal.counter(Counter::Remaining).fetch_sub(before - left, Ordering::Relaxed);
    };
    if entry.list.overlaps(to, ends.1) {
        entry.parked_at = Instant::now();
        move_all(entry, to, PARKING | to);
    }
    if entry.list.overlaps(from, from.saturating_add(len)) {
        move_all(entry, from, to);
    }
}

/// A range was unmapped: by itself, or since it was moved away, which was heard before. In between something else may have come
/// there, see [`relocate`].
fn unmap(entry: &mut Entry, space: &Space, journal: &Journal, start: u64, end: u64) {
    let was_moved =
        |(from, to, when): &(u64, u64, Instant)| (*from, *to) == (start, end) && when.elapsed() < VACATED;
    if let Some(place) = entry.vacated.iter().position(was_moved) {
        entry.vacated.remove(place);
        return;
    }
    if entry.list.overlaps(PARKING | start, PARKING | end) {
        let (start, end) = (PARKING | start, PARKING | end);
        journal.note(Record::Cut { id: space.id, start, end });
        entry.list.cut(start, end);
        let filled: u64 = entry.parked.cut(start, end).iter().map(|run| run.pages).sum();
        journal.counter(Counter::Remaining).fetch_sub(filled, Ordering::Relaxed);
        return;
    }
    cut(entry, space, journal, start, end);
}

/// A range is not to be filled any more.
fn cut(entry: &mut Entry, space: &Space, journal: &Journal, start: u64, end: u64) {
    if !entry.list.overlaps(start, end) {
        return;
    }
    journal.note(Record::Cut { id: space.id, start, end });
    entry.list.cut(start, end);
    let filled: u64 = space.todo().cut(start, end).iter().map(|run| run.pages).sum();
    journal.counter(Counter::Remaining).fetch_sub(filled, Ordering::Relaxed);
}
