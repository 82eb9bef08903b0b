//! The lists of the tasks' pages, in a memfd: written once by the supervisor, read by every handler.
//!
//! Words of 64 bits: the number of tasks; then for each its number, how many runs, and three words for each run; how many
//! pages are anchors, and the address of each; how many runs are to be filled first, and two words for each of them.

use super::runs::{Run, Runs};
use crate::destination::Content;
use crate::sys::mapping;
use crate::{PAGE_SIZE, PageRun};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};

/// What one task is to be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskPages {
    /// Its number in its own pid namespace.
    pub vpid: u32,
    /// Its pages in ascending order, and where they lie.
    pub pages: Vec<(PageRun, Content)>,
    /// Addresses of pages that are put in place one after the other as soon as the task is restored, before it runs.
    pub anchors: Vec<u64>,
    /// Those it will probably want first.
    pub first: Vec<PageRun>,
}

/// [`TaskPages`], as the handler knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    pub(super) runs: Runs,
    pub(super) anchors: Vec<u64>,
    pub(super) first: Vec<PageRun>,
}

/// Writes the lists into a new memfd. Zero pages need no place in it: a page that is in no list is zero.
pub(super) fn write(lists: &[TaskPages]) -> std::io::Result<File> {
    let words_of = |list: &TaskPages| 4 + 3 * list.pages.len() + list.anchors.len() + 2 * list.first.len();
    let words: usize = lists.iter().map(words_of).sum();
    let mut bytes = Vec::with_capacity(8 + 8 * words);
    let word = |bytes: &mut Vec<u8>, word: u64| bytes.extend_from_slice(&word.to_ne_bytes());
    word(&mut bytes, lists.len() as u64);
    for list in lists {
        word(&mut bytes, u64::from(list.vpid));
        let count_at = bytes.len();
        word(&mut bytes, 0);
        let mut count = 0u64;
        for (run, content) in &list.pages {
            if let Content::Slot(first) = content {
                count += 1;
                [run.start, run.pages, u64::from(*first)].into_iter().for_each(|part| word(&mut bytes, part));
            }
        }
        bytes[count_at..count_at + 8].copy_from_slice(&count.to_ne_bytes());
        word(&mut bytes, list.anchors.len() as u64);
        list.anchors.iter().for_each(|address| word(&mut bytes, *address));
        word(&mut bytes, list.first.len() as u64);
        for run in &list.first {
            [run.start, run.pages].into_iter().for_each(|part| word(&mut bytes, part));
        }
    }
    let mut file = mapping::memfd(c"godwit-lists", 0)?;
    file.write_all(&bytes)?;
    Ok(file)
}

/// Reads what [`write`] wrote. `room` is the number of slots; a run beyond it is an error.
pub(super) fn read(mut file: File, room: u64) -> std::io::Result<HashMap<u32, List>> {
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
        let mut anchors = Vec::new();
        for _ in 0..next()? {
            anchors.push(next()?);
        }
        let mut first = Vec::new();
        for _ in 0..next()? {
            first.push(PageRun { start: next()?, pages: next()? });
        }
        lists.insert(vpid, List { runs: Runs::collect(list.into_iter()), anchors, first });
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
        let first = vec![run(0x20000, 1)];
        let file = write(&[
            TaskPages { vpid: 1, pages: list, anchors: vec![0x1000, 0x20000], first: first.clone() },
            TaskPages { vpid: 9, ..TaskPages::default() },
        ])
        .unwrap();
        let lists = read(file.try_clone().unwrap(), 9).unwrap();
        assert_eq!(lists.len(), 2);
        assert_eq!(lists[&1].runs.pages(), 3);
        assert_eq!(lists[&1].runs.find(0x2000), Some(Run { start: 0x1000, pages: 2, slot: 7 }));
        assert!(lists[&1].runs.find(0x3000).is_none());
        assert_eq!(lists[&1].anchors, [0x1000, 0x20000]);
        assert_eq!(lists[&1].first, first);
        assert!(lists[&9].runs.is_empty() && lists[&9].first.is_empty());
        assert!(read(file, 8).is_err(), "a slot beyond the store");
    }

    #[test]
    fn ten_thousand_runs_take_less_than_a_millisecond() {
        let pages = (0..10_000u32).map(|at| (run_at(at), Content::Slot(2 * at))).collect();
        let lists = [TaskPages { vpid: 1, pages, ..TaskPages::default() }];
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
