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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Visit, attend};
    use godwit_migration::Cancel;
    use godwit_store::Store;
    use godwit_transfer::{Descriptors, Wire};
    use std::path::Path;
    use std::time::Duration;

    fn visit<T>(store: &Store, ask: impl FnOnce(&mut Visit) -> T) -> T {
        let (ours, theirs) = Descriptors::pair().unwrap();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut wire =
                    Wire::open(Box::new(theirs), Cancel::default(), Duration::from_secs(5)).unwrap();
                wire.hear().unwrap();
                attend(&mut wire, Some(store), "there", None, Err("no".into()))
            });
            let mut visit = Visit::begin("there", Box::new(ours), "here", Cancel::default()).unwrap();
            let answer = ask(&mut visit);
            drop(visit);
            server.join().unwrap().unwrap();
            answer
        })
    }

    /// A snapshot of a volume; the manifest that describes it.
    fn keep(store: &Store, volume: &Path, second: u64) -> Digest {
        let mut lease = store.lease().unwrap();
        let added = lease.add_tree(volume, &mut |_| {}).unwrap();
        let facts = [("volume", "data".to_owned()), ("made_unix_us", format!("{second}000000"))];
        let facts = facts.map(|(name, fact)| (name.to_owned(), fact)).into();
        let manifest = lease.describe(added.manifest, facts).unwrap();
        lease.pin(&format!("snapshot/data-{second}").parse().unwrap(), manifest).unwrap();
        manifest
    }

    #[test]
    fn a_snapshot_comes_once_and_of_the_next_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        let there = Store::open(&dir.path().join("there"), None).unwrap();
        let here = Store::open(&dir.path().join("here"), None).unwrap();
        std::fs::write(volume.join("one"), vec![1; 300_000]).unwrap();
        let first = keep(&there, &volume, 1);
        std::fs::write(volume.join("other"), vec![2; 5_000]).unwrap();
        let second = keep(&there, &volume, 2);
        let mut lease = here.lease().unwrap();
        visit(&there, |visit| {
            assert_eq!(visit.snapshots("data").unwrap(), [second, first]);
            assert_eq!(visit.snapshots("another").unwrap(), []);
            let mut bring = |manifest| fetch(visit, &mut lease, manifest, &mut |_, _| {});
            let came = bring(first).unwrap();
            assert_eq!(came.needed_bytes, came.received_bytes);
            let came = bring(second).unwrap();
            assert_eq!(came.received_bytes, 5_000);
            assert_eq!(bring(second).unwrap().received_bytes, 0);
            assert!(matches!(bring(Digest::of(b"none")), Err(FetchError::Neighbour(_))));
        });
        let copy = dir.path().join("copy");
        lease.materialise(second, &copy, &mut |_, _| {}).unwrap();
        assert_eq!(std::fs::read(copy.join("other")).unwrap(), vec![2; 5_000]);
        assert_eq!(std::fs::read(copy.join("one")).unwrap(), vec![1; 300_000]);
    }

    #[test]
    fn what_the_neighbour_has_lost_is_said_and_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("file"), "content").unwrap();
        let there = Store::open(&dir.path().join("there"), None).unwrap();
        let here = Store::open(&dir.path().join("here"), None).unwrap();
        let manifest = keep(&there, &volume, 1);
        let chunk = Digest::of(b"content").to_string();
        std::fs::remove_file(there.root().join("chunks").join(&chunk[..2]).join(&chunk)).unwrap();
        let mut lease = here.lease().unwrap();
        let came = visit(&there, |visit| fetch(visit, &mut lease, manifest, &mut |_, _| {}));
        assert!(matches!(came, Err(FetchError::Neighbour(why)) if why.contains(&chunk)));
        assert!(here.manifest_bytes(manifest).is_err());
    }
}
