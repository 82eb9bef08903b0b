//! What TCP remembers of peers: a restored connection starts with it rather than with a guess.
//!
//! CRIU connects a socket without a handshake, so the kernel has no round-trip time for it and waits 3 s for its first
//! retransmission (`tcp_init_metrics`, net/ipv4/tcp_metrics.c: `TCP_TIMEOUT_FALLBACK`), unless it remembers the peer from
//! an earlier connection. No request can make it remember: it does so when a connection ends in good order. Up to Linux
//! 6.5 the `rtt` of a route would do as well. So one connection to each peer is made and ended, inside the new namespace,
//! where the peer's address stands on loopback for that moment; then restored connections begin with the shortest
//! timeout, 200 ms.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, socket,
};
use serde::{Deserialize, Serialize};

use super::command::ip_batch;

/// Peers that are remembered; each costs some 0.1 ms before the freeze.
const MOST: usize = 1000;
/// TCP_ESTABLISHED in /proc/net/tcp (net/tcp_states.h).
const ESTABLISHED: &str = "01";

/// The two addresses of a connection of the container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Acquaintance {
    /// The container's own.
    pub own: IpAddr,
    /// The peer's.
    pub peer: IpAddr,
}

/// Whom the calling thread's namespace is connected with; nobody twice.
pub(super) fn acquaintances() -> Vec<Acquaintance> {
    let read =
        |table: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
    let text = [read("tcp"), read("tcp6")].join("\n");
    let mut all: Vec<_> = text.lines().filter_map(acquaintance).collect();
    all.sort();
    all.dedup();
    all.truncate(MOST);
    all
}

/// One line of /proc/net/tcp or tcp6 (proc_net(5)).
fn acquaintance(line: &str) -> Option<Acquaintance> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (own, peer) = (address(words.get(1)?)?, address(words.get(2)?)?);
    let outside = *words.get(3)? == ESTABLISHED && own != peer && !own.is_loopback() && !peer.is_loopback();
    outside.then_some(Acquaintance { own, peer })
}

/// `ADDRESS:PORT` in hexadecimal words of 32 bits, each as the host has it in memory.
fn address(text: &str) -> Option<IpAddr> {
    let hex = text.split(':').next()?;
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8)
        .map(|at| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    match words?.as_flattened() {
        [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d])),
        // a socket of both families may hold an IPv4 connection
        bytes => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
    }
}

/// Makes the calling thread's namespace remember `all`; what fails costs only time after a loss.
pub(super) fn remember(all: &[Acquaintance]) {
    const BUCKETS: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";
    if all.is_empty() {
        return;
    }
    // no address in TIME_WAIT is to stand in the way of the restored sockets
    let before = std::fs::read_to_string(BUCKETS).unwrap_or_default();
    let _ = std::fs::write(BUCKETS, "0");
    let mut peers: Vec<IpAddr> = all.iter().take(MOST).map(|one| one.peer).collect();
    peers.sort();
    peers.dedup();
    let lines = |verb: &str| -> Vec<String> {
        let line = |peer: &IpAddr| match peer {
            IpAddr::V4(ip) => format!("address {verb} {ip}/32 dev lo"),
            IpAddr::V6(ip) => format!("address {verb} {ip}/128 dev lo nodad"),
        };
        peers.iter().map(line).collect()
    };
    match ip_batch(&lines("add")) {
        Ok(()) => {
            for one in all.iter().take(MOST) {
                if let Err(error) = meet(one) {
                    tracing::debug!(?one, %error, "a peer will not be remembered");
                }
            }
        }
        Err(error) => tracing::debug!(%error, "no peer will be remembered"),
    }
    // one by one: those that could not be added must not keep the others
    for line in lines("delete") {
        let _ = ip_batch(&[line]);
    }
    if !before.is_empty() {
        let _ = std::fs::write(BUCKETS, before.trim_end());
    }
}

/// A connection between both addresses, a word each way, and its end: the container's side closes last.
fn meet(one: &Acquaintance) -> io::Result<()> {
    let listener = bound(one.peer)?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1)?)?;
    let at: SockaddrStorage = getsockname(listener.as_raw_fd())?;
    let own = bound(one.own)?;
    connect(own.as_raw_fd(), &at)?;
    let (mut peer, _) = std::net::TcpListener::from(listener).accept()?;
    let mut own = std::net::TcpStream::from(own);
    own.write_all(b"x")?;
    peer.read_exact(&mut [0])?;
    peer.write_all(b"x")?;
    own.read_exact(&mut [0])?;
    drop(peer);
    own.read_exact(&mut [0]).map_or(Ok(()), |()| Err(io::ErrorKind::InvalidData.into()))
}

/// A TCP socket at `address`, any port.
fn bound(address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(std::net::SocketAddr::new(address, 0)))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_understood() {
        let line = |own: &str, peer: &str, state: &str| {
            acquaintance(&format!("  0: {own}:1B5F {peer}:C350 {state} 00000000:00000000 00:00000000"))
        };
        let v4 = line("78004D0A", "03004D0A", "01").unwrap();
        assert_eq!((v4.own.to_string(), v4.peer.to_string()), ("10.77.0.120".into(), "10.77.0.3".into()));
        let v6 = line("000077FD000000000000000020010000", "000077FD000000000000000003000000", "01").unwrap();
        assert_eq!(v6.peer.to_string(), "fd77::3");
        let mapped =
            line("0000000000000000FFFF000078004D0A", "0000000000000000FFFF000003004D0A", "01").unwrap();
        assert_eq!(mapped, v4);
        assert_eq!(line("78004D0A", "03004D0A", "0A"), None, "a listener");
        assert_eq!(line("0100007F", "0100007F", "01"), None, "loopback");
    }
}
