//! The destination's half of a migration.
//!
//! [`receive`] guarantees: **nothing of the container runs here before the source has given its word (`Go`); when the
//! migration ends without it, everything that was made here is removed; a tree that is held when the link is lost stays
//! held, frozen, until somebody who knows decides.** The other half is `source.rs` of the checkpoint crate: the two lists
//! of phases mirror each other.

use crate::images::IncomingImages;
use crate::pages::{IncomingPages, PagesError};
use crate::policy::{Policy, Wish};
use crate::preflight;
use crate::recovery;
use crate::streams::{self, Doors, Joins};
use crate::trees::{Before, Trees, TreesError, look_at};
use godwit_criu::images::ImageError;
use godwit_engine::network::{NetworkPlan, NetworkState};
use godwit_engine::{DestinationContainer, Engine, EngineError, RestoreRequest, Shipment};
use godwit_migration::journal::{self, Journal, JournalError, JournalState};
use godwit_migration::lock::{ContainerLock, lock_container};
use godwit_migration::observer::{Event, micros};
use godwit_migration::plan::Restoration;
use godwit_migration::report::FillReport;
use godwit_migration::{
    Disposition, Failure, FailureKind, MigrationId, Observer, Phase, Role, SharedDirectory,
};
use godwit_transfer::stale::StaleCopies;
use godwit_transfer::wire::{HeldFrames, unexpected};
use godwit_transfer::{
    HostFacts, Incoming, Message, Offer, Peer, Refusal, TreeBase, TreeId, TreeOffer, Wire, WireError,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the source may be silent: it may write a large dump to its disk meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the source may take to give its word: it has only to write it down. Then whoever resumes can have the container.
const WORD: Duration = Duration::from_secs(20);
/// How long the source may take for its farewell.
const FAREWELL: Duration = Duration::from_secs(60);

/// Frames that the source's network lock may have held, bytes: many seconds of a fast link.
const MAX_HELD: usize = 512 << 20;

/// The host that receives.
pub struct Host {
    /// godwit's directory, usually /var/lib/godwit.
    pub root: PathBuf,
    /// The engines of this host.
    pub engines: Vec<Box<dyn Engine>>,
    /// What this host is like, or why it cannot receive anything.
    pub facts: Result<HostFacts, Refusal>,
    /// Whether memory can be filled on demand here, or why not.
    pub lazy: Result<(), String>,
    /// Who asks.
    pub peer: Peer,
    /// What it may send.
    pub policy: Policy,
    /// Where further connections of this process look for their migration.
    pub joins: Joins,
}

/// How it ended, if nothing failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs here.
    Running {
        /// Which migration.
        migration: MigrationId,
        /// The container.
        container: String,
        /// Its first process.
        pid: i32,
        /// What could not be cleaned up.
        leftovers: Vec<String>,
    },
    /// The source gave up, and everything is undone.
    Undone {
        /// The container.
        container: String,
        /// Why.
        reason: String,
    },
    /// This host said no.
    Refused {
        /// Why.
        reasons: Vec<Refusal>,
    },
    /// The source wanted to know whether a migration is possible, and no more.
    Examined,
    /// It was a further connection of a migration that another process of this host receives.
    PassedOn,
}

