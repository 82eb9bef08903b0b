//! Migrations by way of a bucket in the third place, between hosts that cannot reach each other.

mod podman;

use crate::bed::{Bed, CLIENT, DST, SRC, bed, skip};
use crate::container::{Redis, assert_runs_only_on, runc_state};
use crate::godwit::Background;
use crate::places::{BUCKETS, URL, godwit, serve};
use crate::probe::Probe;
use crate::tls::{Keys, make_key, trust};
use godwit_s3_server::KEYS;
use std::io::Write;
use std::time::{Duration, Instant};

const PLACE: &str = "s3://of-tests/between";
/// Whatever it takes, and a round 0 that takes some seconds.
const SLOWLY: &[&str] =
    &["--max-downtime", "60s", "--compress", "none", "--bandwidth", "4MiB/s", "--retries", "0"];
/// After so long an end notices at the latest that the other one is dead, and has put everything back.
const NOTICED: Duration = Duration::from_secs(60);

/// Both hosts, which know each other's keys and a bucket, and nothing of each other's network.
struct Apart<'a> {
    bed: &'a Bed,
    container: &'static str,
    redis: Redis,
    probe: Probe<'a>,
    receiver: Background<'a>,
    server: Background<'a>,
    _keys: Keys<'a>,
}

fn environment() -> Vec<String> {
    let keys = KEYS.map(|(name, key)| format!("{name}={key}"));
    [&["env".into(), format!("AWS_ENDPOINT_URL={URL}")], &keys[..]].concat()
}

fn start<'a>(bed: &'a Bed, host: &str, words: &[&str]) -> Background<'a> {
    let environment = environment();
    let environment: Vec<&str> = environment.iter().map(String::as_str).collect();
    Background::start(bed, host, &[&environment[..], &["godwit", "--json"], words].concat())
}

fn receive(bed: &Bed) -> Background<'_> {
    start(bed, DST, &["receive", "--via", PLACE, "--forever"])
}

impl<'a> Apart<'a> {
    fn begin(bed: &'a Bed) -> Self {
        Self::begin_with(bed, "runc:stay", |bed| Redis::create(bed, "stay", 32))
    }

