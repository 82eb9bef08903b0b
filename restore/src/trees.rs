//! The container's files, on their way in.

use crate::parked::Claim;
use godwit_engine::DestinationContainer;
use godwit_transfer::message::{TreeBase, TreeOffer};
use godwit_transfer::stale::StaleCopies;
use godwit_transfer::tree::{TreeDestination, TreeError, TreeIndex, TreeOp, empty_plainly, remove_plainly};
use godwit_transfer::{TreeId, WireError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Why files could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TreesError {
    /// They could not be written, or broke a rule.
    #[error("cannot write `{}`", path.display())]
    Tree {
        /// The tree's root.
        path: PathBuf,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// The root could not be made.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An operation on a tree that was never offered.
    #[error("an operation on tree {} that was not offered", .0.0)]
    Unknown(TreeId),
    /// The engine does not know a tree that was offered as one of its own.
    #[error("no place of the engine is called `{}`", .0.display())]
    NoPlace(PathBuf),
}

impl From<TreesError> for WireError {
    fn from(error: TreesError) -> Self {
        WireError::Malformed(error.to_string())
    }
}

/// What lies at the place of an offered tree, and its index if the source may build on it. What an earlier attempt has brought
/// lies elsewhere, but counts as if it were there.
///
/// # Errors
/// When what lies there cannot be read.
pub fn look_at(
    offer: &TreeOffer,
    copies: &StaleCopies,
    container: &str,
    claim: Option<&Claim>,
) -> Result<(TreeBase, Option<TreeIndex>), TreesError> {
    let path = &offer.path;
    if offer.made_there {
        return Ok((TreeBase::Empty, None));
    }
    let tree_error = |source| TreesError::Tree { path: path.to_owned(), source };
    if is_empty(path).map_err(|source| TreesError::Io { act: "look into", path: path.to_owned(), source })? {
        let Some(parked) = claim.and_then(|claim| claim.tree(path)) else {
            return Ok((TreeBase::Empty, None));
        };
        let index = match offer.single_file {
            true => TreeDestination::open_file(parked),
            false => TreeDestination::open(parked),
        };
        return Ok((TreeBase::Stale, Some(index.and_then(|tree| tree.index()).map_err(tree_error)?)));
    }
    let index = TreeDestination::open(path).and_then(|tree| tree.index()).map_err(tree_error)?;
    if copies.is_left_by(path, container) {
        return Ok((TreeBase::Stale, Some(index)));
    }
    Ok((TreeBase::Foreign { digest: index.equal_digest().to_string() }, Some(index)))
}

/// Nothing, or a directory without entries.
fn is_empty(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => Ok(std::fs::read_dir(path)?.next().is_none()),
        Ok(_) => Ok(false),
    }
}

/// What was at the place of a tree before it came: to be put back when it must go again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    path: PathBuf,
    /// Where that was, all links resolved, before the source could put any.
    #[serde(default)]
    real: Option<PathBuf>,
    /// The topmost directory that has to be made for it, if any: removed on undo, with all that is in it.
    made: Option<PathBuf>,
    /// It is an empty directory: emptied on undo.
    was_empty: bool,
}

impl Before {
    /// Looks at the place of a tree.
    pub fn of(path: &Path, base: &TreeBase) -> Self {
        let made = path.ancestors().filter(|ancestor| !ancestor.exists()).last();
        // links that are on the way now count; those that the source may put there later must lead nowhere
        let made = made.map(|made| match (made.parent().map(Path::canonicalize), made.file_name()) {
            (Some(Ok(parent)), Some(name)) => parent.join(name),
            _ => made.to_owned(),
        });
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Self { path: path.to_owned(), real: Some(real), made, was_empty: *base == TreeBase::Empty }
    }

    /// Somebody else removes what comes.
    fn of_the_engine(path: &Path) -> Self {
        Self { path: path.to_owned(), real: None, made: None, was_empty: false }
    }

    /// Where the tree belongs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves what came since away, if the place had to be made for it: afterwards it is as before. Says whether that was done.
    pub fn take_away(&self, to: &Path) -> bool {
        if self.made.is_none() || std::fs::rename(self.real.as_ref().unwrap_or(&self.path), to).is_err() {
            return false;
        }
        if let Err(error) = self.put_back() {
            tracing::warn!(%error, "`{}` is left over", self.path.display());
        }
        true
    }

    /// Removes what came since. A stale copy that was being brought up to date stays, as a stale copy of unknown state: its
    /// index is always read anew. Idempotent.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn put_back(&self) -> io::Result<()> {
        match (&self.made, self.was_empty) {
            (Some(made), _) => remove_plainly(made),
            (None, true) => empty_plainly(self.real.as_ref().unwrap_or(&self.path)),
            (None, false) => Ok(()),
        }
        .map_err(io::Error::other)
    }
}

