//! A container of docker at the source.

use super::record::Record;
use super::removal::Removal;
use super::restart::{DockerStartable, Known};
use super::sharing::{Company, named_by};
use super::{Docker, KIND, Recipe, Setting, no_restart};
use crate::container::{Facts, OpenRequest, SourceContainer, Tree};
use crate::error::EngineError;
use crate::freezer::Freezer;
use crate::health::between_checks;
use crate::image_id::engine_image_id;
use crate::live::{Kin, LiveContainer, Remains, SourceNetwork};
use crate::network::{Link, NetworkState};
use crate::process;
use crate::published::{Published, what_breaks};
use crate::restart::{Stoppable, StoppableRemains};
use crate::runtime::config::{self, BindMount};
use crate::runtime::needs::Needs;
use crate::runtime::source::{Look, container_pids, external, write_descriptors};
use crate::runtime::{Flavor, read_config};
use crate::volumes::{self, Volume};
use godwit_transfer::message::{Refusal, TreeKind};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the bundles are: of the containerd that docker starts, and of one that the host has.
const BUNDLES: [&str; 2] = [
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby",
    "/run/containerd/io.containerd.runtime.v2.task/moby",
];

/// How long docker may take to notice that a container has ended, and to take down its network and mounts.
const RETIRE: Duration = Duration::from_secs(30);

/// What docker and CRIU must be told about one container.
struct DockerKin {
    docker: Docker,
    id: String,
    pid: i32,
    external: Vec<String>,
    descriptors: Vec<String>,
    /// The id of the image that it was made of.
    image: String,
    removal: Removal,
}

