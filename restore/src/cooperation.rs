//! Content of the container's files and memory that need not come from the source: this host's store has it, or a neighbour.
//!
//! What was gathered is written into the trees, and then read: the source is told what is really there, and sends what differs. So
//! neither a store nor a neighbour is believed anything. Of memory the pages of an earlier checkpoint are put where pages are kept
//! that an earlier attempt has brought, and count as those: the source compares their digests with the pages that there are.

mod choice;
mod earlier;
mod signs;

use crate::destination::{Destination, Host};
use crate::error::DestinationError;
use crate::job::Job;
use crate::pages::{IncomingPages, PagesError};
use godwit_migration::report::{CooperationReport, NeighbourReport};
use godwit_neighbours::{Acquaintance, Aside, Gathering, Needs, Neighbour, gather};
use godwit_store::manifest::{Manifest, Tree};
use godwit_store::object::MAX_MANIFEST;
use godwit_store::{Digest, Store, StoreError, store_of};
use godwit_transfer::tree::TreeIndex;
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Address, Incoming, Message, TreeBase, TreeId, Wire, WireError};
use signs::Signs;
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Nodes of the catalog that are asked for one container at most.
const MOST_LOOKED_UP: usize = 16;

/// What trees are made of, in the order in which the source has told it.
pub(crate) type Contents = Vec<(TreeId, Tree)>;

/// Whether anything could come from elsewhere than the source.
pub(crate) fn has_other_sources(host: &Host) -> bool {
    !host.neighbours.is_empty() || host.catalog.is_some() || own_store(&host.root).is_some()
}

fn own_store(root: &Path) -> Option<Store> {
    Store::find(&store_of(root), None).unwrap_or_else(|error| {
        tracing::warn!(%error, "this host's store is not made use of");
        None
    })
}

impl Destination<'_> {
    /// What a tree is made of.
    pub(crate) fn take_contents(&mut self, tree: TreeId, bytes: u64) -> Result<(), DestinationError> {
        let job = self.job()?;
        let is_empty = match job.offer.trees.iter().position(|offer| offer.id == tree) {
            Some(at) => job.bases[at] == TreeBase::Empty,
            None => tree == TreeId::CONTAINER_IMAGE && job.trees.knows(tree),
        };
        if !is_empty || self.contents.iter().any(|(told, _)| *told == tree) || bytes > MAX_MANIFEST as u64 {
            return Err(WireError::Malformed("contents that nobody waits for".into()).into());
        }
        let mut manifest = Vec::new();
        while (manifest.len() as u64) < bytes {
            match self.hear()? {
                Incoming::Bytes(piece) if !piece.is_empty() => manifest.extend_from_slice(&piece),
                other => return Err(unexpected(&other, "the contents of a tree").into()),
            }
        }
        match Manifest::decode(&manifest) {
            Ok(Manifest::Tree(contents)) => self.contents.push((tree, contents)),
            Ok(Manifest::Described(_)) => {
                return Err(WireError::Malformed("contents of no tree".into()).into());
            }
            Err(why) => return Err(WireError::Malformed(format!("the contents of a tree: {why}")).into()),
        }
        Ok(())
    }

    /// Fills trees, and room for memory, with what is to be had, and tells the source what is there then.
    pub(crate) fn gather(&mut self, source_bytes_per_s: u64) -> Result<(), DestinationError> {
        let contents = std::mem::take(&mut self.contents);
        let own = own_store(&self.host.root);
        let name = self.host.facts.as_ref().map(|facts| facts.host.clone()).unwrap_or_default();
        let has_memory = self.claim_pages == 0;
        let Self { wire, job, .. } = self;
        let job = job.as_mut().ok_or_else(|| WireError::Malformed("contents before the offer".into()))?;
        let mut signs = Signs::new(wire);
        let wish = earlier::Wish::of(job, self.host);
        let looked_up = look_up(self.host, job, wish.image, &name, &mut signs)?;
        let acquaintance = |address: &Address| -> Box<dyn Neighbour> {
            Box::new(Acquaintance::new(address.clone(), &name, signs.over.clone()))
        };
        let mut neighbours: Vec<_> = looked_up.addresses.iter().map(acquaintance).collect();
        let found = match job.pages {
            Some(_) if has_memory => earlier::find(&wish, own.as_ref(), &mut neighbours, &mut signs)?,
            _ => None,
        };
        let (earlier, memory) = found.map(|found| (found.container, found.chunks)).unzip();
        let wanted = Wanted { contents, memory: memory.unwrap_or_default() };
        let mut report = fill(job, &wanted, own.as_ref(), neighbours, source_bytes_per_s, &mut signs)?;
        report.earlier = earlier;
        report.neighbours.extend(looked_up.failed);
        let mut indexes = Vec::new();
        for (id, _) in &wanted.contents {
            indexes.push((*id, signs.meanwhile(|| job.trees.index(*id))??));
        }
        tell(signs.wire, report, indexes)
    }
}

