//! /proc/PID/maps, read quickly.

use crate::page::PAGE_SIZE;
use std::fs::File;
use std::io::Read;

/// Consecutive addresses of whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: u64,
    /// Behind the last.
    pub(crate) end: u64,
}

impl Span {
    pub(crate) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn pages(&self) -> u64 {
        self.bytes() / PAGE_SIZE
    }

    /// Whether one of a list lies in it, wholly or in part.
    pub(crate) fn meets(&self, list: &[Span]) -> bool {
        list.iter().any(|other| other.start < self.end && self.start < other.end)
    }

    /// Appends to a list, growing its last span if this one continues it.
    pub(crate) fn push_to(self, list: &mut Vec<Span>) {
        match list.last_mut() {
            Some(last) if last.end == self.start => last.end = self.end,
            _ if self.start < self.end => list.push(self),
            _ => {}
        }
    }

    /// Sorts and unites.
    pub(crate) fn unite(list: &mut Vec<Span>) {
        list.sort_unstable();
        list.dedup_by(|next, kept| {
            let joins = next.start <= kept.end;
            if joins {
                kept.end = kept.end.max(next.end);
            }
            joins
        });
    }

    /// What of a sorted list is not in another sorted list.
    pub(crate) fn without(list: &[Span], other: &[Span]) -> Vec<Span> {
        let mut rest = Vec::with_capacity(list.len());
        let mut others = other.iter().copied().peekable();
        for span in list {
            let mut start = span.start;
            while let Some(cut) = others.peek().copied() {
                if cut.end <= start {
                    others.next();
                    continue;
                }
                if cut.start >= span.end {
                    break;
                }
                Span { start, end: cut.start.max(start) }.push_to(&mut rest);
                start = cut.end.min(span.end);
                if cut.end > span.end {
                    break;
                }
            }
            Span { start, end: span.end }.push_to(&mut rest);
        }
        rest
    }
}

/// Whose the pages of a mapping are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only the task's.
    Anonymous,
    /// A private mapping of a file: those that were written are the task's.
    PrivateFile,
    /// A shared object that no file system has: anonymous shared memory, a memfd, a System V segment.
    Object,
    /// Nothing to carry: shared mappings of files, and what the kernel maps into every task.
    Other,
}

/// A line of /proc/PID/maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) span: Span,
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    /// Major and minor number, and the inode.
    pub(crate) file: (u32, u32, u64),
    name: (usize, usize),
}

/// The mappings of a task. Reading the next task's reuses the memory.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    text: Vec<u8>,
    pub(crate) list: Vec<Mapping>,
    /// Where the vDSO is and where the stack ends: differs after an exec, is the same after a fork.
    pub(crate) signature: (u64, u64),
    /// The vDSO's text.
    pub(crate) vdso: Option<Span>,
    /// It has a ring of libaio.
    pub(crate) aio: bool,
}

impl Maps {
    /// Reads a task's mappings; there are none when it is gone, or a zombie.
    pub(crate) fn read(&mut self, pid: i32) -> std::io::Result<()> {
        self.text.clear();
        if let Err(error) =
            File::open(format!("/proc/{pid}/maps")).and_then(|mut file| file.read_to_end(&mut self.text))
        {
            self.text.clear();
            self.parse();
            return Err(error);
        }
        self.parse();
        Ok(())
    }

