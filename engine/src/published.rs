//! Published ports: addresses of the host that lead to a container. The host stays where it is, so that they change when the
//! container moves.

use crate::obstacles::ports;
use godwit_transfer::message::Refusal;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Ports that are looked at, at most: what they are is a peer's word.
const MOST: usize = 10_000;

/// Ports of the host, one after the other, that lead to a container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// Where the first of them is.
    address: SocketAddr,
    /// How many they are.
    count: u16,
    /// `tcp`, `udp`, `sctp`, or some of them with commas between.
    protocol: String,
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)?;
        if self.count > 1 {
            write!(f, "-{}", self.address.port().saturating_add(self.count - 1))?;
        }
        write!(f, "/{}", self.protocol)
    }
}

fn address(ip: Option<&str>, port: u16) -> SocketAddr {
    let ip: Option<IpAddr> = ip.and_then(|ip| ip.parse().ok());
    SocketAddr::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port)
}

impl Published {
    /// As podman's record of a container has it (libnetwork/types, PortMapping).
    pub(crate) fn of_mapping(mapping: &Value) -> Option<Self> {
        let number = |key: &str| u16::try_from(mapping[key].as_u64()?).ok();
        Some(Self {
            address: address(mapping["host_ip"].as_str(), number("host_port")?),
            count: number("range").unwrap_or(1).max(1),
            protocol: mapping["protocol"].as_str().unwrap_or("tcp").to_owned(),
        })
    }

    /// As docker shows them: `{"6379/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}` (moby, nat.PortMap).
    pub(crate) fn of_map(map: Option<&Value>) -> Vec<Self> {
        let all = map.and_then(Value::as_object).into_iter().flatten();
        let published = all.flat_map(|(port, places)| {
            let protocol = port.split_once('/').map_or("tcp", |(_, protocol)| protocol);
            places.as_array().into_iter().flatten().filter_map(move |place| {
                let port = place["HostPort"].as_str()?.parse().ok()?;
                Some(Self {
                    address: address(place["HostIp"].as_str(), port),
                    count: 1,
                    protocol: protocol.into(),
                })
            })
        });
        published.collect()
    }

    /// Every address that TCP connections come to.
    fn tcp(&self) -> impl Iterator<Item = SocketAddr> {
        let (ip, first) = (self.address.ip(), self.address.port());
        let is_tcp = self.protocol.split(',').any(|protocol| protocol == "tcp");
        let count = if is_tcp { self.count } else { 0 };
        (0..count).filter_map(move |more| Some(SocketAddr::new(ip, first.checked_add(more)?)))
    }
}

/// At the source: what breaks when the container leaves this host.
pub(crate) fn what_breaks(published: &[Published]) -> Option<Refusal> {
    let ports: Vec<String> = published.iter().map(ToString::to_string).collect();
    let told = || {
        Refusal::new(format!(
            "it publishes {}: clients reach it there by this host's address, which stays here. Their connections break, and \
             new ones must go to the destination's address",
            ports.join(", ")
        ))
        .hint("`--ip-change allow` if that is right; clients in its own network notice nothing")
    };
    (!ports.is_empty()).then(told)
}

/// At the destination: which of them cannot be published.
pub(crate) fn taken(published: &[Published]) -> Vec<Refusal> {
    let wanted: Vec<SocketAddr> = published.iter().flat_map(Published::tcp).take(MOST).collect();
    ports::unavailable(&wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(published: &[Published]) -> Vec<String> {
        published.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mappings_of_podman_are_understood() {
        let published: Vec<Published> = [
            json!({"host_ip": "", "container_port": 80, "host_port": 8080, "range": 1, "protocol": "tcp"}),
            json!({"host_ip": "10.0.0.1", "container_port": 90, "host_port": 9000, "range": 3, "protocol": "tcp"}),
            json!({"host_ip": "::", "container_port": 53, "host_port": 53, "range": 1, "protocol": "udp"}),
            json!({"host_port": 70000}),
        ]
        .iter()
        .filter_map(Published::of_mapping)
        .collect();
        assert_eq!(told(&published), ["0.0.0.0:8080/tcp", "10.0.0.1:9000-9002/tcp", "[::]:53/udp"]);
        let ports: Vec<u16> =
            published.iter().flat_map(Published::tcp).map(|address| address.port()).collect();
        assert_eq!(ports, [8080, 9000, 9001, 9002]);
        let breaks = what_breaks(&published).unwrap();
        assert!(
            breaks.reason.contains("10.0.0.1:9000-9002/tcp") && breaks.hint.unwrap().contains("--ip-change")
        );
    }

    #[test]
    fn maps_of_docker_are_understood() {
        let map = json!({"53/udp": [{"HostIp": "10.0.0.1", "HostPort": "53"}], "80/tcp": null,
            "6379/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}, {"HostPort": "x"}, 7]});
        assert_eq!(
            told(&Published::of_map(Some(&map))),
            ["10.0.0.1:53/udp", "0.0.0.0:8080/tcp", "[::]:8080/tcp"]
        );
        for odd in [None, Some(&json!(7)), Some(&json!({"80": 7}))] {
            assert!(what_breaks(&Published::of_map(odd)).is_none());
        }
    }
}
