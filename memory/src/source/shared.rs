//! Shared objects: what anonymous shared memory, memfds and System V segments contain, whoever maps them.

use super::maps::{Mapping, Maps, Span};
use super::{MemoryError, SinkError};
use crate::page::{PAGE_SIZE, SharedDoor, SharedObject};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Pages whose digests are kept together.
const GROUP: u64 = 512;

/// Device and inode; segments have inode numbers of their own making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    major: u32,
    minor: u32,
    inode: u64,
    segment: bool,
}

#[derive(Debug)]
struct Object {
    number: u32,
    name: String,
    file: File,
    bytes: u64,
    /// Mappings, by host pid.
    mappings: Vec<SharedDoor>,
    /// Host pid, task and number.
    descriptors: Vec<(i32, u32, i32)>,
    /// Offsets to read.
    written: Vec<Span>,
    compare: bool,
    digests: Digests,
}

/// What was handed over of an object: a digest of each page, 0 for zeroes and for what never was.
#[derive(Debug, Default)]
struct Digests {
    groups: BTreeMap<u64, Box<[u128; GROUP as usize]>>,
}

/// All shared objects of the tree.
#[derive(Debug)]
pub(crate) struct Objects {
    by_key: BTreeMap<Key, Object>,
    next: u32,
    public: Vec<SharedObject>,
    buffer: Vec<u8>,
    zeroes: Vec<u8>,
    zero_digest: u128,
}

/// Hands pages of an object to the sink: number, offset, content.
pub(crate) type Deliver<'a> = dyn FnMut(u32, u64, &[u8]) -> Result<(), SinkError> + 'a;

impl Objects {
    pub(crate) fn new() -> Self {
        let zeroes = vec![0; PAGE_SIZE as usize];
        Self {
            by_key: BTreeMap::new(),
            next: 0,
            public: Vec::new(),
            buffer: Vec::new(),
            zero_digest: xxh3_128(&zeroes),
            zeroes,
        }
    }

    /// As of the last [`Objects::finish`].
    pub(crate) fn list(&self) -> &[SharedObject] {
        &self.public
    }

    /// Forgets all mappings: those that are left are told again.
    pub(crate) fn begin(&mut self) {
        for object in self.by_key.values_mut() {
            object.mappings.clear();
        }
    }

    /// A mapping of an object in tasks that share their memory. `written`: what was written through it, if that is known;
    /// otherwise all of the object is compared.
    pub(crate) fn mapping(
        &mut self,
        pid: i32,
        vpids: impl Iterator<Item = u32>,
        maps: &Maps,
        mapping: &Mapping,
        written: Option<&[Span]>,
    ) -> Result<(), MemoryError> {
        let (major, minor, inode) = mapping.file;
        let segment = maps.name(mapping).starts_with("/SYSV");
        let key = Key { major, minor, inode, segment };
        let Span { start, end } = mapping.span;
        if !self.by_key.contains_key(&key) {
            let path = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
            let Some(file) = open(&path, pid)? else { return Ok(()) };
            // Another object may have been mapped there meanwhile.
            if file.metadata().map_or(0, |status| status.ino()) != inode {
                return Ok(());
            }
            self.insert(key, maps.name(mapping), file);
        }
        let Some(object) = self.by_key.get_mut(&key) else { return Ok(()) };
        let offset = mapping.offset;
        object.mappings.extend(vpids.map(|vpid| SharedDoor::Mapping { vpid, start, end, offset }));
        match written {
            Some(spans) => object.written.extend(
                spans
                    .iter()
                    .map(|span| Span { start: span.start - start + offset, end: span.end - start + offset }),
            ),
            None => object.compare = true,
        }
        Ok(())
    }

    /// The memfds that a task has open, as found anew.
    pub(crate) fn descriptors(&mut self, pid: i32, vpid: u32, fds: &[i32]) -> Result<(), MemoryError> {
        self.forget_descriptors(|other| other == pid);
        for &fd in fds {
            let path = format!("/proc/{pid}/fd/{fd}");
            let Ok(status) = std::fs::metadata(&path) else { continue };
            let device = status.dev();
            let key = Key {
                major: libc::major(device),
                minor: libc::minor(device),
                inode: status.ino(),
                segment: false,
            };
            if !self.by_key.contains_key(&key) {
                let Some(file) = open(&path, pid)? else { continue };
                if file.metadata().map_or(0, |status| status.ino()) != key.inode {
                    continue;
                }
                let name = std::fs::read_link(&path).unwrap_or_default();
                self.insert(key, name.to_string_lossy().into_owned(), file);
            }
            if let Some(object) = self.by_key.get_mut(&key) {
                object.descriptors.push((pid, vpid, fd));
            }
        }
        Ok(())
    }

    /// Forgets the descriptors of the tasks for which `gone` is true, by host pid.
    pub(crate) fn forget_descriptors(&mut self, gone: impl Fn(i32) -> bool) {
        for object in self.by_key.values_mut() {
            object.descriptors.retain(|&(pid, ..)| !gone(pid));
        }
    }

