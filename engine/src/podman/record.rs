//! What podman has on record of a container: its `ContainerConfig` (libpod/container_config.go) as JSON, of which podman makes
//! the container again elsewhere.

use super::KIND;
use crate::error::EngineError;
use crate::published::Published;
use crate::runtime::config;
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long podman may keep its data base to itself.
const BUSY: Duration = Duration::from_secs(10);

/// What podman does when a container ends.
const RESTART: &str = "restart_policy";

/// A container's record, ready for another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record(Map<String, Value>);

/// An address that a container shall have again.
pub(super) struct Address {
    pub(super) ips: Vec<String>,
    pub(super) mac: String,
}

impl Record {
    /// What of the host leads to it.
    pub(super) fn published(&self) -> Vec<Published> {
        let mappings = self.0.get("newPortMappings").and_then(Value::as_array).into_iter().flatten();
        mappings.filter_map(Published::of_mapping).collect()
    }

    /// Reads it from podman's data base (libpod/sqlite_state.go), which is only read.
    ///
    /// # Errors
    /// When it cannot be read, or does not hold the container.
    pub(super) fn read(graph_root: &Path, id: &str) -> Result<Self, EngineError> {
        const ONE: &str = "SELECT CAST(JSON AS TEXT) FROM ContainerConfig WHERE ID = ?1";
        let text: String = asked(graph_root, |data_base| data_base.query_row(ONE, [id], |row| row.get(0)))?;
        serde_json::from_str(&text).map(Self).map_err(|error| EngineError::Unreadable {
            path: graph_root.join("db.sql"),
            reason: error.to_string(),
        })
    }

    /// Makes it fit for being read by another podman: with the addresses that the container has, by network, and without what
    /// podman would add once more.
    pub(super) fn make_ready(&mut self, addresses: &BTreeMap<String, Address>) {
        let id = self.text("id").unwrap_or_default().to_owned();
        let shm = self.text("ShmDir").map(str::to_owned);
        if let Some(mounts) = self.0.get_mut("mounts").and_then(Value::as_array_mut) {
            mounts.retain(|mount| mount.as_str() != shm.as_deref());
        }
        let Some(networks) = self.0.get_mut("newNetworks").and_then(Value::as_object_mut) else { return };
        for (name, network) in networks {
            if let Some(aliases) = network.get_mut("aliases").and_then(Value::as_array_mut) {
                aliases.retain(|alias| !alias.as_str().is_some_and(|alias| id.starts_with(alias)));
            }
            if let (Some(address), Some(network)) = (addresses.get(name), network.as_object_mut()) {
                network.insert("static_ips".into(), json!(address.ips));
                network.insert("static_mac".into(), json!(address.mac));
            }
        }
    }

    /// What podman does when it ends: `always`, `on-failure:3`, …; none if nothing.
    pub(super) fn restart_policy(&self) -> Option<String> {
        let policy = self.text(RESTART).filter(|policy| *policy != "no")?;
        match self.0.get("restart_retries").and_then(Value::as_u64).filter(|retries| *retries > 0) {
            Some(retries) => Some(format!("{policy}:{retries}")),
            None => Some(policy.to_owned()),
        }
    }

