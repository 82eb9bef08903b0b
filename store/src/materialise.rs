//! Makes a tree of what the store has of it, by the same steps as a migration's destination: nothing reaches outside of its
//! directory, whatever the manifest says.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use godwit_transfer::tree::{TreeDestination, empty_plainly};

use crate::manifest::{Manifest, Tree};
use crate::{Chunks, Digest, Lease, StoreError};

impl Lease {
    /// Makes the tree of a manifest, or the one that it describes, in the directory `root`, which is empty or is made; its parent has to
    /// be there. `progress` hears how many bytes were written, of how many. When it fails, what was made is taken away.
    ///
    /// # Errors
    /// [`StoreError::Missing`] before anything is made, [`StoreError::NotEmpty`], or the file system's.
    pub fn materialise(
        &mut self,
        manifest: Digest,
        root: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Tree, StoreError> {
        let tree = self.tree(manifest)?;
        let made = make_empty(root)?;
        let filled = self.fill(&tree, root, progress);
        if filled.is_err() {
            let cleared = root.canonicalize().map_err(StoreError::io("find", root)).and_then(|plain| {
                empty_plainly(&plain)?;
                if made { std::fs::remove_dir(root).map_err(StoreError::io("remove", root)) } else { Ok(()) }
            });
            if let Err(error) = cleared {
                tracing::warn!(%error, "what was made of it is still there");
            }
        }
        filled.map(|()| tree)
    }

    /// The tree of a manifest, or the one that it describes, held.
    ///
    /// # Errors
    /// As [`Lease::hold`].
    pub fn tree(&mut self, manifest: Digest) -> Result<Tree, StoreError> {
        match self.hold(manifest)? {
            Manifest::Tree(tree) => Ok(tree),
            Manifest::Described(described) => match self.hold(described.tree)? {
                Manifest::Tree(tree) => Ok(tree),
                Manifest::Described(_) => Err(StoreError::Manifest {
                    digest: described.tree,
                    why: "what is described is no tree".into(),
                }),
            },
        }
    }

    fn fill(
        &mut self,
        tree: &Tree,
        root: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let mut destination = TreeDestination::open(root)?;
        tree.unfold(self, &mut |step| Ok(destination.apply(step)?), progress)
    }
}

impl Chunks for Lease {
    fn chunk(&mut self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Lease::chunk(self, digest).map(Some)
    }
}

/// Makes a directory, or sees that it is empty; whether it was made.
fn make_empty(root: &Path) -> Result<bool, StoreError> {
    match std::fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut entries = std::fs::read_dir(root).map_err(StoreError::io("read", root))?;
            if entries.next().is_some() { Err(StoreError::NotEmpty(root.to_owned())) } else { Ok(false) }
        }
        Err(error) => Err(StoreError::io("make", root)(error)),
    }
}
