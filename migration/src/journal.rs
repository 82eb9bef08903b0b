//! What happened, on disk: one file per migration and host, one JSON object a line, appended and never changed.
//!
//! It is an intent log and not a debug log: a line is written *before* an act that must be known after a crash
//! (`freezing`, `committed`, `going`) and after an act whose success matters (`frozen`, `restored`, `running`). One pure
//! function, [`JournalState::apply`], serves writing and replay, so a journal that could not have been written is
//! recognised when it is read.

use crate::id::MigrationId;
use crate::phase::Role;
use crate::throttle::LimitChange;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The version of the file's format.
pub const VERSION: u32 = 1;
/// A line longer than this was not written by us.
const MAX_LINE: u64 = 1 << 20;

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first line of every journal.
    Planned {
        /// The file's format.
        version: u32,
        /// Which migration.
        migration: MigrationId,
        /// Whose journal this is.
        role: Role,
        /// The container as the user named it.
        container: String,
        /// The other host, as far as it is known.
        peer: String,
        /// The godwit that wrote it.
        godwit: String,
    },
    /// Both sides agreed.
    Accepted,
    /// The destination made everything that can exist early.
    Prepared,
    /// A pre-copy round is complete on both sides.
    Round {
        /// Which one, from 0.
        round: u32,
        /// Bytes over the wire.
        wire_bytes: u64,
    },
    /// Source: about to change the container's CPU limit.
    Throttling(LimitChange),
    /// Source: the CPU limit is what it was before the first change.
    Unthrottled,
    /// Source: about to lock the network and to freeze.
    Freezing,
    /// Source: every task is frozen.
    Frozen,
    /// Source: the final dump is complete, and the tasks are still frozen.
    Dumped,
    /// Destination: everything is there and every digest was right.
    Ready,
    /// Destination: about to restore.
    Restoring,
    /// Both: the restored tree is held frozen at the destination.
    Restored,
    /// Source: from here on the source never lets it run again by itself.
    Committed,
    /// Destination: the source gave its word; about to let it run.
    Going,
    /// Both: it runs at the destination.
    Running {
        /// The container's first process there.
        pid: i32,
    },
    /// Source: the frozen copy is gone.
    Discarded,
    /// Done.
    Completed {
        /// Downtime in microseconds; the source's journal only.
        downtime_us: Option<u64>,
        /// What could not be cleaned up.
        leftovers: Vec<String>,
    },
    /// Something failed; what follows is the undoing.
    Failed {
        /// Why.
        reason: String,
    },
    /// Everything was undone: it runs at the source, nothing of it is at the destination.
    RolledBack,
    /// Nobody can say on which side it runs.
    InDoubt {
        /// Why.
        reason: String,
    },
}

/// Where a migration stands, as its journal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JournalState {
    /// Nothing was written yet.
    Empty,
    /// Preflight and negotiation.
    Planned,
    /// Rounds.
    PreCopy,
    /// The source may be frozen.
    Freezing,
    /// The source is frozen, the final dump is complete.
    Dumped,
    /// Destination: it has everything.
    Ready,
    /// Destination: a restore may be under way.
    Restoring,
    /// The tree is held frozen at the destination, whole at the source.
    Restored,
    /// The source gave its word, the destination may not know it yet.
    Committed,
    /// It runs at the destination.
    Running,
    /// Over: it runs at the destination.
    Completed,
    /// Being undone.
    Failed,
    /// Over: it runs at the source.
    RolledBack,
    /// A person must decide.
    InDoubt,
}

/// Said when an event cannot follow what the journal holds.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("`{event}` cannot follow the state `{state:?}`")]
pub struct IllegalEvent {
    state: JournalState,
    event: String,
}

impl JournalState {
    /// The state after `event`. Pure; used to write and to replay.
    ///
    /// # Errors
    /// When the event cannot follow: most of all, nothing is undone after `Committed`.
    pub fn apply(self, event: &Event) -> Result<Self, IllegalEvent> {
        use JournalState::*;
        let next = match (self, event) {
            (Empty, Event::Planned { .. }) => Planned,
            (Planned, Event::Accepted) => Planned,
            (Planned, Event::Prepared) => PreCopy,
            (PreCopy, Event::Round { .. }) => PreCopy,
            (PreCopy, Event::Throttling(_)) => PreCopy,
            (PreCopy, Event::Freezing) => Freezing,
            (Freezing, Event::Frozen) => Freezing,
            (Freezing, Event::Dumped) => Dumped,
            (PreCopy, Event::Ready) => Ready,
            (Ready, Event::Restoring) => Restoring,
            (Dumped | Restoring, Event::Restored) => Restored,
            (Restored, Event::Committed | Event::Going) => Committed,
            (Committed, Event::Running { .. }) => Running,
            (Running, Event::Discarded) => Running,
            (Running, Event::Completed { .. }) => Completed,
            // whoever comes across it after a crash may be the one that does it
            (state, Event::Unthrottled) if state != Empty => state,
            (
                Planned | PreCopy | Freezing | Dumped | Ready | Restoring | Restored | Failed,
                Event::Failed { .. },
            ) => Failed,
            (Failed, Event::RolledBack) => RolledBack,
            (Restored | Committed | Failed, Event::InDoubt { .. }) => InDoubt,
            (state, event) => {
                return Err(IllegalEvent { state, event: event.name() });
            }
        };
        Ok(next)
    }

