//! A container of a runtime at the source.

use super::needs::Needs;
use super::restart::{Known, RuntimeStartable};
use super::{Flavor, QUESTION, Recipe, Runtime, cgroups, config, read_config};
use crate::container::{Facts, OpenRequest, SourceContainer, Tree};
use crate::error::EngineError;
use crate::freezer::{Freezer, process_tree};
use crate::image_id;
use crate::live::{Kin, LiveContainer, Remains, SourceNetwork};
use crate::network::{Namespace, NetworkState};
use crate::obstacles;
use crate::process;
use crate::restart::{Stoppable, StoppableRemains};
use godwit_transfer::message::{Refusal, TreeKind};
use procfs::process::Process;
use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What a runtime and CRIU must be told about one container.
struct RuntimeKin {
    runtime: Runtime,
    name: String,
    pid: i32,
    external: Vec<String>,
    /// Where its standard streams lead, as the runtime wants to know at restore: descriptors.json.
    descriptors: Vec<String>,
}

pub(super) fn open(
    runtime: &Runtime,
    name: &str,
    request: &OpenRequest,
) -> Result<Box<dyn SourceContainer>, EngineError> {
    let state = runtime.state(name)?;
    if state.status != "running" {
        return Err(EngineError::NotRunning { name: runtime.full(name), status: state.status });
    }
    let pid = state.pid;
    let config = read_config(&state.bundle.join("config.json"))?;
    let Look { binds, pids, mut blockers, namespace, network, descriptors } =
        Look::at(pid, &config, &state.bundle, request)?;
    let mut warnings = Vec::new();
    let trees = trees(&state.bundle.join(&state.rootfs), &config, &binds, request, &mut warnings);
    if config.pointer("/annotations/io.container.manager").is_some_and(|manager| manager == "libpod") {
        blockers.push(
            Refusal::new("it is podman's, which would not know where it went")
                .hint("move it as `podman:NAME`; `podman ps` shows the name"),
        );
    }
    // an empty one is made anew with the container
    let network = network.filter(|state| request.restart.is_none() || state.interfaces().next().is_some());
    if request.restart.is_some() {
        if config::has_terminal(&config) {
            blockers.push(
                Refusal::new(
                    "it has a terminal (`process.terminal` in config.json), which nobody would be at",
                )
                .hint("start it without one"),
            );
        }
        if network.is_some() && config::network_namespace_path(&config).is_none() {
            blockers.push(
                Refusal::new("its network namespace goes when it is stopped, and nobody would make it again")
                    .hint("give it one that has a name (`ip netns add`, and its path in config.json)"),
            );
        }
    }
    if !blockers.is_empty() {
        return Err(EngineError::Blocked { name: runtime.full(name), blockers });
    }

    let namespace_path = config::network_namespace_path(&config);
    let namespace_name = network.as_ref().map(|_| match &namespace_path {
        Some(path) => {
            path.file_name().map_or_else(|| name.to_owned(), |file| file.to_string_lossy().into_owned())
        }
        None => format!("godwit-{name}"),
    });
    // the name under /run/netns is what has to go at the end; without one there is only the process's
    let namespace = match (&namespace_path, &network) {
        (Some(path), Some(_)) => Namespace::open(path)?,
        _ => namespace,
    };
    let kin = RuntimeKin {
        runtime: runtime.clone(),
        name: name.to_owned(),
        pid,
        external: match request.restart {
            None => external(runtime.flavor, pid, &config, &binds, network.is_some())?,
            Some(_) => Vec::new(),
        },
        descriptors,
    };
    if kin.descriptors.iter().any(|text| text.starts_with("pipe:")) {
        warnings.push(
            "its standard streams are pipes to this host: at the destination they lead to /dev/null".into(),
        );
    }
    let not_copied: Vec<_> =
        binds.iter().filter(|bind| !trees.iter().any(|tree| tree.path == bind.source)).collect();
    let by_systemd = cgroups::is_made_by_systemd(pid, runtime.flavor, &config, name);
    let annotations = Facts::for_godwit(config.get("annotations"));
    let recipe = Recipe {
        bundle: state.bundle.clone(),
        systemd_cgroup: by_systemd,
        config,
        namespace: namespace_name,
        descriptors: Some(kin.descriptors.clone()),
        needs: match request.restart {
            None => Needs::of(&pids, &not_copied, network.is_none()),
            Some(_) => Needs::default(),
        },
    };
    let facts = Facts {
        engine: runtime.flavor.kind(),
        name: name.to_owned(),
        pid,
        memory_bytes: process::memory_bytes(&pids),
        trees,
        network,
        recipe: serde_json::to_string(&recipe).map_err(|error| EngineError::Unreadable {
            path: state.bundle.clone(),
            reason: error.to_string(),
        })?,
        warnings,
        starts_slowly: false,
        image_id: image_id::of_note(&annotations),
        annotations,
        image: None,
    };
    if let Some(grace) = request.restart {
        let known = Known { name: name.to_owned(), bundle: state.bundle, systemd_cgroup: by_systemd };
        let startable = RuntimeStartable::new(runtime, known);
        return Ok(Box::new(Stoppable::new(facts, Box::new(startable), grace, Some(namespace))));
    }
    let network = SourceNetwork::new(&facts, namespace)?;
    Ok(Box::new(LiveContainer::new(facts, request.carry, Box::new(kin), network)))
}

