//! Picks the rung, dumps, looks at the result, and falls.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::check::{Found, find_pages};
use super::mappings::Mapping;
use super::preload::{Preload, Signs};
use super::server::{Frame, Server};
use super::shared::{SharedObject, add_mapped};
use super::smaps::Smaps;
use super::take::PagemapName;
use super::{Rung, fake_parent, kdat, tasks};
use crate::binary::{CriuBinary, Version, soft_dirty_works};
use crate::dump::{DUMP_LOG, Dump, DumpOptions, DumpReport, PageServer, make_private_dir};
use crate::error::CriuError;
use crate::session::{Bind, Notify, NotifyAnswer, Session};
use crate::sys::has_guard_pages;

/// Says of a task's page (whose image, address, content) whether it has not changed and is to be dropped, on
/// [`Rung::PageServer`].
pub type PageFilter = Box<dyn FnMut(PagemapName, u64, &[u8]) -> bool + Send>;

/// The CRIU that knows guard pages (commit of mem.c's collect_madv_guards).
const GUARDS_SINCE: Version = Version { major: 4, minor: 2, sublevel: 0 };

/// Most pages of a task that CRIU's code in it is expected to write to: the page it comes in by, stacks, rseq areas.
const OWN_TRACES: u64 = 64;

/// The ways to dump that one migration has.
pub struct Ladder {
    /// The highest rung there is, to begin with.
    top: Rung,
    /// The highest that is wanted.
    max: Rung,
    /// The rungs that there are not, and why.
    missing: Vec<(Rung, String)>,
    preload: Option<Preload>,
    frame: Frame,
    /// What CRIU has to see in place of its cache for [`Rung::FakeParent`].
    altered_cache: Option<Bind>,
    clears_soft_dirty: bool,
    omit_shared: bool,
    /// This CRIU finds and restores guard pages.
    knows_guards: bool,
    /// A task that has some.
    guarded: Option<i32>,
    smaps: BTreeMap<i32, Smaps>,
    filter: Option<PageFilter>,
    /// A CRIU that waits for the dump on this rung.
    started: Option<(Rung, Session)>,
}

/// What a dump without pages gave.
#[derive(Debug, Clone)]
pub struct PagelessReport {
    /// CRIU's report.
    pub report: DumpReport,
    /// The rung that the images come from.
    pub rung: Rung,
    /// The higher rungs that were tried or wanted, and what was wrong with each.
    pub fell: Vec<(Rung, String)>,
    /// Pages of tasks in the images: a few that are always written (vdso), and what CRIU wrote needlessly.
    pub own_pages: u64,
    /// Shared objects whose content is NOT in the images. All that are there must be filled by the caller, each whole, not just
    /// as far as it is mapped: CRIU does not notice when it is not done.
    pub omitted: BTreeSet<SharedObject>,
}

impl Ladder {
    /// Finds the highest rung, not higher than `max`, that works with this CRIU on this host. Before the freeze: it starts
    /// CRIU a few times; nothing of that stays but files in `work`, which go with the ladder.
    ///
    /// - `own_mounts`: the tree has a mount namespace of its own, not CRIU's (ours). Else there is no [`Rung::FakeParent`], for CRIU
    ///   in a private mount namespace would take the tree for a container.
    /// - `omit_shared`: shared memory is filled by the caller, and left out where that can be; see [`PagelessReport::omitted`].
    ///
    /// # Errors
    /// CRIU cannot be started, or a file not be written. That a rung does not work is no error.
    pub fn prepare(
        criu: &CriuBinary,
        work: &Path,
        own_mounts: bool,
        max: Option<Rung>,
        omit_shared: bool,
    ) -> Result<Ladder, CriuError> {
        make_private_dir(work)?;
        let max = max.unwrap_or(Rung::ShimWithSmaps);
        let version = criu.version()?;
        let mut ladder = Ladder {
            top: Rung::Plain,
            max,
            missing: Vec::new(),
            preload: None,
            frame: Frame::of(version),
            altered_cache: None,
            clears_soft_dirty: false,
            omit_shared,
            knows_guards: version >= GUARDS_SINCE,
            guarded: None,
            smaps: BTreeMap::new(),
            filter: None,
            started: None,
        };
        // The library is of use on every rung: it tells limits.
        match Preload::install(criu, work.join("shim"))? {
            Ok(preload) => ladder.preload = Some(preload),
            Err(why) => {
                ladder.missing.push((Rung::ShimWithSmaps, why.clone()));
                ladder.missing.push((Rung::Shim, why));
            }
        }
        if let Err(why) = ladder.prepare_fake_parent(criu, work, own_mounts)? {
            ladder.missing.push((Rung::FakeParent, why));
        }
        ladder.top = ladder.from(max);
        tracing::debug!(rung = %ladder.top, missing = ?ladder.missing, "dump without pages");
        Ok(ladder)
    }

