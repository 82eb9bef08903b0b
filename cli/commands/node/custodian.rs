//! Keeps the snapshots that visitors bring.

use godwit_neighbours::Keeper;
use godwit_neighbours::custody::told;
use godwit_neighbours::question::Verdict;
use godwit_store::manifest::Described;
use godwit_store::{Digest, Lease, Store};
use godwit_volumes::{History, Snapshot, VolumeError};
use std::path::{Path, PathBuf};

/// The history of this node's volumes, opened when the first snapshot is offered.
pub struct Custodian {
    root: PathBuf,
    quota: Option<u64>,
    history: Option<History>,
}

impl Custodian {
    /// Nothing is made yet.
    pub fn new(root: &Path, quota: Option<u64>) -> Self {
        Self { root: root.to_owned(), quota, history: None }
    }

    fn history(&mut self) -> Result<&History, VolumeError> {
        let history = match self.history.take() {
            Some(history) => history,
            None => History::open(&self.root, self.quota)?,
        };
        Ok(self.history.insert(history))
    }

    fn verdict(
        &mut self,
        manifest: Digest,
        snapshot: Snapshot,
        despite: bool,
    ) -> Result<Verdict, VolumeError> {
        let history = self.history()?;
        if history.list(Some(&snapshot.volume))?.iter().any(|here| here.manifest == manifest) {
            return Ok(Verdict::There);
        }
        if !despite {
            history.refuse_diverged(&[snapshot])?;
        }
        Ok(Verdict::Wanted)
    }
}

impl Keeper for Custodian {
    fn store(&mut self) -> Result<Store, String> {
        self.history().map(|history| history.store().clone()).map_err(|error| told(&error))
    }

    fn judge(&mut self, manifest: Digest, described: &Described, despite: bool) -> Verdict {
        let Some(snapshot) = Snapshot::offered(manifest, described) else {
            return Verdict::Refused("its facts are none of a snapshot".into());
        };
        self.verdict(manifest, snapshot, despite).unwrap_or_else(|error| match error {
            VolumeError::Diverged { divergence, .. } => Verdict::Diverged(divergence.to_string()),
            error => Verdict::Refused(told(&error)),
        })
    }

    fn keep(&mut self, lease: &mut Lease, manifest: Digest, described: &Described) -> Result<String, String> {
        let kept = self.history().and_then(|history| history.adopt(lease, manifest, described));
        kept.map(|snapshot| snapshot.id).map_err(|error| told(&error))
    }
}
