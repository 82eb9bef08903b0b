//! The process tree: `pstree.img`, one record for each task (pstree.proto).

use std::path::Path;

use super::file::{ImageError, Kind, read_records};
use super::wire::{Fields, Malformed};

/// A task of the tree. Ids are those inside the container's pid namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Task {
    /// Process id.
    pub pid: u32,
    /// Parent's process id; 0 for the root.
    pub ppid: u32,
    /// Process group.
    pub pgid: u32,
    /// Session.
    pub sid: u32,
    /// Thread ids, the leader's among them.
    pub threads: Vec<u32>,
}

/// The tasks in `dir/pstree.img`, the root first.
pub fn read_tasks(dir: &Path) -> Result<Vec<Task>, ImageError> {
    let path = dir.join("pstree.img");
    read_records(&path, Kind::Pstree)?
        .iter()
        .map(|record| parse(record).map_err(|_| ImageError::broken(&path, "a record is malformed")))
        .collect()
}

pub(super) fn parse(record: &[u8]) -> Result<Task, Malformed> {
    let mut task = Task::default();
    for field in Fields(record) {
        let (number, value) = field?;
        match number {
            1 => task.pid = value.u32()?,
            2 => task.ppid = value.u32()?,
            3 => task.pgid = value.u32()?,
            4 => task.sid = value.u32()?,
            5 => value.numbers(&mut task.threads)?,
            _ => {}
        }
    }
    if task.pid == 0 { Err(Malformed) } else { Ok(task) }
}

#[cfg(test)]
mod tests {
    use super::super::file::{join_records, write_private};
    use super::super::wire::{put_bytes, put_varint};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_tasks() {
        let record = |pid: u64, ppid: u64, packed: bool| {
            let mut out = Vec::new();
            for (number, value) in [(1, pid), (2, ppid), (3, 1), (4, 0)] {
                put_varint(&mut out, number, value);
            }
            if packed {
                put_bytes(&mut out, 5, &[pid as u8, 0x80, 0x02]);
            } else {
                put_varint(&mut out, 5, pid);
                put_varint(&mut out, 5, 256);
            }
            out
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pstree.img");
        write_private(&path, &join_records(Kind::Pstree, [record(1, 0, false), record(7, 1, true)])).unwrap();
        let tasks = read_tasks(dir.path()).unwrap();
        assert_eq!(tasks[0], Task { pid: 1, ppid: 0, pgid: 1, sid: 0, threads: vec![1, 256] });
        assert_eq!((tasks[1].pid, tasks[1].ppid, &tasks[1].threads[..]), (7, 1, &[7, 256][..]));
        assert!(parse(&[]).is_err(), "a task without a pid");
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
