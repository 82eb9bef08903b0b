//! A snapshot and all that it needs, from one neighbour into the own store; what is there already does not travel.

use crate::gather::Neighbour;
use crate::question::MOST_GIVEN;
use godwit_store::manifest::Described;
use godwit_store::{Digest, Lease, Manifest, StoreError};
use std::collections::HashSet;

/// How often chunks are fetched again that a collection took away meanwhile.
const TRIES: usize = 3;

/// Why it did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The neighbour.
    #[error("{0}")]
    Neighbour(String),
    /// This host's store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What is known of it.
    pub described: Described,
    /// Bytes of all chunks that it needs, each counted once.
    pub needed_bytes: u64,
    /// Those that travelled.
    pub received_bytes: u64,
}

/// Brings what the manifest `described` describes; it stays as long as the lease, or as it is pinned. `progress` hears how many bytes
/// there are of all that it needs.
///
/// # Errors
/// When the neighbour has not all of it, or gives something else, or the store says no. What has come need not come again.
pub fn fetch(
    from: &mut dyn Neighbour,
    lease: &mut Lease,
    described: Digest,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Fetched, FetchError> {
    let Some(Manifest::Described(facts)) = manifest(from, described)? else {
        return Err(FetchError::Neighbour(format!("it has no snapshot {described}")));
    };
    let Some(Manifest::Tree(tree)) = manifest(from, facts.tree)? else {
        return Err(FetchError::Neighbour(format!("it has not all of snapshot {described}")));
    };
    let mut seen = HashSet::new();
    let needs: Vec<(Digest, u64)> =
        tree.needs().into_iter().filter(|(digest, _)| seen.insert(*digest)).collect();
    let mut fetched = Fetched {
        described: facts,
        needed_bytes: needs.iter().map(|(_, bytes)| bytes).sum(),
        received_bytes: 0,
    };
    let tree = Manifest::Tree(tree);
    for _ in 0..TRIES {
        let missing: Vec<&(Digest, u64)> =
            needs.iter().filter(|(digest, _)| !lease.store().has_chunk(*digest)).collect();
        let mut there = fetched.needed_bytes - missing.iter().map(|(_, bytes)| bytes).sum::<u64>();
        for group in missing.chunks(MOST_GIVEN) {
            progress(there, fetched.needed_bytes);
            let digests: Vec<Digest> = group.iter().map(|(digest, _)| *digest).collect();
            for (digest, chunk) in digests.iter().zip(from.give(&digests).map_err(FetchError::Neighbour)?) {
                let lost = || FetchError::Neighbour(format!("it has lost chunk {digest}"));
                let chunk = chunk.ok_or_else(lost)?;
                lease.put_chunk(&chunk)?;
                fetched.received_bytes += chunk.len() as u64;
                there += chunk.len() as u64;
            }
        }
        progress(there, fetched.needed_bytes);
        match lease.put_manifest(&tree) {
            // what was there went while the others came
            Err(StoreError::Missing(_)) => {}
            put => {
                put?;
                lease.put_manifest(&Manifest::Described(fetched.described.clone()))?;
                return Ok(fetched);
            }
        }
    }
    Err(FetchError::Neighbour("the store lets go of what comes".into()))
}

fn manifest(from: &mut dyn Neighbour, digest: Digest) -> Result<Option<Manifest>, FetchError> {
    from.manifest(digest).map_err(FetchError::Neighbour)
}