    /// Whether nothing more will happen by itself.
    pub fn is_over(self) -> bool {
        matches!(self, JournalState::Completed | JournalState::RolledBack | JournalState::InDoubt)
    }
}

impl Event {
    /// The event's name as it stands in the file.
    pub fn name(&self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|value| value.get("event").and_then(|name| name.as_str().map(str::to_owned)))
            .unwrap_or_default()
    }

    /// Events that must be on disk before anything else happens. The others only tell how far it had come: a crash of
    /// godwit leaves them in the file all the same, and after a loss of power nothing that they speak of is left. Most of
    /// those fall into the downtime, which must not wait for a disk more often than it has to.
    fn must_reach_the_disk(&self) -> bool {
        !matches!(
            self,
            Event::Round { .. }
                | Event::Throttling(_)
                | Event::Unthrottled
                | Event::Accepted
                | Event::Frozen
                | Event::Dumped
                | Event::Ready
                | Event::Restoring
        )
    }
}

/// One line: when, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Counts from 1, without a gap.
    pub seq: u64,
    /// Wall clock, microseconds since 1970: a label for people, never used to compute with.
    pub unix_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Why a journal cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system said no.
    #[error("journal `{}`", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line that is not ours.
    #[error("journal `{}` is damaged at line {line}: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An event in the wrong place.
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
}

/// A journal open for writing.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    state: JournalState,
    seq: u64,
    /// Bytes of whole lines.
    length: u64,
}

impl Journal {
    /// Makes `dir` (0700) and an empty journal in it (0600).
    ///
    /// # Errors
    /// When the directory cannot be made, or a journal is already there.
    pub fn create(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join("journal");
        let fail = |source| JournalError::Io { path: path.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path).map_err(fail)?;
        // a file that is not in its directory after a power cut is no journal
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)?;
        Ok(Self { file, path, state: JournalState::Empty, seq: 0, length: 0 })
    }

    /// Opens a journal that a dead process has left, to go on with it; a last line without its end is cut off.
    ///
    /// # Errors
    /// As [`read`], and when it cannot be written.
    pub fn resume(path: &Path) -> Result<Self, JournalError> {
        let (lines, state) = read(path)?;
        let fail = |source| JournalError::Io { path: path.to_owned(), source };
        let text = std::fs::read(path).map_err(fail)?;
        let length = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last as u64 + 1);
        let file = OpenOptions::new().append(true).open(path).map_err(fail)?;
        file.set_len(length).map_err(fail)?;
        Ok(Self { file, path: path.to_owned(), state, seq: lines.len() as u64, length })
    }

    /// Appends an event; it is on disk when this returns, if its kind asks for it.
    ///
    /// # Errors
    /// When it may not follow the ones before, or cannot be written.
    pub fn append(&mut self, event: Event) -> Result<(), JournalError> {
        let next = self.state.apply(&event)?;
        let sync = event.must_reach_the_disk();
        let unix_us = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        let line = Line { seq: self.seq + 1, unix_us, event };
        let fail = |source| JournalError::Io { path: self.path.clone(), source };
        let mut text = serde_json::to_vec(&line).map_err(|error| fail(io::Error::other(error)))?;
        text.push(b'\n');
        let written =
            self.file.write_all(&text).and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // what was not written must not stand in front of the failure that is written next
            let _ = self.file.set_len(self.length);
            return Err(fail(error));
        }
        self.state = next;
        self.seq += 1;
        self.length += text.len() as u64;
        Ok(())
    }

    /// Where it stands.
    pub fn state(&self) -> JournalState {
        self.state
    }
}

