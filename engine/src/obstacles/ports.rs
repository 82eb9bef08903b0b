//! Addresses that a tree in the host's own network namespace listens on: at the destination they must be there, and free.

use godwit_transfer::message::Refusal;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

/// What the tasks listen on, by TCP.
pub(crate) fn listening(pids: &BTreeSet<i32>) -> Vec<SocketAddr> {
    let mut inodes = HashSet::new();
    let mut tables = Vec::new();
    for pid in pids {
        let Ok(process) = Process::new(*pid) else { continue };
        let sockets = process.fd().into_iter().flatten().flatten().filter_map(|fd| match fd.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        });
        inodes.extend(sockets);
        if tables.is_empty() {
            tables = [process.tcp().unwrap_or_default(), process.tcp6().unwrap_or_default()].concat();
        }
    }
    let listens = |entry: &&TcpNetEntry| entry.state == TcpState::Listen && inodes.contains(&entry.inode);
    let found: BTreeSet<SocketAddr> =
        tables.iter().filter(listens).map(|entry| entry.local_address).collect();
    found.into_iter().collect()
}

/// Which of them this host has not, or has given to another.
pub(crate) fn unavailable(wanted: &[SocketAddr]) -> Vec<Refusal> {
    let tables = [procfs::net::tcp().unwrap_or_default(), procfs::net::tcp6().unwrap_or_default()].concat();
    let taken: Vec<SocketAddr> = tables
        .iter()
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| entry.local_address)
        .collect();
    let own: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .collect();
    wanted.iter().filter_map(|address| judge(*address, &taken, &own)).collect()
}

fn judge(wanted: SocketAddr, taken: &[SocketAddr], own: &[IpAddr]) -> Option<Refusal> {
    // `::` takes the addresses of the other family, too
    let overlaps = |other: &&SocketAddr| {
        let any = wanted.ip().is_unspecified() || other.ip().is_unspecified();
        other.port() == wanted.port() && (other.ip() == wanted.ip() || any)
    };
    if let Some(other) = taken.iter().find(overlaps) {
        return Some(
            Refusal::new(format!("it listens on {wanted}, and there something listens on {other}"))
                .hint(format!("stop that there (`ss -ltnp 'sport = :{}'`)", wanted.port())),
        );
    }
    let is_there = wanted.ip().is_unspecified() || wanted.ip().is_loopback() || own.contains(&wanted.ip());
    (!is_there).then(|| {
        Refusal::new(format!("it listens on {wanted}, and that host has no such address"))
            .hint("start it in a network namespace of its own, or let it listen on all addresses")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_must_be_there_and_free() {
        let taken = [address("0.0.0.0:80"), address("127.0.0.1:6379"), address("[::]:443")];
        let own = ["127.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let told = |wanted: &str| judge(address(wanted), &taken, &own).map(|refusal| refusal.reason);
        for wanted in ["10.0.0.2:80", "[::]:80", "127.0.0.1:6379", "0.0.0.0:6379", "0.0.0.0:443"] {
            assert!(told(wanted).unwrap().contains("something listens"), "{wanted}");
        }
        for wanted in ["10.0.0.2:6379", "0.0.0.0:8080", "127.0.0.9:81", "[::1]:81"] {
            assert_eq!(told(wanted), None, "{wanted}");
        }
        assert!(told("10.0.0.1:8080").unwrap().contains("no such address"));
    }

    #[test]
    fn own_listeners_are_seen_and_then_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mine = listener.local_addr().unwrap();
        let found = listening(&BTreeSet::from([std::process::id().cast_signed()]));
        assert!(found.contains(&mine), "{found:?}");
        let reasons = unavailable(&[mine]);
        assert!(reasons[0].hint.as_deref().unwrap().contains(&format!(":{}'", mine.port())), "{reasons:?}");
        drop(listener);
        // a child that another test has just forked may have it too, until it executes its program
        let begun = std::time::Instant::now();
        while !unavailable(&[mine]).is_empty() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "somebody listens at {mine}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
