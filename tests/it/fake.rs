//! A CRIU and an engine that only pretend: images are real (CRIU's page maps), processes are not.

use crate::world::{Memory, Witness};
use godwit_checkpoint::{Circumstances, Dumped, Dumper, PageReader, PagelessDumped, PagelessDumper};
use godwit_criu::images::pagemap::{PE_PARENT, PE_PRESENT, pages_name};
use godwit_criu::images::{PAGE_SIZE, Pagemap, PagemapEntry};
use godwit_criu::pageless::Rung;
use godwit_criu::{CriuError, DumpOptions};
use godwit_engine::EngineError;
use godwit_engine::container::{
    DestinationContainer, Engine, Facts, Given, Note, OpenRequest, RestoreRequest, Shipment, SourceContainer,
};
use godwit_memory::source::{MemoryError, PageSink, RoundStats};
use godwit_memory::{ImageId, PageRun, SharedObject};
use godwit_migration::journal;
use godwit_migration::ownership::Presence;
use godwit_migration::throttle::LimitChange;
use godwit_transfer::Refusal;
use godwit_transfer::wire::HeldFrames;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The engine's kind.
pub const ENGINE: &str = "fake";
/// The pid of the restored container.
pub const PID: i32 = 4242;
const MAP: &str = "pagemap-1.img";
/// What each step under the freeze takes at least, so that its part of the downtime can be told.
pub const STEP: Duration = Duration::from_millis(1);

/// Where the CPU limit of the container would be, and what is there before anybody changes it.
const CPU_LIMIT: (&str, &str) = ("/fake/cpu.max", "max 100");

/// Writes images as CRIU would: with `before`, pages that did not change are left to the parent.
fn write_images(dir: &Path, before: Option<&Memory>, now: &Memory) {
    std::fs::create_dir_all(dir).unwrap();
    let (mut entries, mut pages) = (Vec::<PagemapEntry>::new(), Vec::new());
    for (&page, &value) in now {
        let same = before.is_some_and(|before| before.get(&page) == Some(&value));
        if !same {
            pages.extend(value.to_le_bytes().repeat(PAGE_SIZE as usize / 8));
        }
        let flags = if same { PE_PARENT } else { PE_PRESENT };
        entries.push(PagemapEntry { vaddr: page * PAGE_SIZE, nr_pages: 1, flags });
    }
    Pagemap { pages_id: 1, entries }.write(&dir.join(MAP)).unwrap();
    if !pages.is_empty() {
        std::fs::write(dir.join(pages_name(1)), pages).unwrap();
    }
    std::fs::write(dir.join("core-1.img"), b"registers").unwrap();
    std::fs::write(dir.join("mm-1.img"), mm_image()).unwrap();
}

/// One private anonymous mapping over everything: the two magic numbers of mm.img (CRIU's magic.h), the record's length, and
/// in field 14 (mm.proto) the mapping with start, end, flags and status (vma.proto).
fn mm_image() -> Vec<u8> {
    let mapping = [0x08, 0x00, 0x10, 0x80, 0x80, 0x80, 0x80, 0x01, 0x30, 0x22, 0x38, 0x01];
    let mut image = [0x5456_4319_u32.to_le_bytes(), 0x5749_2820_u32.to_le_bytes()].concat();
    image.extend((mapping.len() as u32 + 2).to_le_bytes());
    image.extend([14 << 3 | 2, mapping.len() as u8]);
    image.extend(mapping);
    image
}

/// Reads images back; every page must be there.
fn read_images(dir: &Path) -> Result<Memory, String> {
    if std::fs::symlink_metadata(dir.join("parent")).is_ok() {
        return Err("restore would walk parents".into());
    }
    let map = Pagemap::read(&dir.join(MAP)).map_err(|error| error.to_string())?;
    let pages = std::fs::read(dir.join(map.pages_name())).map_err(|error| error.to_string())?;
    let mut chunks = pages.chunks_exact(PAGE_SIZE as usize);
    let mut memory = Memory::new();
    for entry in &map.entries {
        for page in 0..entry.nr_pages {
            if !entry.present() {
                return Err(format!("page {page:#x} is not there"));
            }
            let chunk = chunks.next().ok_or("the pages file is too short")?;
            let value = u64::from_le_bytes(chunk[..8].try_into().map_err(|_| "short page")?);
            memory.insert(entry.vaddr / PAGE_SIZE + page, value);
        }
    }
    Ok(memory)
}

/// A CRIU that dumps the world's memory.
pub struct Criu {
    witness: Arc<Witness>,
    last_round: Mutex<Option<Memory>>,
}

impl Criu {
    pub fn new(witness: Arc<Witness>) -> Self {
        Self { witness, last_round: Mutex::new(None) }
    }

