//! A container's network as data: what it is made of, read with `ip -j` before the freeze.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command::ip_json;
use super::netlink::Netlink;
use super::plan::is_interface_name;
use super::{Acquaintance, Namespace, NetworkError, NetworkPlan, Result, Sysctl, metrics, sysctl};

/// `valid_lft` and `preferred_lft` of an address that never ends (`INFINITY_LIFE_TIME`, linux/if_addr.h).
const FOREVER: u32 = u32::MAX;
/// Table of the kernel's own local and broadcast routes (`RT_TABLE_LOCAL`, linux/rtnetlink.h).
const LOCAL_TABLE: u32 = 255;
/// Devices the kernel puts into every new namespace when their modules are loaded.
const FALLBACK_KINDS: &[&str] =
    &["ipip", "sit", "gre", "gretap", "erspan", "ip6tnl", "ip6gre", "ip6gretap", "ip6erspan", "vti", "vti6"];

/// Everything that makes up a network namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Every interface, loopback included, by index.
    pub links: Vec<Link>,
    /// Every route but the kernel's own of table `local`; those without gateway first.
    pub routes: Vec<Route>,
    /// Sysctls, in the order they are to be applied.
    pub sysctls: Vec<Sysctl>,
    /// Whom it has TCP connections with.
    #[serde(default)]
    pub acquaintances: Vec<Acquaintance>,
}

/// An interface inside the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index; kept when rebuilt, since applications may hold it.
    pub index: u32,
    /// `loopback`, or the kind of ip-link(8): `veth`, `dummy`, `macvlan`; empty for a physical device.
    pub kind: String,
    /// Hardware address, as text.
    pub mac: String,
    /// In bytes.
    pub mtu: u32,
    /// Length of the transmit queue, in packets.
    pub tx_queue_length: u32,
    /// Administratively up.
    pub up: bool,
    /// Its addresses, in order.
    pub addresses: Vec<Address>,
    /// The other end of a veth, when it is on the host.
    pub peer: Option<HostPeer>,
}

/// The host's end of a veth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPeer {
    /// Its name on the host.
    pub name: String,
    /// In bytes.
    pub mtu: u32,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
}

/// An address of an interface (ip-address(8)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The other end of a point-to-point address.
    pub peer: Option<IpAddr>,
    /// Length of the prefix, in bits.
    pub prefix: u8,
    /// Broadcast address.
    pub broadcast: Option<IpAddr>,
    /// `global`, `site`, `link`, `host` or a number.
    pub scope: String,
    /// Label, for IPv4.
    pub label: Option<String>,
    /// Seconds left until it is removed; none = never.
    pub valid: Option<u32>,
    /// Seconds left until it is deprecated; none = never.
    pub preferred: Option<u32>,
    /// No prefix route belongs to it.
    pub no_prefix_route: bool,
    /// Metric of its prefix route.
    pub metric: Option<u32>,
}

/// A route (ip-route(8)); protocol, scope and table as numbers, since names differ between hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// `unicast`, `blackhole`, `unreachable`, `prohibit`, `throw` or `local`.
    pub kind: String,
    /// Destination: `default` or a prefix.
    pub to: String,
    /// Next hop; of the other family for IPv4 over IPv6.
    pub gateway: Option<IpAddr>,
    /// Interface.
    pub link: Option<String>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Priority: the lowest wins.
    pub metric: Option<u32>,
    /// Table.
    pub table: u32,
    /// Who made it: 2 the kernel, 3 boot, 4 static.
    pub protocol: String,
    /// Scope, for IPv4.
    pub scope: String,
    /// The gateway is on the link whatever the addresses say.
    pub on_link: bool,
    /// Path metrics such as `mtu` and `advmss`.
    pub metrics: Vec<(String, u64)>,
}

