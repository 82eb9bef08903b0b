//! A container of podman at the destination.

mod making;

use super::examination::parse_known;
use super::pod_here::PodHere;
use super::restart::{Known, PodmanStartable};
use super::{DEPENDED_ON, Podman, QUESTION, Recipe};
use super::{sharing, start};
use crate::arrival::Arrival;
use crate::container::{DestinationContainer, Given, Note, RestoreRequest, Shipment};
use crate::error::EngineError;
use crate::freezer::Freezer;
use crate::network::{NetworkRecord, Screen};
use crate::remains::{understood, written};
use crate::restart::Starting;
use crate::runtime::restoration::{Process, Restoration, explain, options, write_criu_config};
use crate::runtime::{config, read_config};
use crate::start::Start;
use crate::tool;
use crate::volumes::VolumeRoot;
use godwit_criu::images::rename_cgroups;
use godwit_criu::relay::Adaptation;
use godwit_migration::ownership::Presence;
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time that a restore may take.
const RESTORE: Duration = Duration::from_secs(300);
/// How long the others may take to be removed before what they depend on is removed with them.
const OTHERS: Duration = Duration::from_secs(3);

/// A container of podman on its way into this host.
struct PodmanArrival {
    podman: Podman,
    shipment: Shipment,
    recipe: Recipe,
    arrival: Arrival,
    /// The pod that it is in.
    pod: Option<PodHere>,
    /// Volumes that podman did not have before.
    made_volumes: Vec<String>,
    /// There may be a container and volumes to remove.
    begun_to_make: bool,
    /// Where the container's root file system is mounted.
    merged: Option<PathBuf>,
    /// Where podman keeps a directory for each container here.
    containers: PathBuf,
    /// What watches over it when podman starts it.
    conmon: PathBuf,
    /// Keeps the container's frames off the bridge until godwit's own gate stands.
    screen: Option<Screen>,
    /// `podman start`, waiting for the restore.
    start: Option<Start>,
    /// The same, with a runtime that waits for the images.
    begun: Option<Restoration>,
    /// `podman start`, which has got what it waited for.
    starting: Option<Box<dyn Process>>,
    /// Where podman has the runtime note the first process.
    pid_file: Option<PathBuf>,
    /// The first process, once restored.
    pid: Option<i32>,
}

/// What outlasts the process that receives.
#[derive(Serialize, Deserialize)]
struct Remains {
    shipment: Shipment,
    made_volumes: Vec<String>,
    network: Option<NetworkRecord>,
}

pub(super) fn prepare(
    podman: &Podman,
    shipment: &Shipment,
    note: &mut Note<'_>,
) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let mut arrival = PodmanArrival::new(podman, shipment)?;
    match arrival.make(note) {
        Ok(()) => Ok(arrival.boxed()),
        Err(error) => {
            for leftover in arrival.abandon() {
                tracing::warn!(%leftover, "could not be removed");
            }
            Err(error)
        }
    }
}

/// Finds again what another process has made or restored.
pub(super) fn reopen(podman: &Podman, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let Remains { shipment, made_volumes, network } = understood(remains)?;
    let mut arrival = PodmanArrival::new(podman, &shipment)?;
    arrival.made_volumes = made_volumes;
    arrival.begun_to_make = true;
    arrival.arrival = Arrival::reopen(network);
    if let Some(pod) = &arrival.recipe.pod
        && let Some(pod_here) = PodHere::find(podman, pod, leading_job(&shipment))?
    {
        arrival.be_in(pod_here);
        arrival.containers = containers(podman)?;
    }
    if let Some(pid) = arrival.pid_of_runtime()
        && let Ok(freezer) = Freezer::of_pid(pid)
    {
        arrival.pid = Some(pid);
        arrival.arrival.held(freezer);
    }
    Ok(arrival.boxed())
}

/// The directory of the migration that the pod is made for.
fn leading_job(shipment: &Shipment) -> &Path {
    shipment.leader.as_ref().unwrap_or(&shipment.job)
}

/// Where podman keeps a directory for each container.
fn containers(podman: &Podman) -> Result<PathBuf, EngineError> {
    Ok(podman.setting()?.graph_root.join("overlay-containers"))
}

impl PodmanArrival {
    /// What will restore it, or start it.
    fn boxed(self) -> Box<dyn DestinationContainer> {
        if !self.shipment.restart {
            return Box::new(self);
        }
        // its restart policy is given back when it has settled
        let known = Known { id: self.recipe.id.clone(), policy: None, image: String::new() };
        let startable = PodmanStartable::new(&self.podman, known);
        Box::new(Starting::new(Box::new(self), Box::new(startable)))
    }

