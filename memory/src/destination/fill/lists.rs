//! The lists of the tasks' pages, in a memfd: written once by the supervisor, read by every handler.
//!
//! Words of 64 bits: the number of tasks; then for each its number, how many runs, and three words for each run.

use super::runs::{Run, Runs};
use crate::destination::Content;
use crate::sys::mapping;
use crate::{PAGE_SIZE, PageRun};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};

/// Writes the lists into a new memfd. Zero pages need no place in it: a page that is in no list is zero.
pub(super) fn write(lists: &[(u32, Vec<(PageRun, Content)>)]) -> std::io::Result<File> {
    let runs: usize = lists.iter().map(|(_, list)| list.len()).sum();
    let mut bytes = Vec::with_capacity(8 + 16 * lists.len() + 24 * runs);
    let word = |bytes: &mut Vec<u8>, word: u64| bytes.extend_from_slice(&word.to_ne_bytes());
    word(&mut bytes, lists.len() as u64);
    for (vpid, list) in lists {
        word(&mut bytes, u64::from(*vpid));
        let count_at = bytes.len();
        word(&mut bytes, 0);
        let mut count = 0u64;
        for (run, content) in list {
            if let Content::Slot(first) = content {
                count += 1;
                [run.start, run.pages, u64::from(*first)].into_iter().for_each(|part| word(&mut bytes, part));
            }
        }
        bytes[count_at..count_at + 8].copy_from_slice(&count.to_ne_bytes());
    }
    let mut file = mapping::memfd(c"godwit-lists", 0)?;
    file.write_all(&bytes)?;
    Ok(file)
}

/// Reads what [`write`] wrote. `room` is the number of slots; a run beyond it is an error.
pub(super) fn read(mut file: File, room: u64) -> std::io::Result<HashMap<u32, Runs>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    let mut words =
        bytes.chunks_exact(8).filter_map(|word| word.first_chunk()).map(|word| u64::from_ne_bytes(*word));
    let mut next = || words.next().ok_or(std::io::ErrorKind::UnexpectedEof);
    let mut lists = HashMap::new();
    for _ in 0..next()? {
        let vpid = next()? as u32;
        let mut list = Vec::new();
        for _ in 0..next()? {
            let run = Run { start: next()?, pages: next()?, slot: next()? };
            let slots_end = run.slot.checked_add(run.pages);
            let end = run.pages.checked_mul(PAGE_SIZE).and_then(|len| run.start.checked_add(len));
            if end.is_none() || slots_end.is_none_or(|end| end > room) {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            list.push(run);
        }
        lists.insert(vpid, Runs::collect(list.into_iter()));
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let run = |start, pages| PageRun { start, pages };
        let list = vec![
            (run(0x1000, 2), Content::Slot(7)),
            (run(0x3000, 9), Content::Zero),
            (run(0x20000, 1), Content::Slot(3)),
        ];
        let file = write(&[(1, list), (9, Vec::new())]).unwrap();
        let lists = read(file.try_clone().unwrap(), 9).unwrap();
        assert_eq!(lists.len(), 2);
        assert_eq!(lists[&1].pages(), 3);
        assert_eq!(lists[&1].find(0x2000), Some(Run { start: 0x1000, pages: 2, slot: 7 }));
        assert!(lists[&1].find(0x3000).is_none());
        assert!(lists[&9].is_empty());
        assert!(read(file, 8).is_err(), "a slot beyond the store");
    }

    #[test]
    fn ten_thousand_runs_take_less_than_a_millisecond() {
        let list = (0..10_000u32).map(|at| (run_at(at), Content::Slot(2 * at))).collect();
        let lists = [(1, list)];
        let best = (0..10).map(|_| {
            let start = std::time::Instant::now();
            write(&lists).unwrap();
            start.elapsed()
        });
        let best = best.min().unwrap();
        assert!(best.as_micros() < 1000, "{best:?}");
    }

    fn run_at(at: u32) -> PageRun {
        PageRun { start: u64::from(at) * 0x4000, pages: 2 }
    }
}