/// A tree being written.
struct Incoming {
    before: Before,
    writer: TreeDestination,
}

/// All trees being written.
#[derive(Default)]
pub struct Trees {
    incoming: HashMap<TreeId, Incoming>,
}

impl Trees {
    /// Makes the root of an offered tree and opens it for writing.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(&mut self, offer: &TreeOffer, before: Before) -> Result<(), TreesError> {
        let path = offer.path.clone();
        let dir = if offer.single_file { path.parent().unwrap_or(&path) } else { &path };
        std::fs::create_dir_all(dir).map_err(|source| TreesError::Io {
            act: "make",
            path: path.clone(),
            source,
        })?;
        let writer =
            if offer.single_file { TreeDestination::open_file(&path) } else { TreeDestination::open(&path) };
        let writer = writer.map_err(|source| TreesError::Tree { path: path.clone(), source })?;
        self.incoming.insert(offer.id, Incoming { before, writer });
        Ok(())
    }

    /// Opens the places that the engine has made for offered trees.
    ///
    /// # Errors
    /// When the engine has none for one, or it cannot be opened.
    pub fn open_made(
        &mut self,
        offers: &[TreeOffer],
        container: &dyn DestinationContainer,
    ) -> Result<(), TreesError> {
        for offer in offers.iter().filter(|offer| offer.made_there) {
            let path = container.place(&offer.path).ok_or_else(|| TreesError::NoPlace(offer.path.clone()))?;
            let writer = match offer.single_file {
                true => TreeDestination::open_file(&path),
                false => TreeDestination::open(&path),
            };
            let writer = writer.map_err(|source| TreesError::Tree { path: path.clone(), source })?;
            self.incoming.insert(offer.id, Incoming { before: Before::of_the_engine(&path), writer });
        }
        Ok(())
    }

    /// Closes them until they are opened again.
    pub fn close_made(&mut self, offers: &[TreeOffer]) {
        for offer in offers.iter().filter(|offer| offer.made_there) {
            self.forget(offer.id);
        }
    }

    /// Opens a private directory of godwit's own as a tree: an image directory.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open_private(&mut self, id: TreeId, path: &Path) -> Result<(), TreesError> {
        let io_error = |source| TreesError::Io { act: "make", path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error)?;
        let writer = TreeDestination::open(path)
            .map_err(|source| TreesError::Tree { path: path.to_owned(), source })?;
        let before = Before::of_the_engine(path);
        self.incoming.insert(id, Incoming { before, writer });
        Ok(())
    }

    /// Nothing is written to a tree any more.
    pub fn forget(&mut self, id: TreeId) {
        self.incoming.remove(&id);
    }

    /// Whether the tree was opened.
    pub fn knows(&self, id: TreeId) -> bool {
        self.incoming.contains_key(&id)
    }

    /// Reads all that is in a tree now.
    ///
    /// # Errors
    /// When the tree is unknown or cannot be read.
    pub fn index(&self, id: TreeId) -> Result<TreeIndex, TreesError> {
        let tree = self.incoming.get(&id).ok_or(TreesError::Unknown(id))?;
        tree.writer.index().map_err(|source| TreesError::Tree { path: tree.before.path.clone(), source })
    }

    /// Carries out one operation.
    ///
    /// # Errors
    /// When the tree is unknown, or the operation is refused or fails.
    pub fn apply(&mut self, id: TreeId, op: TreeOp) -> Result<(), TreesError> {
        let tree = self.incoming.get_mut(&id).ok_or(TreesError::Unknown(id))?;
        tree.writer.apply(op).map_err(|source| TreesError::Tree { path: tree.before.path.clone(), source })
    }

    /// Waits until the container's files are on disk. What the container had synced at the source must outlast a loss of
    /// power here, too. Returns what could not be written.
    pub fn sync(&self) -> Vec<String> {
        let files = self.incoming.iter().filter(|(id, _)| id.image_round().is_none());
        files
            .filter_map(|(_, tree)| {
                Some(format!("`{}`: {}", tree.before.path.display(), tree.writer.sync().err()?))
            })
            .collect()
    }

    /// Nothing is written any more. Gives what was there before the container's files.
    pub fn close(&mut self) -> Vec<Before> {
        self.incoming
            .drain()
            .filter(|(id, _)| id.image_round().is_none())
            .map(|(_, tree)| tree.before)
            .collect()
    }

    /// Removes what this migration made. Returns what could not be removed.
    pub fn undo(&mut self) -> Vec<String> {
        let mut leftovers = Vec::new();
        for (_, tree) in self.incoming.drain() {
            drop(tree.writer);
            if let Err(error) = tree.before.put_back() {
                leftovers.push(format!("`{}`: {error}", tree.before.path.display()));
            }
        }
        leftovers
    }
}
