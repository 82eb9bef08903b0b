//! The destination's half of a migration.
//!
//! [`receive`] guarantees: **nothing of the container runs here before the source has given its word (`Go`); when the
//! migration ends without it, everything that was made here is removed; a tree that is held when the link is lost stays
//! held, frozen, until somebody who knows decides.** The other half is `source.rs` of the checkpoint crate: the two lists
//! of phases mirror each other.

use crate::cooperation::Contents;
use crate::error::DestinationError;
use crate::job::{Job, make_private, open_images, remove_images};
use crate::pages::IncomingPages;
use crate::parked::{Claim, Parking};
use crate::policy::Policy;
use crate::preflight;
use crate::recovery;
use crate::streams::{Doors, Joins};
use crate::trees::Before;
use crate::volumes;
use godwit_engine::{Engine, RestoreRequest};
use godwit_migration::journal;
use godwit_migration::observer::{Event, micros};
use godwit_migration::plan::Restoration;
use godwit_migration::report::FillReport;
use godwit_migration::{Failure, FailureKind, MigrationId, Observer, Phase, Role};
use godwit_neighbours::Catalog;
use godwit_transfer::message::PassedVolume;
use godwit_transfer::stale::StaleCopies;
use godwit_transfer::wire::{HeldFrames, unexpected};
use godwit_transfer::{
    Address, HostFacts, Incoming, Message, Peer, Refusal, TreeBase, TreeId, TreeOffer, Wire, WireError,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the source may be silent: it may write a large dump to its disk meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// How long the source may take to give its word: it has only to write it down. Then whoever resumes can have the container.
const WORD: Duration = Duration::from_secs(20);
/// How long the source may take for its farewell.
const FAREWELL: Duration = Duration::from_secs(120);

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
    /// What has come when a link is lost is kept by this, if at all.
    pub parking: Option<Arc<Parking>>,
    /// Who may have content of the container's files.
    pub neighbours: Vec<Address>,
    /// Who knows of more.
    pub catalog: Option<Arc<Catalog>>,
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

/// The destination's half, with all it holds.
pub(crate) struct Destination<'a> {
    pub(crate) host: &'a Host,
    pub(crate) wire: Wire,
    observer: &'a dyn Observer,
    pub(crate) job: Option<Job>,
    pub(crate) claim: Option<Claim>,
    pub(crate) contents: Contents,
    /// Pages of an earlier attempt that were taken up.
    pub(crate) claim_pages: u64,
    images: PathBuf,
    pid: i32,
    /// What could not be written down since it runs here.
    leftovers: Vec<String>,
}

