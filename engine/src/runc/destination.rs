//! A runc container at the destination.

use super::restoration::Restoration;
use super::{DESCRIPTORS, QUESTION, Recipe, Runc, needs, oci};
use crate::arrival::Arrival;
use crate::container::{DestinationContainer, Given, Note, RestoreRequest, Shipment};
use crate::error::EngineError;
use crate::freezer::{Freezer, cgroups_named, process_tree, remove_cgroup};
use crate::hold::install_hook;
use crate::network::NetworkRecord;
use crate::process::without_groups;
use crate::remains::{understood, written};
use godwit_migration::ownership::Presence;
use godwit_transfer::message::Refusal;
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that a restore may take.
const RESTORE: Duration = Duration::from_secs(300);

/// A runc container on its way into this host.
struct RuncArrival {
    runc: Runc,
    shipment: Shipment,
    recipe: Recipe,
    arrival: Arrival,
    before: Before,
    /// There may be things to undo besides the network.
    begun_to_make: bool,
    attempted: bool,
    /// `runc restore`, begun early.
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

/// How runc calls the container's cgroup: the last part of `linux.cgroupsPath`, or the container's name.
fn cgroup_name(shipment: &Shipment, recipe: &Recipe) -> String {
    oci::cgroup_path(&recipe.config)
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| shipment.name.clone())
}

/// config.json as it shall be here.
fn localized(recipe: &Recipe) -> serde_json::Value {
    let mut config = recipe.config.clone();
    if let Some(name) = &recipe.namespace {
        oci::set_network_namespace_path(&mut config, &crate::network::Namespace::path_of(name));
    }
    config
}

/// The bundle, what it binds, and its root.
pub(super) fn places(shipment: &Shipment) -> Vec<PathBuf> {
    let Ok(recipe) = parse(shipment) else { return vec![PathBuf::new()] };
    let root = recipe.config.pointer("/root/path").and_then(serde_json::Value::as_str).unwrap_or_default();
    let mut places = vec![recipe.bundle.clone(), recipe.bundle.join(root)];
    places.extend(oci::bind_mounts(&recipe.config, &recipe.bundle).into_iter().map(|bind| bind.source));
    places
}

pub(super) fn examine(runc: &Runc, shipment: &Shipment) -> Vec<Refusal> {
    let recipe = match parse(shipment) {
        Ok(recipe) => recipe,
        Err(refusal) => return vec![refusal],
    };
    let mut reasons = Vec::new();
    if !super::is_name(&shipment.name) {
        reasons.push(Refusal::new(format!("`{}` is not a name for a container", shipment.name)));
    } else if let Ok(state) = runc.state(&shipment.name) {
        reasons.push(
            Refusal::new(format!(
                "the name `{}` is taken: runc has a {} container there",
                shipment.name, state.status
            ))
            .hint(format!("remove it there: `runc delete {}`", shipment.name)),
        );
    }
    reasons.extend(Arrival::examine(shipment, recipe.namespace.as_deref()));
    reasons.extend(recipe.needs.lacking(&recipe.config, &needs::Host::this()));
    // devices and sockets of the host are not copied, but runc needs them to be there
    for bind in oci::bind_mounts(&recipe.config, &recipe.bundle) {
        if !shipment.trees.contains(&bind.source) && !bind.source.exists() {
            reasons.push(
                Refusal::new(format!("`{}` does not exist, and it is not copied", bind.source.display()))
                    .hint("make it there first"),
            );
        }
    }
    reasons
}

/// Inside of a user namespace CRIU gets no userfaultfd (userfaultfd(2): CAP_SYS_PTRACE).
pub(super) fn can_fill_later(shipment: &Shipment) -> Result<(), String> {
    match parse(shipment) {
        Ok(recipe) if oci::has_namespace(&recipe.config, "user") => {
            Err("it has a user namespace, in which CRIU gets no userfaultfd".into())
        }
        _ => Ok(()),
    }
}

