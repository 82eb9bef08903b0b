//! On network namespaces of their own; need root, `ip` and `nft`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::command::{ip, ip_batch, ip_json, run};
use super::*;
use crate::sys::packet;

const CONTAINER: &str = "10.77.0.2";
const MAC: &str = "02:77:00:00:00:02";

/// Root and the tools, else the test is skipped aloud.
fn able() -> bool {
    let tools = ["ip", "nft"].iter().all(|tool| run(tool, &["-V"], "", Duration::from_secs(5)).is_ok());
    let able = nix::unistd::geteuid().is_root() && tools;
    if !able {
        assert_ne!(
            std::env::var("GODWIT_REQUIRE").as_deref(),
            Ok("all"),
            "root, `ip` and `nft` are required"
        );
        eprintln!("skipped: needs root, `ip` and `nft`");
    }
    able
}

/// Two "hosts" with a bridge `br0` each, joined by a cable; a container on the first and a client on the second.
/// The names are removed when it is dropped, and with them everything inside.
struct Bed {
    a: Namespace,
    b: Namespace,
    container: Namespace,
    client: Namespace,
    id: String,
}

impl Bed {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("gwt{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let make = |part: &str| {
            let name = format!("{id}{part}");
            ip(&["netns", "add", &name]).unwrap();
            Namespace::named(&name).unwrap()
        };
        let bed = Self { a: make("a"), b: make("b"), container: make("c"), client: make("k"), id };
        bed.in_a(|| {
            lines(&["link add br0 type bridge", "link set br0 up"]);
            lines(&[&format!("link add cable type veth peer name cable netns {}b", bed.id)]);
            lines(&["link set cable master br0 up"]);
            let cable = format!(
                "link add vc1 mtu 1400 type veth peer name eth0 address {MAC} mtu 1400 netns {}c",
                bed.id
            );
            lines(&[&cable, "link set vc1 master br0 up"]);
        });
        bed.b
            .run(|| {
                lines(&["link add br0 type bridge", "link set br0 up", "link set cable master br0 up"]);
                lines(&[
                    &format!("link add vk type veth peer name eth0 netns {}k", bed.id),
                    "link set vk master br0 up",
                ]);
            })
            .unwrap();
        bed.container
            .run(|| {
                std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "80").unwrap();
                std::fs::write("/proc/sys/net/core/somaxconn", "1234").unwrap();
                std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_ignore", "1").unwrap();
                lines(&[
                    "link set lo up",
                    "address add 127.0.0.9/32 dev lo",
                    "link set eth0 txqueuelen 500",
                    "address add 10.77.0.2/24 broadcast 10.77.0.255 dev eth0",
                    "address add 10.78.0.2/32 dev eth0",
                    "address add fd77::2/64 dev eth0 nodad",
                    "link set eth0 up",
                    "route add default via 10.77.0.1 metric 50 mtu 1300",
                    "route add 10.99.0.0/16 via 10.77.0.7 src 10.78.0.2",
                    "route add blackhole 10.66.0.0/16",
                ]);
                ip(&["-6", "route", "add", "default", "via", "fd77::1"]).unwrap();
            })
            .unwrap();
        bed.client
            .run(|| {
                lines(&[
                    "address add 10.77.0.1/24 dev eth0",
                    "address add fd77::1/64 dev eth0 nodad",
                    "link set eth0 up",
                ])
            })
            .unwrap();
        let up = |ns: &Namespace| {
            ns.run(|| ip_json(&["link", "show", "eth0"]).unwrap()[0]["operstate"] == "UP").unwrap()
        };
        wait_for(|| up(&bed.container) && up(&bed.client));
        // An address of the kernel's own is tentative until it has looked for duplicates.
        wait_for(|| {
            !bed.container
                .run(|| ip(&["-6", "address", "show", "tentative"]).unwrap().contains("fe80"))
                .unwrap()
        });
        bed
    }

    fn in_a<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.a.run(work).unwrap()
    }

    fn in_b<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.b.run(work).unwrap()
    }

    fn capture(&self) -> NetworkState {
        self.in_a(|| NetworkState::capture(&self.container)).unwrap()
    }

    fn new_name(&self) -> String {
        format!("{}r", self.id)
    }

    /// An echo server inside `namespace` and a client connected to it, with a 3 s limit on its reads.
    fn connect(&self, namespace: &Namespace) -> TcpStream {
        let listener = namespace.run(|| TcpListener::bind((CONTAINER, 0)).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut bytes = [0; 64];
            while let Ok(got @ 1..) = peer.read(&mut bytes) {
                if peer.write_all(&bytes[..got]).is_err() {
                    break;
                }
            }
        });
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        let stream = self.client.run(connect).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        stream
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for part in ["a", "b", "c", "k", "r"] {
            let _ = rebuild::delete_namespace(&format!("{}{part}", self.id));
        }
    }
}

