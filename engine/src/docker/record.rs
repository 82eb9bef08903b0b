//! What docker says of a container, of which docker makes it again elsewhere: `Config` and `HostConfig` as they are, and its
//! networks with the addresses that it has.

use super::sharing::{Company, MODES, named_by};
use super::understood;
use crate::container::OpenRequest;
use crate::error::EngineError;
use crate::published::Published;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Network modes that are no networks.
const NO_NETWORKS: [&str; 4] = ["none", "host", "default", DEFAULT_NETWORK];
/// The network that docker puts a container into that names none.
const DEFAULT_NETWORK: &str = "bridge";

/// A container's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    config: Map<String, Value>,
    host: Map<String, Value>,
    /// By name, as a new container is asked to be connected.
    networks: Map<String, Value>,
    /// docker's default network is one of them, which nobody can ask for an address in.
    #[serde(default)]
    has_default: bool,
    /// The whole id of its image: `sha256:…`.
    image: String,
}

impl Record {
    /// Takes it from what docker shows of a container.
    ///
    /// # Errors
    /// When something is missing in it.
    pub(super) fn of(shown: &Value) -> Result<Self, EngineError> {
        let part = |pointer: &str| shown.pointer(pointer).cloned().unwrap_or_default();
        let id = shown["Id"].as_str().unwrap_or_default();
        let networks: Map<String, Value> = understood("networks", part("/NetworkSettings/Networks"))?;
        let has_default = networks.contains_key(DEFAULT_NETWORK);
        let networks = networks.into_iter().filter(|(name, _)| !NO_NETWORKS.contains(&name.as_str()));
        Ok(Self {
            config: understood("Config", part("/Config"))?,
            host: understood("HostConfig", part("/HostConfig"))?,
            networks: networks.map(|(name, network)| (name, connection(&network, id))).collect(),
            has_default,
            image: understood("Image", part("/Image"))?,
        })
    }

    /// What to ask docker for: a container of this image that the runtime `runtime` runs. Whatever becomes of it, docker does not
    /// start it by itself. It shares the namespaces of the container `owner` that it shared of another one.
    pub(super) fn to_create(&self, image: &str, runtime: &str, owner: Option<&str>) -> Value {
        let mut body = self.config.clone();
        // an older word for what the networks say
        body.remove("MacAddress");
        if is_anothers(self.network_mode()) {
            // the owner's, and the image's: docker takes no wishes for a network of another container (moby: runconfig, validateNetContainerMode)
            ["Hostname", "Domainname", "ExposedPorts"].iter().for_each(|key| drop(body.remove(*key)));
        }
        body.insert("Image".into(), image.into());
        let mut host = self.host.clone();
        host.insert("Runtime".into(), runtime.into());
        host.insert("RestartPolicy".into(), no_restart());
        if !self.networks.is_empty() && !self.networks.contains_key(self.network_mode()) {
            // the source may have called the network by its id, which is another one here
            host.insert("NetworkMode".into(), self.networks.keys().next().cloned().into());
        }
        if let Some(owner) = owner {
            for (key, _) in MODES.iter().filter(|(key, _)| is_anothers(self.host(key))) {
                host.insert((*key).into(), format!("container:{owner}").into());
            }
        }
        body.insert("HostConfig".into(), host.into());
        body.insert("NetworkingConfig".into(), json!({"EndpointsConfig": self.networks}));
        body.into()
    }

    /// The whole id of its image, and the name that the image was asked for by.
    pub(super) fn image(&self) -> (&str, &str) {
        (&self.image, self.config.get("Image").and_then(Value::as_str).unwrap_or_default())
    }

    /// The networks that it is in.
    pub(super) fn networks(&self) -> impl Iterator<Item = &str> {
        self.networks.keys().map(String::as_str)
    }