    fn new(podman: &Podman, shipment: &Shipment) -> Result<Self, EngineError> {
        Ok(Self {
            podman: podman.clone(),
            recipe: parse_known(shipment)?,
            shipment: shipment.clone(),
            arrival: Arrival::default(),
            pod: None,
            made_volumes: Vec::new(),
            begun_to_make: false,
            merged: None,
            containers: PathBuf::new(),
            conmon: PathBuf::new(),
            screen: None,
            start: None,
            begun: None,
            starting: None,
            pid_file: None,
            pid: None,
        })
    }

    /// Where podman keeps the log here, if it keeps one (libpod: `ctr.log` in the container's directory).
    fn log(&self) -> Option<PathBuf> {
        self.recipe.record.log().map(|_| self.directory_of(&self.recipe.id).join("ctr.log"))
    }

    /// Where podman has the container's /dev/shm here (libpod: `shm` in its directory).
    fn shm(&self) -> PathBuf {
        self.directory_of(&self.recipe.id).join("shm")
    }

    /// Where the pod's is, if the container has that. What podman reads of a checkpoint has one of its own (libpod, setupContainer).
    fn shm_of_pod(&self) -> Option<PathBuf> {
        let pod = self.pod.as_ref().filter(|_| self.recipe.record.joins("ipc"))?;
        Some(self.directory_of(&pod.infra).join("shm"))
    }

    /// Has podman start it, with its network, and takes that over.
    fn begin_start(&mut self) -> Result<(), EngineError> {
        if let Some(network) = &self.shipment.network {
            self.screen = Screen::put_up(&self.recipe.id, network)?;
        }
        let roots: Vec<VolumeRoot> =
            self.shipment.trees.iter().filter_map(|path| VolumeRoot::of(path)).collect();
        // by itself: what starts the container next is told to ask godwit for the runtime
        self.start_pod()?;
        let start = start::begin(
            &self.podman.program,
            &self.conmon,
            &self.recipe.id,
            self.recipe.flavor,
            &self.shipment.job,
        )?;
        for root in roots {
            root.put_back()?;
        }
        let bundle = start.asked.bundle.clone();
        self.start = Some(start);
        self.take_network(&bundle)
    }

