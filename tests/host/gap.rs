//! How long a client waits when a container moves: the downtime and a few milliseconds, whatever it speaks.

use crate::bed::{Bed, CLIENT, DST, SRC, quiet_bed};
use crate::container::{make_bundle, run_bundle};
use crate::godwit::{Background, godwit_with};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The server in the container.
const ECHO: &str = include_str!("echo.py");
/// Its addresses; the second interface has the last one.
const IPV4: &str = "10.77.0.120:7007";
const IPV6: &str = "[fd77::120]:7007";
const SECOND: &str = "10.78.0.120:7007";
/// Where the container connects to; whoever connects to the other port of the relay talks to it.
const RELAY: [u16; 2] = [7100, 7101];
/// A client may wait so much longer than the container, milliseconds.
const ALLOWED: f64 = 10.0;
/// Datagrams of one that leave every 2 ms.
const OVERTAKEN: u64 = 60;
/// One slow wake-up on a busy machine is not a property of the program: the middle one of so many moves counts.
const MOVES: usize = 3;

/// Joins whoever connects to one port with whoever connects to the other, again and again.
fn relay(bed: &Bed) -> Background<'_> {
    let [inner, outer] = RELAY.map(|port| format!("TCP-LISTEN:{port},reuseaddr,nodelay"));
    // the one of an earlier test outlives its shell
    bed.sh(CLIENT, "for p in $(pgrep -x socat); do kill -9 $p; done");
    let words = format!("while :; do socat -b 262144 {inner} {outer}; done");
    let relay = Background::start(bed, CLIENT, &["sh", "-c", &words]);
    await_listener(bed, CLIENT, RELAY[0]);
    relay
}

/// An echo server with two interfaces on the source; with `outward` it connects to the relay, too.
fn serve<'a>(bed: &'a Bed, outward: bool) -> Option<Background<'a>> {
    bed.sh(
        CLIENT,
        "ip address replace fd77::3/64 dev eth1 nodad; ip address replace 10.78.0.3/24 dev eth1; ip neigh flush all",
    );
    bed.sh(
        SRC,
        "ip netns add gap && ip -n gap link set lo up
         for n in 0 1; do
             ip link add v-gap$n type veth peer name eth$n address 02:42:0a:4d:00:7$n netns gap
             ip link set v-gap$n master br0 up
         done
         ip -n gap address add 10.77.0.120/24 dev eth0
         ip -n gap address add fd77::120/64 dev eth0 nodad
         ip -n gap address add 10.78.0.120/24 dev eth1
         ip -n gap link set eth0 up && ip -n gap link set eth1 up",
    );
    let relay = outward.then(|| relay(bed));
    let (port, mut args) = (RELAY[0].to_string(), vec!["python3", "/echo.py"]);
    args.extend(if outward { vec!["10.77.0.3", &port] } else { vec![] });
    make_bundle(bed, "gap", &args, |config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = "/run/netns/gap".into();
            }
        }
    });
    bed.write(SRC, "/srv/gap/rootfs/echo.py", ECHO);
    run_bundle(bed, "gap");
    let begun = Instant::now();
    while !bed.holds(SRC, "ip netns exec gap ss -Hltn sport = :7007 | grep -q '\\[::\\]'") {
        assert!(begun.elapsed() < Duration::from_secs(20), "the server does not listen");
    }
    relay
}

fn await_listener(bed: &Bed, host: &str, port: u16) {
    let begun = Instant::now();
    while !bed.holds(host, &format!("ss -Hltn sport = :{port} | grep -q .")) {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody listens on {port}");
    }
}

/// A client of one kind.
struct Client<'a> {
    kind: &'static str,
    running: Background<'a>,
    ready: String,
}

impl<'a> Client<'a> {
    fn start(bed: &'a Bed, kind: &'static str, address: &str, more: &str) -> Self {
        let ready = format!("/run/test.{kind}");
        let words =
            format!("rm -f {ready}; exec godwit --json --quiet probe {address} {more} --ready-file {ready}");
        let running = Background::start(bed, CLIENT, &["sh", "-c", &words]);
        Self { kind, running, ready }
    }

    fn await_ready(&self, bed: &Bed) {
        let begun = Instant::now();
        while !bed.holds(CLIENT, &format!("test -e {}", self.ready)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}: no answer", self.kind);
        }
    }

    /// Asserts that every request was answered, in order and on the same connection; the longest wait for an answer, ms.
    #[track_caller]
    fn finish(self) -> f64 {
        self.running.signal("INT");
        let said = self.running.finish();
        let report =
            said.lines("probe").pop().unwrap_or_else(|| panic!("{}: {}{}", self.kind, said.out, said.err));
        let datagrams = self.kind.starts_with("udp");
        let errors = if datagrams { "connections_lost" } else { "errors" };
        // datagrams that came to the old place at the very end may be overtaken, but are not lost
        assert!(
            !datagrams || report["sequence_errors"].as_u64().unwrap() <= OVERTAKEN,
            "{}: {report}",
            self.kind
        );
        for none in ["unanswered", errors, "reconnects"] {
            assert_eq!(report[none], 0, "{}: {none}: {report}", self.kind);
        }
        assert!(report["answered"].as_u64().unwrap() > 50, "{}: {report}", self.kind);
        report["latency_us"]["max"].as_f64().unwrap() / 1e3
    }
}

