//! A page server on a socket pair: CRIU sends it all pages, and it keeps those that changed (CRIU's page-xfer.c).
//!
//! Over TCP CRIU's last message lies in a corked socket for 200 ms; over a unix socket it does not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::PageFilter;
use super::take::PagemapName;
use crate::binary::Version;
use crate::error::CriuError;
use crate::images::file::create_private;
use crate::images::pagemap::{PE_LAZY, PE_PARENT, PE_PRESENT};
use crate::images::{ImageError, PAGE_SIZE, Pagemap, PagemapEntry};

/// Numbers of pages files that page servers write begin behind this one (image.c, up_page_ids_base).
const FIRST_PAGES_ID: u32 = 0x1_0000;
/// Pages read at once.
const AT_ONCE: u64 = 256;
/// Most pages in one message: all that an address space can have.
const MAX_PAGES: u64 = 1 << 36;

const ADD_PAGES: u32 = 1;
const HOLE: u32 = 2;
const OPEN2: u32 = 4;
const PARENT: u32 = 5;
const ADD_PAGES_WITH_FLAGS: u32 = 6;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;

/// The layout of a message, in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// u32 command, u32 pages, u64 address, u64 id: CRIU before 4.2.
    Short,
    /// u32 command, padding, u64 pages, u64 address, u64 id: CRIU 4.2 and newer.
    Long,
}

impl Frame {
    /// The one that this CRIU speaks.
    pub(super) fn of(version: Version) -> Frame {
        if version < (Version { major: 4, minor: 2, sublevel: 0 }) { Frame::Short } else { Frame::Long }
    }

    fn size(self) -> usize {
        match self {
            Frame::Short => 24,
            Frame::Long => 32,
        }
    }

    fn parse(self, bytes: &[u8; 32]) -> Message {
        let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| {
            let (words, _) = bytes.as_chunks::<8>();
            u64::from_ne_bytes(words[at / 8])
        };
        let (pages, vaddr, id) = match self {
            Frame::Short => (u32_at(4).into(), u64_at(8), u64_at(16)),
            Frame::Long => (u64_at(8), u64_at(16), u64_at(24)),
        };
        Message { command: u32_at(0) & 0xffff, flags: u32_at(0) >> 16, pages, vaddr, id }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    command: u32,
    flags: u32,
    pages: u64,
    vaddr: u64,
    id: u64,
}

/// Whose pages follow: the id's low byte says which kind it is.
fn name_of(id: u64) -> Option<PagemapName> {
    match id & 0xff {
        1 => u32::try_from(id >> 8).ok().map(PagemapName::Task),
        2 => Some(PagemapName::Shared(id >> 8)),
        _ => None,
    }
}

/// A running server.
pub(super) struct Server {
    thread: JoinHandle<(io::Result<u64>, Option<PageFilter>)>,
}

impl Server {
    /// Starts one that writes into `images`, and the socket for CRIU. `unchanged` says of a task's page whether it is to be
    /// dropped; shared memory is kept whole, for CRIU restores it.
    pub(super) fn start(
        images: &Path,
        frame: Frame,
        unchanged: Option<PageFilter>,
    ) -> Result<(Server, OwnedFd), CriuError> {
        let (ours, theirs) =
            UnixStream::pair().map_err(CriuError::io("cannot make a socket pair for pages"))?;
        let mut receiver = Receiver {
            socket: ours,
            frame,
            images: images.to_owned(),
            unchanged,
            open: None,
            opened: 0,
            dropped: 0,
        };
        let thread = std::thread::Builder::new()
            .name("page-server".into())
            .spawn(move || (receiver.serve(), receiver.unchanged))
            .map_err(CriuError::io("cannot start the page server"))?;
        Ok((Server { thread }, theirs.into()))
    }

