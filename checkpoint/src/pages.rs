//! Memory read from outside, page by page: rounds while the container runs, and what is left under the freeze. CRIU dumps
//! everything but pages.

use crate::dumper::{PagelessDumped, PagelessDumper};
use godwit_criu::pageless::{PagemapName, take_pages};
use godwit_criu::{CriuError, DumpOptions};
use godwit_memory::ledger::{LedgerError, LedgerStatistics, PageLedger};
use godwit_memory::source::{
    MemoryError, Method, PageSink, Registrations, RoundStats, SinkError, TreeMemory, Unreadable,
};
use godwit_memory::{ImageId, PAGE_SIZE, PageRun, SharedObject};
use godwit_migration::Cancel;
use godwit_migration::plan::Tracker;
use godwit_transfer::{PageStreams, Wire, WireError};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// Why memory could not be read or sent.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// The tasks could not be looked into.
    #[error("the container's memory cannot be read")]
    Memory(#[from] MemoryError),
    /// CRIU said no.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The wire broke.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The destination has no room for more.
    #[error("the memory of the container cannot be sent")]
    Room(#[source] LedgerError<WireError>),
    /// Pages would be missing over there.
    #[error("{} pages of the mapping `{}` of task {} cannot be read", .0.pages, .0.mapping, .0.pid)]
    Unreadable(Unreadable),
    /// An object would be empty over there.
    #[error("criu left out the shared memory with inode number {0}, which was not read")]
    LeftOut(u64),
    /// CRIU's images do not hold together.
    #[error("the images do not hold together")]
    Images(#[from] godwit_criu::images::ImageError),
}

impl From<LedgerError<WireError>> for PagesError {
    fn from(error: LedgerError<WireError>) -> Self {
        match error {
            LedgerError::Send(error) => Self::Wire(error),
            error => Self::Room(error),
        }
    }
}

/// Finds and reads the pages of a tree; [`TreeMemory`] outside of tests.
pub trait PageReader: Send {
    /// See [`TreeMemory::round`].
    ///
    /// # Errors
    /// When the tasks cannot be read, or the sink wants no more.
    fn round(&mut self, pids: &BTreeSet<i32>, sink: &mut dyn PageSink) -> Result<RoundStats, MemoryError>;

    /// See [`TreeMemory::frozen`].
    ///
    /// # Errors
    /// As [`PageReader::round`].
    fn frozen(&mut self, pids: &BTreeSet<i32>, sink: &mut dyn PageSink) -> Result<RoundStats, MemoryError>;

    /// See [`TreeMemory::existing`]; between rounds, too.
    ///
    /// # Errors
    /// As [`PageReader::round`].
    fn existing(&mut self, pids: &BTreeSet<i32>) -> Result<Vec<(ImageId, Vec<PageRun>)>, MemoryError>;

    /// See [`TreeMemory::read`].
    ///
    /// # Errors
    /// As [`PageReader::round`].
    fn read(&mut self, image: ImageId, runs: &[PageRun], sink: &mut dyn PageSink) -> Result<(), MemoryError>;

    /// See [`TreeMemory::shared_objects`].
    fn shared_objects(&self) -> Vec<SharedObject>;

    /// See [`TreeMemory::into_registrations`].
    fn into_registrations(self: Box<Self>) -> Registrations {
        Registrations::default()
    }
}

impl PageReader for TreeMemory {
    fn round(&mut self, pids: &BTreeSet<i32>, sink: &mut dyn PageSink) -> Result<RoundStats, MemoryError> {
        TreeMemory::round(self, pids, sink)
    }

    fn frozen(&mut self, pids: &BTreeSet<i32>, sink: &mut dyn PageSink) -> Result<RoundStats, MemoryError> {
        TreeMemory::frozen(self, pids, sink)
    }

    fn existing(&mut self, pids: &BTreeSet<i32>) -> Result<Vec<(ImageId, Vec<PageRun>)>, MemoryError> {
        TreeMemory::existing(self, pids)
    }

    fn read(&mut self, image: ImageId, runs: &[PageRun], sink: &mut dyn PageSink) -> Result<(), MemoryError> {
        TreeMemory::read(self, image, runs, sink)
    }

    fn shared_objects(&self) -> Vec<SharedObject> {
        TreeMemory::shared_objects(self).to_vec()
    }

    fn into_registrations(self: Box<Self>) -> Registrations {
        TreeMemory::into_registrations(*self)
    }
}

/// The kernel's way to find written pages that a tracker stands for.
pub fn method_of(tracker: Tracker) -> Method {
    match tracker {
        Tracker::Uffd => Method::Uffd,
        Tracker::SoftDirty => Method::SoftDirty,
        _ => Method::Hash,
    }
}

/// Where batches of pages go.
pub enum Outlet<'a> {
    /// Over connections of their own.
    Streams(&'a PageStreams),
    /// Over the only connection.
    Wire(&'a mut Wire),
}

impl Outlet<'_> {
    fn send(&mut self, stream: usize, batch: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Outlet::Streams(streams) => streams.send(stream, std::mem::take(batch)),
            Outlet::Wire(wire) => wire.send_pages(batch),
        }
    }
}

/// A tree's memory on its way.
pub struct PageMemory {
    reader: Box<dyn PageReader>,
    ledger: PageLedger,
    seed: u64,
    ladder: Box<dyn PagelessDumper>,
    longest_stop: Duration,
    cancel: Cancel,
}

/// What a pass over memory brought.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Bytes of pages that had changed.
    pub changed_bytes: u64,
    /// Tasks seen.
    pub tasks: usize,
    /// Pages that nobody can read; only under the freeze, where none can go meanwhile.
    pub unreadable: Option<Unreadable>,
}

