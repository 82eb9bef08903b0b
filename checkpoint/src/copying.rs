//! One tree on its way into a checkpoint.

use crate::archive::make_private;
use crate::archive_error::ArchiveError;
use godwit_engine::Tree;
use godwit_migration::Cancel;
use godwit_transfer::tree::{Options, RoundError, TreeDestination, TreeIndex, TreeSource};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// See the [module](self).
pub(crate) struct Copying {
    pub(crate) tree: Tree,
    pub(crate) source: TreeSource,
    copy: TreeDestination,
    /// The file for what it hides, if it is a layer.
    pub(crate) gone: PathBuf,
}

impl Copying {
    /// Opens a tree of this host, and makes the directory for it.
    pub(crate) fn open(tree: &Tree, into: &Path) -> Result<Self, ArchiveError> {
        make_private(into)?;
        let failed = |source| ArchiveError::Tree { path: tree.content.clone(), source };
        let (source, copy) = match (&tree.merged, tree.path.file_name()) {
            (Some(merged), _) => (
                TreeSource::of_layer(&tree.content, merged, Options::default()),
                TreeDestination::open_changes(into),
            ),
            (None, name) => (
                TreeSource::new(&tree.content, TreeIndex::default(), Options::default()),
                match name.filter(|_| tree.single_file) {
                    Some(name) => TreeDestination::open_file(&into.join(name)),
                    None => TreeDestination::open(into),
                },
            ),
        };
        let (source, copy) = (source.map_err(failed)?, copy.map_err(failed)?);
        Ok(Self { tree: tree.clone(), source, copy, gone: into.with_extension("gone") })
    }

    /// Copies what has changed since the last round. Gives the bytes.
    pub(crate) fn round(&mut self, also: &HashSet<(u64, u64)>, cancel: &Cancel) -> Result<u64, ArchiveError> {
        let failed = |source| ArchiveError::Tree { path: self.tree.content.clone(), source };
        let copy = &mut self.copy;
        let stats = self.source.round(also, &mut |op| {
            if cancel.is_raised() { Err(ArchiveError::Interrupted) } else { copy.apply(op).map_err(failed) }
        });
        match stats {
            Ok(stats) => Ok(stats.bytes_sent),
            Err(RoundError::Tree(source)) => Err(failed(source)),
            Err(RoundError::Emit(error)) => Err(error),
        }
    }
}