    /// Its IPv4 address in each of them.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Option<IpAddr>> {
        let address = |network: &Value| network.pointer("/IPAMConfig/IPv4Address")?.as_str()?.parse().ok();
        self.networks.values().map(address)
    }

    /// What docker does when it ends; none if nothing.
    pub(super) fn restart_policy(&self) -> Option<&Value> {
        let policy = self.host.get("RestartPolicy")?;
        policy["Name"].as_str().filter(|name| !matches!(*name, "" | "no")).map(|_| policy)
    }

    /// What of the host is to lead to it.
    pub(super) fn published(&self) -> Vec<Published> {
        Published::of_map(self.host.get("PortBindings"))
    }

    /// The containers whose namespaces it shares.
    pub(super) fn shared(&self) -> impl Iterator<Item = &str> {
        MODES.iter().filter_map(|(key, _)| named_by(self.host(key)))
    }

    pub(super) fn network_mode(&self) -> &str {
        self.host("NetworkMode")
    }

    /// A text of `HostConfig`.
    fn host(&self, key: &str) -> &str {
        self.host.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &Value> {
        self.host.get(key).and_then(Value::as_array).into_iter().flatten()
    }

    /// Whether its standard streams go to a file that docker keeps for it.
    pub(super) fn has_log_file(&self) -> bool {
        self.log_driver() == "json-file"
    }

    pub(super) fn log_driver(&self) -> &str {
        self.host.get("LogConfig").and_then(|log| log["Type"].as_str()).unwrap_or_default()
    }

    /// The volumes and paths of the host that it was asked to be given: `SOURCE:DESTINATION[:OPTIONS]`, or in more words.
    fn given(&self) -> impl Iterator<Item = &str> {
        let binds = self.all("Binds").filter_map(|bind| bind.as_str()?.split(':').next());
        let mounts = self.all("Mounts").filter(|mount| mount["Type"] == "bind" || mount["Type"] == "volume");
        binds.chain(mounts.filter_map(|mount| mount["Source"].as_str())).filter(|given| !given.is_empty())
    }

    /// Paths of the host that it is given.
    pub(super) fn host_paths(&self) -> Vec<PathBuf> {
        let devices = self.all("Devices").filter_map(|device| device["PathOnHost"].as_str());
        let log = self.host.get("LogConfig").and_then(|log| log["Config"].as_object()).into_iter();
        // options of log drivers lead to sockets and keys of the host
        let log = log.flat_map(Map::values).filter_map(Value::as_str).filter(|value| value.starts_with('/'));
        self.given()
            .filter(|given| given.starts_with('/'))
            .chain(devices)
            .chain(log)
            .map(PathBuf::from)
            .collect()
    }

    /// The volumes that have a name. All others docker makes with the container.
    pub(super) fn named_volumes(&self) -> BTreeSet<&str> {
        self.given().filter(|given| !given.starts_with('/')).collect()
    }

    /// Whether it is in the network where docker alone gives out addresses.
    pub(super) fn is_in_default_network(&self) -> bool {
        self.has_default || matches!(self.network_mode(), "default" | "bridge")
    }

    /// Why it cannot be made again by itself, and what to do about it.
    pub(super) fn obstacles(&self, request: &OpenRequest, company: &Company) -> Vec<(String, &'static str)> {
        let (own, default) = (self.dependences(company), self.default_network(request));
        let dumped = if request.restart.is_none() { self.undumpable() } else { Vec::new() };
        dumped.into_iter().chain(own).chain(default).collect()
    }

    /// Why it could not keep its address.
    fn default_network(&self, request: &OpenRequest) -> Option<(String, &'static str)> {
        if self.is_in_default_network() && !self.networks.is_empty() {
            let what =
                "it is in docker's default network besides another: the two cannot be made again together";
            return Some((what.into(), "leave the default one: `docker network disconnect bridge NAME`"));
        }
        let hint = match (self.is_in_default_network(), request.restart.is_some(), request.ip_change) {
            (false, ..) | (_, true, true) => return None,
            (_, true, false) => "`--ip-change allow` if clients may have to find it at another one",
            (_, false, _) => {
                "connect it to a network with a subnet of its own, on both hosts: `docker network create --subnet …`; \
                              or stop it here and start it there: `--strategy restart --ip-change allow`"
            }
        };
        let what = "it is in docker's default network, where nobody can choose an address: it could not keep its own";
        Some((what.into(), hint))
    }

    /// What no restore can make again.
    fn undumpable(&self) -> Vec<(String, &'static str)> {
        let mut obstacles = Vec::new();
        let mut add = |what: String, hint| obstacles.push((what, hint));
        let is = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
        if is(&self.host, "Privileged") {
            add(
                "it is privileged: it holds the source's devices".into(),
                "start it without `--privileged`, with the capabilities that it needs (`--cap-add`)",
            );
        }
        if is(&self.config, "Tty") {
            add("it has a terminal".into(), "start it without `-t`");
        }
        for (key, flag) in [("PidMode", "--pid"), ("UTSMode", "--uts"), ("UsernsMode", "--userns")] {
            if !self.host(key).is_empty() && !is_anothers(self.host(key)) {
                add(
                    format!("it shares a namespace (`{flag} {}`)", self.host(key)),
                    "give it namespaces of its own",
                );
            }
        }
        if !matches!(self.host("IpcMode"), "" | "private" | "none") && !is_anothers(self.host("IpcMode")) {
            add(
                format!("it shares a namespace (`--ipc {}`)", self.host("IpcMode")),
                "start it with `--ipc private`",
            );
        }
        obstacles
    }

    /// What of it is another container's, or only this host's.
    fn dependences(&self, company: &Company) -> Vec<(String, &'static str)> {
        let mut obstacles = Vec::new();
        let mut add = |what: String, hint| obstacles.push((what, hint));
        if is_anothers(self.network_mode()) && company.owner.is_none() {
            add(
                "it shares the network of another container".into(),
                "`godwit migrate --together` takes all that share it",
            );
        }
        for (key, flag) in [("PidMode", "--pid"), ("IpcMode", "--ipc")] {
            if is_anothers(self.host(key)) && !(key == "PidMode" && company.owner.is_some()) {
                add(
                    format!("it shares a namespace (`{flag} {}`)", self.host(key)),
                    "only containers that stand alone can be moved yet",
                );
            }
        }
        for (key, flag) in [("Links", "--link"), ("VolumesFrom", "--volumes-from")] {
            if self.all(key).next().is_some() {
                add(
                    format!("it depends on other containers (`{flag}`)"),
                    "use a network and named volumes instead",
                );
            }
        }
        if self
            .all("Mounts")
            .any(|mount| mount.pointer("/VolumeOptions/Subpath").is_some_and(|path| path != ""))
        {
            add("it is given a part of a volume (`volume-subpath`)".into(), "give it the whole volume");
        }
        if self.all("DeviceRequests").next().is_some() {
            add("it is given devices by a driver (`--gpus`)".into(), "start it without");
        }
        obstacles
    }
}

