//! A look at the private mappings of a space that has a userfaultfd: what is new is registered and read, of the rest what was
//! written.

use super::maps::{Kind, Maps, Span};
use super::rules::Rules;
use super::scan::Scanner;
use super::space::Due;
use super::stats::RoundStats;
use crate::sys::userfaultfd::{MODE_WP, Userfaultfd};
use nix::errno::Errno;
use std::fs::File;

/// Takes the registration of a part back where a mapping was cut by it: it had changed since its place was read. An
/// application that moves an area of which only a part is registered gets an error from the kernel. The next round finds
/// it to be new.
fn mend(uffd: &Userfaultfd, maps: &Maps, again: &Maps, registered: &[Span]) {
    for part in registered.iter().flat_map(|span| again.cut_off(*span, maps)) {
        let result = uffd.unregister(part.start, part.bytes());
        tracing::debug!(start = part.start, end = part.end, ?result, "a mapping was cut");
    }
}

/// One look at the private mappings of a space with a userfaultfd.
pub(super) struct Walk<'a> {
    pub(super) pid: i32,
    pub(super) pagemap: &'a File,
    pub(super) uffd: &'a Userfaultfd,
    pub(super) maps: &'a Maps,
    /// As they are after a registration.
    pub(super) again: &'a mut Maps,
    pub(super) scanner: &'a mut Scanner,
    pub(super) rules: &'a Rules,
    pub(super) frozen: bool,
    pub(super) all: bool,
    pub(super) fresh: bool,
    /// What is registered without having been seen: the next round looks at all of it.
    pub(super) unseen: &'a mut Vec<Span>,
    pub(super) stats: &'a mut RoundStats,
}

