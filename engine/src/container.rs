//! A container on the move: what is known of it, and what its two ends must be able to do.

use crate::error::EngineError;
use crate::network::{NetworkPlan, NetworkState};
use godwit_criu::DumpOptions;
use godwit_migration::ownership::Presence;
use godwit_migration::plan::Carry;
use godwit_migration::throttle::LimitChange;
use godwit_transfer::message::{Refusal, TreeKind};
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A directory tree (or one file) that belongs to a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// What it is to the container.
    pub kind: TreeKind,
    /// Where it belongs, on every host: absolute.
    pub path: PathBuf,
    /// Where it can be read on this host: the same, unless it comes out of a checkpoint.
    pub content: PathBuf,
    /// It is one file and not a directory.
    pub single_file: bool,
    /// The container cannot write to it.
    pub read_only: bool,
    /// Of a layer: where the file system that it changes is mounted, and the changed files can be read.
    #[serde(default)]
    pub merged: Option<PathBuf>,
    /// The destination's engine makes its place, which is empty then.
    #[serde(default)]
    pub made_there: bool,
    /// Of a layer that comes out of a checkpoint: the file with the paths that it hides of the image, each ended by a NUL.
    #[serde(default)]
    pub gone: Option<PathBuf>,
}

/// What is known of a running container.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The engine: `runc`, `pid`.
    pub engine: &'static str,
    /// Its name there.
    pub name: String,
    /// Its first process, as this host's pid namespace counts.
    pub pid: i32,
    /// Resident memory of all of its tasks, in bytes.
    pub memory_bytes: u64,
    /// Its files.
    pub trees: Vec<Tree>,
    /// Its network namespace; none when it shares the host's.
    pub network: Option<NetworkState>,
    /// All that the same engine needs to make it again elsewhere.
    pub recipe: String,
    /// Worth knowing before it moves.
    pub warnings: Vec<String>,
    /// Its engine takes long to start a container: that is done before the freeze.
    pub starts_slowly: bool,
    /// The image that it was made of, as its engine would be asked for it.
    pub image: Option<String>,
    /// What names the content of that image, wherever it is: see [`IMAGE_NOTE`](crate::IMAGE_NOTE).
    pub image_id: Option<String>,
    /// What whoever made it has noted for godwit: its labels or annotations that begin with `godwit.`.
    pub annotations: BTreeMap<String, String>,
}

impl Facts {
    /// Those of an object of labels or annotations that are for godwit.
    pub(crate) fn for_godwit(labels: Option<&serde_json::Value>) -> BTreeMap<String, String> {
        let all = labels.and_then(serde_json::Value::as_object).into_iter().flatten();
        let ours = all.filter(|(name, _)| name.starts_with("godwit."));
        ours.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }
}

/// What the user wants of a container that is about to be opened.
#[derive(Clone, Debug, Default)]
pub struct OpenRequest {
    /// What CRIU may carry.
    pub carry: Carry,
    /// Directories to take along besides those the engine knows.
    pub volumes: Vec<PathBuf>,
    /// Paths that are at the destination already, by other means.
    pub no_copy: Vec<PathBuf>,
    /// Where the network is to be attached.
    pub network_plan: NetworkPlan,
    /// The dead container shall stay when it has moved.
    pub keep: bool,
    /// Clients may have to find it at another address.
    pub ip_change: bool,
    /// It will be stopped and started, not frozen and restored: how long it may take to end by its stop signal.
    pub restart: Option<Duration>,
    /// Those that share its namespaces shall come along.
    pub together: bool,
}

/// The running container at the source. Nothing is touched before [`SourceContainer::lock_network`] or
/// [`SourceContainer::freeze`]; both can be undone at any time before [`SourceContainer::discard`].
pub trait SourceContainer: Send {
    /// What is known of it.
    fn facts(&self) -> &Facts;

    /// Its tasks now, as this host's pid namespace counts; under the freeze those that were frozen.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn tasks(&self) -> Result<BTreeSet<i32>, EngineError>;

    /// Whether it has a mount namespace of its own.
    fn has_own_mounts(&self) -> bool;

    /// How CRIU must be asked to dump it.
    fn dump_options(&self, images: &Path, work: &Path) -> DumpOptions;

    /// Adds to a complete dump what the engine's own restore wants to find beside CRIU's images.
    ///
    /// # Errors
    /// When it cannot be written.
    fn complete_images(&self, images: &Path) -> Result<(), EngineError>;

