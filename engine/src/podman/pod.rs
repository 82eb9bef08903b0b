//! A pod: an infra container that holds namespaces, and the containers that share them.
//!
//! The infra container does nothing and knows nothing. So podman makes it again at the destination, with the pod, and CRIU restores the
//! others into the namespaces that it holds there. Each of them is a dump of its own; the first one *leads*: with it come the pod,
//! its network, and the shared memory that all of them have, and its word decides where the pod runs.

use super::record::Record;
use super::source::addresses;
use super::{KIND, Podman, QUESTION, is_name, understood};
use crate::container::OpenRequest;
use crate::error::EngineError;
use crate::tool;
use godwit_transfer::message::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// What a pod's name for godwit begins with: `podman:pod/NAME`.
pub(super) const SELECTOR: &str = "pod/";
/// Namespaces of the infra container's that CRIU restores another one into.
const SHAREABLE: [&str; 3] = ["ipc", "net", "uts"];
/// Where podman has the cgroups of pods, without systemd and with it.
const CGROUP_PARENTS: [&str; 2] = ["/libpod_parent", "machine.slice"];
/// What podman calls the image of an infra container that it makes itself.
const OWN_IMAGE: &str = "localhost/podman-pause:";
/// What `podman pod inspect` says of a pod, and is carried, or the same everywhere.
const CARRIED: &[&str] = &[
    "Id",
    "Name",
    "Namespace",
    "Created",
    "CreateCommand",
    "ExitPolicy",
    "State",
    "Hostname",
    "Labels",
    "CreateCgroup",
    "CgroupParent",
    "CgroupPath",
    "CreateInfra",
    "InfraContainerID",
    "InfraConfig",
    "SharedNamespaces",
    "NumContainers",
    "Containers",
    "RestartPolicy",
    "LockNumber",
];
/// The same of its infra container.
const CARRIED_OF_INFRA: &[&str] =
    &["PortBindings", "DNSServer", "DNSSearch", "DNSOption", "HostAdd", "Networks", "NetworkOptions"];

/// A pod, ready for another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pod {
    pub(super) id: String,
    pub(super) name: String,
    hostname: String,
    labels: BTreeMap<String, String>,
    share: Vec<String>,
    exit_policy: String,
    restart_policy: String,
    dns_servers: Vec<IpAddr>,
    dns_search: Vec<String>,
    dns_options: Vec<String>,
    hosts: Vec<String>,
    /// The container that holds the namespaces.
    pub(super) infra: Record,
    /// The others, the first of which leads.
    #[serde(default)]
    pub(super) members: Vec<Member>,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) name: String,
}

/// A pod at the source.
pub(super) struct Found {
    pub(super) pod: Pod,
    /// What of the pod cannot be moved.
    pub(super) blockers: Vec<Refusal>,
}

impl Podman {
    /// What `podman pod inspect` says; none if there is no such pod.
    pub(super) fn inspect_pod(&self, name: &str) -> Result<Option<Value>, EngineError> {
        if !is_name(name) || self.run(&["pod", "exists", name]).is_err() {
            return Ok(None);
        }
        let said: Value = understood("pod inspect", &self.run(&["pod", "inspect", name])?)?;
        // podman 4 shows one pod, podman 5 a list
        Ok(Some(match said {
            Value::Array(pods) => pods.into_iter().next().unwrap_or_default(),
            pod => pod,
        }))
    }

    /// Ends all that is left of a pod of this id, and keeps it. Idempotent.
    pub(super) fn stop_pod(&self, id: &str) -> Result<(), EngineError> {
        self.run(&["pod", "stop", "--ignore", "--time", "0", id]).map(drop)
    }

    /// Removes a pod of this id if nothing but its infra container is in it: the last one that goes takes it along. Idempotent. Gives
    /// whether it is gone.
    pub(super) fn remove_empty_pod(&self, id: &str) -> Result<bool, EngineError> {
        let Some(shown) = self.inspect_pod(id)? else { return Ok(true) };
        if is_empty(&shown) {
            self.remove_pod(id)?;
        }
        Ok(is_empty(&shown))
    }

