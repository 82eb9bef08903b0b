//! Containers that move between hosts that know each other's keys.

use crate::bed::{Bed, DST, SRC, bed};
use crate::container::{IDLE, Redis, assert_runs_only_on, make_bundle, run_bundle};
use crate::godwit::{Background, godwit, godwit_with};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Makes a host's key; its fingerprint.
pub fn make_key(bed: &Bed, host: &str) -> String {
    let said = godwit_with(bed, host, &[], &["--json", "keys", "new"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let key: Value = serde_json::from_str(said.out.trim()).unwrap();
    key["fingerprint"].as_str().unwrap().to_owned()
}

/// Has a host trust another.
pub fn trust(bed: &Bed, host: &str, name: &str, key: &str) {
    let said = godwit_with(bed, host, &[], &["keys", "trust", name, key]);
    assert_eq!(said.code, 0, "{}", said.err);
}

/// Waits until something listens on the port of TLS.
fn await_port(bed: &Bed, host: &str) {
    let begun = Instant::now();
    while !bed.holds(host, "ss -Hltn sport = :7700 | grep -q .") {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody listens");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Both hosts without keys, also when a test fails.
pub struct Keys<'a>(&'a Bed);

impl<'a> Keys<'a> {
    /// Neither host has any.
    pub fn none(bed: &'a Bed) -> Self {
        let keys = Self(bed);
        keys.remove();
        keys
    }

    fn remove(&self) {
        for host in [SRC, DST] {
            self.0.try_sh(host, "rm -rf /etc/godwit");
        }
    }
}

impl Drop for Keys<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn redis_moves_over_four_connections_that_nobody_else_can_join() {
    let Some(bed) = bed() else { return };
    let _keys = Keys::none(&bed);
    let (src, dst) = (make_key(&bed, SRC), make_key(&bed, DST));
    trust(&bed, SRC, "dst", &dst);
    trust(&bed, DST, "src", &src);
    let redis = Redis::create(&bed, "tls", 64);
    let digest = redis.digest(&bed);
    let listen = ["godwit", "--json", "receive", "--listen", "tls://10.77.0.2", "--forever"];
    let receiver = Background::start(&bed, DST, &listen);
    await_port(&bed, DST);
    let there = [
        "--json",
        "migrate",
        "runc:tls",
        "tls://dst@10.77.0.2",
        "--connections",
        "4",
        "--compress",
        "none",
        "--tcp-established",
        "--max-downtime",
        "30s",
    ];
    let said = godwit(&bed, &there);
    let summary = said.summary();
    assert_eq!(summary["disposition"], "running_at_destination", "{summary}");
    assert!(!said.out.contains("did not come about"), "{}", said.out);
    assert_runs_only_on(&bed, DST, "tls");
    assert_eq!(redis.digest(&bed), digest);
    // the journal says who it was, and the same receiver takes the next one
    let journal = format!("/var/lib/godwit/migrations/{}/journal", summary["migration"].as_str().unwrap());
    assert!(bed.sh(DST, &format!("head -1 {journal}")).contains("src (tls://10.77.0.1:"));
    make_bundle(&bed, "next", IDLE, |_| {});
    run_bundle(&bed, "next");
    let next = ["--json", "migrate", "runc:next", "tls://dst@10.77.0.2:7700", "--max-downtime", "30s"];
    assert_eq!(godwit(&bed, &next).summary()["disposition"], "running_at_destination");
    assert_runs_only_on(&bed, DST, "next");
    receiver.signal("TERM");
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}{}", received.out, received.err);
    assert_eq!(received.lines("received").len(), 2, "{}", received.out);
}

#[test]
fn a_store_is_open_to_those_whom_the_policy_names() {
    let Some(bed) = bed() else { return };
    let _keys = Keys::none(&bed);
    let (src, dst) = (make_key(&bed, SRC), make_key(&bed, DST));
    trust(&bed, SRC, "dst", &dst);
    trust(&bed, DST, "src", &src);
    let visit = |is_allowed: bool| {
        let policy = format!("[[allow]]\nrule = \"near\"\npeers = [\"dst\"]\nstore = {is_allowed}\n");
        bed.write(SRC, "/etc/godwit/policy.toml", &policy);
        let serve = ["godwit", "node", "serve", "--listen", "tls://10.77.0.1:7700"];
        let node = Background::start(&bed, SRC, &serve);
        await_port(&bed, SRC);
        let said = godwit_with(&bed, DST, &[], &["--json", "node", "list", "tls://src@10.77.0.1:7700"]);
        node.signal("TERM");
        let served = node.finish();
        assert_eq!(served.code, 0, "{}", served.err);
        (said.code, said.lines("nodes").remove(0)["neighbours"][0].take())
    };
    let (code, row) = visit(false);
    assert_eq!(code, 1, "{row}");
    assert!(row["failed"].as_str().unwrap().contains("lets `dst` have nothing of its store"), "{row}");
    let (code, row) = visit(true);
    assert_eq!((code, &row["host"]), (0, &bed.sh(SRC, "uname -n").into()), "{row}");
}

#[test]
fn strangers_are_refused_with_the_words_that_would_let_them_in() {
    let Some(bed) = bed() else { return };
    let _keys = Keys::none(&bed);
    make_bundle(&bed, "stranger", IDLE, |_| {});
    run_bundle(&bed, "stranger");
    let migrate = |bed: &Bed| {
        godwit(bed, &["migrate", "runc:stranger", "tls://dst@10.77.0.2", "--max-downtime", "30s"])
    };
    // no key at all
    let said = migrate(&bed);
    assert_eq!(said.code, 13, "{}", said.err);
    assert!(said.err.contains("`godwit keys new`"), "{}", said.err);
    let (src, dst) = (make_key(&bed, SRC), make_key(&bed, DST));
    let receiver = Background::start(&bed, DST, &["godwit", "receive", "--listen", "tls://10.77.0.2"]);
    await_port(&bed, DST);
    // neither knows the other
    let said = migrate(&bed);
    assert_eq!(said.code, 12, "{}", said.err);
    assert!(
        said.err.contains(&format!("`godwit keys trust dst {dst}`")) && said.err.contains(&src),
        "{}",
        said.err
    );
    assert!(said.last_line().contains("runc:stranger was not touched"), "{}", said.err);
    trust(&bed, SRC, "dst", &dst);
    let said = migrate(&bed);
    assert_eq!(said.code, 12, "{}", said.err);
    assert!(said.err.contains("run there: `godwit keys trust ") && said.err.contains(&src), "{}", said.err);
    assert!(said.err.contains("does not trust this host"), "{}", said.err);
    assert_runs_only_on(&bed, SRC, "stranger");
    // trusted from now on, but the policy lets in something else; the receiver was not disturbed by any of this
    trust(&bed, DST, "src", &src);
    receiver.signal("TERM");
    let turned_away = receiver.finish();
    assert_eq!(turned_away.code, 130, "{}", turned_away.err);
    assert!(turned_away.err.contains(&format!("`godwit keys trust NAME {src}`")), "{}", turned_away.err);
    bed.write(
        DST,
        "/etc/godwit/policy.toml",
        "[[allow]]\nrule = \"web only\"\npeers = [\"src\"]\ncontainers = [\"runc:web-*\"]\n",
    );
    let receiver = Background::start(&bed, DST, &["godwit", "receive", "--listen", "tls://10.77.0.2"]);
    await_port(&bed, DST);
    let said = migrate(&bed);
    assert_eq!(said.code, 12, "{}", said.err);
    assert!(said.err.contains("rule `web only` allows no container `runc:stranger`"), "{}", said.err);
    assert_eq!(receiver.finish().code, 12);
    assert_runs_only_on(&bed, SRC, "stranger");
    assert!(!bed.holds(DST, "ls /var/lib/godwit/migrations | grep -q ."), "a refusal leaves nothing");
    // and a rule for its files lets it in
    bed.write(
        DST,
        "/etc/godwit/policy.toml",
        "[[allow]]\nrule = \"all of srv\"\npeers = [\"src\"]\nroots = [\"/srv\"]\nmax-memory = \"1GiB\"\n",
    );
    let receiver = Background::start(&bed, DST, &["godwit", "receive", "--listen", "tls://10.77.0.2"]);
    await_port(&bed, DST);
    let said = migrate(&bed);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(receiver.finish().code, 0);
    assert_runs_only_on(&bed, DST, "stranger");
}