impl NetworkState {
    /// Reads the network of `namespace`; veth peers are looked for in the calling thread's namespace. Nothing is
    /// changed. Takes four `ip` processes, 20-40 ms: before the freeze.
    pub fn capture(namespace: &Namespace) -> Result<Self> {
        if namespace.is_own()? {
            return Err(NetworkError::HostNetwork(namespace.path().to_path_buf()));
        }
        let (links, routes, rules) = namespace.run(|| {
            let links = ip_json(&["address", "show"])?;
            let routes = ip_json(&["-N", "route", "show", "table", "all"])?;
            let rules = [ip_json(&["-N", "rule"])?, ip_json(&["-N", "-6", "rule"])?].concat();
            Ok::<_, NetworkError>((links, routes, rules))
        })??;
        let host = ip_json(&["link", "show"])?;
        let host_id = Netlink::route()?.namespace_id(namespace.file()).ok();
        let links = links
            .iter()
            .filter(|link| !is_unused_fallback(link))
            .map(|link| Link::read(link, &host, host_id))
            .collect::<Result<Vec<_>>>()?;
        refuse_rules(&rules)?;
        let mut routes = routes.iter().map(Route::read).collect::<Result<Vec<_>>>()?;
        routes.retain(|route| route.table != LOCAL_TABLE);
        routes.sort_by_key(|route| route.gateway.is_some());
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let sysctls = namespace.run(|| sysctl::read(&names))?;
        let acquaintances = namespace.run(metrics::acquaintances)?;
        Ok(Self { links, routes, sysctls, acquaintances })
    }

    /// Refuses what `plan` could not rebuild, naming it: an interface of another kind than veth or dummy, an
    /// interface on no bridge while the plan wants the same one. Asked at the source, before anything is started.
    pub fn check(&self, plan: &NetworkPlan) -> Result<()> {
        let refuse = |link: &Link, why: String| {
            Err(NetworkError::Unsupported { what: format!("interface `{}`", link.name), why })
        };
        for link in &self.links {
            if !is_interface_name(&link.name) {
                return refuse(link, "its name is not usable".into());
            }
            if matches!(plan, NetworkPlan::Hook(_)) {
                continue;
            }
            match link.kind.as_str() {
                "loopback" | "dummy" => {}
                "veth" => {
                    let bridge = link.peer.as_ref().and_then(|peer| peer.bridge.as_ref());
                    if *plan == NetworkPlan::Same && bridge.is_none() {
                        let why =
                            "it is on no bridge of the source (give `bridge=NAME`, `none` or `hook=PATH`)";
                        return refuse(link, why.into());
                    }
                }
                "" => return refuse(link, "it is a device of the source host".into()),
                kind => {
                    return refuse(link, format!("it is of kind `{kind}` (a `hook=PATH` could make it)"));
                }
            }
        }
        Ok(())
    }

    /// The interfaces other than loopback.
    pub fn interfaces(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.kind != "loopback")
    }
}

impl Link {
    fn read(link: &Value, host: &[Value], host_id: Option<i32>) -> Result<Self> {
        let name = text(link, "ifname").ok_or_else(|| unreadable("address", "interface without name"))?;
        let need =
            |key| number(link, key).ok_or_else(|| unreadable("address", &format!("`{name}` has no `{key}`")));
        let flags = link["flags"].as_array().cloned().unwrap_or_default();
        let flag = |wanted: &str| flags.iter().any(|f| f == wanted);
        let kind = match text(&link["linkinfo"], "info_kind") {
            Some(kind) => kind,
            None if flag("LOOPBACK") => "loopback".into(),
            None => String::new(),
        };
        let addresses = link["addr_info"].as_array().cloned().unwrap_or_default();
        Ok(Self {
            index: need("ifindex")?,
            mtu: need("mtu")?,
            tx_queue_length: number(link, "txqlen").unwrap_or(0),
            mac: text(link, "address").unwrap_or_default(),
            up: flag("UP"),
            addresses: addresses.iter().map(Address::read).collect::<Result<_>>()?,
            peer: if kind == "veth" { HostPeer::find(link, host, host_id) } else { None },
            kind,
            name,
        })
    }
}

impl HostPeer {
    /// The host's veth whose peer is `link`: both indexes must agree, and the host's must point into the namespace
    /// it knows as `id`, since indexes are unique only within a namespace.
    fn find(link: &Value, host: &[Value], id: Option<i32>) -> Option<Self> {
        let peer = host.iter().find(|other| {
            other["linkinfo"]["info_kind"] == "veth"
                && number(other, "ifindex") == number(link, "link_index")
                && number(other, "link_index") == number(link, "ifindex")
                && (id.is_none() || other["link_netnsid"].as_i64().map(|n| n as i32) == id)
        })?;
        let master = text(peer, "master");
        let is_bridge = |name: &String| {
            host.iter()
                .any(|l| text(l, "ifname").as_ref() == Some(name) && l["linkinfo"]["info_kind"] == "bridge")
        };
        Some(Self {
            name: text(peer, "ifname")?,
            mtu: number(peer, "mtu")?,
            bridge: master.filter(is_bridge),
        })
    }
}

