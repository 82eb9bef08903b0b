//! Telling the segment where the addresses are now: gratuitous ARP and unsolicited neighbour advertisements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, send};

use super::netlink::Netlink;
use super::rebuild::UP_LIMIT;
use super::{Link, Namespace, NetworkError, NetworkState, Result};
use crate::sys::packet::{self, PacketSocket};

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Tells the segment where the addresses of a namespace are that an engine has made and connected.
///
/// # Errors
/// When the namespace cannot be read, or an interface does not come up.
pub fn announce(namespace: &Namespace) -> Result<()> {
    let state = NetworkState::capture(namespace)?;
    let announcer = Announcer::open(namespace, &state)?;
    announcer.wait_until_up(UP_LIMIT)?;
    announcer.announce()
}

/// Sockets opened inside a namespace before the freeze, and the frames to send through them.
#[derive(Debug)]
pub(super) struct Announcer {
    netlink: Netlink,
    interfaces: Vec<Interface>,
}

#[derive(Debug)]
struct Interface {
    name: String,
    index: u32,
    socket: PacketSocket,
    frames: Vec<Vec<u8>>,
}

impl Announcer {
    /// Opens one socket for each interface of `state` that has a hardware address, exists and is up.
    pub(super) fn open(namespace: &Namespace, state: &NetworkState) -> Result<Self> {
        namespace.run(|| {
            let mut interfaces = Vec::new();
            for link in state.interfaces().filter(|link| link.up) {
                let Some(mac) = parse_mac(&link.mac) else { continue };
                let name = link.name.clone();
                let index = nix::net::if_::if_nametoindex(link.name.as_str())
                    .map_err(|_| NetworkError::Missing(format!("interface `{name}` of the container")))?;
                let socket = packet::open(index, 0, false)
                    .map_err(|e| NetworkError::Packet { interface: name.clone(), source: e.into() })?;
                interfaces.push(Interface { name, index, socket, frames: frames(link, mac) });
            }
            Ok(Self { netlink: Netlink::route()?, interfaces })
        })?
    }

    /// Waits until every interface can carry frames. After the far end of a veth is set up the kernel enables the
    /// queue in a work item of its own (net/core/link_watch.c), and drops what is sent before.
    pub(super) fn wait_until_up(&self, limit: Duration) -> Result<()> {
        self.interfaces
            .iter()
            .try_for_each(|interface| wait_until_up(&self.netlink, &interface.name, interface.index, limit))
    }

    /// Sends every frame once. The network lock does not hold them back: packet sockets are below it.
    pub(super) fn announce(&self) -> Result<()> {
        for Interface { name, socket, frames, .. } in &self.interfaces {
            for frame in frames {
                send(socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)
                    .map_err(|e| NetworkError::Packet { interface: name.clone(), source: e.into() })?;
            }
        }
        Ok(())
    }
}

/// Waits until interface `index` can carry frames.
pub(super) fn wait_until_up(netlink: &Netlink, name: &str, index: u32, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let failed = |source| NetworkError::Netlink { what: format!("read the state of `{name}`"), source };
    while !netlink.is_operational(index).map_err(failed)? {
        if begun.elapsed() > limit {
            return Err(NetworkError::NotUp(name.into(), limit.as_millis()));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// ARP as request and as reply, since some hosts learn only from one (RFC 5227 section 3), for each IPv4 address;
/// a neighbour advertisement for each IPv6 address.
fn frames(link: &Link, mac: [u8; 6]) -> Vec<Vec<u8>> {
    let of = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => vec![arp(mac, ip, 1), arp(mac, ip, 2)],
        IpAddr::V6(ip) => vec![advertisement(mac, ip)],
    };
    link.addresses.iter().flat_map(|address| of(address.ip)).collect()
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes()].concat()
}

/// RFC 826, with sender and target protocol address equal.
fn arp(mac: [u8; 6], ip: Ipv4Addr, operation: u16) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ARP);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend(BROADCAST);
    frame.extend(ip.octets());
    frame
}

/// RFC 4861 section 4.4: unsolicited, override, with the target's link-layer address.
fn advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    const NEXT_ICMP: u8 = 58;
    const OVERRIDE: u8 = 0x20;
    let mut body = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    body.extend(ip.octets());
    body.extend([2, 1]);
    body.extend(mac);
    let length = body.len() as u16;
    let pseudo =
        [&ip.octets()[..], &ALL_NODES.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, NEXT_ICMP]];
    let sum = checksum(&[&pseudo.concat()[..], &body].concat());
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(ALL_NODES_MAC, mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([NEXT_ICMP, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(body);
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Six bytes from `aa:bb:cc:dd:ee:ff`; none for anything else and for the zero address.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect::<Option<Vec<u8>>>()?;
    <[u8; 6]>::try_from(bytes).ok().filter(|mac| *mac != [0; 6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_sums_to_zero() {
        let frame = advertisement([2, 0, 0, 0, 0, 9], "fd00::9".parse().unwrap());
        let (header, body) = frame[14..].split_at(40);
        let pseudo = [&header[8..40], &[0, 0, 0, body.len() as u8, 0, 0, 0, 58], body].concat();
        assert_eq!(checksum(&pseudo), 0);
        assert_eq!(body.len(), 32);
    }

    #[test]
    fn arp_is_laid_out_as_rfc_826_says() {
        let frame = arp([2, 0, 0, 0, 0, 9], "10.0.0.9".parse().unwrap(), 2);
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[20..22], [0, 2]);
        assert_eq!(frame[28..32], frame[38..42]);
    }

    #[test]
    fn a_mac_is_six_bytes() {
        assert_eq!(parse_mac("02:00:00:00:00:0f"), Some([2, 0, 0, 0, 0, 15]));
        for bad in ["", "02:00", "00:00:00:00:00:00", "02:00:00:00:00:zz", "1:2:3:4:5:6:7"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