    fn begin_with(bed: &'a Bed, container: &'static str, make: impl Fn(&Bed) -> Redis) -> Self {
        let server = serve(bed, 400);
        let keys = Keys::none(bed);
        let (src, dst) = (make_key(bed, SRC), make_key(bed, DST));
        trust(bed, SRC, "dst", &dst);
        trust(bed, DST, "src", &src);
        let reach = "timeout 3 bash -c 'exec 3<> /dev/tcp/10.77.0.2/22'";
        assert!(bed.holds(SRC, reach), "they reach each other");
        for (host, other) in [(SRC, "10.77.0.2"), (DST, "10.77.0.1")] {
            bed.sh(
                host,
                &format!(
                    "nft 'table inet apart {{
                        chain out {{ type filter hook output priority 0; ip daddr {other} drop; }};
                        chain in {{ type filter hook input priority 0; ip saddr {other} drop; }}; }}'"
                ),
            );
        }
        assert!(!bed.holds(SRC, reach), "they do not reach each other any more");
        let redis = make(bed);
        let probe = Probe::start(bed, &redis);
        Self { bed, container, redis, probe, receiver: receive(bed), server, _keys: keys }
    }

    fn migration(&self, more: &[&str]) -> Background<'a> {
        let words = ["migrate", self.container, "tls://dst", "--via", PLACE, "--tcp-established"];
        start(self.bed, SRC, &[&words[..], more].concat())
    }

    /// All letters that lie in the bucket.
    fn letters(&self) -> String {
        self.bed.sh(CLIENT, &format!("find {BUCKETS}/of-tests -type f"))
    }

    /// Waits until nothing lies there, and no longer than the dead are waited for.
    #[track_caller]
    fn await_nothing(&self) {
        let begun = Instant::now();
        while !self.letters().is_empty() {
            assert!(begun.elapsed() < NOTICED, "letters are left over: {}", self.letters());
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// It runs on one host alone, no write was lost, nothing is left in the place or under way.
    #[track_caller]
    fn end(self, runs_on: &str) {
        assert_runs_only_on(self.bed, runs_on, "stay");
        self.close();
    }

    /// No write was lost, nothing is left in the place or under way.
    #[track_caller]
    fn close(self) {
        self.probe.assert_nothing_lost();
        self.receiver.signal("TERM");
        let received = self.receiver.finish();
        assert_eq!(received.code, 0, "{}{}", received.out, received.err);
        assert_eq!(self.bed.sh(CLIENT, &format!("find {BUCKETS}/of-tests -type f")), "");
        for host in [SRC, DST] {
            let images = "ls -d /var/lib/godwit/migrations/*/images";
            assert!(!self.bed.holds(host, images), "{host}: images are left");
        }
        drop(self.server);
        self.bed.sh(CLIENT, &format!("umount -l {BUCKETS}"));
    }
}

#[test]
fn redis_under_load_moves_between_hosts_that_cannot_reach_each_other() {
    let Some(bed) = bed() else { return };
    let apart = Apart::begin(&bed);
    assert_eq!(apart.redis.ask(&bed, "set word before"), "OK");
    let said = apart.migration(&["--max-downtime", "30s"]).finish();
    let summary = said.summary();
    assert_eq!(summary["disposition"], "running_at_destination", "{summary}");
    assert_eq!(summary["destination"], format!("tls://dst via {PLACE}"), "{summary}");
    assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
    assert_eq!(apart.redis.ask(&bed, "get word"), "before");
    let _ = writeln!(
        std::io::stderr(),
        "by way of a bucket: downtime {} ms, {}, all of it {} ms",
        summary["downtime_us"].as_u64().unwrap() / 1000,
        summary["downtime"],
        summary["duration_us"].as_u64().unwrap() / 1000
    );
    apart.await_nothing();
    apart.end(DST);
}

#[test]
fn a_source_that_is_killed_in_the_rounds_has_it_and_the_same_receiver_takes_it_later() {
    let Some(bed) = bed() else { return };
    let mut apart = Apart::begin(&bed);
    let mut running = apart.migration(SLOWLY);
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_secs(2));
    running.signal("KILL");
    drop(running);
    let begun = Instant::now();
    // it needs nobody to let the container run on
    let said = godwit(&bed, SRC, &["resume"]);
    assert!(said.out.contains("runc:stay is running on this host"), "{}{}", said.out, said.err);
    assert_eq!(apart.redis.ask(&bed, "ping"), "PONG");
    apart.receiver.wait_for("the end of it there", |line| line.contains("running_at_source"));
    assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
    let said = godwit(&bed, SRC, &["resume"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_runs_only_on(&bed, SRC, "stay");
    apart.await_nothing();
    let said = apart.migration(&["--max-downtime", "30s"]).finish();
    assert_eq!(said.summary()["disposition"], "running_at_destination");
    apart.await_nothing();
    apart.end(DST);
}

#[test]
fn what_a_dead_source_has_begun_is_called_back_over_the_place() {
    let Some(bed) = bed() else { return };
    let mut apart = Apart::begin(&bed);
    let mut running = apart.migration(SLOWLY);
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_secs(2));
    running.signal("KILL");
    drop(running);
    apart.receiver.wait_for("the end of it there", |line| line.contains("running_at_source"));
    let parked = "pgrep -f '[g]odwit park$'";
    assert!(bed.holds(DST, parked), "nothing is kept for another attempt");
    let id = bed.sh(SRC, "ls /var/lib/godwit/migrations");
    let said = godwit(&bed, SRC, &["cancel", &id]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("runc:stay is running on this host"), "{}{}", said.out, said.err);
    // there will be none: the other side was told so
    bed.sh(DST, &format!("timeout 10 sh -c \"while {parked}; do sleep 0.1; done\""));
    apart.await_nothing();
    apart.end(SRC);
}

#[test]
fn a_source_that_is_killed_when_it_has_given_its_word_is_resumed_over_the_place() {
    let Some(bed) = bed() else { return };
    if !bed.holds(SRC, "GODWIT_FAULTS=1 godwit --version") {
        return skip("this godwit is built without the feature `faults`");
    }
    let apart = Apart::begin(&bed);
    bed.write(SRC, "/run/godwit-fault", "source committed after kill");
    let said = apart.migration(&["--max-downtime", "30s"]).finish();
    assert!(!bed.holds(SRC, "test -e /run/godwit-fault"), "it was not killed: {}{}", said.out, said.err);
    assert!(said.lines("summary").is_empty(), "{}", said.out);
    // the receiver that holds it has to notice first that nobody speaks to it any more: until then it is busy
    let said = godwit(&bed, SRC, &["resume", "--timeout", "100s"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("runc:stay is running on tls://dst via s3://"), "{}{}", said.out, said.err);
    apart.await_nothing();
    apart.end(DST);
}

#[test]
fn a_receiver_that_is_killed_leaves_it_at_the_source() {
    let Some(bed) = bed() else { return };
    let mut apart = Apart::begin(&bed);
    let mut running = apart.migration(SLOWLY);
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_secs(2));
    apart.receiver.signal("KILL");
    let begun = Instant::now();
    let said = running.finish();
    assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert_eq!(said.lines("exit_error")[0]["disposition"], "running_at_source", "{}", said.out);
    apart.redis.assert_untouched(&bed);
    apart.await_nothing();
    // another one there, and both clear up
    apart.receiver = receive(&bed);
    for host in [SRC, DST] {
        let said = godwit(&bed, host, &["resume"]);
        assert_eq!(said.code, 0, "{host}: {}{}", said.out, said.err);
    }
    assert!(runc_state(&bed, DST, "stay").is_none());
    apart.await_nothing();
    apart.end(SRC);
}

#[test]
fn a_place_that_says_no_is_told_of_before_anything_is_touched() {
    let Some(bed) = bed() else { return };
    let apart = Apart::begin(&bed);
    let tries = |place: &str, more: &[&str]| {
        let words = ["migrate", "runc:stay", "tls://dst", "--tcp-established", "--via", place];
        godwit(&bed, SRC, &[&words[..], more].concat())
    };
    let said = tries("s3://no-such-bucket/x", &[]);
    assert_eq!(said.code, 10, "{}{}", said.out, said.err);
    assert!(said.out.contains("is the bucket there?"), "{}", said.out);
    assert_eq!(said.lines("exit_error")[0]["disposition"], "untouched", "{}", said.out);
    // who waits somewhere else does not answer here
    let said = tries("s3://of-tests/elsewhere", &[]);
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("`godwit receive --via s3://of-tests/elsewhere`"), "{}", said.out);
    let said = tries(PLACE, &["--dry-run"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    apart.redis.assert_untouched(&bed);
    apart.await_nothing();
    apart.end(SRC);
}