/// Anything that ends a migration early.
#[derive(Debug, thiserror::Error)]
enum DestinationError {
    /// The source gave up.
    #[error("{0}")]
    Cancelled(String),
    /// This host said no.
    #[error("refused")]
    Refused(Vec<Refusal>),
    /// Somebody else has it.
    #[error("{0}")]
    Locked(String),
    /// The witness.
    #[error(transparent)]
    Witness(#[from] recovery::WitnessError),
    /// The source went after the preflight.
    #[error("only asked")]
    OnlyAsked,
    /// The wire.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The container, its runtime or the kernel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The files.
    #[error(transparent)]
    Trees(#[from] TreesError),
    /// The source resumes a migration that was broken off.
    #[error("migration {0} is resumed")]
    Resumed(MigrationId),
    /// A further connection of another process's migration.
    #[error("a further connection of migration {migration}")]
    Further {
        /// Whose.
        migration: MigrationId,
        /// Which.
        stream: u16,
    },
    /// Memory that comes by itself.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The images.
    #[error("the images do not hold together")]
    Images(#[from] ImageError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file of godwit's own.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// What exists once an offer was accepted.
struct Job {
    offer: Offer,
    name: String,
    dir: PathBuf,
    bases: Vec<TreeBase>,
    shipment: Shipment,
    engine: usize,
    journal: Journal,
    trees: Trees,
    images: IncomingImages,
    pages: Option<IncomingPages>,
    restoration: Restoration,
    container: Option<Box<dyn DestinationContainer>>,
    _lock: ContainerLock,
}

struct Destination<'a> {
    host: &'a Host,
    wire: Wire,
    observer: &'a dyn Observer,
    job: Option<Job>,
    images: PathBuf,
    pid: i32,
}

/// Takes one container from whoever is at the other end of `wire`. See the module for what is guaranteed.
///
/// # Errors
/// The failure says what happened and where the container is.
pub fn receive(wire: Wire, host: &Host, observer: &dyn Observer) -> Result<Outcome, Failure> {
    let mut destination = Destination { host, wire, observer, job: None, images: PathBuf::new(), pid: 0 };
    match destination.run() {
        Ok(()) => Ok(destination.complete()),
        Err(error) => destination.undo(error),
    }
}

impl Destination<'_> {
    /// The table of contents, as in `source.rs`.
    fn run(&mut self) -> Result<(), DestinationError> {
        self.phase(Phase::Negotiate, Self::negotiate)?;
        self.phase(Phase::Prepare, Self::prepare)?;
        self.phase(Phase::PreCopy, Self::take_rounds)?;
        self.phase(Phase::Restore, Self::restore)?;
        self.phase(Phase::Commit, Self::go)
    }

    fn phase<T>(
        &mut self,
        phase: Phase,
        run: impl FnOnce(&mut Self) -> Result<T, DestinationError>,
    ) -> Result<T, DestinationError> {
        let tell = |observer: &dyn Observer, event, duration_us| {
            observer.event(&Event::Phase { role: Role::Destination, phase, event, round: None, duration_us });
        };
        tell(self.observer, "begin", None);
        let begun = Instant::now();
        let result = run(self)?;
        tell(self.observer, "end", Some(micros(begun.elapsed())));
        Ok(result)
    }

    /// Waits for what comes next; the source's wish to stop comes out as an error.
    fn hear(&mut self) -> Result<Incoming, DestinationError> {
        match self.wire.hear()? {
            Incoming::Message(Message::Cancel { reason }) => Err(DestinationError::Cancelled(reason)),
            other => Ok(other),
        }
    }

    fn job(&mut self) -> Result<&mut Job, DestinationError> {
        self.job.as_mut().ok_or_else(|| WireError::Malformed("a message before the offer".into()).into())
    }

    /// Hello, Offer; Accept or Refuse.
    fn negotiate(&mut self) -> Result<(), DestinationError> {
        self.wire.set_patience(PATIENCE);
        match self.hear()? {
            Incoming::Message(Message::Hello { .. }) => {}
            Incoming::Message(Message::Join { migration, stream }) => {
                return Err(DestinationError::Further { migration, stream });
            }
            other => return Err(unexpected(&other, "hello").into()),
        }
        let host = self.host.facts.as_ref().map(|facts| facts.host.clone()).unwrap_or_default();
        self.wire.say(&Message::Hello { godwit: env!("CARGO_PKG_VERSION").into(), host })?;
        let offer = match self.hear()? {
            Incoming::Message(Message::Offer(offer)) => *offer,
            Incoming::Message(Message::Resume { migration }) => {
                return Err(DestinationError::Resumed(migration));
            }
            other => return Err(unexpected(&other, "an offer").into()),
        };
        let name = format!("{}:{}", offer.engine, offer.name);
        recovery::settle_earlier(&self.host.root, &self.host.engines, &name, &offer.void)
            .map_err(DestinationError::Locked)?;
        let (engine, shipment, process_start) = match self.examine(&offer) {
            Ok(found) => found,
            Err(reasons) => {
                self.wire.say(&Message::Refuse { reasons: reasons.clone() })?;
                return Err(DestinationError::Refused(reasons));
            }
        };
        self.accept(offer, engine, shipment, process_start)
    }

    /// All that speaks against the offer, or the engine and the shipment for it. Nothing is touched.
    fn examine(&self, offer: &Offer) -> Result<(usize, Shipment, Duration), Vec<Refusal>> {
        let facts = self.host.facts.as_ref().map_err(|reason| vec![reason.clone()])?;
        let Some(engine) = self.host.engines.iter().position(|engine| engine.kind() == offer.engine) else {
            return Err(vec![Refusal::new(format!("this godwit knows no engine `{}`", offer.engine))]);
        };
        let asked = Instant::now();
        let usable = self.host.engines[engine].usable();
        let process_start = asked.elapsed();
        if let Err(error) = usable {
            return Err(vec![
                Refusal::new(format!(
                    "the container runtime `{}` cannot be used there: {error}",
                    offer.engine
                ))
                .hint(format!("install {} there", offer.engine)),
            ]);
        }
        let network = offer.network.as_deref().map(serde_json::from_str::<NetworkState>).transpose();
        let network = network
            .map_err(|error| vec![Refusal::new(format!("its network cannot be understood: {error}"))])?;
        let network_plan: NetworkPlan =
            offer.network_plan.parse().map_err(|error| vec![Refusal::new(format!("{error}"))])?;
        let shipment = Shipment {
            name: offer.name.clone(),
            recipe: offer.recipe.clone(),
            network,
            network_plan,
            trees: offer.trees.iter().map(|tree| tree.path.clone()).collect(),
            carry: offer.carry,
            job: self.host.root.join("migrations").join(offer.migration.as_str()),
        };
        self.allowed(offer, &shipment, engine).map_err(|refusal| vec![refusal])?;
        if let Some(Err(error)) = offer.witness.as_deref().map(str::parse::<SharedDirectory>) {
            return Err(vec![Refusal::new(error.to_string())]);
        }
        let mut reasons = preflight::examine(offer, facts, &self.host.root);
        let lazy = self.host.lazy.clone().and_then(|()| self.host.engines[engine].can_fill_later(&shipment));
        if let (Restoration::LocalLazy, Err(why)) = (offer.restoration, lazy) {
            let refusal = Refusal::new(format!("memory cannot be filled on demand there: {why}"));
            reasons.push(refusal.hint("use `--restore eager` or `--restore auto`"));
        }
        reasons.extend(self.host.engines[engine].examine(&shipment));
        if reasons.is_empty() { Ok((engine, shipment, process_start)) } else { Err(reasons) }
    }

    /// What the policy says.
    fn allowed(&self, offer: &Offer, shipment: &Shipment, engine: usize) -> Result<(), Refusal> {
        let mut places = shipment.trees.clone();
        places.extend(self.host.engines[engine].places(shipment));
        let room = offer.room_pages.unwrap_or(0).saturating_mul(godwit_memory::PAGE_SIZE);
        let hook = match &shipment.network_plan {
            NetworkPlan::Hook(path) => Some(path.as_path()),
            _ => None,
        };
        self.host.policy.examine(&Wish {
            peer: &self.host.peer.name,
            container: &format!("{}:{}", offer.engine, offer.name),
            places: &places,
            memory: offer.memory_bytes.max(room),
            hook,
        })
    }

    fn accept(
        &mut self,
        offer: Offer,
        engine: usize,
        shipment: Shipment,
        process_start: Duration,
    ) -> Result<(), DestinationError> {
        let name = format!("{}:{}", offer.engine, offer.name);
        let lock = lock_container(&self.host.root, &offer.engine, &offer.name).map_err(|source| {
            DestinationError::Io { act: "lock", path: self.host.root.join("locks"), source }
        })?;
        let Some(lock) = lock else {
            return Err(DestinationError::Locked(format!(
                "another migration of `{name}` is under way there"
            )));
        };
        let copies = StaleCopies::below(&self.host.root);
        let mut bases = Vec::new();
        let mut indexes = Vec::new();
        for tree in &offer.trees {
            let (base, index) = look_at(tree, &copies, &name)?;
            bases.push(base);
            indexes.extend(index.map(|index| (tree.id, index)));
        }
        let dir = shipment.job.clone();
        let mut journal = Journal::create(&dir)?;
        journal.append(journal::Event::Planned {
            version: journal::VERSION,
            migration: offer.migration.clone(),
            role: Role::Destination,
            container: name.clone(),
            peer: format!("{} ({})", self.host.peer.shown, offer.facts.host),
            godwit: env!("CARGO_PKG_VERSION").into(),
        })?;
        make_private(&dir.join("images"))?;
        let images = IncomingImages::new(&dir, offer.tracker)?;
        let (restoration, restoration_why) = self.restoration_of(&offer, engine, &shipment);
        let accept = Message::Accept {
            bases: bases.clone(),
            process_start_us: micros(process_start),
            restoration,
            restoration_why,
        };
        // from here on whatever happens is undone, and the journal says so
        let job = self.job.insert(Job {
            images,
            pages: None,
            restoration,
            trees: Trees::default(),
            container: None,
            _lock: lock,
            offer,
            name,
            dir,
            bases,
            shipment,
            engine,
            journal,
        });
        self.wire.say(&accept)?;
        for (tree, index) in indexes {
            self.wire.send_index(tree, &index)?;
        }
        Ok(job.journal.append(journal::Event::Accepted)?)
    }

    /// How the container will get its memory here, and why not otherwise.
    fn restoration_of(&self, offer: &Offer, engine: usize, shipment: &Shipment) -> (Restoration, String) {
        let can = self.host.lazy.clone().and_then(|()| self.host.engines[engine].can_fill_later(shipment));
        match (offer.restoration, offer.room_pages, can) {
            (Restoration::Eager, ..) => (Restoration::Eager, "asked for".into()),
            (_, None, _) => (Restoration::Eager, "memory travels in CRIU's images".into()),
            (_, Some(_), Ok(())) => (Restoration::LocalLazy, String::new()),
            (_, Some(_), Err(why)) => (Restoration::Eager, why),
        }
    }

    /// Makes everything that can exist early: directories, bundle, network, room for memory.
    fn prepare(&mut self) -> Result<(), DestinationError> {
        match self.hear() {
            Ok(Incoming::Message(Message::Prepare)) => {}
            Ok(other) => return Err(unexpected(&other, "prepare").into()),
            // `godwit check` hangs up here
            Err(DestinationError::Wire(WireError::Closed { .. })) => return Err(DestinationError::OnlyAsked),
            Err(error) => return Err(error),
        }
        let host = self.host;
        let version = self.wire.version();
        let job = self.job()?;
        make_private(&job.dir.join("work"))?;
        if let Some(room) = job.offer.room_pages {
            let lazy = job.restoration == Restoration::LocalLazy;
            let doors = Doors {
                job: &job.dir,
                migration: &job.offer.migration,
                peer: &host.peer.name,
                joins: &host.joins,
                version,
            };
            job.pages = Some(IncomingPages::prepare(&doors, &job.dir.join("work"), room, lazy)?);
        }
        let before = |(tree, base): (&TreeOffer, &TreeBase)| Before::of(&tree.path, base);
        let trees: Vec<Before> = job.offer.trees.iter().zip(&job.bases).map(before).collect();
        let mut remains = recovery::Remains {
            engine: job.offer.engine.clone(),
            container: None,
            trees: trees.clone(),
            witness: job.offer.witness.clone(),
            lazy: job.restoration == Restoration::LocalLazy && job.pages.is_some(),
        };
        let dir = job.dir.clone();
        let mut note = |container: Option<&str>| {
            remains.container = container.map(Into::into);
            recovery::note(&dir, &remains)
        };
        note(None).map_err(|source| DestinationError::Io { act: "write into", path: dir.clone(), source })?;
        for (tree, before) in job.offer.trees.iter().zip(trees) {
            job.trees.open(tree, before)?;
        }
        let engine = &host.engines[job.engine];
        job.container = Some(engine.prepare(&job.shipment, &mut |text| note(Some(text)))?);
        job.journal.append(journal::Event::Prepared)?;
        Ok(self.wire.say(&Message::Prepared)?)
    }

    /// Rounds while it runs over there, and the last one under the freeze.
    fn take_rounds(&mut self) -> Result<(), DestinationError> {
        loop {
            let (round, last) = match self.hear()? {
                Incoming::Message(Message::RoundBegin { round, last }) => (round, last),
                other => return Err(unexpected(&other, "a round").into()),
            };
            let before = self.wire.bytes_received();
            if let Some(pages) = &self.job()?.pages {
                pages.begin_round();
            }
            if last && round > 0 {
                self.begin_restore()?;
            }
            let (image_round, streams) = self.take_operations(round)?;
            let arrived = Instant::now();
            if let Some(pages) = &mut self.job()?.pages {
                pages.end_of(round, streams, PATIENCE)?;
            }
            if last {
                return self.ready(image_round, arrived);
            }
            let wire_bytes = self.wire.bytes_received() - before;
            let job = self.job()?;
            if let Some(image_round) = image_round {
                job.images.absorb(image_round)?;
            }
            job.journal.append(journal::Event::Round { round, wire_bytes })?;
            self.wire.say(&Message::RoundAck { round })?;
        }
    }

    /// While the source dumps, the runtime gets ready: all files have been here once. Nothing is restored yet. Where memory
    /// travels in CRIU's images these have their place only at the end.
    fn begin_restore(&mut self) -> Result<(), DestinationError> {
        let job = self.job()?;
        if let (Some(pages), Some(container)) = (&job.pages, &mut job.container) {
            let (images, work) = (job.images.dir_of(0), job.dir.join("work"));
            container.begin(&RestoreRequest { images, work, lazy: pages.is_lazy() });
        }
        Ok(())
    }

    /// Applies operations until the round's end; gives the memory round that came with it, if one did, and the number of
    /// further connections with pages of the round.
    fn take_operations(&mut self, round: u32) -> Result<(Option<u16>, u16), DestinationError> {
        let mut image_round = None;
        loop {
            match self.hear()? {
                Incoming::Operation(tree, op) => {
                    let job = self.job()?;
                    if let Some(number) = tree.image_round() {
                        image_round = Some(number);
                        open_images(job, tree, number)?;
                    }
                    job.trees.apply(tree, op)?;
                }
                Incoming::Pages(batch) => self.pages()?.apply(&batch)?,
                Incoming::Message(Message::Shared { objects }) => self.pages()?.expect_shared(objects),
                Incoming::Message(Message::RoundEnd { round: ended, streams }) if ended == round => {
                    return Ok((image_round, streams));
                }
                other => return Err(unexpected(&other, "tree operations").into()),
            }
        }
    }

    fn pages(&mut self) -> Result<&mut IncomingPages, DestinationError> {
        let pages = self.job()?.pages.as_mut();
        pages.ok_or_else(|| WireError::Malformed("memory pages that were not offered".into()).into())
    }

    /// Every digest was right: each was checked when its operation was applied, before the bytes were kept.
    fn ready(&mut self, image_round: Option<u16>, arrived: Instant) -> Result<(), DestinationError> {
        let job = self.job()?;
        let last = image_round.ok_or_else(|| WireError::Malformed("a last round without memory".into()))?;
        let images = match &mut job.pages {
            Some(pages) => {
                let images = job.images.dir_of(last);
                pages.compose(&images)?;
                images
            }
            None => job.images.compose(last)?,
        };
        job.journal.append(journal::Event::Ready)?;
        self.images = images;
        Ok(self.wire.say(&Message::Ready { verify_us: micros(arrived.elapsed()) })?)
    }

    /// Restores the tree and holds it. Nothing of it has run when this says `Restored`.
    fn restore(&mut self) -> Result<(), DestinationError> {
        match self.hear()? {
            Incoming::Message(Message::Restore) => {}
            other => return Err(unexpected(&other, "restore").into()),
        }
        let images = self.images.clone();
        let job = self.job()?;
        let work = job.dir.join("work");
        job.journal.append(journal::Event::Restoring)?;
        let container =
            job.container.as_mut().ok_or_else(|| WireError::Malformed("restore before prepare".into()))?;
        let lazy = job.pages.as_ref().is_some_and(IncomingPages::is_lazy);
        let mut filled = None;
        let mut fill = |root| {
            let tried = job.pages.as_ref().map(|pages| pages.fill_shared(root));
            filled = tried.and_then(|tried| tried.map_err(|error| tracing::info!(%error, "once more")).ok());
        };
        let given = container.restore(&RestoreRequest { images, work, lazy }, &mut fill)?;
        if let Some(pages) = &job.pages
            && !filled.is_some_and(|filled| pages.is_filled(given.pid, &filled))
        {
            pages.fill_shared(given.pid)?;
        }
        self.wire.check_cancel()?;
        let job = self.job()?;
        job.journal.append(journal::Event::Restored)?;
        self.pid = given.pid;
        // once the source knows of the held tree it may give its word at any time: whether this is undone is its decision
        self.wire.ignore_cancel();
        Ok(self.wire.say(&Message::Restored { pid: given.pid })?)
    }

    /// The source has given up its right: it runs here from now on.
    fn go(&mut self) -> Result<(), DestinationError> {
        let mut frames: Vec<HeldFrames> = Vec::new();
        let mut room = MAX_HELD;
        self.wire.set_patience(WORD);
        loop {
            match self.hear()? {
                Incoming::Frames(held) => {
                    let all = held.iter().flat_map(|held| &held.frames);
                    room = room.checked_sub(all.map(|frame| frame.len() + 64).sum()).ok_or_else(|| {
                        WireError::Malformed("more held frames than any network lock keeps".into())
                    })?;
                    frames.extend(held);
                }
                Incoming::Message(Message::Go) => break,
                other => return Err(unexpected(&other, "go").into()),
            }
        }
        let pid = self.pid;
        let job = self.job()?;
        recovery::claim(job.offer.witness.as_deref(), &job.offer.migration)?;
        job.journal.append(journal::Event::Going)?;
        let container =
            job.container.as_mut().ok_or_else(|| WireError::Malformed("go before prepare".into()))?;
        container.go(&frames)?;
        // the source counts its downtime until it hears this: the journal can wait
        let said = self.wire.say(&Message::Running { pid });
        if let Some(pages) = &mut self.job()?.pages {
            pages.gone();
        }
        self.job()?.journal.append(journal::Event::Running { pid })?;
        if let Err(error) = said {
            tracing::warn!(%error, "the source could not be told that the container runs here");
        }
        Ok(())
    }

    /// It runs here: what was only for the move goes.
    fn complete(mut self) -> Outcome {
        let mut leftovers = Vec::new();
        let pid = self.pid;
        let Some(mut job) = self.job.take() else {
            return Outcome::Examined;
        };
        // neighbours first: they may have missed the announcement at go
        leftovers.extend(job.container.as_mut().map(|container| container.settle()).unwrap_or_default());
        let fill = self.fill(&mut job, &mut leftovers);
        self.wire.set_patience(FAREWELL);
        if let Err(error) = self.wire.expect("the farewell", |message| match message {
            Message::Done => Ok(()),
            other => Err(other),
        }) {
            tracing::warn!(%error, "the source said no farewell");
        }
        leftovers.extend(job.trees.sync());
        let copies = StaleCopies::below(&self.host.root);
        for tree in &job.offer.trees {
            if let Err(error) = copies.forget(&tree.path) {
                leftovers.push(format!("record of a left copy: {error}"));
            }
        }
        leftovers.extend(remove_images(&job.dir).err().map(|error| format!("images: {error}")));
        let completed = journal::Event::Completed { downtime_us: None, leftovers: leftovers.clone() };
        leftovers.extend(job.journal.append(completed).err().map(|error| format!("journal: {error}")));
        let (migration, container) = (job.offer.migration.clone(), job.name.clone());
        // its lock goes with it: whoever hears the next word may move the container on
        drop(job);
        let _ = self.wire.say(&Message::Settled { fill, leftovers: leftovers.clone() });
        Outcome::Running { migration, container, pid, leftovers }
    }

    /// Waits until every page is in its place: before that it must not move on, and nothing of the store may go.
    fn fill(&self, job: &mut Job, leftovers: &mut Vec<String>) -> Option<FillReport> {
        let pages = job.pages.as_mut()?;
        let observer = self.observer;
        let begun = Instant::now();
        let told = pages.finish(&mut |done, total| {
            observer.event(&Event::Status {
                phase: Phase::Commit,
                what: "filling memory".into(),
                bytes_done: done,
                bytes_total: total,
                bandwidth_bytes_per_s: (done as f64 / begun.elapsed().as_secs_f64().max(1e-3)) as u64,
            });
        });
        told.unwrap_or_else(|error| {
            leftovers.push(
                Failure::new(FailureKind::Failed, "memory was not filled").because_of(&error).to_string(),
            );
            None
        })
    }

    /// Removes what was made here, unless the container may already be this side's to run.
    fn undo(mut self, error: DestinationError) -> Result<Outcome, Failure> {
        let reason = error.to_string();
        let Some(mut job) = self.job.take() else { return self.not_begun(error) };
        let state = job.journal.state();
        if matches!(state, JournalState::Committed | JournalState::Running) {
            let failure = in_doubt(
                &job,
                &error,
                "the source gave its word, but the container could not be let run here",
            );
            let _ = job.journal.append(journal::Event::InDoubt { reason });
            let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
            return Err(failure);
        }
        let link_lost = matches!(
            error,
            DestinationError::Wire(
                WireError::Closed { .. } | WireError::Broken { .. } | WireError::Silent(_)
            )
        );
        if state == JournalState::Restored && link_lost {
            let failure = in_doubt(&job, &error, "the link was lost while the container is held frozen here");
            let _ = job.journal.append(journal::Event::InDoubt { reason });
            return Err(failure);
        }
        self.wire.ignore_cancel();
        let failure = self.describe(&job, &error);
        if let Some(failure) = &failure {
            // the source first: it thaws as soon as it knows
            let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
        }
        let _ = job.journal.append(journal::Event::Failed { reason: reason.clone() });
        let mut leftovers = job.container.as_mut().map(|container| container.abandon()).unwrap_or_default();
        if let Some(pages) = &mut job.pages {
            pages.abandon();
        }
        leftovers.extend(job.trees.undo());
        leftovers.extend(remove_images(&job.dir).err().map(|error| format!("images: {error}")));
        let _ = job.journal.append(journal::Event::RolledBack);
        self.say_undone(failure.is_some(), &leftovers);
        match failure {
            Some(mut failure) => {
                failure.causes.extend(leftovers.into_iter().map(|left| format!("left over here: {left}")));
                Err(failure)
            }
            None if matches!(error, DestinationError::OnlyAsked) => Ok(Outcome::Examined),
            None => Ok(Outcome::Undone { container: job.name, reason }),
        }
    }

    /// Answers the source's `Cancel`; after a failure of our own it is still to come.
    fn say_undone(&mut self, wait_for_cancel: bool, leftovers: &[String]) {
        self.wire.set_patience(Duration::from_secs(10));
        let mut cancelled = !wait_for_cancel;
        while !cancelled {
            match self.wire.hear() {
                Ok(incoming) => cancelled = matches!(incoming, Incoming::Message(Message::Cancel { .. })),
                Err(_) => return,
            }
        }
        let _ = self.wire.say(&Message::Undone { leftovers: leftovers.to_vec() });
    }

    /// It ended before anything was made.
    fn not_begun(mut self, error: DestinationError) -> Result<Outcome, Failure> {
        match error {
            DestinationError::Refused(reasons) => Ok(Outcome::Refused { reasons }),
            DestinationError::Cancelled(reason) => {
                self.say_undone(false, &[]);
                Ok(Outcome::Undone { container: String::new(), reason })
            }
            DestinationError::Wire(WireError::Closed { .. }) => Ok(Outcome::Examined),
            DestinationError::Further { migration, stream } => {
                streams::pass_on(self.wire, &self.host.root, &migration, stream).map_err(|error| {
                    Failure::new(FailureKind::Failed, format!("nobody here receives migration {migration}"))
                        .because_of(&error)
                })?;
                Ok(Outcome::PassedOn)
            }
            DestinationError::Resumed(migration) => crate::resume::serve(self.wire, self.host, &migration),
            DestinationError::Locked(why) => {
                let failure = Failure::new(FailureKind::Locked, why);
                let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
                self.say_undone(true, &[]);
                Err(failure)
            }
            error => {
                let failure =
                    Failure::new(FailureKind::Failed, "the offer could not be accepted").because_of(&error);
                let _ = self.wire.say(&Message::Failed { failure: failure.clone() });
                self.say_undone(true, &[]);
                Err(failure)
            }
        }
    }

    /// The failure for an error of this side; none when the source wanted to stop.
    fn describe(&self, job: &Job, error: &DestinationError) -> Option<Failure> {
        let failure =
            |message: String| Failure::new(FailureKind::Failed, message).at(Disposition::RunningAtSource);
        let name = &job.name;
        Some(match error {
            DestinationError::Cancelled(_) | DestinationError::OnlyAsked => return None,
            DestinationError::Wire(WireError::Interrupted) => {
                Failure::new(FailureKind::Interrupted, format!("receiving `{name}` was interrupted"))
                    .at(Disposition::RunningAtSource)
            }
            DestinationError::Wire(WireError::Peer(reason)) => {
                failure(format!("the source gave up: {}", reason.message))
            }
            DestinationError::Wire(error) => {
                failure(format!("lost contact with the source of `{name}`")).because_of(error)
            }
            error if job.journal.state() == JournalState::Restoring => {
                failure(format!("could not restore `{name}`")).because_of(error)
            }
            error => failure(format!("could not receive `{name}`")).because_of(error),
        })
    }
}

/// Opens an image directory when the first operation on it comes.
fn open_images(job: &mut Job, tree: TreeId, number: u16) -> Result<(), DestinationError> {
    if !job.trees.knows(tree) {
        let dir = job.images.dir_of(number);
        job.trees.open_private(tree, &dir)?;
    }
    Ok(())
}

fn make_private(dir: &Path) -> Result<(), DestinationError> {
    private_dir(dir).map_err(|source| DestinationError::Io { act: "make", path: dir.to_owned(), source })
}

/// Makes a directory for root alone.
pub(crate) fn private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Images are secrets, and large: they go as soon as they are not needed. Journal and logs stay.
pub(crate) fn remove_images(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir.join("images")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn in_doubt(job: &Job, error: &DestinationError, message: &str) -> Failure {
    Failure::new(FailureKind::InDoubt, format!("`{}`: {message}", job.name))
        .because_of(error)
        .hint("look on the source: if it runs there, remove the frozen copy here; if it is frozen there, too, decide where it shall run")
}