/// What a running container's config.json and its tasks show.
pub(crate) struct Look {
    /// What it binds from the host.
    pub(crate) binds: Vec<config::BindMount>,
    /// Its tasks.
    pub(crate) pids: BTreeSet<i32>,
    /// What of it cannot be moved.
    pub(crate) blockers: Vec<Refusal>,
    /// Its network namespace, the host's own if it has none.
    pub(crate) namespace: Namespace,
    /// What is in it; none if it has none.
    pub(crate) network: Option<NetworkState>,
    /// Where its standard streams lead.
    pub(crate) descriptors: Vec<String>,
}

impl Look {
    /// Looks at the container of this first process; touches nothing.
    ///
    /// # Errors
    /// When its tasks cannot be read.
    pub(crate) fn at(
        pid: i32,
        config: &serde_json::Value,
        bundle: &Path,
        request: &OpenRequest,
    ) -> Result<Self, EngineError> {
        let binds = config::bind_mounts(config, bundle);
        let pids = container_pids(pid)?;
        let mut blockers: Vec<Refusal> =
            obstacles::shared_numbers::with_others(pid).filter(|_| !request.together).into_iter().collect();
        let is_dumped = request.restart.is_none();
        if is_dumped {
            blockers.extend(process::descriptor_blockers(&pids, &request.carry)?);
            blockers.extend(obstacles::of_tree(pid, &pids, &request.carry)?);
        }
        if is_dumped && config::has_terminal(config) && blockers.is_empty() {
            blockers.push(
                Refusal::new("it has a terminal (`process.terminal` in config.json)")
                    .hint("start it without one"),
            );
        }
        let external_paths: Vec<PathBuf> =
            binds.iter().map(|bind| bind.destination.clone()).chain(config::cgroup_mounts(config)).collect();
        let connections = if is_dumped { process::established_connections(&pids)? } else { Vec::new() };
        if is_dumped {
            blockers.extend(process::mount_blockers(pid, &external_paths)?);
            blockers.extend(process::connection_blocker(&connections, &request.carry));
        }

        let namespace = Namespace::of_pid(pid)?;
        if is_dumped
            && config::has_namespace(config, "user")
            && config::has_namespace(config, "network")
            && !namespace.is_own()?
        {
            blockers.push(
                Refusal::new(
                    "it has a user namespace and a network namespace: CRIU cannot enter a network namespace that was made for it \
                     once it is in the user namespace",
                )
                .hint("start it with the host's network namespace, or without a user namespace"),
            );
        }
        let network = if config::has_namespace(config, "network") && !namespace.is_own()? {
            match NetworkState::capture(&namespace)
                .and_then(|state| state.check(&request.network_plan).map(|()| state))
            {
                Ok(state) => Some(state),
                Err(error) => {
                    blockers.push(Refusal::new(error.to_string()));
                    None
                }
            }
        } else {
            if !connections.is_empty() {
                blockers.push(
                    Refusal::new("it has established TCP connections in the host's own network namespace, whose addresses stay here")
                        .hint("give the container a network namespace of its own"),
                );
            }
            None
        };
        let descriptors = (0..3).map(|number| descriptor(pid, number)).collect();
        Ok(Self { binds, pids, blockers, namespace, network, descriptors })
    }
}

/// Finds a container again that another process had opened, or what is left of it.
pub(super) fn reopen(runtime: &Runtime, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
    if let Some(stopped) = StoppableRemains::understand(remains) {
        let known: Known = serde_json::from_value(stopped.startable.clone())
            .map_err(|error| EngineError::Unreadable { path: "remains".into(), reason: error.to_string() })?;
        let startable = RuntimeStartable::new(runtime, known);
        return Ok(Box::new(stopped.reopen(runtime.flavor.kind(), Box::new(startable))));
    }
    let remains = Remains::understand(remains)?;
    let kin = RuntimeKin {
        runtime: runtime.clone(),
        name: remains.name.clone(),
        pid: remains.born.pid(),
        external: Vec::new(),
        descriptors: Vec::new(),
    };
    Ok(Box::new(remains.reopen(runtime.flavor.kind(), Box::new(kin))))
}