    fn write(&self, call: &'static str, options: &DumpOptions) -> Result<Dumped, CriuError> {
        let mut last = self.last_round.lock().unwrap();
        let mut world = self
            .witness
            .enter(call)
            .map_err(|error| CriuError::Protocol { operation: "dump", detail: error.to_string() })?;
        let frozen = !world.source_runs && world.locked;
        world
            .must(call == "criu.pre_dump" || frozen, "a full dump of a container that runs or is not locked");
        let before = options.parent_dir.as_ref().and(last.as_ref());
        write_images(&options.images_dir, before, &world.memory);
        if let Some(parent) = &options.parent_dir {
            std::os::unix::fs::symlink(parent, options.images_dir.join("parent")).unwrap();
        }
        *last = Some(world.memory.clone());
        let memory_bytes = world.memory.len() as u64 * PAGE_SIZE;
        std::thread::sleep(STEP);
        world.beat();
        Ok(Dumped { frozen: Duration::from_millis(1), memory_bytes })
    }
}

impl Dumper for Criu {
    fn dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        self.write("criu.dump", &options)
    }

    fn pre_dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        self.write("criu.pre_dump", &options)
    }

    fn pageless(&self, _: &Path, _: Circumstances) -> Result<Box<dyn PagelessDumper>, CriuError> {
        let entered = self.witness.enter("criu.pageless");
        drop(entered.map_err(|error| CriuError::Protocol { operation: "check", detail: error.to_string() })?);
        Ok(Box::new(Pageless(self.witness.clone())))
    }
}

/// A CRIU that leaves all pages out.
struct Pageless(Arc<Witness>);

impl PagelessDumper for Pageless {
    fn start_time(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn warm_up(&mut self, _: &BTreeSet<i32>, _: &DumpOptions) -> Result<(), CriuError> {
        let mut world = self
            .0
            .enter("criu.warm_up")
            .map_err(|error| CriuError::Protocol { operation: "start", detail: error.to_string() })?;
        let runs = world.source_runs;
        world.must(runs, "what can be done before the freeze is done in it");
        Ok(())
    }

    fn dump(&mut self, options: DumpOptions) -> Result<PagelessDumped, CriuError> {
        let world = self.0.enter("criu.dump");
        let mut world =
            world.map_err(|error| CriuError::Protocol { operation: "dump", detail: error.to_string() })?;
        let frozen = !world.source_runs && world.locked;
        world.must(frozen, "a full dump of a container that runs or is not locked");
        write_images(&options.images_dir, None, &Memory::new());
        std::thread::sleep(STEP);
        Ok(PagelessDumped { frozen: STEP, rung: Rung::Shim, fell: vec![], omitted: BTreeSet::new() })
    }
}

/// Reads the world's memory page by page.
pub struct Reader(pub Arc<Witness>);

impl Reader {
    fn hand_over(&self, call: &'static str, sink: &mut dyn PageSink) -> Result<RoundStats, MemoryError> {
        let world = self.0.enter(call).map_err(|error| MemoryError::Method(error.to_string()))?;
        let memory = world.memory.clone();
        drop(world);
        for (page, value) in memory {
            let bytes = value.to_le_bytes().repeat(PAGE_SIZE as usize / 8);
            sink.pages(ImageId::Task(1), page * PAGE_SIZE, &bytes).map_err(MemoryError::Sink)?;
        }
        self.0.look().beat();
        Ok(RoundStats { tasks: 1, ..RoundStats::default() })
    }
}

impl PageReader for Reader {
    fn round(&mut self, _: &BTreeSet<i32>, sink: &mut dyn PageSink) -> Result<RoundStats, MemoryError> {
        self.hand_over("memory.round", sink)
    }

    fn frozen(&mut self, _: &BTreeSet<i32>, sink: &mut dyn PageSink) -> Result<RoundStats, MemoryError> {
        self.hand_over("memory.frozen", sink)
    }

    fn existing(&mut self, _: &BTreeSet<i32>) -> Result<Vec<(ImageId, Vec<PageRun>)>, MemoryError> {
        let runs =
            self.0.look().memory.keys().map(|page| PageRun { start: page * PAGE_SIZE, pages: 1 }).collect();
        Ok(vec![(ImageId::Task(1), runs)])
    }

    fn read(&mut self, _: ImageId, _: &[PageRun], _: &mut dyn PageSink) -> Result<(), MemoryError> {
        unreachable!("every page was handed over")
    }

    fn shared_objects(&self) -> Vec<SharedObject> {
        vec![]
    }
}

/// The container at the source.
pub struct Source {
    pub witness: Arc<Witness>,
    pub facts: Facts,
    /// Since when it keeps one processor busy.
    pub since: Instant,
}

impl SourceContainer for Source {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn tasks(&self) -> Result<BTreeSet<i32>, EngineError> {
        Ok(BTreeSet::from([1]))
    }