pub(super) fn prepare(
    runc: &Runc,
    shipment: &Shipment,
    note: &mut Note<'_>,
) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let recipe = parse_known(shipment)?;
    let before = Before {
        config: std::fs::read(config_path(&recipe)).ok(),
        bundle: recipe.bundle.exists(),
        cgroups: cgroups_named(&cgroup_name(shipment, &recipe)),
    };
    let mut arrival = RuncArrival {
        runc: runc.clone(),
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
        Ok(()) => Ok(Box::new(arrival)),
        Err(error) => {
            for leftover in arrival.abandon() {
                tracing::warn!(%leftover, "could not be removed");
            }
            Err(error)
        }
    }
}

/// Finds again what another process has made or restored.
pub(super) fn reopen(runc: &Runc, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let Remains { shipment, before, network } = understood(remains)?;
    let mut arrival = RuncArrival {
        runc: runc.clone(),
        recipe: parse_known(&shipment)?,
        shipment,
        arrival: Arrival::reopen(network),
        before,
        begun_to_make: true,
        attempted: true,
        begun: None,
        pid: None,
    };
    if let Ok(state) = runc.state(&arrival.shipment.name) {
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
    Ok(Box::new(arrival))
}

/// The recipe of a shipment that was examined.
fn parse_known(shipment: &Shipment) -> Result<Recipe, EngineError> {
    parse(shipment)
        .map_err(|refusal| EngineError::Unreadable { path: "recipe".into(), reason: refusal.reason })
}

fn config_path(recipe: &Recipe) -> PathBuf {
    recipe.bundle.join("config.json")
}

impl RuncArrival {
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

    /// The options that runc's command line cannot pass on. CRIU reads the file that the environment names.
    fn write_criu_config(&self) -> Result<PathBuf, EngineError> {
        let hook = self.shipment.job.join(crate::hold::HOOK_NAME);
        let path = self.shipment.job.join("criu.conf");
        write_private(
            &path,
            format!("action-script {}\nmanage-cgroups ignore\n", hook.display()).as_bytes(),
        )?;
        Ok(path)
    }

    /// Starts `runc restore`; it waits for [`Restoration::finish`] as soon as it needs CRIU.
    fn start_runc(&mut self, request: &RestoreRequest) -> Result<Restoration, EngineError> {
        let config = self.write_criu_config()?;
        let pid_file = self.pid_file();
        // an old one makes CRIU fail at the very end
        let _ = std::fs::remove_file(&pid_file);
        // what runc has to say stays with the migration
        let mut log = OsString::from("--log=");
        log.push(request.work.join("runc.log"));
        let mut args = vec![log];
        args.extend(["restore", "--detach", "--bundle"].map(OsString::from));
        args.push(self.recipe.bundle.clone().into());
        for (flag, value) in
            [("--image-path", &request.images), ("--work-path", &request.work), ("--pid-file", &pid_file)]
        {
            args.extend([flag.into(), value.into()]);
        }
        let carry = &self.shipment.carry;
        for (wanted, flag) in [
            (carry.tcp_established, "--tcp-established"),
            (carry.ext_unix_sk, "--ext-unix-sk"),
            (carry.file_locks, "--file-locks"),
            (carry.shell_job, "--shell-job"),
            (request.lazy, "--lazy-pages"),
        ] {
            if wanted {
                args.push(flag.into());
            }
        }
        args.push(self.shipment.name.clone().into());
        self.attempted = true;
        without_groups()?;
        let (job, guardian) = (&self.shipment.job, self.arrival.guardian());
        Restoration::start(&self.runc.program, &args, &config, &job.join("criu"), request, guardian)
    }

    fn pid_file(&self) -> PathBuf {
        self.shipment.job.join("pid")
    }

    /// What runc is shown as `descriptors.json` before the images are here; none if the source did not tell.
    fn descriptors(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self.recipe.descriptors.as_ref()?).ok()
    }

    /// Starts runc without the images, with nothing but the one file that it reads itself.
    fn start_early(&mut self, request: &RestoreRequest) -> Result<Option<Restoration>, EngineError> {
        let Some(descriptors) = self.descriptors() else { return Ok(None) };
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&request.images).map_err(EngineError::io("make", &request.images))?;
        let path = request.images.join(DESCRIPTORS);
        write_private(&path, &descriptors)?;
        let started = self.start_runc(request);
        let ready = started.map(|mut started| (started.is_ready(), started));
        // the images bring their own
        let removed = std::fs::remove_file(&path).map_err(EngineError::io("remove", &path));
        let (ready, started) = ready?;
        if ready && removed.is_ok() {
            return Ok(Some(started));
        }
        started.abandon();
        removed.map(|()| None)
    }

    /// The restore that was begun, if it is the one that is wanted.
    fn take_begun(&mut self, request: &RestoreRequest) -> Option<Restoration> {
        let begun = self.begun.take()?;
        let came: Option<Vec<String>> = std::fs::read(request.images.join(DESCRIPTORS))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if begun.is_for(request) && came.is_some() && came == self.recipe.descriptors {
            return Some(begun);
        }
        tracing::info!("runc is started again: the images are not those that it was started for");
        begun.abandon();
        None
    }

    fn restore_with_runc(
        &mut self,
        request: &RestoreRequest,
        restored: &mut dyn FnMut(i32),
    ) -> Result<i32, EngineError> {
        if let Some(group) = oci::mapped_group(&self.recipe.config) {
            let_read(&request.images, group)?;
        }
        let restoration = match self.take_begun(request) {
            Some(begun) => begun,
            None => self.start_runc(request)?,
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

/// runc says only that CRIU failed: the reason is in CRIU's log.
fn explain(error: EngineError, work: &Path) -> EngineError {
    let EngineError::Tool { program, what } = error else { return error };
    let log = work.join("restore.log");
    let explanation = godwit_criu::log::explain_file(Some(&log), &what);
    let hint = explanation.hint.map_or(String::new(), |hint| format!(" ({hint})"));
    EngineError::Tool { program, what: format!("{what}; criu: {}{hint}", explanation.cause) }
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, bytes))
        .map_err(EngineError::io("write", path))
}

