//! The source's half of a migration.
//!
//! [`migrate`] guarantees: **on success the container runs at the destination and nothing of it is left here; on failure
//! before the commit it runs here, as if nothing had been tried; after the commit this side never lets it run again.**
//! The other half is `destination.rs` of the restore crate: the two lists of phases mirror each other.

use crate::connections;
use crate::dumper::{Circumstances, Dumper};
use crate::files::{Files, FilesError};
use crate::pace::Pace;
use crate::pages::{Outlet, PageMemory, PageReader, PagesError};
use crate::recovery;
use crate::throttle::Throttle;
use crate::tracker::{MemoryTracker, TrackerError, tracker_for};
use godwit_criu::DumpOptions;
use godwit_engine::network::NetworkPlan;
use godwit_engine::{EngineError, SourceContainer};
use godwit_migration::downtime::{Downtime, Stopwatch};
use godwit_migration::journal::{self, Journal, JournalError};
use godwit_migration::observer::{Event, micros};
use godwit_migration::plan::{Carry, Limits, Restoration, Strategy, Tracker};
use godwit_migration::remains;
use godwit_migration::report::{FillReport, MemoryReport, RoundReport, Summary};
use godwit_migration::{
    Cancel, Disposition, Failure, FailureKind, MigrationId, Observer, Phase, Role, SharedDirectory,
};
use godwit_transfer::stale::StaleCopies;
use godwit_transfer::tree::{TreeIndex, equal_digest};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{
    Bandwidth, Compression, HostFacts, Incoming, Message, Offer, PageStreams, Transport, TreeBase, TreeId,
    TreeOffer, Wire, WireError,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the destination may think about one thing before the freeze.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the destination may take for a step under the freeze. Restoring is the longest.
const FROZEN_PATIENCE: Duration = Duration::from_secs(120);
/// How long the destination may take to fill the memory of the running container, and to tidy up.
const SETTLING_PATIENCE: Duration = Duration::from_secs(600);

/// What was asked for, complete.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The container as the user wrote it.
    pub container: String,
    /// The destination as the user wrote it.
    pub destination: String,
    /// How memory travels.
    pub strategy: Strategy,
    /// How changed memory is found; none for stop-and-copy.
    pub tracker: Option<Tracker>,
    /// When rounds end.
    pub limits: Limits,
    /// What CRIU carries.
    pub carry: Carry,
    /// Where its network is attached.
    pub network_plan: NetworkPlan,
    /// Bytes a second at most while it runs; 0 is no limit. Under the freeze there is none.
    pub bandwidth: u64,
    /// Connections: the first one is for everything, those beyond it for memory pages.
    pub connections: u16,
    /// How frames are compressed.
    pub compress: Compression,
    /// How it gets its memory at the destination.
    pub restoration: Restoration,
    /// While it runs, copying pauses when it would have to wait for a processor.
    pub gentle: bool,
    /// The highest rung of the ladder that keeps CRIU from dumping pages; the best that works when absent.
    pub highest_rung: Option<godwit_criu::pageless::Rung>,
    /// Whom both hosts ask when they cannot reach each other.
    pub witness: Option<SharedDirectory>,
    /// What this host is like.
    pub facts: HostFacts,
}

/// Where a migration keeps its files on this host.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: MigrationId,
    /// godwit's directory, usually /var/lib/godwit.
    pub root: PathBuf,
    /// This migration's directory in it.
    pub dir: PathBuf,
}

impl Job {
    /// The directory of migration `id` below `root`; not made yet.
    pub fn new(root: impl Into<PathBuf>, id: MigrationId) -> Self {
        let root = root.into();
        Self { dir: root.join("migrations").join(id.as_str()), root, id }
    }
}

/// Who takes part on this side.
pub struct Parties<'a> {
    /// The container, opened and looked at.
    pub container: Box<dyn SourceContainer>,
    /// Who dumps it.
    pub criu: &'a dyn Dumper,
    /// The way to the destination.
    pub wire: Wire,
    /// Makes a further connection to the destination; none where there can be only one.
    pub dial: Option<&'a dyn Fn() -> std::io::Result<Box<dyn Transport>>>,
    /// Reads memory from outside, for the trackers that do.
    pub reader: Option<Box<dyn PageReader>>,
    /// Who is told what happens.
    pub observer: &'a dyn Observer,
    /// The wish to stop.
    pub cancel: Cancel,
}

