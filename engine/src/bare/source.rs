//! A bare process tree at the source.

use super::{KIND, Recipe, cgroup_name, parse_pid};
use crate::container::{Facts, OpenRequest, SourceContainer, Tree};
use crate::error::EngineError;
use crate::freezer::{Freezer, OwnCgroup, process_tree};
use crate::live::{Kin, LiveContainer, Remains, SourceNetwork};
use crate::network::{Namespace, NetworkState};
use crate::obstacles::{self, numbers, ports};
use crate::process;
use godwit_transfer::message::{Refusal, TreeKind};
use procfs::process::{FDTarget, MMapPath, Process};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

struct BareKin {
    pid: i32,
    own: Option<OwnCgroup>,
    /// The cgroup that its arrival on this host made for it.
    arrived_in: Option<OwnCgroup>,
    external: Vec<String>,
}

pub(super) fn open(name: &str, request: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError> {
    let not_found = || EngineError::NotFound(format!("{KIND}:{name}"));
    let pid = parse_pid(name).ok_or_else(not_found)?;
    let process = Process::new(pid).map_err(|_| not_found())?;
    if process.stat().is_ok_and(|stat| stat.state == 'Z') {
        return Err(EngineError::NotRunning { name: format!("{KIND}:{name}"), status: "a zombie".into() });
    }
    let pids = process_tree(pid);
    let mut blockers = process::descriptor_blockers(&pids, &request.carry)?;
    blockers.extend(obstacles::of_tree(pid, &pids, &request.carry)?);
    if request.restart.is_some() {
        blockers.push(
            Refusal::new("nobody would know how to start it again")
                .hint("only containers of an engine can be restarted"),
        );
    }
    if pids.contains(&std::process::id().cast_signed()) {
        blockers.push(Refusal::new("godwit itself belongs to that process tree"));
    }
    for (kind, word) in [("pid", "pid"), ("mnt", "mount")] {
        if !process::same_namespace(name, "self", kind) {
            blockers.push(
                Refusal::new(format!("it has a {word} namespace of its own"))
                    .hint("name the container to its engine instead, as in `runc:NAME`"),
            );
        }
    }
    if process.stat().is_ok_and(|stat| stat.session != pid) && !request.carry.shell_job {
        blockers.push(
            Refusal::new("it is not the leader of its session")
                .hint("start it with `setsid`, or add `--shell-job`"),
        );
    }
    let connections = process::established_connections(&pids)?;
    blockers.extend(process::connection_blocker(&connections, &request.carry));
    let namespace = namespace_of(pid)?;
    let mut network = None;
    if !namespace.is_own()? {
        match NetworkState::capture(&namespace)
            .and_then(|state| state.check(&request.network_plan).map(|()| state))
        {
            Ok(state) => network = Some(state),
            Err(error) => blockers.push(Refusal::new(error.to_string())),
        }
    } else if connections
        .iter()
        .any(|connection| !connection.contains("127.0.0.1") && !connection.contains("[::1]"))
    {
        blockers.push(
            Refusal::new("it has established TCP connections in the host's own network namespace, whose addresses stay here")
                .hint("start it in a network namespace of its own"),
        );
    }
    let mut trees = Vec::new();
    for volume in &request.volumes {
        match std::fs::metadata(volume) {
            Ok(meta) if meta.is_dir() || meta.is_file() => trees.push(Tree {
                kind: TreeKind::Volume,
                path: volume.clone(),
                content: volume.clone(),
                single_file: meta.is_file(),
                read_only: false,
                merged: None,
                made_there: false,
                gone: None,
            }),
            _ => blockers.push(Refusal::new(format!(
                "the volume `{}` is neither a directory nor a file",
                volume.display()
            ))),
        }
    }
    if !blockers.is_empty() {
        return Err(EngineError::Blocked { name: format!("{KIND}:{name}"), blockers });
    }

    let network_key = network.as_ref().map(|_| "extRootNetNS".to_owned());
    let external = match &network_key {
        Some(key) => vec![format!("net[{}]:{key}", process::namespace_inode(pid, "net")?)],
        None => vec![],
    };
    let recipe = Recipe {
        pid,
        tasks: numbers::of(&pids),
        files: files(&pids, &trees),
        namespace: network.as_ref().map(|_| namespace_name(pid)),
        network_key,
        listeners: if network.is_none() { ports::listening(&pids) } else { Vec::new() },
    };
    let recipe = serde_json::to_string(&recipe).map_err(|error| EngineError::Unreadable {
        path: format!("/proc/{pid}").into(),
        reason: error.to_string(),
    })?;
    let facts = Facts {
        engine: KIND,
        name: name.to_owned(),
        pid,
        memory_bytes: process::memory_bytes(&pids),
        trees,
        network,
        recipe,
        warnings: Vec::new(),
        starts_slowly: false,
        annotations: std::collections::BTreeMap::new(),
        image: None,
        image_id: None,
    };
    let network = SourceNetwork::new(&facts, namespace)?;
    let kin = BareKin { pid, own: None, arrived_in: None, external };
    Ok(Box::new(LiveContainer::new(facts, request.carry, Box::new(kin), network)))
}

/// Its network namespace: by the name that its arrival here has given to it, so that the name goes when it leaves.
fn namespace_of(pid: i32) -> Result<Namespace, EngineError> {
    let namespace = Namespace::of_pid(pid)?;
    match Namespace::named(&namespace_name(pid)) {
        Ok(named) if named.identity()? == namespace.identity()? => Ok(named),
        _ => Ok(namespace),
    }
}

/// What its network namespace is called where it arrives.
fn namespace_name(pid: i32) -> String {
    format!("godwit-{pid}")
}

/// Finds a tree again that another process had opened, or what is left of it.
pub(super) fn reopen(remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
    let remains = Remains::understand(remains)?;
    let (own, arrived_in): Cgroups = crate::remains::understood(&remains.kin.to_string())?;
    let kin = BareKin { pid: remains.born.pid(), own, arrived_in, external: Vec::new() };
    Ok(Box::new(remains.reopen(KIND, Box::new(kin))))
}

/// The cgroup made for it at this freeze, and the one that its arrival made.
type Cgroups = (Option<OwnCgroup>, Option<OwnCgroup>);

/// Regular files that the tree maps or has open, outside of the volumes: CRIU opens them again by name and wants the
/// same size.
fn files(pids: &BTreeSet<i32>, volumes: &[Tree]) -> Vec<(PathBuf, u64)> {
    let mut files = BTreeMap::new();
    for pid in pids {
        let Ok(process) = Process::new(*pid) else { continue };
        let mapped = process.maps().map(|maps| maps.into_iter().collect::<Vec<_>>()).unwrap_or_default();
        let mapped = mapped.into_iter().filter_map(|map| match map.pathname {
            MMapPath::Path(path) => Some(path),
            _ => None,
        });
        let open = process.fd().map(|all| all.flatten().collect::<Vec<_>>()).unwrap_or_default();
        let open = open.into_iter().filter_map(|descriptor| match descriptor.target {
            FDTarget::Path(path) => Some(path),
            _ => None,
        });
        for path in mapped.chain(open) {
            if volumes.iter().any(|volume| path.starts_with(&volume.path)) {
                continue;
            }
            // a deleted file has no name any more: CRIU takes it along as a ghost
            if let Ok(meta) = std::fs::metadata(&path)
                && meta.is_file()
            {
                files.insert(path, meta.len());
            }
        }
    }
    files.into_iter().collect()
}

impl Kin for BareKin {
    /// Its cgroup if it has one for itself, else one made for it.
    fn freezer(&mut self) -> Result<Freezer, EngineError> {
        if let Ok(freezer) = Freezer::of_pid(self.pid)
            && freezer.is_exclusively(&process_tree(self.pid))?
        {
            if freezer.path().file_name().is_some_and(|name| name == cgroup_name(self.pid).as_str()) {
                self.arrived_in =
                    Some(OwnCgroup { dir: freezer.path().to_owned(), origins: BTreeMap::new() });
            }
            return Ok(freezer);
        }
        let mut own = OwnCgroup::create(&cgroup_name(self.pid))?;
        // a process may fork while it is moved
        loop {
            let tree = process_tree(self.pid);
            own.adopt(tree.iter().copied())?;
            let freezer = own.freezer()?;
            if freezer.pids()?.is_superset(&process_tree(self.pid)) {
                self.own = Some(own);
                return Ok(freezer);
            }
        }
    }

    fn pids(&self) -> Result<BTreeSet<i32>, EngineError> {
        Ok(process_tree(self.pid))
    }

    fn external(&self) -> Vec<String> {
        self.external.clone()
    }

    fn complete_images(&self, _: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    fn remains(&self) -> serde_json::Value {
        let cgroups: (&Option<OwnCgroup>, &Option<OwnCgroup>) = (&self.own, &self.arrived_in);
        serde_json::json!(cgroups)
    }

    fn relent(&mut self) -> Result<(), EngineError> {
        match self.own.take() {
            Some(own) => Ok(own.release()?),
            None => Ok(()),
        }
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        self.relent()?;
        match self.arrived_in.take() {
            Some(cgroup) => Ok(cgroup.release()?),
            None => Ok(()),
        }
    }
}
