//! An image of a place comes to this host's store: what the store has already does not travel.

use std::collections::HashSet;

use godwit_store::{Digest, Lease, Manifest, StoreError};
use tokio::task::JoinSet;

use crate::index::Keys;
use crate::pack::PackEntry;
use crate::place::{AT_ONCE, PACKS};
use crate::{Index, Place, PlaceError};

/// How often packs are fetched again of which a collection took something away meanwhile.
const TRIES: usize = 3;

/// What came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Downloaded {
    /// Bytes of all chunks that it needs, each counted once.
    pub needed_bytes: u64,
    /// Bytes of packs that travelled.
    pub received_bytes: u64,
}

/// Brings an image into the store; it stays as long as the lease, or as it is pinned. `progress` hears how many bytes of it are here.
///
/// # Errors
/// When the place has not all of it, anything is damaged or encrypted for others, or the store says no. What has come need not come again.
pub fn download(
    place: &Place,
    lease: &mut Lease,
    index: &Index,
    keys: Keys<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Downloaded, PlaceError> {
    let needs: HashSet<(Digest, u64)> = index.tree.needs().into_iter().collect();
    let total = needs.iter().map(|(_, bytes)| bytes).sum();
    let mut downloaded = Downloaded { needed_bytes: total, received_bytes: 0 };
    let tree = Manifest::Tree(index.tree.clone());
    for _ in 0..TRIES {
        let missing: HashSet<(Digest, u64)> =
            needs.iter().filter(|(digest, _)| !lease.store().has_chunk(*digest)).copied().collect();
        let mut here = total - missing.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let mut missing: HashSet<Digest> = missing.into_iter().map(|(digest, _)| digest).collect();
        progress(here, total);
        // a chunk may be in several packs, and is fetched once
        let mut packs = Vec::new();
        for pack in &index.packs {
            let wanted: HashSet<Digest> = pack
                .chunks
                .iter()
                .map(|(digest, _)| *digest)
                .filter(|digest| missing.remove(digest))
                .collect();
            if !wanted.is_empty() {
                downloaded.received_bytes += pack.bytes;
                packs.push((pack, wanted));
            }
        }
        read(place, &packs, keys, &mut |chunk| {
            here += chunk.len() as u64;
            lease.put_chunk(&chunk)?;
            progress(here, total);
            Ok(())
        })?;
        match lease.put_manifest(&tree) {
            // what was here went while the rest came
            Err(StoreError::Missing(_)) => {}
            put => {
                put?;
                lease.put_manifest(&Manifest::Described(index.described.clone()))?;
                return Ok(downloaded);
            }
        }
    }
    Err(StoreError::Unfit("the store lets go of what comes".into()).into())
}

/// Reads all of an image, and keeps nothing. Gives how many chunks there are.
///
/// # Errors
/// As [`download`].
pub fn verify(
    place: &Place,
    index: &Index,
    keys: Keys<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64, PlaceError> {
    let all = |pack: &PackEntry| pack.chunks.iter().map(|(digest, _)| *digest).collect();
    let packs: Vec<(&PackEntry, HashSet<Digest>)> =
        index.packs.iter().map(|pack| (pack, all(pack))).collect();
    let total = packs.iter().map(|(_, chunks)| chunks.len() as u64).sum();
    let mut done = 0;
    read(place, &packs, keys, &mut |_| {
        done += 1;
        progress(done, total);
        Ok(())
    })?;
    Ok(done)
}

/// Reads packs, several at once, and gives the chunks of each that are wanted, verified, in the order in which packs come.
fn read(
    place: &Place,
    packs: &[(&PackEntry, HashSet<Digest>)],
    keys: Keys<'_>,
    take: &mut dyn FnMut(Vec<u8>) -> Result<(), PlaceError>,
) -> Result<(), PlaceError> {
    let mut tasks = JoinSet::new();
    let mut next = packs.iter().enumerate();
    loop {
        while tasks.len() < AT_ONCE
            && let Some((number, (pack, _))) = next.next()
        {
            let (objects, name, bytes) = (place.objects(), pack.name, pack.bytes);
            let path = objects.path(&format!("{PACKS}/{name}"));
            let get = async move { Ok((number, objects.get_sized(path, bytes).await?)) };
            tasks.spawn_on(get, place.runtime.handle());
        }
        let come = place.wait(async {
            match tasks.join_next().await {
                Some(Ok(come)) => come.map(Some),
                Some(Err(error)) => Err(PlaceError::Unusable(error.to_string())),
                None => Ok(None),
            }
        })?;
        let Some((number, bytes)) = come else { return Ok(()) };
        let (pack, wanted) = &packs[number];
        for (_, chunk) in pack.unpack(bytes, keys, &|digest| wanted.contains(&digest))? {
            take(chunk)?;
        }
    }
}