/// What is to be done, and where it is written down.
pub struct Order {
    /// What was asked for.
    pub plan: Plan,
    /// Where this migration keeps its files.
    pub job: Job,
    /// Its journal, with the first line written.
    pub journal: Journal,
}

/// Anything that ends a migration early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The wire, or the other side over it.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The container, its runtime or its kernel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] godwit_criu::CriuError),
    /// Its memory.
    #[error(transparent)]
    Pages(PagesError),
    /// The container's files.
    #[error(transparent)]
    Files(FilesError),
    /// The journal could not be written: nothing may go on without it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A failure that is complete already.
    #[error(transparent)]
    Failure(Box<Failure>),
}

impl From<FilesError> for SourceError {
    /// What the other side said, or the user, is not about files although it came while they were sent.
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::Wire(error) => error.into(),
            error => Self::Files(error),
        }
    }
}

impl From<PagesError> for SourceError {
    /// As with files.
    fn from(error: PagesError) -> Self {
        match error {
            PagesError::Wire(error) => error.into(),
            PagesError::Criu(error) => error.into(),
            error => Self::Pages(error),
        }
    }
}

impl From<TrackerError> for SourceError {
    fn from(error: TrackerError) -> Self {
        match error {
            TrackerError::Criu(error) => error.into(),
            TrackerError::Engine(error) => error.into(),
        }
    }
}

/// The source's half, with all it holds.
pub(crate) struct Source<'a> {
    pub(crate) plan: Plan,
    pub(crate) job: Job,
    pub(crate) name: String,
    pub(crate) container: Box<dyn SourceContainer>,
    pub(crate) criu: &'a dyn Dumper,
    pub(crate) wire: Wire,
    pub(crate) journal: Journal,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) cancel: Cancel,
    pub(crate) tracker: Box<dyn MemoryTracker>,
    /// Memory that is read from outside, instead of what `tracker` does; made in the phase prepare.
    pub(crate) pages: Option<PageMemory>,
    reader: Option<Box<dyn PageReader>>,
    dial: Option<&'a dyn Fn() -> std::io::Result<Box<dyn Transport>>>,
    pub(crate) streams: Option<PageStreams>,
    pub(crate) bandwidth: Bandwidth,
    /// How the destination will give it its memory, and why.
    pub(crate) restoration: (Restoration, String),
    pub(crate) memory_report: Option<MemoryReport>,
    /// The longest of the answers that cost the destination nothing.
    pub(crate) round_trip: Duration,
    pub(crate) files: Files,
    pub(crate) rounds: Vec<RoundReport>,
    pub(crate) memory_bytes: u64,
    /// What starting a process costs at the destination.
    pub(crate) process_start: Duration,
    pub(crate) throttle: Throttle,
    /// None when nobody steps back.
    pub(crate) pace: Option<Pace>,
    begun: Instant,
    offered: Vec<TreeOffer>,
    stopwatch: Option<Stopwatch>,
    pid_there: i32,
    /// The destination said no: it has nothing to undo, and has hung up.
    pub(crate) was_refused: bool,
}

/// Moves a container that was opened and looked at to whoever is at the other end of `wire`. See the module for what is
/// guaranteed.
///
/// # Errors
/// The failure says what happened and where the container is.
pub fn migrate(parties: Parties<'_>, order: Order) -> Result<Summary, Failure> {
    let mut source = Source::new(parties, order);
    match source.run() {
        Ok(downtime) => Ok(source.complete(downtime)),
        Err(error) => Err(source.undo(error)),
    }
}

/// Asks the destination whether it would take the container, and goes no further.
///
/// # Errors
/// The reasons of whoever said no. Nothing was touched on either side.
pub fn rehearse(parties: Parties<'_>, order: Order) -> Result<(), Failure> {
    let mut source = Source::new(parties, order);
    let asked = source.phase(Phase::Negotiate, Source::negotiate);
    let over = SourceError::Failure(Box::new(Failure::new(FailureKind::Failed, "it was only asked")));
    let willing = asked.is_ok();
    let failure = source.undo(asked.err().unwrap_or(over));
    if willing { Ok(()) } else { Err(failure.at(Disposition::Untouched)) }
}