/// What was found at the first look under the freeze.
pub struct Looked {
    pass: Pass,
    existing: Vec<(ImageId, Vec<PageRun>)>,
}

impl PageMemory {
    /// Prepares to read: nothing is touched before the first round. `room_pages` is what the destination has kept.
    pub fn new(
        reader: Box<dyn PageReader>,
        ladder: Box<dyn PagelessDumper>,
        room_pages: u64,
        streams: usize,
        cancel: Cancel,
    ) -> Self {
        let seed = seed();
        let ledger = PageLedger::new(streams.max(1), room_pages, seed);
        Self { reader, ledger, seed, ladder, longest_stop: Duration::ZERO, cancel }
    }

    /// What digests of pages are made with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What the destination has from an earlier attempt, by slot and by digest. To be told before the first round.
    pub fn keep(&mut self, kept: Vec<(u32, u128)>) {
        self.ledger.keep(kept);
    }

    /// What was sent and what was spared so far.
    pub fn statistics(&self) -> LedgerStatistics {
        self.ledger.statistics()
    }

    /// Lets go of the tasks' memory; see [`TreeMemory::into_registrations`].
    pub fn into_registrations(self) -> Registrations {
        self.reader.into_registrations()
    }

    /// The longest stop of a thread for the tracker.
    pub fn longest_stop(&self) -> Duration {
        self.longest_stop
    }

    /// How long a process of CRIU takes to start here.
    pub fn criu_start(&self) -> Duration {
        self.ladder.start_time()
    }

    /// Bytes of shared objects, which are filled while the tree is held.
    pub fn shared_bytes(&self) -> u64 {
        self.reader.shared_objects().iter().map(|object| object.bytes).sum()
    }

    /// Pages that several tasks share copy-on-write.
    pub fn cow_pages(&self) -> u64 {
        self.ledger.shared_between_tasks()
    }

    /// One round; the container runs.
    ///
    /// # Errors
    /// When memory cannot be read or sent.
    pub fn round(
        &mut self,
        pids: &BTreeSet<i32>,
        outlet: Outlet<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Pass, PagesError> {
        let mut outlet = outlet;
        let (_, mut memory) = self.split();
        let pass = memory.pass(reborrow(&mut outlet), progress, |reader, sink| reader.round(pids, sink))?;
        if memory.ledger.is_half_full() {
            memory.forget_what_went(pids, reborrow(&mut outlet))?;
        }
        self.ledger.end_round(&mut |stream, batch| outlet.send(stream, batch))?;
        Ok(pass)
    }

    /// Right before the freeze, for a dump with such options.
    ///
    /// # Errors
    /// When CRIU cannot be started.
    pub fn about_to_freeze(&mut self, pids: &BTreeSet<i32>, options: &DumpOptions) -> Result<(), PagesError> {
        Ok(self.ladder.warm_up(pids, options)?)
    }

    /// The dumper, and everything else, so that both can work at the same time.
    pub fn split(&mut self) -> (&mut dyn PagelessDumper, Remainder<'_>) {
        let Self { reader, ledger, ladder, cancel, longest_stop, .. } = self;
        (ladder.as_mut(), Remainder { reader: reader.as_mut(), ledger, cancel, longest_stop })
    }
}

/// Reader and ledger, without the dumper.
pub struct Remainder<'a> {
    reader: &'a mut dyn PageReader,
    ledger: &'a mut PageLedger,
    cancel: &'a Cancel,
    longest_stop: &'a mut Duration,
}

