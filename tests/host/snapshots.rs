//! Snapshots of volumes of one moment: a data base at work is whole in them, and whatever happens to godwit its container goes on.

use crate::bed::{Bed, SRC, bed};
use crate::container::{add_bind, make_bundle, run_bundle, runc_state};
use crate::godwit::{Background, godwit};
use crate::postgres_at_work::{SERVE, SUMS};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Starts PostgreSQL on a copy of the container's directory, as after a crash, and gives the sums that must be one, and how many
/// transactions there are.
fn recovered(bed: &Bed, copy: &str, role: &str) -> Vec<i64> {
    let bin = "/usr/lib/postgresql/17/bin";
    let user = "setpriv --reuid 1000 --regid 1000 --clear-groups";
    let script = format!(
        "set -e; rm {copy}/base/postmaster.pid
         {user} {bin}/pg_ctl -D {copy}/base -w -t 60 -l {copy}/log -o '-c unix_socket_directories={copy} -c listen_addresses=' start > /dev/null
         {bin}/psql -U {role} -h {copy} -At -c '{SUMS}' bench
         {bin}/pg_amcheck -U {role} -h {copy} --heapallindexed bench >&2
         {user} {bin}/pg_ctl -D {copy}/base -w -m immediate stop > /dev/null"
    );
    let sums = bed.sh(SRC, &script);
    let log = bed.sh(SRC, &format!("cat {copy}/log"));
    assert!(log.contains("database system was not properly shut down; automatic recovery"), "{log}");
    assert!(!log.contains("PANIC") && !log.contains("invalid page"), "PROMISE BROKEN: {log}");
    sums.split('|').map(|sum| sum.parse().unwrap()).collect()
}

#[test]
fn a_data_base_at_work_is_whole_in_a_snapshot() {
    let Some(bed) = bed() else { return };
    bed.write(SRC, "/srv/pg-data/serve", SERVE);
    bed.sh(
        SRC,
        "testbed-container create pg --host-usr --user 1000 --seccomp default --args sh /data/serve 200
         timeout 100 sh -c 'until [ -e /srv/pg-data/ready ]; do sleep 0.1; done'; sleep 2",
    );
    let ask = |what: &str| {
        let psql = "runc exec pg /usr/lib/postgresql/17/bin/psql -h /data -At";
        bed.sh(SRC, &format!("{psql} -c 'select {what}' bench"))
    };
    let role = ask("current_user");
    let transactions = || ask("count(*) from pgbench_history").parse::<i64>().unwrap();
    for number in 0..2 {
        let before = transactions();
        let said = godwit(
            &bed,
            &["--json", "volume", "snapshot", "/srv/pg-data", "--freeze", "runc:pg", "--freeze-limit", "20s"],
        );
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let after = transactions();
        let line = said.lines("volume_snapshot").remove(0);
        eprintln!(
            "stood still for {} us; {} of {} bytes read",
            line["stood_us"], line["read_bytes"], line["file_bytes"]
        );
        assert!(line["stood_us"].as_u64().is_some_and(|us| us > 0), "{line}");
        let copy = format!("/srv/copy{number}");
        let restored = godwit(&bed, &["volume", "restore", line["id"].as_str().unwrap(), &copy]);
        assert_eq!(restored.code, 0, "{}", restored.err);
        let sums = recovered(&bed, &copy, &role);
        assert!(sums[..4].iter().all(|sum| *sum == sums[0]), "PROMISE BROKEN: {sums:?}");
        assert!((before..=after).contains(&sums[4]), "PROMISE BROKEN: {before} {} {after}", sums[4]);
        assert!(before < after, "it was not at work");
        bed.sh(SRC, &format!("rm -r {copy}"));
    }
    bed.sh(SRC, "pkill -x pgbench; timeout 60 sh -c 'while pgrep -x pgbench; do sleep 0.1; done'");
    let log = bed.sh(SRC, "cat /srv/pg-data/server.log");
    assert!(!log.contains("PANIC") && !log.contains("terminated by signal"), "{log}");
}

/// Writes the time all along, and to a file of 400 MiB, so that the last round has much to read.
const WRITER: &str = r#"
import mmap, os, time
size = 400 << 20
file = os.open("/data/large", os.O_RDWR | os.O_CREAT)
block = os.urandom(1 << 20)
for _ in range(400): os.write(file, block)
place = mmap.mmap(file, size)
beat = os.open("/data/beat", os.O_RDWR | os.O_CREAT)
number = 0
while True:
    number += 1
    place[number * 7919 * 4096 % (4 << 20)] = number % 256
    os.pwrite(beat, str(number).encode(), 0)
    if number == 100: open("/data/ready", "w").close()
    time.sleep(0.002)
"#;