impl<'a> Source<'a> {
    pub(crate) fn new(parties: Parties<'a>, order: Order) -> Self {
        let Parties { container, criu, wire, dial, reader, observer, cancel } = parties;
        let Order { plan, job, journal } = order;
        let facts = container.facts();
        Self {
            name: format!("{}:{}", facts.engine, facts.name),
            memory_bytes: facts.memory_bytes,
            tracker: tracker_for(plan.strategy, plan.tracker, &job.dir),
            pages: None,
            reader,
            dial,
            streams: None,
            bandwidth: Bandwidth::default(),
            restoration: (Restoration::Eager, String::new()),
            memory_report: None,
            round_trip: Duration::ZERO,
            files: Files::default(),
            rounds: Vec::new(),
            throttle: Throttle::default(),
            pace: plan.gentle.then(|| Pace::observe(container.tasks().unwrap_or_default())),
            begun: Instant::now(),
            offered: Vec::new(),
            stopwatch: None,
            process_start: Duration::ZERO,
            pid_there: 0,
            was_refused: false,
            container,
            criu,
            wire,
            journal,
            plan,
            job,
            observer,
            cancel,
        }
    }

    /// The table of contents. Up to `commit` every step can be undone; [`Source::undo`] does it.
    fn run(&mut self) -> Result<Downtime, SourceError> {
        self.phase(Phase::Negotiate, Self::negotiate)?;
        self.phase(Phase::Prepare, Self::prepare)?;
        self.phase(Phase::PreCopy, Self::pre_copy)?;
        self.phase(Phase::Freeze, Self::freeze)?;
        self.phase(Phase::StopAndCopy, Self::stop_and_copy)?;
        self.phase(Phase::Restore, Self::restore)?;
        self.phase(Phase::Commit, Self::commit)
    }

    /// Runs one phase: told, timed, and not begun when the user has pressed Ctrl-C.
    pub(crate) fn phase<T>(
        &mut self,
        phase: Phase,
        run: impl FnOnce(&mut Self) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        if self.cancel.is_raised() {
            return Err(WireError::Interrupted.into());
        }
        let tell = |observer: &dyn Observer, event, duration_us| {
            observer.event(&Event::Phase { role: Role::Source, phase, event, round: None, duration_us });
        };
        tell(self.observer, "begin", None);
        let begun = Instant::now();
        let result = run(self)?;
        tell(self.observer, "end", Some(micros(begun.elapsed())));
        Ok(result)
    }

    /// Hello, Offer; Accept or Refuse.
    pub(crate) fn negotiate(&mut self) -> Result<(), SourceError> {
        self.wire.set_patience(PATIENCE);
        self.wire.set_compression(self.plan.compress);
        self.wire.set_bandwidth(&self.bandwidth);
        self.wire.say(&Message::Hello {
            godwit: env!("CARGO_PKG_VERSION").into(),
            host: self.plan.facts.host.clone(),
        })?;
        self.wire.expect("hello", |message| match message {
            Message::Hello { .. } => Ok(()),
            other => Err(other),
        })?;
        let offer = self.offer()?;
        self.offered = offer.trees.clone();
        self.wire.expect_indexes();
        self.wire.say(&Message::Offer(Box::new(offer)))?;
        let bases = match self.wire.hear()? {
            Incoming::Message(Message::Accept { bases, process_start_us, restoration, restoration_why }) => {
                self.process_start = Duration::from_micros(process_start_us);
                self.restoration = (restoration, restoration_why);
                bases
            }
            Incoming::Message(Message::Refuse { reasons }) => return Err(self.refused(reasons)),
            other => return Err(unexpected(&other, "accept or refuse").into()),
        };
        if bases.len() != self.offered.len() {
            return Err(WireError::Malformed("an accept for another offer".into()).into());
        }
        let contents: Vec<PathBuf> =
            self.container.facts().trees.iter().map(|tree| tree.content.clone()).collect();
        for ((tree, content), base) in self.offered.clone().into_iter().zip(contents).zip(bases) {
            self.take_base(tree, &content, base)?;
        }
        self.journal.append(journal::Event::Accepted)?;
        Ok(())
    }

