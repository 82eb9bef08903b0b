//! What was changed on a file system since somebody asked last, as the kernel tells it (fanotify(7)).
//!
//! The whole file system is listened to (`FAN_MARK_FILESYSTEM`), so nothing has to be told of new directories, and a file is heard of
//! by whatever name, mount or hard link it was changed. The kernel queues an event before the call that made the change returns: whoever
//! asks while the writers stand still has all of them. What is told are hints where to look, never what to believe.
//!
//! The kernel does not tell of writes through a mapping, nor of those of aio(7), before the file is closed: who asks has to add the
//! files that are open or mapped.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::PipeWriter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlink};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use nix::unistd::read;

use super::beneath::Beneath;
use super::entry::magic_link;
use crate::sys;

/// Device and inode (`st_dev`, `st_ino`).
pub(super) type Number = (u64, u64);

/// Whatever can make a directory's or a file's content, names or metadata another.
const CHANGES: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_ONDIR;
/// Those of them that change the directory itself.
const OF_NAMES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
/// So many hints are kept: looking at all is cheaper then.
const MOST_TOLD: usize = 1 << 20;
/// So often events are taken from the kernel at once, some hundreds each time.
const MOST_READ: usize = 2000;
/// So many handles are known by heart.
const MOST_KNOWN: usize = 1 << 16;
/// How long the kernel gathers, and puts together what is the same, in milliseconds.
const GATHER: u16 = 20;

/// Lengths in linux/fanotify.h: of `struct fanotify_event_metadata`, and of what is before the handle's bytes in a `struct
/// fanotify_event_info_fid` (header, file system, length, type).
const EVENT: usize = 24;
const BEFORE_HANDLE: usize = 20;

/// Where something was changed.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Directories and names in them.
    pub names: HashSet<(Number, Vec<u8>)>,
    /// Directories and files, by whatever name.
    pub inodes: HashSet<Number>,
}

/// Listens from when it is made.
pub(super) struct Watch {
    shared: Arc<Shared>,
    /// Closed to end the listener.
    end: Option<PipeWriter>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    group: Fanotify,
    /// Any directory of the file system.
    mount: OwnedFd,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    told: Told,
    /// Something was not told.
    is_lost: bool,
    /// A handle names one inode for good: it has a generation.
    known: HashMap<Box<[u8]>, Number>,
    /// What is changed elsewhere than in this directory and beneath is of no interest.
    within: Option<PathBuf>,
}

impl Watch {
    /// Listens to the file system of a tree.
    ///
    /// # Errors
    /// When the kernel, or the file system, cannot tell all that is needed; `EOPNOTSUPP` for those of which that is not known.
    pub fn begin(tree: &Beneath) -> Result<Self, Errno> {
        // a descriptor of its own: the tree may go first
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Self::listen_at(tree, openat(tree.root(), ".", flags, Mode::empty())?, None)
    }

    /// Listens to what is changed in a directory and beneath, `path` being absolute and without symbolic links. The directory itself
    /// is not open meanwhile, where that can be avoided.
    ///
    /// # Errors
    /// As [`Watch::begin`], or when there is no such directory.
    pub fn within(path: &Path) -> Result<Self, Errno> {
        let tree = Beneath::open(path).map_err(|_| Errno::ENOENT)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let above = nix::fcntl::open(path.parent().unwrap_or(path), flags, Mode::empty())?;
        // paths are those of the mount that the descriptor is on
        let on = |fd: BorrowedFd<'_>| sys::statx(fd, c"").map(|stat| (stat.stx_mask, stat.stx_mnt_id));
        let (here, there) = (on(tree.root())?, on(above.as_fd())?);
        let is_same = here == there && here.0 & libc::STATX_MNT_ID != 0;
        let mount = if is_same { above } else { openat(tree.root(), ".", flags, Mode::empty())? };
        Self::listen_at(&tree, mount, Some(path.to_owned()))
    }

