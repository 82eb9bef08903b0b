//! The few things of an OCI config.json that a migration must know (OCI runtime specification, config.md).

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A mount that the runtime makes from a path of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BindMount {
    /// On the host; a relative one is relative to the bundle.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// The container cannot write to it.
    pub read_only: bool,
}

/// All bind mounts, in their order.
pub(crate) fn bind_mounts(config: &Value, bundle: &Path) -> Vec<BindMount> {
    let mounts = config["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    mounts
        .iter()
        .filter_map(|mount| {
            let options: Vec<&str> = mount["options"]
                .as_array()
                .map(|all| all.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            let binds = mount["type"] == "bind" || options.contains(&"bind") || options.contains(&"rbind");
            let (source, destination) = (text(&mount["source"])?, text(&mount["destination"])?);
            binds.then(|| BindMount {
                source: bundle.join(source),
                destination: destination.into(),
                // the later option wins, as for mount(8)
                read_only: options
                    .iter()
                    .rfind(|option| matches!(**option, "ro" | "rro" | "rw"))
                    .is_some_and(|o| *o != "rw"),
            })
        })
        .collect()
}

/// Where cgroup file systems are mounted in the container.
pub(crate) fn cgroup_mounts(config: &Value) -> Vec<PathBuf> {
    let mounts = config["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cgroup = |mount: &&Value| mount["type"] == "cgroup" || mount["type"] == "cgroup2";
    mounts
        .iter()
        .filter(cgroup)
        .filter_map(|mount| mount["destination"].as_str().map(PathBuf::from))
        .collect()
}

/// The device nodes of a container: those that every container has (runtime-spec, config-linux.md, Default Devices) and those
/// it asks for.
pub(crate) fn devices(config: &Value) -> Vec<PathBuf> {
    let default = ["null", "zero", "full", "random", "urandom", "tty", "console"];
    let asked = config.pointer("/linux/devices").and_then(Value::as_array).into_iter().flatten();
    let asked = asked.filter_map(|device| device.get("path")?.as_str());
    default.iter().map(|name| Path::new("/dev").join(name)).chain(asked.map(PathBuf::from)).collect()
}

/// Where the runtime puts the container's cgroup is the same place with another name in it: `to` in the place of `from`.
pub(crate) fn rename_cgroup(config: &mut Value, from: &str, to: &str) {
    if let Some(path) = config.pointer_mut("/linux/cgroupsPath")
        && let Some(text) = path.as_str()
    {
        *path = text.replace(from, to).into();
    }
}

/// Paths that the runtime hides.
pub(crate) fn masked_paths(config: &Value) -> Vec<PathBuf> {
    let paths = config["linux"]["maskedPaths"].as_array().map(Vec::as_slice).unwrap_or_default();
    paths.iter().filter_map(|path| path.as_str().map(PathBuf::from)).collect()
}

/// Whether the root file system is read-only.
pub(crate) fn root_is_read_only(config: &Value) -> bool {
    config["root"]["readonly"].as_bool().unwrap_or(false)
}

/// Whether its process has a terminal.
pub(crate) fn has_terminal(config: &Value) -> bool {
    config["process"]["terminal"].as_bool().unwrap_or(false)
}

/// The namespace entry of that type, if the container has its own.
fn namespace<'a>(config: &'a Value, kind: &str) -> Option<&'a Value> {
    config["linux"]["namespaces"].as_array()?.iter().find(|namespace| namespace["type"] == kind)
}

/// Whether the container has a namespace of its own of that type.
pub(crate) fn has_namespace(config: &Value, kind: &str) -> bool {
    namespace(config, kind).is_some()
}

/// What group 0 of the container's user namespace is outside.
pub(crate) fn mapped_group(config: &Value) -> Option<u32> {
    namespace(config, "user")?;
    let mappings = config["linux"]["gidMappings"].as_array()?;
    let first = mappings.iter().find(|mapping| mapping["containerID"] == 0)?;
    u32::try_from(first["hostID"].as_u64()?).ok()
}

/// The path of its network namespace when somebody else makes it.
pub(crate) fn network_namespace_path(config: &Value) -> Option<PathBuf> {
    namespace_path(config, "network")
}

/// Whether another container holds its pid namespace.
pub(crate) fn joins_pids(config: &Value) -> bool {
    namespace_path(config, "pid").is_some()
}

/// The path of its namespace of that type when somebody else makes it.
pub(crate) fn namespace_path(config: &Value, kind: &str) -> Option<PathBuf> {
    namespace(config, kind)?["path"].as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Names what is bound by its own path where it is a symbolic link: CRIU makes no mount point for one.
pub(crate) fn resolve_bind_sources(config: &mut Value) {
    let bound: Vec<PathBuf> =
        bind_mounts(config, Path::new("/")).into_iter().map(|bind| bind.source).collect();
    let mounts = config.pointer_mut("/mounts").and_then(Value::as_array_mut).into_iter().flatten();
    for source in mounts.filter_map(|mount| mount.get_mut("source")) {
        let path = source.as_str().map(PathBuf::from).filter(|path| bound.contains(path));
        if let Some(real) = path.and_then(|path| path.canonicalize().ok()) {
            *source = json!(real);
        }
    }
}

/// Points the container's network namespace to a path, where godwit has made it.
pub(crate) fn set_network_namespace_path(config: &mut Value, path: &Path) {
    // by pointer: indexing what is no object would panic, and this is the peer's text
    let Some(namespaces) = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) else {
        return;
    };
    for namespace in namespaces.iter_mut().filter(|namespace| namespace["type"] == "network") {
        if let Some(entry) = namespace.as_object_mut() {
            entry.insert("path".into(), json!(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        json!({
            "root": {"path": "rootfs", "readonly": true},
            "process": {"terminal": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "rw"]},
                {"destination": "/etc/x", "source": "conf/x", "options": ["bind", "ro", "nosuid"]},
                {"destination": "/odd", "type": "none", "source": "/srv/odd", "options": ["ro", "rbind", "rw"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
            ],
            "linux": {"maskedPaths": ["/proc/keys"], "namespaces": [{"type": "network", "path": "/run/netns/x"}, {"type": "pid"}]}
        })
    }

    #[test]
    fn bind_mounts_are_found_by_type_or_option() {
        let mounts = bind_mounts(&config(), Path::new("/srv/b"));
        let shown: Vec<_> = mounts
            .iter()
            .map(|m| (m.source.to_str().unwrap(), m.destination.to_str().unwrap(), m.read_only))
            .collect();
        assert_eq!(
            shown,
            [("/srv/data", "/data", false), ("/srv/b/conf/x", "/etc/x", true), ("/srv/odd", "/odd", false)]
        );
    }

    #[test]
    fn the_network_namespace_moves_to_where_godwit_made_it() {
        let mut config = config();
        assert_eq!(network_namespace_path(&config), Some("/run/netns/x".into()));
        set_network_namespace_path(&mut config, Path::new("/run/netns/y"));
        assert_eq!(network_namespace_path(&config), Some("/run/netns/y".into()));
        assert!(has_namespace(&config, "pid") && !has_namespace(&config, "user"));
    }

    #[test]
    fn a_link_that_is_bound_is_named_by_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let mut config = json!({"mounts": [
            {"destination": "/a", "type": "bind", "source": link},
            {"destination": "/b", "type": "bind", "source": "/nonexistent"},
            {"destination": "/proc", "type": "proc", "source": "proc"}]});
        resolve_bind_sources(&mut config);
        let sources: Vec<_> =
            config["mounts"].as_array().unwrap().iter().map(|mount| mount["source"].clone()).collect();
        assert_eq!(sources, [json!(real.canonicalize().unwrap()), json!("/nonexistent"), json!("proc")]);
    }

    #[test]
    fn root_of_a_user_namespace_is_somebody_else_outside() {
        let mut config = config();
        config["linux"]["gidMappings"] = json!([
            {"containerID": 5, "hostID": 7, "size": 1},
            {"containerID": 0, "hostID": 100_000, "size": 9}]);
        assert_eq!(mapped_group(&config), None, "it has no user namespace");
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        assert_eq!(mapped_group(&config), Some(100_000));
    }

    #[test]
    fn nonsense_is_no_reason_to_panic() {
        for config in [
            json!(null),
            json!([]),
            json!({"mounts": 7, "linux": "x"}),
            json!({"mounts": [1, {}, {"type": "bind"}]}),
        ] {
            assert!(bind_mounts(&config, Path::new("/")).is_empty());
            assert!(masked_paths(&config).is_empty() && !root_is_read_only(&config));
            set_network_namespace_path(&mut config.clone(), Path::new("/x"));
            assert_eq!(mapped_group(&config), None);
        }
    }
}
