//! A runc container at the source.

use super::needs::Needs;
use super::{KIND, QUESTION, Recipe, Runc, oci, read_config};
use crate::container::{Facts, OpenRequest, SourceContainer, Tree};
use crate::error::EngineError;
use crate::freezer::{Freezer, process_tree};
use crate::live::{Kin, LiveContainer, Remains, SourceNetwork};
use crate::network::{Namespace, NetworkState};
use crate::obstacles;
use crate::process;
use godwit_transfer::message::{Refusal, TreeKind};
use procfs::process::Process;
use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What runc and CRIU must be told about one container.
struct RuncKin {
    runc: Runc,
    name: String,
    pid: i32,
    external: Vec<String>,
    /// Where its standard streams lead, as runc wants to know at restore: descriptors.json.
    descriptors: Vec<String>,
}

pub(super) fn open(
    runc: &Runc,
    name: &str,
    request: &OpenRequest,
) -> Result<Box<dyn SourceContainer>, EngineError> {
    let state = runc.state(name)?;
    if state.status != "running" {
        return Err(EngineError::NotRunning { name: format!("{KIND}:{name}"), status: state.status });
    }
    let pid = state.pid;
    let config = read_config(&state.bundle.join("config.json"))?;
    let binds = oci::bind_mounts(&config, &state.bundle);
    let pids = container_pids(pid)?;

    let mut warnings = Vec::new();
    let trees = trees(&state.rootfs, &config, &binds, request, &mut warnings);
    let mut blockers = process::descriptor_blockers(&pids, &request.carry)?;
    blockers.extend(obstacles::of_tree(pid, &pids, &request.carry)?);
    if oci::has_terminal(&config) && blockers.is_empty() {
        blockers.push(
            Refusal::new("it has a terminal (`process.terminal` in config.json)")
                .hint("start it without one"),
        );
    }
    let external_paths: Vec<PathBuf> =
        binds.iter().map(|bind| bind.destination.clone()).chain(oci::cgroup_mounts(&config)).collect();
    blockers.extend(process::mount_blockers(pid, &external_paths)?);
    let connections = process::established_connections(&pids)?;
    blockers.extend(process::connection_blocker(&connections, &request.carry));

    let namespace = Namespace::of_pid(pid)?;
    if oci::has_namespace(&config, "user") && oci::has_namespace(&config, "network") && !namespace.is_own()? {
        blockers.push(
            Refusal::new(
                "it has a user namespace and a network namespace: CRIU cannot enter a network namespace that was made for it \
                 once it is in the user namespace",
            )
            .hint("start it with the host's network namespace, or without a user namespace"),
        );
    }
    let network = if oci::has_namespace(&config, "network") && !namespace.is_own()? {
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
    if !blockers.is_empty() {
        return Err(EngineError::Blocked { name: format!("{KIND}:{name}"), blockers });
    }

    let namespace_path = oci::network_namespace_path(&config);
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
    let kin = RuncKin {
        runc: runc.clone(),
        name: name.to_owned(),
        pid,
        external: external(pid, &config, &binds, network.is_some())?,
        descriptors: (0..3).map(|number| descriptor(pid, number)).collect(),
    };
    if kin.descriptors.iter().any(|text| text.starts_with("pipe:")) {
        warnings.push(
            "its standard streams are pipes to this host: at the destination they lead to /dev/null".into(),
        );
    }
    let not_copied: Vec<_> =
        binds.iter().filter(|bind| !trees.iter().any(|tree| tree.path == bind.source)).collect();
    let recipe = Recipe {
        bundle: state.bundle.clone(),
        config,
        namespace: namespace_name,
        descriptors: Some(kin.descriptors.clone()),
        needs: Needs::of(&pids, &not_copied, network.is_none()),
    };
    let facts = Facts {
        engine: KIND,
        name: name.to_owned(),
        pid,
        memory_bytes: process::memory_bytes(&pids),
        trees,
        network,
        recipe: serde_json::to_string(&recipe)
            .map_err(|error| EngineError::Unreadable { path: state.bundle, reason: error.to_string() })?,
        warnings,
    };
    let network = SourceNetwork::new(&facts, namespace)?;
    Ok(Box::new(LiveContainer::new(facts, request.carry, Box::new(kin), network)))
}

/// Finds a container again that another process had opened, or what is left of it.
pub(super) fn reopen(runc: &Runc, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
    let remains = Remains::understand(remains)?;
    let kin = RuncKin {
        runc: runc.clone(),
        name: remains.name.clone(),
        pid: remains.born.pid(),
        external: Vec::new(),
        descriptors: Vec::new(),
    };
    Ok(Box::new(remains.reopen(KIND, Box::new(kin))))
}

/// Its tasks: those of its cgroup, or the tree below its first process.
fn container_pids(pid: i32) -> Result<BTreeSet<i32>, EngineError> {
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
    binds: &[oci::BindMount],
    request: &OpenRequest,
    warnings: &mut Vec<String>,
) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut add = |kind, path: PathBuf, read_only| {
        if request.no_copy.contains(&path) || trees.iter().any(|tree| tree.path == path) {
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
    add(TreeKind::Root, rootfs.to_owned(), oci::root_is_read_only(config));
    for bind in binds {
        add(TreeKind::Volume, bind.source.clone(), bind.read_only);
    }
    for volume in &request.volumes {
        add(TreeKind::Volume, volume.clone(), false);
    }
    trees
}

/// What CRIU must leave to the runtime, named as `runc restore` names it (runc, libcontainer/criu_linux.go).
fn external(
    pid: i32,
    config: &serde_json::Value,
    binds: &[oci::BindMount],
    own_network: bool,
) -> Result<Vec<String>, EngineError> {
    let mut external: Vec<String> =
        binds.iter().map(|bind| format!("mnt[{0}]:{0}", bind.destination.display())).collect();
    let mounts = Process::new(pid).and_then(|process| process.mountinfo()).map_err(|error| {
        EngineError::Unreadable { path: format!("/proc/{pid}/mountinfo").into(), reason: error.to_string() }
    })?;
    for path in oci::masked_paths(config) {
        // a masked file has /dev/null over it, a masked directory a tmpfs of its own, which CRIU makes again
        let masked = mounts.iter().any(|mount| mount.mount_point == path && mount.root == "/null");
        if masked {
            external.push(format!("mnt[{}]:/dev/null", path.display()));
        }
    }
    // in a user namespace nothing can make device nodes: the runtime binds the host's, and does so again at the restore
    for path in oci::devices(config) {
        if mounts.iter().any(|mount| mount.mount_point == path) {
            external.push(format!("mnt[{0}]:{0}", path.display()));
        }
    }
    for below in oci::cgroup_mounts(config) {
        let v1 =
            mounts.iter().filter(|mount| mount.fs_type == "cgroup" && mount.mount_point.starts_with(&below));
        external.extend(v1.map(|mount| format!("mnt[{0}]:{0}", mount.mount_point.display())));
    }
    if own_network {
        external.push(format!("net[{}]:extRootNetNS", process::namespace_inode(pid, "net")?));
    }
    Ok(external)
}

impl Kin for RuncKin {
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
        use std::os::unix::fs::OpenOptionsExt;
        let path = images.join(super::DESCRIPTORS);
        let text = serde_json::json!(self.descriptors).to_string();
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .map_err(EngineError::io("write", path))
    }

    fn relent(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        if matches!(self.runc.state(&self.name), Err(EngineError::NotFound(_))) {
            return Ok(());
        }
        // its tasks are gone, so this lets nothing run; --force for a runc that has not noticed yet
        self.runc.run(&["delete", "--force", &self.name], QUESTION).map(drop)
    }
}
