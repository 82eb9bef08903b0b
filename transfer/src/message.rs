//! What the two halves say to each other, in words. The bulk (file trees) is in [`crate::wire`].
//!
//! ```text
//! source                                   destination
//! Hello                                 →
//!                                       ←  Hello
//! Offer                                 →
//!                                       ←  Refuse(reasons) | Accept(what lies there already)
//! BringImage, operations, ImageBrought  →     where the engine lacks the container's image
//!                                       ←  ImageTaken
//! Prepare                               →
//!                                       ←  Prepared
//! Contents, bytes, …, Gather            →     where the destination may have content from elsewhere
//!                                       ←  Alive, …, Gathered, indexes
//! RoundBegin, tree operations, RoundEnd →     any number of times, the container runs
//!                                       ←  RoundAck
//! GetReady                              →     where the engine takes long to start
//!                                       ←  GotReady
//! ------------------------------------------- frozen from here
//! RoundBegin(last), operations, RoundEnd →
//!                                       ←  Ready: every digest was right
//! Restore                               →
//!                                       ←  Restored: held frozen, looked at
//! Go                                    →     after Committed is on the source's disk
//!                                       ←  Running
//! Done                                  →
//!                                       ←  Settled
//! ```
//!
//! Memory pages go over connections of their own where there are any: each begins with `Join`, answered with `Joined`, then
//! carries pages, and `StreamEnd` at the end of each round. A round is complete when `RoundEnd` and every `StreamEnd` have
//! come. `Shared` comes before the last `RoundEnd` when the tasks share memory.
//!
//! Until `Go` the source may say `Cancel` at any time; the destination undoes everything and answers `Undone`. Either side
//! may say `Failed` with its reason at any time. Messages are JSON, so that a later version may add fields; unknown fields
//! are ignored.

use godwit_memory::SharedObject;
use godwit_migration::hooks::HookUrl;
use godwit_migration::ownership::Standing;
use godwit_migration::plan::{Carry, Restoration, Strategy, Tracker};
use godwit_migration::report::{CooperationReport, FillReport};
use godwit_migration::volume_owner::Passed;
use godwit_migration::{Failure, MigrationId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Names a directory tree within one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TreeId(pub u16);

impl TreeId {
    /// The first id of image directories; those below are the container's files.
    const IMAGES: u16 = 0x8000;
    /// The image that the container was made of, as its engine exports it.
    pub const CONTAINER_IMAGE: Self = Self(0x7fff);

    /// The image directory that a memory round writes.
    pub fn images(round: u16) -> Self {
        Self(Self::IMAGES | round)
    }

    /// Which memory round this is the image directory of.
    pub fn image_round(self) -> Option<u16> {
        (self.0 & Self::IMAGES != 0).then_some(self.0 & !Self::IMAGES)
    }
}

/// What a tree is to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreeKind {
    /// The root file system.
    Root,
    /// A bind mount, an engine's volume or a directory named by the user.
    Volume,
    /// What a container has changed of its image.
    Layer,
    /// What its engine keeps for it: its log, the files of its /dev/shm.
    Keepings,
}

/// A directory tree (or a single file) that shall be at the destination, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TreeOffer {
    /// Its number in this migration.
    pub id: TreeId,
    /// What it is to the container.
    pub kind: TreeKind,
    /// Where it lies, on both hosts: absolute.
    #[serde(with = "path_bytes")]
    pub path: PathBuf,
    /// When it is one file and not a directory: `path` names it, its directory is the root of the tree.
    pub single_file: bool,
    /// The container cannot write to it: it is sent before the freeze and never again.
    pub read_only: bool,
    /// Bytes of file data in it.
    pub bytes: u64,
    /// The destination's engine makes its place, which is empty then, and may be another path there.
    #[serde(default)]
    pub made_there: bool,
}

/// What the source's host is like, as far as the destination must be alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Host name.
    pub host: String,
    /// `uname -r`.
    pub kernel: String,
    /// CRIU's version as in its RPC: 40200 is 4.2.
    pub criu: u32,
    /// Processor features that programs use, as named in /proc/cpuinfo.
    pub cpu_flags: Vec<String>,
}