impl Walk<'_> {
    pub(super) fn walk(mut self, due: &mut Due) -> Result<(), Errno> {
        let groups: Vec<_> = self.maps.private_groups().collect();
        let fresh = if self.rules.read_new { self.find_fresh(&groups)? } else { Vec::new() };
        if !self.frozen {
            let mut all = self.fresh_objects()?;
            all.extend(&fresh);
            all.sort_unstable();
            self.register(&all);
        }
        let mut known = fresh.iter().copied().peekable();
        for group in groups {
            let mut first = group.start;
            // Between fresh mappings, neighbours are asked for in one call.
            while first < group.end {
                match known.peek().copied().filter(|&index| index < group.end) {
                    Some(index) if index == first => {
                        self.new_mapping(index, &mut due.written)?;
                        known.next();
                        first += 1;
                    }
                    stop => {
                        let last = stop.unwrap_or(group.end);
                        self.neighbours(first..last, &mut due.written)?;
                        first = last;
                    }
                }
            }
            if self.maps.list[group.start].kind == Kind::PrivateFile && self.rules.reread_markers {
                for mapping in &self.maps.list[group] {
                    self.scanner.markers(self.pagemap, mapping.span, &mut due.again)?;
                }
            }
        }
        Ok(())
    }

    fn span(&self, range: &std::ops::Range<usize>) -> Span {
        Span { start: self.maps.list[range.start].span.start, end: self.maps.list[range.end - 1].span.end }
    }

    /// The mappings that are not registered. Found before anything is write-protected: a scan that fails half-way has
    /// taken away the reports of its first half.
    fn find_fresh(&mut self, groups: &[std::ops::Range<usize>]) -> Result<Vec<usize>, Errno> {
        let mut fresh = Vec::new();
        for group in groups {
            if !self.fresh && !self.scanner.unregistered(self.pagemap, self.span(group))? {
                continue;
            }
            for index in group.clone() {
                if self.fresh || self.scanner.unregistered(self.pagemap, self.maps.list[index].span)? {
                    fresh.push(index);
                }
            }
        }
        Ok(fresh)
    }

    /// The mappings of shared objects that are not registered.
    fn fresh_objects(&mut self) -> Result<Vec<usize>, Errno> {
        let mut fresh = Vec::new();
        for index in self.maps.objects() {
            if self.fresh || self.scanner.unregistered(self.pagemap, self.maps.list[index].span)? {
                fresh.push(index);
            }
        }
        Ok(fresh)
    }

    /// Registers mappings. An application that moves an area of which only a part is registered gets an error from the
    /// kernel, and what is there may have been replaced, by something larger, since its place was read: so each call takes all
    /// from one border to the next, with whatever is between them by then. Where there was no room for that, neighbours go
    /// in one call.
    fn register(&mut self, fresh: &[usize]) {
        if fresh.is_empty() || !self.rules.register_new && !self.fresh {
            return;
        }
        std::thread::sleep(self.rules.hesitate);
        let mut registered = Vec::new();
        for run in fresh.chunk_by(|&one, &next| self.has_no_border(one + 1..next)) {
            let wide = self.between_borders(run[0], run[run.len() - 1]);
            if self.rules.register_between && self.uffd.register(wide.start, wide.bytes(), MODE_WP).is_ok() {
                registered.push(wide);
            } else {
                self.register_alone(run, &mut registered);
            }
        }
        std::thread::sleep(self.rules.hesitate);
        if self.again.read(self.pid).is_ok() {
            self.look_for_unseen(&registered);
            mend(self.uffd, self.maps, self.again, &registered);
        }
    }

    /// Registers those that can be: neighbours in one call, or else each in its own.
    fn register_alone(&self, run: &[usize], registered: &mut Vec<Span>) {
        let list = &self.maps.list;
        let meet = |one: usize, next: usize| next == one + 1 && list[one].span.end == list[next].span.start;
        for run in run.chunk_by(|&one, &next| meet(one, next)) {
            let span = self.span(&(run[0]..run[run.len() - 1] + 1));
            if run.len() > 1 && self.uffd.register(span.start, span.bytes(), MODE_WP).is_ok() {
                registered.push(span);
                continue;
            }
            // One of them cannot be, or is gone.
            for &index in run {
                let span = list[index].span;
                match self.uffd.register(span.start, span.bytes(), MODE_WP) {
                    Ok(()) => registered.push(span),
                    Err(errno) => {
                        tracing::trace!(start = span.start, end = span.end, %errno, "not registered");
                    }
                }
            }
        }
    }

    /// Whether these mappings, none of them new, may be registered anew: private ones. What has replaced one of them since shows
    /// all of its pages as written, unless the kernel (before 6.13) leaves marks on pages that an application moves.
    fn has_no_border(&self, mut indices: std::ops::Range<usize>) -> bool {
        let private =
            |index: usize| matches!(self.maps.list[index].kind, Kind::Anonymous | Kind::PrivateFile);
        indices.is_empty() || self.scanner.clears_moved() && indices.all(private)
    }

    /// From the border before one mapping to that behind another.
    fn between_borders(&self, first: usize, last: usize) -> Span {
        let list = &self.maps.list;
        let before = (0..first).rev().find(|&index| !self.has_no_border(index..index + 1));
        let behind = (last + 1..list.len()).find(|&index| !self.has_no_border(index..index + 1));
        Span {
            start: before.map_or(list[0].span.start, |index| list[index].span.end),
            end: behind.map_or(list[list.len() - 1].span.end, |index| list[index].span.start),
        }
    }

    /// What was registered and was not there before, or was something else. What need not be followed is let go.
    fn look_for_unseen(&mut self, registered: &[Span]) {
        let there = registered.iter().flat_map(|span| self.again.inside(*span));
        for mapping in there.filter(|mapping| !self.maps.has(mapping)) {
            let unseen = self.maps.unlike(mapping);
            if mapping.kind == Kind::Other && !unseen.is_empty() {
                let _ = self.uffd.unregister(mapping.span.start, mapping.span.bytes());
            }
            self.unseen.extend(unseen);
        }
    }

    /// All pages of a mapping that is new, or cannot be registered.
    fn new_mapping(&mut self, index: usize, out: &mut Vec<Span>) -> Result<(), Errno> {
        let mapping = &self.maps.list[index];
        let before = out.len();
        let last = out.last().copied();
        if !self.frozen {
            match self.scanner.all(self.pagemap, mapping.span, mapping.kind, true, out) {
                Err(Errno::EPERM) => {
                    out.truncate(before);
                    if let (Some(last), Some(kept)) = (last, out.last_mut()) {
                        *kept = last;
                    }
                    self.stats.unregistered += 1;
                    if !self.rules.read_unregistered {
                        return Ok(());
                    }
                }
                other => return other,
            }
        }
        self.scanner.all(self.pagemap, mapping.span, mapping.kind, false, out)
    }

    /// The written pages of neighbouring mappings of one kind.
    fn neighbours(&mut self, range: std::ops::Range<usize>, out: &mut Vec<Span>) -> Result<(), Errno> {
        let kind = self.maps.list[range.start].kind;
        if self.all {
            for mapping in &self.maps.list[range] {
                self.scanner.all(self.pagemap, mapping.span, kind, false, out)?;
            }
            return Ok(());
        }
        match self.scanner.written(self.pagemap, self.span(&range), kind, out) {
            Err(Errno::EPERM) if !self.rules.read_new => {
                let indices: Vec<usize> = range.clone().collect();
                self.register(&indices);
                match self.scanner.written(self.pagemap, self.span(&range), kind, out) {
                    Err(Errno::EPERM) => Ok(()),
                    other => other,
                }
            }
            // One of them has been replaced since we asked; we do not know which, and what was reported of the others is
            // lost.
            Err(Errno::EPERM) => {
                let indices: Vec<usize> = range.clone().collect();
                if !self.frozen {
                    self.register(&indices);
                }
                for index in indices {
                    self.new_mapping(index, out)?;
                }
                Ok(())
            }
            other => other,
        }
    }
}
