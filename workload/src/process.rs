//! One process of a run: its workers work, its main thread forks, checks and ends.

use crate::kind::Kind;
use crate::operations::Worker;
use crate::random::{Random, mix};
use crate::region::{Region, Share};
use crate::report::Findings;
use crate::settings::{Load, Settings};
use crate::sys::process::{self, ASKED, ENDING, Ended, Forked};
use crate::sys::{Failure, memory};
use crate::team::{Own, Shared, Team};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the main thread looks around.
const TICK: Duration = Duration::from_millis(2);
/// How long a check waits for a process.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// Operations of each process that make a run one in full swing.
const FULL_SWING: u64 = 500;
/// Pages of a worker's stack that are checked.
const STACK_PAGES: usize = 32;

/// Tells the workers of this process to keep off their memory.
static STILL: AtomicBool = AtomicBool::new(false);
/// What the workers of this process have done.
static DONE: AtomicU64 = AtomicU64::new(0);

/// One process.
pub struct Process {
    settings: Settings,
    team: Arc<Team>,
    slot: usize,
    parent: i32,
    workers: Vec<Arc<Mutex<Worker>>>,
    children: Vec<(i32, usize)>,
    random: Random,
    found: Findings,
    checked: u64,
    asked: u64,
    is_ready: bool,
}

impl Process {
    /// The first process, with its workers.
    pub fn first(settings: Settings, team: Team, workers: Vec<Worker>) -> Self {
        team.claim(0);
        Self {
            random: Random::new(mix(settings.seed ^ 0x6d61_696e)),
            settings,
            team: Arc::new(team),
            slot: 0,
            parent: process::parent(),
            workers: workers.into_iter().map(|worker| Arc::new(Mutex::new(worker))).collect(),
            children: Vec::new(),
            found: Findings::default(),
            checked: 0,
            asked: 0,
            is_ready: false,
        }
    }

    /// Runs until told to end; forks return here, too, and their processes end in here.
    pub fn run(mut self) -> i32 {
        let share = Share { of: self.settings.processes, mine: 0 };
        for worker in &self.workers {
            lock(worker).regions.iter_mut().for_each(|region| region.share_out(share));
        }
        for slot in 1..self.settings.processes {
            if self.slot == 0 {
                self.fork_into(slot);
            }
        }
        if self.slot == 0 {
            self.start_workers();
        }
        let code = loop {
            std::thread::sleep(TICK);
            self.team.note(self.slot, Own::Operations, DONE.load(Ordering::Relaxed));
            self.reap();
            if self.is_to_end() {
                break self.end();
            }
            if self.slot == 0 {
                self.lead();
            }
            let wanted = self.team.get(Shared::Wanted);
            if wanted > self.checked {
                self.check(wanted);
            } else if self.settings.load == Load::Chaos {
                self.churn();
            }
        };
        if self.slot != 0 {
            process::exit(code);
        }
        code
    }

    fn is_to_end(&self) -> bool {
        let orphaned = self.slot != 0 && process::parent() != self.parent;
        orphaned || ENDING.load(Ordering::Relaxed) || self.team.get(Shared::Ending) != 0
    }

    /// What the first process does for all: it listens.
    fn lead(&mut self) {
        let full_swing = self.settings.rate.map_or(FULL_SWING, |rate| (rate / 10).clamp(1, FULL_SWING));
        if !self.is_ready && self.team.all(Own::Operations, full_swing) {
            self.is_ready = true;
            let ready = self.describe();
            self.write_file("ready", &ready);
        }
        let by_signal = ASKED.load(Ordering::Relaxed);
        let by_file = self.settings.dir.join("check");
        let asked_by_file = by_file.exists();
        if asked_by_file && let Err(error) = std::fs::remove_file(&by_file) {
            let errno = error.raw_os_error().unwrap_or(0);
            self.found.failure(Failure { call: "unlink check", errno });
        }
        if by_signal > self.asked || asked_by_file {
            self.asked = by_signal;
            self.team.set(Shared::Wanted, self.checked + 1);
        }
    }