fn lines(lines: &[&str]) {
    ip_batch(&lines.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
}

fn wait_for(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited 10 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// What the kernel counts anew for every interface.
fn stable(mut links: Vec<serde_json::Value>) -> Vec<serde_json::Value> {
    for link in &mut links {
        let link = link.as_object_mut().unwrap();
        link.retain(|key, _| !matches!(key.as_str(), "link_index" | "link_netnsid" | "group"));
        for address in link["addr_info"].as_array_mut().unwrap() {
            // Duplicate detection is over for both: it ended here, and was not begun there.
            address.as_object_mut().unwrap().retain(|key, _| !matches!(key.as_str(), "nodad" | "protocol"));
        }
    }
    links
}

#[test]
fn a_rebuilt_network_is_the_captured_one() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    let state = bed.capture();
    let eth0 = state.links.iter().find(|link| link.name == "eth0").unwrap();
    assert_eq!((eth0.mac.as_str(), eth0.mtu, eth0.tx_queue_length), (MAC, 1400, 500));
    assert_eq!(eth0.addresses.len(), 4, "two of IPv4, one of IPv6, the link-local one");
    let peer = HostPeer { name: "vc1".into(), mtu: 1400, bridge: Some("br0".into()) };
    assert_eq!(eth0.peer.as_ref(), Some(&peer));

    let travelled: NetworkState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    let begun = Instant::now();
    let rebuilt = bed.in_b(|| travelled.rebuild(&bed.new_name(), &NetworkPlan::Same)).unwrap();
    eprintln!("rebuild: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    let operstate = |ns: &Namespace| {
        ns.run(|| ip_json(&["link", "show", "eth0"]).unwrap()[0]["operstate"].clone()).unwrap()
    };
    assert_ne!(operstate(rebuilt.namespace()), "UP");
    assert_eq!(bed.in_b(|| NetworkState::capture(rebuilt.namespace())).unwrap(), state, "while down");

    bed.in_a(|| NetworkAttachment::new(&state, &bed.container).down()).unwrap();
    eprintln!("go: {:.2} ms", rebuilt.go().unwrap().as_secs_f64() * 1e3);
    assert_eq!(operstate(rebuilt.namespace()), "UP");
    assert_eq!(bed.in_b(|| NetworkState::capture(rebuilt.namespace())).unwrap(), state, "when up");
    let raw = |ns: &Namespace| stable(ns.run(|| ip_json(&["address"]).unwrap()).unwrap());
    bed.in_a(|| NetworkAttachment::new(&state, &bed.container).up(&state, &bed.container)).unwrap();
    wait_for(|| operstate(&bed.container) == "UP");
    assert_eq!(raw(rebuilt.namespace()), raw(&bed.container));

    let record: NetworkRecord =
        serde_json::from_str(&serde_json::to_string(rebuilt.record()).unwrap()).unwrap();
    for _ in 0..2 {
        bed.in_b(|| record.remove()).unwrap();
        assert!(!Namespace::path_of(&bed.new_name()).exists());
        assert!(bed.in_b(|| rebuild::index_of("vc1")).is_err());
    }
}

#[test]
fn names_that_are_taken_are_not_touched() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    let state = bed.capture();
    let name = bed.new_name();
    let taken = bed.in_b(|| state.rebuild(bed.container.name().unwrap(), &NetworkPlan::Same)).unwrap_err();
    assert!(matches!(taken, NetworkError::Taken(_)), "{taken}");
    let missing = bed.in_b(|| state.rebuild(&name, &NetworkPlan::Bridge("cable".into()))).unwrap_err();
    assert!(matches!(missing, NetworkError::Missing(_)), "{missing}");
    assert!(!Namespace::path_of(&name).exists());

    bed.in_b(|| lines(&["link add vc1 type bridge"]));
    let rebuilt = bed.in_b(|| state.rebuild(&name, &NetworkPlan::None)).unwrap();
    assert_eq!(rebuilt.host_links()[0].name, "gwveth0");
    assert_eq!(rebuilt.host_links()[0].bridge, None);
    bed.in_b(|| rebuilt.remove()).unwrap();
    assert!(bed.in_b(|| rebuild::index_of("vc1")).is_ok(), "the other's interface is still there");
}

