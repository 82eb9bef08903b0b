//! The destination's copy of a container's network: complete before the freeze, unreachable until Go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::net::if_::if_indextoname;
use serde::{Deserialize, Serialize};

use super::announce::{Announcer, parse_mac, wait_until_up};
use super::command::{ip, ip_batch, ip_batch_of, ip_json, run};
use super::netlink::Netlink;
use super::plan::is_interface_name;
use super::{
    Address, Link, Namespace, NetworkError, NetworkPlan, NetworkState, Result, Route, metrics, sysctl,
};

/// Time a network hook may take for any of its calls.
const HOOK_LIMIT: Duration = Duration::from_secs(30);
/// Time a link may take to come up at Go.
pub(super) const UP_LIMIT: Duration = Duration::from_secs(2);

/// What was made on this host, for the journal: enough to go on or to undo after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Name of the namespace, below `/run/netns`.
    pub namespace: String,
    /// How it is attached.
    pub plan: NetworkPlan,
    /// What is inside.
    pub state: NetworkState,
    /// The host side of each veth.
    pub host_links: Vec<HostLink>,
}

/// The host side of a rebuilt veth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLink {
    /// Its name on the host.
    pub name: String,
    /// The container's interface it belongs to.
    pub inside: String,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
}

/// A rebuilt network with the sockets Go needs. Dropping it undoes nothing: see [`RebuiltNetwork::remove`].
#[derive(Debug)]
pub struct RebuiltNetwork {
    record: NetworkRecord,
    namespace: Namespace,
    host: Netlink,
    host_indexes: Vec<u32>,
    announcer: Announcer,
}

impl NetworkState {
    /// Makes namespace `name` like this state and attaches it as `plan` says, host sides down. A failure undoes what
    /// was made. Takes some ten processes, about 100 ms: before the freeze.
    ///
    /// # Errors
    /// [`NetworkError::Taken`] when the name exists, [`NetworkError::Missing`] when the bridge does not,
    /// [`NetworkError::Unsupported`] as [`NetworkState::check`], else what `ip` or the hook said.
    pub fn rebuild(&self, name: &str, plan: &NetworkPlan) -> Result<RebuiltNetwork> {
        self.check(plan)?;
        let usable = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.bytes().all(usable) {
            let why = "only letters, digits, `-`, `_` and `.` are allowed".into();
            return Err(NetworkError::Unsupported { what: format!("namespace name `{name}`"), why });
        }
        if Namespace::path_of(name).exists() {
            return Err(NetworkError::Taken(format!("network namespace `{name}`")));
        }
        let mut record = NetworkRecord {
            namespace: name.into(),
            plan: plan.clone(),
            state: self.clone(),
            host_links: self.plan_host_links(plan)?,
        };
        ip(&["netns", "add", name])?;
        let built = record.build().and_then(|()| RebuiltNetwork::open(record.clone()));
        if built.is_err()
            && let Err(error) = record.remove()
        {
            tracing::warn!(namespace = %name, %error, "a half-made network could not be removed");
        }
        built
    }

    /// Chooses the host side of each veth: its name on the source if that is free here, else a new one.
    fn plan_host_links(&self, plan: &NetworkPlan) -> Result<Vec<HostLink>> {
        let mut links: Vec<HostLink> = Vec::new();
        if matches!(plan, NetworkPlan::Hook(_)) {
            return Ok(links);
        }
        for link in self.links.iter().filter(|link| link.kind == "veth") {
            let peer = link.peer.as_ref();
            let bridge = match plan {
                NetworkPlan::Bridge(name) => Some(name.clone()),
                NetworkPlan::Same => peer.and_then(|peer| peer.bridge.clone()),
                _ => None,
            };
            if let Some(bridge) = &bridge
                && !is_bridge(bridge)
            {
                return Err(NetworkError::Missing(format!("bridge `{bridge}`")));
            }
            let free = |name: &str| {
                is_interface_name(name) && !exists(name) && links.iter().all(|other| other.name != name)
            };
            let name = peer.map(|peer| peer.name.clone()).filter(|name| free(name));
            let name = name.or_else(|| (0..10_000).map(|n| format!("gwveth{n}")).find(|name| free(name)));
            let name = name.ok_or_else(|| NetworkError::Taken("every name for a host interface".into()))?;
            links.push(HostLink { name, inside: link.name.clone(), bridge });
        }
        Ok(links)
    }
}