    fn prepare_fake_parent(
        &mut self,
        criu: &CriuBinary,
        work: &Path,
        own_mounts: bool,
    ) -> Result<Result<(), String>, CriuError> {
        if soft_dirty_works().unwrap_or(false) {
            self.clears_soft_dirty = true;
            return Ok(Ok(()));
        }
        if !own_mounts {
            let why = "the tree has no mount namespace of its own, so criu cannot have a private one";
            return Ok(Err(why.into()));
        }
        Ok(match kdat::alter(criu, work.join("criu.kdat")) {
            Ok(Ok(bind)) => {
                self.altered_cache = Some(bind);
                Ok(())
            }
            Ok(Err(why)) => Err(why),
            Err(error) => Err(error.to_string()),
        })
    }

    /// The rung a dump begins with.
    pub fn rung(&self) -> Rung {
        self.top
    }

    /// The rungs that do not work here, and why.
    pub fn missing(&self) -> &[(Rung, String)] {
        &self.missing
    }

    /// Keeps the soft-dirty bits of the tree as they are: [`Rung::FakeParent`], which resets them where the kernel has them, is
    /// no longer used there. For a caller who finds written pages by them after the dump.
    pub fn keep_soft_dirty(&mut self) {
        if self.clears_soft_dirty {
            self.missing.push((Rung::FakeParent, "it would reset the soft-dirty bits".into()));
            self.top = self.from(self.top);
        }
    }

    /// Sets what drops unchanged pages on [`Rung::PageServer`]; without it all are kept.
    pub fn filter_pages(&mut self, unchanged: PageFilter) {
        self.filter = Some(unchanged);
    }

    /// Notes the mappings of these tasks, for [`Rung::ShimWithSmaps`], and whether there is something that this CRIU would lose
    /// without its pages: then [`Self::dump`] refuses. Right before the freeze: the younger the better. A task
    /// whose mappings cannot be read is left out.
    pub fn snapshot(&mut self, pids: &BTreeSet<i32>) {
        self.look_for_guards(pids);
        self.smaps.clear();
        if self.top == Rung::ShimWithSmaps {
            self.smaps = pids.iter().filter_map(|pid| Some((*pid, Smaps::read(*pid).ok()?))).collect();
        }
    }

    /// Notes whether one of the tasks has guard pages, which an older CRIU would lose unnoticed when it does not look at pages.
    fn look_for_guards(&mut self, pids: &BTreeSet<i32>) {
        let has_guards = |pid: &i32| {
            let pagemap = File::open(format!("/proc/{pid}/pagemap"));
            pagemap.is_ok_and(|pagemap| has_guard_pages(&pagemap).unwrap_or(false))
        };
        self.guarded = if self.knows_guards { None } else { pids.iter().copied().find(has_guards) };
    }

    /// Starts the CRIU for [`Self::dump`] with such options, before the freeze: that is some 4 ms less in it. Not needed, and
    /// without effect on [`Rung::PageServer`].
    ///
    /// # Errors
    /// CRIU cannot be started, or a file not be written.
    pub fn start(&mut self, criu: &CriuBinary, options: &DumpOptions) -> Result<(), CriuError> {
        self.started = None;
        if self.top != Rung::PageServer {
            let mut options = options.again();
            self.equip(self.top, &mut options)?;
            self.started = Some((self.top, options.start_session(criu)?));
        }
        Ok(())
    }

    /// Dumps the tree, which must be frozen. A rung that does not work is told in the report, and the next one is taken.
    ///
    /// # Errors
    /// What CRIU said to a plain dump, or at once when it can have nothing to do with the rung or when a second attempt would
    /// not be safe. The tasks are as CRIU left them.
    pub fn dump(
        &mut self,
        criu: &CriuBinary,
        options: DumpOptions,
        notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
    ) -> Result<PagelessReport, CriuError> {
        if let Some(pid) = self.guarded {
            let reason = format!("process {pid} has guard pages, which criu knows since {GUARDS_SINCE}");
            return Err(CriuError::Unusable { reason });
        }
        make_private_dir(&options.images_dir)?;
        let before = names_in(&options.images_dir)?;
        let frozen = Frozen::look(options.pid);
        let mut rung = self.top;
        let wanted = self.max..self.top;
        let mut fell: Vec<_> =
            self.missing.iter().filter(|(missing, _)| wanted.contains(missing)).cloned().collect();
        let refused = Cell::new(false);
        let mut notify = |question: &Notify| {
            let answer = notify(question);
            refused.set(refused.get() || answer == NotifyAnswer::Refuse);
            answer
        };
        loop {
            let attempt = self.attempt(rung, criu, &options, &frozen, &mut notify);
            let why = match attempt {
                Ok(Outcome::Done { report, found, omitted }) => {
                    let came_from = self.came_from(rung, found, &mut fell)?;
                    return Ok(PagelessReport {
                        report,
                        rung: came_from,
                        fell,
                        own_pages: found.pages,
                        omitted,
                    });
                }
                Ok(Outcome::Surprise(why)) => why,
                Err(error)
                    if rung != Rung::Plain && !refused.get() && frozen.allows_another(&error, &options) =>
                {
                    if matches!(error, CriuError::Crashed { .. }) {
                        // Whatever it was, not again.
                        self.preload = None;
                    }
                    error.to_string()
                }
                Err(error) => return Err(error),
            };
            empty(&options.images_dir, &before)?;
            let next = self.next(rung);
            tracing::warn!(from = %rung, to = %next, why, "the dump is made again in another way");
            fell.push((rung, why));
            rung = next;
        }
    }

