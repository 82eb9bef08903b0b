//! Keeps the snapshots that visitors bring.

use godwit_neighbours::custody::told;
use godwit_neighbours::question::Verdict;
use godwit_neighbours::{Keeper, StreamOffer, StreamVerdict};
use godwit_store::manifest::Described;
use godwit_store::{Digest, Lease, Store};
use godwit_volumes::{Awaited, History, Reception, Snapshot, VolumeError};
use std::path::{Path, PathBuf};

/// The history of this node's volumes, opened when the first snapshot is offered.
pub struct Custodian {
    root: PathBuf,
    quota: Option<u64>,
    history: Option<History>,
    /// A snapshot that is coming as a stream.
    coming: Option<Reception>,
}

impl Custodian {
    /// Nothing is made yet.
    pub fn new(root: &Path, quota: Option<u64>) -> Self {
        Self { root: root.to_owned(), quota, history: None, coming: None }
    }

    fn history(&mut self) -> Result<&History, VolumeError> {
        let history = match self.history.take() {
            Some(history) => history,
            None => History::open(&self.root, self.quota)?,
        };
        Ok(self.history.insert(history))
    }

    fn verdict(&mut self, snapshot: &Snapshot, despite: bool) -> Result<Verdict, VolumeError> {
        let history = self.history()?;
        if history.same(snapshot)?.is_some() {
            return Ok(Verdict::There);
        }
        if !despite {
            history.refuse_diverged(std::slice::from_ref(snapshot))?;
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
        self.verdict(&snapshot, despite).unwrap_or_else(|error| match error {
            VolumeError::Diverged { divergence, .. } => Verdict::Diverged(divergence.to_string()),
            error => Verdict::Refused(told(&error)),
        })
    }

    fn keep(&mut self, lease: &mut Lease, manifest: Digest, described: &Described) -> Result<String, String> {
        let kept = self.history().and_then(|history| history.adopt(lease, manifest, described));
        kept.map(|snapshot| snapshot.id).map_err(|error| told(&error))
    }

    fn await_stream(
        &mut self,
        manifest: Digest,
        described: &Described,
        offer: &StreamOffer,
    ) -> StreamVerdict {
        self.coming = None;
        let Some(offered) = Snapshot::known(manifest, described).filter(|offered| offered.kept.is_some())
        else {
            return StreamVerdict::Refused(
                "its facts are none of a snapshot that a file system keeps".into(),
            );
        };
        // the quota is the store's; no stream may have more than that either
        let room = self.quota.unwrap_or(u64::MAX);
        let awaited = match self.verdict(&offered, offer.despite) {
            Ok(Verdict::There) => return StreamVerdict::There,
            Ok(_) => self
                .history()
                .and_then(|history| history.await_stream(&offered, offer.mark, &offer.parents, room)),
            Err(error) => Err(error),
        };
        match awaited {
            Ok(Awaited::There(_)) => StreamVerdict::There,
            Ok(Awaited::Stream(reception)) => StreamVerdict::Wanted(self.coming.insert(*reception).parent()),
            Err(error @ VolumeError::Moment(_)) => StreamVerdict::Store(told(&error)),
            Err(VolumeError::Diverged { divergence, .. }) => StreamVerdict::Diverged(divergence.to_string()),
            Err(error) => StreamVerdict::Refused(told(&error)),
        }
    }

    fn take_stream(&mut self, piece: &[u8]) -> Result<(), String> {
        let coming = self.coming.as_mut().ok_or("no stream is awaited")?;
        let taken = coming.take(piece).map_err(|error| told(&error));
        if taken.is_err() {
            self.coming = None;
        }
        taken
    }

    fn keep_stream(&mut self) -> Result<String, String> {
        let coming = self.coming.take().ok_or("no stream is awaited")?;
        let kept = self.history().and_then(|history| coming.keep(history));
        kept.map(|snapshot| snapshot.id).map_err(|error| told(&error))
    }
}