impl NetworkRecord {
    fn build(&mut self) -> Result<()> {
        let namespace = Namespace::named(&self.namespace)?;
        let state = &self.state;
        namespace.run(|| sysctl::apply(&state.sysctls, |key| sysctl::interface_of(key).is_none()))?;
        match &self.plan {
            NetworkPlan::Hook(_) => {
                self.hook("prepare")?;
                namespace.run(|| {
                    let absent = state.links.iter().find(|link| !exists(&link.name));
                    absent.map_or(Ok(()), |link| {
                        Err(NetworkError::Missing(format!(
                            "interface `{}` after the hook's `prepare`",
                            link.name
                        )))
                    })
                })??;
            }
            _ => self.make_links(&namespace)?,
        }
        namespace.run(|| sysctl::apply(&state.sysctls, |key| sysctl::interface_of(key).is_some()))?;
        let mut lines = Vec::new();
        for link in &state.links {
            let name = &link.name;
            if link.kind == "loopback" {
                lines.push(format!("link set dev {name} {}", if link.up { "up" } else { "down" }));
            } else {
                let mac = if parse_mac(&link.mac).is_some() {
                    format!(" address {}", link.mac)
                } else {
                    String::new()
                };
                lines.push(format!(
                    "link set dev {name}{mac} mtu {} txqueuelen {}",
                    link.mtu, link.tx_queue_length
                ));
            }
            lines.extend(
                link.addresses
                    .iter()
                    .filter(|a| link.kind != "loopback" || !is_implied(a))
                    .map(|a| a.line(name)),
            );
            if link.kind != "loopback" && link.up {
                lines.push(format!("link set dev {name} up"));
            }
        }
        let routes =
            |v6| state.routes.iter().filter(|route| route.v6 == v6).map(Route::line).collect::<Vec<_>>();
        namespace.run(|| {
            ip_batch(&lines)?;
            ip_batch_of(false, &routes(false))?;
            ip_batch_of(true, &routes(true))?;
            metrics::remember(&state.acquaintances);
            Ok(())
        })?
    }

    fn make_links(&self, namespace: &Namespace) -> Result<()> {
        for link in self.state.interfaces() {
            // A fresh namespace may hold devices of the kernel's own: the index is kept when it is free.
            let taken = namespace.run(|| if_indextoname(link.index).is_ok())?;
            let index = if taken { String::new() } else { format!(" index {}", link.index) };
            if link.kind == "dummy" {
                let made = format!("link add name {}{index} type dummy", link.name);
                namespace.run(|| ip_batch(&[made]))??;
                continue;
            }
            let Some(host) = self.host_links.iter().find(|host| host.inside == link.name) else { continue };
            ip_batch(&[make_veth(link, &index, host, &self.namespace)])?;
            if let Some(bridge) = &host.bridge {
                ip(&["link", "set", "dev", &host.name, "master", bridge])?;
            }
        }
        Ok(())
    }

    fn hook(&self, verb: &str) -> Result<()> {
        let NetworkPlan::Hook(path) = &self.plan else { return Ok(()) };
        let path = path.to_string_lossy();
        let input =
            serde_json::json!({ "namespace": Namespace::path_of(&self.namespace), "state": self.state });
        run(&path, &[verb], &input.to_string(), HOOK_LIMIT).map(drop)
    }

    /// Deletes everything of the record that still exists. Idempotent; the hook's `remove` must be too.
    pub fn remove(&self) -> Result<()> {
        let hook = self.hook("remove");
        for host in &self.host_links {
            delete_link(&host.name)?;
        }
        delete_namespace(&self.namespace)?;
        hook
    }
}

impl RebuiltNetwork {
    /// Opens the network of `record` again, after a restart of godwit.
    pub fn open(record: NetworkRecord) -> Result<Self> {
        let namespace = Namespace::named(&record.namespace)?;
        let host_indexes =
            record.host_links.iter().map(|host| index_of(&host.name)).collect::<Result<_>>()?;
        let announcer = Announcer::open(&namespace, &record.state)?;
        Ok(Self { host: Netlink::route()?, record, namespace, host_indexes, announcer })
    }