/// Writes where the standard streams lead, for a runtime's restore.
pub(crate) fn write_descriptors(images: &Path, descriptors: &[String]) -> Result<(), EngineError> {
    let text = serde_json::json!(descriptors).to_string();
    super::write_private(&images.join(super::DESCRIPTORS), text.as_bytes())
}

/// Its tasks: those of its cgroup, or the tree below its first process.
pub(crate) fn container_pids(pid: i32) -> Result<BTreeSet<i32>, EngineError> {
    match Freezer::of_pid(pid) {
        Ok(freezer) => Ok(freezer.pids()?),
        Err(_) => Ok(process_tree(pid)),
    }
}

fn descriptor(pid: i32, number: i32) -> String {
    std::fs::read_link(format!("/proc/{pid}/fd/{number}"))
        .map_or_else(|_| "/dev/null".into(), |target| target.to_string_lossy().into_owned())
}

/// The directories and files that must be at the destination: root file system, bind mounts, what the user named.
fn trees(
    rootfs: &Path,
    config: &serde_json::Value,
    binds: &[config::BindMount],
    request: &OpenRequest,
    warnings: &mut Vec<String>,
) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut add = |kind, path: PathBuf, read_only| {
        if request.no_copy.contains(&path) {
            return;
        }
        if let Some(tree) = trees.iter_mut().find(|tree| tree.path == path) {
            // given twice, it is read-only when it is so both times
            tree.read_only &= read_only;
            return;
        }
        match std::fs::metadata(&path).map(|meta| meta.file_type()) {
            Ok(file_type) if file_type.is_dir() || file_type.is_file() => {
                trees.push(Tree {
                    kind,
                    content: path.clone(),
                    path,
                    single_file: file_type.is_file(),
                    read_only,
                    merged: None,
                    made_there: false,
                    gone: None,
                });
            }
            Ok(file_type) if file_type.is_socket() => warnings.push(format!(
                "`{}` is a socket of this host: the destination must have one, too",
                path.display()
            )),
            // a device of the host, or something that went since: the destination needs its own
            _ => warnings.push(format!("`{}` is not copied: the destination must have it", path.display())),
        }
    };
    add(TreeKind::Root, rootfs.to_owned(), config::root_is_read_only(config));
    for bind in binds {
        add(TreeKind::Volume, bind.source.clone(), bind.read_only);
    }
    for volume in &request.volumes {
        add(TreeKind::Volume, volume.clone(), false);
    }
    trees
}

/// What CRIU must leave to the runtime, named as its `restore` names it.
pub(crate) fn external(
    flavor: Flavor,
    pid: i32,
    config: &serde_json::Value,
    binds: &[config::BindMount],
    own_network: bool,
) -> Result<Vec<String>, EngineError> {
    let mut external: Vec<String> =
        binds.iter().map(|bind| format!("mnt[{0}]:{0}", bind.destination.display())).collect();
    let mounts = Process::new(pid).and_then(|process| process.mountinfo()).map_err(|error| {
        EngineError::Unreadable { path: format!("/proc/{pid}/mountinfo").into(), reason: error.to_string() }
    })?;
    for path in config::masked_paths(config) {
        // a masked file has /dev/null over it, a masked directory a tmpfs of its own, which CRIU makes again
        let masked = mounts.iter().any(|mount| mount.mount_point == path && mount.root == "/null");
        if masked {
            external.push(format!("mnt[{}]:{}", path.display(), flavor.mask_key(&path).display()));
        }
    }
    // in a user namespace nothing can make device nodes: the runtime binds the host's, and does so again at the restore
    for path in config::devices(config) {
        if mounts.iter().any(|mount| mount.mount_point == path) {
            external.push(format!("mnt[{0}]:{0}", path.display()));
        }
    }
    for below in config::cgroup_mounts(config) {
        let v1 =
            mounts.iter().filter(|mount| mount.fs_type == "cgroup" && mount.mount_point.starts_with(&below));
        external.extend(v1.map(|mount| format!("mnt[{0}]:{0}", mount.mount_point.display())));
    }
    if own_network {
        external.push(format!("net[{}]:extRootNetNS", process::namespace_inode(pid, "net")?));
    }
    // another container's: runc and crun have CRIU restore into what the bundle names there
    if config::joins_pids(config) {
        external.push(format!("pid[{}]:extRootPidNS", process::namespace_inode(pid, "pid")?));
    }
    Ok(external)
}

impl Kin for RuntimeKin {
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

    fn relent(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        if matches!(self.runtime.state(&self.name), Err(EngineError::NotFound(_))) {
            return Ok(());
        }
        // its tasks are gone, so this lets nothing run; --force for a runtime that has not noticed yet
        self.runtime.run(&["delete", "--force", &self.name], QUESTION).map(drop)
    }
}
