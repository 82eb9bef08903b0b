//! The memory of a process tree, round by round.

use super::descriptors::Descriptors;
use super::maps::{Kind, Maps, Span};
use super::read::Reader;
use super::rules::Rules;
use super::scan::Scanner;
use super::shared::Objects;
use super::space::{Space, Status, Tracking, is_gone};
use super::stats::{RoundStats, Unreadable, Untracked};
use super::{MemoryError, Method, PageSink, SinkError, inject};
use crate::page::{ImageId, PAGE_SIZE, PageRun, SharedObject};
use crate::sys::task;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Follows the memory of a process tree.
#[derive(Debug)]
pub struct TreeMemory {
    method: Method,
    rules: Rules,
    /// By host pid of the first task that has it.
    spaces: BTreeMap<i32, Space>,
    /// Spaces that left the tree under the freeze, where nothing must be unregistered.
    left: Vec<Space>,
    objects: Objects,
    scanner: Scanner,
    reader: Reader,
    maps: Maps,
    again: Maps,
    /// Host pids, and descriptors there, that are ours.
    leaked: Vec<(i32, i32)>,
    /// The objects have been compared, and the descriptors looked through, since the tree was frozen.
    compared: bool,
}

/// The registrations of address spaces, without anything else of theirs. Dropped, the kernel takes them back: while a task still has
/// the memory, it goes through all of its page tables for that, tens of milliseconds for each GiB.
#[derive(Debug, Default)]
pub struct Registrations {
    _uffds: Vec<OwnedFd>,
}

impl TreeMemory {
    /// Lets go of all but the registrations: they are to be dropped when the tasks have ended.
    pub fn into_registrations(self) -> Registrations {
        let spaces = self.spaces.into_values().chain(self.left);
        let uffds = spaces.filter_map(|space| match space.tracking {
            Tracking::Uffd(uffd) => Some(OwnedFd::from(uffd)),
            Tracking::SoftDirty(_) | Tracking::Nothing(_) => None,
        });
        Registrations { _uffds: uffds.collect() }
    }

    /// Nothing is touched yet.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Method`]: the kernel does not have the method.
    pub fn new(method: Method) -> Result<Self, MemoryError> {
        Self::with_rules(method, Rules::default())
    }

    /// For tests: with parts of the engine turned off.
    ///
    /// # Errors
    ///
    /// As [`TreeMemory::new`].
    #[doc(hidden)]
    pub fn with_rules(method: Method, rules: Rules) -> Result<Self, MemoryError> {
        method.probe().map_err(MemoryError::Method)?;
        task::allow_many_descriptors();
        let mut reader = Reader::new();
        reader.unshare = !rules.keep_shared;
        Ok(Self {
            method,
            rules,
            spaces: BTreeMap::new(),
            left: Vec::new(),
            objects: Objects::new(),
            scanner: Scanner::new(),
            reader,
            maps: Maps::default(),
            again: Maps::default(),
            leaked: Vec::new(),
            compared: false,
        })
    }

    /// One round while the tree runs: hands over every page of the tasks (host pids) that was written since the last round,
    /// private or shared; in the first round, and of tasks that are new, all. Tasks that are gone are forgotten.
    ///
    /// # Errors
    ///
    /// [`MemoryError`]; the next round hands over what this one did not only after [`TreeMemory::release`] and a new start.
    pub fn round(
        &mut self,
        pids: &BTreeSet<i32>,
        sink: &mut dyn PageSink,
    ) -> Result<RoundStats, MemoryError> {
        self.compared = false;
        self.left.clear();
        self.pass(pids, sink, false)
    }

    /// The same under the freeze, any number of times: also hands over what a device may have written, what of the shared
    /// objects was written unseen, and all of tasks and mappings that are new. Changes nothing in the tasks.
    ///
    /// # Errors
    ///
    /// As [`TreeMemory::round`].
    pub fn frozen(
        &mut self,
        pids: &BTreeSet<i32>,
        sink: &mut dyn PageSink,
    ) -> Result<RoundStats, MemoryError> {
        self.pass(pids, sink, true)
    }

