//! Makes a checkpoint whole that shares content with its parents.

use super::{Chain, damaged};
use crate::archive::{self, CONTAINER_IMAGE};
use crate::archive_error::{ArchiveError, io_error};
use crate::archived::link_tree;
use crate::digests::TREES;
use godwit_migration::Cancel;
use godwit_transfer::tree::{
    Body, Options, RoundError, SEGMENT, TreeDestination, TreeError, TreeIndex, TreeOp, TreeSource,
};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

impl Chain {
    /// Writes all of it to the new directory `into`, as if it had no parent. What it shares is compared with the digests that it
    /// had; digests of the whole are not written.
    ///
    /// # Errors
    /// When it cannot be written, or is not what it was.
    pub fn assemble(&self, into: &Path, cancel: &Cancel) -> Result<(), ArchiveError> {
        archive::make_private(into)?;
        let level = &self.levels[0];
        archive::store_manifest(&level.manifest.clone().without_parent(), into)?;
        for part in ["images", CONTAINER_IMAGE] {
            let from = level.dir.join(part);
            if from.is_dir() {
                link_tree(&from, &into.join(part)).map_err(io_error("link", &from))?;
            }
        }
        for name in level.shared.files.keys().filter(|name| !name.starts_with(TREES)) {
            self.write_file(name, &into.join(name), cancel)?;
        }
        let trees = into.join(TREES);
        archive::make_private(&trees)?;
        for number in 0..level.manifest.trees.len() {
            let gone = level.dir.join(TREES).join(format!("{number}.gone"));
            if gone.exists() {
                let to = trees.join(format!("{number}.gone"));
                std::fs::copy(&gone, to).map_err(io_error("copy", &gone))?;
            }
            self.write_tree(number, &trees.join(number.to_string()), cancel)?;
        }
        Ok(())
    }

    /// Writes a file in the place of a link to its empty one.
    fn write_file(&self, name: &str, to: &Path, cancel: &Cancel) -> Result<(), ArchiveError> {
        std::fs::remove_file(to).map_err(io_error("replace", to))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let mut file = BufWriter::new(file.map_err(io_error("make", to))?);
        let mut hasher = blake3::Hasher::new();
        self.each_piece(0, name, cancel, &mut |piece| {
            hasher.update(piece);
            file.write_all(piece)
        })?;
        file.flush().map_err(io_error("write", to))?;
        self.is_right(name, &hasher)
    }

    fn is_right(&self, name: &str, hasher: &blake3::Hasher) -> Result<(), ArchiveError> {
        match self.levels[0].shared.files.get(name) {
            Some(file) if hasher.finalize().to_hex().as_str() == file.blake3 => Ok(()),
            _ => Err(damaged(self.dir(), name, &"it has other content")),
        }
    }

    /// Copies a tree, and puts the contents in on the way: before owner, mode, times and attributes.
    fn write_tree(&self, number: usize, to: &Path, cancel: &Cancel) -> Result<(), ArchiveError> {
        let from = self.dir().join(TREES).join(number.to_string());
        let failed = |source| ArchiveError::Tree { path: from.clone(), source };
        archive::make_private(to)?;
        let mut source = TreeSource::new(&from, TreeIndex::default(), Options::default()).map_err(failed)?;
        let mut copy = TreeDestination::open(to).map_err(failed)?;
        let mut length = None;
        let round = source.round(&HashSet::new(), &mut |op| {
            if cancel.is_raised() {
                return Err(ArchiveError::Interrupted);
            }
            let op = match op {
                TreeOp::FileBegin { path, size, new } => {
                    let name = std::str::from_utf8(path.as_bytes()).unwrap_or_default();
                    let name = format!("{TREES}/{number}/{name}");
                    let file = self.levels[0].shared.files.get(&name);
                    length = file.map(|file| file.bytes);
                    let begin = TreeOp::FileBegin { path, size: length.unwrap_or(size), new };
                    copy.apply(begin).map_err(failed)?;
                    return match file {
                        Some(_) => self.write_segments(&name, &mut copy, &failed, cancel),
                        None => Ok(()),
                    };
                }
                TreeOp::FileEnd { size, meta } => {
                    TreeOp::FileEnd { size: length.take().unwrap_or(size), meta }
                }
                op => op,
            };
            copy.apply(op).map_err(failed)
        });
        match round {
            Ok(_) => Ok(()),
            Err(RoundError::Tree(source)) => Err(failed(source)),
            Err(RoundError::Emit(error)) => Err(error),
        }
    }

    fn write_segments(
        &self,
        name: &str,
        copy: &mut TreeDestination,
        failed: &dyn Fn(TreeError) -> ArchiveError,
        cancel: &Cancel,
    ) -> Result<(), ArchiveError> {
        let mut hasher = blake3::Hasher::new();
        let (mut segment, mut index) = (Vec::new(), 0);
        let mut put = |segment: &mut Vec<u8>| {
            let digest = *blake3::hash(segment).as_bytes();
            let data = std::mem::take(segment);
            // holes stay holes
            if data.iter().any(|byte| *byte != 0) {
                copy.apply(TreeOp::Segment { index, digest, body: Body::Data(data) })?;
            }
            index += 1;
            Ok::<(), TreeError>(())
        };
        let mut refused = None;
        let read = self.each_piece(0, name, cancel, &mut |piece| {
            hasher.update(piece);
            segment.extend_from_slice(piece);
            if segment.len() as u64 == SEGMENT {
                put(&mut segment).map_err(|error| {
                    refused = Some(error);
                    io::Error::from(io::ErrorKind::Other)
                })?;
            }
            Ok(())
        });
        if let Some(error) = refused {
            return Err(failed(error));
        }
        read?;
        if !segment.is_empty() {
            put(&mut segment).map_err(failed)?;
        }
        self.is_right(name, &hasher)
    }
}