impl Address {
    fn read(value: &Value) -> Result<Self> {
        let ip = |key: &str| text(value, key).and_then(|t| t.parse().ok());
        let life = |key: &str| number(value, key).filter(|seconds| *seconds != FOREVER);
        Ok(Self {
            ip: ip("local").ok_or_else(|| unreadable("address", "address without `local`"))?,
            peer: ip("address"),
            prefix: number(value, "prefixlen").and_then(|n| u8::try_from(n).ok()).unwrap_or(32),
            broadcast: ip("broadcast"),
            scope: text(value, "scope").unwrap_or_else(|| "global".into()),
            label: text(value, "label"),
            valid: life("valid_life_time"),
            preferred: life("preferred_life_time"),
            no_prefix_route: value["noprefixroute"] == true,
            metric: number(value, "metric"),
        })
    }
}

impl Route {
    fn read(value: &Value) -> Result<Self> {
        let to = text(value, "dst").ok_or_else(|| unreadable("route", "route without `dst`"))?;
        let refuse =
            |why: &str| Err(NetworkError::Unsupported { what: format!("route to `{to}`"), why: why.into() });
        if value.get("nexthops").is_some() || value.get("nhid").is_some() {
            return refuse("it has several next hops");
        }
        if value.get("encap").is_some() {
            return refuse("it encapsulates");
        }
        // linux/rtnetlink.h RTN_*; names are needed on input, numbers are printed with -N.
        let kind = match text(value, "type").as_deref() {
            None | Some("1" | "unicast") => "unicast",
            Some("2" | "local") => "local",
            Some("3" | "broadcast") => "broadcast",
            Some("4" | "anycast") => "anycast",
            Some("5" | "multicast") => "multicast",
            Some("6" | "blackhole") => "blackhole",
            Some("7" | "unreachable") => "unreachable",
            Some("8" | "prohibit") => "prohibit",
            Some("9" | "throw") => "throw",
            Some(_) => return refuse("it is of an unknown type"),
        };
        let ip = |key: &str| text(value, key).and_then(|t| t.parse::<IpAddr>().ok());
        let via = text(&value["via"], "host").and_then(|t| t.parse().ok());
        let gateway = ip("gateway").or(via);
        let source = ip("prefsrc");
        // `default` does not say its family, only IPv6 routes have a router preference.
        let v6 = to.contains(':') || value.get("pref").is_some();
        let flags = value["flags"].as_array().cloned().unwrap_or_default();
        let metrics = value["metrics"].as_array().and_then(|m| m.first()).and_then(Value::as_object);
        let metrics = metrics.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_u64()?)));
        Ok(Self {
            kind: kind.into(),
            gateway,
            link: text(value, "dev"),
            source,
            metric: number(value, "metric"),
            table: text(value, "table").and_then(|t| t.parse().ok()).unwrap_or(254),
            protocol: text(value, "protocol").unwrap_or_else(|| "3".into()),
            scope: text(value, "scope").unwrap_or_else(|| "0".into()),
            on_link: flags.iter().any(|f| f == "onlink"),
            metrics: metrics.collect(),
            v6,
            to,
        })
    }
}

/// Only the three rules every namespace has are known (ip-rule(8)).
fn refuse_rules(rules: &[Value]) -> Result<()> {
    let strange = rules.iter().find(|rule| !matches!(number(rule, "priority"), Some(0 | 32766 | 32767)));
    match strange {
        None => Ok(()),
        Some(rule) => Err(NetworkError::Unsupported {
            what: format!("routing rule {}", rule["priority"]),
            why: "policy routing inside a container is not supported".into(),
        }),
    }
}

fn is_unused_fallback(link: &Value) -> bool {
    let kind = text(&link["linkinfo"], "info_kind").unwrap_or_default();
    let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == "UP"));
    !up && FALLBACK_KINDS.contains(&kind.as_str()) && link["addr_info"].as_array().is_none_or(Vec::is_empty)
}

fn text(value: &Value, key: &str) -> Option<String> {
    match &value[key] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn number(value: &Value, key: &str) -> Option<u32> {
    value[key].as_u64().and_then(|n| u32::try_from(n).ok())
}

fn unreadable(what: &str, reason: &str) -> NetworkError {
    NetworkError::Unreadable { command: format!("ip -j -d {what} show"), reason: reason.into() }
}
