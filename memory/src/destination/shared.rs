//! Shared objects (anonymous shared memory, memfds, System V segments): CRIU makes them anew, empty, and while the restored
//! tree is still held their pages are written into them through one of the tasks that have them.

use crate::destination::{Content, PageStore};
use crate::source::maps::{Kind, Mapping, Maps, Span};
use crate::{ImageId, PAGE_SIZE, SharedDoor, SharedObject};
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes that are written and read back at a time.
const CHUNK: u64 = 1 << 20;
/// Below this one thread does it, in bytes.
const PARALLEL_FROM: u64 = 32 << 20;

/// Why an object could not be filled. The restored tasks must not run then: they would find zeroes.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// None of its tasks is there, or none lets it be written.
    #[error("no way into the shared object `{name}`: {reason}")]
    NoWay {
        /// Its name.
        name: String,
        /// What was tried last.
        reason: String,
    },
    /// It is shorter than it was.
    #[error("the shared object `{name}` was restored with {got} bytes instead of {wanted}")]
    Length {
        /// Its name.
        name: String,
        /// Its length here, in bytes.
        got: u64,
        /// Its length at the source, in bytes.
        wanted: u64,
    },
    /// Tasks that shared it have different objects now.
    #[error("the shared object `{name}` of task {first} is not that of task {other} after the restore")]
    Torn {
        /// Its name.
        name: String,
        /// A task, in its own pid namespace.
        first: u32,
        /// Another task.
        other: u32,
    },
    /// Reading or writing failed.
    #[error("cannot fill the shared object `{name}` at {offset:#x}: {source}")]
    Io {
        /// Its name.
        name: String,
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// What was read back is not what was written.
    #[error("the shared object `{name}` at {offset:#x} does not hold what was written to it")]
    Content {
        /// Its name.
        name: String,
        /// Where.
        offset: u64,
    },
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SharedFilled {
    /// Pages written.
    pub pages: u64,
    /// Tasks and descriptors that were seen to have the same object.
    pub doors: u64,
    /// It was written through the memory of tasks (/proc/PID/mem) since its file could not be.
    pub by_memory: bool,
    /// How long it took.
    pub seconds: f64,
    /// Device and inode of the object.
    pub identity: (u64, u64),
}

/// A mapping to write through, with the task's memory.
struct Window {
    memory: File,
    start: u64,
    offset: u64,
    end: u64,
}

/// How the object is written and read back.
enum Way {
    File(File),
    Windows(Vec<Window>),
}

/// Writes an object's pages into the restored, held tree. `pid_of` gives a task's number here by that in its own pid
/// namespace. Pages the store does not know are left as CRIU made them: zero.
pub fn fill_shared(
    store: &PageStore,
    object: &SharedObject,
    pid_of: impl Fn(u32) -> Option<i32>,
) -> Result<SharedFilled, SharedError> {
    let start = Instant::now();
    let runs = store.runs(ImageId::Shared(object.number), None);
    let (doors, identity) = same_object(object, &pid_of)?;
    let mut by_memory = false;
    let pages = match open_file(object, &pid_of) {
        Ok(file) => match fill(store, object, &runs, &Way::File(file)) {
            // Sealed, or open for reading only: whoever has it mapped for writing still can.
            Err(SharedError::Io { source, .. }) if is_refusal(&source) => {
                by_memory = true;
                fill(store, object, &runs, &windows(object, &pid_of))?
            }
            result => result?,
        },
        Err(reason) => {
            by_memory = true;
            tracing::info!(object.name, reason, "a shared object is written through the memory of its tasks");
            match fill(store, object, &runs, &windows(object, &pid_of)) {
                Err(SharedError::NoWay { name, .. }) => return Err(SharedError::NoWay { name, reason }),
                result => result?,
            }
        }
    };
    Ok(SharedFilled { pages, doors, by_memory, seconds: start.elapsed().as_secs_f64(), identity })
}

/// Whether everybody still has the object that was filled, and nobody has lost it: for one that was filled before the
/// restore had come to its end.
pub fn is_still_shared(
    object: &SharedObject,
    filled: &SharedFilled,
    pid_of: impl Fn(u32) -> Option<i32>,
) -> bool {
    same_object(object, &pid_of).is_ok_and(|now| now == (filled.doors, filled.identity))
}

fn is_refusal(error: &std::io::Error) -> bool {
    matches!(Errno::from_raw(error.raw_os_error().unwrap_or(0)), Errno::EPERM | Errno::EACCES | Errno::EBADF)
}

/// The way to a door in /proc, and the task.
fn path(door: &SharedDoor, pid_of: &impl Fn(u32) -> Option<i32>) -> Option<(u32, String)> {
    match *door {
        SharedDoor::Mapping { vpid, start, end, offset } => {
            let pid = pid_of(vpid)?;
            let exact = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
            let is_there = std::fs::symlink_metadata(&exact).is_ok();
            Some((vpid, if is_there { exact } else { joined(pid, start, offset).unwrap_or(exact) }))
        }
        SharedDoor::Descriptor { vpid, fd } => Some((vpid, format!("/proc/{}/fd/{fd}", pid_of(vpid)?))),
    }
}

/// The way to what is mapped at an address with that offset. Neighbours that were two mappings at the source, since a
/// tracker had cut them or a page had been protected and released, are one after the restore.
fn joined(pid: i32, start: u64, offset: u64) -> Option<String> {
    let mut maps = Maps::default();
    maps.read(pid).ok()?;
    let around = |mapping: &&Mapping| mapping.span.start <= start && start < mapping.span.end;
    let mapping = maps.list.iter().find(around)?;
    let Span { start: first, end: last } = mapping.span;
    (mapping.kind == Kind::Object && mapping.offset + (start - first) == offset)
        .then(|| format!("/proc/{pid}/map_files/{first:x}-{last:x}"))
}

/// Checks that everybody has the same object, of the right length. Gives how many doors there are, and which object it is.
fn same_object(
    object: &SharedObject,
    pid_of: &impl Fn(u32) -> Option<i32>,
) -> Result<(u64, (u64, u64)), SharedError> {
    let name = || object.name.clone();
    let mut first = None;
    let mut doors = 0;
    for door in &object.doors {
        let Some((vpid, path)) = path(door, pid_of) else { continue };
        // A task that is gone, or a mapping that is not there: others must do.
        let Ok(metadata) = std::fs::metadata(path) else { continue };
        if metadata.len() < object.bytes {
            return Err(SharedError::Length { name: name(), got: metadata.len(), wanted: object.bytes });
        }
        let identity = (metadata.dev(), metadata.ino());
        match first {
            Some((other, seen)) if seen != identity => {
                return Err(SharedError::Torn { name: name(), first: other, other: vpid });
            }
            _ => first = Some((vpid, identity)),
        }
        doors += 1;
    }
    match first {
        None => Err(SharedError::NoWay { name: name(), reason: "none of its tasks has it".into() }),
        Some((_, identity)) => Ok((doors, identity)),
    }
}

/// The object's file, through the first door that lets it be written.
fn open_file(object: &SharedObject, pid_of: &impl Fn(u32) -> Option<i32>) -> Result<File, String> {
    let mut reason = String::from("no task is there");
    for door in &object.doors {
        let Some((_, path)) = path(door, pid_of) else { continue };
        match File::options().read(true).write(true).open(&path) {
            Ok(file) => return Ok(file),
            Err(error) => reason = format!("cannot open `{path}`: {error}"),
        }
    }
    Err(reason)
}

fn windows(object: &SharedObject, pid_of: &impl Fn(u32) -> Option<i32>) -> Way {
    let window = |door: &SharedDoor| match *door {
        SharedDoor::Mapping { vpid, start, end, offset } => {
            let path = format!("/proc/{}/mem", pid_of(vpid)?);
            let memory = File::options().read(true).write(true).open(path).ok()?;
            Some(Window { memory, start, offset, end: offset + (end - start) })
        }
        SharedDoor::Descriptor { .. } => None,
    };
    Way::Windows(object.doors.iter().filter_map(window).collect())
}

impl Way {
    fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.write_all_at(bytes, offset),
            Self::Windows(windows) => through(windows, bytes.len(), offset, |memory, range, at| {
                memory.write_all_at(&bytes[range], at)
            }),
        }
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, offset),
            Self::Windows(windows) => through(windows, bytes.len(), offset, |memory, range, at| {
                memory.read_exact_at(&mut bytes[range], at)
            }),
        }
    }
}