impl Remainder<'_> {
    /// What was written since the last round, and which pages exist; the tasks are frozen, CRIU may be at work in them.
    ///
    /// # Errors
    /// When memory cannot be read or sent.
    pub fn look(&mut self, pids: &BTreeSet<i32>, mut outlet: Outlet<'_>) -> Result<Looked, PagesError> {
        let pass = self.pass(reborrow(&mut outlet), &mut |_| {}, |reader, sink| reader.frozen(pids, sink))?;
        self.flush(outlet)?;
        Ok(Looked { pass, existing: self.reader.existing(pids)? })
    }

    /// After CRIU's dump into `images`: the pages it wrote itself, and what it changed by working in the tasks. Nothing of
    /// the memory is missing over there afterwards.
    ///
    /// # Errors
    /// When memory cannot be read or sent.
    pub fn finish(
        &mut self,
        pids: &BTreeSet<i32>,
        looked: Looked,
        images: &Path,
        mut outlet: Outlet<'_>,
    ) -> Result<Pass, PagesError> {
        let before = changed_bytes(&self.ledger.statistics());
        // beyond what existed then: pages that CRIU has touched or written itself
        let mut more: Vec<(ImageId, PageRun)> = Vec::new();
        let mut note = |image, address, bytes: &[u8]| {
            more.push((image, PageRun { start: address, pages: bytes.len() as u64 / PAGE_SIZE }));
        };
        let mut pass = self.pass(reborrow(&mut outlet), &mut |_| {}, |reader, sink| {
            reader.frozen(pids, &mut Noting { sink, note: &mut note })
        })?;
        if let Some(unreadable) = pass.unreadable {
            return Err(PagesError::Unreadable(unreadable));
        }
        {
            let mut sink = Sink {
                ledger: self.ledger,
                outlet: reborrow(&mut outlet),
                progress: &mut |_| {},
                cancel: self.cancel,
                why: None,
            };
            take_pages::<PagesError>(images, &mut |name, address, bytes| {
                let PagemapName::Task(vpid) = name else { return Ok(()) };
                let image = ImageId::Task(vpid);
                note(image, address, bytes);
                sink.pages(image, address, bytes).map_err(|error| {
                    sink.why.take().unwrap_or_else(|| WireError::Malformed(error.to_string()).into())
                })
            })?;
        }
        let mut seen = BTreeSet::new();
        for (image, mut runs) in looked.existing {
            seen.insert(image);
            runs.extend(more.iter().filter(|(of, _)| *of == image).map(|(_, run)| *run));
            let missing = self.reconcile(image, union(runs), reborrow(&mut outlet))?;
            if !missing.is_empty() {
                tracing::debug!(?image, runs = missing.len(), "pages that no round had seen");
                self.pass(reborrow(&mut outlet), &mut |_| {}, |reader, sink| {
                    reader.read(image, &missing, sink).map(|()| RoundStats::default())
                })?;
            }
        }
        self.forget_the_gone(&seen, reborrow(&mut outlet))?;
        self.flush(outlet)?;
        pass.changed_bytes = changed_bytes(&self.ledger.statistics()) - before + looked.pass.changed_bytes;
        Ok(pass)
    }

    /// What the tasks have given back since it was read needs no room over there: a program that maps anew all the time would
    /// fill it. While they run that is out of date at once, which harms nothing: what is missing is found under the freeze.
    fn forget_what_went(&mut self, pids: &BTreeSet<i32>, mut outlet: Outlet<'_>) -> Result<(), PagesError> {
        let existing = match self.reader.existing(pids) {
            Ok(existing) => existing,
            Err(error) => {
                // a task that ended meanwhile: the next round will do
                tracing::debug!(%error, "what still exists is not known");
                return Ok(());
            }
        };
        // not those of other tasks: they may only have come since these were listed
        for (image, runs) in existing {
            self.reconcile(image, runs, reborrow(&mut outlet))?;
        }
        Ok(())
    }

    /// Tasks and objects that were there in some round and are no more.
    fn forget_the_gone(
        &mut self,
        seen: &BTreeSet<ImageId>,
        mut outlet: Outlet<'_>,
    ) -> Result<(), PagesError> {
        let objects: BTreeSet<ImageId> =
            self.reader.shared_objects().iter().map(|object| ImageId::Shared(object.number)).collect();
        let gone: Vec<ImageId> =
            self.ledger.images().filter(|image| !seen.contains(image) && !objects.contains(image)).collect();
        for image in gone {
            self.ledger.forget_image(image, &mut |stream, batch| outlet.send(stream, batch))?;
        }
        Ok(())
    }

    /// The objects that the tasks share and that CRIU has left out, by their inode numbers.
    ///
    /// # Errors
    /// When one of them was never read: CRIU would restore it empty, and say nothing.
    pub fn shared_objects(&self, omitted: &BTreeSet<u64>) -> Result<Vec<SharedObject>, PagesError> {
        let mut objects = self.reader.shared_objects();
        objects.retain(|object| omitted.contains(&object.inode));
        match omitted.iter().find(|inode| !objects.iter().any(|object| object.inode == **inode)) {
            Some(inode) => Err(PagesError::LeftOut(*inode)),
            None => Ok(objects),
        }
    }

    fn reconcile(
        &mut self,
        image: ImageId,
        existing: Vec<PageRun>,
        mut outlet: Outlet<'_>,
    ) -> Result<Vec<PageRun>, PagesError> {
        Ok(self.ledger.reconcile(image, &existing, &mut |stream, batch| outlet.send(stream, batch))?)
    }

    fn flush(&mut self, mut outlet: Outlet<'_>) -> Result<(), PagesError> {
        Ok(self.ledger.flush(&mut |stream, batch| outlet.send(stream, batch))?)
    }

    fn pass(
        &mut self,
        mut outlet: Outlet<'_>,
        progress: &mut dyn FnMut(u64),
        look: impl FnOnce(&mut dyn PageReader, &mut dyn PageSink) -> Result<RoundStats, MemoryError>,
    ) -> Result<Pass, PagesError> {
        let before = self.ledger.statistics();
        let mut sink = Sink {
            ledger: self.ledger,
            outlet: reborrow(&mut outlet),
            progress,
            cancel: self.cancel,
            why: None,
        };
        let looked = look(self.reader, &mut sink);
        let why = sink.why.take();
        let stats = match (looked, why) {
            (Ok(stats), _) => stats,
            (Err(_), Some(why)) => return Err(why),
            (Err(error), None) => return Err(error.into()),
        };
        self.flush(outlet)?;
        tracing::debug!(?stats, "memory read");
        *self.longest_stop = (*self.longest_stop).max(stats.longest_stop);
        Ok(Pass {
            changed_bytes: changed_bytes(&self.ledger.statistics()) - changed_bytes(&before),
            tasks: stats.tasks,
            unreadable: stats.unreadable.into_iter().next(),
        })
    }
}

