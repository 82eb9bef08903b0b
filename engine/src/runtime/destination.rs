//! A container of a runtime at the destination.

use super::restart::{Known, RuntimeStartable};
use super::restoration::{Restoration, explain, options, write_criu_config};
use super::{BY_SYSTEMD, Flavor, QUESTION, Recipe, Runtime, cgroups, config, needs, write_private};
use crate::arrival::Arrival;
use crate::container::{DestinationContainer, Given, Note, RestoreRequest, Shipment};
use crate::error::EngineError;
use crate::freezer::{Freezer, cgroups_named};
use crate::hold::install_hook;
use crate::network::NetworkRecord;
use crate::process::without_groups;
use crate::remains::{understood, written};
use crate::restart::Starting;
use crate::tool::Running;
use godwit_criu::relay::Adaptation;
use godwit_migration::ownership::Presence;
use godwit_transfer::message::Refusal;
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that a restore may take.
const RESTORE: Duration = Duration::from_secs(300);

/// A container of a runtime on its way into this host.
struct RuntimeArrival {
    runtime: Runtime,
    shipment: Shipment,
    recipe: Recipe,
    arrival: Arrival,
    before: Before,
    /// There may be things to undo besides the network.
    begun_to_make: bool,
    attempted: bool,
    /// its `restore`, begun early.
    begun: Option<Restoration>,
    /// The first process, once restored.
    pid: Option<i32>,
}

/// What this host was like before: to be put back.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Before {
    /// The bundle's config.json.
    config: Option<Vec<u8>>,
    /// The bundle's directory was there.
    bundle: bool,
    /// Cgroups called as the container will be.
    cgroups: BTreeSet<PathBuf>,
}

/// What outlasts the process that receives.
#[derive(Serialize, Deserialize)]
struct Remains {
    shipment: Shipment,
    before: Before,
    network: Option<NetworkRecord>,
}

fn parse(shipment: &Shipment) -> Result<Recipe, Refusal> {
    let recipe: Recipe = serde_json::from_str(&shipment.recipe)
        .map_err(|error| Refusal::new(format!("the container's recipe cannot be understood: {error}")))?;
    if !recipe.bundle.is_absolute()
        || recipe.bundle.components().any(|c| c == std::path::Component::ParentDir)
    {
        return Err(Refusal::new(format!("the bundle path `{}` is not absolute", recipe.bundle.display())));
    }
    Ok(recipe)
}

/// How the cgroup is called that a restore makes.
fn cgroup_name(runtime: &Runtime, shipment: &Shipment, recipe: &Recipe) -> String {
    cgroups::own_name(runtime.flavor, &recipe.config, &shipment.name, recipe.systemd_cgroup)
}

/// config.json as it shall be here.
fn localized(recipe: &Recipe) -> serde_json::Value {
    let mut config = recipe.config.clone();
    if let Some(name) = &recipe.namespace {
        config::set_network_namespace_path(&mut config, &crate::network::Namespace::path_of(name));
    }
    config
}

/// The bundle, what it binds, and its root.
pub(super) fn places(shipment: &Shipment) -> Vec<PathBuf> {
    let Ok(recipe) = parse(shipment) else { return vec![PathBuf::new()] };
    let root = recipe.config.pointer("/root/path").and_then(serde_json::Value::as_str).unwrap_or_default();
    let mut places = vec![recipe.bundle.clone(), recipe.bundle.join(root)];
    places.extend(config::bind_mounts(&recipe.config, &recipe.bundle).into_iter().map(|bind| bind.source));
    places
}