/// Does something to a range of the object piece by piece, each through a window it lies in.
fn through(
    windows: &[Window],
    len: usize,
    offset: u64,
    mut act: impl FnMut(&File, std::ops::Range<usize>, u64) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let mut result = Err(std::io::Error::from_raw_os_error(Errno::EACCES as i32));
        // One that is mapped for reading only refuses: another may do.
        for window in windows.iter().filter(|window| (window.offset..window.end).contains(&at)) {
            let part = (len - done).min((window.end - at) as usize);
            result = act(&window.memory, done..done + part, window.start + (at - window.offset));
            if result.is_ok() {
                done += part;
                break;
            }
        }
        result?;
    }
    Ok(())
}

/// Writes all runs and reads them back, with several threads if it is much. Gives the number of pages.
fn fill(
    store: &PageStore,
    object: &SharedObject,
    runs: &[(crate::PageRun, Content)],
    way: &Way,
) -> Result<u64, SharedError> {
    if matches!(way, Way::Windows(windows) if windows.is_empty()) {
        return Err(SharedError::NoWay { name: object.name.clone(), reason: "nobody has it mapped".into() });
    }
    let mut pieces = Vec::new();
    for (run, content) in runs {
        for from in (0..run.pages).step_by((CHUNK / PAGE_SIZE) as usize) {
            let pages = (run.pages - from).min(CHUNK / PAGE_SIZE);
            let content = match *content {
                Content::Slot(first) => Content::Slot(first + from as u32),
                Content::Zero => Content::Zero,
            };
            pieces.push((run.start + from * PAGE_SIZE, pages, content));
        }
    }
    let pages: u64 = pieces.iter().map(|(_, pages, _)| pages).sum();
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let threads = if pages * PAGE_SIZE < PARALLEL_FROM { 1 } else { processors };
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut buffer = vec![0; CHUNK as usize];
        while let Some((offset, pages, content)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let bytes = match content {
                Content::Slot(first) => store.slice(*first, *pages),
                Content::Zero => &[],
            };
            let result = put(object, way, *offset, pages * PAGE_SIZE, bytes, &mut buffer);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
                return result;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(theirs);
        }
        result
    })?;
    Ok(pages)
}