/// Whether a mode means a namespace of another container.
fn is_anothers(mode: &str) -> bool {
    named_by(mode).is_some()
}

/// No restart by docker.
pub(super) fn no_restart() -> Value {
    json!({"Name": "no"})
}

/// How a container is connected so that it has the same addresses again.
fn connection(network: &Value, id: &str) -> Value {
    let text = |key: &str| network[key].as_str().filter(|text| !text.is_empty());
    let mut addresses = network["IPAMConfig"].as_object().cloned().unwrap_or_default();
    for (key, value) in [("IPv4Address", text("IPAddress")), ("IPv6Address", text("GlobalIPv6Address"))] {
        if let Some(value) = value {
            addresses.insert(key.into(), value.into());
        }
    }
    let aliases = network["Aliases"].as_array().into_iter().flatten().filter_map(Value::as_str);
    // docker adds the short id by itself
    let aliases: Vec<&str> = aliases.filter(|alias| !id.starts_with(alias)).collect();
    let aliases = Some(aliases).filter(|aliases| !aliases.is_empty());
    json!({
        "IPAMConfig": addresses, "MacAddress": text("MacAddress"), "Aliases": aliases,
        "DriverOpts": network["DriverOpts"], "Links": network["Links"],
    })
}

#[cfg(test)]
mod tests {
    use super::super::sharing::Owner;
    use super::*;
    use std::time::Duration;

