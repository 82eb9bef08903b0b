//! What is to be done, with whom, and where it is written down.

use crate::dumper::Dumper;
use crate::group::Member;
use crate::pages::PageReader;
use godwit_engine::SourceContainer;
use godwit_engine::network::NetworkPlan;
use godwit_migration::hooks::Hooks;
use godwit_migration::journal::{Journal, dir_of};
use godwit_migration::plan::{Carry, Limits, Restoration, Strategy, Tracker};
use godwit_migration::{Cancel, MigrationId, Observer};
use godwit_transfer::{Compression, HostFacts, Transport, Wire};
use godwit_witness::WitnessPlace;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// What was asked for, complete.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The container as the user wrote it.
    pub container: String,
    /// The destination as the user wrote it.
    pub destination: String,
    /// How memory travels.
    pub strategy: Strategy,
    /// How changed memory is found; none for stop-and-copy.
    pub tracker: Option<Tracker>,
    /// When rounds end.
    pub limits: Limits,
    /// What CRIU carries.
    pub carry: Carry,
    /// Where its network is attached.
    pub network_plan: NetworkPlan,
    /// Bytes a second at most while it runs; 0 is no limit. Under the freeze there is none.
    pub bandwidth: u64,
    /// Connections: the first one is for everything, those beyond it for memory pages.
    pub connections: u16,
    /// How often its memory outgrew the room that the destination had kept for it: each time that is to keep more.
    pub outgrown: u32,
    /// The destination may have content of the files from elsewhere.
    pub cooperates: bool,
    /// The kernel is asked what is changed in volumes of many files.
    pub watches_files: bool,
    /// How frames are compressed.
    pub compress: Compression,
    /// How it gets its memory at the destination.
    pub restoration: Restoration,
    /// While it runs, copying pauses when it would have to wait for a processor.
    pub gentle: bool,
    /// The highest rung of the ladder that keeps CRIU from dumping pages; the best that works when absent.
    pub highest_rung: Option<godwit_criu::pageless::Rung>,
    /// Whom both hosts ask when they cannot reach each other.
    pub witness: Option<WitnessPlace>,
    /// Who wants to hear of it.
    pub hooks: Hooks,
    /// What this host is like.
    pub facts: HostFacts,
    /// What stays here when it has moved.
    pub parting: Parting,
}

/// What stays at the source when a container has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parting {
    /// The engine keeps the dead container.
    pub keep: bool,
    /// Trees that do not move, by path. What is here is all there is of them.
    pub skipped: Vec<PathBuf>,
}

/// Where a migration keeps its files on this host.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: MigrationId,
    /// godwit's directory, usually /var/lib/godwit.
    pub root: PathBuf,
    /// This migration's directory in it.
    pub dir: PathBuf,
}

impl Job {
    /// The directory of migration `id` below `root`; not made yet.
    pub fn new(root: impl Into<PathBuf>, id: MigrationId) -> Self {
        let root = root.into();
        Self { dir: dir_of(&root, &id), root, id }
    }

    /// Removes its images: they are secrets, and large. Journal and logs stay.
    ///
    /// # Errors
    /// When something could not be removed.
    pub(crate) fn remove_images(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(self.dir.join("images")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Makes a further connection to the destination.
pub type Dial<'a> = dyn Fn() -> io::Result<Box<dyn Transport>> + Sync + 'a;

/// Who takes part on this side.
pub struct Parties<'a> {
    /// The container, opened and looked at.
    pub container: Box<dyn SourceContainer>,
    /// Who dumps it.
    pub criu: &'a dyn Dumper,
    /// The way to the destination.
    pub wire: Wire,
    /// Makes a further connection to the destination; none where there can be only one.
    pub dial: Option<&'a Dial<'a>>,
    /// Reads memory from outside, for the trackers that do.
    pub reader: Option<Box<dyn PageReader>>,
    /// Who is told what happens.
    pub observer: &'a dyn Observer,
    /// The wish to stop.
    pub cancel: Cancel,
}

/// What is to be done, and where it is written down.
pub struct Order {
    /// What was asked for.
    pub plan: Plan,
    /// Where this migration keeps its files.
    pub job: Job,
    /// Its journal, with the first line written.
    pub journal: Journal,
    /// Its place among containers that move together.
    pub member: Option<Member>,
}
