//! A neighbour's side of what visitors bring: a snapshot is offered, what is not there comes, each piece is verified, and then it is kept.
//!
//! What has come stays in the store for a while when the visitor goes in the midst of it, so that it need not come again. Nothing
//! is named before all of it is there.

use crate::question::{Unkept, Verdict};
use crate::stream::{StreamAnswer, StreamOffer, StreamQuestion, StreamVerdict};
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

    /// Gets ready for the stream of a snapshot that a file system keeps, if it is wanted and can be kept so.
    fn await_stream(
        &mut self,
        manifest: Digest,
        described: &Described,
        offer: &StreamOffer,
    ) -> StreamVerdict {
        let _ = (manifest, described, offer);
        StreamVerdict::Store("no streams are taken there".into())
    }

    /// Takes a piece of it.
    ///
    /// # Errors
    /// Why not; nothing of it is there then.
    fn take_stream(&mut self, piece: &[u8]) -> Result<(), String> {
        let _ = piece;
        Err("no stream is awaited".into())
    }

    /// Keeps it, now that all of it has come. Its name here.
    ///
    /// # Errors
    /// Why it cannot be kept; nothing of it is there then.
    fn keep_stream(&mut self) -> Result<String, String> {
        Err("no stream is awaited".into())
    }
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

    /// About a stream that is brought; none for a question about what could be had.
    pub(crate) fn stream(&mut self, question: &StreamQuestion) -> Option<StreamAnswer> {
        Some(match question {
            StreamQuestion::Offer(offer) => StreamAnswer::Offer(match Manifest::decode(&offer.described) {
                Ok(Manifest::Described(described)) => {
                    self.keeper.await_stream(Digest::of(&offer.described), &described, offer)
                }
                Ok(Manifest::Tree(_)) => StreamVerdict::Refused("it is no snapshot".into()),
                Err(why) => StreamVerdict::Refused(why),
            }),
            StreamQuestion::Take(piece) => StreamAnswer::Taken(self.keeper.take_stream(piece)),
            StreamQuestion::Keep => StreamAnswer::Keeps(self.keeper.keep_stream()),
            _ => return None,
        })
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