    /// Removes a pod of this id with all that is in it. Idempotent.
    pub(super) fn remove_pod(&self, id: &str) -> Result<(), EngineError> {
        self.run(&["pod", "rm", "--force", "--ignore", "--time", "0", id]).map(drop)
    }
}

impl Found {
    /// Looks at a pod of this host's podman; touches nothing.
    ///
    /// # Errors
    /// When there is none, or it has no container besides the one that holds its namespaces.
    pub(super) fn look(podman: &Podman, name: &str, request: &OpenRequest) -> Result<Self, EngineError> {
        let full = format!("{KIND}:{SELECTOR}{name}");
        let shown = podman.inspect_pod(name)?.ok_or_else(|| EngineError::NotFound(full.clone()))?;
        let members = members(&shown)
            .map_err(|refusal| EngineError::Blocked { name: full.clone(), blockers: vec![refusal] })?;
        let setting = podman.setting()?;
        if setting.database != "sqlite" {
            let refusal = Refusal::new(format!("podman keeps its records in `{}`", setting.database));
            let refusal = refusal.hint("podman 5 keeps them in sqlite: `database_backend = \"sqlite\"` in containers.conf, after `podman system reset`");
            return Err(EngineError::Blocked { name: full, blockers: vec![refusal] });
        }
        let id = text(&shown, "InfraContainerID");
        let mut infra = Record::read(&setting.graph_root, id)?;
        infra.make_ready(&addresses(&podman.inspect(id)?));
        let mut blockers = unsuitable(&shown, &infra);
        if request.restart.is_some() {
            blockers.push(
                Refusal::new("only single containers can be stopped here and started there yet")
                    .hint("leave `--strategy restart` out"),
            );
        }
        let list = |pointer: &str| words(shown.pointer(pointer));
        let pod = Pod {
            id: text(&shown, "Id").into(),
            name: text(&shown, "Name").into(),
            hostname: text(&shown, "Hostname").into(),
            labels: serde_json::from_value(shown["Labels"].clone()).unwrap_or_default(),
            share: words(shown.get("SharedNamespaces")),
            exit_policy: text(&shown, "ExitPolicy").into(),
            restart_policy: text(&shown, "RestartPolicy").into(),
            dns_servers: list("/InfraConfig/DNSServer").iter().filter_map(|ip| ip.parse().ok()).collect(),
            dns_search: list("/InfraConfig/DNSSearch"),
            dns_options: list("/InfraConfig/DNSOption"),
            hosts: list("/InfraConfig/HostAdd"),
            infra,
            members,
        };
        Ok(Self { pod, blockers })
    }
}

