//! What was handed over, and whether it is what the processes have.

use godwit_memory::source::{PageSink, RoundStats, SinkError, TreeMemory};
use godwit_memory::{ImageId, PageRun};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use xxhash_rust::xxh3::xxh3_64;

/// Digests of what was handed over.
#[derive(Default)]
pub struct Mirror {
    pub pages: HashMap<(ImageId, u64), u64>,
    pub count: u64,
}

impl PageSink for Mirror {
    fn pages(&mut self, image: ImageId, address: u64, bytes: &[u8]) -> Result<(), SinkError> {
        assert!(bytes.len().is_multiple_of(4096) && address.is_multiple_of(4096) && !bytes.is_empty());
        for (index, page) in bytes.chunks_exact(4096).enumerate() {
            self.pages.insert((image, address + index as u64 * 4096), xxh3_64(page));
            self.count += 1;
        }
        Ok(())
    }
}

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Pages that are as they were handed over.
    pub good: u64,
    /// Pages with another content.
    pub bad: Vec<String>,
    /// Pages that were not handed over.
    pub missing: Vec<String>,
    /// Pages on which `existing` and an independent look disagree.
    pub disputed: Vec<String>,
    /// Pages that were handed over and are gone.
    pub gone: u64,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.bad.is_empty() && self.missing.is_empty() && self.disputed.is_empty()
    }

    /// Fails with what is wrong.
    pub fn assert_clean(&self, what: &str) {
        let some = |list: &[String]| (list.len(), list.iter().take(8).cloned().collect::<Vec<_>>());
        assert!(
            self.is_clean() && self.good > 0,
            "{what}: good {}, bad {:?}, missing {:?}, disputed {:?}",
            self.good,
            some(&self.bad),
            some(&self.missing),
            some(&self.disputed),
        );
    }

    /// Bad or missing pages in a range of addresses.
    pub fn wrong_in(&self, start: u64, bytes: u64) -> usize {
        let list = self.bad.iter().chain(&self.missing);
        list.filter(|page| {
            let address = page.split(' ').nth(1).and_then(|hex| u64::from_str_radix(hex, 16).ok());
            address.is_some_and(|address| (start..start + bytes).contains(&address))
        })
        .count()
    }
}

/// A line of /proc/PID/maps.
pub struct Line {
    pub start: u64,
    pub end: u64,
    pub shared: bool,
    pub name: String,
}

pub fn maps(pid: i32) -> Vec<Line> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let shared = words.next().unwrap().as_bytes()[3] == b's';
            words.next();
            words.next();
            words.next();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            let name = words.collect::<Vec<_>>().join(" ");
            Line { start: hex(start), end: hex(end), shared, name }
        })
        .collect()
}