pub(super) fn examine(runtime: &Runtime, shipment: &Shipment) -> Vec<Refusal> {
    let recipe = match parse(shipment) {
        Ok(recipe) => recipe,
        Err(refusal) => return vec![refusal],
    };
    let mut reasons = Vec::new();
    if !super::is_name(&shipment.name) {
        reasons.push(Refusal::new(format!("`{}` is not a name for a container", shipment.name)));
    } else if let Ok(state) = runtime.state(&shipment.name) {
        reasons.push(
            Refusal::new(format!(
                "the name `{}` is taken: {} has a {} container there",
                shipment.name,
                runtime.flavor.kind(),
                state.status
            ))
            .hint(format!(
                "remove it there: `{} delete {}`",
                runtime.flavor.kind(),
                shipment.name
            )),
        );
    }
    reasons.extend(cgroups::without_systemd(recipe.systemd_cgroup));
    if !shipment.restart {
        let cgroup =
            cgroups::below_root(runtime.flavor, &recipe.config, &shipment.name, recipe.systemd_cgroup);
        reasons.extend(cgroup_of_its_own(runtime.flavor, cgroup.as_deref(), needs::cgroups()));
    }
    reasons.extend(Arrival::examine(shipment, recipe.namespace.as_deref()));
    reasons.extend(recipe.needs.lacking(&recipe.config, &needs::Host::this()));
    // devices and sockets of the host are not copied, but the runtime needs them to be there
    for bind in config::bind_mounts(&recipe.config, &recipe.bundle) {
        if !shipment.trees.contains(&bind.source) && !bind.source.exists() {
            reasons.push(
                Refusal::new(format!("`{}` does not exist, and it is not copied", bind.source.display()))
                    .hint("make it there first"),
            );
        }
    }
    reasons
}

/// Where godwit puts CRIU into the container's `cgroup`, it must know which that will be, in one hierarchy.
pub(crate) fn cgroup_of_its_own(
    flavor: Flavor,
    cgroup: Option<&Path>,
    cgroups: Option<&str>,
) -> Vec<Refusal> {
    if flavor.places_criu() {
        return Vec::new();
    }
    let kind = flavor.kind();
    let mut reasons = Vec::new();
    if cgroups != Some("v2") {
        reasons.push(
            Refusal::new(format!("containers of {kind} move on cgroup v2 only, and that host uses v1")).hint(
                "boot both hosts with `systemd.unified_cgroup_hierarchy=1` on the kernel's command line, or run it with runc",
            ),
        );
    }
    if cgroup.is_none() {
        reasons.push(
            Refusal::new("where its cgroup is to be is no path, and no scope of systemd's (`linux.cgroupsPath` of config.json)")
                .hint(format!("leave the choice to {kind}, or run it with runc")),
        );
    }
    reasons
}

/// Inside of a user namespace CRIU gets no userfaultfd (userfaultfd(2): CAP_SYS_PTRACE).
pub(super) fn can_fill_later(shipment: &Shipment) -> Result<(), String> {
    match parse(shipment) {
        Ok(recipe) if config::has_namespace(&recipe.config, "user") => {
            Err("it has a user namespace, in which CRIU gets no userfaultfd".into())
        }
        _ => Ok(()),
    }
}

pub(super) fn prepare(
    runtime: &Runtime,
    shipment: &Shipment,
    note: &mut Note<'_>,
) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let recipe = parse_known(shipment)?;
    let before = Before {
        config: std::fs::read(config_path(&recipe)).ok(),
        bundle: recipe.bundle.exists(),
        cgroups: cgroups_named(&cgroup_name(runtime, shipment, &recipe)),
    };
    let mut arrival = RuntimeArrival {
        runtime: runtime.clone(),
        shipment: shipment.clone(),
        recipe,
        arrival: Arrival::default(),
        before,
        begun_to_make: false,
        attempted: false,
        begun: None,
        pid: None,
    };
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
pub(super) fn reopen(runtime: &Runtime, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let Remains { shipment, before, network } = understood(remains)?;
    let mut arrival = RuntimeArrival {
        runtime: runtime.clone(),
        recipe: parse_known(&shipment)?,
        shipment,
        arrival: Arrival::reopen(network),
        before,
        begun_to_make: true,
        attempted: true,
        begun: None,
        pid: None,
    };
    if let Ok(state) = runtime.state(&arrival.shipment.name) {
        let restored: Option<i32> =
            std::fs::read_to_string(arrival.pid_file()).ok().and_then(|text| text.trim().parse().ok());
        if restored.is_some_and(|pid| pid != state.pid) {
            // somebody has made another one of that name since
            arrival.attempted = false;
            arrival.begun_to_make = false;
        } else if let Ok(freezer) = Freezer::of_pid(state.pid) {
            arrival.pid = Some(state.pid);
            arrival.arrival.held(freezer);
        }
    }
    Ok(arrival.boxed())
}

/// The recipe of a shipment that was examined.
fn parse_known(shipment: &Shipment) -> Result<Recipe, EngineError> {
    parse(shipment)
        .map_err(|refusal| EngineError::Unreadable { path: "recipe".into(), reason: refusal.reason })
}