    /// What this process is and where its memory is now, as JSON.
    fn describe(&self) -> String {
        let workers = self.workers.clone();
        let guards = hold(&workers);
        let regions: Vec<String> =
            guards.iter().flat_map(|worker| &worker.regions).map(Region::describe).collect();
        drop(guards);
        STILL.store(false, Ordering::SeqCst);
        let (pid, notes) = (std::process::id(), &self.settings.notes);
        format!(r#"{{"pid":{pid},"notes":{notes:?},"regions":[{}]}}"#, regions.join(","))
    }

    /// Puts a file into the directory, whole or not at all.
    fn write_file(&mut self, name: &str, line: &str) {
        let part = self.settings.dir.join(format!("{name}.part"));
        let written = append(&part, line).and_then(|()| std::fs::rename(&part, self.settings.dir.join(name)));
        if let Err(error) = written {
            self.found.failure(Failure { call: "write a file", errno: error.raw_os_error().unwrap_or(0) });
        }
    }

    /// Stands still together with all others, and tells what is in its memory.
    fn check(&mut self, number: u64) {
        let workers = self.workers.clone();
        let guards = hold(&workers);
        self.team.note(self.slot, Own::Still, number);
        let all_still = self.wait_for(|team| team.all(Own::Still, number));
        if !all_still {
            self.found.failure(Failure { call: "all stand still", errno: libc::ETIMEDOUT });
        }
        let (findings, counts) = self.look_through(&guards, true);
        let result = format!("result.{number}");
        let line = findings.line(self.slot, &counts);
        let part = self.settings.dir.join(format!("{result}.part"));
        if let Err(error) = append(&part, &line) {
            self.found
                .failure(Failure { call: "append the result", errno: error.raw_os_error().unwrap_or(0) });
        }
        self.team.note(self.slot, Own::Told, number);
        if self.slot == 0 {
            if !self.wait_for(|team| team.all(Own::Told, number)) {
                let missing: Vec<_> =
                    self.team.living().filter(|&slot| self.team.of(slot, Own::Told) < number).collect();
                let _ = append(&part, &format!(r#"{{"pass":false,"silent":{missing:?}}}"#));
            }
            if let Err(error) = std::fs::rename(&part, self.settings.dir.join(&result)) {
                let errno = error.raw_os_error().unwrap_or(0);
                self.found.failure(Failure { call: "rename the result", errno });
            }
            self.team.set(Shared::Over, number);
        } else {
            self.wait_for(|team| team.get(Shared::Over) >= number);
        }
        self.checked = number;
        drop(guards);
        STILL.store(false, Ordering::SeqCst);
    }

    /// Compares the memory of this process, whose workers are held; with `shared` also what others may write.
    fn look_through(
        &self,
        guards: &[MutexGuard<'_, Worker>],
        shared: bool,
    ) -> (Findings, Vec<(&'static str, u64)>) {
        let (mut findings, mut counts) = (Findings::default(), Vec::new());
        findings.add(&self.found);
        for worker in guards {
            let regions = worker.regions.iter().filter(|region| shared || !region.kind.is_shared());
            regions.for_each(|region| region.verify(&mut findings));
            findings.add(&worker.found);
            worker.add_counts(&mut counts);
        }
        (findings, counts)
    }

    /// Waits until all are there; false when they are not in time.
    fn wait_for(&mut self, are_there: impl Fn(&Team) -> bool) -> bool {
        let begun = Instant::now();
        while !are_there(&self.team) {
            if begun.elapsed() > CHECK_LIMIT || self.is_to_end() {
                return false;
            }
            // one that died is not waited for
            self.reap();
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Now and then forks, ends, or moves the end of the data segment.
    fn churn(&mut self) {
        let ticks = self.random.below(4000);
        if ticks < 8 && self.settings.processes > 1 {
            let slot = 1 + self.random.below(self.settings.processes - 1);
            self.fork_into(slot);
        } else if ticks < 10 && self.slot != 0 && self.children.is_empty() {
            process::exit(self.end());
        } else if ticks < 12 && self.settings.kinds.contains(&Kind::Brk) {
            self.grow_data();
        }
    }

    fn grow_data(&mut self) {
        let workers = self.workers.clone();
        let mut guards = hold(&workers);
        let grown = guards[0].regions.iter().filter(|region| region.kind == Kind::Brk).count();
        if grown < 8 {
            let (number, count) = (self.random.next(), 1 + self.random.below(32));
            match Region::new(number, Kind::Brk, count, None) {
                Ok(region) => guards[0].regions.push(region),
                Err(failure) => self.found.failure(failure),
            }
        }
        drop(guards);
        STILL.store(false, Ordering::SeqCst);
    }

    /// Forks a process into a slot that is free. Returns on both sides.
    fn fork_into(&mut self, slot: usize) {
        if !self.team.claim(slot) {
            return;
        }
        let workers = self.workers.clone();
        let mut guards = hold(&workers);
        let (salt, myself) = (self.random.next(), std::process::id() as i32);
        match process::fork() {
            Err(failure) => {
                self.team.leave(slot);
                self.found.failure(failure);
            }
            Ok(Forked::Parent(child)) => self.children.push((child, slot)),
            Ok(Forked::Child) => {
                self.slot = slot;
                self.parent = myself;
                self.children.clear();
                self.found = Findings::default();
                self.random = Random::new(salt);
                DONE.store(0, Ordering::SeqCst);
                let share = Share { of: self.settings.processes, mine: slot };
                for worker in &mut guards {
                    let seed = self.random.next();
                    worker.begin_anew(seed);
                    // glibc takes the stacks of threads that are not here
                    worker.regions.retain(|region| region.kind != Kind::Stack);
                    worker.regions.iter_mut().for_each(|region| region.part_from_parent(share, salt));
                    if let Load::Tree { own } = self.settings.load {
                        rewrite_own(worker, slot, own);
                    }
                }
                self.start_workers();
            }
        }
        drop(guards);
        STILL.store(false, Ordering::SeqCst);
    }

    fn start_workers(&mut self) {
        for worker in &self.workers {
            let (worker, settings) = (worker.clone(), self.settings.clone());
            let started = std::thread::Builder::new().spawn(move || work(&worker, &settings));
            if let Err(error) = started {
                self.found.failure(Failure { call: "clone", errno: error.raw_os_error().unwrap_or(0) });
            }
        }
    }

    /// Notes the children that have ended.
    fn reap(&mut self) {
        let (team, found) = (&self.team, &mut self.found);
        self.children.retain(|&(pid, slot)| {
            match process::wait(pid, true) {
                Ok(None) => return true,
                Ok(Some(Ended::Code(0))) => {}
                Ok(Some(Ended::Code(code))) => {
                    found.failure(Failure { call: "a child's memory", errno: code })
                }
                Ok(Some(Ended::Signal(signal))) => {
                    found.failure(Failure { call: "a child died of a signal", errno: signal });
                }
                Err(failure) if failure.errno == libc::EINTR => return true,
                Err(failure) => found.failure(failure),
            }
            team.leave(slot);
            false
        });
    }

    /// Ends after its children; returns the exit code, which is 0 when all its memory is as it must be.
    fn end(&mut self) -> i32 {
        if self.slot == 0 || ENDING.load(Ordering::Relaxed) {
            self.team.set(Shared::Ending, 1);
        }
        let begun = Instant::now();
        while !self.children.is_empty() && begun.elapsed() < CHECK_LIMIT {
            self.reap();
            std::thread::sleep(TICK);
        }
        let workers = self.workers.clone();
        let guards = hold(&workers);
        // the others go on writing what they share
        let (findings, counts) = self.look_through(&guards, false);
        let passed = findings.is_pass() || findings.pages == 0 && findings.unexpected == 0;
        if !passed {
            let told = self.settings.dir.join(format!("ended.{}", std::process::id()));
            let _ = append(&told, &findings.line(self.slot, &counts));
        }
        if self.slot == 0 {
            for region in
                guards.iter().flat_map(|worker| &worker.regions).filter(|region| region.kind == Kind::SysV)
            {
                let _ = memory::remove_segment(region.object);
            }
        }
        // the workers end with the process, still
        i32::from(!passed)
    }
}

/// Makes the workers stand still, and takes hold of what they own. [`STILL`] must be taken back afterwards.
fn hold(workers: &[Arc<Mutex<Worker>>]) -> Vec<MutexGuard<'_, Worker>> {
    STILL.store(true, Ordering::SeqCst);
    workers.iter().map(lock).collect()
}

fn lock(worker: &Arc<Mutex<Worker>>) -> MutexGuard<'_, Worker> {
    worker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A worker's thread.
fn work(worker: &Arc<Mutex<Worker>>, settings: &Settings) {
    let mut stack = [0_u64; (STACK_PAGES + 1) * memory::WORDS];
    if settings.kinds.contains(&Kind::Stack) {
        let mut worker = lock(worker);
        let number = worker.random.next();
        match Region::in_stack(number, &mut stack) {
            Ok(region) => worker.regions.push(region),
            Err(failure) => worker.found.failure(failure),
        }
    }
    let (mut begun, mut done) = (Instant::now(), 0_u64);
    loop {
        if STILL.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            continue;
        }
        let due = match settings.rate {
            None => done + 64,
            // the first at once
            Some(rate) => 1 + (begun.elapsed().as_secs_f64() * rate as f64) as u64,
        };
        if due > done + 2000 {
            // it was held up; what was missed then is not made up for
            (begun, done) = (Instant::now(), 0);
            continue;
        }
        {
            let mut worker = lock(worker);
            while done < due && !STILL.load(Ordering::SeqCst) {
                match settings.load {
                    Load::Chaos => worker.chaos(),
                    Load::Gentle | Load::Tree { .. } => worker.gentle(),
                }
                done += 1;
                DONE.fetch_add(1, Ordering::Relaxed);
            }
        }
        if settings.rate.is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Writes the part of the inherited memory that is this child's own.
fn rewrite_own(worker: &mut Worker, slot: usize, own: usize) {
    for region in worker.regions.iter_mut().filter(|region| region.kind == Kind::Anon) {
        let count = region.count();
        for page in 0..own.min(count) {
            if let Err(failure) = region.write((slot * own + page) % count) {
                worker.found.failure(failure);
                return;
            }
        }
    }
}

fn append(path: &PathBuf, line: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