/// Writes a piece (zeroes if `bytes` is empty) and reads it back.
fn put(
    object: &SharedObject,
    way: &Way,
    offset: u64,
    len: u64,
    bytes: &[u8],
    buffer: &mut [u8],
) -> Result<(), SharedError> {
    let io = |source| SharedError::Io { name: object.name.clone(), offset, source };
    let back = &mut buffer[..len as usize];
    // An object's last page may be shorter than a page; it is zero behind its end.
    let len = len.min(object.bytes.saturating_sub(offset).next_multiple_of(PAGE_SIZE));
    let back = match way {
        Way::File(_) => &mut back[..len.min(object.bytes.saturating_sub(offset)) as usize],
        Way::Windows(_) => &mut back[..len as usize],
    };
    if back.is_empty() {
        return Ok(());
    }
    if bytes.is_empty() {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match way {
            Way::File(file) => nix::fcntl::fallocate(file, hole, offset as i64, back.len() as i64)
                .map_err(|errno| io(errno.into()))?,
            Way::Windows(_) => {
                back.fill(0);
                way.write(back, offset).map_err(io)?;
            }
        }
        return Ok(());
    }
    let bytes = bytes.get(..back.len()).ok_or_else(|| io(std::io::ErrorKind::InvalidData.into()))?;
    way.write(bytes, offset).map_err(io)?;
    way.read(back, offset).map_err(io)?;
    match back == bytes {
        true => Ok(()),
        false => Err(SharedError::Content { name: object.name.clone(), offset }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageRun;
    use crate::batch::{BatchBuilder, Kind, Run};
    use crate::sys::mapping::{Mapping, memfd};
    use std::os::fd::AsRawFd;

    const PAGES: u64 = 20_000;

    /// Page 5 is zero, all others are not; pages from the middle on are not known.
    fn store() -> PageStore {
        let store = PageStore::reserve(PAGES).unwrap();
        let apply = |start: u64, pages: u64, kind| {
            let mut builder = BatchBuilder::default();
            let data: Vec<u8> = match kind {
                Kind::Data { .. } => (0..pages).flat_map(|page| [(start + page) as u8 | 1; 4096]).collect(),
                _ => Vec::new(),
            };
            let pages = PageRun { start: start * PAGE_SIZE, pages };
            builder.push(Run { image: ImageId::Shared(3), pages, kind }, &data);
            store.apply(&builder.finish()).unwrap();
        };
        for start in (0..PAGES / 2).step_by(500) {
            apply(start, 500, Kind::Data { first: (PAGES / 2 - 500 - start) as u32 });
        }
        apply(5, 1, Kind::Zero);
        store
    }

    fn expected(page: u64) -> u8 {
        match page {
            5 => 0,
            page if page < PAGES / 2 => page as u8 | 1,
            _ => 0,
        }
    }

    fn check(file: &File, bytes: u64) {
        let mut got = vec![9; PAGE_SIZE as usize];
        for page in 0..bytes.div_ceil(PAGE_SIZE) {
            let len = PAGE_SIZE.min(bytes - page * PAGE_SIZE) as usize;
            file.read_exact_at(&mut got[..len], page * PAGE_SIZE).unwrap();
            assert!(got[..len].iter().all(|byte| *byte == expected(page)), "page {page}");
        }
    }

    fn mapped(file: &File) -> SharedDoor {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inode = format!(" {} ", file.metadata().unwrap().ino());
        let line = maps.lines().find(|line| line.contains(&inode)).unwrap();
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        SharedDoor::Mapping { vpid: 1, start: hex(start), end: hex(end), offset: 0 }
    }

    fn object(bytes: u64, doors: Vec<SharedDoor>) -> SharedObject {
        SharedObject { number: 3, inode: 0, bytes, name: "/memfd:test (deleted)".into(), doors }
    }

    fn own(vpid: u32) -> Option<i32> {
        (vpid < 5).then_some(std::process::id() as i32)
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        assert!(root || std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "needs root for map_files");
        root
    }

    #[test]
    fn fills_through_a_mapping_and_a_descriptor() {
        if !is_root() {
            return;
        }
        let store = store();
        // Not whole pages: the last one is cut.
        let bytes = PAGES * PAGE_SIZE - 100;
        for only_descriptor in [false, true] {
            let file = memfd(c"test", bytes).unwrap();
            file.write_all_at(&[1; 4096], 5 * PAGE_SIZE).unwrap();
            let _mapping = Mapping::read_only(&file, bytes).unwrap();
            let descriptor = SharedDoor::Descriptor { vpid: 2, fd: file.as_raw_fd() };
            let gone = SharedDoor::Descriptor { vpid: 7, fd: 0 };
            let doors = match only_descriptor {
                true => vec![gone, descriptor],
                false => vec![gone, mapped(&file), descriptor],
            };
            let filled = fill_shared(&store, &object(bytes, doors), own).unwrap();
            assert_eq!((filled.pages, filled.by_memory), (PAGES / 2, false));
            assert_eq!(filled.doors, if only_descriptor { 1 } else { 2 });
            check(&file, bytes);
        }
    }

    #[test]
    fn two_mappings_that_became_one_are_doors() {
        if !is_root() {
            return;
        }
        let bytes = PAGES * PAGE_SIZE;
        let file = memfd(c"test", bytes).unwrap();
        let _mapping = Mapping::read_only(&file, bytes).unwrap();
        let SharedDoor::Mapping { vpid, start, end, .. } = mapped(&file) else { unreachable!() };
        let cut = start + 7 * PAGE_SIZE;
        let door = |start, end, offset| SharedDoor::Mapping { vpid, start, end, offset };
        let doors = vec![door(start, cut, 0), door(cut, end, cut - start)];
        let filled = fill_shared(&store(), &object(bytes, doors), own).unwrap();
        assert_eq!((filled.doors, filled.by_memory), (2, false));
        check(&file, bytes);
        // what is mapped there is another part of the object
        let wrong = fill_shared(&store(), &object(bytes, vec![door(cut, end, 0)]), own);
        assert!(matches!(wrong, Err(SharedError::NoWay { .. })));
    }

    #[test]
    fn fills_a_sealed_object_through_the_memory_of_its_task() {
        if !is_root() {
            return;
        }
        let bytes = PAGES * PAGE_SIZE;
        let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(nix::sys::memfd::memfd_create(c"test", flags).unwrap());
        file.set_len(bytes).unwrap();
        let _mapping = Mapping::writable(&file, bytes).unwrap();
        let seal = nix::fcntl::SealFlag::from_bits_retain(nix::libc::F_SEAL_FUTURE_WRITE);
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(seal)).unwrap();
        let filled = fill_shared(&store(), &object(bytes, vec![mapped(&file)]), own).unwrap();
        assert!(filled.by_memory);
        check(&file, bytes);
    }

    #[test]
    fn what_is_not_the_same_object_is_not_filled() {
        let bytes = PAGES * PAGE_SIZE;
        let files = [memfd(c"test", bytes).unwrap(), memfd(c"test", bytes).unwrap()];
        let door = |at: usize| SharedDoor::Descriptor { vpid: at as u32, fd: files[at].as_raw_fd() };
        let store = store();
        let fill = |bytes, doors| fill_shared(&store, &object(bytes, doors), own);
        assert!(matches!(
            fill(bytes, vec![door(0), door(1)]),
            Err(SharedError::Torn { first: 0, other: 1, .. })
        ));
        assert!(matches!(fill(bytes + 1, vec![door(0)]), Err(SharedError::Length { .. })));
        let gone = SharedDoor::Descriptor { vpid: 9, fd: 0 };
        assert!(matches!(fill(bytes, vec![gone]), Err(SharedError::NoWay { .. })));
        assert_eq!(files[0].metadata().unwrap().blocks(), 0, "nothing was written");
    }
}
