//! The source's half of a migration.
//!
//! [`migrate`] guarantees: **on success the container runs at the destination and nothing of it is left here; on failure
//! before the commit it runs here, as if nothing had been tried; after the commit this side never lets it run again.**
//! The other half is `destination.rs` of the restore crate: the two lists of phases mirror each other.

use crate::connections;
use crate::discard::discard;
use crate::dumper::{Circumstances, Dumper};
pub(crate) use crate::error::{SourceError, thread_died};
use crate::files::{Files, size_of};
use crate::group::{Member, Point};
use crate::order::{Dial, Job, Order, Parties, Plan};
use crate::pace::Pace;
use crate::pages::{Outlet, PageMemory, PageReader};
use crate::throttle::Throttle;
use crate::tracker::{MemoryTracker, tracker_for};
use crate::volumes;
use godwit_engine::{EngineError, SourceContainer};
use godwit_hooks::{About, Calls};
use godwit_migration::downtime::{Downtime, Stopwatch};
use godwit_migration::hooks::Moment;
use godwit_migration::journal::{self, Journal};
use godwit_migration::observer::{Event, micros};
use godwit_migration::plan::{Restoration, Tracker};
use godwit_migration::quantity::{show_bytes, show_duration};
use godwit_migration::report::{CooperationReport, FillReport, MemoryReport, RoundReport, Summary};
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, Observer, Phase, Role};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Bandwidth, Incoming, Message, PageStreams, TreeId, TreeOffer, Wire, WireError};
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

