//! Which pieces files are made of: `shared.zst`, JSON compressed with zstd.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

/// Longest description that is read, bytes without compression.
const LIMIT: u64 = 1 << 30;

/// Where a piece is; numbers from 2 on are those of sources in the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Zeros,
    Own,
    Parent(u32),
}

impl Place {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Zeros => 0,
            Self::Own => 1,
            Self::Parent(source) => source + 2,
        }
    }

    fn of(number: u32) -> Self {
        match number {
            0 => Self::Zeros,
            1 => Self::Own,
            source => Self::Parent(source - 2),
        }
    }
}

/// All files that share something.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shared {
    /// Files of the parent, by their names below it.
    pub(super) sources: Vec<String>,
    /// By their names below the checkpoint.
    pub(super) files: BTreeMap<String, SharedFile>,
}

/// A file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SharedFile {
    /// Its length.
    pub(super) bytes: u64,
    /// The digest of all of it.
    pub(super) blake3: String,
    /// Its pieces, one after the other: number of the place, offset there, length; bytes.
    runs: Vec<(u32, u64, u64)>,
    /// Where each of them begins.
    #[serde(skip)]
    starts: Vec<u64>,
}

impl SharedFile {
    /// Adds a piece at the end.
    pub(super) fn push(&mut self, place: Place, at: u64, length: u64) {
        let number = place.number();
        self.bytes += length;
        match self.runs.last_mut() {
            Some(last) if last.0 == number && (place == Place::Zeros || last.1 + last.2 == at) => {
                last.2 += length
            }
            _ => self.runs.push((number, at, length)),
        }
    }

    /// Bytes that are in the parent.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.runs.iter().filter(|run| run.0 > Place::Own.number()).map(|run| run.2).sum()
    }

    /// Gives the pieces that are its own another place: `moved` is told where each lies and how long it is.
    pub(super) fn move_own<E>(&mut self, mut moved: impl FnMut(u64, u64) -> Result<u64, E>) -> Result<(), E> {
        for run in self.runs.iter_mut().filter(|run| run.0 == Place::Own.number()) {
            run.1 = moved(run.1, run.2)?;
        }
        Ok(())
    }

    /// Where a byte of it is, and how many come after it there, itself included.
    pub(super) fn place(&self, offset: u64) -> Option<(Place, u64, u64)> {
        let index = self.starts.partition_point(|start| *start <= offset).checked_sub(1)?;
        let (number, at, length) = *self.runs.get(index)?;
        let skipped = offset - self.starts[index];
        (skipped < length).then(|| (Place::of(number), at + skipped, length - skipped))
    }

    /// Whether it can be what it says; finds the beginnings of its pieces.
    fn check(&mut self, sources: usize, own_bytes: u64) -> Result<(), &'static str> {
        let mut sum: u64 = 0;
        self.starts.clear();
        for (number, at, length) in &self.runs {
            self.starts.push(sum);
            let end = at.checked_add(*length).ok_or("a piece has no end")?;
            match Place::of(*number) {
                Place::Own if end > own_bytes => return Err("a piece lies beyond what is stored"),
                Place::Parent(source) if source as usize >= sources => return Err("a piece has no source"),
                _ if *length == 0 => return Err("a piece is empty"),
                _ => {}
            }
            sum = sum.checked_add(*length).ok_or("a file has no end")?;
        }
        if sum == self.bytes { Ok(()) } else { Err("a file is longer or shorter than its pieces") }
    }
}

impl Shared {
    /// Reads the description of a checkpoint that has so many bytes of its own.
    ///
    /// # Errors
    /// When it cannot be read, or cannot be true.
    pub(super) fn read(path: &Path, own_bytes: u64) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let text = zstd::Decoder::new(File::open(path)?)?.take(LIMIT);
        let mut shared: Self =
            serde_json::from_reader(io::BufReader::new(text)).map_err(|error| invalid(error.to_string()))?;
        for name in shared.sources.iter().chain(shared.files.keys()) {
            if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(invalid(format!("the name `{}` leads out of it", name.escape_debug())));
            }
        }
        let sources = shared.sources.len();
        for (name, file) in &mut shared.files {
            let checked = file.check(sources, own_bytes);
            checked.map_err(|why| invalid(format!("{why}: `{}`", name.escape_debug())))?;
        }
        Ok(shared)
    }

    /// Writes it to a new file.
    ///
    /// # Errors
    /// When that is not possible.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut text = zstd::Encoder::new(io::BufWriter::new(file), 3)?;
        serde_json::to_writer(&mut text, self)?;
        text.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    /// The name of a file of the parent.
    pub(super) fn source(&self, number: u32) -> io::Result<&str> {
        let name = self.sources.get(number as usize).map(String::as_str);
        name.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Bytes that are in the parent.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(SharedFile::shared_bytes).sum()
    }
}
