//! One address space: the tasks that have it, and how its writes are followed.

use super::MemoryError;
use super::inject;
use super::maps::{Kind, Mapping, Maps, Span};
use super::read::Origin;
use super::rules::Rules;
use super::scan::Scanner;
use super::soft_dirty::{Cleared, Look};
use super::stats::{RoundStats, Untracked};
use super::walk::Walk;
use crate::page::ImageId;
use crate::sys::task;
use crate::sys::userfaultfd::{Userfaultfd, feature};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// What tracking needs of a userfaultfd.
pub(super) const FEATURES: u64 =
    feature::WP_ASYNC | feature::WP_UNPOPULATED | feature::PAGEFAULT_FLAG_WP | feature::WP_HUGETLBFS_SHMEM;

/// How the writes of a space are found.
#[derive(Debug)]
pub(super) enum Tracking {
    /// The kernel reports them.
    Uffd(Userfaultfd),
    /// Soft-dirty bits, once they have been cleared.
    SoftDirty(Option<Cleared>),
    /// Not at all; everything is read.
    Nothing(Untracked),
}

/// An address space.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) pid: i32,
    /// All tasks that have it, by host pid and in their own pid namespace; the first is `pid`.
    pub(super) members: Vec<(i32, u32)>,
    pub(super) mem: File,
    pub(super) pagemap: File,
    /// As in [`Maps`].
    pub(super) signature: (u64, u64),
    pub(super) vdso: Option<Span>,
    pub(super) tracking: Tracking,
    /// A task joined: it needs all of it.
    pub(super) all: bool,
    /// Nothing of it was registered by us yet; what is, was by somebody else.
    fresh: bool,
    /// Rounds until the next attempt to track it, and how many to wait if that fails.
    retry: (u32, u32),
    /// Devices may write to it.
    pub(super) direct: bool,
    /// What was read when, to be read again.
    history: Vec<(Instant, Span)>,
    /// Where a shared object was, and something else is: reports of private memory were taken for the object's.
    mistaken: Vec<Span>,
    /// What was registered in the last round without having been seen; and in this one, for the next.
    unseen: (Vec<Span>, Vec<Span>),
}

/// What to hand over of a space in a round.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// What was reported, or is new.
    pub(super) written: Vec<Span>,
    /// What is read again to be sure.
    pub(super) again: Vec<Span>,
}

/// Lines of /proc/PID/status.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) zombie: bool,
    pub(super) tracer: i32,
    pub(super) vpid: u32,
}

impl Status {
    /// None if the task is gone.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Self {
            zombie: line("State:")?.starts_with(['Z', 'X']),
            tracer: line("TracerPid:")?.parse().ok()?,
            vpid: line("NSpid:")?.rsplit(['\t', ' ']).next()?.parse().ok()?,
        })
    }
}

/// Whether an error says that the task is gone.
pub(super) fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

impl Space {
    /// The space of a task that nobody else of the tree has; `maps` are its mappings.
    pub(super) fn open(pid: i32, vpid: u32, maps: &Maps, why: Untracked) -> std::io::Result<Self> {
        Ok(Self {
            pid,
            members: vec![(pid, vpid)],
            mem: File::open(format!("/proc/{pid}/mem"))?,
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
            signature: maps.signature,
            vdso: maps.vdso,
            tracking: Tracking::Nothing(why),
            all: false,
            fresh: true,
            retry: (0, 1),
            direct: false,
            history: Vec::new(),
            mistaken: Vec::new(),
            unseen: (Vec::new(), Vec::new()),
        })
    }

    /// Takes out the tasks that have another space now, as far as that shows without a look at their mappings.
    pub(super) fn check(&mut self) {
        // Reading /proc/PID/mem of a space that nobody has any more gives nothing; of an address without a mapping, an error.
        if matches!(self.mem.read_at(&mut [0], self.signature.0), Ok(0)) {
            self.members.clear();
        }
        let first = self.pid;
        self.members.retain(|&(pid, _)| pid == first || task::same_memory(first, pid).unwrap_or(false));
    }