/// How long the destination may think about one thing before the freeze.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long the destination may take to fill the memory of the running container, and to tidy up.
const SETTLING_PATIENCE: Duration = Duration::from_secs(600);
/// The source's half, with all it holds.
pub(crate) struct Source<'a> {
    pub(crate) plan: Plan,
    pub(crate) job: Job,
    pub(crate) name: String,
    pub(crate) container: Box<dyn SourceContainer>,
    pub(crate) criu: &'a dyn Dumper,
    pub(crate) wire: Wire,
    pub(crate) journal: Journal,
    /// Its place among containers that move together.
    pub(crate) member: Option<Member>,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) cancel: Cancel,
    pub(crate) tracker: Box<dyn MemoryTracker>,
    /// Memory that is read from outside, instead of what `tracker` does; made in the phase prepare.
    pub(crate) pages: Option<PageMemory>,
    pub(crate) reader: Option<Box<dyn PageReader>>,
    dial: Option<&'a Dial<'a>>,
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
    /// Who wants to hear of it.
    pub(crate) calls: Calls,
    begun: Instant,
    pub(crate) offered: Vec<TreeOffer>,
    pub(crate) stopwatch: Option<Stopwatch>,
    pid_there: i32,
    /// The destination said no: it has nothing to undo, and has hung up.
    pub(crate) was_refused: bool,
    /// Pages that the destination has from an earlier attempt.
    pub(crate) kept_pages: u64,
    /// What the destination has of the container's image, if it lacks some of it.
    pub(crate) lacks_image: Option<String>,
    /// The destination can have content from elsewhere.
    pub(crate) peer_cooperates: bool,
    /// That of the container's image, too.
    pub(crate) peer_gathers_image: bool,
    /// What it had from there.
    pub(crate) cooperation: Option<CooperationReport>,
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
        let Order { plan, job, journal, member } = order;
        let facts = container.facts();
        let name = format!("{}:{}", facts.engine, facts.name);
        let about = About::migration(job.id.clone(), name.clone(), plan.destination.clone());
        Self {
            name,
            calls: Calls::new(plan.hooks.clone(), about, facts.pid),
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
            files: Files::none_yet(plan.watches_files),
            rounds: Vec::new(),
            throttle: Throttle::default(),
            pace: plan.gentle.then(|| Pace::observe(container.tasks().unwrap_or_default())),
            begun: Instant::now(),
            offered: Vec::new(),
            stopwatch: None,
            process_start: Duration::ZERO,
            pid_there: 0,
            was_refused: false,
            kept_pages: 0,
            lacks_image: None,
            peer_cooperates: false,
            peer_gathers_image: false,
            cooperation: None,
            container,
            criu,
            wire,
            journal,
            member,
            plan,
            job,
            observer,
            cancel,
        }
    }

    /// The table of contents. Up to `commit` every step can be undone; [`Source::undo`] does it.
    fn run(&mut self) -> Result<Downtime, SourceError> {
        self.phase(Phase::Negotiate, Self::negotiate)?;
        self.meet(Point::Accepted)?;
        self.in_turn(Point::Prepared, |source| source.phase(Phase::Prepare, Self::prepare))?;
        self.call_pre_copy()?;
        self.phase(Phase::PreCopy, Self::pre_copy)?;
        self.shut_down()?;
        self.call(Moment::PreFreeze)?;
        self.quiesce()?;
        self.meet(Point::Announced)?;
        self.phase(Phase::Freeze, Self::freeze)?;
        self.call_post_freeze()?;
        self.meet(Point::Frozen)?;
        self.phase(Phase::StopAndCopy, Self::stop_and_copy)?;
        self.meet(Point::Brought)?;
        self.phase(Phase::Restore, Self::restore)?;
        self.meet(Point::Restored)?;
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

    /// Room for the memory as it is now, and for what it may grow by while it is copied: a quarter, and a little; twice as much
    /// each time that it was too little.
    pub(crate) fn room_pages(&self) -> u64 {
        let growth = (self.memory_bytes / 4).saturating_add(64 << 20);
        let growth = growth.saturating_mul(1 << self.plan.outgrown.min(16));
        self.memory_bytes.saturating_add(growth) / godwit_memory::PAGE_SIZE
    }

    /// The image that the container was made of, where the destination's engine lacks it.
    fn bring_image(&mut self, lacks: &str) -> Result<(), SourceError> {
        let begun = Instant::now();
        let dir = self.job.dir.join("images").join("container-image");
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(EngineError::io("make", &dir))?;
        self.container.bring_image(lacks, &dir)?;
        let bytes = size_of(&dir);
        self.wire.say(&Message::BringImage { bytes })?;
        let there = self.cooperate_on_image(&dir, bytes)?;
        self.send_tree(&dir, TreeId::CONTAINER_IMAGE, there, bytes, Phase::Prepare)?;
        self.wire.say(&Message::ImageBrought)?;
        match self.wire.hear()? {
            Incoming::Message(Message::ImageTaken) => {}
            Incoming::Message(Message::Refuse { reasons }) => return Err(self.refused(reasons)),
            other => return Err(unexpected(&other, "the image taken").into()),
        }
        let _ = std::fs::remove_dir_all(&dir);
        self.observer.note(format!(
            "{} has the container's image now: {} within {}",
            self.plan.destination,
            show_bytes(bytes),
            show_duration(begun.elapsed())
        ));
        Ok(())
    }

    /// The destination makes everything that can exist early.
    pub(crate) fn prepare(&mut self) -> Result<(), SourceError> {
        if let Some(lacks) = self.lacks_image.take() {
            self.bring_image(&lacks)?;
        }
        self.wire.say(&Message::Prepare)?;
        self.wire.expect("prepared", |message| match message {
            Message::Prepared => Ok(()),
            other => Err(other),
        })?;
        self.cooperate()?;
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
            let mut pages = PageMemory::new(reader, ladder, room, streams, self.cancel.clone());
            if self.kept_pages > 0 {
                self.take_up(&mut pages, room)?;
            }
            self.pages = Some(pages);
        }
        self.bandwidth.set(self.plan.bandwidth);
        self.journal.append(journal::Event::Prepared)?;
        Ok(())
    }

    /// An engine that takes long is started over there while the container runs on here.
    pub(crate) fn get_ready(&mut self) -> Result<(), SourceError> {
        let begun = Instant::now();
        self.wire.say(&Message::GetReady)?;
        self.wire.expect("got ready", |message| match message {
            Message::GotReady => Ok(()),
            other => Err(other),
        })?;
        self.observer.note(format!(
            "{} has started its engine within {}",
            self.plan.destination,
            show_duration(begun.elapsed())
        ));
        Ok(())
    }

    /// What an earlier attempt has brought to the destination need not be sent again.
    fn take_up(&mut self, pages: &mut PageMemory, room: u64) -> Result<(), SourceError> {
        self.wire.say(&Message::WhatIsKept { seed: pages.seed() })?;
        let mut kept = 0;
        loop {
            match self.wire.hear()? {
                Incoming::Digests(digests) if digests.is_empty() => break,
                // a slot more often than once, or one that does not exist, is no use to anybody
                Incoming::Digests(digests) if kept <= room => {
                    kept += digests.len() as u64;
                    pages.keep(digests);
                }
                other => return Err(unexpected(&other, "digests of the pages that are kept").into()),
            }
        }
        let bytes = show_bytes(kept * godwit_memory::PAGE_SIZE);
        let is_of_checkpoint = self.cooperation.as_ref().is_some_and(|report| report.pages > 0);
        let whence = if is_of_checkpoint { "checkpoint" } else { "attempt" };
        self.observer
            .note(format!("{} has {bytes} of memory from an earlier {whence}", self.plan.destination));
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
        self.meet(Point::Verified)?;
        if self.cancel.is_raised() && self.member.is_none() {
            return Err(WireError::Interrupted.into());
        }
        self.wire.ignore_cancel();
        let volumes = volumes::passing(self.container.facts(), &self.plan.parting, &self.job);
        self.write_word()?;
        self.wire.say(&Message::Go { volumes })?;
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

    /// The word is on the disk when this returns. Where several move together it is that of the leader, which the others wait for.
    fn write_word(&mut self) -> Result<(), SourceError> {
        if let Some(member) = &self.member {
            match member.leads() {
                true => member.begin_word()?,
                false => member.await_word(&self.cancel)?,
            }
        }
        self.journal.append(journal::Event::Committed)?;
        self.member.iter().filter(|member| member.leads()).for_each(Member::give_word);
        Ok(())
    }

    /// It runs there: what is left here goes. Nothing from here on is a failure of the migration.
    fn complete(mut self, downtime: Downtime) -> Summary {
        // an engine cannot unmount what is open here
        let totals = self.pages.as_ref().map(|pages| (pages.statistics(), pages.longest_stop()));
        let registrations = self.pages.take().map(PageMemory::into_registrations);
        self.files.spared().into_iter().for_each(|spared| self.observer.note(spared));
        self.files = Files::none_yet(false);
        let parting = self.plan.parting.clone();
        let to = &self.plan.destination;
        self.member.iter().filter(|member| member.leads()).for_each(Member::wait_for_others);
        let mut leftovers =
            discard(Some(&mut *self.container), &parting, (&self.name, to), &self.job, &mut self.journal);
        self.member.iter_mut().for_each(Member::end);
        // the tasks are dead: it costs nothing now
        drop(registrations);
        if parting.keep {
            self.observer
                .note(format!("{} stays here, stopped: nothing starts it again by itself", self.name));
        }
        leftovers
            .extend([Moment::Resume, Moment::PostCommit].into_iter().filter_map(|moment| self.tell(moment)));
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
            cooperation: self.cooperation,
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

    pub(crate) fn lap(&mut self, lap: impl FnOnce(&mut Stopwatch)) {
        if let Some(stopwatch) = &mut self.stopwatch {
            lap(stopwatch);
        }
    }

    /// How long the container has been standing still, if it has.
    pub(crate) fn stopped_for(&self) -> Option<Duration> {
        self.stopwatch.as_ref().map(Stopwatch::so_far)
    }
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
