//! CRIU's statistics of its last dump or restore: `stats-dump` and `stats-restore` in the work directory (stats.proto).

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::file::{ImageError, Kind, read_records};
use super::wire::{Fields, Malformed};

/// Name of a dump's (and pre-dump's) statistics.
pub const DUMP_FILE: &str = "stats-dump";
/// Name of a restore's statistics.
pub const RESTORE_FILE: &str = "stats-restore";

/// What a dump took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DumpStats {
    /// Time to freeze and seize the tasks.
    pub freezing_time: Duration,
    /// Time the tasks were stopped by CRIU.
    pub frozen_time: Duration,
    /// Time to take the memory out of the tasks (into pipes).
    pub memdump_time: Duration,
    /// Time to write it out of the pipes.
    pub memwrite_time: Duration,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages left out because the parent has them.
    pub pages_skipped_parent: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Pages left for later by a lazy dump.
    pub pages_lazy: u64,
    /// Shared memory pages looked at.
    pub shpages_scanned: u64,
    /// Shared memory pages left out because the parent has them.
    pub shpages_skipped_parent: u64,
    /// Shared memory pages written.
    pub shpages_written: u64,
}

/// What a restore took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestoreStats {
    /// Pages compared with a parent's to find shared ones.
    pub pages_compared: u64,
    /// Pages left shared with a parent.
    pub pages_skipped_cow: u64,
    /// Pages filled.
    pub pages_restored: u64,
    /// Time to make the tasks.
    pub forking_time: Duration,
    /// Time for everything.
    pub restore_time: Duration,
}

/// The statistics of the dump in this work directory; `None` when there are none.
pub fn read_dump(work_dir: &Path) -> Result<Option<DumpStats>, ImageError> {
    read(&work_dir.join(DUMP_FILE), parse_dump)
}

/// The statistics of the restore in this work directory; `None` when there are none.
pub fn read_restore(work_dir: &Path) -> Result<Option<RestoreStats>, ImageError> {
    read(&work_dir.join(RESTORE_FILE), parse_restore)
}

fn read<T>(path: &Path, parse: fn(&[u8]) -> Result<Option<T>, Malformed>) -> Result<Option<T>, ImageError> {
    if !path.exists() {
        return Ok(None);
    }
    let records = read_records(path, Kind::Stats)?;
    let Some(record) = records.first() else { return Ok(None) };
    parse(record).map_err(|_| ImageError::broken(path, "its record is malformed"))
}

fn micros(value: u64) -> Duration {
    Duration::from_micros(value)
}

fn parse_dump(record: &[u8]) -> Result<Option<DumpStats>, Malformed> {
    let Some(entry) = part(record, 1)? else { return Ok(None) };
    let mut stats = DumpStats::default();
    for field in Fields(entry) {
        let (number, value) = field?;
        let value = value.u64()?;
        match number {
            1 => stats.freezing_time = micros(value),
            2 => stats.frozen_time = micros(value),
            3 => stats.memdump_time = micros(value),
            4 => stats.memwrite_time = micros(value),
            5 => stats.pages_scanned = value,
            6 => stats.pages_skipped_parent = value,
            7 => stats.pages_written = value,
            9 => stats.pages_lazy = value,
            12 => stats.shpages_scanned = value,
            13 => stats.shpages_skipped_parent = value,
            14 => stats.shpages_written = value,
            _ => {}
        }
    }
    Ok(Some(stats))
}

fn parse_restore(record: &[u8]) -> Result<Option<RestoreStats>, Malformed> {
    let Some(entry) = part(record, 2)? else { return Ok(None) };
    let mut stats = RestoreStats::default();
    for field in Fields(entry) {
        let (number, value) = field?;
        let value = value.u64()?;
        match number {
            1 => stats.pages_compared = value,
            2 => stats.pages_skipped_cow = value,
            3 => stats.forking_time = micros(value),
            4 => stats.restore_time = micros(value),
            5 => stats.pages_restored = value,
            _ => {}
        }
    }
    Ok(Some(stats))
}

fn part(record: &[u8], wanted: u32) -> Result<Option<&[u8]>, Malformed> {
    for field in Fields(record) {
        let (number, value) = field?;
        if number == wanted {
            return value.bytes().map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::file::{join_records, write_private};
    use super::super::wire::{put_bytes, put_varint};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_parts() {
        let (mut dump, mut restore) = (Vec::new(), Vec::new());
        for number in 1..=14 {
            put_varint(&mut dump, number, u64::from(number) * 1000);
        }
        for number in 1..=5 {
            put_varint(&mut restore, number, u64::from(number) * 7);
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_dump(dir.path()).unwrap(), None, "none written");
        for (name, number, part) in [(DUMP_FILE, 1, &dump), (RESTORE_FILE, 2, &restore)] {
            let mut record = Vec::new();
            put_bytes(&mut record, number, part);
            write_private(&dir.path().join(name), &join_records(Kind::Stats, [record])).unwrap();
        }
        let stats = read_dump(dir.path()).unwrap().unwrap();
        assert_eq!(stats.freezing_time, Duration::from_millis(1));
        assert_eq!(stats.frozen_time, Duration::from_millis(2));
        assert_eq!((stats.pages_skipped_parent, stats.pages_written), (6000, 7000));
        assert_eq!((stats.pages_lazy, stats.shpages_written), (9000, 14000));
        let stats = read_restore(dir.path()).unwrap().unwrap();
        assert_eq!((stats.forking_time, stats.restore_time), (micros(21), micros(28)));
        assert_eq!(stats.pages_restored, 35);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_dump(&bytes);
            let _ = parse_restore(&bytes);
        }
    }
}
