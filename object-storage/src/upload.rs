//! An image of this host's store goes to a place: what is not there yet in packs, several at once, and its index at the end. Before the
//! index it names the packs that it relies on, and looks whether a collection is about to take any of them away ([`crate::records`]).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use godwit_checkpoint::sealed::Recipients;
use godwit_store::manifest::Tree;
use godwit_store::{Digest, Lease, Manifest, StoreError};
use object_store::PutPayload;
use tokio::task::JoinSet;

use crate::bucket::{REQUEST_LIMIT, RETRIES};
use crate::error::Refusal;
use crate::ledger::Ledger;
use crate::pack::{PackEntry, Packing};
use crate::place::{AT_ONCE, Objects, PACKS, PART};
use crate::records::{self, GRACE, Records, Reservation};
use crate::{Index, Kind, Place, PlaceError};

/// A collection takes an upload in parts for dead that was begun [`GRACE`] ago. One that lives is over long before: it is begun, has at most two
/// parts ([`crate::pack::FULL`]) and is completed, each of which ends at the latest when all tries have.
const _: () = assert!(4 * (RETRIES as u64 + 1) * REQUEST_LIMIT.as_secs() < GRACE.as_secs() / 2);

/// How often what a collection takes away meanwhile is put again.
const TRIES: usize = 3;

/// What goes where.
pub struct Order<'a> {
    /// The image's manifest, which says what is known of a tree.
    pub manifest: Digest,
    /// What it is.
    pub kind: Kind,
    /// Who alone may read it; none: everybody who can read the place.
    pub recipients: Option<&'a Recipients>,
    /// The directory of this host's ledgers.
    pub ledgers: &'a Path,
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Bytes of all chunks that it needs, each counted once.
    pub needed_bytes: u64,
    /// Bytes that were put, compressed and perhaps encrypted.
    pub sent_bytes: u64,
    /// Packs that were put.
    pub packs: u64,
}

/// Puts an image into a place. Once more after it was broken off only puts what is missing. `progress` hears how many bytes of all that the
/// image needs are there.
///
/// # Errors
/// When the place or the store says no. What was put stays, for the next time; an upload in parts that is not complete goes.
pub fn upload(
    place: &Place,
    lease: &mut Lease,
    order: &Order<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Uploaded, PlaceError> {
    place.claim()?;
    let Manifest::Described(described) = lease.hold(order.manifest)? else {
        let why = "nothing is known of the tree".into();
        return Err(StoreError::Manifest { digest: order.manifest, why }.into());
    };
    let tree = lease.tree(described.tree)?;
    let recipients = order.recipients.map(Recipients::names).unwrap_or_default();
    let mut ledger = Ledger::open(order.ledgers, place.name(), &recipients)?;
    ledger.clear(place)?;
    let known = known(place, &ledger)?;
    let ledger = Arc::new(Mutex::new(ledger));
    let mut sending =
        Sending { place, ledger: &ledger, tasks: JoinSet::new(), packs: known, sent: Uploaded::default() };
    let reservation = Reservation::new(place)?;
    for _ in 0..TRIES {
        let sent = send(&mut sending, lease, &tree, order.recipients, progress);
        sending.end();
        ledger.lock().unwrap_or_else(PoisonError::into_inner).clear(place)?;
        sent?;
        let packs = used(&sending.packs, &tree);
        let names: Vec<(Digest, u64)> = packs.iter().map(|pack| (pack.name, pack.bytes)).collect();
        let (held, lost) = reservation.hold(&names)?;
        if !lost.is_empty() {
            tracing::debug!(packs = lost.len(), "a collection takes them: what is in them goes once more");
            sending.packs.retain(|pack| !lost.contains(&pack.name));
            continue;
        }
        let index =
            Index { manifest: order.manifest, described: described.clone(), packs, tree: tree.clone() };
        let bytes = index.encode(order.recipients)?;
        sending.sent.sent_bytes += bytes.len() as u64;
        place.put(&format!("{}/{}", order.kind.directory(), order.manifest), bytes)?;
        if Reservation::was_in_time(held, place.written(order.kind, order.manifest)?) {
            return Ok(sending.sent);
        }
    }
    Err(PlaceError::Unusable("what is put there goes before it is complete".into()))
}

/// The packs that were put from here, and are there for longer than a collection might leave them.
fn known(place: &Place, ledger: &Ledger) -> Result<Vec<PackEntry>, PlaceError> {
    let now = place.now()?;
    let since = records::since(&place.records(Records::Condemned)?);
    let there = place.packs()?;
    let is_there = |pack: &&PackEntry| {
        let is_whole = there.get(&pack.name).is_some_and(|listed| listed.bytes == pack.bytes);
        is_whole && !records::is_doomed(&since, pack.name, now)
    };
    Ok(ledger.packs().filter(is_there).cloned().collect())
}

/// Those of the packs that the tree needs.
fn used(packs: &[PackEntry], tree: &Tree) -> Vec<PackEntry> {
    let mut place_of: HashMap<Digest, usize> = HashMap::new();
    for (number, pack) in packs.iter().enumerate() {
        for (digest, _) in &pack.chunks {
            place_of.entry(*digest).or_insert(number);
        }
    }
    let used: BTreeSet<usize> =
        tree.needs().iter().filter_map(|(digest, _)| place_of.get(digest)).copied().collect();
    used.into_iter().map(|number| packs[number].clone()).collect()
}

/// What is under way.
struct Sending<'a> {
    place: &'a Place,
    ledger: &'a Arc<Mutex<Ledger>>,
    /// Each gives how many bytes of the image its pack has.
    tasks: JoinSet<Result<u64, PlaceError>>,
    /// Those that are there, and those on their way.
    packs: Vec<PackEntry>,
    sent: Uploaded,
}