    /// Writes the image that it was made of into an empty directory, without what the destination has of it by its own word.
    ///
    /// # Errors
    /// When its engine knows no images, or cannot export this one.
    fn bring_image(&self, _lacks: &str, _dir: &Path) -> Result<(), EngineError> {
        Err(EngineError::NotFound("image".into()))
    }

    /// Bytes that the image which it was made of has, about, when it is written whole.
    ///
    /// # Errors
    /// As [`SourceContainer::bring_image`].
    fn image_bytes(&self) -> Result<u64, EngineError> {
        Err(EngineError::NotFound("image".into()))
    }

    /// The files (device, inode) that some task maps shared and writable: a write through such a mapping does not
    /// always move the file's times.
    ///
    /// # Errors
    /// When the tasks cannot be read.
    fn mapped_files(&self) -> Result<HashSet<(u64, u64)>, EngineError>;

    /// The files (device, inode) that some task has open: the kernel does not tell of all that is written to them.
    ///
    /// # Errors
    /// When the tasks cannot be read.
    fn open_files(&self) -> Result<HashSet<(u64, u64)>, EngineError>;

    /// CPU time that all of its tasks have used until now.
    ///
    /// # Errors
    /// When it has no cgroup of its own where CPU time is counted and limited: then it cannot be throttled.
    fn cpu_time(&mut self) -> Result<Duration, EngineError> {
        Err(EngineError::NoCpuLimit("nothing of it runs here".into()))
    }

    /// How its CPU limit would have to be changed to leave it `processors` of them, or fewer where it has a stricter limit of its
    /// own. Touches nothing.
    ///
    /// # Errors
    /// As [`SourceContainer::cpu_time`].
    fn plan_throttle(&mut self, _processors: f64) -> Result<LimitChange, EngineError> {
        Err(EngineError::NoCpuLimit("nothing of it runs here".into()))
    }

    /// Changes its CPU limit as planned; once more for another step.
    ///
    /// # Errors
    /// When the kernel says no; then the limit is what it was.
    fn throttle(&mut self, change: &LimitChange) -> Result<(), EngineError> {
        Err(EngineError::NoCpuLimit(format!("`{}` is unknown", change.file.display())))
    }

    /// Gives it the limit back that it had before the first change. Idempotent.
    ///
    /// # Errors
    /// When the kernel says no.
    fn unthrottle(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// All that another process must know to put it back or to discard it, for [`Engine::reopen_source`]. Its freezer exists
    /// from then on.
    ///
    /// # Errors
    /// When there is no cgroup in which it could be frozen.
    fn remains(&mut self) -> Result<String, EngineError>;

    /// What there is of it now.
    fn presence(&self) -> Presence;

    /// Begins to drop everything in and out of its own network namespace, and to keep what comes for it.
    ///
    /// # Errors
    /// When the lock could not be put in place; then it is not.
    fn lock_network(&mut self) -> Result<(), EngineError>;

    /// Takes the lock away and gives the container what was kept. Before [`SourceContainer::thaw`]: a first answer must
    /// not run into the lock. Idempotent.
    ///
    /// # Errors
    /// When the lock is still there.
    fn unlock_network(&mut self) -> Result<(), EngineError>;

    /// Stops every task, and gives it the CPU limit back that it had: none runs at it.
    ///
    /// # Errors
    /// When some task did not stop in time; then all of them run.
    fn freeze(&mut self) -> Result<(), EngineError>;

    /// Lets every task run. Idempotent.
    ///
    /// # Errors
    /// When the kernel says no.
    fn thaw(&mut self) -> Result<(), EngineError>;

    /// Looks whether it is still frozen, with the same tasks.
    ///
    /// # Errors
    /// [`EngineError::NotFrozen`] when it is not.
    fn verify_frozen(&self) -> Result<(), EngineError>;

    /// Ends the capture and gives what was kept; the lock stays. For the destination, before Go.
    fn take_frames(&mut self) -> Vec<HeldFrames>;

    /// Cuts it off from the network, so that nothing of the frozen copy can leave when it is killed. Idempotent.
    ///
    /// # Errors
    /// When the kernel says no.
    fn disconnect(&mut self) -> Result<(), EngineError>;

    /// Undoes [`SourceContainer::disconnect`]. Idempotent.
    ///
    /// # Errors
    /// When the kernel says no.
    fn reconnect(&mut self) -> Result<(), EngineError>;

    /// Whether its first process lives: it may have ended by itself while godwit looked elsewhere.
    fn is_alive(&self) -> bool {
        true
    }

    /// What a CRIU that was killed in the midst of its work has done to it, in words. After [`SourceContainer::thaw`].
    fn damage(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Lets go of what was made for the freeze only; the container stays and runs. After [`SourceContainer::thaw`].
    /// Idempotent.
    ///
    /// # Errors
    /// When something could not be put back.
    fn leave_as_found(&mut self) -> Result<(), EngineError>;

    /// What is at these paths stays here when the container goes, also where its engine would remove it with it.
    ///
    /// # Errors
    /// When it cannot stay; the reason says why, and nothing was touched.
    fn spare(&mut self, _volumes: &[PathBuf]) -> Result<(), EngineError> {
        Ok(())
    }

    /// Removes the frozen copy, none of which runs an instruction. After the destination said that it runs.
    /// Returns what could not be removed.
    fn discard(&mut self) -> Vec<String>;

    /// The same, but its engine keeps the container: stopped, with its files, and never started again by itself.
    fn retire(&mut self) -> Vec<String> {
        self.discard()
    }
}

/// What arrived with the offer, as the destination's engine needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shipment {
    /// Its name.
    pub name: String,
    /// The engine's own recipe, from the source. Not to be trusted more than the peer.
    pub recipe: String,
    /// Its network.
    pub network: Option<NetworkState>,
    /// Where to attach it.
    pub network_plan: NetworkPlan,
    /// Where its files lie.
    pub trees: Vec<PathBuf>,
    /// What CRIU carries.
    pub carry: Carry,
    /// It comes to be started, not restored.
    #[serde(default)]
    pub restart: bool,
    /// A directory for this migration's own files on this host.
    pub job: PathBuf,
    /// The same of the migration that leads, where it follows one.
    #[serde(default)]
    pub leader: Option<PathBuf>,
}

/// Where the images are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreRequest {
    /// CRIU's images.
    pub images: PathBuf,
    /// For CRIU's log; holds `lazy-pages.socket` when memory is filled on demand.
    pub work: PathBuf,
    /// Somebody listens there and fills memory on demand.
    pub lazy: bool,
}