/// Takes one container from whoever is at the other end of `wire`. See the module for what is guaranteed.
///
/// # Errors
/// The failure says what happened and where the container is.
pub fn receive(wire: Wire, host: &Host, observer: &dyn Observer) -> Result<Outcome, Failure> {
    let mut destination = Destination {
        host,
        wire,
        observer,
        job: None,
        claim: None,
        contents: Contents::new(),
        claim_pages: 0,
        images: PathBuf::new(),
        pid: 0,
        leftovers: Vec::new(),
    };
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
    pub(crate) fn hear(&mut self) -> Result<Incoming, DestinationError> {
        match self.wire.hear()? {
            Incoming::Message(Message::Cancel { reason, again }) => {
                Err(DestinationError::Cancelled { reason, again })
            }
            other => Ok(other),
        }
    }

    pub(crate) fn job(&mut self) -> Result<&mut Job, DestinationError> {
        self.job.as_mut().ok_or_else(|| WireError::Malformed("a message before the offer".into()).into())
    }

    /// Makes everything that can exist early: directories, bundle, network, room for memory.
    fn prepare(&mut self) -> Result<(), DestinationError> {
        let mut said = self.hear();
        if let Ok(Incoming::Message(Message::BringImage { bytes })) = said {
            self.take_image(bytes)?;
            said = self.hear();
        }
        match said {
            Ok(Incoming::Message(Message::Prepare)) => {}
            Ok(other) => return Err(unexpected(&other, "prepare").into()),
            // `godwit check` hangs up here
            Err(DestinationError::Wire(WireError::Closed { .. })) => return Err(DestinationError::OnlyAsked),
            Err(error) => return Err(error),
        }
        let host = self.host;
        let version = self.wire.version();
        let mut claim = self.claim.take();
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
            let kept = claim.as_mut().and_then(Claim::take_pages);
            job.pages = Some(IncomingPages::prepare(&doors, &job.dir.join("work"), room, lazy, kept)?);
        }
        let comes_back =
            |tree: &TreeOffer| claim.as_ref().is_some_and(|claim| claim.tree(&tree.path).is_some());
        let before = |(tree, base): (&TreeOffer, &TreeBase)| match comes_back(tree) {
            true => Before::of(&tree.path, &TreeBase::Empty),
            false => Before::of(&tree.path, base),
        };
        let ours = |(tree, _): &(&TreeOffer, &TreeBase)| !tree.made_there;
        let trees: Vec<Before> = job.offer.trees.iter().zip(&job.bases).filter(ours).map(before).collect();
        let mut remains = recovery::Remains {
            engine: job.offer.engine.clone(),
            container: None,
            trees: trees.clone(),
            witness: job.offer.witness.clone(),
            lazy: job.restoration == Restoration::LocalLazy && job.pages.is_some(),
            resume_hook: job.offer.resume_hook.clone(),
        };
        let dir = job.dir.clone();
        let mut note = |container: Option<&str>| {
            remains.container = container.map(Into::into);
            recovery::note(&dir, &remains)
        };
        note(None).map_err(|source| DestinationError::Io { act: "write into", path: dir.clone(), source })?;
        for (tree, before) in job.offer.trees.iter().filter(|tree| !tree.made_there).zip(trees) {
            if let Some(claim) = &claim {
                claim.bring_back(&tree.path).map_err(|source| DestinationError::Io {
                    act: "put what had come before into",
                    path: tree.path.clone(),
                    source,
                })?;
            }
            job.trees.open(tree, before)?;
        }
        claim.into_iter().for_each(Claim::settle);
        let engine = &host.engines[job.engine];
        let container = engine.prepare(&job.shipment, &mut |text| note(Some(text)))?;
        job.remains = Some(remains);
        let container = job.container.insert(container);
        job.trees.open_made(&job.offer.trees, container.as_ref())?;
        job.journal.append(journal::Event::Prepared)?;
        Ok(self.wire.say(&Message::Prepared)?)
    }

    /// The image that the container was made of: for the engine, which keeps it whatever becomes of the container.
    fn take_image(&mut self, bytes: u64) -> Result<(), DestinationError> {
        let job = self.job()?;
        let dir = job.dir.join("images").join("container-image");
        if let Some(refusal) = preflight::no_room_for_image(&job.dir, bytes) {
            self.wire.say(&Message::Refuse { reasons: vec![refusal.clone()] })?;
            return Err(DestinationError::Refused(vec![refusal]));
        }
        job.trees.open_private(TreeId::CONTAINER_IMAGE, &dir)?;
        loop {
            match self.hear()? {
                Incoming::Operation(TreeId::CONTAINER_IMAGE, op) => {
                    self.job()?.trees.apply(TreeId::CONTAINER_IMAGE, op)?;
                }
                Incoming::Message(Message::Contents { tree: TreeId::CONTAINER_IMAGE, bytes }) => {
                    self.take_contents(TreeId::CONTAINER_IMAGE, bytes)?;
                }
                // there is no room for memory yet: of that nothing is looked for
                Incoming::Message(Message::Gather { source_bytes_per_s }) => {
                    self.gather(source_bytes_per_s)?;
                }
                Incoming::Message(Message::Alive { .. }) => {}
                Incoming::Message(Message::ImageBrought) => break,
                other => return Err(unexpected(&other, "the container's image").into()),
            }
        }
        let host = self.host;
        let job = self.job()?;
        job.trees.forget(TreeId::CONTAINER_IMAGE);
        host.engines[job.engine].take_image(&job.shipment, &dir)?;
        std::fs::remove_dir_all(&dir).map_err(|source| DestinationError::Io {
            act: "remove",
            path: dir,
            source,
        })?;
        Ok(self.wire.say(&Message::ImageTaken)?)
    }

    /// Rounds while it runs over there, and the last one under the freeze.
    fn take_rounds(&mut self) -> Result<(), DestinationError> {
        loop {
            let (round, last) = match self.hear()? {
                Incoming::Message(Message::RoundBegin { round, last }) => (round, last),
                Incoming::Message(Message::WhatIsKept { seed }) => {
                    let digests = self.pages()?.digests(seed);
                    self.wire.send_digests(&digests)?;
                    continue;
                }
                Incoming::Message(Message::Contents { tree, bytes }) => {
                    self.take_contents(tree, bytes)?;
                    continue;
                }
                Incoming::Message(Message::Gather { source_bytes_per_s }) => {
                    self.gather(source_bytes_per_s)?;
                    continue;
                }
                // it reads what it has to tell of
                Incoming::Message(Message::Alive { .. }) => continue,
                Incoming::Message(Message::GetReady) => {
                    self.get_ready()?;
                    continue;
                }
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

    /// The engine starts, as far as it comes without the memory.
    fn get_ready(&mut self) -> Result<(), DestinationError> {
        let job = self.job()?;
        if let (Some(container), Some(remains)) = (&mut job.container, &mut job.remains) {
            let dir = &job.dir;
            job.trees.close_made(&job.offer.trees);
            container.get_ready(&mut |text| {
                remains.container = Some(text.into());
                recovery::note(dir, remains)
            })?;
            job.trees.open_made(&job.offer.trees, container.as_ref())?;
        }
        Ok(self.wire.say(&Message::GotReady)?)
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
        if job.shipment.restart || job.container.as_ref().is_some_and(|container| container.starts_late()) {
            // an engine mounts it itself, to start it
            job.trees.close_made(&job.offer.trees);
        }
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
        let passed = loop {
            match self.hear()? {
                Incoming::Frames(held) => {
                    let all = held.iter().flat_map(|held| &held.frames);
                    room = room.checked_sub(all.map(|frame| frame.len() + 64).sum()).ok_or_else(|| {
                        WireError::Malformed("more held frames than any network lock keeps".into())
                    })?;
                    frames.extend(held);
                }
                Incoming::Message(Message::Go { volumes }) => break volumes,
                other => return Err(unexpected(&other, "go").into()),
            }
        };
        let pid = self.pid;
        let job = self.job()?;
        recovery::claim(job.offer.witness.as_deref(), &job.offer.migration)?;
        job.journal.append(journal::Event::Going)?;
        let container =
            job.container.as_mut().ok_or_else(|| WireError::Malformed("go before prepare".into()))?;
        if let Some(pages) = &job.pages {
            pages.release();
        }
        container.go(&frames)?;
        // what was started has got its number only now
        let pid = container.pid().unwrap_or(pid);
        // the source counts its downtime until it hears this: the journal can wait
        let said = self.wire.say(&Message::Running { pid });
        if let Some(pages) = &mut self.job()?.pages {
            pages.gone();
        }
        self.job()?.journal.append(journal::Event::Running { pid })?;
        self.pid = pid;
        if let Err(error) = said {
            tracing::warn!(%error, "the source could not be told that the container runs here");
        }
        self.leftovers = self.take_volumes(passed);
        Ok(())
    }

    /// Its volumes are this node's.
    fn take_volumes(&mut self, passed: Vec<PassedVolume>) -> Vec<String> {
        let Some(job) = &self.job else { return vec![] };
        let places: Vec<&Path> = job.offer.trees.iter().map(|tree| &*tree.path).collect();
        volumes::take(&self.host.root, &places, passed, &job.offer.migration)
    }

    /// It runs here: what was only for the move goes.
    fn complete(mut self) -> Outcome {
        let mut leftovers = std::mem::take(&mut self.leftovers);
        let pid = self.pid;
        let Some(mut job) = self.job.take() else {
            return Outcome::Examined;
        };
        // neighbours first: they may have missed the announcement at go
        leftovers.extend(job.container.as_mut().map(|container| container.settle()).unwrap_or_default());
        leftovers.extend(tell_application(&mut job, pid));
        recovery::note_running(job.offer.witness.as_deref(), &job.offer.migration);
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
        for tree in job.offer.trees.iter().filter(|tree| !tree.made_there) {
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
}

/// The application learns that it goes on. Gives what went wrong.
fn tell_application(job: &mut Job, pid: i32) -> Option<String> {
    let url = job.offer.resume_hook.clone()?;
    recovery::tell_application(&url, (&job.offer.migration, &job.name, pid), &mut job.journal)
}