/// Kind, address and options of each client.
type Kinds<'k> = [(&'static str, &'k str, &'k str)];

/// Runs every kind of client during one attempt to move; what it said, and how long each of them waited, ms.
fn attempt<T>(bed: &Bed, kinds: &Kinds, attempt: impl FnOnce() -> T) -> (T, Vec<f64>) {
    if kinds.iter().any(|(_, address, _)| address.ends_with(&RELAY[1].to_string())) {
        await_listener(bed, CLIENT, RELAY[1]);
    }
    let clients: Vec<_> =
        kinds.iter().map(|(kind, address, more)| Client::start(bed, kind, address, more)).collect();
    clients.iter().for_each(|client| client.await_ready(bed));
    std::thread::sleep(Duration::from_millis(200));
    let said = attempt();
    // what comes after the switchover counts, too: a retransmission timer that was started then
    std::thread::sleep(Duration::from_millis(1200));
    (said, clients.into_iter().map(Client::finish).collect())
}

fn move_there(bed: &Bed, from: &str, to: &str, environment: &[&str]) -> Value {
    let words = [
        "--json",
        "migrate",
        "runc:gap",
        &format!("ssh://{to}"),
        "--tcp-established",
        "--max-downtime",
        "30s",
    ];
    let said = godwit_with(bed, from, environment, &words);
    said.summary()
}

/// How much longer than the container each client waited in the middle one of some moves, ms.
fn excess(bed: &Bed, kinds: &Kinds, environment: &[&str]) -> Vec<f64> {
    let mut all = vec![Vec::new(); kinds.len()];
    let (mut from, mut to) = (SRC, DST);
    for _ in 0..MOVES {
        let (summary, waits) = attempt(bed, kinds, || move_there(bed, from, to, environment));
        // a round before the last may stand still, too, and longer
        let rounds = summary["rounds"].as_array().unwrap().iter();
        let downtime = rounds.filter_map(|round| round["frozen_us"].as_f64()).fold(0.0, f64::max) / 1e3;
        for ((kind, ..), (wait, all)) in kinds.iter().zip(waits.iter().zip(&mut all)) {
            tell(&format!(
                "{kind}: frozen {downtime:.1} ms, waited {wait:.1} ms, {:+.1} ms",
                wait - downtime
            ));
            all.push(wait - downtime);
        }
        std::mem::swap(&mut from, &mut to);
    }
    all.iter_mut().for_each(|of_kind| of_kind.sort_by(f64::total_cmp));
    all.iter().map(|of_kind| of_kind[of_kind.len() / 2]).collect()
}