    fn listen_at(tree: &Beneath, mount: OwnedFd, within: Option<PathBuf>) -> Result<Self, Errno> {
        let kind = fstatfs(tree.root())?.filesystem_type();
        if ![EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC].contains(&kind) {
            return Err(Errno::EOPNOTSUPP);
        }
        let reports = libc::FAN_REPORT_DIR_FID | libc::FAN_REPORT_NAME | libc::FAN_REPORT_FID;
        // the queue is emptied all the time, so its length needs no limit; with one, whoever makes many files elsewhere on the file
        // system would have all of the tree looked at
        let flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_UNLIMITED_QUEUE;
        let group = Fanotify::init(flags | InitFlags::from_bits_retain(reports), EventFFlags::empty())?;
        let place = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        group.mark(place, MaskFlags::from_bits_retain(CHANGES), tree.root(), Some("."))?;
        let shared =
            Arc::new(Shared { group, mount, heard: Mutex::new(Heard { within, ..Heard::default() }) });
        let (wait, end) = std::io::pipe().map_err(|_| Errno::EMFILE)?;
        let ear = shared.clone();
        let listener = thread::Builder::new().name("watch".into()).spawn(move || ear.listen(wait.as_fd()));
        Ok(Self { shared, end: Some(end), listener: Some(listener.map_err(|_| Errno::EAGAIN)?) })
    }

    /// What was changed since the last time; none when that is not known of everything.
    pub fn take(&self) -> Option<Told> {
        let mut heard = self.shared.lock();
        self.shared.hear(&mut heard);
        let told = std::mem::take(&mut heard.told);
        (!std::mem::take(&mut heard.is_lost)).then_some(told)
    }
}

