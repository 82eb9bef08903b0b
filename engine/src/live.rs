//! The running container at the source, for every engine whose tasks sit in a cgroup of their own.

use crate::container::{Facts, SourceContainer, Tree};
use crate::cure::{cure, wait_for_criu};
use crate::error::EngineError;
use crate::freezer::{FreezeState, Freezer, others_in_pid_namespace};
use crate::network::{Frame, FramesByLink, Gate, Namespace, NetworkAttachment, NetworkState, forward};
use crate::obstacles::shared_numbers::adopted;
use crate::process;
use crate::remains::{Born, understood};
use crate::sys::priority::give_way;
use crate::throttle::CpuCgroup;
use godwit_criu::DumpOptions;
use godwit_guardian::Guardian;
use godwit_migration::ownership::Presence;
use godwit_migration::plan::Carry;
use godwit_migration::throttle::LimitChange;
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long all tasks may take to freeze: one in uninterruptible sleep holds the whole cgroup up.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// How long the container may take to read the datagrams that came before the lock: CRIU does not carry them.
const READ_LIMIT: Duration = Duration::from_millis(20);

/// How long a task that was let go by a killed CRIU has to show whether it can go on.
const FIRST_STEPS: Duration = Duration::from_millis(50);

/// How often it is looked for who was put into a container that is to end.
const BETWEEN_VISITORS: Duration = Duration::from_millis(20);

/// What differs between engines once a container is found.
pub(crate) trait Kin: Send {
    /// Its cgroup; made when first asked for, if the engine has none for it.
    fn freezer(&mut self) -> Result<Freezer, EngineError>;

    /// Its tasks now.
    fn pids(&self) -> Result<BTreeSet<i32>, EngineError>;

    /// CRIU's external resources.
    fn external(&self) -> Vec<String>;

    /// Adds to a complete dump what the engine's own restore wants.
    fn complete_images(&self, images: &Path) -> Result<(), EngineError>;

    /// Writes the image that it was made of into a directory.
    fn bring_image(&self, _lacks: &str, _dir: &Path) -> Result<(), EngineError> {
        Err(EngineError::NotFound("image".into()))
    }

    /// Bytes that this image has, about.
    fn image_bytes(&self) -> Result<u64, EngineError> {
        Err(EngineError::NotFound("image".into()))
    }

