//! A container that is stopped here and started there (`--strategy restart`), for what CRIU cannot dump. For the rule of ownership a
//! container that is stopped, and that nobody starts by itself, is what one that is frozen is else: all of it is there, and it
//! runs only by godwit's word.

use crate::container::{DestinationContainer, Facts, Given, Note, RestoreRequest, SourceContainer, Tree};
use crate::error::EngineError;
use crate::network::{Namespace, NetworkAttachment, NetworkState};
use crate::process;
use godwit_criu::DumpOptions;
use godwit_migration::ownership::Presence;
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an engine may take to see that SIGKILL has ended a container.
const KILLED: Duration = Duration::from_secs(3);

/// What an engine says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It runs; its first process.
    Running(i32),
    /// It can be started.
    Stopped,
    /// The engine does not know it, and could not make it again.
    Gone,
}

/// What differs between engines.
pub(crate) trait Startable: Send {
    /// What the engine says.
    fn status(&self) -> Result<Status, EngineError>;

    /// From now on nobody but godwit starts it. Idempotent.
    fn hold_off(&self) -> Result<(), EngineError>;

    /// Undoes [`Startable::hold_off`]. Idempotent.
    fn release(&self) -> Result<(), EngineError>;

    /// Its own stop signal, and after `grace` SIGKILL. Returns when it has ended.
    fn stop(&self, grace: Duration) -> Result<(), EngineError>;

    /// Starts it when it is stopped.
    fn start(&self) -> Result<(), EngineError>;

    /// What is at these paths outlasts [`Startable::remove`].
    fn spare(&mut self, _volumes: &[PathBuf]) -> Result<(), EngineError> {
        Ok(())
    }

    /// Removes it, whatever it does.
    fn remove(&self) -> Result<(), EngineError>;

    /// Writes the image that it was made of into a directory.
    fn bring_image(&self, _lacks: &str, _dir: &Path) -> Result<(), EngineError> {
        Err(EngineError::NotFound("image".into()))
    }

    /// What of it must outlast this process.
    fn remains(&self) -> serde_json::Value;
}

/// The container at the source.
pub(crate) struct Stoppable {
    facts: Facts,
    startable: Box<dyn Startable>,
    grace: Duration,
    /// Its link, and where its other end is; none when its engine takes care of that.
    link: Option<(NetworkAttachment, Namespace)>,
    /// What its tasks had mapped when it was stopped.
    mapped: HashSet<(u64, u64)>,
    /// Another process may have begun to stop it.
    is_taken_over: bool,
}

/// What outlasts the process that moves it.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoppableRemains {
    stop_grace_s: u64,
    name: String,
    trees: Vec<Tree>,
    network: Option<NetworkState>,
    namespace: Option<PathBuf>,
    pub(crate) startable: serde_json::Value,
}

impl StoppableRemains {
    /// None when it was not to be stopped, but frozen.
    pub(crate) fn understand(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub(crate) fn reopen(self, engine: &'static str, startable: Box<dyn Startable>) -> Stoppable {
        let pid = match startable.status() {
            Ok(Status::Running(pid)) => pid,
            _ => 0,
        };
        let facts = Facts {
            engine,
            name: self.name,
            pid,
            memory_bytes: 0,
            trees: self.trees,
            network: self.network,
            recipe: String::new(),
            warnings: Vec::new(),
            starts_slowly: false,
            annotations: BTreeMap::new(),
            image: None,
            image_id: None,
        };
        let namespace = self.namespace.and_then(|path| Namespace::open(path).ok());
        let grace = Duration::from_secs(self.stop_grace_s);
        Stoppable { is_taken_over: true, ..Stoppable::new(facts, startable, grace, namespace) }
    }
}

impl Stoppable {
    pub(crate) fn new(
        facts: Facts,
        startable: Box<dyn Startable>,
        grace: Duration,
        namespace: Option<Namespace>,
    ) -> Self {
        let link = facts.network.as_ref().zip(namespace);
        let link = link.map(|(state, namespace)| (NetworkAttachment::new(state, &namespace), namespace));
        Self { facts, startable, grace, link, mapped: HashSet::new(), is_taken_over: false }
    }

    fn pids(&self) -> BTreeSet<i32> {
        match self.startable.status() {
            Ok(Status::Running(pid)) => crate::runtime::source::container_pids(pid).unwrap_or_default(),
            _ => BTreeSet::new(),
        }
    }

    /// Who was killed while it stopped the container may have sent the signal: whether that ends it shows in time.
    fn await_what_was_begun(&mut self) {
        if !std::mem::take(&mut self.is_taken_over) {
            return;
        }
        let until = Instant::now() + self.grace + KILLED;
        while Instant::now() < until && matches!(self.startable.status(), Ok(Status::Running(_))) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn end(&mut self) -> Vec<String> {
        if matches!(self.startable.status(), Ok(Status::Running(_))) {
            return vec![format!("`{}` runs here: somebody has started it", self.facts.name)];
        }
        let removed = self.startable.remove().err().map(|error| format!("container: {error}"));
        let link = self.link.as_ref().and_then(|(link, _)| link.remove().err());
        removed.into_iter().chain(link.map(|error| format!("network: {error}"))).collect()
    }
}

impl SourceContainer for Stoppable {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn tasks(&self) -> Result<BTreeSet<i32>, EngineError> {
        Ok(self.pids())
    }

