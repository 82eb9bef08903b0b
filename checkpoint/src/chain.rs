//! Checkpoints that share content with an earlier one of the same container, their parent, which may have a parent itself:
//!
//! ```text
//! checkpoint.json   names the parent: its id, the digest of its `digests.json`, and where it lay
//! shared.zst        of each file that shares something: length, digest, and where its pieces are (see [`shared`])
//! blocks            the pieces of those files that the parent does not have
//! ```
//!
//! Such a file lies at its place with owner, mode and attributes, and is empty. What shares nothing is as in any checkpoint.
//! Blocks of 4 KiB are compared by content, wherever they lie: a page that has moved within its image, or a file that has
//! another name, is still the same.

mod assemble;
mod shared;
#[cfg(test)]
mod tests;
mod thin;

use crate::archive::{self, MANIFEST, Manifest};
use crate::archive_error::{ArchiveError, io_error};
use crate::digests;
use godwit_migration::Cancel;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::{Deserialize, Serialize};
use shared::{Place, Shared};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
pub(crate) use thin::thin;

/// The description of what is shared.
const SHARED: &str = "shared.zst";
/// What is not, of files that share something.
pub(crate) const BLOCKS: &str = "blocks";
/// Longest chain, checkpoints: each one is one more to lose.
const MAX_LEVELS: usize = 64;
/// What is read at once, bytes: whole blocks.
const PIECE: usize = 1 << 20;

/// How a checkpoint names its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentName {
    /// Its id.
    pub id: String,
    /// BLAKE3 of its `digests.json`, which vouches for all else that is in it.
    pub digest: String,
    /// Where it lay when the checkpoint was written, seen from the directory that the checkpoint is in.
    pub path: PathBuf,
}

/// A checkpoint with its parent, the parent's parent, and so on.
pub struct Chain {
    /// Never empty; each one's parent comes after it.
    levels: Vec<Level>,
}

struct Level {
    dir: PathBuf,
    manifest: Manifest,
    shared: Shared,
    blocks: Option<File>,
    /// The stored file that was read last.
    open: RefCell<Option<(String, File)>>,
}

impl Level {
    fn open(dir: &Path) -> Result<Self, ArchiveError> {
        let manifest = archive::read_manifest(dir)?;
        let (mut shared, mut blocks) = (Shared::default(), None);
        if manifest.parent.is_some() {
            let path = dir.join(BLOCKS);
            let file = File::open(&path).map_err(io_error("read", &path))?;
            let length = file.metadata().map_err(io_error("read", &path))?.len();
            shared = Shared::read(&dir.join(SHARED), length).map_err(|error| damaged(dir, SHARED, &error))?;
            blocks = Some(file);
        }
        Ok(Self { dir: dir.to_owned(), manifest, shared, blocks, open: RefCell::default() })
    }

    /// Reads a file that lies there as it is.
    fn read_stored(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut open = self.open.borrow_mut();
        if open.as_ref().is_none_or(|(is_open, _)| is_open != name) {
            *open = Some((name.to_owned(), open_below(&self.dir, name)?));
        }
        match &*open {
            Some((_, file)) => file.read_exact_at(buffer, offset),
            None => Ok(()),
        }
    }

    /// Bytes of a file when the checkpoint is whole.
    fn length(&self, name: &str) -> io::Result<u64> {
        match self.shared.files.get(name) {
            Some(file) => Ok(file.bytes),
            None => Ok(open_below(&self.dir, name)?.metadata()?.len()),
        }
    }
}

impl Chain {
    /// Opens a checkpoint and all of its parents. Only descriptions are read: see [`Chain::verify`].
    ///
    /// # Errors
    /// [`ArchiveError::Parent`] when one is missing, or is not the one that it was.
    pub fn open(dir: &Path) -> Result<Self, ArchiveError> {
        let mut level = Level::open(dir)?;
        let mut levels = Vec::new();
        while let Some(parent) = level.manifest.parent.clone() {
            if levels.len() + 1 == MAX_LEVELS {
                let reason = format!("it has more than {MAX_LEVELS} checkpoints behind it");
                return Err(ArchiveError::NotOne { path: dir.to_owned(), reason });
            }
            let found = find(&level.dir, &parent)?;
            levels.push(level);
            level = Level::open(&found)?;
        }
        levels.push(level);
        Ok(Self { levels })
    }