fn vpid(pid: i32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

impl Mirror {
    pub fn round(&mut self, memory: &mut TreeMemory, pids: &BTreeSet<i32>) -> RoundStats {
        memory.round(pids, self).unwrap()
    }

    /// Compares every page of the stopped processes, read independently, with what was handed over.
    pub fn compare(&self, memory: &mut TreeMemory, pids: &BTreeSet<i32>) -> Verdict {
        let mut verdict = Verdict::default();
        let existing: BTreeMap<ImageId, Vec<PageRun>> = memory.existing(pids).unwrap().into_iter().collect();
        let zeroes = xxh3_64(&[0; 4096]);
        for &pid in pids {
            let lines = maps(pid);
            if lines.is_empty() {
                continue;
            }
            let image = ImageId::Task(vpid(pid));
            let told: BTreeSet<u64> =
                existing[&image].iter().flat_map(|run| (run.start..run.end()).step_by(4096)).collect();
            // with whether it is a page of anonymous memory that holds zeroes
            let mut found = BTreeMap::new();
            let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
            let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
            for line in lines.iter().filter(|line| !line.shared) {
                let special = line.name.starts_with('[')
                    && !["[heap]", "[stack]"].contains(&line.name.as_str())
                    && !line.name.starts_with("[anon:");
                if !special {
                    self.compare_private(image, line, &mem, &pagemap, &mut found, &mut verdict);
                }
            }
            let seen: BTreeSet<u64> = found.keys().copied().collect();
            for address in told.symmetric_difference(&seen) {
                // khugepaged puts pages of zeroes where there were none, also in memory of stopped tasks
                if found.get(address) == Some(&true) {
                    continue;
                }
                let mapping = lines.iter().find(|line| (line.start..line.end).contains(address));
                let name = mapping.map(|line| line.name.as_str()).unwrap_or("unmapped");
                let who = if told.contains(address) { "existing" } else { "the test" };
                verdict.disputed.push(format!("{pid} {address:x} {name} only by {who}"));
            }
            verdict.gone += self
                .pages
                .keys()
                .filter(|(of, address)| *of == image && !found.contains_key(address))
                .count() as u64;
        }
        self.compare_objects(memory, pids, zeroes, &mut verdict);
        verdict
    }

    fn compare_private(
        &self,
        image: ImageId,
        line: &Line,
        mem: &File,
        pagemap: &File,
        found: &mut BTreeMap<u64, bool>,
        verdict: &mut Verdict,
    ) {
        let mut page = [0; 4096];
        let pages = ((line.end - line.start) / 4096) as usize;
        let mut entries = vec![0; pages * 8];
        // Mappings of devices have none.
        if pagemap.read_exact_at(&mut entries, line.start / 4096 * 8).is_err() {
            return;
        }
        for (index, bytes) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_ne_bytes(bytes.try_into().unwrap());
            let bit = |bit: u32| entry >> bit & 1 == 1;
            let address = line.start + index as u64 * 4096;
            // In anonymous memory, that is the huge page of zeroes.
            let file = bit(61);
            if !(bit(63) || bit(62)) || file || bit(58) || bit(63) && entry & ((1 << 55) - 1) == zero_frame()
            {
                continue;
            }
            let place = || format!("{image:?} {address:x} {}", line.name);
            let read = mem.read_exact_at(&mut page, address);
            // where nothing is handed over there are zeroes at the destination, too: what khugepaged puts where there was none
            let is_blank = read.is_ok() && page == [0; 4096] && !line.name.starts_with('/');
            found.insert(address, is_blank);
            match (read, self.pages.get(&(image, address))) {
                (Ok(()), None) if is_blank => {}
                (Err(error), _) => verdict.missing.push(format!("{} {error}", place())),
                (Ok(()), None) => {
                    verdict.missing.push(format!("{} {:x}-{:x} {entry:x}", place(), line.start, line.end))
                }
                (Ok(()), Some(&digest)) if digest == xxh3_64(&page) => verdict.good += 1,
                (Ok(()), Some(_)) => {
                    verdict.bad.push(format!("{} {:x}-{:x} {entry:x}", place(), line.start, line.end))
                }
            }
        }
    }

    /// Every door of every object shows what was handed over of it; what was not is zeroes.
    fn compare_objects(&self, memory: &TreeMemory, pids: &BTreeSet<i32>, zeroes: u64, verdict: &mut Verdict) {
        use godwit_memory::page::SharedDoor;
        let by_vpid: HashMap<u32, i32> = pids.iter().map(|&pid| (vpid(pid), pid)).collect();
        let mut doors = BTreeSet::new();
        for object in memory.shared_objects() {
            assert!(!object.doors.is_empty());
            for door in &object.doors {
                let (file, from) = match *door {
                    SharedDoor::Mapping { vpid, start, end, offset } => {
                        let pid = by_vpid[&vpid];
                        doors.insert((pid, start, end));
                        (File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")).unwrap(), offset)
                    }
                    SharedDoor::Descriptor { vpid, fd } => {
                        (File::open(format!("/proc/{}/fd/{fd}", by_vpid[&vpid])).unwrap(), 0)
                    }
                };
                assert_eq!(file.metadata().unwrap().size(), object.bytes);
                let mut page = [0; 4096];
                for address in (from..object.bytes).step_by(4096) {
                    page.fill(0);
                    let want = (object.bytes - address).min(4096) as usize;
                    file.read_exact_at(&mut page[..want], address).unwrap();
                    let kept = self.pages.get(&(ImageId::Shared(object.number), address)).copied();
                    match kept.unwrap_or(zeroes) == xxh3_64(&page) {
                        true => verdict.good += 1,
                        false => {
                            verdict.bad.push(format!("{} {address:x} of {}", object.number, object.name))
                        }
                    }
                }
            }
        }
        for &pid in pids {
            for line in maps(pid).iter().filter(|line| line.shared) {
                let object =
                    ["/memfd:", "/SYSV", "/dev/zero (deleted)"].iter().any(|n| line.name.starts_with(n));
                if object && !doors.contains(&(pid, line.start, line.end)) {
                    verdict.disputed.push(format!("{pid} {:x} {} is no door", line.start, line.name));
                }
            }
        }
    }
}

/// The frame of the page of zeroes, which every mapping has that was only read.
fn zero_frame() -> u64 {
    static FRAME: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *FRAME.get_or_init(|| {
        let flags = crate::child::ANONYMOUS;
        let page =
            crate::sys::syscall(libc::SYS_mmap, [0, 4096, crate::child::READ, flags, u64::MAX, 0]) as u64;
        crate::sys::peek(page);
        let mut bytes = [0; 8];
        File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut bytes, page / 4096 * 8).unwrap();
        u64::from_ne_bytes(bytes) & ((1 << 55) - 1)
    })
}