#[test]
fn what_cannot_be_rebuilt_is_named() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    bed.container.run(|| lines(&["link add other0 type bridge"])).unwrap();
    let error = bed.capture().check(&NetworkPlan::Same).unwrap_err().to_string();
    assert!(error.contains("`other0`") && error.contains("`bridge`"), "{error}");
    assert!(bed.capture().check(&NetworkPlan::Hook("/x".into())).is_ok());
    bed.container.run(|| lines(&["link delete other0", "rule add to 10.5.0.0/16 table 7"])).unwrap();
    let error = bed.in_a(|| NetworkState::capture(&bed.container)).unwrap_err().to_string();
    assert!(error.contains("rule"), "{error}");
    assert!(matches!(bed.in_a(|| NetworkState::capture(&bed.a)), Err(NetworkError::HostNetwork(_))));
}

#[test]
fn a_hook_makes_the_interfaces() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    let state = bed.capture();
    let dir = tempfile::tempdir().unwrap();
    let (hook, log) = (dir.path().join("hook"), dir.path().join("log"));
    let script = format!(
        "#!/bin/sh\necho $1 >> {log}\n[ $1 = prepare ] && cat > {log}.json\ncase $1 in\nprepare) ip link add hk type veth peer name eth0 netns {ns} ;;\nup) ip link set hk up ;;\nremove) ip link delete hk ;;\nesac\nexit 0\n",
        log = log.display(),
        ns = bed.new_name()
    );
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let rebuilt = bed.in_b(|| state.rebuild(&bed.new_name(), &NetworkPlan::Hook(hook))).unwrap();
    bed.in_b(|| rebuilt.go()).unwrap();
    let again = bed.in_b(|| NetworkState::capture(rebuilt.namespace())).unwrap();
    assert_eq!(again.routes, state.routes);
    let addresses = |s: &NetworkState| {
        s.links.iter().map(|l| (l.name.clone(), l.mac.clone(), l.addresses.clone())).find(|l| l.0 == "eth0")
    };
    assert_eq!(addresses(&again), addresses(&state));
    bed.in_b(|| rebuilt.remove()).unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "prepare\nup\nremove\n");
    let input: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(log.with_extension("json")).unwrap()).unwrap();
    assert_eq!(serde_json::from_value::<NetworkState>(input["state"].clone()).unwrap(), state);
}

