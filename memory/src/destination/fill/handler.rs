//! The handler process: one thread that answers faults and follows what the tasks do to their mappings, and the background
//! threads.

use super::FillError;
use super::background::Pool;
use super::guard::Guard;
use super::journal::{Counter, Journal, Record};
use super::lists::{self, List};
use super::message::{FORKED_FROM, Message, SpaceId};
use super::runs::Runs;
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
const MAKE_WAY: std::time::Duration = std::time::Duration::from_micros(10);

const CONTROL: u64 = u64::MAX;
const DONE: u64 = u64::MAX - 1;

/// An address space, as the fault thread knows it.
struct Entry {
    space: Arc<Space>,
    /// All its pages with content, filled or not: what a fault is answered from.
    list: Runs,
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
            let timeout = match self.waiting.is_empty() {
                true => EpollTimeout::NONE,
                false if self.retries < EAGER_RETRIES => EpollTimeout::ZERO,
                false => EpollTimeout::from(1u8),
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                result => result.map_err(|source| FillError::System { doing: "wait for faults", source })?,
            };
            let mut touched = Vec::new();
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
                let List { runs, first } = self.lists.get(&vpid).cloned().unwrap_or_default();
                let list = self.inherited.remove(&id).unwrap_or_else(|| {
                    self.pool.journal.note(Record::Root { id, vpid });
                    runs
                });
                self.adopt(id, Userfaultfd::from_fd(uffd), list.clone(), list, first)?;
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
        todo: Runs,
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
        let space = Arc::new(Space::new(id, uffd, todo, first));
        self.pool.add(space.clone());
        self.spaces.insert(id, Entry { space, list, leaving: false });
        Ok(())
    }

    fn start(&mut self) {
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
                    let ends = (from.saturating_add(len), to.saturating_add(len));
                    if entry.list.overlaps(from, ends.0) || entry.list.overlaps(to, ends.1) {
                        journal.note(Record::Move { id, from, to, len });
                        entry.list.move_range(from, to, len);
                        let mut todo = space.todo();
                        let before = todo.pages();
                        todo.move_range(from, to, len);
                        journal
                            .counter(Counter::Remaining)
                            .fetch_sub(before - todo.pages(), Ordering::Relaxed);
                    }
                }
                Event::Change(Change::Remove { start, end }) => {
                    journal.count(Counter::Removes, 1);
                    cut(entry, &space, journal, start, end);
                }
                Event::Change(Change::Unmap { start, end }) => {
                    journal.count(Counter::Unmaps, 1);
                    cut(entry, &space, journal, start, end);
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
        let Some(entry) = self.spaces.get(&id) else { return };
        if entry.leaving || !entry.space.is_done() {
            return;
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
