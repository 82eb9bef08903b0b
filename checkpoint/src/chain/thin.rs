//! Takes out of a checkpoint that has just been written what its parent has, too.

use super::shared::{Place, Shared, SharedFile};
use super::{BLOCKS, Chain, PIECE, SHARED, open_below, sharable};
use crate::archive_error::{ArchiveError, io_error};
use crate::digests::TREES;
use godwit_migration::Cancel;
use godwit_transfer::tree::{Options, RoundError, TreeDestination, TreeIndex, TreeOp, TreeSource};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that are compared as one: a page.
const BLOCK: usize = 4096;

/// Where the blocks of the parent are: source and offset, by digest.
type Index = HashMap<[u8; 32], (u32, u64)>;

/// Leaves in `dir`, a complete checkpoint that nobody else looks at yet, what `parent` does not have. Gives the bytes that went.
///
/// # Errors
/// When something cannot be read or written: then `dir` is of no use.
pub(crate) fn thin(dir: &Path, parent: &Chain, cancel: &Cancel) -> Result<u64, ArchiveError> {
    let (index, sources) = index(parent, cancel)?;
    let mut shared = Shared { sources, ..Shared::default() };
    let mut blocks = Blocks::create(&dir.join(BLOCKS)).map_err(io_error("make", &dir.join(BLOCKS)))?;
    for name in sharable(dir).map_err(io_error("list", dir))? {
        if cancel.is_raised() {
            return Err(ArchiveError::Interrupted);
        }
        let taken = open_below(dir, &name).and_then(|file| blocks.take(&file, &index));
        if let Some(file) = taken.map_err(io_error("read", &dir.join(&name)))? {
            shared.files.insert(name, file);
        }
    }
    blocks.end().map_err(io_error("write", &dir.join(BLOCKS)))?;
    empty(dir, &shared, cancel)?;
    shared.write(&dir.join(SHARED)).map_err(io_error("write", &dir.join(SHARED)))?;
    Ok(shared.bytes())
}

/// Reads all of the parent.
fn index(parent: &Chain, cancel: &Cancel) -> Result<(Index, Vec<String>), ArchiveError> {
    let names = sharable(parent.dir()).map_err(io_error("list", parent.dir()))?;
    let mut index = Index::new();
    for (source, name) in (0..).zip(&names) {
        let mut at = 0;
        parent.each_piece(0, name, cancel, &mut |piece| {
            for block in piece.chunks(BLOCK) {
                if !is_zero(block) {
                    index.entry(*blake3::hash(block).as_bytes()).or_insert((source, at));
                }
                at += block.len() as u64;
            }
            Ok(())
        })?;
    }
    Ok((index, names))
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// The file for what is not shared.
struct Blocks {
    file: BufWriter<File>,
    length: u64,
}

impl Blocks {
    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file: BufWriter::with_capacity(PIECE, file), length: 0 })
    }

    /// Takes over what the parent does not have of a file; none, and nothing, when it has nothing of it.
    fn take(&mut self, from: &File, index: &Index) -> io::Result<Option<SharedFile>> {
        let mut file = SharedFile::default();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = Vec::with_capacity(PIECE);
        loop {
            buffer.clear();
            (&mut &*from).take(PIECE as u64).read_to_end(&mut buffer)?;
            hasher.update(&buffer);
            for block in buffer.chunks(BLOCK) {
                let (place, at) = match index.get(blake3::hash(block).as_bytes()) {
                    _ if is_zero(block) => (Place::Zeros, 0),
                    Some((source, at)) => (Place::Parent(*source), *at),
                    None => (Place::Own, file.bytes),
                };
                file.push(place, at, block.len() as u64);
            }
            if buffer.len() < PIECE {
                break;
            }
        }
        if file.shared_bytes() == 0 {
            return Ok(None);
        }
        file.blake3 = hasher.finalize().to_hex().to_string();
        file.move_own(|at, length| self.append(from, at, length))?;
        Ok(Some(file))
    }

    /// Appends a piece of a file; where it lies then.
    fn append(&mut self, from: &File, mut at: u64, length: u64) -> io::Result<u64> {
        let begin = self.length;
        let end = at + length;
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(PIECE).min(PIECE)];
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            from.read_exact_at(&mut buffer[..piece], at)?;
            self.file.write_all(&buffer[..piece])?;
            at += piece as u64;
        }
        self.length += length;
        Ok(begin)
    }

    fn end(self) -> io::Result<()> {
        self.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Empties the files that are described: owners, modes, times and attributes stay.
fn empty(dir: &Path, shared: &Shared, cancel: &Cancel) -> Result<(), ArchiveError> {
    let mut trees = BTreeSet::new();
    for name in shared.files.keys() {
        match name.strip_prefix(TREES).and_then(|rest| rest.trim_start_matches('/').split_once('/')) {
            Some((number, _)) => drop(trees.insert(number.to_owned())),
            None => {
                let path = dir.join(name);
                OpenOptions::new()
                    .write(true)
                    .truncate(true)
                    .open(&path)
                    .map_err(io_error("empty", &path))?;
            }
        }
    }
    for number in trees {
        empty_tree(dir, &number, shared, cancel)?;
    }
    Ok(())
}

/// A tree is made anew: emptying a file in its place would cost its capabilities (capabilities(7)) and its time.
fn empty_tree(dir: &Path, number: &str, shared: &Shared, cancel: &Cancel) -> Result<(), ArchiveError> {
    let tree = dir.join(TREES).join(number);
    let full = dir.join(format!("full-{number}"));
    let failed = |source| ArchiveError::Tree { path: tree.clone(), source };
    std::fs::rename(&tree, &full).map_err(io_error("move", &tree))?;
    crate::archive::make_private(&tree)?;
    let mut source = TreeSource::new(&full, TreeIndex::default(), Options::default()).map_err(failed)?;
    let mut copy = TreeDestination::open(&tree).map_err(failed)?;
    let mut is_emptied = false;
    let round = source.round(&HashSet::new(), &mut |op| {
        if cancel.is_raised() {
            return Err(ArchiveError::Interrupted);
        }
        let op = match op {
            TreeOp::FileBegin { path, size, new } => {
                let name = std::str::from_utf8(path.as_bytes());
                is_emptied =
                    name.is_ok_and(|name| shared.files.contains_key(&format!("{TREES}/{number}/{name}")));
                TreeOp::FileBegin { path, size: if is_emptied { 0 } else { size }, new }
            }
            TreeOp::Segment { .. } | TreeOp::Hole { .. } if is_emptied => return Ok(()),
            TreeOp::FileEnd { size, meta } => {
                TreeOp::FileEnd { size: if is_emptied { 0 } else { size }, meta }
            }
            op => op,
        };
        copy.apply(op).map_err(failed)
    });
    match round {
        Ok(_) => std::fs::remove_dir_all(&full).map_err(io_error("remove", &full)),
        Err(RoundError::Tree(source)) => Err(failed(source)),
        Err(RoundError::Emit(error)) => Err(error),
    }
}