    fn offer(&self) -> Result<Offer, SourceError> {
        let facts = self.container.facts();
        let tree = |(number, tree): (usize, &godwit_engine::Tree)| TreeOffer {
            id: TreeId(number as u16),
            kind: tree.kind,
            path: tree.path.clone(),
            single_file: tree.single_file,
            read_only: tree.read_only,
            bytes: crate::files::size_of(&tree.content),
        };
        let network = facts.network.as_ref().map(serde_json::to_string).transpose();
        Ok(Offer {
            migration: self.job.id.clone(),
            engine: facts.engine.into(),
            name: facts.name.clone(),
            recipe: facts.recipe.clone(),
            network: network.map_err(|error| WireError::Malformed(error.to_string()))?,
            network_plan: self.plan.network_plan.to_string(),
            trees: facts.trees.iter().enumerate().map(tree).collect(),
            memory_bytes: facts.memory_bytes,
            strategy: self.plan.strategy,
            tracker: self.plan.tracker,
            room_pages: self.reader.is_some().then(|| self.room_pages()),
            restoration: self.plan.restoration,
            carry: self.plan.carry,
            facts: self.plan.facts.clone(),
            void: recovery::void(&self.job.root, &self.name),
            witness: self.plan.witness.as_ref().map(ToString::to_string),
        })
    }

    fn refused(&mut self, reasons: Vec<godwit_transfer::Refusal>) -> SourceError {
        self.was_refused = true;
        let message = format!("{} cannot receive `{}`", self.plan.destination, self.name);
        let mut failure = Failure::new(FailureKind::Refused, message);
        for refusal in reasons {
            failure = failure.because(refusal.reason);
            if let Some(hint) = refusal.hint {
                failure = failure.hint(hint);
            }
        }
        SourceError::Failure(Box::new(failure))
    }

    /// What lies at a tree's place over there decides whether it may be written to, and what the first round is
    /// compared with.
    fn take_base(&mut self, tree: TreeOffer, content: &Path, base: TreeBase) -> Result<(), SourceError> {
        let index = match base {
            TreeBase::Empty => TreeIndex::default(),
            TreeBase::Stale => self.hear_index(tree.id)?,
            TreeBase::Foreign { digest } => {
                let ours = equal_digest(content)
                    .map_err(|source| FilesError::Tree { path: content.display().to_string(), source })?;
                if ours.to_string() != digest {
                    return Err(self.foreign(&tree));
                }
                // all the same: what differs from now on is sent against what we know to be there
                self.hear_index(tree.id)?
            }
        };
        Ok(self.files.add(tree, content, index)?)
    }

    fn foreign(&self, tree: &TreeOffer) -> SourceError {
        let path = tree.path.display();
        SourceError::Failure(Box::new(
            Failure::new(
                FailureKind::Refused,
                format!("{} cannot receive `{}`", self.plan.destination, self.name),
            )
            .because(format!("`{path}` exists there with other content"))
            .hint(format!(
                "move `{path}` out of the way there, or add `--no-copy {path}` if what lies there is right"
            )),
        ))
    }

    fn hear_index(&mut self, tree: TreeId) -> Result<TreeIndex, SourceError> {
        match self.wire.hear()? {
            Incoming::Index(of, index) if of == tree => Ok(index),
            other => Err(unexpected(&other, "the index of a tree").into()),
        }
    }

    /// Room for the memory as it is now, and for what it may grow by while it is copied: a quarter, and a little.
    fn room_pages(&self) -> u64 {
        (self.memory_bytes + self.memory_bytes / 4 + (64 << 20)) / godwit_memory::PAGE_SIZE
    }

    /// The destination makes everything that can exist early.
    pub(crate) fn prepare(&mut self) -> Result<(), SourceError> {
        self.wire.say(&Message::Prepare)?;
        self.wire.expect("prepared", |message| match message {
            Message::Prepared => Ok(()),
            other => Err(other),
        })?;
        if let Some(reader) = self.reader.take() {
            self.streams =
                connections::open(self.dial, &self.job.id, &self.plan, &self.bandwidth, self.observer);
            let streams = self.streams.as_ref().map_or(1, PageStreams::count);
            let work = self.job.dir.join("work");
            let circumstances = Circumstances {
                own_mounts: self.container.has_own_mounts(),
                by_soft_dirty: self.plan.tracker == Some(Tracker::SoftDirty),
                highest: self.plan.highest_rung,
            };
            let ladder = self.criu.pageless(&work, circumstances)?;
            let room = self.room_pages();
            self.pages = Some(PageMemory::new(reader, ladder, room, streams, self.cancel.clone()));
        }
        self.bandwidth.set(self.plan.bandwidth);
        self.journal.append(journal::Event::Prepared)?;
        Ok(())
    }