    fn has_own_mounts(&self) -> bool {
        true
    }

    fn dump_options(&self, images: &Path, work: &Path) -> DumpOptions {
        DumpOptions::new(1, images, work)
    }

    fn complete_images(&self, images: &Path) -> Result<(), EngineError> {
        let _world = self.witness.enter("source.complete_images")?;
        std::fs::write(images.join("descriptors.json"), "[]").unwrap();
        Ok(())
    }

    fn mapped_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        self.witness.enter("source.mapped_files")?.beat();
        Ok(HashSet::new())
    }

    fn open_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        Ok(HashSet::new())
    }

    fn cpu_time(&mut self) -> Result<Duration, EngineError> {
        drop(self.witness.enter("source.cpu_time")?);
        Ok(self.since.elapsed())
    }

    fn plan_throttle(&mut self, processors: f64) -> Result<LimitChange, EngineError> {
        drop(self.witness.enter("source.plan_throttle")?);
        let (file, original) = CPU_LIMIT;
        let now = format!("{} 100", (processors * 100.0).round());
        Ok(LimitChange { file: file.into(), original: original.into(), now })
    }

    fn throttle(&mut self, change: &LimitChange) -> Result<(), EngineError> {
        let mut world = self.witness.enter("source.throttle")?;
        let runs = world.source_runs;
        world.must(runs, "throttled under the freeze");
        let (lines, _) = journal::read(&world.source_journal).unwrap();
        let last = lines.last().map(|line| line.event.clone());
        world.must(
            last == Some(journal::Event::Throttling(change.clone())),
            "throttled before it was written down",
        );
        world.must(change.original == CPU_LIMIT.1, "the limit of an earlier step counts as the original");
        world.cpu_limit = change.now.split(' ').next().unwrap().parse().ok();
        Ok(())
    }

    fn unthrottle(&mut self) -> Result<(), EngineError> {
        self.witness.enter("source.unthrottle")?.cpu_limit = None;
        Ok(())
    }

    fn remains(&mut self) -> Result<String, EngineError> {
        let trees: Vec<_> = self.facts.trees.iter().map(|tree| (&tree.path, &tree.content)).collect();
        let _world = self.witness.enter("source.remains")?;
        Ok(serde_json::to_string(&trees).unwrap())
    }

    fn presence(&self) -> Presence {
        let world = self.witness.look();
        match (world.source_gone, world.source_runs) {
            (true, _) => Presence::Gone,
            (_, true) => Presence::Running,
            _ => Presence::Frozen,
        }
    }

    fn lock_network(&mut self) -> Result<(), EngineError> {
        let mut world = self.witness.enter("source.lock_network")?;
        let runs = world.source_runs;
        world.must(runs, "the network is locked after the freeze");
        world.locked = true;
        Ok(())
    }

    fn unlock_network(&mut self) -> Result<(), EngineError> {
        let mut world = self.witness.enter("source.unlock_network")?;
        let linked = !world.disconnected;
        world.must(linked, "unlocked before the link was up again");
        world.locked = false;
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), EngineError> {
        let mut world = self.witness.enter("source.freeze")?;
        let locked = world.locked;
        std::thread::sleep(STEP);
        world.must(locked, "frozen before the network was locked");
        world.source_runs = false;
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), EngineError> {
        let mut world = self.witness.enter("source.thaw")?;
        let (locked, committed, there) =
            (world.locked, is_committed(&world.source_journal), world.destination_runs);
        world.must(!locked, "thawed under the network lock");
        world.must(!committed, "thawed after the commit");
        world.must(!there, "thawed while it runs at the destination");
        world.source_runs = true;
        world.beat();
        Ok(())
    }

    fn verify_frozen(&self) -> Result<(), EngineError> {
        let mut world = self.witness.enter("source.verify_frozen")?;
        let frozen = !world.source_runs;
        world.must(frozen, "it runs where it was to be frozen");
        let throttled = world.cpu_limit.is_some();
        world.must(!throttled, "it goes on with another CPU limit than it had");
        Ok(())
    }

    fn take_frames(&mut self) -> Vec<HeldFrames> {
        drop(self.witness.enter("source.take_frames"));
        vec![HeldFrames { interface: "eth0".into(), frames: vec![serde_bytes_of(b"a held frame")] }]
    }

    fn disconnect(&mut self) -> Result<(), EngineError> {
        self.witness.enter("source.disconnect")?.disconnected = true;
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), EngineError> {
        self.witness.enter("source.reconnect")?.disconnected = false;
        Ok(())
    }

    fn leave_as_found(&mut self) -> Result<(), EngineError> {
        self.witness.enter("source.leave_as_found").map(drop)
    }

    fn discard(&mut self) -> Vec<String> {
        match self.witness.enter("source.discard") {
            Ok(mut world) => {
                let there = world.destination_runs && !world.source_runs;
                world.must(there, "discarded although it does not run at the destination");
                world.source_gone = true;
                vec![]
            }
            Err(error) => vec![error.to_string()],
        }
    }
}