    /// Reads all that is stored of its parents, and looks whether it is what was written; then, whether what is shared is there
    /// and right. Gives the number of the parents' digests.
    ///
    /// # Errors
    /// [`ArchiveError::Parent`] with all of a parent that is missing or different.
    pub(crate) fn verify_shared(&self, cancel: &Cancel) -> Result<usize, ArchiveError> {
        let mut count = 0;
        for level in &self.levels[1..] {
            let verified = archive::verify_stored(&level.dir, &level.manifest);
            count += verified.map_err(|error| ArchiveError::Parent {
                path: self.dir().to_owned(),
                id: level.manifest.id.clone().unwrap_or_default(),
                reason: error.to_string(),
            })?;
        }
        self.check_shared(cancel)?;
        Ok(count)
    }

    /// The checkpoint's own directory.
    pub fn dir(&self) -> &Path {
        &self.levels[0].dir
    }

    /// Whose it is: engine and name.
    pub fn container(&self) -> (&str, &str) {
        let manifest = &self.levels[0].manifest;
        (&manifest.engine, &manifest.name)
    }

    /// The directories of its parents, the nearest first.
    pub fn parents(&self) -> impl Iterator<Item = &Path> {
        self.levels.iter().skip(1).map(|level| level.dir.as_path())
    }

