//! The few things of an OCI config.json that a migration must know (OCI runtime specification, config.md).

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A mount that the runtime makes from a path of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BindMount {
    /// On the host; a relative one is relative to the bundle.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// The container cannot write to it.
    pub read_only: bool,
}

/// All bind mounts, in their order.
pub(super) fn bind_mounts(config: &Value, bundle: &Path) -> Vec<BindMount> {
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
pub(super) fn cgroup_mounts(config: &Value) -> Vec<PathBuf> {
    let mounts = config["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cgroup = |mount: &&Value| mount["type"] == "cgroup" || mount["type"] == "cgroup2";
    mounts
        .iter()
        .filter(cgroup)
        .filter_map(|mount| mount["destination"].as_str().map(PathBuf::from))
        .collect()
}

/// Where the runtime puts the container's cgroup, if the bundle says so.
pub(super) fn cgroup_path(config: &Value) -> Option<PathBuf> {
    config["linux"]["cgroupsPath"].as_str().map(PathBuf::from)
}

/// The device nodes of a container: those that every container has (runtime-spec, config-linux.md, Default Devices) and those
/// it asks for.
pub(super) fn devices(config: &Value) -> Vec<PathBuf> {
    let default = ["null", "zero", "full", "random", "urandom", "tty", "console"];
    let asked = config.pointer("/linux/devices").and_then(Value::as_array).into_iter().flatten();
    let asked = asked.filter_map(|device| device.get("path")?.as_str());
    default.iter().map(|name| Path::new("/dev").join(name)).chain(asked.map(PathBuf::from)).collect()
}

/// Paths that the runtime hides.
pub(super) fn masked_paths(config: &Value) -> Vec<PathBuf> {
    let paths = config["linux"]["maskedPaths"].as_array().map(Vec::as_slice).unwrap_or_default();
    paths.iter().filter_map(|path| path.as_str().map(PathBuf::from)).collect()
}

/// Whether the root file system is read-only.
pub(super) fn root_is_read_only(config: &Value) -> bool {
    config["root"]["readonly"].as_bool().unwrap_or(false)
}

/// Whether its process has a terminal.
pub(super) fn has_terminal(config: &Value) -> bool {
    config["process"]["terminal"].as_bool().unwrap_or(false)
}

/// The namespace entry of that type, if the container has its own.
fn namespace<'a>(config: &'a Value, kind: &str) -> Option<&'a Value> {
    config["linux"]["namespaces"].as_array()?.iter().find(|namespace| namespace["type"] == kind)
}

/// Whether the container has a namespace of its own of that type.
pub(super) fn has_namespace(config: &Value, kind: &str) -> bool {
    namespace(config, kind).is_some()
}

/// What group 0 of the container's user namespace is outside.
pub(super) fn mapped_group(config: &Value) -> Option<u32> {
    namespace(config, "user")?;
    let mappings = config["linux"]["gidMappings"].as_array()?;
    let first = mappings.iter().find(|mapping| mapping["containerID"] == 0)?;
    u32::try_from(first["hostID"].as_u64()?).ok()
}

/// The path of its network namespace when somebody else makes it.
pub(super) fn network_namespace_path(config: &Value) -> Option<PathBuf> {
    namespace(config, "network")?["path"].as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Points the container's network namespace to a path, where godwit has made it.
pub(super) fn set_network_namespace_path(config: &mut Value, path: &Path) {
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