    fn parse(&mut self) {
        self.list.clear();
        self.signature = (0, 0);
        self.vdso = None;
        self.aio = false;
        let mut at = 0;
        let mut behind = 0;
        while at < self.text.len() {
            let rest = &self.text[at..];
            let line = &rest[..rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())];
            if let Some((mut mapping, name)) = parse_line(line) {
                let bytes = &line[name.min(line.len())..];
                mapping.name = (at + name.min(line.len()), bytes.len());
                match bytes {
                    b"[vdso]" => {
                        self.signature.0 = mapping.span.start;
                        self.vdso = Some(mapping.span);
                    }
                    b"[stack]" => self.signature.1 = mapping.span.end,
                    _ if bytes.starts_with(b"/[aio]") => self.aio = true,
                    _ => {}
                }
                // The file is read in pieces; what changed in between can show a mapping twice.
                if mapping.span.start >= behind {
                    behind = mapping.span.end;
                    self.list.push(mapping);
                }
            }
            at += line.len() + 1;
        }
    }

    /// The name of a mapping of the list.
    pub(crate) fn name(&self, mapping: &Mapping) -> String {
        let (at, len) = mapping.name;
        String::from_utf8_lossy(&self.text[at..at + len]).into_owned()
    }

    /// The name of the mapping an address is in, with its range.
    pub(crate) fn describe(&self, address: u64) -> String {
        let index = self.list.partition_point(|mapping| mapping.span.end <= address);
        match self.list.get(index).filter(|mapping| mapping.span.start <= address) {
            Some(mapping) => {
                let name = self.name(mapping);
                let name = if name.is_empty() { "anonymous" } else { &name };
                format!("{:x}-{:x} {name}", mapping.span.start, mapping.span.end)
            }
            None => format!("{address:x}"),
        }
    }

    /// The kind of the mapping an address is in.
    pub(crate) fn kind_at(&self, address: u64) -> Kind {
        let index = self.list.partition_point(|mapping| mapping.span.end <= address);
        self.list
            .get(index)
            .filter(|mapping| mapping.span.start <= address)
            .map_or(Kind::Other, |mapping| mapping.kind)
    }

    /// Whether the list has this mapping of another list.
    pub(crate) fn has(&self, other: &Mapping) -> bool {
        let index = self.list.partition_point(|mapping| mapping.span.end <= other.span.start);
        self.list.get(index).is_some_and(|mapping| {
            (mapping.span, mapping.kind, mapping.file) == (other.span, other.kind, other.file)
        })
    }

    /// What of the list lies in the span, wholly or in part.
    pub(crate) fn inside(&self, span: Span) -> impl Iterator<Item = &Mapping> {
        let first = self.list.partition_point(|mapping| mapping.span.end <= span.start);
        self.list[first..].iter().take_while(move |mapping| mapping.span.start < span.end)
    }

    /// Where in a mapping of another list this one has nothing, or a mapping of another kind or file.
    pub(crate) fn unlike(&self, other: &Mapping) -> Vec<Span> {
        let alike = self
            .inside(other.span)
            .filter(|mapping| (mapping.kind, mapping.file) == (other.kind, other.file));
        Span::without(&[other.span], &alike.map(|mapping| mapping.span).collect::<Vec<_>>())
    }

    /// The neighbours of one kind that meet at an address, if there are two.
    fn meeting(&self, address: u64) -> Option<(&Mapping, &Mapping)> {
        let index = self.list.partition_point(|mapping| mapping.span.end <= address);
        let (before, behind) = (self.list.get(index.checked_sub(1)?)?, self.list.get(index)?);
        let meet = before.span.end == address && behind.span.start == address;
        (meet && (before.kind, before.file) == (behind.kind, behind.file)).then_some((before, behind))
    }

    /// What of `span` lies at one of its ends where mappings meet that did not in the list `earlier`: a mapping has been cut
    /// there since.
    pub(crate) fn cut_off(&self, span: Span, earlier: &Self) -> Vec<Span> {
        let met = |address| earlier.meeting(address).is_some();
        let first = self.meeting(span.start).filter(|_| !met(span.start));
        let last = self.meeting(span.end).filter(|_| !met(span.end));
        let first = first.map(|(_, inside)| Span { start: span.start, end: inside.span.end.min(span.end) });
        let last = last.map(|(inside, _)| Span { start: inside.span.start.max(span.start), end: span.end });
        first.into_iter().chain(last).collect()
    }

    /// Indices of mappings of shared objects.
    pub(crate) fn objects(&self) -> impl Iterator<Item = usize> + '_ {
        let is_object = |index: &usize| self.list[*index].kind == Kind::Object;
        (0..self.list.len()).filter(is_object)
    }

    /// Where private mappings are.
    pub(crate) fn private(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for mapping in &self.list {
            if matches!(mapping.kind, Kind::Anonymous | Kind::PrivateFile) {
                mapping.span.push_to(&mut spans);
            }
        }
        spans
    }

    /// Neighbours of one kind, as index ranges of the list: mappings of other kinds do not lie between them. Shared
    /// objects and what is not carried are left out.
    pub(crate) fn private_groups(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            loop {
                let kind = self.list.get(next)?.kind;
                let first = next;
                next += self.list[first..].iter().take_while(|mapping| mapping.kind == kind).count();
                if matches!(kind, Kind::Anonymous | Kind::PrivateFile) {
                    return Some(first..next);
                }
            }
        })
    }
}