fn text<'a>(shown: &'a Value, key: &str) -> &'a str {
    shown.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn words(list: Option<&Value>) -> Vec<String> {
    let all = list.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

/// Whether a pod has nothing but its infra container.
pub(super) fn is_empty(shown: &Value) -> bool {
    let infra = text(shown, "InfraContainerID");
    shown["Containers"].as_array().is_none_or(|all| all.iter().all(|one| text(one, "Id") == infra))
}

/// The containers of a pod besides its infra container; in the order of their names, so that the same one always leads.
fn members(shown: &Value) -> Result<Vec<Member>, Refusal> {
    let infra = text(shown, "InfraContainerID");
    if infra.is_empty() {
        return Err(Refusal::new(
            "it has no infra container (`--infra=false`): nothing holds its namespaces",
        )
        .hint("move its containers one by one, as `podman:NAME`"));
    }
    let all = shown["Containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let members: Vec<&Value> = all.iter().filter(|one| text(one, "Id") != infra).collect();
    if members.is_empty() {
        return Err(Refusal::new("it has no container besides its infra container")
            .hint("make it at the destination: there is nothing in it to move"));
    }
    let still = members.iter().filter(|one| !text(one, "State").eq_ignore_ascii_case("running"));
    let still: Vec<String> =
        still.map(|one| format!("`{}` ({})", text(one, "Name"), text(one, "State"))).collect();
    if !still.is_empty() {
        return Err(Refusal::new(format!("some of its containers do not run: {}", still.join(", ")))
            .hint("`podman rm` those that have ended for good, and start the others"));
    }
    let member = |one: &&Value| Member { id: text(one, "Id").into(), name: text(one, "Name").into() };
    let mut members: Vec<Member> = members.iter().map(member).collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(members)
}

/// What of a pod cannot be made again, or not restored into.
fn unsuitable(shown: &Value, infra: &Record) -> Vec<Refusal> {
    let mut reasons = Vec::new();
    let odd: Vec<String> = words(shown.get("SharedNamespaces"))
        .into_iter()
        .filter(|kind| !SHAREABLE.contains(&kind.as_str()))
        .collect();
    if !odd.is_empty() {
        reasons.push(
            Refusal::new(format!(
                "its containers share namespaces that CRIU cannot restore one into: {}",
                odd.join(", ")
            ))
            .hint(format!("make the pod with `--share {}`", SHAREABLE.join(","))),
        );
    }
    let parent = text(shown, "CgroupParent");
    if !(parent.is_empty() || CGROUP_PARENTS.contains(&parent)) || shown["CreateCgroup"] != true {
        reasons.push(
            Refusal::new(format!("its cgroup is not podman's own (below `{parent}`)"))
                .hint("make the pod without `--cgroup-parent`"),
        );
    }
    if shown.pointer("/InfraConfig/HostNetwork").is_some_and(|host| host == true) {
        reasons.push(
            Refusal::new("it is in the host's own network").hint("make the pod with a network of podman's"),
        );
    }
    let settings = uncarried(shown, CARRIED)
        .chain(shown.get("InfraConfig").into_iter().flat_map(|infra| uncarried(infra, CARRIED_OF_INFRA)))
        .chain(infra.has_volumes().then_some("volumes"));
    let settings: Vec<String> = settings.map(|name| format!("`{name}`")).collect();
    if !settings.is_empty() {
        reasons.push(
            Refusal::new(format!("it has settings that are not carried yet: {}", settings.join(", ")))
                .hint("give them to its container instead of the pod"),
        );
    }
    if infra.command().iter().any(|word| word.is_empty() || word.contains(' ')) {
        reasons.push(
            Refusal::new(
                "the command of its infra container has words with spaces, which podman would take apart",
            )
            .hint("make the pod with a plain `--infra-command`"),
        );
    }
    reasons
}

/// The settings that are made, and not among those that are known.
fn uncarried<'a>(shown: &'a Value, known: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let is_made = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        // namespaces of its own, or the host's user namespace: what there is without a word
        Value::String(text) => !["", "private", "host"].contains(&text.as_str()),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
    };
    let settings = shown.as_object().into_iter().flatten();
    let odd = settings.filter(move |(name, value)| !known.contains(&name.as_str()) && is_made(value));
    // it has a reason of its own
    odd.map(|(name, _)| name.as_str()).filter(|name| *name != "HostNetwork")
}

impl Pod {
    /// How the pod is called for godwit, after the engine's name.
    pub(super) fn full_name(&self) -> String {
        format!("{SELECTOR}{}", self.name)
    }

    /// The same of one of its containers: that which leads comes by the pod's own name.
    pub(super) fn name_of(&self, id: &str) -> String {
        match self.members.iter().find(|member| member.id == id).filter(|_| !self.is_led_by(id)) {
            Some(follower) => format!("{}/{}", self.full_name(), follower.name),
            None => self.full_name(),
        }
    }