    /// What of it must outlast this process.
    fn remains(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Lets go of what was made for the freeze only, when the container stays.
    fn relent(&mut self) -> Result<(), EngineError>;

    /// Before all tasks are killed: nobody shall start the container again when they are gone.
    fn expect_end(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// What is at these paths outlasts [`Kin::forget`].
    fn spare(&mut self, _volumes: &[PathBuf]) -> Result<(), EngineError> {
        Ok(())
    }

    /// After all tasks are gone: forgets the container.
    fn forget(&mut self) -> Result<(), EngineError>;

    /// After that: whether others have its network still, and its engine takes that down with the last of them.
    fn leaves_network(&self) -> bool {
        false
    }

    /// In the place of [`Kin::forget`]: the container is kept. Waits until the engine knows that it is dead.
    fn retire(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// The network end of a container at the source.
pub(crate) struct SourceNetwork {
    namespace: Namespace,
    attachment: NetworkAttachment,
    gate: Gate,
    /// Host interface and the name of its other end.
    links: Vec<(String, String)>,
    kept: FramesByLink,
    disconnected: bool,
}

impl SourceNetwork {
    pub(crate) fn new(facts: &Facts, namespace: Namespace) -> Result<Option<Self>, EngineError> {
        let Some(state) = &facts.network else { return Ok(None) };
        let peer = |link: &crate::network::Link| Some((link.peer.as_ref()?.name.clone(), link.name.clone()));
        let attachment = NetworkAttachment::new(state, &namespace);
        Ok(Some(Self {
            gate: Gate::of(&namespace, &attachment.host_links)?,
            attachment,
            links: state.links.iter().filter_map(peer).collect(),
            namespace,
            kept: Vec::new(),
            disconnected: false,
        }))
    }

    /// What was kept until now, besides what was asked for before.
    fn keep(&mut self, frames: FramesByLink) {
        for (host_link, frames) in frames {
            match self.kept.iter_mut().find(|(link, _)| *link == host_link) {
                Some((_, kept)) => kept.extend(frames),
                None => self.kept.push((host_link, frames)),
            }
        }
    }

    /// Sends what still came here after the container had gone, to where it is now.
    fn forward_late(&mut self, facts: &Facts) {
        let links = facts.network.iter().flat_map(|state| &state.links);
        let peers: Vec<_> = links.filter_map(|link| link.peer.as_ref()).collect();
        for (host_link, frames) in self.gate.stop() {
            let peer = peers.iter().find(|peer| peer.name == host_link);
            let Some(bridge) = peer.and_then(|peer| peer.bridge.as_ref()) else { continue };
            tracing::debug!(%bridge, frames = frames.len(), "forwarded what came late");
            if let Err(error) = forward(bridge, &frames) {
                tracing::warn!(%error, "frames that came late could not be forwarded");
            }
        }
    }
}

/// What outlasts the process that moves a container.
#[derive(Serialize, Deserialize)]
pub(crate) struct Remains {
    pub(crate) name: String,
    pub(crate) born: Born,
    cgroup: PathBuf,
    namespace: Option<PathBuf>,
    network: Option<NetworkState>,
    trees: Vec<Tree>,
    pub(crate) kin: serde_json::Value,
}

impl Remains {
    pub(crate) fn understand(text: &str) -> Result<Self, EngineError> {
        understood(text)
    }

    /// The container, or what is left of it.
    pub(crate) fn reopen(self, engine: &'static str, kin: Box<dyn Kin>) -> LiveContainer {
        let facts = Facts {
            engine,
            name: self.name,
            pid: self.born.pid(),
            memory_bytes: 0,
            trees: self.trees,
            network: self.network,
            recipe: String::new(),
            warnings: Vec::new(),
            starts_slowly: false,
            annotations: std::collections::BTreeMap::new(),
            image: None,
            image_id: None,
        };
        let opened = self.namespace.map(Namespace::open).and_then(Result::ok);
        let network = opened.and_then(|namespace| SourceNetwork::new(&facts, namespace).ok().flatten());
        let freezer = Freezer::at(self.cgroup).ok();
        let frozen = freezer.as_ref().and_then(|freezer| freezer.pids().ok()).unwrap_or_default();
        LiveContainer {
            facts,
            carry: Carry::default(),
            kin,
            // whether it was disconnected nobody knows: to connect it once more harms nobody
            network: network.map(|network| SourceNetwork { disconnected: true, ..network }),
            freezer,
            cpu: None,
            frozen,
            born: Some(self.born),
            guardian: OnceCell::new(),
            bereft: BTreeSet::new(),
            shares_numbers: false,
        }
    }
}

/// A running container.
pub(crate) struct LiveContainer {
    facts: Facts,
    carry: Carry,
    kin: Box<dyn Kin>,
    network: Option<SourceNetwork>,
    freezer: Option<Freezer>,
    cpu: Option<CpuCgroup>,
    /// The tasks at the freeze.
    frozen: BTreeSet<i32>,
    /// When its first process was born, if it was opened again.
    born: Option<Born>,
    /// Holds it if CRIU is killed in a dump; started before the freeze.
    guardian: OnceCell<Arc<Guardian>>,
    /// The tasks that a killed CRIU let go of.
    bereft: BTreeSet<i32>,
    /// Whether other containers are in its pid namespace.
    shares_numbers: bool,
}

impl LiveContainer {
    pub(crate) fn new(facts: Facts, carry: Carry, kin: Box<dyn Kin>, network: Option<SourceNetwork>) -> Self {
        Self {
            shares_numbers: !others_in_pid_namespace(facts.pid).is_empty(),
            facts,
            carry,
            kin,
            network,
            freezer: None,
            cpu: None,
            frozen: BTreeSet::new(),
            born: None,
            guardian: OnceCell::new(),
            bereft: BTreeSet::new(),
        }
    }

    fn cpu(&mut self) -> Result<&mut CpuCgroup, EngineError> {
        let found = match self.cpu.take() {
            Some(cpu) => cpu,
            None => CpuCgroup::of_pid(self.facts.pid)?,
        };
        Ok(self.cpu.insert(found))
    }

    fn freezer(&mut self) -> Result<Freezer, EngineError> {
        if let Some(freezer) = &self.freezer {
            return Ok(freezer.clone());
        }
        let freezer = self.kin.freezer()?;
        self.freezer = Some(freezer.clone());
        Ok(freezer)
    }

    /// What a CRIU that was killed has left behind is put right while it stands still.
    fn cure(&mut self) {
        let Some(freezer) = &self.freezer else { return };
        let namespace = self.network.as_ref().map(|network| &network.namespace);
        if self.born.is_some() {
            // what happened before this process came nobody knows
            if !wait_for_criu(freezer.path()) {
                tracing::warn!("a criu still works on the container");
            }
            return cure(&self.frozen, namespace);
        }
        if self.frozen.is_empty() || !self.guardian.get().is_some_and(|guardian| guardian.is_bereft()) {
            return;
        }
        if let Err(error) = freezer.freeze(FREEZE_LIMIT) {
            tracing::warn!(%error, "it runs while it is cured");
        }
        cure(&self.frozen, namespace);
        self.bereft.clone_from(&self.frozen);
    }
}

impl SourceContainer for LiveContainer {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn tasks(&self) -> Result<BTreeSet<i32>, EngineError> {
        if self.frozen.is_empty() { self.kin.pids() } else { Ok(self.frozen.clone()) }
    }

    fn has_own_mounts(&self) -> bool {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        namespace(&self.facts.pid.to_string()) != namespace("self")
    }

    fn dump_options(&self, images: &Path, work: &Path) -> DumpOptions {
        let mut options = DumpOptions::new(self.facts.pid, images, work);
        options.freeze_cgroup = self.freezer.as_ref().map(|freezer| freezer.path().to_owned());
        options.tcp_established = self.carry.tcp_established;
        options.ext_unix_sk = self.carry.ext_unix_sk;
        options.file_locks = self.carry.file_locks;
        options.shell_job = self.carry.shell_job;
        options.link_remap = self.carry.link_remap;
        options.external = self.kin.external();
        options.guardian = Some(self.guardian.get_or_init(crate::guardian::start).clone());
        options
    }

    fn complete_images(&self, images: &Path) -> Result<(), EngineError> {
        self.kin.complete_images(images)
    }

    fn bring_image(&self, lacks: &str, dir: &Path) -> Result<(), EngineError> {
        self.kin.bring_image(lacks, dir)
    }

    fn image_bytes(&self) -> Result<u64, EngineError> {
        self.kin.image_bytes()
    }

    fn mapped_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        process::mapped_files(&self.kin.pids()?)
    }

    fn open_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        Ok(process::open_files(&self.kin.pids()?))
    }

    fn cpu_time(&mut self) -> Result<Duration, EngineError> {
        self.cpu()?.used()
    }

    fn plan_throttle(&mut self, processors: f64) -> Result<LimitChange, EngineError> {
        self.cpu()?.plan(processors)
    }

    fn throttle(&mut self, change: &LimitChange) -> Result<(), EngineError> {
        self.cpu()?.throttle(change)
    }

    fn unthrottle(&mut self) -> Result<(), EngineError> {
        self.cpu.as_mut().map_or(Ok(()), CpuCgroup::unthrottle)
    }

    fn remains(&mut self) -> Result<String, EngineError> {
        let cgroup = self.freezer()?.path().to_owned();
        let remains = Remains {
            name: self.facts.name.clone(),
            born: Born::of(self.facts.pid)?,
            cgroup,
            namespace: self.network.as_ref().map(|network| network.namespace.path().to_owned()),
            network: self.facts.network.clone(),
            trees: self.facts.trees.clone(),
            kin: self.kin.remains(),
        };
        crate::remains::written(&remains)
    }

    fn presence(&self) -> Presence {
        if self.born.as_ref().is_some_and(|born| !born.is_alive()) {
            return Presence::Gone;
        }
        let Some(freezer) = &self.freezer else {
            return if self.is_alive() { Presence::Running } else { Presence::Gone };
        };
        match freezer.pids() {
            Ok(pids) if pids.contains(&self.facts.pid) => match freezer.state() {
                Ok(FreezeState::Thawed) => Presence::Running,
                _ => Presence::Frozen,
            },
            _ => Presence::Gone,
        }
    }

    fn lock_network(&mut self) -> Result<(), EngineError> {
        self.network.as_mut().map_or(Ok(()), |network| Ok(network.gate.close_input()?))
    }

    fn unlock_network(&mut self) -> Result<(), EngineError> {
        self.cure();
        let Some(network) = &mut self.network else { return Ok(()) };
        let kept = std::mem::take(&mut network.kept);
        if network.gate.is_capturing() {
            let late = network.gate.take();
            network.keep(kept);
            network.keep(late);
        }
        let kept = std::mem::take(&mut network.kept);
        network.gate.begin_to_open(kept)?;
        Ok(network.gate.open()?)
    }

    fn freeze(&mut self) -> Result<(), EngineError> {
        let freezer = self.freezer()?;
        if self.network.is_some() {
            let_read(self.facts.pid);
        }
        if self.cpu.as_ref().is_some_and(CpuCgroup::is_throttled) {
            // a throttled task would stop late: ordered to stop, it does so with its first CPU time, and runs nothing else
            freezer.order_freeze()?;
            if let Err(error) = self.unthrottle() {
                freezer.thaw()?;
                return Err(error);
            }
        }
        let took = freezer.freeze(FREEZE_LIMIT)?;
        // only now, for a program that runs would get an error for what it sends
        if let Some(network) = &mut self.network {
            network.gate.close()?;
        }
        self.frozen = freezer.pids()?;
        if self.shares_numbers {
            let blockers = adopted(self.facts.pid, &self.frozen);
            if !blockers.is_empty() {
                return Err(EngineError::Blocked { name: self.facts.name.clone(), blockers });
            }
        }
        tracing::debug!(?took, tasks = self.frozen.len(), "frozen");
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), EngineError> {
        if let Some(freezer) = &self.freezer {
            freezer.thaw()?;
        }
        self.frozen.clear();
        Ok(())
    }

    fn verify_frozen(&self) -> Result<(), EngineError> {
        let freezer =
            self.freezer.as_ref().ok_or_else(|| EngineError::NotFrozen("it was never frozen".into()))?;
        if freezer.state()? != FreezeState::Frozen {
            return Err(EngineError::NotFrozen("its cgroup is not frozen any more".into()));
        }
        let now = freezer.pids()?;
        // whoever was put into it from outside stands still in it, too; one that a task of it has made says that it has run
        let made = |pid: &&i32| parent(**pid).is_some_and(|parent| self.frozen.contains(&parent));
        let made: Vec<_> = now.difference(&self.frozen).filter(made).collect();
        let lost: Vec<_> = self.frozen.difference(&now).collect();
        if !lost.is_empty() || !made.is_empty() {
            return Err(EngineError::NotFrozen(format!("its tasks changed (lost {lost:?}, made {made:?})")));
        }
        Ok(())
    }

    fn take_frames(&mut self) -> Vec<HeldFrames> {
        let Some(network) = &mut self.network else { return Vec::new() };
        // they stay here, too: until commit the container may have to go on at this place
        let frames = network.gate.take();
        network.keep(frames);
        let inside = |host_link: &str| {
            network.links.iter().find(|(host, _)| host == host_link).map(|(_, inside)| inside.clone())
        };
        let held = |(host_link, frames): &(String, Vec<Frame>)| {
            Some(HeldFrames {
                interface: inside(host_link)?,
                frames: frames.iter().map(|frame| serde_bytes::ByteBuf::from(frame.0.clone())).collect(),
            })
        };
        network.kept.iter().filter_map(held).collect()
    }

    fn disconnect(&mut self) -> Result<(), EngineError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        network.disconnected = true;
        // its link stays up: what still comes this way is kept, and forwarded when it has arrived
        if let Err(error) = network.gate.silence() {
            tracing::debug!(%error, "its link goes down instead");
            let frames = network.gate.stop();
            network.keep(frames);
            network.attachment.down()?;
        }
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), EngineError> {
        let (Some(network), Some(state)) = (&mut self.network, &self.facts.network) else { return Ok(()) };
        if std::mem::take(&mut network.disconnected) {
            network.attachment.up(state, &network.namespace)?;
        }
        Ok(())
    }

    fn is_alive(&self) -> bool {
        is_alive(self.facts.pid)
    }

    fn damage(&mut self) -> Vec<String> {
        let before = std::mem::take(&mut self.bereft);
        if before.is_empty() {
            return Vec::new();
        }
        // who cannot go on where CRIU left it ends with its first instruction
        std::thread::sleep(FIRST_STEPS);
        let lost: Vec<String> =
            before.iter().filter(|pid| !is_alive(**pid)).map(ToString::to_string).collect();
        if lost.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "criu was killed while it worked in it, and these processes of it are lost: {}",
            lost.join(", ")
        )]
    }

    fn leave_as_found(&mut self) -> Result<(), EngineError> {
        self.freezer = None;
        self.kin.relent()
    }

    fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.kin.spare(volumes)
    }

    fn discard(&mut self) -> Vec<String> {
        self.end(|kin| kin.forget())
    }

    fn retire(&mut self) -> Vec<String> {
        self.end(|kin| kin.retire())
    }
}

