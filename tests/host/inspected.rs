//! What an engine says of the container `web`, and what of that differs by nature: docs/engines.md has the lists.

use crate::hosts::Hosts;
use serde_json::Value;

const DIFFERS_WITH_DOCKER: [&str; 16] = [
    "/Id",
    "/Created",
    "/State/Pid",
    "/State/StartedAt",
    "/State/Health",
    "/HostConfig/Runtime",
    "/GraphDriver/Data",
    "/HostnamePath",
    "/HostsPath",
    "/LogPath",
    "/ResolvConfPath",
    "/NetworkSettings/SandboxID",
    "/NetworkSettings/SandboxKey",
    "/NetworkSettings/Networks/testbed/DNSNames",
    "/NetworkSettings/Networks/testbed/EndpointID",
    "/NetworkSettings/Networks/testbed/NetworkID",
];

/// What `podman inspect` may say otherwise after a move (docs/engines.md).
pub const DIFFERS_WITH_PODMAN: [&str; 11] = [
    "/Created",
    "/State/Pid",
    "/State/ConmonPid",
    "/State/StartedAt",
    "/GraphDriver/Data/UpperDir",
    "/GraphDriver/Data/WorkDir",
    "/GraphDriver/Data/MergedDir",
    "/GraphDriver/Data/LowerDir",
    "/NetworkSettings/SandboxKey",
    "/NetworkSettings/Networks/testbed/Aliases",
    "/lockNumber",
];

/// All that the engine of a host says.
#[track_caller]
pub fn inspected(hosts: &dyn Hosts, engine: &str, host: &str) -> Value {
    let text = hosts.sh(host, &format!("{engine} container inspect web"));
    let mut all: Vec<Value> = serde_json::from_str(&text).unwrap();
    all.remove(0)
}

/// What docker says, without what differs by nature.
#[track_caller]
pub fn same_with_docker(mut shown: Value) -> Value {
    for pointer in DIFFERS_WITH_DOCKER {
        let Some(value) = shown.pointer_mut(pointer) else { panic!("{pointer} is not there: {shown}") };
        *value = Value::Null;
    }
    let mounts = shown["Mounts"].as_array_mut().unwrap();
    for mount in mounts.iter_mut().filter(|mount| mount["Destination"] == "/anonymous") {
        (mount["Name"], mount["Source"]) = (Value::Null, Value::Null);
    }
    mounts.sort_by_key(|mount| mount["Destination"].to_string());
    shown
}

/// What podman says, without what differs by nature.
pub fn same_with_podman(mut shown: Value) -> Value {
    for pointer in DIFFERS_WITH_PODMAN {
        if let Some(value) = shown.pointer_mut(pointer) {
            *value = Value::Null;
        }
    }
    shown
}

/// Where two of them differ, and how.
pub fn difference(at: &str, one: &Value, other: &Value) -> Vec<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => one
            .keys()
            .chain(other.keys().filter(|key| !one.contains_key(*key)))
            .flat_map(|key| {
                let value = |of: &serde_json::Map<String, Value>| of.get(key).cloned().unwrap_or_default();
                difference(&format!("{at}/{key}"), &value(one), &value(other))
            })
            .collect(),
        _ if one == other => Vec::new(),
        _ => vec![format!("{at}: {one} became {other}")],
    }
}