/// What the container was given at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its first process.
    pub pid: i32,
}

/// The container at the destination: made early, restored late, held until go.
pub trait DestinationContainer: Send {
    /// Where a tree is here whose place the engine has made; none for another one.
    fn place(&self, _tree: &Path) -> Option<PathBuf> {
        None
    }

    /// Starts all of the engine that can be started before the freeze. The container must not be reachable here. What is made is
    /// noted as by [`Engine::prepare`]. Nobody has anything open in its places meanwhile, which may be others afterwards.
    ///
    /// # Errors
    /// When the engine cannot; [`DestinationContainer::abandon`] cleans up.
    fn get_ready(&mut self, _note: &mut Note<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    /// All of its files have come, and it will be started, not restored: its engine gets them. Nobody has anything open in its
    /// places any more.
    ///
    /// # Errors
    /// When the engine cannot take them; [`DestinationContainer::abandon`] cleans up.
    fn release_files(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Gets as far with the restore as is possible without the images, for whose directory there is a place already. All of
    /// its files have been here once; nothing else works in them until this returns. What fails is done in
    /// [`DestinationContainer::restore`].
    fn begin(&mut self, _request: &RestoreRequest) {}

    /// Whether its engine is started by [`DestinationContainer::restore`] only: nobody has anything open in its places from then on.
    fn starts_late(&self) -> bool {
        false
    }

    /// Restores the tree and holds it just before it may run. When this returns, CRIU and the runtime have ended, and it
    /// was checked that every task is frozen. Before that `restored` may be called with the first process: every task has
    /// its memory then, where it will be, and none runs; CRIU has still to end, which goes on beside.
    ///
    /// # Errors
    /// When it could not be restored or is not held; [`DestinationContainer::abandon`] cleans up.
    fn restore(
        &mut self,
        request: &RestoreRequest,
        restored: &mut dyn FnMut(i32),
    ) -> Result<Given, EngineError>;

    /// Opens the way to its network, before anything of it runs: for one that is started.
    ///
    /// # Errors
    /// When the network is not there.
    fn connect(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// What there is of it now: a tree that is held counts as frozen, anything less than the whole of it as gone.
    fn presence(&self) -> Presence;

    /// Its first process, once restored.
    fn pid(&self) -> Option<i32>;

    /// Lets it run: link up, announce, unlock, replay, thaw. In the downtime.
    ///
    /// # Errors
    /// When it may not run yet.
    fn go(&mut self, frames: &[HeldFrames]) -> Result<(), EngineError>;

    /// After go, outside of the downtime: announce again, remove what was only for the move. Returns what could not be
    /// removed.
    fn settle(&mut self) -> Vec<String>;

    /// Removes everything that was made, held tasks first, none of which runs an instruction. Idempotent. Returns what
    /// could not be removed.
    fn abandon(&mut self) -> Vec<String>;
}

/// What a container engine must be able to do.
pub trait Engine: Send + Sync {
    /// Its name in `engine:container`.
    fn kind(&self) -> &'static str;

    /// Whether its runtime is on this host; its version for the output.
    ///
    /// # Errors
    /// What is missing.
    fn usable(&self) -> Result<String, EngineError>;

    /// Whether it has a container of that name, in whatever state.
    fn knows(&self, name: &str) -> bool;

    /// Looks at a running container; touches nothing.
    ///
    /// # Errors
    /// When there is none, it does not run, or cannot be moved as it is ([`EngineError::Blocked`]).
    fn open(&self, name: &str, request: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError>;

    /// Looks at all containers that move together under this name, the one that leads first; touches nothing.
    ///
    /// # Errors
    /// As [`Engine::open`], for the first that cannot.
    fn open_group(
        &self,
        name: &str,
        request: &OpenRequest,
    ) -> Result<Vec<Box<dyn SourceContainer>>, EngineError> {
        if request.together {
            let reason = "nobody knows which others share its namespaces: only docker and podman do, of their containers";
            let blockers = vec![Refusal::new(reason).hint("leave `--together` out")];
            return Err(EngineError::Blocked { name: format!("{}:{name}", self.kind()), blockers });
        }
        Ok(vec![self.open(name, request)?])
    }

    /// Whether a container could be made here from a shipment; touches nothing. All reasons at once.
    fn examine(&self, shipment: &Shipment) -> Vec<Refusal>;

    /// Paths of this host, beside the trees, that making the container writes to or that its recipe gives to it: for the
    /// policy to look at. An empty path for what cannot be told.
    fn places(&self, _shipment: &Shipment) -> Vec<std::path::PathBuf> {
        Vec::new()
    }

    /// Whether its tasks may get their memory while they run already.
    ///
    /// # Errors
    /// Why not.
    fn can_fill_later(&self, _shipment: &Shipment) -> Result<(), String> {
        Ok(())
    }

    /// Whether the image is missing that it was made of: what of it is there, for [`SourceContainer::bring_image`].
    ///
    /// # Errors
    /// When the engine cannot be asked.
    fn lacks_image(&self, _shipment: &Shipment) -> Result<Option<String>, EngineError> {
        Ok(None)
    }

    /// Takes what [`SourceContainer::bring_image`] wrote.
    ///
    /// # Errors
    /// When it is not the image that is missing.
    fn take_image(&self, _shipment: &Shipment, _dir: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    /// Writes an image of the engine's into a directory, as [`SourceContainer::bring_image`] does where nothing of it is there.
    ///
    /// # Errors
    /// When there is no such image, or the engine has none at all.
    fn write_image(&self, image: &str, _dir: &Path) -> Result<(), EngineError> {
        let what = format!("has no images, and so no `{image}`");
        Err(EngineError::Tool { program: self.kind().into(), what })
    }

    /// Makes everything of it that can exist before its memory arrives. Before anything is made, and when more of it is
    /// known, `note` is given all that another process must know to go on or to undo, for [`Engine::reopen_destination`].
    ///
    /// # Errors
    /// When something could not be made, or noted; what was made is removed.
    fn prepare(
        &self,
        shipment: &Shipment,
        note: &mut Note<'_>,
    ) -> Result<Box<dyn DestinationContainer>, EngineError>;

    /// Finds what [`SourceContainer::remains`] told of again, or what is left of it.
    ///
    /// # Errors
    /// When the text cannot be understood.
    fn reopen_source(&self, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError>;

    /// Finds what [`Engine::prepare`] made again, or what is left of it.
    ///
    /// # Errors
    /// When the text cannot be understood.
    fn reopen_destination(&self, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError>;
}

/// Writes down what was or will be made, so that it outlasts this process.
pub type Note<'a> = dyn FnMut(&str) -> std::io::Result<()> + 'a;