    /// Whether a container leads the others.
    pub(super) fn is_led_by(&self, id: &str) -> bool {
        // a godwit that knows pods of one container only names none
        self.leader().is_none_or(|leader| leader == id)
    }

    /// The id of the container that leads.
    pub(super) fn leader(&self) -> Option<&str> {
        self.members.first().map(|member| member.id.as_str())
    }

    /// Names in it that become arguments.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let members = self.members.iter().map(|member| member.name.as_str());
        [self.name.as_str(), self.infra.name()].into_iter().chain(self.infra.networks()).chain(members)
    }

    /// The name of its infra container; none if podman has made it up of the pod's id, which is another one elsewhere.
    pub(super) fn infra_name(&self) -> Option<&str> {
        let made_up = self.infra.name().strip_suffix("-infra").is_some_and(|id| self.id.starts_with(id));
        (!made_up).then(|| self.infra.name())
    }

    /// The image of its infra container, by id and name; none if that is podman's own, which every podman makes itself.
    pub(super) fn image(&self) -> Option<(&str, &str)> {
        let (id, name) = self.infra.image();
        (!name.is_empty() && !name.starts_with(OWN_IMAGE)).then_some((id, name))
    }

    /// Why its containers cannot be restored one after the other: System V objects are in the dump of each of them.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub(super) fn shared_objects(&self, podman: &Podman) -> Result<Option<Refusal>, EngineError> {
        let Some(leader) = self.leader().filter(|_| self.share.iter().any(|kind| kind == "ipc")) else {
            return Ok(None);
        };
        let pid = podman.inspect(leader)?.pointer("/State/Pid").and_then(Value::as_i64).unwrap_or_default();
        let words = ["--target", &pid.to_string(), "--ipc", "cat"].map(str::to_owned);
        let tables = ["shm", "msg", "sem"].map(|kind| format!("/proc/sysvipc/{kind}"));
        let said = tool::run(Path::new("nsenter"), &[words.as_slice(), &tables].concat(), QUESTION)?;
        // a line above each table says what is in it
        Ok((said.lines().count() > tables.len()).then(|| {
            Refusal::new("its containers share System V objects (`ipcs` shows them)")
                .hint("end what has made them, or make the pod with `--share net,uts`")
        }))
    }

    /// The words of `podman pod create`. `note` is a file that names who has made it, for [`Pod::was_made_for`].
    pub(super) fn create(&self, note: &Path) -> Vec<String> {
        let infra = &self.infra;
        let mut args = vec!["pod".to_owned(), "create".into()];
        let mut add = |option: &str, value: &str| args.push(format!("--{option}={value}"));
        add("name", &self.name);
        if let Some(name) = self.infra_name() {
            add("infra-name", name);
        }
        add("share", &self.share.join(","));
        add("pod-id-file", &note.to_string_lossy());
        let some = [
            ("hostname", &self.hostname),
            ("exit-policy", &self.exit_policy),
            ("restart", &self.restart_policy),
        ];
        some.iter().filter(|(_, value)| !value.is_empty()).for_each(|(option, value)| add(option, value));
        self.labels.iter().for_each(|(key, value)| add("label", &format!("{key}={value}")));
        if let Some((_, image)) = self.image() {
            add("infra-image", image);
            add("infra-command", &infra.command().join(" "));
        }
        let networks = infra.joined(&self.name);
        match networks.is_empty() {
            true => add("network", "none"),
            false => networks.iter().for_each(|network| add("network", network)),
        }
        if let Some((_, bytes)) = infra.shm() {
            add("shm-size", &format!("{bytes}b"));
        }
        infra.sysctls().iter().for_each(|sysctl| add("sysctl", sysctl));
        infra.publishes().iter().for_each(|port| add("publish", port));
        self.dns_servers.iter().for_each(|server| add("dns", &server.to_string()));
        self.dns_search.iter().for_each(|domain| add("dns-search", domain));
        self.dns_options.iter().for_each(|option| add("dns-option", option));
        self.hosts.iter().for_each(|host| add("add-host", host));
        args
    }
}