    /// Takes over what an engine has made in the namespace at `path`, if it is what the container has: host sides go down
    /// until Go.
    ///
    /// # Errors
    /// [`NetworkError::Unsupported`] when an interface has other addresses than in `wanted`, [`NetworkError::Missing`] when
    /// there is none of its name.
    pub fn adopt(wanted: &NetworkState, path: &Path) -> Result<Self> {
        let namespace = Namespace::open(path)?;
        let state = NetworkState::capture(&namespace)?;
        for link in wanted.interfaces() {
            let made = state.links.iter().find(|made| made.name == link.name);
            let made = made.ok_or_else(|| NetworkError::Missing(format!("interface `{}`", link.name)))?;
            if made.mac != link.mac || made.own_addresses() != link.own_addresses() {
                let shown = |link: &Link| format!("{} {:?}", link.mac, link.own_addresses());
                return Err(NetworkError::Unsupported {
                    what: format!("interface `{}`", link.name),
                    why: format!("the engine gave it {} and not {}", shown(made), shown(link)),
                });
            }
        }
        namespace.run(|| {
            // a runtime sets the namespace's up for a container that begins, not for one that is restored
            sysctl::apply(&wanted.sysctls, |_| true);
            metrics::remember(&wanted.acquaintances);
        })?;
        let host_link = |link: &Link| {
            let peer = link.peer.as_ref()?;
            Some(HostLink { name: peer.name.clone(), inside: link.name.clone(), bridge: peer.bridge.clone() })
        };
        let host_links = state.links.iter().filter_map(host_link).collect();
        let name = namespace.name().unwrap_or_default().to_owned();
        let network =
            Self::open(NetworkRecord { namespace: name, plan: NetworkPlan::Same, state, host_links })?;
        network.down()?;
        Ok(network)
    }

    /// What another process must know of it.
    pub fn record(&self) -> &NetworkRecord {
        &self.record
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The host sides, for [`super::Gate`].
    pub fn host_links(&self) -> &[HostLink] {
        &self.record.host_links
    }

    /// Makes the network reachable and says so. Returns the time it took. Idempotent.
    pub fn go(&self) -> Result<Duration> {
        let begun = Instant::now();
        self.connect()?;
        self.announce()?;
        Ok(begun.elapsed())
    }

    /// Host sides up, and waits until frames pass: announcement, unlock, replay and thaw come after it. Idempotent.
    pub fn connect(&self) -> Result<()> {
        self.set_up(true)?;
        self.record.hook("up")?;
        // A bridge forwards to a port only when the host side is up; it comes up only when the inside is, too.
        for (link, index) in self.record.host_links.iter().zip(&self.host_indexes) {
            if self.record.state.links.iter().any(|inside| inside.name == link.inside && inside.up) {
                wait_until_up(&self.host, &link.name, *index, UP_LIMIT)?;
            }
        }
        self.announcer.wait_until_up(UP_LIMIT)
    }

    /// Makes the network unreachable again. Idempotent.
    pub fn down(&self) -> Result<()> {
        self.set_up(false)?;
        self.record.hook("down")
    }

    /// Tells the segment again where the addresses are; may be repeated.
    pub fn announce(&self) -> Result<()> {
        self.announcer.announce()
    }

    /// Deletes the host sides and the namespace's name. Idempotent.
    pub fn remove(&self) -> Result<()> {
        self.record.remove()
    }

    fn set_up(&self, up: bool) -> Result<()> {
        for (link, index) in self.record.host_links.iter().zip(&self.host_indexes) {
            set_link(&self.host, &link.name, *index, up)?;
        }
        Ok(())
    }
}

impl Link {
    /// Its addresses with their prefixes, without those that follow from its hardware address.
    fn own_addresses(&self) -> BTreeSet<(IpAddr, u8)> {
        let own = |address: &&Address| address.scope != "link";
        self.addresses.iter().filter(own).map(|address| (address.ip, address.prefix)).collect()
    }
}

impl Address {
    /// The `ip -batch` line that adds it to `link`, without duplicate address detection: it is known to be unique.
    fn line(&self, link: &str) -> String {
        use std::fmt::Write;
        let mut line = format!("address replace {}", self.ip);
        let mut add = |text: String| write!(line, "{text}").unwrap_or_default();
        if let Some(peer) = self.peer {
            add(format!(" peer {peer}"));
        }
        add(format!("/{} dev {link} scope {}", self.prefix, word(&self.scope)));
        if let Some(broadcast) = self.broadcast {
            add(format!(" broadcast {broadcast}"));
        }
        if let Some(label) = self.label.as_ref().filter(|label| label.starts_with(link)) {
            add(format!(" label {}", word(label)));
        }
        if let Some(metric) = self.metric {
            add(format!(" metric {metric}"));
        }
        if self.valid.is_some() || self.preferred.is_some() {
            let life = |seconds: Option<u32>| seconds.map_or("forever".into(), |s| s.to_string());
            add(format!(" valid_lft {} preferred_lft {}", life(self.valid), life(self.preferred)));
        }
        if self.no_prefix_route {
            add(" noprefixroute".into());
        }
        if self.ip.is_ipv6() {
            add(" nodad".into());
        }
        line
    }
}

impl Route {
    /// The `ip -batch` line that adds it; the kernel's own prefix routes exist already and are replaced.
    fn line(&self) -> String {
        use std::fmt::Write;
        let mut line = format!("route replace {} {}", word(&self.kind), word(&self.to));
        let mut add = |text: String| write!(line, " {text}").unwrap_or_default();
        if let Some(gateway) = self.gateway {
            add(format!("via {} {gateway}", if gateway.is_ipv6() { "inet6" } else { "inet" }));
        }
        if let Some(link) = &self.link {
            add(format!("dev {}", word(link)));
        }
        add(format!("table {} protocol {}", self.table, word(&self.protocol)));
        if !self.v6 {
            add(format!("scope {}", word(&self.scope)));
        }
        if let Some(source) = self.source {
            add(format!("src {source}"));
        }
        if let Some(metric) = self.metric {
            add(format!("metric {metric}"));
        }
        if self.on_link {
            add("onlink".into());
        }
        for (name, value) in &self.metrics {
            add(format!("{} {value}", word(name)));
        }
        line
    }
}

/// A state comes from another host: nothing of it may add words or lines to a batch.
fn word(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || "._:/-@".contains(*c)).collect()
}