    /// The two files of a checkpoint that podman makes a container from, with its volumes, of which some are `anonymous`. Whatever
    /// becomes of it, podman does not start it by itself.
    ///
    /// # Errors
    /// When it has no specification of a container.
    pub(super) fn files(&self, anonymous: &[&str]) -> Result<[(&'static str, Vec<u8>); 2], EngineError> {
        let mut record = self.0.clone();
        record.remove(RESTART);
        let volumes = record.get_mut("namedVolumes").and_then(Value::as_array_mut);
        for volume in volumes.into_iter().flatten().filter_map(Value::as_object_mut) {
            let name = volume.get("volumeName").and_then(Value::as_str).unwrap_or_default();
            if anonymous.contains(&name) {
                // it has a name now, and podman would take it for one of the user's (libpod, ContainerNamedVolume)
                volume.insert("setAnonymous".into(), true.into());
            }
        }
        let spec = self.0.get("spec").filter(|spec| spec.is_object());
        let spec = spec.ok_or_else(|| EngineError::Unreadable {
            path: Path::new(KIND).join("the container's record"),
            reason: "it has no `spec`".into(),
        })?;
        Ok([("config.dump", json!(record).to_string().into()), ("spec.dump", spec.to_string().into())])
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// The whole id of its image, and the name that the image was asked for by.
    pub(super) fn image(&self) -> (&str, &str) {
        (self.text("rootfsImageID").unwrap_or_default(), self.text("rootfsImageName").unwrap_or_default())
    }

    /// The networks that it is in.
    pub(super) fn networks(&self) -> Vec<&str> {
        let networks = self.0.get("newNetworks").and_then(Value::as_object);
        networks.into_iter().flat_map(|networks| networks.keys().map(String::as_str)).collect()
    }

    /// Where its /dev/shm is mounted on the host, and its size in bytes; none if it has none of its own.
    pub(super) fn shm(&self) -> Option<(PathBuf, u64)> {
        Some((self.text("ShmDir")?.into(), self.0.get("shmSize")?.as_u64()?))
    }

    /// The file that its log is written to, if it is one below the directory that podman keeps for it.
    pub(super) fn log(&self) -> Option<PathBuf> {
        let (log, dir) = (PathBuf::from(self.text("logPath")?), self.text("staticDir")?);
        (self.log_driver() == Some("k8s-file") && log.starts_with(dir)).then_some(log)
    }

    /// Where its output goes: `k8s-file`, `journald`, …
    pub(super) fn log_driver(&self) -> Option<&str> {
        self.text("logDriver")
    }

    /// Paths of the host that it is given (libpod: the mounts of its specification, and overlays of its own over others).
    pub(super) fn host_paths(&self) -> Vec<PathBuf> {
        let spec = self.0.get("spec").cloned().unwrap_or_default();
        let binds = config::bind_mounts(&spec, Path::new("/")).into_iter().map(|bind| bind.source);
        let overlays = self.0.get("overlayVolumes").and_then(Value::as_array).into_iter().flatten();
        let overlays = overlays.filter_map(|overlay| overlay.get("source")?.as_str()).map(PathBuf::from);
        binds.chain(overlays).collect()
    }

    /// The directory that podman keeps for it.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        self.text("staticDir").map(PathBuf::from)
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.text("name").unwrap_or_default()
    }

    /// Its whole id.
    pub(super) fn id(&self) -> &str {
        self.text("id").unwrap_or_default()
    }

    /// The id of the pod that it is in.
    pub(super) fn pod(&self) -> Option<&str> {
        self.text("pod")
    }

    /// Whether another container holds its namespace of this kind: `net`, `ipc`, …
    pub(super) fn joins(&self, kind: &str) -> bool {
        self.joined_in(kind).is_some()
    }

    /// The container whose namespace of this kind it shares.
    pub(super) fn joined_in(&self, kind: &str) -> Option<&str> {
        self.text(&format!("{kind}NsCtr"))
    }

    /// Why it cannot be made again by itself; of one `in_pod`, why not with the pod alone. It may share namespaces of these kinds with
    /// those that go along.
    pub(super) fn needs_others(&self, in_pod: bool, shared: &[&str]) -> Option<&'static str> {
        if self.pod().is_some() && !in_pod {
            return Some("it is in a pod");
        }
        let kinds = ["net", "pid", "ipc", "uts", "mount", "user", "cgroup"];
        if kinds.iter().any(|kind| self.joins(kind) && !shared.contains(kind)) {
            return Some("it shares a namespace with another container");
        }
        let some = |key: &str| self.0.get(key).and_then(Value::as_array).is_some_and(|all| !all.is_empty());
        some("Dependencies").then_some("it depends on other containers")
    }
}

/// What the record of a pod's infra container says to make it again (libpod, ContainerConfig).
impl Record {
    fn list<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a Value> {
        self.0.get(key).and_then(Value::as_array).into_iter().flatten()
    }