    fn insert(&mut self, key: Key, name: String, file: File) {
        // Pages of hugetlbfs come with CRIU's images: nothing can be written to its files.
        let huge = nix::sys::statfs::fstatfs(&file)
            .is_ok_and(|status| status.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC);
        if huge {
            return;
        }
        let object = Object {
            number: self.next,
            name,
            file,
            bytes: 0,
            mappings: Vec::new(),
            descriptors: Vec::new(),
            written: Vec::new(),
            compare: true,
            digests: Digests::default(),
        };
        self.next += 1;
        self.by_key.insert(key, object);
    }

    /// Hands over what was written, and for those to compare, or for all with `compare`, what differs from what was handed
    /// over before. Objects that nobody has any more are forgotten.
    pub(crate) fn finish(&mut self, compare: bool, deliver: &mut Deliver<'_>) -> Result<(), MemoryError> {
        self.by_key.retain(|_, object| !object.mappings.is_empty() || !object.descriptors.is_empty());
        self.buffer.resize(CHUNK, 0);
        let mut work = Work { buffer: &mut self.buffer, zeroes: &self.zeroes, zero_digest: self.zero_digest };
        self.public.clear();
        for (key, object) in &mut self.by_key {
            let failed = |source| MemoryError::Object { name: object.name.clone(), source };
            object.bytes = object.file.metadata().map_err(failed)?.len();
            let whole = Span { start: 0, end: object.bytes.next_multiple_of(PAGE_SIZE) };
            let mut written = std::mem::take(&mut object.written);
            if std::mem::take(&mut object.compare) || compare {
                work.compare(object, whole, deliver)?;
            } else {
                Span::unite(&mut written);
                for span in &mut written {
                    span.end = span.end.min(whole.end);
                    if span.start < span.end {
                        work.compare(object, *span, deliver)?;
                    }
                }
            }
            written.clear();
            object.written = written;
            let descriptors =
                object.descriptors.iter().map(|&(_, vpid, fd)| SharedDoor::Descriptor { vpid, fd });
            self.public.push(SharedObject {
                number: object.number,
                inode: key.inode,
                bytes: object.bytes,
                name: object.name.clone(),
                doors: object.mappings.iter().copied().chain(descriptors).collect(),
            });
        }
        Ok(())
    }
}

/// Opens an object by a way of a running task; none if the way is gone meanwhile.
fn open(path: &str, pid: i32) -> Result<Option<File>, MemoryError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(source) => Err(MemoryError::Task { pid, what: "open a shared object of", source }),
    }
}

/// Buffers for comparing.
struct Work<'a> {
    buffer: &'a mut [u8],
    zeroes: &'a [u8],
    zero_digest: u128,
}

impl Work<'_> {
    /// Hands over the pages of the range that differ from what was handed over.
    fn compare(
        &mut self,
        object: &mut Object,
        range: Span,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), MemoryError> {
        let mut at = range.start;
        while at < range.end {
            let data = match lseek(&object.file, at as i64, Whence::SeekData) {
                Ok(data) => (data as u64 & !(PAGE_SIZE - 1)).clamp(at, range.end),
                Err(Errno::ENXIO) => range.end,
                // A file system that cannot tell has data everywhere.
                Err(_) => at,
            };
            self.hole(object, Span { start: at, end: data }, deliver)?;
            if data == range.end {
                return Ok(());
            }
            let hole = match lseek(&object.file, data as i64, Whence::SeekHole) {
                Ok(hole) => (hole as u64).next_multiple_of(PAGE_SIZE).clamp(data + PAGE_SIZE, range.end),
                Err(_) => range.end,
            };
            self.data(object, Span { start: data, end: hole }, deliver)?;
            at = hole;
        }
        Ok(())
    }

    fn data(
        &mut self,
        object: &mut Object,
        span: Span,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), MemoryError> {
        let mut start = span.start;
        while start < span.end {
            let want = ((span.end - start) as usize).min(self.buffer.len());
            let buffer = &mut self.buffer[..want];
            let mut read = 0;
            while read < want {
                match object.file.read_at(&mut buffer[read..], start + read as u64) {
                    Ok(0) => break,
                    Ok(bytes) => read += bytes,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(MemoryError::Object { name: object.name.clone(), source }),
                }
            }
            // Behind its end, it is zeroes.
            buffer[read..].fill(0);
            let mut changed = Span { start, end: start };
            let mut page = start;
            for bytes in buffer.chunks_exact(PAGE_SIZE as usize) {
                let digest = match xxh3_128(bytes) {
                    digest if digest == self.zero_digest => 0,
                    digest => digest,
                };
                let kept = object.digests.replace(page / PAGE_SIZE, digest);
                page += PAGE_SIZE;
                if kept == digest {
                    hand_over(object.number, changed, start, buffer, deliver)?;
                    changed.start = page;
                }
                changed.end = page;
            }
            hand_over(object.number, changed, start, buffer, deliver)?;
            start += want as u64;
        }
        Ok(())
    }

    fn hole(
        &mut self,
        object: &mut Object,
        span: Span,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), MemoryError> {
        let zeroes = self.zeroes;
        let number = object.number;
        object
            .digests
            .clear(span, |page| deliver(number, page * PAGE_SIZE, zeroes).map_err(MemoryError::Sink))
    }
}