fn serde_bytes_of(bytes: &[u8]) -> serde_bytes::ByteBuf {
    serde_bytes::ByteBuf::from(bytes.to_vec())
}

/// Whatever came after it: the source may have lost the link, and noted that it is in doubt. A word that was taken back
/// counts no more.
fn is_committed(journal: &Path) -> bool {
    let word = |event: &journal::Event| match event {
        journal::Event::Committed => Some(true),
        journal::Event::TakenBack { .. } => Some(false),
        _ => None,
    };
    let Ok((lines, _)) = journal::read(journal) else { return false };
    lines.iter().rev().find_map(|line| word(&line.event)).unwrap_or(false)
}

/// The engine of the destination.
pub struct FakeEngine(pub Arc<Witness>);

impl Engine for FakeEngine {
    fn kind(&self) -> &'static str {
        ENGINE
    }

    fn usable(&self) -> Result<String, EngineError> {
        self.0.enter("destination.usable").map(|_| "1.0".into())
    }

    fn knows(&self, _: &str) -> bool {
        let world = self.0.look();
        world.source_runs || world.destination_runs
    }

    fn open(&self, name: &str, _: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError> {
        Err(EngineError::NotFound(name.into()))
    }

    fn examine(&self, _: &Shipment) -> Vec<Refusal> {
        let refused = self.0.enter("destination.examine").err();
        refused
            .map(|error| Refusal::new(error.to_string()).hint("do not ask this test"))
            .into_iter()
            .collect()
    }

    fn prepare(
        &self,
        _: &Shipment,
        note: &mut Note<'_>,
    ) -> Result<Box<dyn DestinationContainer>, EngineError> {
        note("{}").map_err(EngineError::io("note", "remains"))?;
        self.0.enter("destination.prepare")?.made = true;
        Ok(Box::new(Destination(self.0.clone())))
    }

    fn reopen_source(&self, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
        let trees: Vec<(PathBuf, PathBuf)> = serde_json::from_str(remains).unwrap();
        let (there, here) = &trees[0];
        let facts = crate::stage::container_facts(here, there, 0);
        Ok(Box::new(Source { witness: self.0.clone(), facts, since: Instant::now() }))
    }

    fn reopen_destination(&self, _: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
        Ok(Box::new(Destination(self.0.clone())))
    }
}

/// The container at the destination.
struct Destination(Arc<Witness>);

impl DestinationContainer for Destination {
    fn restore(
        &mut self,
        request: &RestoreRequest,
        _restored: &mut dyn FnMut(i32),
    ) -> Result<Given, EngineError> {
        let mut world = self.0.enter("destination.restore")?;
        let memory = read_images(&request.images).map_err(EngineError::NotHeld)?;
        // a source that has given up meanwhile runs on already: harmless, since what is restored here is held
        std::thread::sleep(STEP);
        let same = world.source_runs || memory == world.memory;
        world.must(same, "restored with other memory than it had at the freeze");
        world.held = Some(memory);
        Ok(Given { pid: PID })
    }

    fn presence(&self) -> Presence {
        let world = self.0.look();
        match (world.destination_runs, &world.held) {
            (true, _) => Presence::Running,
            (false, Some(_)) => Presence::Frozen,
            (false, None) => Presence::Gone,
        }
    }

    fn pid(&self) -> Option<i32> {
        Some(PID)
    }

    fn go(&mut self, frames: &[HeldFrames]) -> Result<(), EngineError> {
        let mut world = self.0.enter("destination.go")?;
        let held = world.held.is_some();
        world.must(held, "let go without a held tree");
        let (runs, locked, cut_off) = (world.source_runs, world.locked, world.disconnected);
        world.must(!runs, "let go while it runs at the source");
        world.must(locked && cut_off, "let go while the source's network is open");
        let committed = is_committed(&world.source_journal);
        world.must(committed, "let go before `committed` was on the source's disk");
        let resumed = world.resumed;
        world.must(frames.len() == 1 || resumed, "the held frames did not arrive");
        std::thread::sleep(STEP);
        world.destination_runs = true;
        Ok(())
    }

    fn settle(&mut self) -> Vec<String> {
        self.0.enter("destination.settle").err().map(|error| error.to_string()).into_iter().collect()
    }

    fn abandon(&mut self) -> Vec<String> {
        match self.0.enter("destination.abandon") {
            Ok(mut world) => {
                let runs = world.destination_runs;
                world.must(!runs, "abandoned while it runs");
                world.held = None;
                world.made = false;
                vec![]
            }
            Err(error) => vec![error.to_string()],
        }
    }
}