    /// What it runs.
    pub(super) fn command(&self) -> Vec<&str> {
        self.list("entrypoint").chain(self.list("command")).filter_map(Value::as_str).collect()
    }

    /// Whether it has volumes, which the other containers of the pod have, too.
    pub(super) fn has_volumes(&self) -> bool {
        ["namedVolumes", "userVolumes", "overlayVolumes"].iter().any(|key| self.list(key).next().is_some())
    }

    /// The networks that it is in, as `podman pod create --network` wants them for a pod, whose name is an alias anyway.
    pub(super) fn joined(&self, pod: &str) -> Vec<String> {
        let networks = self.0.get("newNetworks").and_then(Value::as_object).into_iter().flatten();
        let joined = networks.map(|(name, network)| {
            let list = |key: &str| network[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            let text = |key: &str| network[key].as_str().into_iter();
            let options = list("static_ips").map(|ip| format!("ip={ip}"));
            let options = options.chain(text("static_mac").map(|mac| format!("mac={mac}")));
            let options = options.chain(text("interface_name").map(|name| format!("interface_name={name}")));
            let options = options
                .chain(list("aliases").filter(|alias| *alias != pod).map(|alias| format!("alias={alias}")));
            format!("{name}:{}", options.collect::<Vec<_>>().join(","))
        });
        joined.collect()
    }

    /// The ports that are published, as `podman pod create --publish` wants them.
    pub(super) fn publishes(&self) -> Vec<String> {
        let publish = |mapping: &Value| {
            let number = |key: &str| mapping[key].as_u64().filter(|number| *number <= u64::from(u16::MAX));
            let (inside, outside) = (number("container_port")?, number("host_port")?);
            let more = number("range").unwrap_or(1).max(1) - 1;
            let ports = |first: u64| match more {
                0 => first.to_string(),
                _ => format!("{first}-{}", first + more),
            };
            let ip = match mapping["host_ip"].as_str().unwrap_or_default() {
                "" => String::new(),
                ip if ip.contains(':') => format!("[{ip}]:"),
                ip => format!("{ip}:"),
            };
            let protocol = mapping["protocol"].as_str().unwrap_or("tcp");
            Some(format!("{ip}{}:{}/{protocol}", ports(outside), ports(inside)))
        };
        self.list("newPortMappings").filter_map(publish).collect()
    }

    /// Its settings of the kernel: `NAME=VALUE`.
    pub(super) fn sysctls(&self) -> Vec<String> {
        let all = self.0.get("spec").and_then(|spec| spec.pointer("/linux/sysctl")?.as_object());
        let all = all.into_iter().flatten();
        all.filter_map(|(name, value)| Some(format!("{name}={}", value.as_str()?))).collect()
    }
}

/// The names of the containers that depend on one, or that it depends on, or they in turn (libpod/sqlite_state.go).
///
/// # Errors
/// When podman's data base cannot be read.
pub(super) fn group_of(graph_root: &Path, id: &str) -> Result<Vec<String>, EngineError> {
    const GROUP: &str = "WITH RECURSIVE Kin(ID) AS (SELECT ?1 UNION SELECT CASE WHEN D.ID = Kin.ID THEN D.DependencyID ELSE D.ID END \
        FROM ContainerDependency AS D JOIN Kin ON Kin.ID IN (D.ID, D.DependencyID)) \
        SELECT C.Name FROM Kin JOIN ContainerConfig AS C ON C.ID = Kin.ID WHERE C.ID <> ?1 ORDER BY C.Name";
    asked(graph_root, |data_base| {
        let mut names = data_base.prepare(GROUP)?;
        names.query_map([id], |row| row.get(0))?.collect()
    })
}

/// Asks podman's data base, which is only read.
fn asked<T>(
    graph_root: &Path,
    ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, EngineError> {
    let path = graph_root.join("db.sql");
    let opened = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let said = opened.and_then(|data_base| {
        data_base.busy_timeout(BUSY)?;
        ask(&data_base)
    });
    said.map_err(|error| EngineError::Unreadable { path, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: Value) -> Record {
        let Value::Object(record) = value else { panic!("no record: {value}") };
        Record(record)
    }

    #[test]
    fn what_podman_adds_by_itself_is_not_there_twice() {
        let mut record = record(json!({
            "id": "abcdef0123456789", "ShmDir": "/c/shm", "mounts": ["/c/shm", "/c/other"],
            "newNetworks": {
                "lab": {"aliases": ["abcdef", "web"], "interface_name": "eth0"},
                "other": {"static_ips": ["10.1.1.1"]}},
        }));
        let address = Address { ips: vec!["10.77.0.9".into()], mac: "02:00:00:00:00:09".into() };
        record.make_ready(&BTreeMap::from([("lab".into(), address)]));
        assert_eq!(record.0["mounts"], json!(["/c/other"]));
        assert_eq!(
            record.0["newNetworks"],
            json!({
                "lab": {"aliases": ["web"], "interface_name": "eth0",
                        "static_ips": ["10.77.0.9"], "static_mac": "02:00:00:00:00:09"},
                "other": {"static_ips": ["10.1.1.1"]}})
        );
        assert_eq!(record.networks(), ["lab", "other"]);
    }

    #[test]
    fn podman_does_not_start_it_before_it_may_run() {
        let always = record(json!({"restart_policy": "always", "spec": {}}));
        assert_eq!(always.restart_policy().as_deref(), Some("always"));
        let [(_, config), _] = always.files(&[]).unwrap();
        assert!(!String::from_utf8(config).unwrap().contains("always"));
        let some = record(json!({"restart_policy": "on-failure", "restart_retries": 3}));
        assert_eq!(some.restart_policy().as_deref(), Some("on-failure:3"));
        for none in [json!({}), json!({"restart_policy": ""}), json!({"restart_policy": "no"})] {
            assert_eq!(record(none).restart_policy(), None);
        }
    }

    #[test]
    fn a_volume_without_a_name_stays_one() {
        let two = record(json!({"spec": {}, "namedVolumes": [{"volumeName": "data"}, {"volumeName": "0a"}]}));
        let [(_, config), _] = two.files(&["0a"]).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let want = json!([{"volumeName": "data"}, {"volumeName": "0a", "setAnonymous": true}]);
        assert_eq!(config["namedVolumes"], want);
    }

    #[test]
    fn all_that_it_is_given_of_the_host_is_told() {
        let record = record(json!({
            "spec": {"mounts": [
                {"destination": "/a", "type": "bind", "source": "/srv/a", "options": ["rbind"]},
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/b", "source": "/etc", "options": ["ro", "rbind"]}]},
            "overlayVolumes": [{"dest": "/c", "source": "/root"}, 7],
        }));
        assert_eq!(record.host_paths(), ["/srv/a", "/etc", "/root"].map(PathBuf::from));
    }

    #[test]
    fn a_log_elsewhere_and_a_record_without_a_container_are_recognised() {
        let with_log = |driver: &str, log: &str| {
            record(json!({"logDriver": driver, "logPath": log, "staticDir": "/c/userdata"})).log()
        };
        assert_eq!(with_log("k8s-file", "/c/userdata/ctr.log"), Some("/c/userdata/ctr.log".into()));
        assert_eq!(with_log("journald", "/c/userdata/ctr.log"), None);
        assert_eq!(with_log("k8s-file", "/etc/passwd"), None);
        assert!(record(json!({})).files(&[]).is_err());
        assert_eq!(record(json!({"pod": "x"})).needs_others(false, &[]), Some("it is in a pod"));
        assert_eq!(record(json!({"pod": "", "Dependencies": null})).needs_others(false, &[]), None);
        let shares = record(json!({"netNsCtr": "a"}));
        assert_eq!(shares.needs_others(false, &["net"]), None);
        assert!(shares.needs_others(false, &["ipc"]).is_some_and(|why| why.contains("namespace")));
    }
}