    fn shown(change: impl FnOnce(&mut Value)) -> Record {
        let mut shown = json!({
            "Id": "abcdef0123456789", "Image": "sha256:00",
            "Config": {"Hostname": "abcdef012345", "Image": "redis:7", "MacAddress": "02:00:00:00:00:01", "Env": ["A=b"]},
            "HostConfig": {
                "NetworkMode": "lab", "Runtime": "runc", "IpcMode": "private", "Memory": 5,
                "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
                "Binds": ["data:/data", "/srv/ro:/ro:ro"], "Mounts": [{"Type": "volume", "Source": "more", "Target": "/more"},
                    {"Type": "volume", "Target": "/none"}, {"Type": "tmpfs", "Target": "/t"}],
                "Devices": [{"PathOnHost": "/dev/fuse"}], "LogConfig": {"Type": "json-file", "Config": {"tag": "x"}}},
            "NetworkSettings": {"Networks": {"lab": {
                "IPAMConfig": null, "IPAddress": "10.77.0.9", "GlobalIPv6Address": "", "MacAddress": "02:00:00:00:00:09",
                "Aliases": ["web", "abcdef012345"], "Links": null, "DriverOpts": null, "NetworkID": "77"}}},
        });
        change(&mut shown);
        Record::of(&shown).unwrap()
    }

    #[test]
    fn what_is_asked_for_is_what_it_was_with_its_addresses() {
        let asked = shown(|_| {}).to_create("redis:7", "godwit", None);
        assert_eq!((&asked["Hostname"], &asked["Env"]), (&json!("abcdef012345"), &json!(["A=b"])));
        assert_eq!((asked.get("MacAddress"), &asked["HostConfig"]["Memory"]), (None, &json!(5)));
        assert_eq!(asked["HostConfig"]["Runtime"], "godwit");
        assert_eq!(
            asked["HostConfig"]["RestartPolicy"],
            json!({"Name": "no"}),
            "docker starts nothing before Go"
        );
        assert_eq!(
            asked["NetworkingConfig"]["EndpointsConfig"],
            json!({"lab": {"IPAMConfig": {"IPv4Address": "10.77.0.9"}, "MacAddress": "02:00:00:00:00:09",
                "Aliases": ["web"], "Links": null, "DriverOpts": null}})
        );
        let by_id = shown(|shown| shown["HostConfig"]["NetworkMode"] = "7700".into())
            .to_create("redis:7", "godwit", None);
        assert_eq!(by_id["HostConfig"]["NetworkMode"], "lab");
        let none = shown(|shown| {
            shown["HostConfig"]["NetworkMode"] = "none".into();
            shown["NetworkSettings"]["Networks"] = json!({"none": {"IPAddress": ""}});
        });
        let none = none.to_create("redis:7", "godwit", None);
        assert_eq!(
            (&none["HostConfig"]["NetworkMode"], &none["NetworkingConfig"]["EndpointsConfig"]),
            (&json!("none"), &json!({}))
        );
    }

    #[test]
    fn who_shares_a_network_is_asked_for_with_the_owner_there_and_without_what_is_the_owners() {
        let shares = shown(|shown| {
            shown["HostConfig"]["NetworkMode"] = "container:old".into();
            shown["Config"]["ExposedPorts"] = json!({"6379/tcp": {}});
            shown["NetworkSettings"]["Networks"] = json!({});
        });
        assert_eq!(shares.shared().collect::<Vec<_>>(), ["old"]);
        let asked = shares.to_create("redis:7", "godwit", Some("new"));
        assert_eq!(
            (&asked["HostConfig"]["NetworkMode"], &asked["HostConfig"]["IpcMode"]),
            (&json!("container:new"), &json!("private"))
        );
        assert_eq!((asked.get("Hostname"), asked.get("ExposedPorts")), (None, None));
        assert_eq!(asked["Env"], json!(["A=b"]));
    }

    #[test]
    fn what_it_is_given_is_told() {
        let record = shown(|_| {});
        assert_eq!(record.named_volumes(), BTreeSet::from(["data", "more"]));
        assert_eq!(record.host_paths(), ["/srv/ro", "/dev/fuse"].map(PathBuf::from));
        assert_eq!(record.restart_policy().unwrap()["MaximumRetryCount"], 3);
        assert_eq!(
            shown(|shown| shown["HostConfig"]["RestartPolicy"]["Name"] = "no".into()).restart_policy(),
            None
        );
        assert!(record.has_log_file());
    }

