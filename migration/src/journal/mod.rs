//! What happened, on disk: one file per migration and host, one event a line, appended and never changed.
//!
//! It is an intent log and not a debug log: a line is written *before* an act that must be known after a crash
//! (`freezing`, `committed`, `going`) and after an act whose success matters (`frozen`, `restored`, `running`). One pure
//! function, [`JournalState::apply`], serves writing and replay, so a journal that could not have been written is
//! recognised when it is read.

mod event;
mod line;
mod search;
#[cfg(test)]
mod tests;

pub use event::{Event, IllegalEvent, JournalState, checkpoint_as_peer, checkpoint_of_peer};
pub use line::Line;
pub use search::{Found, dir_of, of_container};

use crate::fault;
use crate::phase::Role;
use line::NotALine;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The version of the file's format; the one before is read, too.
pub const VERSION: u32 = 2;
/// A line longer than this was not written by us.
const MAX_LINE: u64 = 1 << 20;

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
    /// Whose it is, once the first line tells.
    role: Option<Role>,
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
        Ok(Self { file, path, state: JournalState::Empty, seq: 0, length: 0, role: None })
    }

    /// Opens a journal that a dead process has left, to go on with it; a last line without its end is cut off.
    ///
    /// # Errors
    /// As [`read`], and when it cannot be written.
    pub fn resume(path: &Path) -> Result<Self, JournalError> {
        let (lines, state) = read(path)?;
        let fail = |source| JournalError::Io { path: path.to_owned(), source };
        let text = std::fs::read(path).map_err(fail)?;
        let length =
            text.split_inclusive(|byte| *byte == b'\n').take(lines.len()).map(<[u8]>::len).sum::<usize>()
                as u64;
        let file = OpenOptions::new().append(true).open(path).map_err(fail)?;
        file.set_len(length).map_err(fail)?;
        let role = lines.first().and_then(|line| match line.event {
            Event::Planned { role, .. } => Some(role),
            _ => None,
        });
        Ok(Self { file, path: path.to_owned(), state, seq: lines.len() as u64, length, role })
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
        let text = line.encode().map_err(|error| fail(io::Error::other(error)))?;
        if let Event::Planned { role, .. } = &line.event {
            self.role = Some(*role);
        }
        fault::point(self.role, &line.event, fault::Edge::Before).map_err(fail)?;
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
        fault::point(self.role, &line.event, fault::Edge::After)
            .map_err(|source| JournalError::Io { path: self.path.clone(), source })
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
        let line = match Line::decode(&text) {
            Ok(line) => line,
            // a crash only tears the end
            Err(NotALine::Torn) if reader.fill_buf().map_err(fail)?.is_empty() => return Ok((lines, state)),
            Err(NotALine::Torn) => return Err(damaged("part of it was never written".into())),
            Err(NotALine::Damaged(reason)) => return Err(damaged(reason)),
        };
        if line.seq != number {
            return Err(damaged(format!("it has number {}", line.seq)));
        }
        if let Event::Planned { version, .. } = line.event
            && !(VERSION - 1..=VERSION).contains(&version)
        {
            return Err(damaged(format!("format {version} is not known to this godwit")));
        }
        state = state.apply(&line.event).map_err(|error| damaged(error.to_string()))?;
        lines.push(line);
    }
}