fn reborrow<'a>(outlet: &'a mut Outlet<'_>) -> Outlet<'a> {
    match outlet {
        Outlet::Streams(streams) => Outlet::Streams(streams),
        Outlet::Wire(wire) => Outlet::Wire(wire),
    }
}

/// Bytes of pages that were new or different, sent or not.
fn changed_bytes(totals: &LedgerStatistics) -> u64 {
    (totals.data + totals.zero + totals.referenced) * PAGE_SIZE
}

/// Sorted, without overlap.
fn union(mut runs: Vec<PageRun>) -> Vec<PageRun> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut united: Vec<PageRun> = Vec::with_capacity(runs.len());
    for run in runs {
        match united.last_mut() {
            Some(last) if run.start <= last.end() => {
                last.pages = (run.end().max(last.end()) - last.start) / PAGE_SIZE;
            }
            _ => united.push(run),
        }
    }
    united
}

/// Notes which pages pass.
struct Noting<'a> {
    sink: &'a mut dyn PageSink,
    note: &'a mut dyn FnMut(ImageId, u64, &[u8]),
}

impl PageSink for Noting<'_> {
    fn pages(&mut self, image: ImageId, address: u64, bytes: &[u8]) -> Result<(), SinkError> {
        (self.note)(image, address, bytes);
        self.sink.pages(image, address, bytes)
    }
}

/// Takes pages from the reader to the ledger, and batches from there to the wire.
struct Sink<'a> {
    ledger: &'a mut PageLedger,
    outlet: Outlet<'a>,
    progress: &'a mut dyn FnMut(u64),
    cancel: &'a Cancel,
    /// What the reader does not understand, kept for who called it.
    why: Option<PagesError>,
}

impl PageSink for Sink<'_> {
    fn pages(&mut self, image: ImageId, address: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if self.cancel.is_raised() {
            return Err(self.stop(WireError::Interrupted.into()));
        }
        (self.progress)(bytes.len() as u64);
        let Self { ledger, outlet, .. } = self;
        let added = ledger.add(image, address, bytes, &mut |stream, batch| outlet.send(stream, batch));
        added.map_err(|error| self.stop(error.into()))
    }
}

impl Sink<'_> {
    fn stop(&mut self, why: PagesError) -> SinkError {
        let text = why.to_string();
        self.why = Some(why);
        SinkError(text.into())
    }
}

/// Of each migration its own, so that nobody can prepare pages that look alike.
fn seed() -> u64 {
    use std::io::Read;
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32;
    }
    u64::from_ne_bytes(bytes)
}

/// Tells the caller of [`PagelessDumper::dump`] what to say of it.
pub fn describe(dumped: &PagelessDumped) -> String {
    match dumped.fell.last() {
        None => format!("dump without pages: {}", dumped.rung),
        Some((rung, why)) => format!("dump without pages: {} ({rung} did not work: {why})", dumped.rung),
    }
}