    /// Under the freeze, after [`TreeMemory::frozen`]: which private pages exist, by task, as sorted, disjoint runs. Pages
    /// that were handed over and are not among them are gone. The rules are CRIU's: present or swapped out, not the page of
    /// zeroes, of private mappings of files only what was written, no guard pages.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Task`] and [`MemoryError::Scan`].
    pub fn existing(&mut self, pids: &BTreeSet<i32>) -> Result<Vec<(ImageId, Vec<PageRun>)>, MemoryError> {
        let Self { spaces, scanner, maps, .. } = self;
        let mut images = Vec::with_capacity(pids.len());
        let mut spans = Vec::new();
        for space in spaces.values() {
            if !space.members.iter().any(|(pid, _)| pids.contains(pid)) {
                continue;
            }
            maps.read(space.pid).map_err(|source| MemoryError::Task {
                pid: space.pid,
                what: "read the mappings of",
                source,
            })?;
            spans.clear();
            for mapping in &maps.list {
                if matches!(mapping.kind, Kind::Anonymous | Kind::PrivateFile) {
                    scanner
                        .existing(&space.pagemap, mapping, &mut spans)
                        .map_err(|errno| MemoryError::Scan { pid: space.pid, errno })?;
                }
            }
            let runs: Vec<_> =
                spans.iter().map(|span| PageRun { start: span.start, pages: span.pages() }).collect();
            images.extend(space.images().map(|image| (image, runs.clone())));
        }
        images.sort_unstable_by_key(|(image, _)| *image);
        Ok(images)
    }

    /// Under the freeze: hands over these pages of a task, whether they were written or not.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Sink`]; pages that cannot be read are left out.
    pub fn read(
        &mut self,
        image: ImageId,
        runs: &[PageRun],
        sink: &mut dyn PageSink,
    ) -> Result<(), MemoryError> {
        let Self { spaces, scanner, reader, .. } = self;
        let Some(space) = spaces.values().find(|space| space.images().any(|its| its == image)) else {
            return Ok(());
        };
        let spans: Vec<Span> = runs.iter().map(|run| Span { start: run.start, end: run.end() }).collect();
        let mut deliver = |address: u64, bytes: &[u8]| sink.pages(image, address, bytes);
        reader
            .read(space.origin(false), &spans, scanner, &mut Vec::new(), &mut deliver)
            .map(drop)
            .map_err(MemoryError::Sink)
    }

    /// The tree's shared objects as of the last round.
    pub fn shared_objects(&self) -> &[SharedObject] {
        self.objects.list()
    }

    /// Lets go of the tasks: everything is unregistered, at 20 ms per GiB. After the decision, never under the freeze.
    pub fn release(self) {}

    fn pass(
        &mut self,
        pids: &BTreeSet<i32>,
        sink: &mut dyn PageSink,
        frozen: bool,
    ) -> Result<RoundStats, MemoryError> {
        let start = Instant::now();
        let mut stats = RoundStats::default();
        self.find_spaces(pids, frozen, &mut stats)?;
        stats.seconds.attach = start.elapsed().as_secs_f64();
        self.objects.begin();
        let mut relatives: BTreeMap<(u64, u64), usize> = BTreeMap::new();
        for space in self.spaces.values() {
            *relatives.entry(space.signature).or_default() += 1;
        }
        let all: Vec<i32> = self.spaces.keys().copied().collect();
        for pid in all {
            self.pass_space(pid, &relatives, sink, frozen, &mut stats)?;
        }
        let shared = Instant::now();
        let compare = frozen && self.rules.compare_objects && !self.compared;
        let mut pages = 0;
        self.objects.finish(compare, &mut |number, offset, bytes| {
            pages += bytes.len() as u64 / PAGE_SIZE;
            sink.pages(ImageId::Shared(number), offset, bytes)
        })?;
        stats.pages += pages;
        stats.written_bytes += pages * PAGE_SIZE;
        stats.seconds.shared += shared.elapsed().as_secs_f64();
        self.compared = frozen;
        stats.regions = self.scanner.take_count();
        stats.seconds.total = start.elapsed().as_secs_f64();
        Ok(stats)
    }