/// One line, and where in it the name starts.
fn parse_line(line: &[u8]) -> Option<(Mapping, usize)> {
    let mut cursor = Cursor { line, at: 0 };
    let start = cursor.number(16, b'-')?;
    let end = cursor.number(16, b' ')?;
    let permissions = line.get(cursor.at..)?.get(..4)?;
    cursor.at += 5;
    let offset = cursor.number(16, b' ')?;
    let major = cursor.number(16, b':')? as u32;
    let minor = cursor.number(16, b' ')? as u32;
    let inode = cursor.number(10, b' ')?;
    let spaces = line.get(cursor.at..).unwrap_or_default().iter().take_while(|&&byte| byte == b' ').count();
    let name = cursor.at + spaces;
    let kind = kind_of(permissions[3] == b's', major, inode, line.get(name..).unwrap_or_default());
    let span = Span { start, end };
    Some((Mapping { span, kind, offset, file: (major, minor, inode), name: (0, 0) }, name))
}

/// CRIU's classification (criu/proc_parse.c, `vma_get_mapfile`), as far as pages are concerned.
fn kind_of(shared: bool, major: u32, inode: u64, name: &[u8]) -> Kind {
    let deleted = major == 0 && name.ends_with(b" (deleted)");
    match shared {
        true if name.starts_with(b"/memfd:CRIUMFD") => Kind::Other,
        true if name.starts_with(b"[anon_shmem:") => Kind::Object,
        true if deleted && name.starts_with(b"/memfd:") => Kind::Object,
        true if deleted && name.starts_with(b"/SYSV") => Kind::Object,
        true if deleted && name.starts_with(b"/dev/zero") => Kind::Object,
        true => Kind::Other,
        false if name.starts_with(b"[") => {
            let carried: [&[u8]; 3] = [b"[heap]", b"[stack", b"[anon:"];
            if carried.iter().any(|known| name.starts_with(known)) { Kind::Anonymous } else { Kind::Other }
        }
        false if inode == 0 && name.is_empty() => Kind::Anonymous,
        false => Kind::PrivateFile,
    }
}

struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    /// A number, and the byte behind it.
    fn number(&mut self, base: u64, behind: u8) -> Option<u64> {
        let mut value: u64 = 0;
        let first = self.at;
        while let Some(&byte) = self.line.get(self.at) {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' if base == 16 => byte - b'a' + 10,
                _ => break,
            };
            value = value.checked_mul(base)?.checked_add(digit.into())?;
            self.at += 1;
        }
        let ended = self.line.get(self.at).is_none_or(|&byte| byte == behind);
        let found = self.at > first && ended;
        self.at += 1;
        found.then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\