    fn attempt(
        &mut self,
        rung: Rung,
        criu: &CriuBinary,
        base: &DumpOptions,
        frozen: &Frozen,
        notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
    ) -> Result<Outcome, CriuError> {
        let mut options = base.again();
        let session =
            self.started.take().filter(|(for_rung, _)| *for_rung == rung).map(|(_, session)| session);
        if session.is_none() {
            self.equip(rung, &mut options)?;
        }
        let omitted = self.give_files(rung, frozen)?;

        let mut server = None;
        match rung {
            Rung::FakeParent => {
                let pids = frozen.pids();
                fake_parent::make(&options.images_dir, &pids)?;
                if self.clears_soft_dirty {
                    pids.iter().try_for_each(|pid| kdat::mark_clean(*pid))?;
                }
                options.track_mem = true;
                options.parent_dir = Some(fake_parent::DIRECTORY.into());
            }
            Rung::PageServer => {
                let (started, socket) = Server::start(&options.images_dir, self.frame, self.filter.take())?;
                server = Some(started);
                options.page_server = Some(PageServer::Socket(socket));
            }
            _ => {}
        }
        let images = options.images_dir.clone();
        let dump = match session {
            Some(session) => {
                options.session_options();
                Dump::over(session, options)
            }
            None => options.start(criu),
        };
        let result = dump.and_then(|dump| dump.dump(notify));
        // A CRIU that gave no answer may live on, and with it the server; nobody waits for them.
        let given_up = matches!(result, Err(CriuError::Timeout { .. }));
        if let Some(server) = server.filter(|_| !given_up) {
            let (received, filter) = server.finish();
            self.filter = filter;
            if result.is_ok() {
                received?;
            }
        }
        let report = result?;
        if rung == Rung::FakeParent {
            fake_parent::complete(&images, &frozen.pids())?;
        }
        if report.stats.is_none() && rung != Rung::Plain {
            return Ok(Outcome::Surprise("criu left no statistics".into()));
        }
        let must = match rung {
            Rung::ShimWithSmaps | Rung::Shim => Mapping::always_written,
            Rung::FakeParent => Mapping::never_in_parent,
            Rung::PageServer | Rung::Plain => |_: &Mapping| true,
        };
        Ok(Outcome::Done { report, found: find_pages(&images, must)?, omitted })
    }

    /// Adds to the options what the CRIU process of this rung starts with.
    fn equip(&self, rung: Rung, options: &mut DumpOptions) -> Result<(), CriuError> {
        if let Some(preload) = &self.preload {
            let mut answers = vec!["limits"];
            if rung <= Rung::Shim {
                answers.push("pages");
                if self.omit_shared {
                    answers.push("shared");
                }
            }
            if rung == Rung::ShimWithSmaps {
                answers.push("smaps");
            }
            preload.reset()?;
            options.env.extend(preload.environment(&answers));
        }
        if rung == Rung::FakeParent {
            options.bind.clone_from(&self.altered_cache);
        }
        Ok(())
    }

    /// Lays out what the library answers with. Returns the objects whose data it leaves out.
    fn give_files(&self, rung: Rung, frozen: &Frozen) -> Result<BTreeSet<SharedObject>, CriuError> {
        let Some(preload) = self.preload.as_ref().filter(|_| rung <= Rung::Shim) else {
            return Ok(BTreeSet::new());
        };
        preload.remove_smaps()?;
        for (pid, smaps) in &self.smaps {
            if frozen.maps.get(pid).is_some_and(|maps| smaps.are_of(maps)) {
                preload.put_smaps(*pid, &smaps.text)?;
            }
        }
        let omitted = if self.omit_shared { frozen.shared.clone() } else { BTreeSet::new() };
        preload.put_shared(&omitted)?;
        Ok(omitted)
    }