impl LiveContainer {
    /// Has the engine not start it again. An engine that is about to put a health check into the container has to give up first: it
    /// would wait, with its lock on the container, until that goes on.
    fn expect_end(&mut self) -> Result<(), EngineError> {
        let Some(freezer) = &self.freezer else { return self.kin.expect_end() };
        let kin = &mut self.kin;
        std::thread::scope(|scope| {
            let told = scope.spawn(|| kin.expect_end());
            while !told.is_finished() {
                if let Err(error) = freezer.kill_visitors(self.facts.pid) {
                    tracing::debug!(%error, "visitors are left");
                }
                std::thread::sleep(BETWEEN_VISITORS);
            }
            told.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Kills the frozen tasks; what becomes of the container after that `then` does.
    fn end(&mut self, then: impl FnOnce(&mut dyn Kin) -> Result<(), EngineError>) -> Vec<String> {
        if let Some(network) = &mut self.network {
            network.forward_late(&self.facts);
        }
        let mut leftovers = Vec::new();
        let mut keep = |what: &str, result: Result<(), EngineError>| {
            if let Err(error) = result {
                leftovers.push(format!("{what}: {error}"));
            }
        };
        keep("restart policy", self.expect_end());
        if let Some(freezer) = &self.freezer {
            // nothing of it is in a hurry any more; what else runs on this host may be
            freezer.pids().into_iter().flatten().for_each(give_way);
            keep("frozen tasks", freezer.kill_frozen().map_err(EngineError::from));
        }
        keep("container", then(&mut *self.kin));
        if let Some(network) = self.network.as_ref().filter(|_| !self.kin.leaves_network()) {
            keep("network", network.attachment.remove().map_err(EngineError::from));
        }
        leftovers
    }
}

fn parent(pid: i32) -> Option<i32> {
    Some(procfs::process::Process::new(pid).and_then(|process| process.stat()).ok()?.ppid)
}

fn is_alive(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Waits a moment until the container has read the datagrams that its sockets hold.
fn let_read(pid: i32) {
    let begun = Instant::now();
    while ["udp", "udp6"].iter().any(|kind| holds_datagrams(&format!("/proc/{pid}/net/{kind}"))) {
        if begun.elapsed() > READ_LIMIT {
            tracing::warn!("datagrams that the container has not read will be lost");
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Whether a socket of a table of /proc/net has something to read: the second number of its fifth column (proc_net(5)).
fn holds_datagrams(table: &str) -> bool {
    let text = std::fs::read_to_string(table).unwrap_or_default();
    let queued = |line: &str| Some(line.split_whitespace().nth(4)?.split(':').nth(1)? != "00000000");
    text.lines().skip(1).filter_map(queued).any(|queued| queued)
}
