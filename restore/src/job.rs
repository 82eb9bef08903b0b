//! What there is of a migration on this host, in memory and on disk.

use crate::error::DestinationError;
use crate::images::IncomingImages;
use crate::pages::IncomingPages;
use crate::recovery::Remains;
use crate::trees::Trees;
use godwit_engine::{DestinationContainer, Shipment};
use godwit_migration::journal::Journal;
use godwit_migration::lock::ContainerLock;
use godwit_migration::plan::Restoration;
use godwit_transfer::{Offer, TreeBase, TreeId};
use std::path::{Path, PathBuf};

/// What exists once an offer was accepted.
pub(crate) struct Job {
    pub(crate) offer: Offer,
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) bases: Vec<TreeBase>,
    pub(crate) shipment: Shipment,
    pub(crate) engine: usize,
    pub(crate) journal: Journal,
    pub(crate) trees: Trees,
    pub(crate) images: IncomingImages,
    pub(crate) pages: Option<IncomingPages>,
    pub(crate) restoration: Restoration,
    pub(crate) container: Option<Box<dyn DestinationContainer>>,
    /// What is written down of it, for whoever goes on when this process dies.
    pub(crate) remains: Option<Remains>,
    pub(crate) _lock: ContainerLock,
}

/// Opens an image directory when the first operation on it comes.
pub(crate) fn open_images(job: &mut Job, tree: TreeId, number: u16) -> Result<(), DestinationError> {
    if !job.trees.knows(tree) {
        let dir = job.images.dir_of(number);
        job.trees.open_private(tree, &dir)?;
    }
    Ok(())
}

/// Makes a directory for root alone.
pub(crate) fn private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The same as a step of a migration.
pub(crate) fn make_private(dir: &Path) -> Result<(), DestinationError> {
    private_dir(dir).map_err(|source| DestinationError::Io { act: "make", path: dir.to_owned(), source })
}

/// Images are secrets, and large: they go as soon as they are not needed. Journal and logs stay.
pub(crate) fn remove_images(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir.join("images")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