/// A container looking for a new home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The id of this migration.
    pub migration: MigrationId,
    /// The engine that runs it: `runc`, `pid`.
    pub engine: String,
    /// Its name there.
    pub name: String,
    /// What names the image that it was made of, where that is known: `sha256:…` of podman and docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// All the engine needs to make it again: written and read by the engine of that name.
    pub recipe: String,
    /// Its network namespace: written and read by the engine crate's network module. Absent when it shares the host's.
    pub network: Option<String>,
    /// `same`, `bridge=NAME`, `none` or `hook=PATH`.
    pub network_plan: String,
    /// Its files.
    pub trees: Vec<TreeOffer>,
    /// Resident memory of all of its tasks, in bytes.
    pub memory_bytes: u64,
    /// How memory will travel.
    pub strategy: Strategy,
    /// How changed memory is found.
    pub tracker: Option<Tracker>,
    /// Pages of memory for which room is needed, when they are sent by themselves and not in CRIU's images.
    pub room_pages: Option<u64>,
    /// How the restored container gets its memory.
    pub restoration: Restoration,
    /// What CRIU carries.
    pub carry: Carry,
    /// The source's host.
    pub facts: HostFacts,
    /// Earlier migrations of this container that the source has rolled back: what is still held of them is void.
    #[serde(default)]
    pub void: Vec<MigrationId>,
    /// The witness that the destination must claim it from before it lets the container run: `file:PATH`,
    /// `etcds://…`.
    #[serde(default)]
    pub witness: Option<String>,
    /// The migration that leads those of several containers which move together, when this is another one of them.
    #[serde(default)]
    pub leader: Option<MigrationId>,
    /// What tells the application that it goes on: called from inside of its network namespace when it runs.
    #[serde(default)]
    pub resume_hook: Option<HookUrl>,
}

/// What lies at the place of an offered tree already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreeBase {
    /// Nothing, or an empty directory.
    Empty,
    /// A copy that an earlier migration left: its index follows as a bulk frame.
    Stale,
    /// Something else, with this digest; only acceptable if the source has just the same.
    Foreign {
        /// As [`crate::tree::equal_digest`].
        digest: String,
    },
}

/// A volume that belongs to the destination from `Go` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedVolume {
    /// The place of the offered tree that it is.
    #[serde(with = "path_bytes")]
    pub path: PathBuf,
    /// What it takes along.
    pub passed: Passed,
}

/// Why a destination says no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong: lower case, no full stop.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Refusal {
    /// A reason without advice.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None }
    }

    /// Adds advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// The first word of both.
    Hello {
        /// The version of the program.
        godwit: String,
        /// The speaker's host name.
        host: String,
    },
    /// Source: this is what I have.
    Offer(Box<Offer>),
    /// Destination: I will take it.
    Accept {
        /// What lies at the place of each offered tree, in the order of the offer.
        bases: Vec<TreeBase>,
        /// How long the destination took to ask the runtime for its version, in microseconds: a measure of what starting
        /// processes costs there, and so of what a restore will.
        #[serde(default)]
        process_start_us: u64,
        /// How the container will get its memory there.
        restoration: Restoration,
        /// Why not otherwise, where that needs saying.
        #[serde(default)]
        restoration_why: String,
        /// An attempt before this one has left pages: about so many. `WhatIsKept` asks for them.
        #[serde(default)]
        kept_pages: u64,
        /// The image that the container was made of is not there: in the engine's words, what of it is. `BringImage` follows.
        #[serde(default)]
        lacks_image: Option<String>,
        /// It can have content from elsewhere: `Contents` tell what there is.
        #[serde(default)]
        cooperates: bool,
        /// That of the container's image, too: `Contents` and `Gather` may follow `BringImage`.
        #[serde(default)]
        gathers_image: bool,
    },
    /// Source, when all is prepared, or of the image behind `BringImage`: what a tree is made of follows, as bytes in pieces.
    Contents {
        /// Which tree.
        tree: TreeId,
        /// How many bytes.
        bytes: u64,
    },
    /// Source: that was all; get what you can from elsewhere.
    Gather {
        /// About how many bytes a second come from here; 0 where that is not known.
        source_bytes_per_s: u64,
    },
    /// Destination: it was got. An index of each tree of `Contents` follows, in that order.
    Gathered {
        /// From whom.
        report: CooperationReport,
    },
    /// Either: I am at what you wait for.
    Alive {
        /// Bytes done.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// The first word to a neighbour, instead of `Hello`: may I ask for content? Questions are bytes, as the neighbours crate writes
    /// them.
    Visit {
        /// The speaker's host name.
        host: String,
    },
    /// A neighbour: ask.
    Welcome {
        /// The speaker's host name.
        host: String,
        /// Whether it knows of snapshots that go as a file system's own stream.
        #[serde(default)]
        streams: bool,
    },
    /// Source: what the destination lacks of the container's image follows, as a tree.
    BringImage {
        /// Bytes of file data in it.
        bytes: u64,
    },
    /// Source: that was all of it.
    ImageBrought,
    /// Destination: its engine has the image.
    ImageTaken,
    /// Source: the last rounds are near; start all that can be started before the memory is whole.
    GetReady,
    /// Destination: done.
    GotReady,
    /// Source, instead of an offer: a migration was broken off; where do you stand?
    Resume {
        /// Which.
        migration: MigrationId,
        /// There will be no other attempt: nothing of what has come is to be kept.
        #[serde(default)]
        forget: bool,
    },
    /// Destination: here; nothing when it does not know of it. What follows is `Go`, `Cancel` or `Bury`.
    Standing {
        /// What its journal and its host say.
        standing: Option<Standing>,
    },
    /// Source: nothing that could run is left anywhere; forget it.
    Bury {
        /// How that was seen.
        reason: String,
    },
    /// First word of a further connection of a migration, instead of Hello: for memory pages only.
    Join {
        /// Whose.
        migration: MigrationId,
        /// Its number, from 0.
        stream: u16,
    },
    /// Destination, on a further connection: it is in the right hands.
    Joined,
    /// Source, on a further connection: all of the round that goes this way was sent.
    StreamEnd {
        /// Which round.
        round: u32,
    },
    /// Source, before the last round's end: what the tasks share, which must be filled while they are held.
    Shared {
        /// The objects.
        objects: Vec<SharedObject>,
    },
    /// Destination: I will not take it.
    Refuse {
        /// All reasons at once.
        reasons: Vec<Refusal>,
    },
    /// Source: make everything that can exist early.
    Prepare,
    /// Destination: it exists.
    Prepared,
    /// Source, ahead of the first round: which pages does the destination have from before? The answer is a list of digests.
    WhatIsKept {
        /// What their digests are made with.
        seed: u64,
    },
    /// Source: a round begins.
    RoundBegin {
        /// From 0.
        round: u32,
        /// Under the freeze.
        last: bool,
    },
    /// Source: all operations of the round were sent.
    RoundEnd {
        /// Which.
        round: u32,
        /// Over how many further connections pages went, each of which ends with `StreamEnd`.
        #[serde(default)]
        streams: u16,
    },
    /// Destination: all of the round is applied, every digest was right.
    RoundAck {
        /// Which.
        round: u32,
    },
    /// Destination: the last round is applied, and the image is whole.
    Ready {
        /// Microseconds spent on applying and composing after the last byte had arrived.
        verify_us: u64,
    },
    /// Source: restore it, and hold it just before it may run.
    Restore,
    /// Destination: it is held frozen, and was looked at.
    Restored {
        /// Its first process there.
        pid: i32,
    },
    /// Source: I have given up my right to run it; let it run. Captured frames came before as a bulk frame.
    Go {
        /// The volumes that it may write to.
        #[serde(default)]
        volumes: Vec<PassedVolume>,
    },
    /// Destination: it runs.
    Running {
        /// Its first process there.
        pid: i32,
    },
    /// Source: my copy is gone, this is the end.
    Done,
    /// Destination: all is on disk and in order, all memory is in place, the next migration may come.
    Settled {
        /// How memory was filled, if it was.
        #[serde(default)]
        fill: Option<FillReport>,
        /// What could not be cleaned up there.
        leftovers: Vec<String>,
    },
    /// Source: undo everything.
    Cancel {
        /// Why.
        reason: String,
        /// Another attempt follows at once: what it can use may be kept for it.
        #[serde(default)]
        again: bool,
    },
    /// Destination: everything is undone.
    Undone {
        /// What could not be removed.
        leftovers: Vec<String>,
    },
    /// Either: I cannot go on.
    Failed {
        /// The reason travels home.
        failure: Failure,
    },
}