    /// Waits for its end, which comes with CRIU's. Returns the number of dropped pages, and the filter.
    pub(super) fn finish(self) -> (Result<u64, CriuError>, Option<PageFilter>) {
        match self.thread.join() {
            Ok((result, filter)) => (result.map_err(CriuError::io("the page server failed")), filter),
            Err(_) => (Err(CriuError::io("the page server failed")(io::Error::other("it panicked"))), None),
        }
    }
}

struct Receiver {
    socket: UnixStream,
    frame: Frame,
    images: PathBuf,
    unchanged: Option<PageFilter>,
    open: Option<Image>,
    opened: u32,
    dropped: u64,
}

/// An image being received.
struct Image {
    name: PagemapName,
    map: Pagemap,
    pages: File,
}

impl Image {
    fn add(&mut self, vaddr: u64, flags: u32, pages: &[u8]) -> io::Result<()> {
        self.pages.write_all(pages)?;
        let nr_pages = pages.len() as u64 / PAGE_SIZE;
        match self.map.entries.last_mut() {
            Some(last) if last.end() == vaddr && last.flags == flags => last.nr_pages += nr_pages,
            _ => self.map.entries.push(PagemapEntry { vaddr, nr_pages, flags }),
        }
        Ok(())
    }
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn written(error: ImageError) -> io::Error {
    match error {
        ImageError::Io { source, .. } => source,
        other => io::Error::other(other),
    }
}

impl Receiver {
    /// Until CRIU closes; the number of dropped pages.
    fn serve(&mut self) -> io::Result<u64> {
        let result = self.receive();
        if result.is_err() {
            // A failure here makes the dump fail, and CRIU puts the tasks back as they were.
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
        result.map(|()| self.dropped)
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            let mut bytes = [0; 32];
            let size = self.frame.size();
            self.socket.read_exact(&mut bytes[..size])?;
            let message = self.frame.parse(&bytes);
            match message.command {
                OPEN2 => {
                    self.open(message.id)?;
                    // There is no parent here.
                    self.socket.write_all(&[0])?;
                }
                PARENT => self.socket.write_all(&0i32.to_ne_bytes())?,
                // Before there were flags a page was just there.
                ADD_PAGES => self.pages(Message { flags: PE_PRESENT, ..message })?,
                ADD_PAGES_WITH_FLAGS => self.pages(message)?,
                HOLE => return Err(broken("a hole without a parent")),
                CLOSE | FORCE_CLOSE => {
                    self.close()?;
                    return self.socket.write_all(&0i32.to_ne_bytes());
                }
                other => return Err(broken(format!("unknown command {other:#x}"))),
            }
        }
    }

    fn open(&mut self, id: u64) -> io::Result<()> {
        self.close()?;
        let name = name_of(id).ok_or_else(|| broken(format!("pages of nothing known: {id:#x}")))?;
        self.opened += 1;
        let map = Pagemap { pages_id: FIRST_PAGES_ID + self.opened, entries: Vec::new() };
        let pages = create_private(&self.images.join(map.pages_name())).map_err(written)?;
        self.open = Some(Image { name, map, pages });
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some(image) => image.map.write(&self.images.join(image.name.file_name())).map_err(written),
            None => Ok(()),
        }
    }

