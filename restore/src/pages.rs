//! Memory that comes by itself: kept page by page, and given to the restored tasks.

use crate::compose::{ComposeError, Composed, compose};
use crate::streams::{Doors, PageReceiver, StreamError};
use godwit_engine::freezer::process_tree;
use godwit_engine::own_program;
use godwit_memory::SharedObject;
use godwit_memory::destination::fill::{FillError, Filler};
use godwit_memory::destination::{
    PageStore, SharedError, SharedFilled, StoreError, fill_shared, is_still_shared,
};
use godwit_migration::report::FillReport;
use godwit_transfer::wire::SlotDigest;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long further connections may take to notice that nothing is wanted from them any more.
const STOPPING: Duration = Duration::from_secs(2);
/// Before the tasks run, each of their mappings has a page; they are kept waiting for it no longer than this.
const ANCHORS: Duration = Duration::from_millis(20);
/// How long filling may take.
const FILL: Duration = Duration::from_secs(900);

/// What can go wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// No room, or the source sent what cannot be.
    #[error("memory cannot be kept")]
    Store(#[from] StoreError),
    /// A further connection.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The images.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The handler of page faults.
    #[error("memory cannot be filled on demand")]
    Fill(#[from] FillError),
    /// An object that tasks share.
    #[error("the shared memory `{name}` ({bytes} bytes) could not be filled")]
    Shared {
        /// What the kernel calls it.
        name: String,
        /// Its length.
        bytes: u64,
        /// Why not.
        #[source]
        source: SharedError,
    },
    /// The socket for further connections.
    #[error("cannot listen for further connections")]
    Listen(#[source] std::io::Error),
}

/// Of a migration's directory: made by the handler of page faults when every page is in its place, which it also brings
/// about alone.
pub(crate) const FILLED: &str = "filled";

/// All memory of one arriving container.
pub struct IncomingPages {
    store: Arc<PageStore>,
    receiver: PageReceiver,
    filler: Option<Filler>,
    objects: Vec<SharedObject>,
    begun: Option<Instant>,
}

impl IncomingPages {
    /// Keeps room for so many pages, among them those of an earlier attempt, and, when they are to be filled on demand, starts the handler: CRIU finds it in `work`,
    /// and whoever goes on with the migration by its id.
    ///
    /// # Errors
    /// When there is no room, or the handler cannot be started.
    pub fn prepare(
        doors: &Doors<'_>,
        work: &Path,
        room_pages: u64,
        lazy: bool,
        kept: Option<File>,
    ) -> Result<Self, PagesError> {
        let store = Arc::new(match kept {
            Some(kept) => PageStore::adopt(kept, room_pages)?,
            None => PageStore::reserve(room_pages)?,
        });
        let receiver = PageReceiver::listen(doors, store.clone()).map_err(PagesError::Listen)?;
        let filler = match lazy {
            true => {
                let done = doors.job.join(FILLED);
                let arguments = [
                    "fill".as_ref(),
                    "--for".as_ref(),
                    doors.migration.as_str().as_ref(),
                    "--done".as_ref(),
                    done.as_os_str(),
                ];
                Some(Filler::start(&own_program(), &arguments, &work.join("lazy-pages.socket"), &store)?)
            }
            false => None,
        };
        Ok(Self { store, receiver, filler, objects: Vec::new(), begun: None })
    }

    /// Where pages are kept: pages of an earlier checkpoint may be put there before anything has come.
    pub fn store(&self) -> &PageStore {
        &self.store
    }

    /// What an earlier attempt has brought: slots and digests.
    pub fn digests(&self, seed: u64) -> Vec<SlotDigest> {
        self.store.digests(seed)
    }

    /// Nothing comes any more: what has come, for another attempt; none when somebody still writes to it.
    pub fn keep(mut self) -> Option<File> {
        self.abandon();
        let Self { store, receiver, .. } = self;
        drop(receiver);
        let until = Instant::now() + STOPPING;
        while Arc::strong_count(&store) > 1 {
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        store.file().try_clone().ok()
    }

    /// Takes a batch that came over the first connection.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn apply(&self, batch: &[u8]) -> Result<(), PagesError> {
        self.store.apply(batch)?;
        Ok(())
    }

    /// A round begins.
    pub fn begin_round(&self) {
        self.store.begin_round();
    }

    /// What the tasks share.
    pub fn expect_shared(&mut self, objects: Vec<SharedObject>) {
        self.objects = objects;
    }

    /// Waits until all of a round has come over the further connections.
    ///
    /// # Errors
    /// What went wrong on one of them.
    pub fn end_of(&mut self, round: u32, streams: u16, patience: Duration) -> Result<(), PagesError> {
        Ok(self.receiver.wait_for(round, streams, patience)?)
    }

    /// Puts the images together; CRIU may restore them now.
    ///
    /// # Errors
    /// When they do not hold together, or the handler has died.
    pub fn compose(&mut self, images: &Path) -> Result<(), PagesError> {
        let Composed { lists, eager_pages, lazy_pages, unshared_pages } =
            compose(images, &self.store, self.filler.is_some())?;
        tracing::debug!(eager_pages, lazy_pages, unshared_pages, "images composed");
        if let Some(filler) = &self.filler {
            filler.give(&lists)?;
        }
        Ok(())
    }

    /// Whether CRIU is to leave pages for later.
    pub fn is_lazy(&self) -> bool {
        self.filler.is_some()
    }

    /// Fills what the tasks of a tree share, and checks every object. None of them may run; CRIU may still be at work, if
    /// [`IncomingPages::is_filled`] is asked afterwards. Touches no task when there is nothing to be filled.
    ///
    /// # Errors
    /// When one of them is not there, or not whole afterwards.
    pub fn fill_shared(&self, root: i32) -> Result<Vec<SharedFilled>, PagesError> {
        if self.objects.is_empty() {
            return Ok(Vec::new());
        }
        let by_vpid = by_vpid(root);
        let mut all = Vec::with_capacity(self.objects.len());
        for object in &self.objects {
            let filled = fill_shared(&self.store, object, |vpid| by_vpid.get(&vpid).copied());
            let filled = filled.map_err(|source| PagesError::Shared {
                name: object.name.clone(),
                bytes: object.bytes,
                source,
            })?;
            tracing::debug!(?filled, name = object.name, "shared object filled");
            all.push(filled);
        }
        Ok(all)
    }

    /// Whether the tasks of a held tree share just the objects that were filled.
    pub fn is_filled(&self, root: i32, filled: &[SharedFilled]) -> bool {
        if self.objects.is_empty() {
            return true;
        }
        let by_vpid = by_vpid(root);
        self.objects.len() == filled.len()
            && self
                .objects
                .iter()
                .zip(filled)
                .all(|(object, filled)| is_still_shared(object, filled, |vpid| by_vpid.get(&vpid).copied()))
    }

    /// The tasks are about to run. Waits for the first page of each mapping, if memory comes later. Without them the tasks run as well
    /// (compose.rs, `Anchors`).
    pub fn release(&self) {
        let Some(filler) = &self.filler else { return };
        if !filler.wait_for_anchors(ANCHORS) {
            tracing::info!("the tasks run before each of their mappings has a page");
        }
        filler.release();
    }

    /// The tasks run.
    pub fn gone(&mut self) {
        self.begun = Some(Instant::now());
    }

    /// Waits until every page is in its place.
    ///
    /// # Errors
    /// When the handler cannot be kept alive.
    pub fn finish(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<FillReport>, PagesError> {
        let Some(mut filler) = self.filler.take() else { return Ok(None) };
        let filled = filler.wait(Instant::now() + FILL, progress)?;
        self.store.give_back();
        Ok(Some(FillReport {
            pages: filled.pages,
            faults: filled.faults,
            duration: self.begun.map(|begun| begun.elapsed()).unwrap_or_default(),
            restarts: filled.restarts,
        }))
    }

    /// Ends the handler: the tasks it served are gone.
    pub fn abandon(&mut self) {
        if let Some(filler) = self.filler.take() {
            filler.abandon();
        }
    }
}

/// The tasks of a tree by what they call themselves.
fn by_vpid(root: i32) -> BTreeMap<u32, i32> {
    process_tree(root).into_iter().filter_map(|pid| Some((innermost_pid(pid)?, pid))).collect()
}

/// The last number of `NSpid` in /proc/PID/status (proc_pid_status(5)): what the task calls itself.
fn innermost_pid(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}