    /// In whose images its pages belong.
    pub(super) fn images(&self) -> impl Iterator<Item = ImageId> + '_ {
        self.members.iter().map(|&(_, vpid)| ImageId::Task(vpid))
    }

    pub(super) fn origin(&self, alone: bool) -> Origin<'_> {
        let alone = alone && self.members.len() == 1;
        Origin { pid: self.pid, mem: &self.mem, pagemap: &self.pagemap, alone }
    }

    /// Tries to get a userfaultfd of it, if it has none and it is time to try. The task must run.
    pub(super) fn attach(&mut self, rules: &Rules, stats: &mut RoundStats) {
        let Tracking::Nothing(why) = &mut self.tracking else { return };
        if self.retry.0 > 0 {
            self.retry.0 -= 1;
            return;
        }
        match inject_into(self.pid, self.vdso, &self.mem, rules) {
            Ok((uffd, stopped)) => {
                stats.attached += 1;
                stats.longest_stop = stats.longest_stop.max(stopped);
                self.tracking = Tracking::Uffd(uffd);
                self.fresh = true;
            }
            Err(reason) => {
                tracing::debug!(pid = self.pid, %reason, "not tracked");
                *why = reason;
                self.retry = (self.retry.1, (self.retry.1 * 2).min(64));
            }
        }
    }

    /// Whether a descriptor of a task is the userfaultfd of this space.
    pub(super) fn is_ours(&self, pid: i32, fd: i32) -> bool {
        match &self.tracking {
            Tracking::Uffd(uffd) => task::same_file(uffd.as_fd().as_raw_fd(), pid, fd).unwrap_or(false),
            _ => false,
        }
    }

    /// What of the private mappings is to be handed over; what is written from now on, the next call tells. `frozen`: nothing
    /// is registered.
    pub(super) fn private(
        &mut self,
        maps: &Maps,
        again: &mut Maps,
        scanner: &mut Scanner,
        rules: &Rules,
        frozen: bool,
        stats: &mut RoundStats,
    ) -> Result<Due, MemoryError> {
        let mut due = Due::default();
        let all = std::mem::take(&mut self.all);
        self.unseen = (std::mem::take(&mut self.unseen.1), Vec::new());
        let result = match &mut self.tracking {
            Tracking::Uffd(uffd) => {
                let fresh = std::mem::take(&mut self.fresh);
                let (pid, pagemap, unseen) = (self.pid, &self.pagemap, &mut self.unseen.1);
                Walk { pid, pagemap, uffd, maps, again, scanner, rules, frozen, all, fresh, unseen, stats }
                    .walk(&mut due)
            }
            Tracking::SoftDirty(cleared) => {
                let (pid, pagemap) = (self.pid, &self.pagemap);
                Look { pid, pagemap, maps, scanner, frozen, all }.private(cleared, &mut due.written)
            }
            Tracking::Nothing(_) => all_pages(&self.pagemap, maps, scanner, &mut due.written),
        };
        self.mistaken.extend(&self.unseen.0);
        Span::unite(&mut self.mistaken);
        for mistaken in self.mistaken.drain(..) {
            for mapping in &maps.list {
                let start = mapping.span.start.max(mistaken.start);
                let end = mapping.span.end.min(mistaken.end);
                if start < end && matches!(mapping.kind, Kind::Anonymous | Kind::PrivateFile) {
                    let _ = scanner.all(
                        &self.pagemap,
                        Span { start, end },
                        mapping.kind,
                        false,
                        &mut due.written,
                    );
                }
            }
        }
        Span::unite(&mut due.written);
        match result {
            // The space is going away.
            Err(Errno::ESRCH | Errno::ENOMEM | Errno::EINVAL) if !frozen => {}
            Err(errno) => return Err(MemoryError::Scan { pid: self.pid, errno }),
            Ok(()) => {}
        }
        Ok(due)
    }

    /// What was written through the mappings of shared objects since the last call, by index of the list; none if that is not
    /// known. Through a mapping that is new, that is every page it shows.
    pub(super) fn shared(
        &mut self,
        maps: &Maps,
        again: &mut Maps,
        scanner: &mut Scanner,
    ) -> Vec<(usize, Option<Vec<Span>>)> {
        let mut all = Vec::new();
        let mut asked = false;
        for (index, mapping) in
            maps.list.iter().enumerate().filter(|(_, mapping)| mapping.kind == Kind::Object)
        {
            let written = self.written_shared(mapping, scanner);
            asked |= written.as_ref().is_none_or(|written| !written.is_empty());
            all.push((index, written));
        }
        if asked && matches!(self.tracking, Tracking::Uffd(_)) {
            // Private memory may have taken a place since the mappings were read. Its pages are protected now, and reported
            // to nobody.
            let _ = again.read(self.pid);
            for &(index, _) in &all {
                let mapping = &maps.list[index];
                if !again.has(mapping) {
                    self.mistaken.push(mapping.span);
                }
            }
        }
        all
    }

    fn written_shared(&self, mapping: &Mapping, scanner: &mut Scanner) -> Option<Vec<Span>> {
        let mut written = Vec::new();
        match &self.tracking {
            // one that was mapped since the registrations is not registered here: its place may be another's by now
            Tracking::Uffd(_) if !mapping.span.meets(&self.unseen.0) => {
                scanner.written_shared(&self.pagemap, mapping.span, &mut written).ok()?;
                Some(written)
            }
            Tracking::SoftDirty(Some(_)) => {
                scanner.soft_dirty(&self.pagemap, mapping.span, mapping.kind, &mut written).ok()?;
                Some(written)
            }
            _ => None,
        }
    }

    /// Remembers what was read, and gives what a device may have written since: what was read long enough ago, or under the
    /// freeze all of it.
    pub(super) fn direct_again(&mut self, read: &[Span], rules: &Rules, frozen: bool) -> Vec<Span> {
        let mut again = Vec::new();
        if !rules.reread_direct || !self.direct || matches!(self.tracking, Tracking::Nothing(_)) {
            return again;
        }
        let now = Instant::now();
        self.history.retain(|&(when, span)| {
            let keep = !frozen && now.duration_since(when) < rules.direct_age;
            if !keep {
                again.push(span);
            }
            keep
        });
        if !frozen {
            self.history.extend(read.iter().map(|&span| (now, span)));
        }
        Span::unite(&mut again);
        let mut done = read.to_vec();
        Span::unite(&mut done);
        Span::without(&again, &done)
    }
}

/// All pages of all private mappings.
fn all_pages(pagemap: &File, maps: &Maps, scanner: &mut Scanner, out: &mut Vec<Span>) -> Result<(), Errno> {
    for mapping in &maps.list {
        if matches!(mapping.kind, Kind::Anonymous | Kind::PrivateFile) {
            scanner.all(pagemap, mapping.span, mapping.kind, false, out)?;
        }
    }
    Ok(())
}

/// Injects, and enables what is needed.
fn inject_into(
    pid: i32,
    vdso: Option<Span>,
    mem: &File,
    rules: &Rules,
) -> Result<(Userfaultfd, Duration), Untracked> {
    if let Some(by) = Status::of(pid).map(|status| status.tracer).filter(|&tracer| tracer != 0) {
        return Err(Untracked::Traced { by });
    }
    let vdso = vdso.ok_or(Untracked::NoSyscallInstruction)?;
    let injected = inject::userfaultfd(pid, vdso, mem, rules.linger)?;
    injected.value.enable(FEATURES).map_err(|errno| Untracked::failed("UFFDIO_API", errno))?;
    Ok((injected.value, injected.stopped))
}