fn send(
    sending: &mut Sending<'_>,
    lease: &mut Lease,
    tree: &Tree,
    recipients: Option<&Recipients>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), PlaceError> {
    let mut seen = HashSet::new();
    let needs: Vec<(Digest, u64)> =
        tree.needs().into_iter().filter(|(digest, _)| seen.insert(*digest)).collect();
    let there: HashSet<Digest> =
        sending.packs.iter().flat_map(|pack| &pack.chunks).map(|(digest, _)| *digest).collect();
    let total = needs.iter().map(|(_, bytes)| bytes).sum();
    let mut done = needs.iter().filter(|(digest, _)| there.contains(digest)).map(|(_, bytes)| bytes).sum();
    sending.sent.needed_bytes = total;
    progress(done, total);
    let (mut packing, mut plain) = (Packing::default(), 0);
    for (digest, bytes) in needs.iter().filter(|(digest, _)| !there.contains(digest)) {
        packing.add(*digest, &lease.store().chunk_as_stored(*digest)?);
        plain += bytes;
        if packing.is_full() {
            while sending.tasks.len() >= AT_ONCE {
                done += sending.next()?;
                progress(done, total);
            }
            sending.begin(&mut packing, recipients, std::mem::take(&mut plain))?;
        }
    }
    if !packing.is_empty() {
        sending.begin(&mut packing, recipients, plain)?;
    }
    while !sending.tasks.is_empty() {
        done += sending.next()?;
        progress(done, total);
    }
    Ok(())
}

impl Sending<'_> {
    /// Nothing goes any more.
    fn end(&mut self) {
        self.tasks.abort_all();
        let (place, tasks) = (self.place, &mut self.tasks);
        place.runtime.block_on(async { while tasks.join_next().await.is_some() {} });
    }

    fn begin(
        &mut self,
        packing: &mut Packing,
        recipients: Option<&Recipients>,
        plain: u64,
    ) -> Result<(), PlaceError> {
        let (pack, bytes) = packing.close(recipients)?;
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).note(&pack)?;
        self.sent.sent_bytes += pack.bytes;
        self.sent.packs += 1;
        let (objects, ledger, name) = (self.place.objects(), self.ledger.clone(), pack.name);
        self.packs.push(pack);
        let put = async move { put(&objects, &ledger, name, bytes).await.map(|()| plain) };
        self.tasks.spawn_on(put, self.place.runtime.handle());
        Ok(())
    }

    /// Waits for the next that is there.
    fn next(&mut self) -> Result<u64, PlaceError> {
        let (place, tasks) = (self.place, &mut self.tasks);
        place.wait(async {
            match tasks.join_next().await {
                Some(Ok(ended)) => ended,
                Some(Err(error)) => Err(PlaceError::Unusable(error.to_string())),
                None => Ok(0),
            }
        })
    }
}

/// Puts a pack, a large one in parts. What is begun and not ended the ledger knows.
async fn put(
    objects: &Objects,
    ledger: &Mutex<Ledger>,
    name: Digest,
    bytes: Vec<u8>,
) -> Result<(), PlaceError> {
    let path = objects.path(&format!("{PACKS}/{name}"));
    let Some(parts) = objects.parts.as_ref().filter(|_| bytes.len() > PART) else {
        return objects.put(path, bytes).await;
    };
    let failed = || PlaceError::object("write", &path);
    let upload = parts.create_multipart(&path).await.map_err(failed())?;
    let begun = (path.to_string(), upload);
    ledger.lock().unwrap_or_else(PoisonError::into_inner).begin(&begun)?;
    let mut done = Vec::new();
    for (number, part) in bytes.chunks(PART).enumerate() {
        let part = PutPayload::from(part.to_vec());
        let put = parts.put_part(&path, &begun.1, number, part).await.map_err(failed());
        done.push(put.map_err(unknown_upload)?);
    }
    let completed = parts.complete_multipart(&path, &begun.1, done).await.map_err(failed());
    completed.map_err(unknown_upload)?;
    ledger.lock().unwrap_or_else(PoisonError::into_inner).end(&begun)
}

/// What is missing is the upload that was begun, and not the bucket.
fn unknown_upload(error: PlaceError) -> PlaceError {
    match error {
        PlaceError::Object { act, object, refusal: Refusal::Missing, .. } => {
            let why = "the server does not know this upload any more (NoSuchUpload): a collection lets go of one that was begun a day ago";
            PlaceError::Object { act, object, why: why.into(), refusal: Refusal::Failed }
        }
        error => error,
    }
}