    fn has_own_mounts(&self) -> bool {
        true
    }

    fn dump_options(&self, images: &Path, work: &Path) -> DumpOptions {
        DumpOptions::new(0, images, work)
    }

    fn complete_images(&self, _: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    fn bring_image(&self, lacks: &str, dir: &Path) -> Result<(), EngineError> {
        self.startable.bring_image(lacks, dir)
    }

    fn mapped_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        let now = process::mapped_files(&self.pids())?;
        Ok(now.union(&self.mapped).copied().collect())
    }

    /// What was open when it was stopped is closed: the kernel has told.
    fn open_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        Ok(process::open_files(&self.pids()))
    }

    fn remains(&mut self) -> Result<String, EngineError> {
        crate::remains::written(&StoppableRemains {
            stop_grace_s: self.grace.as_secs(),
            name: self.facts.name.clone(),
            trees: self.facts.trees.clone(),
            network: self.facts.network.clone(),
            namespace: self.link.as_ref().map(|(_, namespace)| namespace.path().to_owned()),
            startable: self.startable.remains(),
        })
    }

    fn presence(&self) -> Presence {
        match self.startable.status() {
            Ok(Status::Running(_)) => Presence::Running,
            Ok(Status::Stopped) => Presence::Frozen,
            _ => Presence::Gone,
        }
    }

    fn lock_network(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn unlock_network(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Stops it. What it says while it ends is heard; nothing more is once it has ended.
    fn freeze(&mut self) -> Result<(), EngineError> {
        self.mapped = self.mapped_files()?;
        self.startable.hold_off()?;
        self.startable.stop(self.grace)?;
        self.disconnect()
    }

    fn thaw(&mut self) -> Result<(), EngineError> {
        self.await_what_was_begun();
        if self.startable.status()? == Status::Stopped {
            self.startable.start()?;
        }
        Ok(())
    }

    fn verify_frozen(&self) -> Result<(), EngineError> {
        match self.startable.status()? {
            Status::Stopped => Ok(()),
            other => Err(EngineError::NotFrozen(format!("it was stopped, and is {other:?} now"))),
        }
    }

    fn take_frames(&mut self) -> Vec<HeldFrames> {
        Vec::new()
    }

    fn disconnect(&mut self) -> Result<(), EngineError> {
        self.link.as_ref().map_or(Ok(()), |(link, _)| Ok(link.down()?))
    }

    fn reconnect(&mut self) -> Result<(), EngineError> {
        match (&self.link, &self.facts.network) {
            (Some((link, namespace)), Some(state)) => Ok(link.up(state, namespace)?),
            _ => Ok(()),
        }
    }

    fn is_alive(&self) -> bool {
        matches!(self.startable.status(), Ok(Status::Running(_)))
    }

    fn leave_as_found(&mut self) -> Result<(), EngineError> {
        self.startable.release()
    }

    fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.startable.spare(volumes)
    }

    fn discard(&mut self) -> Vec<String> {
        self.end()
    }

    fn retire(&mut self) -> Vec<String> {
        self.disconnect().err().map(|error| format!("network: {error}")).into_iter().collect()
    }
}

/// The container at the destination: made by its engine, and started when the word is given.
pub(crate) struct Starting {
    made: Box<dyn DestinationContainer>,
    startable: Box<dyn Startable>,
}

impl Starting {
    pub(crate) fn new(made: Box<dyn DestinationContainer>, startable: Box<dyn Startable>) -> Self {
        Self { made, startable }
    }
}

impl DestinationContainer for Starting {
    fn place(&self, tree: &Path) -> Option<PathBuf> {
        self.made.place(tree)
    }

    fn get_ready(&mut self, _: &mut Note<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn restore(&mut self, _: &RestoreRequest, _: &mut dyn FnMut(i32)) -> Result<Given, EngineError> {
        self.made.release_files()?;
        match self.startable.status()? {
            Status::Stopped => Ok(Given { pid: 0 }),
            other => Err(EngineError::NotHeld(format!("it was made to be started, and is {other:?}"))),
        }
    }

    fn presence(&self) -> Presence {
        match self.startable.status() {
            Ok(Status::Running(_)) => Presence::Running,
            Ok(Status::Stopped) => Presence::Frozen,
            _ => Presence::Gone,
        }
    }

    fn pid(&self) -> Option<i32> {
        match self.startable.status() {
            Ok(Status::Running(pid)) => Some(pid),
            _ => None,
        }
    }

    fn connect(&mut self) -> Result<(), EngineError> {
        self.made.connect()
    }

    fn go(&mut self, _: &[HeldFrames]) -> Result<(), EngineError> {
        self.made.connect()?;
        self.startable.start()
    }

    fn settle(&mut self) -> Vec<String> {
        self.made.settle()
    }

    /// Nothing of what was made has been started.
    fn abandon(&mut self) -> Vec<String> {
        if matches!(self.startable.status(), Ok(Status::Running(_))) {
            return vec!["a container of its name runs, which somebody else has started".into()];
        }
        let removed = self.startable.remove().err().map(|error| format!("container: {error}"));
        removed.into_iter().chain(self.made.abandon()).collect()
    }
}