/// Not by a macro: those are silent in a test that passes.
fn tell(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[track_caller]
fn assert_all_below(kinds: &Kinds, excess: &[f64]) {
    for ((kind, ..), excess) in kinds.iter().zip(excess) {
        assert!(*excess <= ALLOWED, "{kind}: the client waited {excess:.1} ms longer than the container");
    }
}

#[test]
fn clients_of_every_kind_wait_no_longer_than_the_container() {
    let Some(bed) = quiet_bed() else { return };
    let kinds: &Kinds = &[
        ("tcp4", &format!("tcp://{IPV4}"), "--interval 2ms"),
        ("tcp6", &format!("tcp://{IPV6}"), "--interval 2ms"),
        ("udp4", &format!("udp://{IPV4}"), "--interval 2ms"),
        ("udp6", &format!("udp://{IPV6}"), "--interval 2ms"),
        ("tcp4-second-interface", &format!("tcp://{SECOND}"), "--interval 5ms"),
        ("tcp4-one-at-a-time", &format!("tcp://{IPV4}"), "--interval 5ms --max-outstanding 1"),
    ];
    let _relay = serve(&bed, false);
    assert_all_below(kinds, &excess(&bed, kinds, &[]));
}

#[test]
fn many_connections_and_one_of_its_own_making() {
    let Some(bed) = quiet_bed() else { return };
    let kinds: &Kinds = &[
        ("outward", &format!("tcp://127.0.0.1:{}", RELAY[1]), "--interval 2ms"),
        ("tcp4-fifty", &format!("tcp://{IPV4}"), "--interval 1ms --connections 50"),
    ];
    let _relay = serve(&bed, true);
    assert_all_below(kinds, &excess(&bed, kinds, &[]));
}

#[test]
fn bulk_in_both_directions() {
    let Some(bed) = quiet_bed() else { return };
    let kinds: &Kinds = &[
        ("bulk4", &format!("tcp://{IPV4}"), "--interval 4ms --value-size 128KiB --max-outstanding 4"),
        ("bulk6", &format!("tcp://{IPV6}"), "--interval 4ms --value-size 128KiB --max-outstanding 4"),
    ];
    let _relay = serve(&bed, false);
    assert_all_below(kinds, &excess(&bed, kinds, &[]));
}

#[test]
fn a_rollback_costs_the_client_no_more_than_the_freeze() {
    let Some(bed) = quiet_bed() else { return };
    bed.write(
        DST,
        "/root/test-runc",
        "#!/bin/sh\ncase \" $* \" in *\" restore \"*) exit 1;; esac\nexec runc \"$@\"\n",
    );
    let there = "GODWIT_REMOTE_COMMAND=env GODWIT_RUNC=/root/test-runc godwit receive --stdio";
    let kinds: &Kinds = &[
        ("tcp4", &format!("tcp://{IPV4}"), "--interval 5ms --max-outstanding 1"),
        ("tcp6", &format!("tcp://{IPV6}"), "--interval 2ms"),
        ("udp6", &format!("udp://{IPV6}"), "--interval 2ms"),
    ];
    let _relay = serve(&bed, false);
    let mut all = vec![Vec::new(); kinds.len()];
    for _ in 0..MOVES {
        let words =
            ["--json", "migrate", "runc:gap", "ssh://dst", "--tcp-established", "--max-downtime", "30s"];
        let (said, waits) = attempt(&bed, kinds, || godwit_with(&bed, SRC, &[there], &words));
        let error = said.lines("exit_error").pop().unwrap_or_else(|| panic!("{}{}", said.out, said.err));
        assert_eq!(error["disposition"], "running_at_source", "{error}");
        let frozen = frozen_ms(&error);
        for ((kind, ..), (wait, all)) in kinds.iter().zip(waits.iter().zip(&mut all)) {
            tell(&format!("{kind}: frozen {frozen:.1} ms, waited {wait:.1} ms, {:+.1} ms", wait - frozen));
            all.push(wait - frozen);
        }
    }
    all.iter_mut().for_each(|of_kind| of_kind.sort_by(f64::total_cmp));
    assert_all_below(kinds, &all.iter().map(|of_kind| of_kind[of_kind.len() / 2]).collect::<Vec<_>>());
}

/// How long the container stood still, from what the failure says, ms.
fn frozen_ms(error: &Value) -> f64 {
    let causes: Vec<&str> = error["causes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let said = causes.iter().find_map(|cause| cause.strip_prefix("it was thawed here after "));
    let (number, unit) = said.and_then(|said| said.split_once(' ')).unwrap_or_else(|| panic!("{error}"));
    number.parse::<f64>().unwrap() * if unit == "s" { 1e3 } else { 1.0 }
}

#[test]
fn an_answer_that_was_lost_is_not_repeated_after_three_seconds() {
    let Some(bed) = quiet_bed() else { return };
    let _relay = serve(&bed, false);
    for (kind, address) in [("tcp4", IPV4), ("tcp6", IPV6)] {
        let (from, to) = if kind == "tcp4" { (SRC, DST) } else { (DST, SRC) };
        let client =
            Client::start(&bed, kind, &format!("tcp://{address}"), "--interval 5ms --max-outstanding 1");
        client.await_ready(&bed);
        std::thread::sleep(Duration::from_millis(300));
        // what the container says is lost from now on, until it is elsewhere
        bed.sh(
            from,
            "nft 'add table netdev lossy
                  add chain netdev lossy in { type filter hook ingress device v-gap0 priority 0; policy drop; }'",
        );
        let summary = move_there(&bed, from, to, &[]);
        bed.try_sh(from, "nft delete table netdev lossy");
        std::thread::sleep(Duration::from_millis(1500));
        let journal =
            format!("/var/lib/godwit/migrations/{}/journal", summary["migration"].as_str().unwrap());
        client.running.signal("INT");
        let said = client.running.finish();
        let report = said.lines("probe").pop().unwrap();
        let gap = &report["gaps"][0];
        let answered = gap["start_unix_us"].as_f64().unwrap() + gap["duration_us"].as_f64().unwrap();
        let text = bed.sh(to, &format!("cat {journal}"));
        let running = text.lines().find(|line| line.contains(r#""event":"running""#)).unwrap();
        let running: Value = serde_json::from_str(running.splitn(4, ' ').last().unwrap()).unwrap();
        let waited = (answered - running["unix_us"].as_f64().unwrap()) / 1e3;
        tell(&format!("{kind}: answered {waited:.0} ms after it ran"));
        assert!(gap["open"] == false && waited < 600.0, "{kind}: {waited:.0} ms: {report}");
        assert_eq!(report["reconnects"], 0, "{report}");
    }
}
