//! A snapshot and all that it needs, from the own store to one neighbour that keeps it; what is there already does not travel.

use crate::gather::Neighbour;
use crate::question::{MOST_ASKED, MOST_GIVEN, Unkept, Verdict};
use crate::visit::Visit;
use godwit_store::{Digest, Lease, Manifest, StoreError};
use std::collections::HashSet;

/// How often chunks are brought again that a collection took away meanwhile.
const TRIES: usize = 3;

/// Why it is not there.
#[derive(Debug, thiserror::Error)]
pub enum BringError {
    /// The neighbour, or the way to it.
    #[error("{0}")]
    Neighbour(String),
    /// It does not want it.
    #[error("{0}")]
    Refused(String),
    /// What it has has diverged from it.
    #[error("the histories have diverged: {0}")]
    Diverged(String),
    /// This host's store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brought {
    /// It was there.
    WasThere,
    /// It is there now.
    Kept {
        /// Bytes of all chunks that it needs, each counted once.
        needed_bytes: u64,
        /// Those that travelled.
        sent_bytes: u64,
    },
}

/// Brings what the manifest `described` describes, which the lease's store has. With `despite`, also when what is there has
/// diverged from it. `progress` hears how many bytes are there of all that it needs.
///
/// # Errors
/// When the neighbour does not keep it, or this host has not all of it. What has come there need not come again.
pub fn bring(
    to: &mut Visit,
    lease: &mut Lease,
    described: Digest,
    despite: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Brought, BringError> {
    let unfit = |why: &str| StoreError::Manifest { digest: described, why: why.into() };
    let Manifest::Described(facts) = lease.hold(described)? else {
        return Err(unfit("it describes no snapshot").into());
    };
    let store = lease.store().clone();
    match to.offer(&store.manifest_bytes(described)?, despite).map_err(BringError::Neighbour)? {
        Verdict::Wanted => {}
        Verdict::There => return Ok(Brought::WasThere),
        Verdict::Diverged(said) => return Err(BringError::Diverged(said)),
        Verdict::Refused(why) => return Err(BringError::Refused(why)),
    }
    let bytes = store.manifest_bytes(facts.tree)?;
    let Ok(Manifest::Tree(tree)) = Manifest::decode(&bytes) else {
        return Err(unfit("what it describes is no tree").into());
    };
    let mut seen = HashSet::new();
    let needs: Vec<(Digest, u64)> =
        tree.needs().into_iter().filter(|(digest, _)| seen.insert(*digest)).collect();
    let needed_bytes = needs.iter().map(|(_, bytes)| bytes).sum();
    let mut sent_bytes = 0;
    for _ in 0..TRIES {
        let missing = missing(to, &needs)?;
        let mut there = needed_bytes - missing.iter().map(|(_, bytes)| bytes).sum::<u64>();
        for group in missing.chunks(MOST_GIVEN) {
            progress(there, needed_bytes);
            let chunk = |(digest, _): &(Digest, u64)| Ok((*digest, store.chunk_as_stored(*digest)?));
            let chunks = group.iter().map(chunk).collect::<Result<Vec<_>, StoreError>>()?;
            to.bring(chunks).map_err(BringError::Neighbour)?;
            let bytes = group.iter().map(|(_, bytes)| bytes).sum::<u64>();
            (sent_bytes, there) = (sent_bytes + bytes, there + bytes);
        }
        progress(there, needed_bytes);
        match to.have_kept(&bytes).map_err(BringError::Neighbour)? {
            Ok(_) => return Ok(Brought::Kept { needed_bytes, sent_bytes }),
            // what was there went while the others came
            Err(Unkept::Lost) => {}
            Err(Unkept::Refused(why)) => return Err(BringError::Refused(why)),
        }
    }
    Err(BringError::Refused("its store lets go of what comes".into()))
}

/// What it does not have.
fn missing(at: &mut Visit, needs: &[(Digest, u64)]) -> Result<Vec<(Digest, u64)>, BringError> {
    let mut missing = Vec::new();
    for asked in needs.chunks(MOST_ASKED) {
        let digests: Vec<Digest> = asked.iter().map(|(digest, _)| *digest).collect();
        let has = at.has(&digests).map_err(BringError::Neighbour)?;
        missing.extend(asked.iter().zip(has).filter(|(_, has)| !has).map(|(need, _)| *need));
    }
    Ok(missing)
}

#[cfg(test)]
mod tests;