    /// Files that share something: their names below the checkpoint and their lengths, bytes.
    pub(crate) fn shared_files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.levels[0].shared.files.iter().map(|(name, file)| (name.as_str(), file.bytes))
    }

    /// Bytes that are not stored again.
    pub fn shared_bytes(&self) -> u64 {
        self.levels[0].shared.bytes()
    }

    /// How a new checkpoint in the directory `beside` names it as its parent.
    ///
    /// # Errors
    /// When it cannot be one: it has no id, or too many parents.
    pub(crate) fn name_for(&self, beside: &Path) -> Result<ParentName, ArchiveError> {
        let not_one =
            |reason: &str| ArchiveError::NoParent { path: self.dir().to_owned(), reason: reason.into() };
        if self.levels.len() + 1 > MAX_LEVELS {
            return Err(not_one("it has too many parents itself"));
        }
        let id = self.levels[0].manifest.id.clone();
        let id = id.ok_or_else(|| not_one("an older godwit wrote it, and gave it no id"))?;
        let whole = |path: &Path| path.canonicalize().map_err(io_error("find", path));
        let path = way(&whole(beside)?, &whole(self.dir())?);
        Ok(ParentName { id, digest: digest_of(self.dir())?, path })
    }

    /// Reads a piece of a file as it is when the checkpoint is whole.
    fn read(&self, number: usize, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let level = self.levels.get(number).ok_or(io::ErrorKind::NotFound)?;
        let Some(file) = level.shared.files.get(name) else {
            return level.read_stored(name, offset, buffer);
        };
        let mut done = 0;
        while done < buffer.len() {
            let (place, at, left) = file.place(offset + done as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len() - done);
            let part = &mut buffer[done..done + length];
            match (place, &level.blocks) {
                (Place::Zeros, _) => part.fill(0),
                (Place::Own, Some(blocks)) => blocks.read_exact_at(part, at)?,
                (Place::Parent(source), _) => {
                    self.read(number + 1, level.shared.source(source)?, at, part)?
                }
                (Place::Own, None) => return Err(io::ErrorKind::NotFound.into()),
            }
            done += length;
        }
        Ok(())
    }

    /// Hands out all of a file, a piece at a time.
    fn each_piece(
        &self,
        number: usize,
        name: &str,
        cancel: &Cancel,
        hand: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ArchiveError> {
        let level = self.levels.get(number).ok_or(ArchiveError::Interrupted)?;
        let path = level.dir.join(name);
        let length = level.length(name).map_err(io_error("read", &path))?;
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        while at < length {
            if cancel.is_raised() {
                return Err(ArchiveError::Interrupted);
            }
            let piece = &mut buffer[..usize::try_from(length - at).unwrap_or(PIECE).min(PIECE)];
            self.read(number, name, at, piece).and_then(|()| hand(piece)).map_err(io_error("read", &path))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Whether all files that share something have the content that they had.
    fn check_shared(&self, cancel: &Cancel) -> Result<(), ArchiveError> {
        for (name, file) in &self.levels[0].shared.files {
            let mut hasher = blake3::Hasher::new();
            self.each_piece(0, name, cancel, &mut |piece| {
                hasher.update(piece);
                Ok(())
            })?;
            if hasher.finalize().to_hex().as_str() != file.blake3 {
                return Err(damaged(self.dir(), name, &"it has other content"));
            }
        }
        Ok(())
    }
}

fn damaged(dir: &Path, name: &str, why: &dyn std::fmt::Display) -> ArchiveError {
    ArchiveError::Damaged { path: dir.to_owned(), damages: vec![format!("`{name}`: {why}")] }
}

/// Opens a file below a directory for reading, through no link.
fn open_below(dir: &Path, name: &str) -> io::Result<File> {
    let root = File::open(dir)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = File::from(openat2(&root, name, how)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file")),
    }
}

/// The digest that a child knows a checkpoint by.
fn digest_of(dir: &Path) -> Result<String, ArchiveError> {
    let path = dir.join(digests::FILE);
    let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// The parent of the checkpoint `child`: where it lay, or beside the child under whatever name.
fn find(child: &Path, parent: &ParentName) -> Result<PathBuf, ArchiveError> {
    let lacks =
        |reason: String| ArchiveError::Parent { path: child.to_owned(), id: parent.id.clone(), reason };
    let whole = child.canonicalize().map_err(io_error("find", child))?;
    let beside = whole.parent().unwrap_or(Path::new("/"));
    let named = beside.join(&parent.path);
    let mut candidates = vec![named.clone()];
    let entries = std::fs::read_dir(beside).map_err(io_error("list", beside))?;
    candidates.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    let mut altered = None;
    for dir in candidates.into_iter().filter(|dir| dir.join(MANIFEST).is_file()) {
        if !archive::read_manifest(&dir).is_ok_and(|manifest| manifest.id.as_ref() == Some(&parent.id)) {
            continue;
        }
        match digest_of(&dir) {
            Ok(digest) if digest == parent.digest => return Ok(dir),
            _ => altered = Some(dir),
        }
    }
    Err(match altered {
        Some(dir) => lacks(format!("`{}` is not any more what it was", dir.display())),
        None => lacks(format!("it is neither `{}` nor beside the checkpoint", named.display())),
    })
}

/// The way from one directory to another, both absolute and without links.
fn way(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let same = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
    let up = std::iter::repeat_n(Component::ParentDir, from.len() - same);
    up.chain(to[same..].iter().copied()).collect()
}

/// The files of a checkpoint whose content may be shared, by their names below it, in order. One whose name is no UTF-8 is not.
fn sharable(dir: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut pending: Vec<String> =
        ["images", digests::TREES, archive::CONTAINER_IMAGE].map(String::from).into();
    while let Some(at) = pending.pop() {
        let entries = match std::fs::read_dir(dir.join(&at)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type()?;
            // descriptions are small, and whoever looks into a checkpoint reads them
            let is_description = match at.as_str() {
                "images" => !name.starts_with("pages-"),
                digests::TREES => true,
                _ => false,
            };
            if kind.is_dir() {
                pending.push(format!("{at}/{name}"));
            } else if kind.is_file() && !is_description {
                found.push(format!("{at}/{name}"));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}
