//! CRIU's images as they arrive: rounds are taken in while the container still runs at the source, so that under the
//! freeze only the final dump's own pages remain to be put in their places.

use godwit_criu::images::{ImageError, PageStore};
use godwit_migration::plan::Tracker;
use std::path::{Path, PathBuf};

/// The image directories of one migration.
pub struct IncomingImages {
    dir: PathBuf,
    store: Option<PageStore>,
}

impl IncomingImages {
    /// Below the job's directory. With a tracker the images of later rounds refer to earlier ones, and are put together at
    /// the end; without one there is a single dump that stands alone.
    ///
    /// # Errors
    /// When the page store cannot be made.
    pub fn new(job: &Path, tracker: Option<Tracker>) -> Result<Self, ImageError> {
        let dir = job.join("images");
        let store = match tracker.filter(|tracker| !tracker.reads_from_outside()) {
            Some(_) => Some(PageStore::create(dir.join("store"))?),
            None => None,
        };
        Ok(Self { dir, store })
    }

    /// Where the images of a memory round go.
    pub fn dir_of(&self, round: u16) -> PathBuf {
        self.dir.join(round.to_string())
    }

    /// A round is complete: its pages replace older ones.
    ///
    /// # Errors
    /// When its images do not hold together.
    pub fn absorb(&mut self, round: u16) -> Result<(), ImageError> {
        let dir = self.dir_of(round);
        if let Some(store) = &mut self.store {
            let report = store.absorb(&dir)?;
            tracing::debug!(round, ?report, "pages taken in");
        }
        Ok(())
    }

    /// The final dump is complete: one flat image, in which restore never looks for a parent.
    ///
    /// # Errors
    /// When a page is missing or the images do not hold together.
    pub fn compose(&mut self, last: u16) -> Result<PathBuf, ImageError> {
        let dir = self.dir_of(last);
        match self.store.take() {
            Some(store) => {
                let flat = self.dir.join("flat");
                let report = store.compose(&dir, &flat)?;
                tracing::debug!(?report, "image composed");
                Ok(flat)
            }
            None => Ok(dir),
        }
    }
}
