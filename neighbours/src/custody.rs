//! A neighbour's side of what visitors bring: a snapshot is offered, what is not there comes, each piece is verified, and then it is kept.
//!
//! What has come stays in the store for a while when the visitor goes in the midst of it, so that it need not come again. Nothing
//! is named before all of it is there.

use crate::question::{Unkept, Verdict};
use godwit_store::manifest::Described;
use godwit_store::object::MAX_MANIFEST;
use godwit_store::{Digest, Lease, Manifest, ObjectId, Store, StoreError, object};
use serde_bytes::ByteBuf;

/// Who keeps snapshots that visitors bring.
pub trait Keeper {
    /// Where they are kept. It is made when there is none.
    ///
    /// # Errors
    /// Why nothing can be kept.
    fn store(&mut self) -> Result<Store, String>;

    /// Whether this one is wanted. With `despite`, also when it is of a history that has diverged from what is here.
    fn judge(&mut self, manifest: Digest, described: &Described, despite: bool) -> Verdict;

    /// Keeps one of which all is in the store, by the lease. Its name here.
    ///
    /// # Errors
    /// Why it cannot be kept.
    fn keep(&mut self, lease: &mut Lease, manifest: Digest, described: &Described) -> Result<String, String>;
}

/// What one visitor brings.
pub(crate) struct Custody<'a> {
    keeper: &'a mut dyn Keeper,
    offered: Option<Offered>,
}

/// A snapshot that is wanted.
struct Offered {
    manifest: Digest,
    described: Described,
    lease: Lease,
    tree: Vec<u8>,
}

impl<'a> Custody<'a> {
    pub(crate) fn new(keeper: &'a mut dyn Keeper) -> Self {
        Self { keeper, offered: None }
    }

    /// Where it goes, once something was offered.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.offered.as_ref().map(|offered| offered.lease.store())
    }

    pub(crate) fn expects(&self) -> bool {
        self.offered.is_some()
    }

    pub(crate) fn offered(&mut self, bytes: &[u8], despite: bool) -> Verdict {
        self.offered = None;
        let described = match Manifest::decode(bytes) {
            Ok(Manifest::Described(described)) => described,
            Ok(Manifest::Tree(_)) => return Verdict::Refused("it is no snapshot".into()),
            Err(why) => return Verdict::Refused(why),
        };
        let manifest = Digest::of(bytes);
        let verdict = self.keeper.judge(manifest, &described, despite);
        if verdict != Verdict::Wanted {
            return verdict;
        }
        let lease = self.keeper.store().and_then(|store| store.lease().map_err(|error| error.to_string()));
        match lease {
            Ok(lease) => self.offered = Some(Offered { manifest, described, lease, tree: Vec::new() }),
            Err(why) => return Verdict::Refused(why),
        }
        verdict
    }

    pub(crate) fn take(&mut self, chunks: &[(Digest, ByteBuf)]) -> Result<(), String> {
        let offered = self.offered.as_mut().ok_or("nothing was offered")?;
        for (digest, chunk) in chunks {
            let bytes = object::decode(ObjectId::chunk(*digest), chunk)
                .map_err(|why| format!("what came for chunk {digest} is something else: {why}"))?;
            offered.lease.put_chunk(&bytes).map_err(|error| told(&error))?;
        }
        Ok(())
    }

    pub(crate) fn take_tree(&mut self, total: u64, from: u64, piece: &[u8]) -> Result<(), String> {
        let tree = &mut self.offered.as_mut().ok_or("nothing was offered")?.tree;
        if from == 0 {
            tree.clear();
        }
        let is_next = from == tree.len() as u64 && from + piece.len() as u64 <= total;
        if !is_next || total > MAX_MANIFEST as u64 {
            return Err("a piece of a manifest that does not fit".into());
        }
        tree.extend_from_slice(piece);
        Ok(())
    }

    pub(crate) fn keep(&mut self) -> Result<String, Unkept> {
        let refused = |error: StoreError| match error {
            StoreError::Missing(_) => Unkept::Lost,
            error => Unkept::Refused(told(&error)),
        };
        let offered = self.offered.as_mut().ok_or_else(|| Unkept::Refused("nothing was offered".into()))?;
        if Digest::of(&offered.tree) != offered.described.tree {
            return Err(Unkept::Refused("what came is not its tree".into()));
        }
        let tree = Manifest::decode(&offered.tree).map_err(Unkept::Refused)?;
        if !matches!(tree, Manifest::Tree(_)) {
            return Err(Unkept::Refused("what is described is no tree".into()));
        }
        offered.lease.put_manifest(&tree).map_err(refused)?;
        offered.lease.put_manifest(&Manifest::Described(offered.described.clone())).map_err(refused)?;
        let Offered { manifest, described, lease, .. } = offered;
        let kept = self.keeper.keep(lease, *manifest, described).map_err(Unkept::Refused)?;
        self.offered = None;
        Ok(kept)
    }
}

/// An error with its causes, for whoever is elsewhere.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}
