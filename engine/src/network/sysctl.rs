//! The per-namespace sysctls an application can notice (ip-sysctl in the kernel's documentation).

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One value below `/proc/sys/net`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Path below `/proc/sys/net`, such as `ipv4/ip_forward`.
    pub key: String,
    /// Its value, without the final newline.
    pub value: String,
}

/// In the order they are applied: forwarding first, since writing it resets others.
const NAMESPACE: &[&str] = &[
    "ipv4/ip_forward",
    "core/somaxconn",
    "core/xfrm_acq_expires",
    "ipv4/icmp_echo_ignore_all",
    "ipv4/icmp_echo_ignore_broadcasts",
    "ipv4/ip_default_ttl",
    "ipv4/ip_local_port_range",
    "ipv4/ip_local_reserved_ports",
    "ipv4/ip_no_pmtu_disc",
    "ipv4/ip_nonlocal_bind",
    "ipv4/ip_unprivileged_port_start",
    "ipv4/ping_group_range",
    "ipv4/tcp_congestion_control",
    "ipv4/tcp_ecn",
    "ipv4/tcp_fastopen",
    "ipv4/tcp_fin_timeout",
    "ipv4/tcp_keepalive_intvl",
    "ipv4/tcp_keepalive_probes",
    "ipv4/tcp_keepalive_time",
    "ipv4/tcp_max_syn_backlog",
    "ipv4/tcp_max_tw_buckets",
    "ipv4/tcp_moderate_rcvbuf",
    "ipv4/tcp_mtu_probing",
    "ipv4/tcp_notsent_lowat",
    "ipv4/tcp_orphan_retries",
    "ipv4/tcp_retries1",
    "ipv4/tcp_retries2",
    "ipv4/tcp_rfc1337",
    "ipv4/tcp_rmem",
    "ipv4/tcp_sack",
    "ipv4/tcp_slow_start_after_idle",
    "ipv4/tcp_syn_retries",
    "ipv4/tcp_synack_retries",
    "ipv4/tcp_syncookies",
    "ipv4/tcp_timestamps",
    "ipv4/tcp_tw_reuse",
    "ipv4/tcp_window_scaling",
    "ipv4/tcp_wmem",
    "ipv4/udp_rmem_min",
    "ipv4/udp_wmem_min",
    "ipv6/bindv6only",
    "ipv6/ip_nonlocal_bind",
    "unix/max_dgram_qlen",
];

const INTERFACE: &[&str] = &[
    "ipv4/conf/@/accept_local",
    "ipv4/conf/@/accept_redirects",
    "ipv4/conf/@/accept_source_route",
    "ipv4/conf/@/arp_announce",
    "ipv4/conf/@/arp_filter",
    "ipv4/conf/@/arp_ignore",
    "ipv4/conf/@/arp_notify",
    "ipv4/conf/@/forwarding",
    "ipv4/conf/@/proxy_arp",
    "ipv4/conf/@/route_localnet",
    "ipv4/conf/@/rp_filter",
    "ipv4/conf/@/secure_redirects",
    "ipv4/conf/@/send_redirects",
    "ipv4/conf/@/src_valid_mark",
    "ipv6/conf/@/disable_ipv6",
    "ipv6/conf/@/accept_dad",
    "ipv6/conf/@/accept_ra",
    "ipv6/conf/@/accept_redirects",
    "ipv6/conf/@/addr_gen_mode",
    "ipv6/conf/@/autoconf",
    "ipv6/conf/@/forwarding",
    "ipv6/conf/@/keep_addr_on_down",
    "ipv6/conf/@/proxy_ndp",
    "ipv6/conf/@/use_tempaddr",
];

/// Reads the sysctls of the calling thread's namespace: the namespace's own, then those of `all`, `default` and
/// each of `interfaces`. What this kernel does not have is left out.
pub(super) fn read(interfaces: &[&str]) -> Vec<Sysctl> {
    let of_interfaces = ["all", "default"]
        .iter()
        .chain(interfaces)
        .flat_map(|interface| INTERFACE.iter().map(move |key| key.replace('@', interface)));
    let keys = NAMESPACE.iter().map(ToString::to_string).chain(of_interfaces);
    keys.filter_map(|key| current(&key).map(|value| Sysctl { key, value })).collect()
}

/// Writes those of `sysctls` that `choose` selects and that differ, in the calling thread's namespace. A value this
/// kernel refuses is logged, not an error: the container worked without knowing it.
pub(super) fn apply(sysctls: &[Sysctl], choose: impl Fn(&str) -> bool) {
    for Sysctl { key, value } in sysctls {
        if !is_listed(key) || !choose(key) || current(key).is_none_or(|now| now == *value) {
            continue;
        }
        if let Err(error) = fs::write(path(key), value) {
            tracing::warn!(sysctl = %key, %value, %error, "this host does not take a sysctl of the container");
        }
    }
}

/// The interface a key belongs to; none for the namespace's own and those of `all` and `default`.
pub(super) fn interface_of(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once("/conf/")?;
    let (interface, _) = rest.rsplit_once('/')?;
    (interface != "all" && interface != "default").then_some(interface)
}

/// A state comes from another host: only the keys read here are ever written.
fn is_listed(key: &str) -> bool {
    let Some((family, rest)) = key.split_once("/conf/") else { return NAMESPACE.contains(&key) };
    let Some((interface, leaf)) = rest.rsplit_once('/') else { return false };
    super::plan::is_interface_name(interface)
        && INTERFACE.contains(&format!("{family}/conf/@/{leaf}").as_str())
}

fn current(key: &str) -> Option<String> {
    fs::read_to_string(path(key)).ok().map(|text| text.trim_end().to_owned())
}

fn path(key: &str) -> std::path::PathBuf {
    Path::new("/proc/sys/net").join(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_keys_are_ever_written() {
        assert!(is_listed("ipv4/ip_forward"));
        assert!(is_listed("ipv4/conf/eth0.5/rp_filter"));
        for key in [
            "../kernel/core_pattern",
            "ipv4/conf/../../kernel/rp_filter",
            "ipv4/conf/a/b/rp_filter",
            "core/x",
        ] {
            assert!(!is_listed(key), "{key}");
        }
    }

    #[test]
    fn a_key_knows_its_interface() {
        assert_eq!(interface_of("ipv4/conf/eth0/rp_filter"), Some("eth0"));
        assert_eq!(interface_of("ipv4/conf/all/rp_filter"), None);
        assert_eq!(interface_of("ipv4/ip_forward"), None);
    }
}