impl Drop for Watch {
    /// Nothing of the file system is open any more afterwards: it may be unmounted.
    fn drop(&mut self) {
        self.end = None;
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the kernel's queue, which is short, as it fills.
    fn listen(&self, end: BorrowedFd<'_>) {
        let end = || PollFd::new(end, PollFlags::POLLIN);
        loop {
            let mut either = [end(), PollFd::new(self.group.as_fd(), PollFlags::POLLIN)];
            match poll(&mut either, PollTimeout::NONE) {
                Ok(_) if either[0].any() == Some(true) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            match poll(&mut [end()], PollTimeout::from(GATHER)) {
                Ok(0) | Err(Errno::EINTR) => self.hear(&mut self.lock()),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Takes all events that there are; that is not known of all where more come all the time.
    fn hear(&self, heard: &mut Heard) {
        let mut buffer = vec![0; 64 << 10];
        for _ in 0..MOST_READ {
            match read(&self.group, &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Ok(length) => self.note_all(&buffer[..length], heard),
                Err(errno) => {
                    tracing::warn!(%errno, "changes of files are not told any more");
                    heard.is_lost = true;
                    return;
                }
            }
        }
        heard.is_lost = true;
    }

    fn note_all(&self, mut events: &[u8], heard: &mut Heard) {
        while let Some((event, rest)) = Event::first(events) {
            if event.mask & libc::FAN_Q_OVERFLOW != 0 || self.note(&event, heard).is_err() {
                heard.is_lost = true;
            }
            events = rest;
        }
        if !events.is_empty() || heard.told.names.len() + heard.told.inodes.len() > MOST_TOLD {
            heard.is_lost = true;
        }
        if heard.is_lost {
            heard.told = Told::default();
        }
    }

    fn note(&self, event: &Event<'_>, heard: &mut Heard) -> Result<(), Errno> {
        for record in event.records() {
            let Some(record) = record else { return Err(Errno::EBADMSG) };
            if let Some(within) = &heard.within {
                if record.is_directory {
                    heard.told.inodes.extend(self.number_within(&record, within)?);
                }
                continue;
            }
            let number = match heard.known.get(record.handle) {
                Some(number) => *number,
                None => match self.number(&record) {
                    Ok(number) => {
                        if heard.known.len() >= MOST_KNOWN {
                            heard.known.clear();
                        }
                        heard.known.insert(record.handle.into(), number);
                        number
                    }
                    // its directory has told that it is gone
                    Err(Errno::ESTALE) => continue,
                    Err(errno) => return Err(errno),
                },
            };
            match record.name {
                Some(name) if name != b"." => {
                    heard.told.names.insert((number, name.to_vec()));
                    if event.mask & OF_NAMES != 0 {
                        heard.told.inodes.insert(number);
                    }
                }
                _ => drop(heard.told.inodes.insert(number)),
            }
        }
        Ok(())
    }

    fn open(&self, record: &Record<'_>) -> Result<OwnedFd, Errno> {
        let kind = i32::from_ne_bytes(four(record.handle, 4));
        sys::open_by_handle(self.mount.as_fd(), kind, &record.handle[8..])
    }

    fn number(&self, record: &Record<'_>) -> Result<Number, Errno> {
        let stat = fstat(&self.open(record)?)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Of a directory that, as it is called now, is this one or beneath it, or in which this one got or lost its name.
    fn number_within(&self, record: &Record<'_>, within: &Path) -> Result<Option<Number>, Errno> {
        let open = match self.open(record) {
            Ok(open) => open,
            // what was in it, and its own end, is told of those above it
            Err(Errno::ESTALE) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let path = PathBuf::from(readlink(&*magic_link(open.as_fd()))?);
        let named = record.name.map(|name| path.join(OsStr::from_bytes(name)));
        let is_within = path.starts_with(within) || named.is_some_and(|named| named == within);
        let stat = fstat(&open)?;
        Ok(is_within.then_some((stat.st_dev, stat.st_ino)))
    }
}

/// Tells whether anything was changed in a directory or beneath it.
pub struct ChangeNotice(Watch);

impl ChangeNotice {
    /// For the directory at `path`, which is absolute and without symbolic links; from now on.
    ///
    /// # Errors
    /// When the kernel or the file system cannot tell, or there is no such directory.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self(Watch::within(path)?))
    }

    /// Whether anything was changed since the last time; also when that is not known.
    pub fn has_come(&self) -> bool {
        self.0.take().is_none_or(|told| !told.inodes.is_empty())
    }
}

/// A `struct fanotify_event_metadata` with what follows it.
struct Event<'a> {
    mask: u64,
    records: &'a [u8],
}

/// A `struct fanotify_event_info_fid`.
struct Record<'a> {
    /// The whole `struct file_handle`: length, type, bytes.
    handle: &'a [u8],
    /// In the directory that the handle leads to.
    name: Option<&'a [u8]>,
    /// The handle leads to a directory.
    is_directory: bool,
}

fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    let mut four = [0; 4];
    if let Some(there) = bytes.get(at..at + 4) {
        four.copy_from_slice(there);
    }
    four
}

impl<'a> Event<'a> {
    /// The first of several, and the others; none when there is none, or nothing that could be one.
    fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = u32::from_ne_bytes(four(bytes, 0)) as usize;
        let metadata = usize::from(u16::from_ne_bytes([*bytes.get(6)?, *bytes.get(7)?]));
        if length < EVENT || metadata < EVENT || bytes[4] != libc::FANOTIFY_METADATA_VERSION {
            return None;
        }
        let mask = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        let records = bytes.get(metadata..length)?;
        Some((Self { mask, records }, &bytes[length..]))
    }

    /// Where it was; none in the place of what cannot be understood.
    fn records(&self) -> impl Iterator<Item = Option<Record<'a>>> {
        let mut rest = self.records;
        std::iter::from_fn(move || {
            let kind = *rest.first()?;
            let length = usize::from(u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]));
            let Some(record) = rest.get(..length).filter(|_| length >= BEFORE_HANDLE) else {
                rest = &[];
                return Some(None);
            };
            rest = &rest[length..];
            Some(Record::of(kind, record))
        })
    }
}

impl<'a> Record<'a> {
    fn of(kind: u8, bytes: &'a [u8]) -> Option<Self> {
        let length = u32::from_ne_bytes(four(bytes, 12)) as usize;
        let handle = bytes.get(12..BEFORE_HANDLE + length)?;
        let behind = &bytes[BEFORE_HANDLE + length..];
        let name = match kind {
            libc::FAN_EVENT_INFO_TYPE_FID | libc::FAN_EVENT_INFO_TYPE_DFID => None,
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => behind.split(|byte| *byte == 0).next(),
            _ => return None,
        };
        Some(Self { handle, name, is_directory: kind != libc::FAN_EVENT_INFO_TYPE_FID })
    }
}

#[cfg(test)]
mod tests;
