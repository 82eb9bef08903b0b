//! The background threads: they fill what no fault asked for.

use super::journal::{Counter, Journal};
use super::space::{Outcome, Space};
use crate::sys::mapping::Mapping;
use crate::sys::process;
use nix::sys::eventfd::EventFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pages that are copied at a time: 32 KiB, about 10 µs. As long a fault may have to wait.
const CHUNK: u64 = 8;
/// Chunks of one address space before another one has its turn.
const TURN: usize = 64;
/// Somebody waited for a page this short a time ago: the tasks are at work, and background threads only take half of a
/// processor each.
const BUSY: Duration = Duration::from_millis(20);
/// Nice value of the background threads. Not above 0: one that is held up within a chunk holds up the faults of its task.
const NICE: i32 = 0;

/// What the threads of the handler share.
pub(super) struct Pool {
    pub(super) store: Mapping,
    pub(super) journal: Journal,
    work: Mutex<Work>,
    changed: Condvar,
    /// Tells the fault thread that an address space is done with.
    done: EventFd,
    stop: AtomicBool,
    birth: Instant,
    /// When the last fault was answered, in µs since `birth`.
    last_fault: AtomicU64,
}

#[derive(Default)]
struct Work {
    started: bool,
    spaces: Vec<Arc<Space>>,
}

impl Pool {
    pub(super) fn new(store: Mapping, journal: Journal, done: EventFd) -> Self {
        Self {
            store,
            journal,
            work: Mutex::default(),
            changed: Condvar::new(),
            done,
            stop: AtomicBool::new(false),
            birth: Instant::now(),
            last_fault: AtomicU64::new(0),
        }
    }

    pub(super) fn done(&self) -> &EventFd {
        &self.done
    }

    pub(super) fn start(&self) {
        self.work().started = true;
        self.changed.notify_all();
    }

    pub(super) fn is_started(&self) -> bool {
        self.work().started
    }

    pub(super) fn add(&self, space: Arc<Space>) {
        self.work().spaces.push(space);
        self.changed.notify_all();
    }

    pub(super) fn remove(&self, space: &Arc<Space>) {
        self.work().spaces.retain(|other| !Arc::ptr_eq(other, space));
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Under the lock, so that no thread is just about to wait.
        let _work = self.work();
        self.changed.notify_all();
    }

    pub(super) fn note_fault(&self) {
        self.last_fault.store(self.birth.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Starts the background threads, and one that makes the store quick to read.
    pub(super) fn spawn(self: &Arc<Self>) -> Vec<std::thread::JoinHandle<()>> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut threads = Vec::new();
        for number in 0..(processors / 2).clamp(1, 8) {
            let pool = self.clone();
            threads.push(std::thread::spawn(move || pool.run(number)));
        }
        let pool = self.clone();
        threads.push(std::thread::spawn(move || pool.populate()));
        threads
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn populate(&self) {
        const STEP: usize = 8 << 20;
        let len = self.store.bytes().len();
        for from in (0..len).step_by(STEP) {
            if self.is_stopped() || self.store.populate(from, STEP.min(len - from)).is_err() {
                break;
            }
        }
    }

    fn run(&self, number: usize) {
        process::set_pace(NICE);
        let mut turn = number;
        let mut pause = Duration::ZERO;
        while let Some(space) = self.next(&mut turn) {
            for _ in 0..TURN {
                let start = Instant::now();
                match self.step(&space) {
                    Some(Outcome::Done) => pause = Duration::ZERO,
                    Some(Outcome::Later) => {
                        pause = (pause * 2).clamp(Duration::from_micros(50), Duration::from_millis(5));
                        std::thread::sleep(pause);
                        break;
                    }
                    Some(Outcome::Gone) => {
                        space.set_gone(&self.journal);
                        let _ = self.done.write(1);
                        break;
                    }
                    None => break,
                }
                match self.pause(&space, start.elapsed()) {
                    Some(pause) => std::thread::sleep(pause),
                    None => std::thread::yield_now(),
                }
            }
            if space.is_done() {
                let _ = self.done.write(1);
            }
        }
    }

    /// How long to leave the processor after so long a piece of work; not at all while the tasks are held, when each page that is put
    /// in place is one that nobody has to wait for. Later always: who waits for the processor would get
    /// it at the next tick only, which is 4 ms later (`CONFIG_HZ` 250), and longer than many an answer takes.
    fn pause(&self, space: &Space, worked: Duration) -> Option<Duration> {
        let last_fault = self.last_fault.load(Ordering::Relaxed);
        // who let them run without saying so has died since
        if self.journal.get(Counter::Released) == 0 && last_fault == 0 {
            return None;
        }
        let is_busy = self.birth.elapsed() < Duration::from_micros(last_fault) + BUSY;
        Some(if is_busy && !space.is_urgent() { worked } else { worked / 4 })
    }

    /// An address space with something to do; waits for one.
    fn next(&self, turn: &mut usize) -> Option<Arc<Space>> {
        let mut work = self.work();
        loop {
            if self.is_stopped() {
                return None;
            }
            if work.started {
                let count = work.spaces.len();
                for _ in 0..count {
                    *turn = (*turn + 1) % count;
                    let space = &work.spaces[*turn];
                    if !space.is_done() {
                        return Some(space.clone());
                    }
                }
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One chunk: a run, or several short ones.
    fn step(&self, space: &Space) -> Option<Outcome> {
        let _gate = space.enter();
        let mut left = CHUNK;
        let mut outcome = None;
        while left > 0 && outcome.is_none_or(|outcome| outcome == Outcome::Done) {
            let runs = space.take(left);
            if runs.is_empty() {
                break;
            }
            for run in runs {
                left -= run.pages;
                outcome = Some(match space.fill(run, &self.store, &self.journal) {
                    Outcome::Done => outcome.unwrap_or(Outcome::Done),
                    worse => worse,
                });
            }
        }
        outcome
    }

    /// Pages that are to be filled in all, and that are left; for the progress.
    pub(super) fn count_todo(&self, pages: u64) {
        self.journal.count(Counter::Total, pages);
        self.journal.count(Counter::Remaining, pages);
    }
}
