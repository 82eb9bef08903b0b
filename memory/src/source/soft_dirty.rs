//! Following writes by soft-dirty bits.
//!
//! The bit does not tell all: mremap(2) moves whole page tables as they are where it can (Linux 6.12, mm/mremap.c,
//! `move_normal_pmd`: 2 MiB at a multiple of 2 MiB), and what lay elsewhere when the bits were cleared is then at a place
//! whose old content was read. So it is also noted which frame each page had; another frame is another page. A frame that
//! comes back to its place in the hands of another page was given out since, and was written.

use super::maps::{Kind, Maps, Span};
use super::scan::Scanner;
use crate::page::PAGE_SIZE;
use nix::errno::Errno;
use std::fs::File;

/// A space when its bits were last cleared, and everything was read.
#[derive(Debug, Default)]
pub(super) struct Cleared {
    /// Pages that there were.
    pages: u64,
    /// Address and place of each page of anonymous memory, ascending.
    places: Vec<(u64, u64)>,
}

/// A space to look at.
pub(super) struct Look<'a> {
    pub(super) pid: i32,
    pub(super) pagemap: &'a File,
    pub(super) maps: &'a Maps,
    pub(super) scanner: &'a mut Scanner,
    /// Nothing is cleared.
    pub(super) frozen: bool,
    /// Everything is wanted.
    pub(super) all: bool,
}

impl Look<'_> {
    /// What is to be read. Bits that are cleared while the task runs lose what is written between reading and clearing them.
    /// So they are cleared only when everything is read behind it; in between, all that was written since then is read in
    /// each round. When that is a quarter of the memory, it begins anew.
    pub(super) fn private(
        &mut self,
        cleared: &mut Option<Cleared>,
        out: &mut Vec<Span>,
    ) -> Result<(), Errno> {
        if let Some(before) = cleared.as_ref().filter(|_| !self.all) {
            self.changed(before, out)?;
            if self.frozen || pages(out) <= before.pages / 4 {
                return Ok(());
            }
            out.clear();
        }
        if self.frozen {
            return self.everything(&mut Vec::new(), out);
        }
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "4")
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        // whatever moves from here on has another place than is noted now, before anything is read
        let mut places = Vec::new();
        self.everything(&mut places, out)?;
        *cleared = Some(Cleared { pages: pages(out), places });
        Ok(())
    }

    /// What was written, or came to its place, since the bits were cleared.
    fn changed(&mut self, before: &Cleared, out: &mut Vec<Span>) -> Result<(), Errno> {
        for mapping in &self.maps.list {
            match mapping.kind {
                Kind::Anonymous => {
                    let first = before.places.partition_point(|(address, _)| *address < mapping.span.start);
                    let mut known = before.places[first..].iter().peekable();
                    self.scanner.pages(self.pagemap, mapping.span, mapping.kind, &mut |address, page| {
                        while known.next_if(|(known, _)| *known < address).is_some() {}
                        let stayed = known
                            .next_if(|(known, _)| *known == address)
                            .is_some_and(|(_, at)| *at == page.place());
                        if page.is_soft_dirty() || !stayed {
                            Span { start: address, end: address + PAGE_SIZE }.push_to(out);
                        }
                    })?;
                }
                // pages that were written, given up and written again were seen without the bit (Linux 6.12): all that
                // there are, which are few
                Kind::PrivateFile => self.scanner.existing(self.pagemap, mapping, out)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// All pages, and the places of those of anonymous memory.
    fn everything(&mut self, places: &mut Vec<(u64, u64)>, out: &mut Vec<Span>) -> Result<(), Errno> {
        for mapping in &self.maps.list {
            match mapping.kind {
                Kind::Anonymous => {
                    self.scanner.pages(self.pagemap, mapping.span, mapping.kind, &mut |address, page| {
                        places.push((address, page.place()));
                        Span { start: address, end: address + PAGE_SIZE }.push_to(out);
                    })?;
                }
                Kind::PrivateFile => {
                    self.scanner.all(self.pagemap, mapping.span, mapping.kind, false, out)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn pages(spans: &[Span]) -> u64 {
    spans.iter().map(Span::pages).sum()
}