    /// Downtime begins here: lock first, so that nothing is acknowledged that the dump does not hold.
    pub(crate) fn freeze(&mut self) -> Result<(), SourceError> {
        self.hurry()?;
        self.wire.set_patience(FROZEN_PATIENCE);
        self.keep_remains()?;
        self.journal.append(journal::Event::Freezing)?;
        let options = self.last_dump();
        if let Some(pages) = &mut self.pages {
            pages.about_to_freeze(&self.container.tasks()?, &options)?;
        }
        self.stopwatch = Some(Stopwatch::start());
        self.container.lock_network()?;
        self.container.freeze()?;
        // the dump must find the limit that it had
        self.unthrottle()?;
        self.lap(Stopwatch::frozen);
        self.journal.append(journal::Event::Frozen)?;
        Ok(())
    }

    /// What whoever goes on after a crash must know.
    fn keep_remains(&mut self) -> Result<(), SourceError> {
        let engine = self.container.facts().engine.to_owned();
        let remains = recovery::Remains { engine, container: self.container.remains()? };
        remains::keep(&self.job.dir, &remains).map_err(|error| {
            let path = self.job.dir.display();
            let failure = Failure::new(FailureKind::Failed, format!("cannot write into `{path}`"));
            SourceError::Failure(Box::new(failure.because_of(&error)))
        })
    }

    /// No limit and no high compression while it stands still.
    fn hurry(&mut self) -> Result<(), SourceError> {
        self.bandwidth.set(0);
        self.wire.hurry();
        Ok(self.streams.as_ref().map_or(Ok(()), PageStreams::hurry)?)
    }

    /// The last difference, while it stands still.
    pub(crate) fn stop_and_copy(&mut self) -> Result<(), SourceError> {
        match self.pages.take() {
            Some(mut pages) => {
                let copied = self.stop_and_copy_pages(&mut pages);
                self.pages = Some(pages);
                copied
            }
            None => self.stop_and_copy_images(),
        }
    }

    /// The final dump, and beside it the last difference of the files; then the images.
    fn stop_and_copy_images(&mut self) -> Result<(), SourceError> {
        let begun = Instant::now();
        let wire_before = self.wire.bytes_sent();
        let round = self.rounds.len() as u32;
        self.wire.say(&Message::RoundBegin { round, last: true })?;
        let dump = self.tracker.last(&*self.container);
        let criu = self.criu;
        let (images, files) = std::thread::scope(|scope| {
            let dump = scope.spawn(move || dump.run(criu));
            let files = self.send_files(true, Phase::StopAndCopy);
            (dump.join(), files)
        });
        let images = images.map_err(|_| thread_died("the final dump"))??;
        let (file_bytes, _) = files?;
        self.container.verify_frozen()?;
        self.container.complete_images(&images.dir)?;
        self.journal.append(journal::Event::Dumped)?;
        self.lap(Stopwatch::dumped);
        self.send_images(&images.dir, images.tree, images.dumped.memory_bytes, Phase::StopAndCopy)?;
        self.ready(LastRound {
            round,
            begun,
            wire_before,
            memory_bytes: images.dumped.memory_bytes,
            file_bytes,
        })
    }

    /// CRIU dumps everything but pages; beside it the pages that were written of late and the last difference of the files
    /// go out. Then what CRIU has touched itself, the list of pages, and its images.
    fn stop_and_copy_pages(&mut self, pages: &mut PageMemory) -> Result<(), SourceError> {
        let begun = Instant::now();
        let wire_before = self.bytes_sent();
        let round = self.rounds.len() as u32;
        self.wire.say(&Message::RoundBegin { round, last: true })?;
        let tasks = self.container.tasks()?;
        let options = self.last_dump();
        let dir = options.images_dir.clone();
        let (ladder, mut memory) = pages.split();
        let streams = self.streams.take();
        let (dumped, looked, files) = std::thread::scope(|scope| {
            let dump = scope.spawn(move || ladder.dump(options));
            let (looked, files) = match &streams {
                Some(streams) => {
                    let look = scope.spawn(|| memory.look(&tasks, Outlet::Streams(streams)));
                    let files = self.send_files(true, Phase::StopAndCopy);
                    (look.join().map_err(|_| thread_died("memory")), files)
                }
                None => {
                    let looked = memory.look(&tasks, Outlet::Wire(&mut self.wire));
                    (Ok(looked), self.send_files(true, Phase::StopAndCopy))
                }
            };
            (dump.join().map_err(|_| thread_died("the final dump")), looked, files)
        });
        self.streams = streams;
        let (dumped, looked, (file_bytes, _)) = (dumped??, looked??, files?);
        self.observer.note(crate::pages::describe(&dumped));
        self.container.verify_frozen()?;
        self.container.complete_images(&dir)?;
        self.journal.append(journal::Event::Dumped)?;
        let outlet = outlet(&self.streams, Some(&mut self.wire))?;
        let finished = memory.finish(&tasks, looked, &dir, outlet)?;
        let objects = memory.shared_objects(&dumped.omitted)?;
        if let Some(streams) = &self.streams {
            streams.end_of(round)?;
        }
        self.lap(Stopwatch::dumped);
        if !objects.is_empty() {
            self.wire.say(&Message::Shared { objects })?;
        }
        self.send_images(&dir, TreeId::images(0), 0, Phase::StopAndCopy)?;
        self.memory_report = Some(MemoryReport {
            rung: dumped.rung.to_string(),
            fell: dumped.fell.iter().map(|(rung, why)| format!("{rung}: {why}")).collect(),
            ..self.memory_report.take().unwrap_or_default()
        });
        self.ready(LastRound { round, begun, wire_before, memory_bytes: finished.changed_bytes, file_bytes })
    }

