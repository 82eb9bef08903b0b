//! The source's half of a migration.
//!
//! [`migrate`] guarantees: **on success the container runs at the destination and nothing of it is left here; on failure
//! before the commit it runs here, as if nothing had been tried; after the commit this side never lets it run again.**
//! The other half is `destination.rs` of the restore crate: the two lists of phases mirror each other.

use crate::dumper::Dumper;
use crate::files::{Files, FilesError};
use crate::tracker::{MemoryTracker, TrackerError, tracker_for};
use godwit_engine::network::NetworkPlan;
use godwit_engine::{EngineError, SourceContainer};
use godwit_migration::downtime::{Downtime, Stopwatch};
use godwit_migration::journal::{self, Journal, JournalError};
use godwit_migration::observer::{Event, micros};
use godwit_migration::plan::{Carry, Limits, Strategy, Tracker};
use godwit_migration::report::{RoundReport, Summary};
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, MigrationId, Observer, Phase, Role};
use godwit_transfer::stale::StaleCopies;
use godwit_transfer::tree::{TreeIndex, equal_digest};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{HostFacts, Incoming, Message, Offer, TreeBase, TreeId, TreeOffer, Wire, WireError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the destination may think about one thing before the freeze.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the destination may take for a step under the freeze. Restoring is the longest.
const FROZEN_PATIENCE: Duration = Duration::from_secs(120);

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
    /// zstd's level, or none.
    pub compress: Option<i32>,
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
    pub(crate) files: Files,
    pub(crate) rounds: Vec<RoundReport>,
    pub(crate) memory_bytes: u64,
    /// What starting a process costs at the destination.
    pub(crate) process_start: Duration,
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
        let Parties { container, criu, wire, observer, cancel } = parties;
        let Order { plan, job, journal } = order;
        let facts = container.facts();
        Self {
            name: format!("{}:{}", facts.engine, facts.name),
            memory_bytes: facts.memory_bytes,
            tracker: tracker_for(plan.strategy, plan.tracker, &job.dir),
            files: Files::default(),
            rounds: Vec::new(),
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
        self.wire.say(&Message::Offer(Box::new(offer)))?;
        let bases = match self.wire.hear()? {
            Incoming::Message(Message::Accept { bases, process_start_us }) => {
                self.process_start = Duration::from_micros(process_start_us);
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
            carry: self.plan.carry,
            facts: self.plan.facts.clone(),
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

    /// The destination makes everything that can exist early.
    pub(crate) fn prepare(&mut self) -> Result<(), SourceError> {
        self.wire.say(&Message::Prepare)?;
        self.wire.expect("prepared", |message| match message {
            Message::Prepared => Ok(()),
            other => Err(other),
        })?;
        self.wire.set_bandwidth(self.plan.bandwidth);
        self.journal.append(journal::Event::Prepared)?;
        Ok(())
    }

    /// Downtime begins here: lock first, so that nothing is acknowledged that the dump does not hold.
    pub(crate) fn freeze(&mut self) -> Result<(), SourceError> {
        self.wire.set_bandwidth(0);
        self.wire.set_patience(FROZEN_PATIENCE);
        self.journal.append(journal::Event::Freezing)?;
        self.stopwatch = Some(Stopwatch::start());
        self.container.lock_network()?;
        self.container.freeze()?;
        self.lap(Stopwatch::frozen);
        self.journal.append(journal::Event::Frozen)?;
        Ok(())
    }

    /// The final dump, and beside it the last difference of the files; then the images.
    pub(crate) fn stop_and_copy(&mut self) -> Result<(), SourceError> {
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
        let images = images.map_err(|_| {
            SourceError::Failure(Box::new(Failure::new(
                FailureKind::Failed,
                "the thread of the final dump died",
            )))
        })??;
        let (file_bytes, _) = files?;
        self.container.verify_frozen()?;
        self.complete_images(&images)?;
        self.journal.append(journal::Event::Dumped)?;
        self.lap(Stopwatch::dumped);
        self.send_images(&images, Phase::StopAndCopy)?;
        self.wire.say(&Message::RoundEnd { round })?;
        let verify_us = self.wire.expect("ready", |message| match message {
            Message::Ready { verify_us } => Ok(verify_us),
            other => Err(other),
        })?;
        self.lap(|watch| watch.ready(Duration::from_micros(verify_us)));
        self.rounds.push(RoundReport {
            round,
            last: true,
            memory_bytes: images.dumped.memory_bytes,
            file_bytes,
            wire_bytes: self.wire.bytes_sent() - wire_before,
            duration: begun.elapsed(),
            frozen: Duration::ZERO,
            dirty_rate_bytes_per_s: None,
            expected_downtime_us: None,
        });
        Ok(())
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
        leftovers.extend(self.farewell());
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
            rounds: self.rounds,
            wire_bytes: self.wire.bytes_sent(),
            leftovers,
        }
    }

    /// Lets the destination finish: only then the container may be moved on. Gives what it could not clean up. That nothing
    /// is heard harms nobody: the container runs there.
    fn farewell(&mut self) -> Vec<String> {
        let said = self.wire.say(&Message::Done);
        let settled = said.and_then(|()| {
            self.wire.expect("settled", |message| match message {
                Message::Settled { leftovers } => Ok(leftovers),
                other => Err(other),
            })
        });
        let host = &self.plan.destination;
        match settled {
            Ok(leftovers) => leftovers.into_iter().map(|left| format!("on {host}: {left}")).collect(),
            Err(error) => {
                tracing::warn!(%error, %host, "the destination did not say that all is settled");
                vec![]
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