fn config_path(recipe: &Recipe) -> PathBuf {
    recipe.bundle.join("config.json")
}

impl RuntimeArrival {
    /// What will restore it, or start it.
    fn boxed(self) -> Box<dyn DestinationContainer> {
        if !self.shipment.restart {
            return Box::new(self);
        }
        let known = Known {
            name: self.shipment.name.clone(),
            bundle: self.recipe.bundle.clone(),
            systemd_cgroup: self.recipe.systemd_cgroup,
        };
        let startable = RuntimeStartable::new(&self.runtime, known);
        Box::new(Starting::new(Box::new(self), Box::new(startable)))
    }

    /// Bundle, network, hook: all that can exist before the memory arrives.
    fn make(&mut self, note: &mut Note<'_>) -> Result<(), EngineError> {
        let namespace = self.recipe.namespace.clone();
        self.note(note, Arrival::plan(&self.shipment, namespace.as_deref()))?;
        self.begun_to_make = true;
        let bundle = &self.recipe.bundle;
        std::fs::create_dir_all(bundle).map_err(EngineError::io("make", bundle))?;
        let path = config_path(&self.recipe);
        let text = serde_json::to_vec_pretty(&localized(&self.recipe))
            .map_err(|error| EngineError::Unreadable { path: path.clone(), reason: error.to_string() })?;
        write_private(&path, &text)?;
        self.arrival.make_network(&self.shipment, namespace.as_deref())?;
        install_hook(&self.shipment.job)?;
        self.note(note, self.arrival.record())
    }

    fn note(&self, note: &mut Note<'_>, network: Option<NetworkRecord>) -> Result<(), EngineError> {
        let remains = Remains { shipment: self.shipment.clone(), before: self.before.clone(), network };
        note(&written(&remains)?).map_err(EngineError::io("note what is made in", &self.shipment.job))
    }

    /// Starts its `restore`; it waits for [`Restoration::finish`] as soon as it needs CRIU.
    fn start_runtime(&mut self, request: &RestoreRequest) -> Result<Restoration, EngineError> {
        let config = write_criu_config(&self.shipment.job)?;
        let pid_file = self.pid_file();
        // an old one makes CRIU fail at the very end
        let _ = std::fs::remove_file(&pid_file);
        // what the runtime has to say stays with the migration
        let mut log = OsString::from("--log=");
        log.push(request.work.join(format!("{}.log", self.runtime.flavor.kind())));
        let mut args = vec![log];
        args.extend(self.recipe.systemd_cgroup.then(|| OsString::from(BY_SYSTEMD)));
        args.extend(["restore", "--detach", "--bundle"].map(OsString::from));
        args.push(self.recipe.bundle.clone().into());
        args.extend(["--pid-file".into(), pid_file.into()]);
        args.extend(options(self.runtime.flavor, request, &self.shipment.carry));
        args.push(self.shipment.name.clone().into());
        self.attempted = true;
        without_groups()?;
        let (job, guardian) = (&self.shipment.job, self.arrival.guardian());
        let relay = job.join("criu");
        let adaptation = self.adaptation(request);
        Restoration::start(&config, &relay, adaptation, request, guardian, |environment| {
            Ok(Box::new(Running::start(&self.runtime.program, &args, environment)?))
        })
    }

    /// What CRIU must be told that the runtime does not tell.
    fn adaptation(&self, request: &RestoreRequest) -> Adaptation {
        let flavor = self.runtime.flavor;
        let Recipe { config, systemd_cgroup, .. } = &self.recipe;
        let cgroup = || cgroups::directory(flavor, config, &self.shipment.name, *systemd_cgroup);
        Adaptation {
            cgroup: if flavor.places_criu() { None } else { cgroup() },
            lazy_pages: request.lazy && !flavor.takes_lazy_pages(),
            joins_pids: config::joins_pids(&self.recipe.config),
        }
    }