    /// The rung that images made on `rung` really come from, by what was found in them.
    fn came_from(&self, rung: Rung, found: Found, fell: &mut Vec<(Rung, String)>) -> Result<Rung, CriuError> {
        let needless = |fell: &mut Vec<(Rung, String)>, expected: u64| {
            if found.needless > expected {
                // They cost time, which another attempt would not give back, and are right.
                tracing::warn!(%rung, pages = found.needless, "criu wrote pages that were not asked for");
                fell.push((rung, format!("criu wrote {} pages all the same", found.needless)));
            }
        };
        match rung {
            Rung::ShimWithSmaps | Rung::Shim => {
                let signs = self.preload.as_ref().map(Preload::signs).transpose()?.flatten();
                let Signs { pages, smaps, .. } = signs.unwrap_or_default();
                if pages == 0 {
                    // CRIU asked in another way, and thus got and wrote everything.
                    fell.push((rung, "criu did not ask the shim for pages".into()));
                    return Ok(Rung::Plain);
                }
                needless(fell, 0);
                if rung == Rung::ShimWithSmaps && smaps == 0 {
                    fell.push((rung, "no task had a valid smaps snapshot".into()));
                    return Ok(Rung::Shim);
                }
                Ok(rung)
            }
            Rung::FakeParent => {
                // Where written pages are tracked, those that CRIU's own code wrote to are some.
                needless(fell, if self.clears_soft_dirty { OWN_TRACES * found.tasks } else { 0 });
                Ok(rung)
            }
            Rung::PageServer | Rung::Plain => Ok(rung),
        }
    }

    fn works(&self, rung: Rung) -> bool {
        !self.missing.iter().any(|(missing, _)| *missing == rung)
            && (rung > Rung::Shim || self.preload.is_some())
    }

    /// `rung`, or the next lower one that works.
    fn from(&self, rung: Rung) -> Rung {
        if self.works(rung) { rung } else { self.next(rung) }
    }

    fn next(&self, rung: Rung) -> Rung {
        rung.below().find(|lower| self.works(*lower)).unwrap_or(Rung::Plain)
    }
}

enum Outcome {
    Done { report: DumpReport, found: Found, omitted: BTreeSet<SharedObject> },
    Surprise(String),
}

/// The tree as it was when it had just been frozen.
struct Frozen {
    /// `/proc/PID/maps` of each task.
    maps: BTreeMap<i32, Vec<u8>>,
    /// The shared objects that are mapped.
    shared: BTreeSet<SharedObject>,
}

impl Frozen {
    fn look(root: i32) -> Frozen {
        let mut frozen = Frozen { maps: BTreeMap::new(), shared: BTreeSet::new() };
        for pid in tasks::tree_of(root) {
            // A zombie's is empty.
            if let Some(maps) = maps_of(pid) {
                add_mapped(pid, &maps, &mut frozen.shared);
                frozen.maps.insert(pid, maps);
            }
        }
        frozen
    }

    fn pids(&self) -> Vec<i32> {
        self.maps.keys().copied().collect()
    }

    /// Whether the dump may be tried once more after this error: only when CRIU has put the tasks back or has not touched them,
    /// and only when another way may change something.
    fn allows_another(&self, error: &CriuError, options: &DumpOptions) -> bool {
        match error {
            // A known cause is in the tree, not in the way it is dumped.
            CriuError::Failed { explanation, .. } => explanation.hint.is_none() && self.is_as_before(),
            CriuError::Crashed { .. } => {
                let log = std::fs::read(options.work_dir.join(DUMP_LOG)).unwrap_or_default();
                !mentions_parasite(&log) && self.is_as_before()
            }
            CriuError::Spawn { .. } => true,
            _ => false,
        }
    }

    fn is_as_before(&self) -> bool {
        self.maps.iter().all(|(pid, before)| maps_of(*pid).is_some_and(|now| now == *before))
    }
}

fn maps_of(pid: i32) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/maps")).ok().filter(|maps| !maps.is_empty())
}

/// Whether CRIU had begun to run code in a task.
fn mentions_parasite(log: &[u8]) -> bool {
    String::from_utf8_lossy(log).contains("arasite")
}

fn names_in(dir: &Path) -> Result<BTreeSet<OsString>, CriuError> {
    std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
        .map_err(CriuError::io(format!("cannot list `{}`", dir.display())))
}

/// Removes what has come into the directory since `before`.
fn empty(dir: &Path, before: &BTreeSet<OsString>) -> Result<(), CriuError> {
    for name in names_in(dir)?.difference(before) {
        let path: PathBuf = dir.join(name);
        let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(CriuError::io(format!("cannot remove `{}`", path.display())))?;
    }
    Ok(())
}