fn start_writer(bed: &Bed) {
    bed.write(SRC, "/srv/writer-data/writer.py", WRITER);
    bed.sh(
        SRC,
        "testbed-container create writer --host-usr --args python3 /data/writer.py
         timeout 60 sh -c 'until [ -e /srv/writer-data/ready ]; do sleep 0.1; done'",
    );
}

fn state(bed: &Bed) -> Value {
    runc_state(bed, SRC, "writer").expect("it is there")["status"].clone()
}

fn beat(bed: &Bed) -> u64 {
    bed.sh(SRC, "cat /srv/writer-data/beat").parse().unwrap()
}

/// It writes again soon, and anybody may have it.
#[track_caller]
fn assert_goes_on(bed: &Bed) {
    let begun = Instant::now();
    while state(bed) != "running" {
        assert!(begun.elapsed() < Duration::from_secs(5), "it stands still");
    }
    let before = beat(bed);
    std::thread::sleep(Duration::from_millis(300));
    assert!(beat(bed) > before, "it stands still");
    assert_eq!(bed.sh(SRC, "pgrep -f 'godwit [l]et-go' || true"), "");
}

/// A snapshot that is under way, for which the container stands still; it was sent a signal then.
fn standing<'a>(bed: &'a Bed, limit: &str, signal: &str) -> Background<'a> {
    let words = [
        "godwit",
        "volume",
        "snapshot",
        "/srv/writer-data",
        "--freeze",
        "runc:writer",
        "--freeze-limit",
        limit,
    ];
    let snapshot = Background::start(bed, SRC, &words);
    // no program is started: it does not stand still for long
    let wait = "until [ \"$frozen\" = 1 ]; do
            while read name value; do [ $name != frozen ] || frozen=$value; done < /sys/fs/cgroup/writer/cgroup.events
        done";
    bed.sh(SRC, &format!("timeout 60 sh -c '{wait}; kill -{signal} {}'", snapshot.pid));
    snapshot
}

#[test]
fn whatever_happens_to_godwit_the_container_goes_on() {
    let Some(bed) = bed() else { return };
    start_writer(&bed);
    for signal in ["KILL", "TERM"] {
        let snapshot = standing(&bed, "30s", signal);
        assert_goes_on(&bed);
        assert_ne!(snapshot.finish().code, 0, "{signal}");
    }
    // one that does nothing any more is not waited for
    let snapshot = standing(&bed, "1s", "STOP");
    std::thread::sleep(Duration::from_millis(1300));
    assert_goes_on(&bed);
    snapshot.signal("CONT");
    let said = snapshot.finish();
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains("does not stand still"), "{}", said.err);
    // nor one that was killed together with it: nobody is there to let it go, and its owner can
    let snapshot = standing(&bed, "30s", "STOP");
    bed.sh(SRC, "kill -KILL $(pgrep -f 'godwit [l]et-go')");
    snapshot.signal("KILL");
    assert_eq!(state(&bed), "paused");
    let refused = godwit(&bed, &["volume", "snapshot", "/srv/writer-data", "--freeze", "runc:writer"]);
    assert_ne!(refused.code, 0);
    assert_eq!(state(&bed), "paused", "who stands still for somebody else stays so: {}", refused.err);
    bed.sh(SRC, "runc resume writer");
    assert_goes_on(&bed);
    let listed = godwit(&bed, &["--json", "volume", "list"]).lines("volume_snapshots").remove(0);
    assert_eq!(listed["snapshots"], serde_json::json!([]), "none was whole");
    let taken = godwit(
        &bed,
        &["volume", "snapshot", "/srv/writer-data", "--freeze", "runc:writer", "--freeze-limit", "60s"],
    );
    assert_eq!(taken.code, 0, "{}", taken.err);
    assert_goes_on(&bed);
}

#[test]
fn who_else_uses_the_volume_is_named() {
    let Some(bed) = bed() else { return };
    start_writer(&bed);
    let snapshot =
        |flags: &[&str]| godwit(&bed, &[&["volume", "snapshot", "/srv/writer-data"], flags].concat());
    let stranger =
        Background::start(&bed, SRC, &["sh", "-c", "cd /srv/writer-data; echo there; exec sleep 60"]);
    let mut stranger = stranger;
    stranger.wait_for("its directory", |line| line == "there");
    let said = snapshot(&["--freeze", "runc:writer"]);
    assert_eq!(said.code, 11, "{}", said.err);
    assert!(said.err.contains("(sleep) has something of it open"), "{}", said.err);
    drop(stranger);
    assert_eq!(snapshot(&["--freeze", "runc:nobody"]).code, 10);
    assert_eq!(state(&bed), "running");
    // it takes longer than it may
    let said = snapshot(&["--freeze", "runc:writer", "--freeze-limit", "1ms"]);
    assert_eq!(said.code, 1, "{}", said.err);
    assert_goes_on(&bed);
    // stood still for by another one
    let standing = standing(&bed, "30s", "STOP");
    let said = snapshot(&["--freeze", "runc:writer"]);
    assert_eq!(said.code, 10, "{}", said.err);
    let said = godwit(&bed, &["migrate", "runc:writer", "ssh://dst", "--no-copy", "/usr"]);
    assert_eq!(said.code, 10, "{}", said.err);
    assert_eq!(state(&bed), "paused");
    standing.signal("CONT");
    assert_eq!(standing.finish().code, 0);
    assert_goes_on(&bed);
}