/// Reads a journal and replays it. A last line without its end is a write that a crash cut short: it is left out.
///
/// # Errors
/// When the file cannot be read, or holds what could not have been written.
pub fn read(path: &Path) -> Result<(Vec<Line>, JournalState), JournalError> {
    let fail = |source| JournalError::Io { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(fail)?);
    let mut lines = Vec::new();
    let mut state = JournalState::Empty;
    loop {
        let number = lines.len() as u64 + 1;
        let damaged = |reason: String| JournalError::Damaged { path: path.to_owned(), line: number, reason };
        let mut text = Vec::new();
        let read = io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut text).map_err(fail)?;
        if read as u64 == MAX_LINE {
            return Err(damaged("too long".into()));
        }
        if text.pop() != Some(b'\n') {
            return Ok((lines, state));
        }
        let line: Line = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if line.seq != number {
            return Err(damaged(format!("it has number {}", line.seq)));
        }
        if let Event::Planned { version, .. } = line.event
            && version != VERSION
        {
            return Err(damaged(format!("format {version} is not known to this godwit")));
        }
        state = state.apply(&line.event).map_err(|error| damaged(error.to_string()))?;
        lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn planned() -> Event {
        Event::Planned {
            version: VERSION,
            migration: "01k40000000000000000000000".parse().unwrap(),
            role: Role::Source,
            container: "runc:web".into(),
            peer: "ssh://rack2".into(),
            godwit: "test".into(),
        }
    }

    fn change() -> LimitChange {
        LimitChange {
            file: "/sys/fs/cgroup/web/cpu.max".into(),
            original: "max 100000".into(),
            now: "20000 100000".into(),
        }
    }

    fn source_path() -> Vec<Event> {
        vec![
            planned(),
            Event::Accepted,
            Event::Prepared,
            Event::Round { round: 0, wire_bytes: 1 },
            Event::Throttling(change()),
            Event::Unthrottled,
            Event::Freezing,
            Event::Frozen,
            Event::Dumped,
            Event::Restored,
            Event::Committed,
            Event::Running { pid: 7 },
            Event::Discarded,
            Event::Completed { downtime_us: Some(1), leftovers: vec![] },
        ]
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let mut all = source_path();
        all.extend([
            Event::Ready,
            Event::Restoring,
            Event::Going,
            Event::Failed { reason: "x".into() },
            Event::RolledBack,
            Event::InDoubt { reason: "y".into() },
        ]);
        proptest::sample::select(all)
    }

    #[test]
    fn both_sides_happy_paths_are_legal() {
        let destination = vec![
            planned(),
            Event::Accepted,
            Event::Prepared,
            Event::Round { round: 0, wire_bytes: 1 },
            Event::Ready,
            Event::Restoring,
            Event::Restored,
            Event::Going,
            Event::Running { pid: 7 },
            Event::Completed { downtime_us: None, leftovers: vec![] },
        ];
        for path in [source_path(), destination] {
            let end = path.iter().try_fold(JournalState::Empty, |state, event| state.apply(event));
            assert_eq!(end, Ok(JournalState::Completed));
        }
    }

    #[test]
    fn a_failure_at_every_step_before_commit_can_be_rolled_back_and_none_after() {
        let mut state = JournalState::Empty;
        for event in source_path() {
            state = state.apply(&event).unwrap();
            let failed = state.apply(&Event::Failed { reason: "x".into() });
            let committed =
                matches!(state, JournalState::Committed | JournalState::Running | JournalState::Completed);
            assert_eq!(failed.is_err(), committed, "{state:?}");
        }
    }

    #[test]
    fn a_dead_one_s_journal_goes_on_behind_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(&dir.path().join("m")).unwrap();
        for event in source_path().into_iter().take(5) {
            journal.append(event).unwrap();
        }
        let path = dir.path().join("m/journal");
        let torn = std::fs::metadata(&path).unwrap().len() - 3;
        OpenOptions::new().write(true).open(&path).unwrap().set_len(torn).unwrap();
        Journal::resume(&path).unwrap().append(Event::Unthrottled).unwrap();
        let (lines, state) = read(&path).unwrap();
        assert_eq!((lines.len(), state), (5, JournalState::PreCopy));
        assert_eq!(lines[4].event, Event::Unthrottled);
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(&dir.path().join("m")).unwrap();
        for event in source_path().into_iter().take(5) {
            journal.append(event).unwrap();
        }
        let path = dir.path().join("m/journal");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (lines, _) = read(&path).unwrap();
            assert_eq!(lines.len(), whole[..cut].iter().filter(|byte| **byte == b'\n').count());
        }
        let mut damaged = whole.clone();
        damaged[10] ^= 0x40;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(read(&path), Err(JournalError::Damaged { line: 1, .. })));
        assert!(Journal::create(&dir.path().join("m")).is_err(), "a journal is never overwritten");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is thrown at it: what was accepted reads back the same, in the same state.
        #[test]
        fn what_was_written_replays_to_the_same_state(events in proptest::collection::vec(any_event(), 0..40)) {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = Journal::create(dir.path().join("m").as_path()).unwrap();
            let accepted: Vec<Event> =
                events.into_iter().filter(|event| journal.append(event.clone()).is_ok()).collect();
            let (lines, state) = read(&dir.path().join("m/journal")).unwrap();
            prop_assert_eq!(state, journal.state());
            prop_assert_eq!(lines.into_iter().map(|line| line.event).collect::<Vec<_>>(), accepted);
        }
    }
}