/// Opens a container that moves in this company.
pub(super) fn open(
    docker: &Docker,
    name: &str,
    company: &mut Company,
    request: &OpenRequest,
) -> Result<Box<dyn SourceContainer>, EngineError> {
    let shown = between_checks(|| docker.inspect(name))?;
    let text = |pointer: &str| shown.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (id, name) = (text("/Id"), text("/Name").trim_start_matches('/'));
    let full = format!("{KIND}:{name}");
    let pid = shown.pointer("/State/Pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
    let (status, Some(pid)) = (text("/State/Status"), pid) else {
        return Err(EngineError::NotFound(full));
    };
    if status != "running" || pid <= 0 {
        return Err(EngineError::NotRunning { name: full, status: status.into() });
    }
    let setting = docker.setting()?;
    let record = Record::of(&shown)?;
    let mut blockers = setting.unsuitable("here");
    blockers.extend(unsuitable(&shown, &record, company, &setting, request));
    if !blockers.is_empty() {
        return Err(EngineError::Blocked { name: full, blockers });
    }

    let bundle = BUNDLES.iter().map(|all| Path::new(all).join(id)).find(|bundle| bundle.exists());
    let bundle = bundle.ok_or_else(|| EngineError::Unreadable {
        path: Path::new(BUNDLES[0]).join(id),
        reason: format!("neither it nor `{}` is there", Path::new(BUNDLES[1]).join(id).display()),
    })?;
    let config = read_config(&bundle.join("config.json"))?;
    let Look { binds, pids, mut blockers, namespace, network, descriptors } =
        Look::at(pid, &config, &bundle, request)?;
    // docker knows of no network: one that somebody else has made would be lost
    let is_connected = network.as_ref().is_some_and(|state| state.interfaces().next().is_some());
    let shares_network = named_by(record.network_mode()).is_some();
    let has_none = record.networks().next().is_none() && !record.is_in_default_network();
    if is_connected && has_none && !shares_network {
        blockers.push(
            Refusal::new("docker has not made its network, and does not know of it")
                .hint("use a network of docker's, the host's, or none"),
        );
    }
    if request.restart.is_none() {
        blockers.extend(network.as_ref().and_then(|state| numbered_otherwise(state, &record, name)));
    }
    let mut warnings = Vec::new();
    if record.is_in_default_network() {
        warnings.push(
            "docker gives it another address there: who finds it by that it has in docker's default network must be told".into(),
        );
    }
    match what_breaks(&Published::of_map(shown.pointer("/NetworkSettings/Ports"))) {
        Some(breaks) if request.ip_change => warnings.push(breaks.reason),
        breaks => blockers.extend(breaks),
    }
    let found = Volumes::of(docker, &shown, &record, &company.with(id), &mut warnings)?;
    blockers.extend(found.shared);
    if !blockers.is_empty() {
        return Err(EngineError::Blocked { name: full, blockers });
    }
    let log = PathBuf::from(text("/LogPath"));
    let log = Some(log).filter(|log| record.has_log_file() && log.is_file());
    if log.is_none() && record.log_driver() != "none" {
        warnings.push(format!(
            "its log until now stays here: only that of docker's `json-file` travels, and it has `{}`",
            record.log_driver()
        ));
    }

    let merged = PathBuf::from(text("/GraphDriver/Data/MergedDir"));
    let mut trees = vec![Tree {
        kind: TreeKind::Layer,
        path: merged.clone(),
        content: text("/GraphDriver/Data/UpperDir").into(),
        single_file: false,
        read_only: config::root_is_read_only(&config),
        merged: Some(merged.clone()),
        made_there: true,
        gone: None,
    }];
    let mut add_made_there = |kind, path: &PathBuf, single_file| {
        trees.push(Tree {
            kind,
            content: path.clone(),
            path: path.clone(),
            single_file,
            read_only: false,
            merged: None,
            made_there: true,
            gone: None,
        });
    };
    if let Some(log) = &log {
        add_made_there(TreeKind::Keepings, log, true);
    }
    for (_, path) in &found.anonymous {
        add_made_there(TreeKind::Volume, path, false);
    }
    // what docker makes for it (/etc/hosts and the like) is made there again; so is all else that it was not asked to give
    let own = Path::new(text("/HostsPath")).parent().unwrap_or(Path::new("/"));
    let host_binds: Vec<&BindMount> = binds
        .iter()
        .filter(|bind| !bind.source.starts_with(own))
        .filter(|bind| !found.anonymous.iter().any(|(_, path)| *path == bind.source))
        .collect();
    let elsewhere = volumes::not_local(&found.named);
    let is_elsewhere = |bind: &BindMount| elsewhere.iter().any(|name| volumes::is_of_volume(bind, name));
    for bind in
        host_binds.iter().filter(|bind| found.given.contains(&bind.destination) && !is_elsewhere(bind))
    {
        let (path, read_only) = volumes::whole(bind, &found.named);
        volumes::add_tree(&mut trees, path.to_owned(), read_only, request, &mut warnings);
    }
    for volume in &request.volumes {
        volumes::add_tree(&mut trees, volume.clone(), false, request, &mut warnings);
    }
    // what several have goes with the first of them
    trees.retain(|tree| tree.made_there || !company.carried.contains(&tree.path));
    company.carried.extend(trees.iter().filter(|tree| !tree.made_there).map(|tree| tree.path.clone()));
    let not_copied: Vec<&BindMount> = host_binds
        .iter()
        .filter(|bind| {
            let mut copied = trees.iter().map(|tree| &tree.path).chain(&company.carried);
            !copied.any(|path| bind.source.starts_with(path))
        })
        .copied()
        .collect();
    let binds_there = not_copied.iter().filter(|bind| !is_elsewhere(bind)).map(|bind| bind.source.clone());
    let has_own_network = config::has_namespace(&config, "network") && !namespace.is_own()?;
    let (image_id, image_name) = record.image();
    let image = if image_name.is_empty() { image_id } else { image_name }.to_owned();
    let named_by = engine_image_id(image_id);
    let kin = DockerKin {
        docker: docker.clone(),
        id: id.into(),
        pid,
        external: match request.restart {
            None => external(Flavor::Runc, pid, &config, &binds, has_own_network)?,
            Some(_) => Vec::new(),
        },
        descriptors: descriptors.clone(),
        image: image_id.to_owned(),
        removal: Removal::of(docker, id),
    };
    let known = Known { id: id.into(), policy: record.restart_policy().cloned(), image: image_id.to_owned() };
    let recipe = Recipe {
        id: id.into(),
        binds: binds_there.collect(),
        needs: match request.restart {
            None => Needs::of(&pids, &not_copied, !has_own_network),
            Some(_) => Needs::default(),
        },
        runtime: request.restart.map(|_| setting.starts_with(text("/HostConfig/Runtime"))),
        owner: company.owner.clone(),
        record,
        config,
        volumes: found.named,
        anonymous: found.anonymous,
        descriptors,
        merged,
        log,
        cgroup_driver: setting.cgroup_driver,
    };
    let facts = Facts {
        engine: KIND,
        name: name.to_owned(),
        pid,
        memory_bytes: process::memory_bytes(&pids),
        trees,
        // the owner holds the network of all that share it
        network: network.filter(|_| !shares_network),
        recipe: crate::remains::written(&recipe)?,
        warnings,
        starts_slowly: true,
        annotations: Facts::for_godwit(shown.pointer("/Config/Labels")),
        image: Some(image),
        image_id: named_by,
    };
    if let Some(grace) = request.restart {
        // docker takes its network down when it stops, and makes it again when it starts, with the same addresses
        let facts = Facts { network: None, starts_slowly: false, ..facts };
        return Ok(Box::new(Stoppable::new(
            facts,
            Box::new(DockerStartable::new(docker, known)),
            grace,
            None,
        )));
    }
    let network = SourceNetwork::new(&facts, namespace)?;
    Ok(Box::new(LiveContainer::new(facts, request.carry, Box::new(kin), network)))
}

/// Finds a container again that another process had opened, or what is left of it.
pub(super) fn reopen(docker: &Docker, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
    if let Some(stopped) = StoppableRemains::understand(remains) {
        let known: Known = serde_json::from_value(stopped.startable.clone())
            .map_err(|error| EngineError::Unreadable { path: "remains".into(), reason: error.to_string() })?;
        return Ok(Box::new(stopped.reopen(KIND, Box::new(DockerStartable::new(docker, known)))));
    }
    let remains = Remains::understand(remains)?;
    let kin = DockerKin {
        docker: docker.clone(),
        id: remains.kin.as_str().unwrap_or(&remains.name).to_owned(),
        pid: remains.born.pid(),
        external: Vec::new(),
        descriptors: Vec::new(),
        image: String::new(),
        removal: Removal::of(docker, remains.kin.as_str().unwrap_or(&remains.name)),
    };
    Ok(Box::new(remains.reopen(KIND, Box::new(kin))))
}

/// What of a container cannot be moved.
fn unsuitable(
    shown: &Value,
    record: &Record,
    company: &Company,
    setting: &Setting,
    request: &OpenRequest,
) -> Vec<Refusal> {
    let obstacles = record.obstacles(request, company).into_iter();
    let mut reasons: Vec<Refusal> = obstacles.map(|(what, hint)| Refusal::new(what).hint(hint)).collect();
    let is_removed = shown.pointer("/HostConfig/AutoRemove").and_then(Value::as_bool).unwrap_or(false);
    for (is_asked, what, hint) in [
        (request.keep, "so it cannot be kept", "leave `--keep-source` out"),
        (
            request.restart.is_some(),
            "so it could not be started again here",
            "run it without `--rm`, or leave `--strategy restart` out",
        ),
    ] {
        if is_asked && is_removed {
            reasons.push(Refusal::new(format!("docker removes it when it ends (`--rm`), {what}")).hint(hint));
        }
    }
    if request.restart.is_some() {
        return reasons;
    }
    let sessions = shown["ExecIDs"].as_array().map_or(0, Vec::len);
    if sessions > 0 {
        reasons.push(
            Refusal::new(format!("{sessions} `docker exec` sessions are open in it")).hint("end them first"),
        );
    }
    let runtime = shown.pointer("/HostConfig/Runtime").and_then(Value::as_str).unwrap_or_default();
    if !setting.is_runc(runtime) {
        reasons.push(
            Refusal::new(format!("its runtime is `{runtime}`, and not runc")).hint(
                "run it with docker's own runtime (`--runtime runc`), or stop it here and start it there: `--strategy restart`",
            ),
        );
    }
    reasons
}

/// Of several networks: docker numbers the interfaces of a container that it starts by the networks' names (libnetwork:
/// Endpoint.Less). One that was connected to a network later may have another order, which nobody could ask docker for.
fn numbered_otherwise(state: &NetworkState, record: &Record, name: &str) -> Option<Refusal> {
    let address =
        |link: &Link| link.addresses.iter().find(|address| address.ip.is_ipv4()).map(|address| address.ip);
    let mut links: Vec<&Link> = state.interfaces().collect();
    links.sort_by_key(|link| (link.name.len(), &link.name));
    let now: Vec<Option<IpAddr>> = links.into_iter().map(address).collect();
    let numbered: Vec<Option<IpAddr>> = record.addresses().collect();
    let is_same = numbered.len() < 2 || now == numbered;
    (!is_same).then(|| {
        Refusal::new("docker would number its interfaces in another order there: it was connected to a network after its start")
            .hint(format!("`docker restart {name}` has them in the order that docker gives them"))
    })
}

/// The volumes of a container.
#[derive(Default)]
struct Volumes {
    named: Vec<Volume>,
    /// Where it is in the container, and on this host.
    anonymous: Vec<(PathBuf, PathBuf)>,
    /// Where the container has what it was asked to be given.
    given: BTreeSet<PathBuf>,
    /// Why one must not be taken from others.
    shared: Vec<Refusal>,
}

impl Volumes {
    fn of(
        docker: &Docker,
        shown: &Value,
        record: &Record,
        companions: &[&str],
        warnings: &mut Vec<String>,
    ) -> Result<Self, EngineError> {
        let mut found = Self::default();
        let has_name = record.named_volumes();
        for mount in shown["Mounts"].as_array().into_iter().flatten() {
            let text = |key: &str| mount[key].as_str().unwrap_or_default();
            found.given.insert(text("Destination").into());
            let name = text("Name");
            if mount["Type"] != "volume" || found.named.iter().any(|known| known.name == name) {
                continue;
            }
            let Some(volume) = docker.volume(name)? else { continue };
            if !volume.is_local() {
                warnings.push(format!(
                    "the volume `{name}` is not copied: its content is elsewhere (driver `{}`, options {:?})",
                    volume.driver, volume.options
                ));
            } else if is_used_by_others(docker, name, companions)? {
                found.shared.push(
                    Refusal::new(format!("another running container uses the volume `{name}`"))
                        .hint("stop the other one first: a volume has one owner"),
                );
            }
            match has_name.contains(name) {
                true => found.named.push(volume),
                false => found.anonymous.push((text("Destination").into(), text("Source").into())),
            }
        }
        Ok(found)
    }
}

/// Whether a container that runs has the volume besides those that go along, by their ids.
fn is_used_by_others(docker: &Docker, volume: &str, companions: &[&str]) -> Result<bool, EngineError> {
    // `{"volume":["NAME"]}`, as a query has it; a volume's name needs no more
    let users =
        docker.api.get(&format!("/containers/json?filters=%7B%22volume%22%3A%5B%22{volume}%22%5D%7D"))?;
    let users = users.unwrap_or_default();
    let is_other = |user: &Value| {
        !user["Id"].as_str().is_some_and(|id| companions.contains(&id))
            // the filter takes a part of a name for the name
            && user["Mounts"].as_array().is_some_and(|mounts| mounts.iter().any(|mount| mount["Name"] == volume))
    };
    Ok(users.as_array().is_some_and(|users| users.iter().any(is_other)))
}

impl Kin for DockerKin {
    fn freezer(&mut self) -> Result<Freezer, EngineError> {
        Ok(Freezer::of_pid(self.pid)?)
    }

    fn pids(&self) -> Result<BTreeSet<i32>, EngineError> {
        container_pids(self.pid)
    }

    fn external(&self) -> Vec<String> {
        self.external.clone()
    }

    fn complete_images(&self, images: &Path) -> Result<(), EngineError> {
        write_descriptors(images, &self.descriptors)
    }

    fn bring_image(&self, lacks: &str, dir: &Path) -> Result<(), EngineError> {
        self.docker.export(&self.image, lacks, dir)
    }

    fn image_bytes(&self) -> Result<u64, EngineError> {
        self.docker.image_bytes(&self.image)
    }

    fn remains(&self) -> Value {
        self.id.clone().into()
    }

    fn relent(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// docker must not start it again when its tasks are gone.
    fn expect_end(&mut self) -> Result<(), EngineError> {
        let policy =
            |shown: &Value| shown.pointer("/HostConfig/RestartPolicy/Name").cloned().unwrap_or_default();
        match self.docker.find(&self.id)? {
            Some(shown) if !matches!(policy(&shown).as_str(), Some("no" | "")) => {
                self.docker.set_restart_policy(&self.id, &no_restart())
            }
            _ => Ok(()),
        }
    }

    fn retire(&mut self) -> Result<(), EngineError> {
        match self.status_after_its_end()?.as_deref() {
            Some("exited") => Ok(()),
            status => Err(EngineError::NotRunning {
                name: format!("{KIND}:{}", self.id),
                status: status.unwrap_or("gone").into(),
            }),
        }
    }

    fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.removal.spare(volumes)
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        // docker would kill it, and wait. Whoever is killed meanwhile takes that back half done, and a shim stays for ever
        self.status_after_its_end()?;
        self.removal.run()
    }
}

impl DockerKin {
    /// What docker says of the container when it has heard that its tasks are gone; none if it does not know it any more.
    fn status_after_its_end(&self) -> Result<Option<String>, EngineError> {
        let until = Instant::now() + RETIRE;
        loop {
            let Some(shown) = self.docker.find(&self.id)? else { return Ok(None) };
            let status = shown.pointer("/State/Status").and_then(Value::as_str).unwrap_or_default();
            if !matches!(status, "running" | "paused" | "restarting") || Instant::now() >= until {
                return Ok(Some(status.to_owned()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