    /// Brings the list of spaces in line with the tasks there are.
    fn find_spaces(
        &mut self,
        pids: &BTreeSet<i32>,
        frozen: bool,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        let mut known = BTreeSet::new();
        for mut space in std::mem::take(&mut self.spaces).into_values() {
            space.members.retain(|(pid, _)| pids.contains(pid));
            if self.rules.notice_exec {
                space.check();
            }
            match space.members.first() {
                Some(&(pid, _)) if pid == space.pid => {
                    known.extend(space.members.iter().map(|(pid, _)| *pid));
                    self.spaces.insert(pid, space);
                }
                _ => self.left.push(space),
            }
        }
        if !frozen {
            self.left.clear();
        }
        self.objects.forget_descriptors(|pid| !pids.contains(&pid));
        for &pid in pids.difference(&known) {
            self.find_space(pid, frozen, stats)?;
        }
        self.close_leaked(frozen, stats);
        if self.method == Method::Uffd && !frozen {
            for space in self.spaces.values_mut() {
                space.attach(&self.rules, stats);
            }
        }
        Ok(())
    }

    /// A task that is new, or has another address space than before.
    fn find_space(&mut self, pid: i32, frozen: bool, stats: &mut RoundStats) -> Result<(), MemoryError> {
        let Some(status) = Status::of(pid).filter(|status| !status.zombie) else { return Ok(()) };
        match self.maps.read(pid) {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(source) => return Err(MemoryError::Task { pid, what: "read the mappings of", source }),
            Ok(()) if self.maps.list.is_empty() => return Ok(()),
            Ok(()) => {}
        }
        let signature = self.maps.signature;
        let shared = self
            .spaces
            .values_mut()
            .find(|space| space.signature == signature && task::same_memory(space.pid, pid).unwrap_or(false));
        if let Some(space) = shared {
            space.members.push((pid, status.vpid));
            space.all = true;
        } else {
            let why = if frozen { Untracked::Frozen } else { Untracked::Method };
            let mut space = match Space::open(pid, status.vpid, &self.maps, why) {
                Ok(space) => space,
                Err(error) if is_gone(&error) => return Ok(()),
                Err(source) => return Err(MemoryError::Task { pid, what: "open the memory of", source }),
            };
            if self.method == Method::SoftDirty {
                space.tracking = Tracking::SoftDirty(None);
            }
            self.spaces.insert(pid, space);
        }
        self.look_at_descriptors(pid, status.vpid, stats)
    }