    /// A runtime may keep what it has noted of a restore that was broken off, and then takes it for a container.
    fn forget_broken_off(&self) {
        let name = &self.shipment.name;
        if !self.runtime.flavor.state_directory().join(name).exists() {
            return;
        }
        if let Err(error) = self.runtime.run(&["delete", "--force", name], QUESTION) {
            tracing::debug!(%error, "what is left of the restore that was begun stays");
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.shipment.job.join("pid")
    }

    fn restore_with_runtime(
        &mut self,
        request: &RestoreRequest,
        restored: &mut dyn FnMut(i32),
    ) -> Result<i32, EngineError> {
        if let Some(group) = config::mapped_group(&self.recipe.config) {
            let_read(&request.images, group)?;
        }
        let begun = self.begun.take();
        let restoration =
            match begun.and_then(|begun| begun.if_it_fits(request, self.recipe.descriptors.as_deref())) {
                Some(begun) => begun,
                None => {
                    self.forget_broken_off();
                    self.start_runtime(request)?
                }
            };
        restoration.finish(RESTORE, restored).map_err(|error| explain(error, &request.work))?;
        let pid_file = self.pid_file();
        let text = std::fs::read_to_string(&pid_file).map_err(EngineError::io("read", &pid_file))?;
        text.trim()
            .parse()
            .map_err(|_| EngineError::Unreadable { path: pid_file, reason: format!("`{text}`") })
    }
}

/// Lets a group read a directory of images. CRIU opens some of them in the container's user namespace: first as this host's
/// root, which has no power over others' files any more, then as the namespace's root.
fn let_read(dir: &Path, group: u32) -> Result<(), EngineError> {
    use std::os::unix::fs::{PermissionsExt, lchown};
    let allow = |path: &Path, mode: u32| {
        lchown(path, None, Some(group))
            .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
            .map_err(EngineError::io("let the container's user namespace read", path))
    };
    for entry in std::fs::read_dir(dir).map_err(EngineError::io("read", dir))? {
        allow(&entry.map_err(EngineError::io("read", dir))?.path(), 0o640)?;
    }
    allow(dir, 0o750)
}

impl DestinationContainer for RuntimeArrival {
    fn begin(&mut self, request: &RestoreRequest) {
        let Some(descriptors) = self.recipe.descriptors.clone() else { return };
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
        let pid = self.restore_with_runtime(request, restored)?;
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

    fn connect(&mut self) -> Result<(), EngineError> {
        self.arrival.connect()
    }

    fn settle(&mut self) -> Vec<String> {
        self.arrival.settle()
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
        if self.attempted {
            // a restore that failed late may have left a held tree that was never reported
            if let Ok(state) = self.runtime.state(&self.shipment.name) {
                if !self.arrival.is_held()
                    && let Ok(freezer) = Freezer::of_pid(state.pid)
                {
                    self.arrival.held(freezer);
                }
                keep("held tasks", self.arrival.kill_held());
                keep(
                    "container",
                    self.runtime.run(&["delete", "--force", &self.shipment.name], QUESTION).map(drop),
                );
            }
            // a runtime forgets the cgroups of a restore that failed
            let made = cgroups_named(&cgroup_name(&self.runtime, &self.shipment, &self.recipe));
            let made = made.difference(&self.before.cgroups);
            for cgroup in made {
                keep("cgroup", self.arrival.clear_cgroup(cgroup));
            }
            self.attempted = false;
            self.arrival.sweep(&self.shipment.job.join("work"));
            let state = self.runtime.flavor.state_directory();
            crate::cure::sweep_runtime(&state.join(&self.shipment.name));
        }
        keep("network", self.arrival.remove_network());
        if std::mem::take(&mut self.begun_to_make) {
            let path = config_path(&self.recipe);
            let undone = match &self.before.config {
                Some(bytes) => write_private(&path, bytes),
                None => match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(EngineError::io("remove", &path)(error))
                    }
                    _ => Ok(()),
                },
            };
            keep("bundle", undone);
            if !self.before.bundle {
                // the trees in it are removed by whoever made them; whoever is last removes the directory
                let _ = std::fs::remove_dir(&self.recipe.bundle);
            }
        }
        leftovers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crun_wants_one_hierarchy_and_a_path_and_runc_takes_what_there_is() {
        let reasons = |flavor, cgroup, cgroups| cgroup_of_its_own(flavor, cgroup, cgroups).len();
        let path = Some(Path::new("web"));
        for cgroups in [Some("v1"), Some("v2"), None] {
            assert_eq!(reasons(Flavor::Runc, None, cgroups), 0);
            assert_eq!(reasons(Flavor::Crun, path, cgroups), usize::from(cgroups != Some("v2")));
        }
        assert_eq!(reasons(Flavor::Crun, None, Some("v2")), 1);
    }
}