#[test]
fn the_lock_drops_everything_until_unlocked() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    let mut stream = bed.connect(&bed.container);
    ask(&mut stream).unwrap();
    let lock = NetworkLock::of(&bed.container).unwrap();
    assert!(!lock.is_locked().unwrap());
    lock.unlock().unwrap();
    let (mut locking, mut unlocking) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let begun = Instant::now();
        lock.lock().unwrap();
        locking.push(begun.elapsed());
        let begun = Instant::now();
        lock.unlock().unwrap();
        unlocking.push(begun.elapsed());
    }
    eprintln!("lock: {locking:?}\nunlock: {unlocking:?}");
    lock.lock().unwrap();
    lock.lock().unwrap();
    let rules =
        bed.container.run(|| run("nft", &["list", "ruleset"], "", Duration::from_secs(5))).unwrap().unwrap();
    for expected in [
        "table inet godwit",
        "hook input priority -350; policy drop;",
        "hook output priority -350; policy drop;",
    ] {
        assert!(rules.contains(expected), "{rules}");
    }
    drop(lock);
    let lock = NetworkLock::of(&bed.container).unwrap();
    assert!(lock.is_locked().unwrap(), "the lock outlives who made it");

    stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    assert_eq!(ask(&mut stream).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let alive = bed
        .client
        .run(|| run("ping", &["-c1", "-W1", CONTAINER], "", Duration::from_secs(5)).is_ok())
        .unwrap();
    assert!(!alive, "ICMP passes the lock");
    lock.unlock().unwrap();
    lock.unlock().unwrap();
    assert!(!lock.is_locked().unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    ask(&mut stream).unwrap();
    assert!(matches!(bed.in_a(|| NetworkLock::of(&bed.a)), Err(NetworkError::HostNetwork(_))));
}

#[test]
fn go_is_announced_to_the_segment() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    let state = bed.capture();
    bed.in_a(|| NetworkAttachment::new(&state, &bed.container).down()).unwrap();
    let rebuilt = bed.in_b(|| state.rebuild(&bed.new_name(), &NetworkPlan::Bridge("br0".into()))).unwrap();
    NetworkLock::of(rebuilt.namespace()).unwrap().lock().unwrap();
    let ear = bed
        .client
        .run(|| packet::open(rebuild::index_of("eth0").unwrap(), libc::ETH_P_ALL as u16, false))
        .unwrap()
        .unwrap();
    setsockopt(&ear, sockopt::ReceiveTimeout, &TimeVal::milliseconds(300)).unwrap();
    rebuilt.go().unwrap();
    let mut heard = Vec::new();
    let mut frame = [0; 2048];
    while let Ok(got) = recv(ear.as_raw_fd(), &mut frame, MsgFlags::empty()) {
        heard.push(frame[..got].to_vec());
    }
    let mac = announce::parse_mac(MAC).unwrap();
    let arp = |op: u8, ip: [u8; 4]| {
        heard.iter().any(|f| f[6..12] == mac && f[12..14] == [8, 6] && f[21] == op && f[28..32] == ip)
    };
    for ip in [[10, 77, 0, 2], [10, 78, 0, 2]] {
        assert!(arp(1, ip) && arp(2, ip), "no announcement of {ip:?}");
    }
    let fd77 = "fd77::2".parse::<std::net::Ipv6Addr>().unwrap().octets();
    assert!(
        heard.iter().any(|f| f[12..14] == [0x86, 0xdd] && f[54] == 136 && f[62..78] == fd77),
        "no advertisement"
    );
    bed.in_b(|| rebuilt.down()).unwrap();
    let _ = rebuilt.announce();
    let from_it = |got: usize, frame: &[u8]| got > 12 && frame[6..12] == mac;
    while let Ok(got) = recv(ear.as_raw_fd(), &mut frame, MsgFlags::empty()) {
        assert!(!from_it(got, &frame), "something left the network when it was down");
    }
}

#[test]
fn a_detached_container_is_silent_until_it_is_attached_again() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    let begun = Instant::now();
    let state = bed.capture();
    eprintln!("capture: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    let attachment = NetworkAttachment::new(&state, &bed.container);
    assert_eq!(attachment.host_links, ["vc1"]);
    let mut stream = bed.connect(&bed.container);
    ask(&mut stream).unwrap();
    for _ in 0..2 {
        bed.in_a(|| attachment.down()).unwrap();
    }
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(ask(&mut stream).is_err());
    for _ in 0..2 {
        let begun = Instant::now();
        bed.in_a(|| attachment.up(&state, &bed.container)).unwrap();
        eprintln!("attach: {:.2} ms", begun.elapsed().as_secs_f64() * 1e3);
    }
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let fresh = bed.connect(&bed.container);
    ask(&mut { fresh }).unwrap();
    for _ in 0..2 {
        bed.in_a(|| attachment.remove()).unwrap();
    }
    assert!(!bed.container.path().exists() && bed.in_a(|| rebuild::index_of("vc1")).is_err());
}

fn gate(bed: &Bed) -> Gate {
    bed.in_a(|| Gate::of(&bed.container, &["vc1".to_owned()])).unwrap()
}

/// Milliseconds from the opening of the gate to the answer to a request that it held back.
fn answer_after_lock(replay: bool) -> f64 {
    let bed = Bed::new();
    let mut stream = bed.connect(&bed.container);
    ask(&mut stream).unwrap();
    let mut gate = gate(&bed);
    bed.in_a(|| gate.close_input()).unwrap();
    gate.close().unwrap();
    stream.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(40));
    let kept = gate.take();
    assert!(kept.iter().any(|(link, frames)| link == "vc1" && !frames.is_empty()));
    let begun = Instant::now();
    gate.begin_to_open(if replay { kept } else { Vec::new() }).unwrap();
    gate.open().unwrap();
    let opened = begun.elapsed();
    stream.read_exact(&mut [0]).unwrap();
    let took = begun.elapsed().as_secs_f64() * 1e3;
    eprintln!("opened in {opened:?}");
    assert!(!NetworkLock::of(&bed.container).unwrap().is_locked().unwrap());
    ask(&mut stream).unwrap();
    took
}