impl Message {
    /// The message's name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello { .. } => "hello",
            Message::Offer(_) => "offer",
            Message::Accept { .. } => "accept",
            Message::Refuse { .. } => "refuse",
            Message::Contents { .. } => "contents",
            Message::Gather { .. } => "gather",
            Message::Gathered { .. } => "gathered",
            Message::Alive { .. } => "alive",
            Message::Visit { .. } => "visit",
            Message::Welcome { .. } => "welcome",
            Message::BringImage { .. } => "bring-image",
            Message::ImageBrought => "image-brought",
            Message::ImageTaken => "image-taken",
            Message::GetReady => "get-ready",
            Message::GotReady => "got-ready",
            Message::Resume { .. } => "resume",
            Message::Standing { .. } => "standing",
            Message::Bury { .. } => "bury",
            Message::Join { .. } => "join",
            Message::Joined => "joined",
            Message::StreamEnd { .. } => "stream-end",
            Message::Shared { .. } => "shared",
            Message::Prepare => "prepare",
            Message::Prepared => "prepared",
            Message::WhatIsKept { .. } => "what-is-kept",
            Message::RoundBegin { .. } => "round-begin",
            Message::RoundEnd { .. } => "round-end",
            Message::RoundAck { .. } => "round-ack",
            Message::Ready { .. } => "ready",
            Message::Restore => "restore",
            Message::Restored { .. } => "restored",
            Message::Go { .. } => "go",
            Message::Running { .. } => "running",
            Message::Done => "done",
            Message::Settled { .. } => "settled",
            Message::Cancel { .. } => "cancel",
            Message::Undone { .. } => "undone",
            Message::Failed { .. } => "failed",
        }
    }
}

/// A path as bytes: JSON text is UTF-8 and paths need not be.
mod path_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(PathBuf::from(OsString::from_vec(Vec::deserialize(deserializer)?)))
    }
}
