//! A container of podman at the source.

use super::pod::{Found, SELECTOR, is_empty};
use super::record::{Address, Record, group_of};
use super::removal::Removal;
use super::restart::{Known, PodmanStartable};
use super::sharing::{self, Company};
use super::{DEPENDED_ON, KIND, Podman, Recipe};
use crate::container::{Facts, OpenRequest, SourceContainer, Tree};
use crate::error::EngineError;
use crate::freezer::Freezer;
use crate::health::between_checks;
use crate::image_id::engine_image_id;
use crate::live::{Kin, LiveContainer, Remains, SourceNetwork};
use crate::process;
use crate::published::what_breaks;
use crate::restart::{Stoppable, StoppableRemains};
use crate::runtime::config::{self, BindMount};
use crate::runtime::needs::Needs;
use crate::runtime::source::{Look, container_pids, external, write_descriptors};
use crate::runtime::{Flavor, read_config};
use crate::volumes::{self, Volume};
use godwit_transfer::message::{Refusal, TreeKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long podman may take to notice that a container has ended, and to take down its network and mounts.
const RETIRE: Duration = Duration::from_secs(30);

/// What podman and CRIU must be told about one container.
struct PodmanKin {
    podman: Podman,
    id: String,
    pid: i32,
    external: Vec<String>,
    descriptors: Vec<String>,
    /// The id of the image that it was made of.
    image: String,
    /// The id of the pod that goes with it.
    pod: Option<String>,
    /// The id of the container that has the namespaces which it shares, its own if others share them.
    owner: Option<String>,
    removal: Removal,
}

/// What outlasts a process of a container that does not go alone; of any other it is the id.
#[derive(Serialize, Deserialize)]
struct KinWithOthers {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

pub(super) fn open(
    podman: &Podman,
    name: &str,
    request: &OpenRequest,
) -> Result<Box<dyn SourceContainer>, EngineError> {
    match name.strip_prefix(SELECTOR) {
        None => open_container(podman, name, &mut Company::default(), request),
        Some(_) => {
            let mut all = open_group(podman, name, request)?;
            let others: Vec<String> = all.drain(1..).map(|other| other.facts().name.clone()).collect();
            match all.pop() {
                Some(one) if others.is_empty() => Ok(one),
                _ => Err(EngineError::Blocked {
                    name: format!("{KIND}:{name}"),
                    blockers: vec![
                        Refusal::new(
                            "it is a pod of more than one container: only `godwit migrate` takes them all",
                        )
                        .hint("`godwit migrate`, without `--strategy restart`"),
                    ],
                }),
            }
        }
    }
}

/// Opens all containers of a pod, or all that share a network, the one that leads first; or a container that moves alone.
pub(super) fn open_group(
    podman: &Podman,
    name: &str,
    request: &OpenRequest,
) -> Result<Vec<Box<dyn SourceContainer>>, EngineError> {
    let Some(pod) = name.strip_prefix(SELECTOR) else {
        let mut company = sharing::company_of(podman, name, request)?;
        let members = company.sharers.clone();
        if members.is_empty() {
            return Ok(vec![open_container(podman, name, &mut company, request)?]);
        }
        return members.iter().map(|one| open_container(podman, &one.id, &mut company, request)).collect();
    };
    let Found { pod, mut blockers } = Found::look(podman, pod, request)?;
    if pod.members.len() > 1 {
        blockers.extend(pod.shared_objects(podman)?);
    }
    let members = pod.members.clone();
    let mut company = Company { pod: Some(pod), blockers, ..Company::default() };
    members.iter().map(|member| open_container(podman, &member.id, &mut company, request)).collect()
}

/// Opens a container that moves in this company.
fn open_container(
    podman: &Podman,
    name: &str,
    company: &mut Company,
    request: &OpenRequest,
) -> Result<Box<dyn SourceContainer>, EngineError> {
    let shown = between_checks(|| podman.inspect(name))?;
    let text = |pointer: &str| shown.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let id = text("/Id");
    let pod = company.pod.clone();
    let name = pod.as_ref().map_or_else(|| text("/Name").to_owned(), |pod| pod.name_of(id));
    let follows = company.is_led_by_another(id);
    let full = format!("{KIND}:{name}");
    let pid = shown.pointer("/State/Pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
    let (status, Some(pid)) = (text("/State/Status"), pid) else {
        return Err(EngineError::NotFound(full));
    };
    if status != "running" || pid <= 0 {
        return Err(EngineError::NotRunning { name: full, status: status.into() });
    }
    let setting = podman.setting()?;
    let flavor = flavor_of(text("/OCIRuntime"));
    let path = PathBuf::from(text("/OCIConfigPath"));
    let bundle = path.parent().map(Path::to_owned).unwrap_or_default();
    let config = read_config(&path)?;
    let Look { binds, pids, mut blockers, namespace, network, descriptors } =
        Look::at(pid, &config, &bundle, request)?;
    blockers.extend(std::mem::take(&mut company.blockers));
    if request.restart.is_none() {
        blockers.extend(unsuitable(&shown, &setting));
    }
    let is_removed = shown.pointer("/HostConfig/AutoRemove").and_then(Value::as_bool).unwrap_or(false);
    if request.keep && is_removed {
        blockers.push(
            Refusal::new("podman removes it when it ends (`--rm`), so it cannot be kept")
                .hint("leave `--keep-source` out"),
        );
    }
    if request.restart.is_some() && is_removed {
        blockers.push(
            Refusal::new("podman removes it when it ends (`--rm`), so it could not be started again here")
                .hint("run it without `--rm`, or leave `--strategy restart` out"),
        );
    }
    // a network namespace that podman has not made (`--network none`) is CRIU's to make again, with nothing in it
    let is_podmans = config::network_namespace_path(&config).is_some();
    if !is_podmans && network.as_ref().is_some_and(|state| state.interfaces().next().is_some()) {
        blockers.push(
            Refusal::new("podman has not made its network, and does not know of it")
                .hint("use a bridge network, the host's, or none"),
        );
    }
    let in_host_network = namespace.is_own()?;
    let network = network.filter(|_| is_podmans);
    let Some(flavor) = flavor else {
        blockers.push(
            Refusal::new(format!("its runtime is `{}`, of which nothing is known", text("/OCIRuntime")))
                .hint("run it with `--runtime crun` or `--runtime runc`"),
        );
        return Err(EngineError::Blocked { name: full, blockers });
    };
    let record = match setting.database.as_str() {
        "sqlite" => Some(Record::read(&setting.graph_root, id)?),
        other => {
            blockers.push(
                Refusal::new(format!("podman keeps its records in `{other}`"))
                    .hint("podman 5 keeps them in sqlite: `database_backend = \"sqlite\"` in containers.conf, after `podman system reset`"),
            );
            None
        }
    };
    if let Some(record) = &record {
        blockers.extend(bound_to_others(podman, record, &setting.graph_root, company)?);
    }
    let mut warnings = Vec::new();
    let publishers = record.iter().chain(pod.as_ref().filter(|_| !follows).map(|pod| &pod.infra));
    match what_breaks(&publishers.flat_map(Record::published).collect::<Vec<_>>()) {
        Some(breaks) if request.ip_change => warnings.push(breaks.reason),
        breaks => blockers.extend(breaks),
    }
    let companions: Vec<&str> = company.members().map(|member| member.id.as_str()).chain([id]).collect();
    let (volumes, shared) = volumes_of(podman, &shown, &companions, &mut warnings)?;
    blockers.extend(shared);
    let Some(mut record) = record.filter(|_| blockers.is_empty()) else {
        return Err(EngineError::Blocked { name: full, blockers });
    };
    record.make_ready(&addresses(&shown));
    let log = record.log();
    if let Some(driver) = record.log_driver().filter(|driver| log.is_none() && *driver != "none") {
        warnings.push(format!(
            "its log until now stays here: only that of podman's `k8s-file` travels, and it has `{driver}`"
        ));
    }

    let merged = PathBuf::from(config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default());
    let upper = PathBuf::from(text("/GraphDriver/Data/UpperDir"));
    // what podman makes for it: /etc/hosts and the like
    let mut own: Vec<PathBuf> = record.directory().into_iter().collect();
    own.extend(["/HostsPath", "/ResolvConfPath", "/HostnamePath"].iter().filter_map(|pointer| {
        Some(Path::new(text(pointer)).parent()?.to_owned()).filter(|dir| dir.ends_with("userdata"))
    }));
    own.extend(pod.as_ref().and_then(|pod| pod.infra.directory()));
    let host_binds: Vec<&BindMount> =
        binds.iter().filter(|bind| !own.iter().any(|own| bind.source.starts_with(own))).collect();
    let mut trees = vec![Tree {
        kind: TreeKind::Layer,
        path: merged.clone(),
        content: upper,
        single_file: false,
        read_only: config::root_is_read_only(&config),
        merged: Some(merged.clone()),
        made_there: true,
        gone: None,
    }];
    // what is in /dev/shm does not outlast a stop; that of a pod goes with the container that leads
    let shm = record.shm().filter(|_| request.restart.is_none() && !(follows && record.joins("ipc")));
    let kept = shm.map(|(path, _)| (path, false)).into_iter();
    for (path, single_file) in kept.chain(log.map(|path| (path, true))) {
        trees.push(Tree {
            kind: TreeKind::Keepings,
            content: path.clone(),
            path,
            single_file,
            read_only: false,
            merged: None,
            made_there: true,
            gone: None,
        });
    }
    let elsewhere: Vec<&str> = volumes::not_local(&volumes);
    let copied =
        host_binds.iter().filter(|bind| !elsewhere.iter().any(|name| volumes::is_of_volume(bind, name)));
    for bind in copied {
        let (path, read_only) = volumes::whole(bind, &volumes);
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
    let (image_id, image_name) = record.image();
    let image = Some(if image_name.is_empty() { image_id } else { image_name }.to_owned());
    let image_id = image_id.to_owned();
    let kin = PodmanKin {
        podman: podman.clone(),
        id: id.into(),
        pid,
        external: match request.restart {
            None => external(flavor, pid, &config, &binds, network.is_some())?,
            Some(_) => Vec::new(),
        },
        descriptors: descriptors.clone(),
        image: image_id.clone(),
        pod: pod.as_ref().map(|pod| pod.id.clone()),
        owner: company.sharers.first().map(|owner| owner.id.clone()),
        removal: Removal::of(podman, id),
    };
    let policy = record.restart_policy();
    // whoever leads holds the network of all that share it
    let network = network.filter(|_| !follows || pod.is_none() && !record.joins("net"));
    let recipe = Recipe {
        id: id.into(),
        flavor,
        needs: match request.restart {
            None => Needs::of(&pids, &not_copied, in_host_network),
            Some(_) => Needs::default(),
        },
        binds: not_copied
            .iter()
            .filter(|bind| !elsewhere.iter().any(|name| volumes::is_of_volume(bind, name)))
            .map(|bind| bind.source.clone())
            .collect(),
        record,
        config,
        volumes,
        descriptors,
        merged,
        pod,
        owner: company.owner_of(id).map(|owner| owner.id.clone()),
    };
    let facts = Facts {
        engine: KIND,
        name,
        pid,
        memory_bytes: process::memory_bytes(&pids),
        trees,
        network,
        recipe: crate::remains::written(&recipe)?,
        warnings,
        starts_slowly: true,
        annotations: Facts::for_godwit(shown.pointer("/Config/Labels")),
        image,
        image_id: engine_image_id(&image_id),
    };
    if let Some(grace) = request.restart {
        // podman takes its network down when it stops, and makes it again when it starts, with the same addresses
        let facts = Facts { network: None, starts_slowly: false, ..facts };
        let startable = PodmanStartable::new(podman, Known { id: id.into(), policy, image: image_id });
        return Ok(Box::new(Stoppable::new(facts, Box::new(startable), grace, None)));
    }
    let network = SourceNetwork::new(&facts, namespace)?;
    Ok(Box::new(LiveContainer::new(facts, request.carry, Box::new(kin), network)))
}

/// Finds a container again that another process had opened, or what is left of it.
pub(super) fn reopen(podman: &Podman, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
    if let Some(stopped) = StoppableRemains::understand(remains) {
        let known: Known = serde_json::from_value(stopped.startable.clone())
            .map_err(|error| EngineError::Unreadable { path: "remains".into(), reason: error.to_string() })?;
        return Ok(Box::new(stopped.reopen(KIND, Box::new(PodmanStartable::new(podman, known)))));
    }
    let remains = Remains::understand(remains)?;
    let KinWithOthers { id, pod, owner } = serde_json::from_value(remains.kin.clone()).unwrap_or_else(|_| {
        KinWithOthers { id: remains.kin.as_str().unwrap_or(&remains.name).to_owned(), pod: None, owner: None }
    });
    let kin = PodmanKin {
        podman: podman.clone(),
        removal: Removal::of(podman, &id),
        id,
        pid: remains.born.pid(),
        external: Vec::new(),
        descriptors: Vec::new(),
        image: String::new(),
        pod,
        owner,
    };
    Ok(Box::new(remains.reopen(KIND, Box::new(kin))))
}

fn flavor_of(runtime: &str) -> Option<Flavor> {
    let name = Path::new(runtime).file_name()?.to_str()?;
    [Flavor::Crun, Flavor::Runc].into_iter().find(|flavor| flavor.kind() == name)
}

/// The others that a container cannot be parted from. Those of its `company` go along.
fn bound_to_others(
    podman: &Podman,
    record: &Record,
    graph_root: &Path,
    company: &Company,
) -> Result<Vec<Refusal>, EngineError> {
    let pod = company.pod.as_ref();
    let infra = pod.map(|pod| pod.infra.name());
    let mut others = group_of(graph_root, record.id())?;
    others.retain(|other| {
        Some(other.as_str()) != infra && !company.members().any(|member| member.name == *other)
    });
    let why = record.needs_others(pod.is_some(), company.shared_by(record.id()));
    let why =
        why.or((!others.is_empty()).then_some("other containers share its namespaces, or depend on it"));
    let Some(why) = why else { return Ok(Vec::new()) };
    let all: Vec<String> = others.iter().map(|other| format!("`{other}`")).collect();
    let refusal = Refusal::new(match all.is_empty() {
        true => why.to_owned(),
        false => format!("{why}: {}", all.join(", ")),
    });
    let around = match record.pod().filter(|_| pod.is_none()) {
        Some(id) => podman.inspect_pod(id)?,
        None => None,
    };
    Ok(vec![match around.as_ref().and_then(|around| around["Name"].as_str()) {
        Some(name) => {
            refusal.hint(format!("move the pod, with all that is in it: `{KIND}:{SELECTOR}{name}`"))
        }
        None => refusal.hint(
            "containers that share more than network and process numbers can be moved in a pod only: \
             part them first (`podman inspect` shows `Dependencies`)",
        ),
    }])
}

/// What of a container, or of podman here, cannot be moved.
fn unsuitable(shown: &Value, setting: &super::Setting) -> Vec<Refusal> {
    let is = |pointer: &str| shown.pointer(pointer).and_then(Value::as_bool).unwrap_or(false);
    let has =
        |pointer: &str| shown.pointer(pointer).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    let mut reasons = Vec::new();
    if setting.storage != "overlay" {
        reasons.push(
            Refusal::new(format!("podman's storage driver is `{}`, not `overlay`", setting.storage))
                .hint("set `driver = \"overlay\"` in storage.conf and make the container again"),
        );
    }
    if setting.cgroups != "v2" {
        reasons.push(
            Refusal::new(format!(
                "cgroups are those of {}, and podman's containers move on v2 only",
                setting.cgroups
            ))
            .hint("boot with `systemd.unified_cgroup_hierarchy=1` on the kernel's command line"),
        );
    }
    if is("/HostConfig/Privileged") {
        reasons.push(
            Refusal::new("it is privileged: it holds the source's devices")
                .hint("start it without `--privileged`, with the capabilities that it needs (`--cap-add`)"),
        );
    }
    if is("/IsInfra") || is("/IsService") {
        reasons.push(Refusal::new("it only serves other containers"));
    }
    if has("/Rootfs") {
        reasons.push(
            Refusal::new("its root is a directory of the host (`--rootfs`), not an image")
                .hint("run it from an image"),
        );
    }
    let sessions = shown.pointer("/ExecIDs").and_then(Value::as_array).map_or(0, Vec::len);
    if sessions > 0 {
        reasons.push(
            Refusal::new(format!("{sessions} `podman exec` sessions are open in it")).hint("end them first"),
        );
    }
    reasons
}

/// Its volumes as podman knows them, and why one must not be taken from others; `companions` are the ids of those that go along, and its
/// own.
fn volumes_of(
    podman: &Podman,
    shown: &Value,
    companions: &[&str],
    warnings: &mut Vec<String>,
) -> Result<(Vec<Volume>, Vec<Refusal>), EngineError> {
    let mounts = shown.pointer("/Mounts").and_then(Value::as_array).into_iter().flatten();
    let names: BTreeSet<&str> =
        mounts.filter(|mount| mount["Type"] == "volume").filter_map(|mount| mount["Name"].as_str()).collect();
    let (mut volumes, mut shared) = (Vec::new(), Vec::new());
    for name in names {
        let Some(volume) = podman.volume(name)? else { continue };
        if !volume.is_local() {
            warnings.push(format!(
                "the volume `{name}` is not copied: its content is elsewhere (driver `{}`, options {:?})",
                volume.driver, volume.options
            ));
        }
        let users = podman.run(&["ps", "--quiet", "--no-trunc", "--filter", &format!("volume={name}")])?;
        if users.lines().any(|user| !companions.contains(&user.trim())) && volume.is_local() {
            shared.push(
                Refusal::new(format!("another running container uses the volume `{name}`"))
                    .hint("stop the other one first: a volume has one owner"),
            );
        }
        volumes.push(volume);
    }
    Ok((volumes, shared))
}

/// The addresses that it has, by network.
pub(super) fn addresses(shown: &Value) -> BTreeMap<String, Address> {
    let networks = shown.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
    let text =
        |network: &Value, key: &str| network[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let address = |(name, network): (&String, &Value)| {
        let ips: Vec<String> =
            ["IPAddress", "GlobalIPv6Address"].iter().filter_map(|key| text(network, key)).collect();
        Some((name.clone(), Address { mac: text(network, "MacAddress")?, ips }))
    };
    networks.into_iter().flatten().filter_map(address).collect()
}

impl Kin for PodmanKin {
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
        self.podman.export(&self.image, lacks, dir)
    }

    fn image_bytes(&self) -> Result<u64, EngineError> {
        self.podman.image_bytes(&self.image)
    }

    fn remains(&self) -> Value {
        if self.pod.is_none() && self.owner.is_none() {
            return self.id.clone().into();
        }
        json!(KinWithOthers { id: self.id.clone(), pod: self.pod.clone(), owner: self.owner.clone() })
    }

    fn relent(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// podman must not start it again when its tasks are gone.
    fn expect_end(&mut self) -> Result<(), EngineError> {
        match self.podman.inspect(&self.id) {
            Err(EngineError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
            Ok(shown) if shown.pointer("/HostConfig/RestartPolicy/Name").is_some_and(|name| name == "no") => {
                Ok(())
            }
            Ok(_) => self.podman.run(&["update", "--restart=no", &self.id]).map(drop),
        }
    }

    fn leaves_network(&self) -> bool {
        let pod = self.pod.as_ref().and_then(|pod| self.podman.inspect_pod(pod).ok().flatten());
        pod.is_some_and(|pod| !is_empty(&pod))
    }

    fn retire(&mut self) -> Result<(), EngineError> {
        let until = Instant::now() + RETIRE;
        loop {
            let shown = self.podman.inspect(&self.id)?;
            let status = shown.pointer("/State/Status").and_then(Value::as_str).unwrap_or_default();
            if status == "exited" {
                // its namespaces would be there still, with its address
                return self.pod.as_ref().map_or(Ok(()), |pod| self.podman.stop_pod(pod));
            }
            if Instant::now() >= until {
                let status = status.to_owned();
                return Err(EngineError::NotRunning { name: format!("{KIND}:{}", self.id), status });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.removal.spare(volumes)
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        let Some(owner) = &self.owner else {
            self.removal.run()?;
            return self.pod.as_ref().map_or(Ok(()), |pod| self.podman.remove_empty_pod(pod).map(drop));
        };
        // podman removes nobody that others depend on: the owner goes with the last of them
        let is_owner = *owner == self.id;
        match self.removal.run() {
            Err(EngineError::Tool { what, .. }) if is_owner && what.contains(DEPENDED_ON) => return Ok(()),
            removed => removed?,
        }
        if !is_owner && let Err(error) = self.podman.run(&["rm", "--ignore", "--volumes", owner]) {
            tracing::debug!(%error, "the owner of its namespaces is still there, or others are");
        }
        Ok(())
    }
}