/// Who may be asked.
struct LookedUp {
    addresses: Vec<Address>,
    /// The catalog, if it could not be asked: then those that are configured are all there are.
    failed: Option<NeighbourReport>,
}

/// Those that are configured, and those that the catalog knows and that may have most.
fn look_up(
    host: &Host,
    job: &Job,
    image: Option<&str>,
    name: &str,
    signs: &mut Signs<'_>,
) -> Result<LookedUp, DestinationError> {
    let mut addresses = host.neighbours.clone();
    let Some(catalog) = &host.catalog else { return Ok(LookedUp { addresses, failed: None }) };
    let paths: Vec<_> = job.offer.trees.iter().map(|tree| tree.path.clone()).collect();
    let container = &*job.name;
    let found = signs.meanwhile(|| catalog.near(container, image, &paths, name, MOST_LOOKED_UP))?;
    let failed = found.as_ref().err().map(|error| {
        tracing::warn!(%error, "the catalog cannot be asked");
        let failed = Some(error.to_string());
        NeighbourReport { neighbour: format!("catalog {}", catalog.place()), bytes: 0, failed }
    });
    for address in found.unwrap_or_default() {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(LookedUp { addresses, failed })
}

/// What is to be gathered.
struct Wanted {
    contents: Contents,
    /// Chunks of pages, with their bytes.
    memory: Vec<(Digest, u64)>,
}

/// Writes what is to be had into the trees, and pages where pages are kept.
fn fill(
    job: &mut Job,
    wanted: &Wanted,
    own: Option<&Store>,
    neighbours: Vec<Box<dyn Neighbour>>,
    source_bytes_per_s: u64,
    signs: &mut Signs<'_>,
) -> Result<CooperationReport, DestinationError> {
    let Wanted { contents, memory } = wanted;
    let Job { trees, pages, .. } = job;
    let needs: Vec<(Digest, u64)> = contents.iter().flat_map(|(_, tree)| tree.needs()).collect();
    signs.total = contents.iter().map(|(_, tree)| tree.file_bytes()).sum();
    signs.total += memory.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let over = signs.over.clone();
    // what failed ends both, the files and the memory that comes beside them
    let failure = Mutex::new(None);
    let failed = |error: DestinationError| {
        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        StoreError::Interrupted
    };
    let (file_bytes, memory_bytes) = (Cell::new(0), AtomicU64::new(0));
    let mut alive = || {
        if failure.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Err(StoreError::Interrupted);
        }
        signs.done = file_bytes.get() + memory_bytes.load(Ordering::Relaxed);
        signs.give().map_err(failed)
    };
    let mut slot = 0;
    let store = pages.as_ref().map(IncomingPages::store).filter(|_| !memory.is_empty());
    let aside = store.map(|store| Aside {
        needs: memory,
        take: Box::new(|group: &[u8]| {
            slot = store.preset(slot, group).map_err(|error| failed(PagesError::from(error).into()))?;
            memory_bytes.fetch_add(group.len() as u64, Ordering::Relaxed);
            Ok(())
        }),
    });
    let write = |chunks: &mut Gathering<'_>| -> Result<(), StoreError> {
        let mut before = 0;
        for (id, tree) in contents {
            let mut emit = |step| trees.apply(*id, step).map_err(|error| failed(error.into()));
            tree.unfold(chunks, &mut emit, &mut |done, _| file_bytes.set(before + done))?;
            before += tree.file_bytes();
        }
        Ok(())
    };
    let needs = Needs { in_order: &needs, aside };
    let (written, mut report) = gather(needs, own, neighbours, &over, source_bytes_per_s, &mut alive, write);
    if let Some(failure) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    written.map_err(|error| WireError::Malformed(format!("the contents of a tree: {error}")))?;
    report.pages = slot;
    Ok(report)
}

fn tell(
    wire: &mut Wire,
    report: CooperationReport,
    indexes: Vec<(TreeId, TreeIndex)>,
) -> Result<(), DestinationError> {
    wire.say(&Message::Gathered { report })?;
    for (tree, index) in indexes {
        wire.send_index(tree, &index)?;
    }
    Ok(())
}
