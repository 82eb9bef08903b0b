//! The witness: one world that both fakes report to. It knows at each moment who may run the container, and notes
//! whatever must never happen.

use godwit_engine::EngineError;
use godwit_migration::Cancel;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

/// Pages by their number: what the container has in memory.
pub type Memory = BTreeMap<u64, u64>;

/// Pages that a busy container writes again and again, when it has all of its CPU time.
pub const BUSY: u64 = 1024;

/// Pages of a flood: more than the 64 MiB that are kept beyond what a container has.
const FLOOD: u64 = 20_000;

/// What happens when a call comes for the n-th time.
#[derive(Clone, Debug)]
pub struct Trap {
    /// The call, as in [`World::calls`].
    pub call: &'static str,
    /// 1 for the first time.
    pub nth: usize,
    /// What then.
    pub then: Then,
}

/// What a trap does.
#[derive(Clone, Debug)]
pub enum Then {
    /// The call fails.
    Fail,
    /// Somebody presses Ctrl-C; the call goes on.
    Interrupt(Cancel),
    /// Somebody removes the destination's volume; the call goes on.
    RemoveVolumeThere,
    /// The container has far more memory all at once; the call goes on.
    Flood,
}

/// Everything that is true at one moment.
#[derive(Debug, Default)]
pub struct World {
    /// Every call, in order: `source.freeze`, `criu.dump`, `destination.go`.
    pub calls: Vec<&'static str>,
    /// What must never happen, and did.
    pub violations: Vec<String>,
    /// The container's tasks run at the source.
    pub source_runs: bool,
    /// The source's copy is gone.
    pub source_gone: bool,
    /// The source's network lock.
    pub locked: bool,
    /// The source's network link is down.
    pub disconnected: bool,
    /// Something was made at the destination.
    pub made: bool,
    /// A restored tree is held there.
    pub held: Option<Memory>,
    /// It runs there.
    pub destination_runs: bool,
    /// It writes more than the link carries.
    pub busy: bool,
    /// Percent of a processor that it is limited to.
    pub cpu_limit: Option<u64>,
    /// What the container has in memory, wherever it is.
    pub memory: Memory,
    /// What the container writes into while it runs.
    pub volume: PathBuf,
    /// The same at the destination.
    pub volume_there: PathBuf,
    /// Another process goes on with what was broken off.
    pub resumed: bool,
    /// The source's journal.
    pub source_journal: PathBuf,
    counts: HashMap<&'static str, usize>,
    traps: Vec<Trap>,
    beats: u64,
}

/// The world, shared by both halves.
#[derive(Debug, Default)]
pub struct Witness(Mutex<World>);

impl Witness {
    /// A container that runs at the source.
    pub fn new(volumes: (PathBuf, PathBuf), source_journal: PathBuf, traps: Vec<Trap>) -> Self {
        let memory = (0..24).map(|page| (page, page)).collect();
        let (volume, volume_there) = volumes;
        let world = World {
            source_runs: true,
            memory,
            volume,
            volume_there,
            source_journal,
            traps,
            ..World::default()
        };
        Self(Mutex::new(world))
    }

    /// A look at it.
    pub fn look(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// A call comes; its trap, if one is set, springs.
    pub fn enter(&self, call: &'static str) -> Result<MutexGuard<'_, World>, EngineError> {
        let mut world = self.look();
        world.calls.push(call);
        let count = world.counts.entry(call).or_default();
        *count += 1;
        let count = *count;
        let sprung = world.traps.iter().find(|trap| trap.call == call && trap.nth == count).cloned();
        match sprung.map(|trap| trap.then) {
            None => Ok(world),
            Some(Then::Interrupt(cancel)) => {
                cancel.raise();
                Ok(world)
            }
            Some(Then::RemoveVolumeThere) => {
                std::fs::remove_dir_all(&world.volume_there).unwrap();
                Ok(world)
            }
            Some(Then::Flood) => {
                world.memory.extend((1 << 20..(1 << 20) + FLOOD).map(|page| (page, page)));
                Ok(world)
            }
            Some(Then::Fail) => Err(EngineError::Tool {
                program: call.to_owned(),
                what: "was told to fail by this test".to_owned(),
            }),
        }
    }
}

impl World {
    /// Notes a violation unless `fine`.
    pub fn must(&mut self, fine: bool, what: &str) {
        if !fine {
            self.violations.push(format!("{what}, after {:?}", self.calls));
        }
    }

    /// The container lives for a moment: it writes memory and files, if it runs.
    pub fn beat(&mut self) {
        if !self.source_runs {
            return;
        }
        self.beats += 1;
        let beat = self.beats;
        self.memory.insert(beat % 24, 1000 + beat);
        self.memory.insert(100 + beat % 3, 2000 + beat);
        if self.busy {
            let pages = BUSY * self.cpu_limit.unwrap_or(100).min(100) / 100;
            self.memory.extend((10_000..10_000 + pages).map(|page| (page, page << 20 | beat)));
        }
        std::fs::write(self.volume.join("counter"), format!("{beat}\n")).unwrap();
        std::fs::write(self.volume.join(format!("log-{}", beat % 5)), vec![beat as u8; 3000]).unwrap();
    }
}