impl DestinationContainer for RuncArrival {
    fn begin(&mut self, request: &RestoreRequest) {
        match self.start_early(request) {
            Ok(begun) => self.begun = begun,
            Err(error) => tracing::warn!(%error, "runc could not be started early"),
        }
    }

    fn restore(
        &mut self,
        request: &RestoreRequest,
        restored: &mut dyn FnMut(i32),
    ) -> Result<Given, EngineError> {
        let pid = self.restore_with_runc(request, restored)?;
        let freezer = Freezer::of_pid(pid)?;
        freezer.verify_held(&process_tree(pid))?;
        self.arrival.held(freezer);
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
            if let Ok(state) = self.runc.state(&self.shipment.name) {
                if !self.arrival.is_held()
                    && let Ok(freezer) = Freezer::of_pid(state.pid)
                {
                    self.arrival.held(freezer);
                }
                keep("held tasks", self.arrival.kill_held());
                keep(
                    "container",
                    self.runc.run(&["delete", "--force", &self.shipment.name], QUESTION).map(drop),
                );
            }
            // runc forgets the cgroups of a restore that failed
            let made = cgroups_named(&cgroup_name(&self.shipment, &self.recipe));
            let made = made.difference(&self.before.cgroups);
            for freezer in made.clone().filter_map(|cgroup| Freezer::at(cgroup).ok()) {
                // the tasks of a CRIU that was killed, of which it knows nothing
                keep("restored tasks", freezer.kill_frozen().map_err(EngineError::from));
            }
            for cgroup in made {
                keep("cgroup", remove_cgroup(cgroup).map_err(EngineError::from));
            }
            self.attempted = false;
            self.arrival.sweep(&self.shipment.job.join("work"));
            // where runc keeps its containers, unless it is told otherwise
            crate::cure::sweep_runtime(&Path::new("/run/runc").join(&self.shipment.name));
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
