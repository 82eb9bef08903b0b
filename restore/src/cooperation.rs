//! Content of the container's files and memory that need not come from the source: this host's store has it, or a neighbour.
//!
//! What was gathered is written into the trees, and then read: the source is told what is really there, and sends what differs. So
//! neither a store nor a neighbour is believed anything. Of memory the pages of an earlier checkpoint are put where pages are kept
//! that an earlier attempt has brought, and count as those: the source compares their digests with the pages that there are.

mod earlier;

use crate::destination::Destination;
use crate::error::DestinationError;
use crate::job::Job;
use crate::trees::Trees;
use godwit_migration::Cancel;
use godwit_migration::report::CooperationReport;
use godwit_neighbours::question::Known;
use godwit_neighbours::{Neighbour, Visit, gather};
use godwit_store::manifest::{Manifest, Tree};
use godwit_store::object::MAX_MANIFEST;
use godwit_store::{Chunks, Digest, Store, StoreError};
use godwit_transfer::tree::TreeIndex;
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Address, Incoming, Message, TreeBase, TreeId, Wire, WireError, connect};
use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the store is below godwit's directory.
const STORE: &str = "store";
/// What ssh runs at a neighbour's.
const REMOTE_COMMAND: &str = "godwit node serve --stdio";
/// How often the source hears that something is still done here, and may say that it has enough.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How often a wait looks whether it is over.
const LOOK_UP: Duration = Duration::from_millis(20);

/// What trees are made of, in the order in which the source has told it.
pub(crate) type Contents = Vec<(TreeId, Tree)>;

/// Whether anything could come from elsewhere than the source.
pub(crate) fn has_other_sources(root: &Path, neighbours: &[Address]) -> bool {
    !neighbours.is_empty() || own_store(root).is_some()
}

fn own_store(root: &Path) -> Option<Store> {
    Store::find(&root.join(STORE), None).unwrap_or_else(|error| {
        tracing::warn!(%error, "this host's store is not made use of");
        None
    })
}

impl Destination<'_> {
    /// What a tree is made of.
    pub(crate) fn take_contents(&mut self, tree: TreeId, bytes: u64) -> Result<(), DestinationError> {
        let job = self.job()?;
        let at = job.offer.trees.iter().position(|offer| offer.id == tree);
        let is_empty = at.is_some_and(|at| job.bases[at] == TreeBase::Empty);
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
        let over = Cancel::default();
        let host = self.host.facts.as_ref().map(|facts| facts.host.clone()).unwrap_or_default();
        let has_memory = self.claim_pages == 0;
        let acquaintance = |address| -> Box<dyn Neighbour + '_> {
            Box::new(Acquaintance::new(address, &host, over.clone()))
        };
        let mut neighbours: Vec<_> = self.host.neighbours.iter().map(acquaintance).collect();
        let Self { wire, job, .. } = self;
        let Job { trees, pages, name, .. } =
            job.as_mut().ok_or_else(|| WireError::Malformed("contents before the offer".into()))?;
        let mut signs = Signs { wire, said: Instant::now(), done: 0, total: 0, failure: None };
        let memory = match pages {
            Some(_) if has_memory => {
                earlier::find(name, own.as_ref(), &mut neighbours, &mut || signs.give())?
            }
            _ => Vec::new(),
        };
        let mut needs: Vec<(Digest, u64)> = contents.iter().flat_map(|(_, tree)| tree.needs()).collect();
        needs.extend(&memory);
        signs.total = contents.iter().map(|(_, tree)| tree.file_bytes()).sum();
        signs.total += memory.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let signs = RefCell::new(signs);
        let failed = |error: DestinationError| {
            signs.borrow_mut().failure.get_or_insert(error);
            StoreError::Interrupted
        };
        let (filled, mut report) = gather(
            &needs,
            own.as_ref(),
            neighbours,
            &over,
            source_bytes_per_s,
            &mut || {
                let given = signs.borrow_mut().give();
                given.map_err(failed)
            },
            |chunks| {
                let mut before = 0;
                for (id, tree) in &contents {
                    let mut emit = |step| trees.apply(*id, step).map_err(|error| failed(error.into()));
                    tree.unfold(chunks, &mut emit, &mut |done, _| signs.borrow_mut().done = before + done)?;
                    before += tree.file_bytes();
                }
                let mut slot = 0;
                for (digest, bytes) in &memory {
                    if let (Some(group), Some(pages)) = (chunks.chunk(*digest)?, &pages) {
                        slot = pages.preset(slot, &group).map_err(|error| failed(error.into()))?;
                    }
                    before += bytes;
                    signs.borrow_mut().done = before;
                }
                Ok(slot)
            },
        );
        let mut signs = signs.into_inner();
        if let Some(failure) = signs.failure {
            return Err(failure);
        }
        let filled: Result<u64, StoreError> = filled;
        report.pages =
            filled.map_err(|error| WireError::Malformed(format!("the contents of a tree: {error}")))?;
        let mut indexes = Vec::new();
        for (id, _) in &contents {
            indexes.push((*id, read(trees, *id, &mut signs)?));
        }
        tell(signs.wire, report, indexes)
    }
}