00400000-00401000 r-xp 00000000 fe:00 1234                               /usr/bin/some thing
01000000-01021000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000200000 rw-s 00000000 00:01 5                          /dev/zero (deleted)
7f0000200000-7f0000300000 rw-s 00001000 00:01 6                          /memfd:x (deleted)
7f0000300000-7f0000301000 rw-s 00000000 00:01 7                          /memfd:CRIUMFD (deleted)
7f0000400000-7f0000401000 rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)
7f0000500000-7f0000501000 rw-s 00000000 fe:00 99                         /tmp/dev/zero (deleted)
7f0000600000-7f0000601000 rw-s 00000000 00:1a 3                          /dev/shm/x
7f0000700000-7f0000701000 rw-p 00000000 00:00 0 
7f0000701000-7f0000702000 rw-p 00000000 00:00 0                          [anon:name]
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
7ffd00031000-7ffd00035000 r--p 00000000 00:00 0                          [vvar]
7ffd00035000-7ffd00037000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    fn parsed(text: &str) -> Maps {
        let mut maps = Maps { text: text.into(), ..Default::default() };
        maps.parse();
        maps
    }

    #[test]
    fn every_kind_of_mapping_is_told_apart() {
        let maps = parsed(TEXT);
        let kinds: Vec<_> = maps.list.iter().map(|mapping| mapping.kind).collect();
        use Kind::*;
        assert_eq!(
            kinds,
            [
                PrivateFile,
                Anonymous,
                Object,
                Object,
                Other,
                Object,
                Other,
                Other,
                Anonymous,
                Anonymous,
                Anonymous,
                Other,
                Other,
                Other
            ]
        );
        assert_eq!(maps.signature, (0x7ffd00035000, 0x7ffd00021000));
        assert_eq!(maps.name(&maps.list[0]), "/usr/bin/some thing");
        assert_eq!(maps.list[3].file, (0, 1, 6));
        assert_eq!(maps.list[3].offset, 0x1000);
        assert_eq!(maps.describe(0x7f0000700010), "7f0000700000-7f0000701000 anonymous");
        assert_eq!(maps.private_groups().collect::<Vec<_>>(), [0..1, 1..2, 8..11]);
    }

    #[test]
    fn our_own_mappings_parse_to_the_last_line() {
        let mut maps = Maps::default();
        maps.read(std::process::id() as i32).unwrap();
        assert_eq!(maps.list.len(), maps.text.iter().filter(|&&byte| byte == b'\n').count());
        assert!(maps.vdso.is_some() && maps.signature.1 != 0);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut maps = Maps { text, ..Default::default() };
            maps.parse();
        }

        #[test]
        fn sets_of_spans_are_sets(a in proptest::collection::vec((0u64..60, 0u64..6), 0..12),
                                  b in proptest::collection::vec((0u64..60, 0u64..6), 0..12)) {
            let list = |set: &[(u64, u64)]| {
                let mut list: Vec<_> = set.iter().map(|&(start, len)| Span { start, end: start + len })
                    .filter(|span| span.bytes() > 0).collect();
                Span::unite(&mut list);
                list
            };
            let has = |list: &[Span], at| list.iter().any(|span| span.start <= at && at < span.end);
            let (a, b) = (list(&a), list(&b));
            let rest = Span::without(&a, &b);
            for at in 0..70 {
                prop_assert_eq!(has(&rest, at), has(&a, at) && !has(&b, at));
            }
            prop_assert!(rest.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn what_appeared_is_what_was_not_there_or_was_something_else() {
        let text = |lines: &[&str]| parsed(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        let before = text(&[
            "1000-3000 rw-p 00000000 00:00 0 ",
            "3000-4000 rw-p 00000000 00:00 0 [heap]",
            "6000-8000 rw-p 00000000 fe:00 7 /lib",
            "8000-9000 rw-s 00000000 00:01 5 /dev/zero (deleted)",
        ]);
        let after = text(&[
            "1000-5000 rw-p 00000000 00:00 0 ",
            "5000-9000 rw-s 00000000 00:01 6 /dev/zero (deleted)",
        ]);
        let span = |start, end| Span { start, end };
        // neighbours of one kind that became one are not new; what it grew by is
        assert_eq!(before.unlike(&after.list[0]), [span(0x4000, 0x5000)]);
        assert_eq!(before.unlike(&after.list[1]), [span(0x5000, 0x9000)]);
        assert_eq!(before.unlike(&before.list[2]), []);
        let starts =
            |maps: &Maps, inside| maps.inside(inside).map(|mapping| mapping.span.start).collect::<Vec<_>>();
        assert_eq!(starts(&before, span(0x3000, 0x6000)), [0x3000]);
        assert_eq!(starts(&before, span(0x3fff, 0x6001)), [0x3000, 0x6000]);
        assert_eq!(starts(&after, span(0, 0x10000)), [0x1000, 0x5000]);
    }

    #[test]
    fn a_cut_is_where_mappings_meet_that_did_not() {
        let read = |lines: &[&str]| {
            let text: String =
                lines.iter().map(|range| format!("{range} rw-p 00000000 00:00 0 \n")).collect();
            let mut maps = Maps { text: text.into(), ..Default::default() };
            maps.parse();
            maps
        };
        let span = |start, end| Span { start, end };
        let before = read(&["1000-3000", "3000-4000", "8000-9000"]);
        // they met already, or nothing is beside it
        let same = read(&["1000-3000", "3000-4000", "8000-9000"]);
        assert_eq!(same.cut_off(span(0x1000, 0x3000), &before), []);
        assert_eq!(same.cut_off(span(0x8000, 0x9000), &before), []);
        // it grew, upwards and downwards, and what was registered is a part
        let grown = read(&["1000-3000", "3000-4000", "7000-8000", "8000-9000", "9000-b000"]);
        assert_eq!(
            grown.cut_off(span(0x8000, 0x9000), &before),
            [span(0x8000, 0x9000), span(0x8000, 0x9000)]
        );
        // of several only the one at the border
        let after = read(&["1000-3000", "3000-4000", "4000-6000"]);
        assert_eq!(after.cut_off(span(0x1000, 0x4000), &before), [span(0x3000, 0x4000)]);
    }
}