/// Counts.
const COUNTS: &str = r#"
import os, time
place = os.open("/data/a", os.O_RDWR | os.O_CREAT)
number = 0
while True:
    number += 1
    os.pwrite(place, b"%012d" % number, 0)
    time.sleep(0.0005)
"#;

/// Writes down what the other one has counted.
const REPEATS: &str = r#"
import os, time
while not os.path.exists("/data/a"): time.sleep(0.01)
source, place = os.open("/data/a", os.O_RDONLY), os.open("/data/b", os.O_RDWR | os.O_CREAT)
while True:
    os.pwrite(place, os.pread(source, 12, 0), 0)
    time.sleep(0.0005)
"#;

#[test]
fn all_who_share_a_volume_stand_still_together() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, "mkdir /srv/shared");
    for (name, program) in [("counts", COUNTS), ("repeats", REPEATS)] {
        make_bundle(&bed, name, &["python3", "/program.py"], |config| {
            add_bind(config, "/srv/shared", "/data", "rw");
        });
        bed.write(SRC, &format!("/srv/{name}/rootfs/program.py"), program);
        run_bundle(&bed, name);
    }
    bed.sh(SRC, "timeout 20 sh -c 'until [ -s /srv/shared/b ]; do sleep 0.1; done'");
    let snapshot = |flags: &[&str]| {
        let words = ["--json", "volume", "snapshot", "/srv/shared", "--freeze-limit", "10s"];
        godwit(&bed, &[&words, flags].concat())
    };
    let one_alone = snapshot(&["--freeze", "runc:counts"]);
    assert_eq!(one_alone.code, 11, "the other one writes, too: {}{}", one_alone.out, one_alone.err);
    for number in 0..3 {
        let said = snapshot(&["--freeze", "runc:counts", "--freeze", "runc:repeats"]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let line = said.lines("volume_snapshot").remove(0);
        let copy = format!("/srv/copy{number}");
        let restored = godwit(&bed, &["volume", "restore", line["id"].as_str().unwrap(), &copy]);
        assert_eq!(restored.code, 0, "{}", restored.err);
        let read = |name: &str| bed.sh(SRC, &format!("cat {copy}/{name}")).parse::<u64>().unwrap();
        let (counted, repeated) = (read("a"), read("b"));
        assert!(repeated <= counted, "PROMISE BROKEN: of no one moment: {repeated} of {counted}");
        assert!(counted > 0 && repeated > 0);
        for name in ["counts", "repeats"] {
            assert_eq!(runc_state(&bed, SRC, name).unwrap()["status"], "running");
        }
    }
}

#[test]
fn a_followed_container_of_podman_stands_still_each_time() {
    let Some(bed) = bed() else { return };
    let beats = "n=0; while :; do n=$((n + 1)); echo $n > /data/beat; sleep 0.05; done";
    bed.sh(
        SRC,
        &format!(
            "testbed-container image
             podman run -d --name web --network none -v beats:/data localhost/redis:test sh -c '{beats}'"
        ),
    );
    let words = [
        "godwit",
        "--json",
        "volume",
        "follow",
        "podman:beats",
        "--freeze",
        "podman:web",
        "--interval",
        "1s",
    ];
    let mut follow = Background::start(&bed, SRC, &[&words[..], &["--keep-last", "2"]].concat());
    for _ in 0..4 {
        follow.wait_for("a snapshot", |line| line.contains("volume_snapshot"));
    }
    follow.signal("INT");
    let said = follow.finish();
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(
        said.lines("volume_snapshot").iter().all(|line| line["stood_us"].as_u64() > Some(0)),
        "{}",
        said.out
    );
    let listed = godwit(&bed, &["--json", "volume", "list"]).lines("volume_snapshots").remove(0);
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Status}}' web"), "running");
    let beat = || bed.sh(SRC, "podman exec web cat /data/beat");
    let before = beat();
    std::thread::sleep(Duration::from_millis(300));
    assert_ne!(beat(), before, "it stands still");
    assert_eq!(bed.sh(SRC, "pgrep -f 'godwit [l]et-go' || true"), "");
}
