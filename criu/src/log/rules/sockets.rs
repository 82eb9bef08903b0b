//! Sockets, addresses, links, the packet filter.

use super::Subject::Sockets;
use super::{Rule, rule};

const IN_FLIGHT: &str = "try again; a listening program that accepts at once seldom has such a connection";
const LOCKING: &str = "install nftables and load nf_tables on this host; a lock that a failed attempt left is a table named `CRIU-…` \
                       or `godwit…`: `nft list tables`, `nft delete table …`";
const OTHER_END: &str = "close it before the move, or start the program without it (often a socket of systemd, of a \
                         logger, or of an agent)";

pub(super) const RULES: &[Rule] = &[
    rule(&["Connected TCP socket in image"], Sockets, "the images have TCP connections",
        "add `--tcp-established` to the restore, too"),
    rule(&["Connected TCP socket"], Sockets, "the container has TCP connections", "add `--tcp-established`"),
    rule(&["tcp-close options"], Sockets, "the images were made with `--tcp-close`",
        "give `tcp-close` to the restore, too, or dump again without it"),
    rule(&["In-flight connection", "non-listening"], Sockets, "a connection is just being made", IN_FLIGHT),
    rule(&["In-flight connection"], Sockets, "a TCP connection was made that the program has not accepted yet", IN_FLIGHT)
        .at(&[("socket", "for ", "")]),
    rule(&["TCP repair mode"], Sockets, "the kernel does not let CRIU take a TCP connection apart",
        "criu must have CAP_NET_ADMIN in the container's network namespace"),
    rule(&["Can't restore", "queue data"], Sockets, "what a TCP connection had under way cannot be put back",
        "raise `net.ipv4.tcp_wmem` and `tcp_rmem` on this host to the source's values"),
    rule(&["lock TCP connection"], Sockets, "the packet filter could not hold back a TCP connection", LOCKING)
        .at(&[("socket", "connection ", "")]),
    rule(&["Locking network failed"], Sockets, "the packet filter could not hold back the container's network", LOCKING),
    rule(&["Locking connection failed"], Sockets, "the packet filter could not hold back a TCP connection", LOCKING),
    rule(&["libnftables support"], Sockets, "this criu was built without nftables",
        "install iptables, or a criu that is built with libnftables"),
    rule(&["nft command error"], Sockets, "the packet filter's rules of the container cannot be made again",
        "load the kernel modules of nftables that the source has; the lines after the error name the rule"),
    rule(&["iptables"], Sockets, "iptables cannot be run", "install iptables (or nftables) on this host"),
    rule(&["half of stream unix"], Sockets, "the other end of a unix stream is outside the container", OTHER_END)
        .at(&[("socket", "name: ", ";"), ("peer", "peer name: ", "")]),
    rule(&["External socket"], Sockets, "a unix socket's other end is outside the container",
        "add `--ext-unix-sk` if it is a datagram socket with a name; else close it before the move"),
    rule(&["name-less external socket"], Sockets, "a unix socket pair reaches outside the container", OTHER_END),
    rule(&["Unix socket", "without peer"], Sockets, "the other end of a unix socket is outside the container", OTHER_END)
        .at(&[("socket", "Unix socket ", ""), ("peer", "peer ", "")]),
    rule(&["Unix socket", "unreachable peer"], Sockets, "the other end of a unix socket is outside the container", OTHER_END)
        .at(&[("socket", "Unix socket ", ""), ("peer", "peer ", "")]),
    rule(&["Unsupported proto 262"], Sockets, "the container uses multipath TCP, which CRIU cannot move",
        "for Go programs set `GODEBUG=multipathtcp=0`; else start it with the sysctl `net.mptcp.enabled=0`")
        .at(&[("socket", "for socket ", "")]),
    rule(&["Unsupported proto 132"], Sockets, "the container uses SCTP, which CRIU cannot move",
        "close such sockets before the move").at(&[("socket", "for socket ", "")]),
    rule(&["Unsupported proto"], Sockets, "the container uses a network protocol CRIU cannot move",
        "close such sockets before the move").at(&[("protocol", "Unsupported proto ", ""), ("socket", "for socket ", "")]),
    rule(&["Only stream, dgram and raw"], Sockets, "the container has a socket of a type CRIU cannot move",
        "close it before the move").at(&[("socket", "inet socket ", ". ")]),
    rule(&["Unknown socket collected"], Sockets, "the container has a socket of a family CRIU cannot move (vsock, bluetooth, …)",
        "close it before the move").at(&[("family", "family ", "")]),
    rule(&["Unsupported socket family"], Sockets, "the container has a socket of a family CRIU cannot move (vsock, bluetooth, …)",
        "close it before the move").at(&[("family", "family: ", "")]),
    rule(&["corked dgram socket"], Sockets, "a datagram is half written (UDP_CORK)",
        "try again").at(&[("socket", "dgram socket ", "")]),
    rule(&["inet socket", "Cannot assign requested address"], Sockets, "an address of the container does not exist on this host",
        "let godwit make the network (`--network-plan same`), or give the namespace the container's addresses; \
         link-local IPv6 addresses want `nodad`")
        .at(&[("socket", "id ", "")]),
    rule(&["inet socket", "Address already in use"], Sockets, "a port of the container is in use on this host",
        "stop what listens there (`ss -ltnp`), or give the container its own network namespace")
        .at(&[("socket", "id ", "")]),
    rule(&["bind inet socket"], Sockets, "a socket's address cannot be had on this host",
        "give the network namespace the container's addresses, and look for what uses the port (`ss -ltnp`)")
        .at(&[("socket", "id ", "")]),
    rule(&["connect inet socket back"], Sockets, "a TCP connection cannot be put back: its addresses are not those of this network",
        "the container must keep its addresses: `--network-plan same`, or a bridge in the same network"),
    rule(&["couldn't find ifindex"], Sockets, "a network interface that a socket is bound to is not on this host",
        "name the interface as on the source").at(&[("interface", "ifindex for ", "")]),
    rule(&["couldn't find ifname"], Sockets, "a socket is bound to a network interface that is gone", "close it before the move"),
    rule(&["external network namespace"], Sockets, "a socket belongs to another network namespace", "close it before the move"),
    rule(&["Unsupported link"], Sockets, "the container has a network interface of a kind CRIU cannot move",
        "take it out of the container, or let the engine make the network on both hosts (`--network-plan`)")
        .at(&[("interface", "link ", " (")]),
    rule(&["Can't restore link"], Sockets, "a network interface of the container cannot be made on this host",
        "load the kernel module of its kind"),
];
