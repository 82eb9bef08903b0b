//! A container of docker at the destination.

mod making;

use super::offer::parse_known;
use super::removal::Removal;
use super::restart::{DockerStartable, Known};
use super::sharing::OwnerHere;
use super::{Docker, KIND, QUESTION, Recipe, layer, network};
use crate::arrival::Arrival;
use crate::container::{DestinationContainer, Given, Note, RestoreRequest, Shipment};
use crate::error::EngineError;
use crate::freezer::Freezer;
use crate::network::{NetworkRecord, Screen};
use crate::remains::{understood, written};
use crate::runtime::restoration::{Process, Restoration, explain, options, write_criu_config};
use crate::runtime::{Flavor, cgroups, config, read_config, write_private};
use crate::stand_in::{self, expect, expect_no_more};
use crate::start::{Door, Start};
use crate::volumes::VolumeRoot;
use godwit_criu::images::rename_cgroups;
use godwit_criu::relay::Adaptation;
use godwit_migration::ownership::Presence;
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time that a restore may take.
const RESTORE: Duration = Duration::from_secs(300);

/// A container of docker on its way into this host.
struct DockerArrival {
    docker: Docker,
    shipment: Shipment,
    recipe: Recipe,
    arrival: Arrival,
    /// Volumes that docker did not have before.
    made_volumes: Vec<String>,
    /// There may be a container and volumes to remove.
    begun_to_make: bool,
    /// The id that docker has given it.
    id: Option<String>,
    /// Where what docker has made for it is: how that is called on the wire, and its place here.
    places: Vec<(PathBuf, PathBuf)>,
    /// Where docker will have its root file system mounted.
    merged: PathBuf,
    /// Keeps the container's frames off the bridge until godwit's own gate stands.
    screen: Option<Screen>,
    /// docker's start, waiting for the restore.
    start: Option<Start>,
    /// The same, with a runtime that waits for the images.
    begun: Option<Restoration>,
    /// docker's start, which has got what it waited for.
    starting: Option<Box<dyn Process>>,
    /// Where the runtime keeps its containers.
    runtime_root: Option<PathBuf>,
    /// Where docker has the runtime note the first process.
    pid_file: Option<PathBuf>,
    /// The first process, once restored.
    pid: Option<i32>,
}

/// What outlasts the process that receives.
#[derive(Serialize, Deserialize)]
struct Remains {
    shipment: Shipment,
    made_volumes: Vec<String>,
    id: Option<String>,
    #[serde(default)]
    runtime_root: Option<PathBuf>,
    network: Option<NetworkRecord>,
}

pub(super) fn lacks_image(docker: &Docker, shipment: &Shipment) -> Result<Option<String>, EngineError> {
    match docker.image(parse_known(shipment)?.record.image().0)? {
        Some(_) => Ok(None),
        None => docker.layers_here().map(Some),
    }
}

pub(super) fn take_image(docker: &Docker, shipment: &Shipment, dir: &Path) -> Result<(), EngineError> {
    docker.import(parse_known(shipment)?.record.image().0, dir)
}

pub(super) fn prepare(
    docker: &Docker,
    shipment: &Shipment,
    note: &mut Note<'_>,
) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let mut arrival = DockerArrival::new(docker, shipment)?;
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
pub(super) fn reopen(docker: &Docker, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let Remains { shipment, made_volumes, id, runtime_root, network } = understood(remains)?;
    let mut arrival = DockerArrival::new(docker, &shipment)?;
    arrival.made_volumes = made_volumes;
    arrival.begun_to_make = true;
    arrival.id = id;
    arrival.runtime_root = runtime_root;
    arrival.arrival = Arrival::reopen(network);
    if let Some(id) = arrival.id.clone()
        && let Err(error) = arrival.find_log(&id)
    {
        tracing::warn!(%error, "where its log has arrived is not known");
    }
    if !arrival.shipment.restart
        && let Some(pid) = arrival.pid_of_docker()
        && let Ok(freezer) = Freezer::of_pid(pid)
    {
        arrival.pid = Some(pid);
        arrival.arrival.held(freezer);
    }
    Ok(arrival.boxed())
}

/// docker's own start of a container: a question that is answered when the runtime has ended.
struct Starting(JoinHandle<Result<(), EngineError>>);