    /// How CRIU is asked for the dump without pages.
    fn last_dump(&self) -> DumpOptions {
        let images = self.job.dir.join("images").join("last");
        self.container.dump_options(&images, &self.job.dir.join("work").join("last"))
    }

    /// The destination has all of it.
    fn ready(&mut self, last: LastRound) -> Result<(), SourceError> {
        self.end_round(last.round)?;
        let verify_us = self.wire.expect("ready", |message| match message {
            Message::Ready { verify_us } => Ok(verify_us),
            other => Err(other),
        })?;
        self.lap(|watch| watch.ready(Duration::from_micros(verify_us)));
        self.rounds.push(RoundReport {
            round: last.round,
            last: true,
            memory_bytes: last.memory_bytes,
            file_bytes: last.file_bytes,
            wire_bytes: self.bytes_sent() - last.wire_before,
            duration: last.begun.elapsed(),
            frozen: Duration::ZERO,
            dirty_rate_bytes_per_s: None,
            expected_downtime_us: None,
        });
        Ok(())
    }

    /// Bytes over all connections.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.wire.bytes_sent() + self.streams.as_ref().map_or(0, PageStreams::bytes_sent)
    }

    /// The destination restores the tree and holds it.
    fn restore(&mut self) -> Result<(), SourceError> {
        self.wire.say(&Message::Restore)?;
        self.pid_there = self.wire.expect("restored", |message| match message {
            Message::Restored { pid } => Ok(pid),
            other => Err(other),
        })?;
        self.lap(Stopwatch::restored);
        self.journal.append(journal::Event::Restored)?;
        Ok(())
    }

    /// The one step that cannot be undone: `Committed` reaches the disk, then the destination may let it run.
    fn commit(&mut self) -> Result<Downtime, SourceError> {
        self.container.verify_frozen()?;
        let frames = self.container.take_frames();
        // nothing of the frozen copy may leave this host any more, not even the last words of its sockets
        self.container.disconnect()?;
        // ahead of the commit: whatever goes wrong with them can still be undone
        self.wire.send_frames(&frames)?;
        if self.cancel.is_raised() {
            return Err(WireError::Interrupted.into());
        }
        self.wire.ignore_cancel();
        self.journal.append(journal::Event::Committed)?;
        self.wire.say(&Message::Go)?;
        let pid = self.wire.expect("running", |message| match message {
            Message::Running { pid } => Ok(pid),
            other => Err(other),
        })?;
        let downtime = self.stopwatch.take().map(Stopwatch::running).unwrap_or_default();
        self.pid_there = pid;
        // it runs there, whether this host can write it down or not
        if let Err(error) = self.journal.append(journal::Event::Running { pid }) {
            tracing::warn!(%error, "the journal does not tell that the container runs at the destination");
        }
        Ok(downtime)
    }

    /// It runs there: what is left here goes. Nothing from here on is a failure of the migration.
    fn complete(mut self, downtime: Downtime) -> Summary {
        // the tracker holds the tasks' memory
        let totals = self.pages.take().map(|pages| (pages.statistics(), pages.longest_stop()));
        let mut leftovers = self.container.discard();
        let mut keep = |what: &str, error: Option<String>| {
            leftovers.extend(error.map(|error| format!("{what}: {error}")));
        };
        keep("journal", self.journal.append(journal::Event::Discarded).err().map(|error| error.to_string()));
        let copies = StaleCopies::below(&self.job.root);
        // what was read out of a checkpoint is no copy that the container left
        let left = self.container.facts().trees.iter().filter(|tree| tree.content == tree.path);
        for tree in left {
            let noted = copies.note(&tree.path, &self.name);
            keep("record of a left copy", noted.err().map(|error| error.to_string()));
        }
        keep("images", crate::rollback::remove_images(&self.job).err().map(|error| error.to_string()));
        let (leftovers_there, fill) = self.farewell();
        leftovers.extend(leftovers_there);
        let completed = journal::Event::Completed {
            downtime_us: Some(micros(downtime.total())),
            leftovers: leftovers.clone(),
        };
        if let Err(error) = self.journal.append(completed) {
            leftovers.push(format!("journal: {error}"));
        }
        if let Some(last) = self.rounds.last_mut() {
            last.frozen = downtime.total();
        }
        let memory =
            self.memory_report.take().zip(totals).map(|(report, (totals, longest_stop))| MemoryReport {
                restoration: self.restoration.0,
                restoration_why: self.restoration.1.clone(),
                pages_read: totals.added,
                pages_sent: totals.data,
                pages_zero: totals.zero,
                pages_shared: totals.referenced,
                pages_unchanged: totals.unchanged,
                longest_stop,
                fill,
                ..report
            });
        let wire_bytes = self.bytes_sent();
        let throttle = self.throttle_report();
        Summary {
            migration: self.job.id,
            container: self.plan.container,
            destination: self.plan.destination,
            disposition: Disposition::RunningAtDestination,
            strategy: self.plan.strategy,
            tracker: self.plan.tracker,
            pid: self.pid_there,
            duration: self.begun.elapsed(),
            max_downtime: self.plan.limits.max_downtime,
            downtime_total: downtime.total(),
            downtime,
            memory,
            throttle,
            rounds: self.rounds,
            wire_bytes,
            leftovers,
        }
    }

    /// Lets the destination finish: only then the container may be moved on. Gives what it could not clean up. That nothing
    /// is heard harms nobody: the container runs there.
    fn farewell(&mut self) -> (Vec<String>, Option<FillReport>) {
        // memory may still be filled over there
        self.wire.set_patience(SETTLING_PATIENCE);
        let said = self.wire.say(&Message::Done);
        let settled = said.and_then(|()| {
            self.wire.expect("settled", |message| match message {
                Message::Settled { leftovers, fill } => Ok((leftovers, fill)),
                other => Err(other),
            })
        });
        let host = &self.plan.destination;
        match settled {
            Ok((leftovers, fill)) => {
                (leftovers.into_iter().map(|left| format!("on {host}: {left}")).collect(), fill)
            }
            Err(error) => {
                tracing::warn!(%error, %host, "the destination did not say that all is settled");
                (vec![], None)
            }
        }
    }

    fn lap(&mut self, lap: impl FnOnce(&mut Stopwatch)) {
        if let Some(stopwatch) = &mut self.stopwatch {
            lap(stopwatch);
        }
    }

    /// How long the container has been standing still, if it has.
    pub(crate) fn stopped_for(&self) -> Option<Duration> {
        self.stopwatch.as_ref().map(Stopwatch::so_far)
    }
}

/// What is known of the last round when all of it was sent.
struct LastRound {
    round: u32,
    begun: Instant,
    wire_before: u64,
    memory_bytes: u64,
    file_bytes: u64,
}

pub(crate) fn thread_died(what: &str) -> SourceError {
    SourceError::Failure(Box::new(Failure::new(FailureKind::Failed, format!("the thread of {what} died"))))
}

/// Pages go over connections of their own where there are any, else over the only one.
pub(crate) fn outlet<'a>(
    streams: &'a Option<PageStreams>,
    wire: Option<&'a mut Wire>,
) -> Result<Outlet<'a>, WireError> {
    match (streams, wire) {
        (Some(streams), _) => Ok(Outlet::Streams(streams)),
        (None, Some(wire)) => Ok(Outlet::Wire(wire)),
        (None, None) => Err(WireError::Closed { after: None }),
    }
}