/// The host side gets an address starting with `fe`, the highest: a bridge takes the lowest of its ports' as its
/// own, and must not change it for a new port.
fn make_veth(link: &Link, index: &str, host: &HostLink, namespace: &str) -> String {
    let tail = link.mac.get(2..).filter(|_| parse_mac(&link.mac).is_some_and(|mac| mac[0] != 0xfe));
    let host_mac = tail.map(|tail| format!(" address fe{tail}")).unwrap_or_default();
    let mac = if parse_mac(&link.mac).is_some() { format!(" address {}", link.mac) } else { String::new() };
    let mtu = link.peer.as_ref().map_or(link.mtu, |peer| peer.mtu);
    format!(
        "link add name {}{host_mac} mtu {mtu} type veth peer name {}{mac}{index} mtu {} netns {namespace}",
        host.name, link.name, link.mtu
    )
}

/// 127.0.0.1 and ::1 come with the interface.
fn is_implied(address: &Address) -> bool {
    address.ip.is_loopback() && matches!(address.prefix, 8 | 128)
}

/// Whether the calling thread's namespace has interface `name`.
fn exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

fn is_bridge(name: &str) -> bool {
    let shown = ip_json(&["link", "show", "dev", name]).unwrap_or_default();
    shown.first().is_some_and(|link| link["linkinfo"]["info_kind"] == "bridge")
}

pub(super) fn index_of(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(|_| NetworkError::Missing(format!("interface `{name}`")))
}

/// Sets host interface `name` up or down.
pub(super) fn set_link(host: &Netlink, name: &str, index: u32, up: bool) -> Result<()> {
    let what = || format!("set `{name}` {}", if up { "up" } else { "down" });
    host.set_up(index, up).map_err(|source| NetworkError::Netlink { what: what(), source })
}

/// Deletes host interface `name`; absent is fine.
pub(super) fn delete_link(name: &str) -> Result<()> {
    match ip(&["link", "delete", "dev", name]) {
        Err(error) if exists(name) => Err(error),
        _ => Ok(()),
    }
}

/// Deletes namespace name `name`; absent is fine.
pub(super) fn delete_namespace(name: &str) -> Result<()> {
    match ip(&["netns", "delete", name]) {
        Err(error) if Namespace::path_of(name).exists() => Err(error),
        _ => Ok(()),
    }
}