/// Reads what is in a tree now; the source hears that it takes its time.
fn read(trees: &Trees, id: TreeId, signs: &mut Signs<'_>) -> Result<TreeIndex, DestinationError> {
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| trees.index(id));
        while !reading.is_finished() {
            std::thread::sleep(LOOK_UP);
            signs.give()?;
        }
        match reading.join() {
            Ok(index) => Ok(index?),
            Err(_) => Err(WireError::Malformed("a tree that cannot be read".into()).into()),
        }
    })
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

/// What the source hears meanwhile, and what it may say.
struct Signs<'a> {
    wire: &'a mut Wire,
    said: Instant,
    done: u64,
    total: u64,
    failure: Option<DestinationError>,
}

impl Signs<'_> {
    fn give(&mut self) -> Result<(), DestinationError> {
        if self.said.elapsed() < SIGN_OF_LIFE {
            return Ok(self.wire.check_cancel()?);
        }
        self.said = Instant::now();
        match self.wire.glance()? {
            None => Ok(self.wire.say(&Message::Alive { done: self.done, total: self.total })?),
            Some(Incoming::Message(Message::Cancel { reason, again })) => {
                Err(DestinationError::Cancelled { reason, again })
            }
            Some(other) => Err(unexpected(&other, "silence").into()),
        }
    }
}

/// A neighbour that is visited when it is first asked: one that does not answer holds nobody up.
struct Acquaintance<'a> {
    name: String,
    address: &'a Address,
    host: &'a str,
    over: Cancel,
    visit: Option<Result<Visit, String>>,
}

impl<'a> Acquaintance<'a> {
    fn new(address: &'a Address, host: &'a str, over: Cancel) -> Self {
        Self { name: address.to_string(), address, host, over, visit: None }
    }

    fn visit(&mut self) -> Result<&mut Visit, String> {
        let Self { name, address, host, over, visit } = self;
        let begin = || {
            let transport = connect(address, REMOTE_COMMAND).map_err(|error| error.to_string())?;
            Visit::begin(&**name, transport, host, over.clone()).map_err(|error| error.to_string())
        };
        visit.get_or_insert_with(begin).as_mut().map_err(|why| why.clone())
    }

    /// Asks it something; whoever fails once is not asked again.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Visit) -> Result<T, String>) -> Result<T, String> {
        let answer = question(self.visit()?);
        if let Err(why) = &answer {
            self.visit = Some(Err(why.clone()));
        }
        answer
    }
}

impl Neighbour for Acquaintance<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn has(&mut self, digests: &[Digest]) -> Result<Vec<bool>, String> {
        self.ask(|visit| visit.has(digests))
    }

    fn checkpoints(&mut self, container: &str) -> Result<Vec<Known>, String> {
        self.ask(|visit| visit.checkpoints(container))
    }

    fn manifest(&mut self, digest: Digest) -> Result<Option<Manifest>, String> {
        self.ask(|visit| visit.manifest(digest))
    }

    fn give(&mut self, digests: &[Digest]) -> Result<Vec<Option<Vec<u8>>>, String> {
        self.ask(|visit| visit.give(digests))
    }
}