impl Starting {
    fn begin(docker: &Docker, id: &str) -> Result<Self, EngineError> {
        let (api, path) = (docker.api.clone(), format!("/containers/{id}/start"));
        let asking = std::thread::Builder::new()
            .name("docker-start".into())
            .spawn(move || api.post_within(&path, None));
        asking.map(Self).map_err(EngineError::io("start a thread for", KIND))
    }
}

impl Process for Starting {
    fn is_alive(&mut self) -> bool {
        !self.0.is_finished()
    }

    fn wait(self: Box<Self>, limit: Duration) -> Result<(), EngineError> {
        let failed = |what: String| Err(EngineError::Tool { program: format!("{KIND} start"), what });
        let begun = Instant::now();
        while !self.0.is_finished() {
            if begun.elapsed() > limit {
                return failed(format!("did not end within {} s", limit.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.join().unwrap_or_else(|_| failed("came to no end".into()))
    }
}

impl DockerArrival {
    /// What will restore it, or start it.
    fn boxed(self) -> Box<dyn DestinationContainer> {
        if !self.shipment.restart {
            return Box::new(self);
        }
        // its restart policy is given back when it has settled
        let id = self.id.clone().unwrap_or_else(|| self.first_name());
        let startable = DockerStartable::new(&self.docker, Known { id, policy: None, image: String::new() });
        Box::new(crate::restart::Starting::new(Box::new(self), Box::new(startable)))
    }

    fn new(docker: &Docker, shipment: &Shipment) -> Result<Self, EngineError> {
        Ok(Self {
            docker: docker.clone(),
            recipe: parse_known(shipment)?,
            shipment: shipment.clone(),
            arrival: Arrival::default(),
            made_volumes: Vec::new(),
            begun_to_make: false,
            id: None,
            places: Vec::new(),
            merged: PathBuf::new(),
            screen: None,
            start: None,
            begun: None,
            starting: None,
            runtime_root: None,
            pid_file: None,
            pid: None,
        })
    }

    fn volume_roots(&self) -> Vec<VolumeRoot> {
        self.shipment.trees.iter().filter_map(|path| VolumeRoot::of(path)).collect()
    }

    fn note(&self, note: &mut Note<'_>, network: Option<NetworkRecord>) -> Result<(), EngineError> {
        let remains = Remains {
            shipment: self.shipment.clone(),
            made_volumes: self.made_volumes.clone(),
            id: self.id.clone(),
            runtime_root: self.runtime_root.clone(),
            network,
        };
        note(&written(&remains)?).map_err(EngineError::io("note what is made in", &self.shipment.job))
    }

    fn known_id(&self) -> Result<&str, EngineError> {
        self.id.as_deref().ok_or_else(|| EngineError::NotHeld("docker has made no container".into()))
    }

    /// Where its log arrives, which has the source's id in its name.
    fn arriving_log(&self) -> Option<PathBuf> {
        self.recipe.log.as_ref().and_then(|called| self.place(called))
    }

    /// Gives the log that has arrived the name that docker goes on with: two names of one file, until it runs here.
    fn join_log(&self) -> Result<(), EngineError> {
        let Some(arriving) = self.arriving_log().filter(|log| log.exists()) else { return Ok(()) };
        // moby: daemon/logs.go
        let log = arriving.with_file_name(format!("{}-json.log", self.known_id()?));
        std::fs::hard_link(&arriving, &log).map_err(EngineError::io("make", log))
    }

    /// Has docker start it, as far as the runtime.
    fn start(&self) -> Result<Start, EngineError> {
        let id = self.known_id()?;
        let door = Door::open(&self.shipment.job)?;
        expect(id, door.dir()).map_err(EngineError::io("note that godwit waits for", id))?;
        door.wait_for(Box::new(Starting::begin(&self.docker, id)?))
    }

    /// Has docker start it, with its network and its root file system where they will be, and takes them over.
    fn begin_start(&mut self) -> Result<(), EngineError> {
        let id = self.known_id()?.to_owned();
        if let Some(network) = &self.shipment.network {
            self.screen = Screen::put_up(&id, network)?;
        }
        let roots = self.volume_roots();
        self.join_log()?;
        layer::unmount(&layer::place_of(&self.shipment.job))?;
        let start = self.start()?;
        if !layer::is_mounted(&self.merged) {
            let reason =
                "docker has not mounted it in this mount namespace: godwit and dockerd must share one".into();
            self.start = Some(start);
            return Err(EngineError::Unreadable { path: self.merged.clone(), reason });
        }
        if let Some((_, place)) = self.places.iter_mut().find(|(called, _)| *called == self.recipe.merged) {
            place.clone_from(&self.merged);
        }
        for root in roots {
            root.put_back()?;
        }
        let bundle = start.asked.bundle.clone();
        self.runtime_root = start.asked.root();
        self.start = Some(start);
        self.make_network(&id, &bundle)?;
        self.screen = None;
        Ok(())
    }

    /// Waits until docker has started the one whose namespaces it shares: as long as that goes on docker says nothing of it.
    fn wait_for(&self, owner: &OwnerHere) -> Result<(), EngineError> {
        let shown = self.docker.find(&owner.id)?;
        match shown.and_then(|shown| shown.pointer("/State/Running")?.as_bool()) {
            Some(true) => Ok(()),
            _ => {
                Err(EngineError::NotHeld("the container whose namespaces it shares was not restored".into()))
            }
        }
    }

    /// Takes the network that docker makes under godwit's own gate. The bundle is made fit for a restore with it.
    fn make_network(&mut self, id: &str, bundle: &Path) -> Result<(), EngineError> {
        let file = bundle.join("config.json");
        let mut config = read_config(&file)?;
        let made = network::make(id, bundle, &mut config)?;
        config::resolve_bind_sources(&mut config);
        write_private(&file, config.to_string().as_bytes())?;
        if let (Some(path), Some(wanted)) = (made, &self.shipment.network) {
            self.arrival.adopt_network(wanted, &path)?;
        }
        Ok(())
    }

    /// Has the runtime start its restore, which waits for [`Restoration::finish`] as soon as it needs CRIU.
    fn start_runtime(&mut self, request: &RestoreRequest) -> Result<Restoration, EngineError> {
        let start = self
            .start
            .take()
            .ok_or_else(|| EngineError::NotHeld("docker does not wait for a restore".into()))?;
        let job = &self.shipment.job;
        let criu_config = write_criu_config(job)?;
        let options = options(Flavor::Runc, request, &self.shipment.carry);
        self.pid_file = Some(start.asked.pid_file.clone());
        let guardian = self.arrival.guardian();
        let starting = &mut self.starting;
        Restoration::start(
            &criu_config,
            &job.join("criu"),
            Adaptation { joins_pids: config::joins_pids(&self.recipe.config), ..Adaptation::default() },
            request,
            guardian,
            |environment| {
                let (docker, stand_in) = start.restore(Flavor::Runc, &options, environment)?;
                *starting = Some(docker);
                Ok(Box::new(stand_in) as _)
            },
        )
    }

    /// The container that was or may have been made.
    fn found(&self) -> Result<Option<Value>, EngineError> {
        match &self.id {
            Some(id) => self.docker.find(id),
            None => self.docker.find(&self.first_name()),
        }
    }

    /// Where its cgroup is: as at the source, with the new id.
    fn cgroup(&self) -> Option<PathBuf> {
        let mut config = self.recipe.config.clone();
        config::rename_cgroup(&mut config, &self.recipe.id, self.id.as_ref()?);
        let by_systemd = self.recipe.cgroup_driver == "systemd";
        let path = cgroups::directory(Flavor::Runc, &config, self.id.as_ref()?, by_systemd)?;
        // the id is what makes it this container's
        path.to_string_lossy().contains(self.id.as_ref()?).then_some(path)
    }

    /// The first process, as docker knows it.
    fn pid_of_docker(&self) -> Option<i32> {
        let shown = self.found().ok()??;
        let pid = shown.pointer("/State/Pid").and_then(Value::as_i64)?;
        i32::try_from(pid).ok().filter(|pid| *pid > 0)
    }
}

impl DestinationContainer for DockerArrival {
    fn place(&self, tree: &Path) -> Option<PathBuf> {
        self.places.iter().find(|(called, _)| called == tree).map(|(_, place)| place.clone())
    }

    fn get_ready(&mut self, note: &mut Note<'_>) -> Result<(), EngineError> {
        if let Some(owner) = self.owner()? {
            // docker starts it when the owner runs, by docker's word; what that will leave is known before
            self.runtime_root = owner.runtime_root;
            return self.note(note, None);
        }
        self.begin_start()?;
        self.note_for_others()?;
        self.note(note, self.arrival.record())
    }

    fn starts_late(&self) -> bool {
        self.recipe.owner.is_some()
    }

    fn release_files(&mut self) -> Result<(), EngineError> {
        self.join_log()?;
        layer::unmount(&layer::place_of(&self.shipment.job))
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
        if let Some(owner) = self.owner()? {
            self.wait_for(&owner)?;
            self.begin_start()?;
        }
        let renamed = rename_cgroups(&request.images, &self.recipe.id, self.known_id()?);
        renamed.map_err(|error| EngineError::Unreadable {
            path: "cgroup.img".into(),
            reason: error.to_string(),
        })?;
        let descriptors = Some(self.recipe.descriptors.as_slice());
        let restoration = match self.begun.take().and_then(|begun| begun.if_it_fits(request, descriptors)) {
            Some(begun) => begun,
            None => self.start_runtime(request)?,
        };
        restoration.finish(RESTORE, restored).map_err(|error| explain(error, &request.work))?;
        let pid =
            self.pid_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
        let pid = pid.ok_or_else(|| EngineError::NotHeld("runc has noted no process of it".into()))?;
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
            keep("docker start", starting.wait(QUESTION));
        }
        if let Some(id) = &self.id {
            keep("stand-in", expect_no_more(id).map_err(EngineError::io("remove the link of", id)));
            keep("network namespace", network::forget(id));
            if let Some(policy) = self.recipe.record.restart_policy() {
                // not before: nobody but the source decides when it runs here
                keep("restart policy", self.docker.set_restart_policy(id, policy));
            }
        }
        if let Some(log) = self.arriving_log().filter(|log| log.exists()) {
            keep("log", std::fs::remove_file(&log).map_err(EngineError::io("remove", log)));
        }
        let _ = std::fs::remove_dir_all(self.shipment.job.join(stand_in::DIRECTORY));
        OwnerHere::forget(&self.shipment.job);
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
        keep("root file system", layer::unmount(&layer::place_of(&self.shipment.job)));
        if !self.arrival.is_held() && self.begun_to_make {
            // of a restore that failed docker knows nothing; what CRIU has made by then is in the cgroup of this id
            let known = self.pid_of_docker().and_then(|pid| Freezer::of_pid(pid).ok());
            let unknown = || Freezer::at(self.cgroup().filter(|cgroup| cgroup.is_dir())?).ok();
            if let Some(freezer) = known.or_else(unknown) {
                self.arrival.held(freezer);
            }
        }
        keep("held tasks", self.arrival.kill_held());
        if let Some(starting) = self.starting.take()
            && let Err(error) = starting.wait(QUESTION)
        {
            tracing::debug!(%error, "docker gave up, as it should");
        }
        if std::mem::take(&mut self.begun_to_make) {
            match self.found() {
                Ok(Some(shown)) => {
                    let id = shown["Id"].as_str().unwrap_or_default().to_owned();
                    keep("container", Removal::of(&self.docker, &id).run());
                    self.id = Some(id);
                }
                Ok(None) => {}
                Err(error) => keep("container", Err(error)),
            }
            // what a restore that was broken off has left, of which docker does not know
            if let (Some(root), Some(id)) = (&self.runtime_root, &self.id) {
                // runc binds the root file system there while it restores: nothing must be removed through that
                keep("runc's root", layer::unmount(&root.join(id).join("criu-root")));
                let _ = std::fs::remove_dir(root.join(id));
            }
            if let Some(cgroup) = self.cgroup().filter(|cgroup| cgroup.is_dir()) {
                keep("cgroup", self.arrival.clear_cgroup(&cgroup));
            }
            for volume in std::mem::take(&mut self.made_volumes) {
                match self.docker.api.delete(&format!("/volumes/{volume}?force=true")) {
                    // it is another container's, too
                    Err(EngineError::Tool { what, .. }) if what.contains("volume is in use") => {
                        tracing::warn!(what, "a volume stays");
                    }
                    removed => keep("volume", removed),
                }
            }
            self.arrival.sweep(&self.shipment.job.join("work"));
        }
        keep("network", self.arrival.remove_network());
        self.screen = None;
        OwnerHere::forget(&self.shipment.job);
        if let Some(id) = &self.id {
            keep("stand-in", expect_no_more(id).map_err(EngineError::io("remove the link of", id)));
            keep("network namespace", network::forget(id));
            keep("screen", Screen::take_down(id).map_err(EngineError::from));
        }
        leftovers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::offer::tests::shipment;

    #[test]
    fn until_its_id_is_noted_it_is_found_by_the_migrations_name() {
        let arrival = DockerArrival::new(&Docker::default(), &shipment(|_| {})).unwrap();
        assert_eq!(arrival.first_name(), "godwit-01abc");
    }
}