#[test]
fn replay_spares_the_retransmission_timer() {
    if !able() {
        return;
    }
    let (with, without) = (answer_after_lock(true), answer_after_lock(false));
    eprintln!("gate to answer: {with:.2} ms with replay, {without:.2} ms without");
    assert!(without > 100.0, "nothing was spared: {without} ms");
    assert!(with < 50.0, "the replayed request was not taken: {with} ms");
}

#[test]
fn no_datagram_is_lost_or_doubled_by_the_gate() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    for address in [CONTAINER, "fd77::2"] {
        let server = bed.container.run(|| std::net::UdpSocket::bind((address, 0)).unwrap()).unwrap();
        // what comes while the reader is kept from the processor is not to be dropped there
        nix::sys::socket::setsockopt(&server, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let from = if address == CONTAINER { "10.77.0.1:0" } else { "[fd77::1]:0" };
        let client = bed.client.run(|| std::net::UdpSocket::bind(from).unwrap()).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let mut gate = gate(&bed);
        let (mut sent, mut got) = (0u32, Vec::new());
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (done, client) = (&done, &client);
            let sender = scope.spawn(move || {
                let mut sent = 0u32;
                // a gate that fails must not keep the test from ending
                while !done.load(Ordering::Relaxed) && sent < 50_000 {
                    client.send(&sent.to_be_bytes()).unwrap();
                    sent += 1;
                    std::thread::sleep(Duration::from_micros(100));
                }
                sent
            });
            let reader = scope.spawn(|| {
                let (mut got, mut bytes) = (Vec::new(), [0; 4]);
                while server.recv(&mut bytes).is_ok() {
                    got.push(u32::from_be_bytes(bytes));
                }
                got
            });
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(10));
                bed.in_a(|| gate.close_input()).unwrap();
                std::thread::sleep(Duration::from_millis(10));
                let mut kept = gate.take();
                std::thread::sleep(Duration::from_millis(5));
                // as the source does
                let mut frames: Vec<Frame> = kept.drain(..).flat_map(|(_, frames)| frames).collect();
                frames.extend(gate.take().into_iter().flat_map(|(_, frames)| frames));
                gate.begin_to_open(vec![("vc1".into(), frames)]).unwrap();
                gate.open().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            sent = sender.join().unwrap();
            got = reader.join().unwrap();
        });
        assert!(sent > 200, "{sent}");
        // those that come just before the opening may be overtaken by the next ones, 0.1 ms later
        let overtaken = got.windows(2).filter(|pair| pair[1] < pair[0]).count();
        got.sort_unstable();
        let wrong: Vec<_> = got.windows(2).filter(|pair| pair[1] != pair[0] + 1).take(10).collect();
        assert!(wrong.is_empty() && got.len() == sent as usize, "{} of {sent}: {wrong:?}", got.len());
        assert!(overtaken * 20 < got.len(), "{overtaken} of {sent} overtaken");
    }
}

#[test]
fn neighbour_discovery_passes_the_lock_until_silence() {
    if !able() {
        return;
    }
    let bed = Bed::new();
    let mut gate = gate(&bed);
    let found = || {
        bed.client
            .run(|| {
                lines(&["neigh flush all"]);
                // nothing answers but the resolution of the address
                for (own, address) in [("[::]:0", "[fd77::2]:9"), ("0.0.0.0:0", "10.77.0.2:9")] {
                    std::net::UdpSocket::bind(own).unwrap().send_to(b"x", address).unwrap();
                }
                std::thread::sleep(Duration::from_millis(100));
                let neighbours = ip(&["neigh"]).unwrap();
                ["fd77::2 ", "10.77.0.2 "].map(|address| {
                    neighbours.lines().any(|line| line.starts_with(address) && line.contains(MAC))
                })
            })
            .unwrap()
    };
    bed.in_a(|| gate.close_input()).unwrap();
    gate.close().unwrap();
    assert_eq!(found(), [true, true], "neighbours lose a locked container");
    gate.silence().unwrap();
    gate.silence().unwrap();
    assert_eq!(found(), [false, false], "a silenced container answers");
    gate.begin_to_open(Vec::new()).unwrap();
    gate.open().unwrap();
    assert_eq!(found(), [true, true], "it stays silent");
    let left = bed.container.run(|| run("nft", &["list", "ruleset"], "", Duration::from_secs(5)).unwrap());
    assert_eq!(left.unwrap(), "");
}