/// Hands over what changed of a buffer that begins at offset `start`.
fn hand_over(
    number: u32,
    changed: Span,
    start: u64,
    buffer: &[u8],
    deliver: &mut Deliver<'_>,
) -> Result<(), MemoryError> {
    if changed.bytes() == 0 {
        return Ok(());
    }
    let bytes = &buffer[(changed.start - start) as usize..(changed.end - start) as usize];
    deliver(number, changed.start, bytes).map_err(MemoryError::Sink)
}

impl Digests {
    /// Sets the digest of a page; gives the one it had.
    fn replace(&mut self, page: u64, digest: u128) -> u128 {
        let group = self.groups.entry(page / GROUP).or_insert_with(|| Box::new([0; GROUP as usize]));
        std::mem::replace(&mut group[(page % GROUP) as usize], digest)
    }

    /// Sets those of a range to 0; tells each page that had another.
    fn clear(
        &mut self,
        range: Span,
        mut had: impl FnMut(u64) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let (first, last) = (range.start / PAGE_SIZE, range.end / PAGE_SIZE);
        if first >= last {
            return Ok(());
        }
        for (group, digests) in self.groups.range_mut(first / GROUP..=(last - 1) / GROUP) {
            for (index, digest) in digests.iter_mut().enumerate() {
                let page = group * GROUP + index as u64;
                if (first..last).contains(&page) && *digest != 0 {
                    *digest = 0;
                    had(page)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    /// What was handed over, as an object.
    #[derive(Default)]
    struct Mirror {
        bytes: Vec<u8>,
        pages: usize,
    }

    impl Mirror {
        fn take(&mut self, offset: u64, bytes: &[u8]) {
            let end = offset as usize + bytes.len();
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            self.bytes[offset as usize..end].copy_from_slice(bytes);
            self.pages += bytes.len() / PAGE_SIZE as usize;
        }
    }

    fn compare(objects: &mut Objects, mirror: &mut Mirror) {
        let mut deliver = |_, offset: u64, bytes: &[u8]| {
            mirror.take(offset, bytes);
            Ok(())
        };
        objects.finish(true, &mut deliver).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write { page: u64, value: u8 },
        Punch { page: u64, pages: u64 },
        Resize { bytes: u64 },
        Compare,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u64..1500, any::<u8>()).prop_map(|(page, value)| Step::Write { page, value }),
            (0u64..1500, 1u64..600).prop_map(|(page, pages)| Step::Punch { page, pages }),
            (0u64..6_000_000).prop_map(|bytes| Step::Resize { bytes }),
            Just(Step::Compare),
        ];
        proptest::collection::vec(step, 1..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn comparing_hands_over_whatever_changed(steps in steps()) {
            let memfd: File = memfd_create(c"compare", MFdFlags::empty()).unwrap().into();
            memfd.set_len(1500 * PAGE_SIZE).unwrap();
            let mut objects = Objects::new();
            let key = Key { major: 0, minor: 0, inode: 0, segment: false };
            objects.insert(key, "x".into(), memfd.try_clone().unwrap());
            objects.by_key.get_mut(&key).unwrap().descriptors.push((1, 1, 1));
            let mut mirror = Mirror::default();
            for step in steps.into_iter().chain([Step::Compare]) {
                let length = memfd.metadata().unwrap().len();
                match step {
                    Step::Write { page, value } if page * PAGE_SIZE + 8 <= length => {
                        memfd.write_all_at(&[value; 8], page * PAGE_SIZE).unwrap();
                    }
                    Step::Punch { page, pages } => {
                        let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
                        let (start, bytes) = (page * PAGE_SIZE, pages * PAGE_SIZE);
                        nix::fcntl::fallocate(&memfd, flags, start as i64, bytes as i64).unwrap();
                    }
                    Step::Resize { bytes } => memfd.set_len(bytes).unwrap(),
                    Step::Compare => {
                        compare(&mut objects, &mut mirror);
                        let mut now = vec![0; length as usize];
                        memfd.read_exact_at(&mut now, 0).unwrap();
                        mirror.bytes.resize(mirror.bytes.len().max(now.len()), 0);
                        prop_assert!(mirror.bytes[..now.len()] == now[..]);
                    }
                    Step::Write { .. } => {}
                }
            }
            let before = mirror.pages;
            compare(&mut objects, &mut mirror);
            prop_assert_eq!(mirror.pages, before, "what did not change was handed over again");
        }
    }
}