    /// Removes the container if it is there. Those that share its namespaces go before it, by those who have made them if they do it soon.
    fn remove_container(&self) -> Result<(), EngineError> {
        let until = Instant::now() + OTHERS;
        // its volumes are gone through by whoever calls: one without a name may have been there before
        let remove = ["rm", "--force", "--time", "0", "--ignore", &self.recipe.id];
        loop {
            match self.podman.run(&remove) {
                Err(EngineError::Tool { what, .. }) if what.contains(DEPENDED_ON) => {
                    if Instant::now() >= until {
                        // nobody else can have made any: it has never run here
                        return self.podman.run(&[&remove[..], &["--depend"]].concat()).map(drop);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                removed => return removed.map(drop),
            }
        }
    }

    /// Starts what holds the namespaces of the pod.
    fn start_pod(&self) -> Result<(), EngineError> {
        let Some(pod) = self.pod.as_ref().filter(|_| self.recipe.led_pod().is_some()) else { return Ok(()) };
        if let (Some(shm), Some(_)) = (self.shm_of_pod(), self.recipe.record.shm()) {
            // the one that has come with the container
            bind(&self.shm(), &shm)?;
        }
        pod.start(&self.podman)
    }

    /// The directory that podman keeps for a container here.
    fn directory_of(&self, id: &str) -> PathBuf {
        self.containers.join(id).join("userdata")
    }

    fn note(&self, note: &mut Note<'_>, network: Option<NetworkRecord>) -> Result<(), EngineError> {
        let remains =
            Remains { shipment: self.shipment.clone(), made_volumes: self.made_volumes.clone(), network };
        note(&written(&remains)?).map_err(EngineError::io("note what is made in", &self.shipment.job))
    }

    /// Takes the network that podman has made under godwit's own gate.
    fn take_network(&mut self, bundle: &Path) -> Result<(), EngineError> {
        let Some(wanted) = &self.shipment.network else { return Ok(()) };
        let path = match &self.pod {
            // by the name that outlasts processes
            Some(pod) if self.recipe.record.joins("net") => pod.network_namespace(&self.podman)?,
            _ => {
                let made = read_config(&bundle.join("config.json"))?;
                config::network_namespace_path(&made).ok_or_else(|| EngineError::Unreadable {
                    path: bundle.join("config.json"),
                    reason: "it names no network namespace".into(),
                })?
            }
        };
        self.arrival.adopt_network(wanted, &path)?;
        self.screen = None;
        Ok(())
    }

    fn adaptation(&self, request: &RestoreRequest) -> Adaptation {
        let flavor = self.recipe.flavor;
        // the id is the same, and so is the name of the cgroup; that of a pod is known by now
        Adaptation {
            cgroup: self.recipe.cgroup().filter(|_| !flavor.places_criu()),
            lazy_pages: request.lazy && !flavor.takes_lazy_pages(),
            joins_pids: config::joins_pids(&self.recipe.config),
        }
    }

    /// Has the runtime start its restore, which waits for [`Restoration::finish`] as soon as it needs CRIU.
    fn start_runtime(&mut self, request: &RestoreRequest) -> Result<Restoration, EngineError> {
        let start = self
            .start
            .take()
            .ok_or_else(|| EngineError::NotHeld("podman does not wait for a restore".into()))?;
        let job = &self.shipment.job;
        let config = write_criu_config(job)?;
        let flavor = self.recipe.flavor;
        let options = options(flavor, request, &self.shipment.carry);
        self.pid_file = Some(start.asked.pid_file.clone());
        let guardian = self.arrival.guardian();
        let adaptation = self.adaptation(request);
        let starting = &mut self.starting;
        let run = |environment: &[(&str, OsString)]| {
            let (podman, stand_in) = start.restore(flavor, &options, environment)?;
            *starting = Some(podman);
            Ok(Box::new(stand_in) as _)
        };
        Restoration::start(&config, &job.join("criu"), adaptation, request, guardian, run)
    }

    /// The first process, as the runtime has noted it.
    fn pid_of_runtime(&self) -> Option<i32> {
        let state =
            tool::run(Path::new(self.recipe.flavor.kind()), &["state", &self.recipe.id], QUESTION).ok()?;
        let state: serde_json::Value = serde_json::from_str(&state).ok()?;
        state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
    }
}

/// Has a directory show another one.
fn bind(shown: &Path, at: &Path) -> Result<(), EngineError> {
    std::fs::create_dir_all(at).map_err(EngineError::io("make", at))?;
    tool::run(Path::new("mount"), &["--bind".as_ref(), shown.as_os_str(), at.as_os_str()], QUESTION).map(drop)
}

impl DestinationContainer for PodmanArrival {
    fn place(&self, tree: &Path) -> Option<PathBuf> {
        if tree == self.recipe.merged {
            return self.merged.clone();
        }
        if self.recipe.record.log().is_some_and(|log| log == tree) {
            return self.log();
        }
        let shm = self.recipe.record.shm().filter(|_| !self.recipe.shares_shm());
        shm.is_some_and(|(shm, _)| shm == tree).then(|| self.shm())
    }

    fn get_ready(&mut self, note: &mut Note<'_>) -> Result<(), EngineError> {
        if self.starts_late() {
            return self.note(note, None);
        }
        self.begin_start()?;
        self.note(note, self.arrival.record())
    }

    fn starts_late(&self) -> bool {
        self.recipe.owner.is_some()
    }

    fn begin(&mut self, request: &RestoreRequest) {
        if self.starts_late() {
            return;
        }
        let descriptors = self.recipe.descriptors.clone();
        match Restoration::start_early(request, &descriptors, || self.start_runtime(request)) {
            Ok(begun) => self.begun = begun,
            Err(error) => tracing::warn!(%error, "the runtime could not be started early"),
        }
    }

    fn restore(
        &mut self,
        request: &RestoreRequest,
        restored: &mut dyn FnMut(i32),
    ) -> Result<Given, EngineError> {
        if self.starts_late() {
            // podman waits until the owner's start is over: then that is held
            self.begin_start()?;
        }
        if let (Some(pod), Some(here)) = (&self.recipe.pod, &self.pod) {
            rename_cgroups(&request.images, &pod.id, &here.id).map_err(|error| EngineError::Unreadable {
                path: "cgroup.img".into(),
                reason: error.to_string(),
            })?;
        }
        let descriptors = Some(self.recipe.descriptors.as_slice());
        let restoration = match self.begun.take().and_then(|begun| begun.if_it_fits(request, descriptors)) {
            Some(begun) => begun,
            None => self.start_runtime(request)?,
        };
        restoration.finish(RESTORE, restored).map_err(|error| explain(error, &request.work))?;
        let pid =
            self.pid_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
        let pid = pid.ok_or_else(|| {
            EngineError::NotHeld(format!("{} has noted no process of it", self.recipe.flavor.kind()))
        })?;
        self.arrival.hold(pid)?;
        self.pid = Some(pid);
        Ok(Given { pid })
    }

    fn presence(&self) -> Presence {
        self.pid.map_or(Presence::Gone, |pid| self.arrival.presence(pid))
    }

    fn pid(&self) -> Option<i32> {
        self.pid
    }

    fn go(&mut self, frames: &[HeldFrames]) -> Result<(), EngineError> {
        self.arrival.go(frames)
    }

    fn settle(&mut self) -> Vec<String> {
        let mut leftovers = self.arrival.settle();
        let mut keep = |what: &str, result: Result<(), EngineError>| {
            if let Err(error) = result {
                leftovers.push(format!("{what}: {error}"));
            }
        };
        if let Some(starting) = self.starting.take() {
            keep("podman start", starting.wait(QUESTION));
        }
        if let Some(policy) = self.recipe.record.restart_policy() {
            // not before: nobody but the source decides when it runs here
            let policy = format!("--restart={policy}");
            keep("restart policy", self.podman.run(&["update", &policy, &self.recipe.id]).map(drop));
        }
        if self.merged.take().is_some() {
            // podman itself has it mounted now
            keep("mount", self.podman.run(&["umount", &self.recipe.id]).map(drop));
        }
        let _ = std::fs::remove_dir_all(self.shipment.job.join(crate::stand_in::DIRECTORY));
        sharing::forget_made(&self.shipment.job);
        leftovers
    }

    fn abandon(&mut self) -> Vec<String> {
        let mut leftovers = Vec::new();
        let mut keep = |what: &str, result: Result<(), EngineError>| {
            if let Err(error) = result {
                leftovers.push(format!("{what}: {error}"));
            }
        };
        if let Some(begun) = self.begun.take() {
            begun.abandon();
        }
        if let Some(start) = self.start.take() {
            start.give_up();
        }
        let cgroup = self.recipe.cgroup();
        if !self.arrival.is_held() && self.begun_to_make {
            // of a restore that failed the runtime knows nothing; what CRIU has made by then is in the cgroup of this id
            let known = self.pid_of_runtime().and_then(|pid| Freezer::of_pid(pid).ok());
            let unknown = || Freezer::at(cgroup.as_ref().filter(|cgroup| cgroup.is_dir())?).ok();
            if let Some(freezer) = known.or_else(unknown) {
                self.arrival.held(freezer);
            }
        }
        keep("held tasks", self.arrival.kill_held());
        if let Some(starting) = self.starting.take()
            && let Err(error) = starting.wait(QUESTION)
        {
            tracing::debug!(%error, "podman gave up, as it should");
        }
        if std::mem::take(&mut self.begun_to_make) {
            keep("container", self.remove_container());
            // what podman leaves of a start that fails (libpod, `PersistDir`)
            let _ = std::fs::remove_dir_all(Path::new("/run/libpod/persist").join(&self.recipe.id));
            // what CRIU was put into before the runtime knew of it
            if let Some(cgroup) = cgroup.filter(|cgroup| cgroup.is_dir()) {
                keep("cgroup", self.arrival.clear_cgroup(&cgroup));
            }
            let shm_of_pod = self.shm_of_pod().filter(|_| self.recipe.led_pod().is_some());
            if let Some(shm) = shm_of_pod.filter(|shm| shm.is_dir()) {
                // podman leaves what it has not mounted itself
                let unmounted = tool::run(Path::new("umount"), &[shm], QUESTION);
                tracing::debug!(?unmounted, "the shared memory of the pod");
            }
            if let Some(pod) = self.recipe.led_pod() {
                // the answer to whether it was made may have been lost
                let made = PodHere::find(&self.podman, pod, &self.shipment.job);
                let remove = |pod: PodHere| {
                    // the others are taken away by those who have made them
                    let until = Instant::now() + OTHERS;
                    while !self.podman.remove_empty_pod(&pod.id)? && Instant::now() < until {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    self.podman.remove_pod(&pod.id)
                };
                keep("pod", made.and_then(|made| made.map_or(Ok(()), remove)));
                self.pod = None;
            }
            for volume in std::mem::take(&mut self.made_volumes) {
                if self.podman.run(&["volume", "exists", &volume]).is_ok() {
                    keep("volume", self.podman.run(&["volume", "rm", "--force", &volume]).map(drop));
                }
            }
            self.arrival.sweep(&self.shipment.job.join("work"));
        }
        keep("network", self.arrival.remove_network());
        self.screen = None;
        sharing::forget_made(&self.shipment.job);
        keep("screen", Screen::take_down(&self.recipe.id).map_err(EngineError::from));
        leftovers
    }
}