    fn pages(&mut self, message: Message) -> io::Result<()> {
        let Message { mut vaddr, flags, .. } = message;
        let image = self.open.as_mut().ok_or_else(|| broken("pages before an image"))?;
        let end =
            (message.pages <= MAX_PAGES).then(|| vaddr.checked_add(message.pages * PAGE_SIZE)).flatten();
        let end = end.ok_or_else(|| broken("too many pages"))?;
        let flags = flags & (PE_PRESENT | PE_LAZY | PE_PARENT);
        if flags & PE_PRESENT == 0 || flags & PE_PARENT != 0 || vaddr % PAGE_SIZE != 0 {
            return Err(broken(format!("pages that are not there: flags {flags}")));
        }
        if image.map.entries.last().is_some_and(|last| last.end() > vaddr) {
            return Err(broken("pages do not ascend"));
        }
        let mut buffer = vec![0; (AT_ONCE * PAGE_SIZE).min(end - vaddr) as usize];
        while vaddr < end {
            let part = &mut buffer[..(AT_ONCE * PAGE_SIZE).min(end - vaddr) as usize];
            self.socket.read_exact(part)?;
            match (&mut self.unchanged, image.name) {
                (Some(unchanged), PagemapName::Task(_)) => {
                    for (page, at) in
                        part.chunks_exact(PAGE_SIZE as usize).zip((vaddr..).step_by(PAGE_SIZE as usize))
                    {
                        if unchanged(image.name, at, page) {
                            self.dropped += 1;
                        } else {
                            image.add(at, flags, page)?;
                        }
                    }
                }
                _ => image.add(vaddr, flags, part)?,
            }
            vaddr += part.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pageless::take_pages;
    use proptest::prelude::*;

    fn encode(frame: Frame, command: u32, flags: u32, pages: u64, vaddr: u64, id: u64) -> Vec<u8> {
        let mut out = (command | flags << 16).to_ne_bytes().to_vec();
        match frame {
            Frame::Short => out.extend((pages as u32).to_ne_bytes()),
            Frame::Long => {
                out.extend([0xaa; 4]);
                out.extend(pages.to_ne_bytes());
            }
        }
        out.extend(vaddr.to_ne_bytes());
        out.extend(id.to_ne_bytes());
        out
    }

    #[test]
    fn frames_of_the_versions() {
        let version = |major, minor, sublevel| Version { major, minor, sublevel };
        assert_eq!(Frame::of(version(3, 17, 1)), Frame::Short);
        assert_eq!(Frame::of(version(4, 1, 1)), Frame::Short);
        assert_eq!(Frame::of(version(4, 2, 0)), Frame::Long);
        assert_eq!(Frame::of(version(5, 0, 0)), Frame::Long);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_understood(command in 0u32..1 << 16, flags in 0u32..1 << 16, pages in any::<u32>(), vaddr in any::<u64>(), id in any::<u64>()) {
            for frame in [Frame::Short, Frame::Long] {
                let sent = encode(frame, command, flags, pages.into(), vaddr, id);
                prop_assert_eq!(sent.len(), frame.size());
                let mut bytes = [0; 32];
                bytes[..sent.len()].copy_from_slice(&sent);
                prop_assert_eq!(frame.parse(&bytes), Message { command, flags, pages: pages.into(), vaddr, id });
            }
        }
    }

    fn task(pid: u64) -> u64 {
        pid << 8 | 1
    }

    #[test]
    fn pages_are_kept_or_dropped_and_shared_ones_kept() {
        for frame in [Frame::Short, Frame::Long] {
            let dir = tempfile::tempdir().unwrap();
            let images = dir.path().to_owned();
            let odd: PageFilter = Box::new(|name, vaddr, page| {
                assert_eq!(name, PagemapName::Task(7));
                assert!(page.iter().all(|byte| u64::from(*byte) == vaddr >> 12 & 0xff));
                vaddr >> 12 & 1 == 1
            });
            let (server, theirs) = Server::start(&images, frame, Some(odd)).unwrap();
            let mut criu = UnixStream::from(theirs);
            let content = |first: u64, count: u64| {
                (first..first + count).flat_map(|n| [n as u8; 4096]).collect::<Vec<u8>>()
            };
            let mut answer = [9; 4];
            criu.write_all(&encode(frame, PARENT, 0, 0, 0, task(7))).unwrap();
            criu.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [0; 4]);
            criu.write_all(&encode(frame, OPEN2, 0, 0, 0, task(7))).unwrap();
            criu.read_exact(&mut answer[..1]).unwrap();
            criu.write_all(&encode(frame, ADD_PAGES_WITH_FLAGS, 6, 300, 0x10000, task(7))).unwrap();
            criu.write_all(&content(0x10, 300)).unwrap();
            criu.write_all(&encode(frame, OPEN2, 0, 0, 0, 99 << 8 | 2)).unwrap();
            criu.read_exact(&mut answer[..1]).unwrap();
            criu.write_all(&encode(frame, ADD_PAGES_WITH_FLAGS, 4, 3, 0x1000, 99 << 8 | 2)).unwrap();
            criu.write_all(&content(0x1, 3)).unwrap();
            criu.write_all(&encode(frame, FORCE_CLOSE, 0, 0, 0, 0)).unwrap();
            criu.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [0; 4]);
            let (dropped, filter) = server.finish();
            assert_eq!(dropped.unwrap(), 150);
            assert!(filter.is_some());
            let mut seen = Vec::new();
            let taken = take_pages::<ImageError>(&images, &mut |_, vaddr, page| {
                seen.push(vaddr);
                assert!(page.iter().all(|byte| u64::from(*byte) == vaddr >> 12 & 0xff));
                Ok(())
            })
            .unwrap();
            assert_eq!((taken.pages, taken.shared), (150, [(99, 3)].into()));
            assert_eq!(seen, (0..150).map(|i| 0x10000 + i * 0x2000).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn nonsense_ends_it() {
        let ends = |sent: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            let (server, theirs) = Server::start(dir.path(), Frame::Long, None).unwrap();
            let mut criu = UnixStream::from(theirs);
            criu.write_all(sent).unwrap();
            drop(criu);
            assert!(server.finish().0.is_err(), "{sent:?}");
        };
        let open = encode(Frame::Long, OPEN2, 0, 0, 0, task(1));
        ends(&[]);
        ends(&[0; 32]);
        ends(&encode(Frame::Long, OPEN2, 0, 0, 0, 9));
        ends(&encode(Frame::Long, ADD_PAGES_WITH_FLAGS, 4, 1, 0x1000, task(1)));
        for (flags, pages, vaddr) in
            [(4, u64::MAX, 0x1000), (4, 1, 0x1001), (1, 1, 0x1000), (0, 1, 0x1000), (4, 2, 0x1000)]
        {
            ends(
                &[
                    &open[..],
                    &encode(Frame::Long, ADD_PAGES_WITH_FLAGS, flags, pages, vaddr, task(1)),
                    &[0; 4096],
                ]
                .concat(),
            );
        }
        ends(&[&open[..], &encode(Frame::Long, HOLE, 0, 1, 0x1000, task(1))].concat());
    }
}