/// Whether a pod as podman shows it was made with this note.
pub(super) fn was_made_for(shown: &Value, note: &Path) -> bool {
    let wanted = format!("--pod-id-file={}", note.display());
    words(shown.get("CreateCommand")).contains(&wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// As podman 5.4 shows one.
    fn shown() -> Value {
        json!({
            "Id": ID, "Name": "shop", "ExitPolicy": "continue", "State": "Running", "Hostname": "", "Labels": {"team": "blue"},
            "CreateCommand": ["podman", "pod", "create", "--name=shop", "--pod-id-file=/m/1/pod-id"],
            "CreateCgroup": true, "CgroupParent": "/libpod_parent", "CreateInfra": true, "InfraContainerID": "i",
            "InfraConfig": {"PortBindings": {}, "HostNetwork": false, "StaticIP": "", "DNSServer": ["10.0.0.1"],
                "Networks": ["lab"], "pid_ns": "private", "userns": "host", "uts_ns": "private"},
            "SharedNamespaces": ["net", "uts", "ipc"], "NumContainers": 2, "LockNumber": 3,
            "Containers": [{"Id": "i", "Name": "0123456789ab-infra", "State": "running"},
                {"Id": "w", "Name": "web", "State": "running"}],
        })
    }

    fn infra(more: Value) -> Record {
        let mut record = json!({
            "id": "i", "name": "0123456789ab-infra", "rootfsImageID": ID, "rootfsImageName": "localhost/redis:test",
            "entrypoint": ["tail", "-f", "/dev/null"], "ShmDir": "/i/shm", "shmSize": 65536,
            "newNetworks": {"lab": {"static_ips": ["10.77.0.9"], "static_mac": "02:00:00:00:00:09", "interface_name": "eth0",
                "aliases": ["shop", "front"]}},
            "newPortMappings": [{"host_ip": "::1", "host_port": 80, "container_port": 8080, "range": 2, "protocol": "tcp"},
                {"host_port": 53, "container_port": 53, "protocol": "udp"}],
            "spec": {"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}}},
        });
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(record).unwrap()
    }

    fn pod(infra: Record) -> Pod {
        Pod {
            id: ID.into(),
            name: "shop".into(),
            hostname: String::new(),
            labels: BTreeMap::from([("team".into(), "blue".into())]),
            share: vec!["net".into(), "ipc".into()],
            exit_policy: "continue".into(),
            restart_policy: String::new(),
            dns_servers: vec!["10.0.0.1".parse().unwrap()],
            dns_search: vec![],
            dns_options: vec![],
            hosts: vec!["a:10.0.0.9".into()],
            infra,
            members: vec![],
        }
    }

    #[test]
    fn a_pod_is_made_again_as_it_was() {
        let words = pod(infra(json!({}))).create(Path::new("/m/1/pod-id"));
        assert_eq!(
            words,
            [
                "pod",
                "create",
                "--name=shop",
                "--share=net,ipc",
                "--pod-id-file=/m/1/pod-id",
                "--exit-policy=continue",
                "--label=team=blue",
                "--infra-image=localhost/redis:test",
                "--infra-command=tail -f /dev/null",
                "--network=lab:ip=10.77.0.9,mac=02:00:00:00:00:09,interface_name=eth0,alias=front",
                "--shm-size=65536b",
                "--sysctl=net.ipv4.ip_forward=1",
                "--publish=[::1]:80-81:8080-8081/tcp",
                "--publish=53:53/udp",
                "--dns=10.0.0.1",
                "--add-host=a:10.0.0.9",
            ]
        );
        // podman's own name and image are podman's there, too; those of the user's are kept
        let own =
            json!({"name": "front", "rootfsImageName": "localhost/podman-pause:5.4.2-0", "newNetworks": {}});
        let words = pod(infra(own)).create(Path::new("/x"));
        assert!(words.contains(&"--infra-name=front".into()) && words.contains(&"--network=none".into()));
        assert!(!words.iter().any(|word| word.starts_with("--infra-image")), "{words:?}");
    }

    #[test]
    fn all_that_run_in_a_pod_move_and_the_same_one_leads() {
        let with = |containers: Value| {
            let mut shown = shown();
            shown["Containers"] = containers;
            let members = members(&shown).map_err(|refusal| refusal.reason)?;
            Ok::<_, String>(members.into_iter().map(|member| member.id).collect::<Vec<_>>())
        };
        let one = |id: &str, state: &str| json!({"Id": id, "Name": format!("name-{id}"), "State": state});
        assert_eq!(with(json!([{"Id": "i"}, one("w", "running")])).unwrap(), ["w"]);
        assert_eq!(with(json!([one("b", "running"), {"Id": "i"}, one("a", "Running")])).unwrap(), ["a", "b"]);
        assert!(with(json!([{"Id": "i"}])).unwrap_err().contains("no container besides"));
        let ended = with(json!([{"Id": "i"}, one("a", "running"), one("b", "exited")])).unwrap_err();
        assert!(ended.contains("do not run: `name-b` (exited)"), "{ended}");
        let mut shown = shown();
        shown["InfraContainerID"] = "".into();
        assert!(members(&shown).unwrap_err().reason.contains("no infra container"));
    }

    #[test]
    fn who_follows_has_a_name_of_its_own() {
        let member = |id: &str| Member { id: id.into(), name: format!("name-{id}") };
        let pod = Pod { members: vec![member("a"), member("b")], ..pod(infra(json!({}))) };
        assert_eq!((pod.name_of("a"), pod.name_of("b")), ("pod/shop".into(), "pod/shop/name-b".into()));
        assert!(pod.is_led_by("a") && !pod.is_led_by("b"));
        let of_one = Pod { members: vec![], ..pod };
        assert!(of_one.is_led_by("w") && of_one.name_of("w") == "pod/shop");
    }

    #[test]
    fn what_is_not_carried_is_refused() {
        let none = |_: &mut Value| {};
        let reasons = |change: fn(&mut Value), more: Value| {
            let mut shown = shown();
            change(&mut shown);
            unsuitable(&shown, &infra(more)).into_iter().map(|refusal| refusal.reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(none, json!({})), [""; 0]);
        for (change, more, words) in [
            (
                (|pod| pod["SharedNamespaces"] = json!(["net", "pid"])) as fn(&mut Value),
                json!({}),
                "into: pid",
            ),
            (|pod| pod["CgroupParent"] = "/mine".into(), json!({}), "below `/mine`"),
            (|pod| pod["CreateCgroup"] = false.into(), json!({}), "not podman's own"),
            (|pod| pod["InfraConfig"]["HostNetwork"] = true.into(), json!({}), "the host's own network"),
            (|pod| pod["cpu_quota"] = 100_000.into(), json!({}), "`cpu_quota`"),
            (|pod| pod["InfraConfig"]["NoManageHosts"] = true.into(), json!({}), "`NoManageHosts`"),
            (none, json!({"userVolumes": ["/data"]}), "`volumes`"),
            (none, json!({"entrypoint": ["sh", "-c", "sleep 9"]}), "words with spaces"),
        ] {
            let reasons = reasons(change, more);
            assert!(reasons.len() == 1 && reasons[0].contains(words), "{words}: {reasons:?}");
        }
    }

    #[test]
    fn who_has_made_a_pod_is_known() {
        assert!(was_made_for(&shown(), Path::new("/m/1/pod-id")));
        assert!(!was_made_for(&shown(), Path::new("/m/2/pod-id")));
        assert!(!was_made_for(&json!({}), Path::new("/m/1/pod-id")));
    }
}