    /// Memfds of a task, and copies of our descriptors that it inherited.
    fn look_at_descriptors(
        &mut self,
        pid: i32,
        vpid: u32,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        let start = Instant::now();
        let found = Descriptors::of(pid, false);
        self.objects.descriptors(pid, vpid, &found.memfds)?;
        for fd in found.userfaultfds {
            if self.is_ours(pid, fd) {
                self.leaked.push((pid, fd));
            }
        }
        stats.seconds.descriptors += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Reads the mappings of the first task of a space; false if it is gone. Where they show that it executed another program
    /// while somebody else kept its old memory alive, its space is a new one.
    fn read_maps(&mut self, pid: i32, frozen: bool, stats: &mut RoundStats) -> Result<bool, MemoryError> {
        for _ in 0..2 {
            match self.maps.read(pid) {
                Err(error) if is_gone(&error) => return Ok(false),
                Err(source) => return Err(MemoryError::Task { pid, what: "read the mappings of", source }),
                Ok(()) if self.maps.list.is_empty() => return Ok(false),
                Ok(()) => {}
            }
            let Some(space) = self.spaces.get(&pid) else { return Ok(false) };
            if space.signature == self.maps.signature || !self.rules.notice_exec {
                return Ok(true);
            }
            self.left.extend(self.spaces.remove(&pid));
            if !frozen {
                self.left.clear();
            }
            self.find_space(pid, frozen, stats)?;
            if let Some(space) = self.spaces.get_mut(&pid).filter(|_| self.method == Method::Uffd && !frozen)
            {
                space.attach(&self.rules, stats);
            }
        }
        Ok(true)
    }

    /// Whether a task's descriptor is one of our userfaultfds.
    fn is_ours(&self, pid: i32, fd: i32) -> bool {
        self.spaces.values().chain(&self.left).any(|space| space.is_ours(pid, fd))
    }

    /// Closes our descriptors in tasks that inherited them.
    fn close_leaked(&mut self, frozen: bool, stats: &mut RoundStats) {
        let mut leaked = std::mem::take(&mut self.leaked);
        leaked.retain(|&(pid, fd)| {
            if !self.is_ours(pid, fd) {
                return false;
            }
            let space = self.spaces.values().find(|space| space.members.iter().any(|member| member.0 == pid));
            match space.and_then(|space| Some((space, space.vdso?))) {
                Some((space, vdso)) if !frozen && self.rules.close_leaked => {
                    inject::close(pid, vdso, &space.mem, fd).is_err()
                }
                _ => true,
            }
        });
        stats.leaked.clone_from(&leaked);
        self.leaked = leaked;
    }

    /// Hands over what one space has.
    fn pass_space(
        &mut self,
        pid: i32,
        relatives: &BTreeMap<(u64, u64), usize>,
        sink: &mut dyn PageSink,
        frozen: bool,
        stats: &mut RoundStats,
    ) -> Result<(), MemoryError> {
        let start = Instant::now();
        if !self.read_maps(pid, frozen, stats)? {
            return Ok(());
        }
        let Self { spaces, objects, scanner, reader, maps, again, rules, compared, .. } = self;
        let Some(space) = spaces.get_mut(&pid) else { return Ok(()) };
        stats.tasks += 1;
        let scanning = Instant::now();
        stats.seconds.maps += (scanning - start).as_secs_f64();
        let mut due = space.private(maps, again, scanner, rules, frozen, stats)?;
        match &space.tracking {
            Tracking::Nothing(why) => stats.untracked.push((pid, why.clone())),
            _ => stats.tracked += 1,
        }
        stats.seconds.scan += scanning.elapsed().as_secs_f64();

        let images: Vec<ImageId> = space.images().collect();
        let mut failed = Vec::new();
        let mut deliver = |address: u64, bytes: &[u8]| -> Result<(), SinkError> {
            images.iter().try_for_each(|&image| sink.pages(image, address, bytes))
        };
        let alone = relatives.get(&space.signature) == Some(&1);
        let reading = Instant::now();
        let written = &due.written;
        let copies = images.len() as u64;
        let pages = reader
            .read(space.origin(alone), written, scanner, &mut failed, &mut deliver)
            .map_err(MemoryError::Sink)?;
        stats.pages += pages * copies;
        stats.written_bytes += written.iter().map(Span::bytes).sum::<u64>();
        stats.seconds.read += reading.elapsed().as_secs_f64();

        // Whether a device may have written is asked after the pages were read: a file that was opened later does not
        // matter.
        let looking = Instant::now();
        if !space.direct && (frozen && !*compared || !written.is_empty()) || maps.aio {
            for &(pid, vpid) in &space.members {
                let found = Descriptors::of(pid, !space.direct && rules.reread_direct);
                space.direct |= found.direct || maps.aio;
                objects.descriptors(pid, vpid, &found.memfds)?;
            }
        }
        stats.seconds.descriptors += looking.elapsed().as_secs_f64();

        let reading = Instant::now();
        let direct = space.direct_again(&due.written, rules, frozen);
        if !direct.is_empty() {
            // Some of it may be unmapped by now.
            let elsewhere = Span::without(&direct, &maps.private());
            due.again.extend(Span::without(&direct, &elsewhere));
            Span::unite(&mut due.again);
        }
        let reread = reader
            .read(space.origin(alone), &due.again, scanner, &mut failed, &mut deliver)
            .map_err(MemoryError::Sink)?;
        stats.pages += reread * copies;
        stats.reread += reread * copies;
        stats.seconds.read += reading.elapsed().as_secs_f64();
        for span in failed {
            // Under the freeze, a page that is there and cannot be read will be missing.
            match frozen && scanner.exists(&space.pagemap, span, maps.kind_at(span.start)) {
                false => stats.vanished += span.pages(),
                true => stats.unreadable.push(Unreadable {
                    pid,
                    start: span.start,
                    pages: span.pages(),
                    mapping: maps.describe(span.start),
                }),
            }
        }

        let sharing = Instant::now();
        // Under the freeze, all of them are compared.
        let objects_here = match frozen && rules.compare_objects {
            true => maps.objects().map(|index| (index, Some(Vec::new()))).collect(),
            false => space.shared(maps, again, scanner),
        };
        for (index, written) in objects_here {
            let vpids = space.members.iter().map(|&(_, vpid)| vpid);
            objects.mapping(pid, vpids, maps, &maps.list[index], written.as_deref())?;
        }
        stats.seconds.shared += sharing.elapsed().as_secs_f64();
        Ok(())
    }
}