    #[test]
    fn what_cannot_stand_alone_is_refused() {
        let alive = OpenRequest::default();
        assert_eq!(shown(|_| {}).obstacles(&alive, &Company::default()), []);
        for (pointer, value, words) in [
            ("/HostConfig/NetworkMode", json!("bridge"), "default network"),
            ("/HostConfig/NetworkMode", json!("container:x"), "network of another container"),
            ("/HostConfig/IpcMode", json!("shareable"), "--ipc shareable"),
            ("/HostConfig/Runtime", json!("runc"), ""),
        ] {
            let record = shown(|shown| *shown.pointer_mut(pointer).unwrap() = value);
            let told: String =
                record.obstacles(&alive, &Company::default()).into_iter().map(|(what, _)| what).collect();
            assert!(told.contains(words) && told.is_empty() == words.is_empty(), "{pointer}: {told}");
        }
        for (key, value, words) in [
            ("Privileged", json!(true), "privileged"),
            ("PidMode", json!("host"), "--pid host"),
            ("Links", json!(["/db:/web/db"]), "--link"),
            ("VolumesFrom", json!(["db"]), "--volumes-from"),
            ("DeviceRequests", json!([{}]), "--gpus"),
        ] {
            let record = shown(|shown| shown["HostConfig"][key] = value);
            assert!(record.obstacles(&alive, &Company::default()).remove(0).0.contains(words), "{key}");
        }
        let owner = Owner { id: "x".into(), name: "x".into() };
        let company = Company { owner: Some(owner), ..Company::default() };
        let follows = shown(|shown| shown["HostConfig"]["NetworkMode"] = "container:x".into());
        assert_eq!(follows.obstacles(&alive, &company), []);
        let in_pids = shown(|shown| shown["HostConfig"]["PidMode"] = "container:x".into());
        assert_eq!(in_pids.obstacles(&alive, &company), []);
        assert!(in_pids.obstacles(&alive, &Company::default())[0].0.contains("--pid container:x"));
        let in_ipc = shown(|shown| shown["HostConfig"]["IpcMode"] = "container:x".into());
        assert!(in_ipc.obstacles(&alive, &company)[0].0.contains("--ipc container:x"));
        let tty = shown(|shown| shown["Config"]["Tty"] = true.into());
        assert!(tty.obstacles(&alive, &Company::default())[0].0.contains("terminal"));
    }

    #[test]
    fn what_is_started_again_needs_nothing_that_criu_carries() {
        let (some, more) = (Some(Duration::from_secs(10)), OpenRequest::default());
        let started = OpenRequest { restart: some, ..more.clone() };
        let elsewhere = OpenRequest { ip_change: true, ..started.clone() };
        for (key, value, stays) in [
            ("Privileged", json!(true), false),
            ("PidMode", json!("host"), false),
            ("IpcMode", json!("shareable"), false),
            ("PidMode", json!("container:x"), true),
            ("IpcMode", json!("container:x"), true),
            ("VolumesFrom", json!(["db"]), true),
        ] {
            let record = shown(|shown| shown["HostConfig"][key] = value);
            assert_eq!(record.obstacles(&more, &Company::default()).len(), 1, "{key}");
            assert_eq!(record.obstacles(&started, &Company::default()).len(), usize::from(stays), "{key}");
        }
        let in_bridge = json!({"bridge": {"IPAddress": "172.17.0.2"}});
        let default = shown(|shown| {
            shown["HostConfig"]["NetworkMode"] = "bridge".into();
            shown["NetworkSettings"]["Networks"] = in_bridge.clone();
        });
        let hints = |request: &OpenRequest| {
            default
                .obstacles(request, &Company::default())
                .into_iter()
                .map(|(_, hint)| hint)
                .collect::<Vec<_>>()
        };
        assert!(hints(&OpenRequest { ip_change: true, ..more })[0].contains("--strategy restart"));
        assert!(hints(&started)[0].contains("`--ip-change allow`"));
        assert_eq!(hints(&elsewhere), [""; 0]);
        let besides = shown(|shown| {
            shown["NetworkSettings"]["Networks"]["bridge"] = in_bridge["bridge"].clone();
        });
        assert!(
            besides.obstacles(&elsewhere, &Company::default())[0]
                .1
                .contains("docker network disconnect bridge")
        );
    }
}
