//! Containers that move, and what is there afterwards on both hosts.

use crate::bed::{Bed, DST, SRC, bed};
use crate::container::{IDLE, Redis, add_bind, assert_runs_only_on, make_bundle, run_bundle};
use crate::godwit::{Background, godwit, godwit_with};
use crate::probe::Probe;
use crate::state::State;
use serde_json::Value;
use std::time::{Duration, Instant};

/// What a summary must say whatever was moved.
#[track_caller]
fn assert_sound(bed: &Bed, summary: &Value, from: &str, to: &str) {
    assert_eq!(summary["disposition"], "running_at_destination", "{summary}");
    assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
    let parts = ["freeze_us", "hook_us", "dump_us", "transfer_us", "verify_us", "restore_us", "resume_us"];
    let parts: Vec<u64> = parts.iter().map(|part| summary["downtime"][part].as_u64().unwrap()).collect();
    assert_eq!(
        summary["downtime"].as_object().unwrap().len(),
        parts.len(),
        "a part that is not summed: {summary}"
    );
    let total = summary["downtime_us"].as_u64().unwrap();
    assert_eq!(parts.iter().sum::<u64>(), total, "{summary}");
    assert!(total > 1000, "{summary}");
    let rounds = summary["rounds"].as_array().unwrap();
    assert_eq!(rounds.iter().filter(|round| round["last"] == true).count(), 1, "{summary}");
    assert_eq!(rounds.last().unwrap()["frozen_us"], total, "{summary}");
    assert!(summary["duration_us"].as_u64().unwrap() > total);
    let journal = format!("/var/lib/godwit/migrations/{}/journal", summary["migration"].as_str().unwrap());
    for (host, role) in [(from, "source"), (to, "destination")] {
        let text = bed.sh(host, &format!("cat {journal}"));
        // before the JSON stand its length and its sum
        let json = |line: &str| serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
        let lines: Vec<Value> = text.lines().map(json).collect();
        assert_eq!(
            (&lines[0]["event"], &lines[0]["role"]),
            (&"planned".into(), &role.into()),
            "{host}: {text}"
        );
        let last = lines.last().unwrap();
        assert_eq!(
            (&last["event"], &last["leftovers"]),
            (&"completed".into(), &serde_json::json!([])),
            "{host}: {text}"
        );
    }
}

#[test]
fn redis_under_load_goes_there_and_back() {
    let Some(bed) = bed() else { return };
    let (src_before, dst_before) =
        (State::of(&bed, SRC).without("/srv"), State::of(&bed, DST).without("/srv"));
    let redis = Redis::create(&bed, "load", 64);
    let name = redis.reference();
    let probe = Probe::start(&bed, &redis);
    for (from, to, before) in [(SRC, DST, &src_before), (DST, SRC, &dst_before)] {
        let said = godwit_with(
            &bed,
            from,
            &[],
            &[
                "--json",
                "migrate",
                &name,
                &format!("ssh://{to}"),
                "--tcp-established",
                "--max-downtime",
                "30s",
            ],
        );
        let summary = said.summary();
        assert_sound(&bed, &summary, from, to);
        assert_eq!(summary["strategy"], "pre-copy");
        assert_runs_only_on(&bed, to, "load");
        // the stale copies of its files stay; all else is gone: runc's container, namespace, link, cgroup, images, rules
        before.assert_unchanged_without(&bed, from, "/srv");
        assert_eq!(summary["pid"], crate::container::runc_state(&bed, to, "load").unwrap()["pid"]);
    }
    let report = probe.assert_nothing_lost();
    assert!(report["max_gap_us"].as_u64().unwrap() > 10_000, "the load ran through both moves: {report}");
}

#[test]
fn stop_and_copy_keeps_every_byte() {
    let Some(bed) = bed() else { return };
    let redis = Redis::create(&bed, "sac", 32);
    let digest = redis.digest(&bed);
    let said = godwit(&bed, &["--json", "migrate", "runc:sac", "ssh://dst", "--strategy", "stop-and-copy"]);
    let summary = said.summary();
    assert_sound(&bed, &summary, SRC, DST);
    assert_eq!(summary["strategy"], "stop-and-copy");
    assert_eq!(summary["rounds"][0]["memory_bytes"], 0, "memory moves under the freeze only");
    assert!(summary["rounds"][1]["memory_bytes"].as_u64().unwrap() > 32 << 20, "{summary}");
    assert_eq!(redis.digest(&bed), digest);
    assert_eq!(redis.ask(&bed, "dbsize"), bed.sh(DST, "redis-cli -h 10.77.0.100 dbsize"));
    // what people read ends with one sentence
    let back = godwit_with(&bed, DST, &[], &["migrate", "sac", "ssh://src", "--max-downtime", "30s"]);
    assert_eq!(back.code, 0, "{}{}", back.out, back.err);
    let sentence = back.out.lines().last().unwrap_or_default();
    assert!(sentence.starts_with("sac is running on ssh://src (pid "), "{}", back.out);
    assert_eq!(redis.digest(&bed), digest);
}

#[test]
fn tcp_wants_a_word_and_unix_does_not() {
    let Some(bed) = bed() else { return };
    make_bundle(&bed, "ways", IDLE, |_| {});
    run_bundle(&bed, "ways");
    let dst_before = State::of(&bed, DST);

    let refused = godwit(&bed, &["migrate", "runc:ways", "tcp://10.77.0.2:7700"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("--insecure"), "{}", refused.err);
    let refused = godwit_with(&bed, DST, &[], &["receive", "--listen", "tcp://10.77.0.2:7700"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("--insecure"), "{}", refused.err);
    dst_before.assert_unchanged(&bed, DST);

    let listen = ["godwit", "--json", "receive", "--insecure", "--listen", "tcp://10.77.0.2:7700"];
    let receiver = Background::start(&bed, DST, &listen);
    await_listener(&bed, DST, "ss -Hltn sport = :7700 | grep -q .");
    let said = godwit(
        &bed,
        &["--json", "migrate", "runc:ways", "tcp://10.77.0.2:7700", "--insecure", "--max-downtime", "30s"],
    );
    assert_sound(&bed, &said.summary(), SRC, DST);
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}{}", received.out, received.err);
    assert_eq!(received.lines("received")[0]["disposition"], "running_at_destination");
    assert_runs_only_on(&bed, DST, "ways");

    // two unix sockets, and socat as the way between them
    let receiver =
        Background::start(&bed, SRC, &["godwit", "receive", "--listen", "unix:///run/test.godwit"]);
    await_listener(&bed, SRC, "test -S /run/test.godwit");
    let _far = Background::start(
        &bed,
        SRC,
        &["socat", "TCP-LISTEN:7800,reuseaddr", "UNIX-CONNECT:/run/test.godwit"],
    );
    await_listener(&bed, SRC, "ss -Hltn sport = :7800 | grep -q .");
    let _near = Background::start(&bed, DST, &["socat", "UNIX-LISTEN:/run/test.relay", "TCP:10.77.0.1:7800"]);
    await_listener(&bed, DST, "test -S /run/test.relay");
    let said = godwit_with(
        &bed,
        DST,
        &[],
        &["--json", "migrate", "runc:ways", "unix:///run/test.relay", "--max-downtime", "30s"],
    );
    assert_sound(&bed, &said.summary(), DST, SRC);
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}{}", received.out, received.err);
    assert!(received.out.contains("runc:ways is running here (pid "), "{}", received.out);
    assert_runs_only_on(&bed, SRC, "ways");
    assert!(!bed.holds(SRC, "test -e /run/test.godwit"), "the socket's file is left");
}

fn await_listener(bed: &Bed, host: &str, condition: &str) {
    let begun = Instant::now();
    while !bed.holds(host, condition) {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody listens: {condition}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Threads, children and a counter in a file that stays open.
const TREE: &str = r#"
import os, threading, time
for _ in range(2):
    if os.fork() == 0:
        while True:
            time.sleep(0.02)
threading.Thread(target=lambda: [time.sleep(0.02) for _ in iter(int, 1)], daemon=True).start()
file = os.open("/srv/bare/counter", os.O_RDWR | os.O_CREAT)
count = 0
while True:
    count += 1
    os.pwrite(file, b"%12d" % count, 0)
    time.sleep(0.001)
"#;

/// Starts it as the leader of a session, with no descriptor but three on /dev/null.
const START: &str = r#"
from subprocess import DEVNULL, Popen
print(Popen(["python3", "/srv/tree.py"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True, cwd="/").pid)
"#;

#[test]
fn a_bare_process_tree_keeps_its_numbers_and_goes_on_counting() {
    let Some(bed) = bed() else { return };
    let (src_before, dst_before) =
        (State::of(&bed, SRC).without("/srv"), State::of(&bed, DST).without("/srv"));
    bed.write(SRC, "/srv/tree.py", TREE);
    // numbers that nobody has at the destination
    bed.sh(SRC, "mkdir /srv/bare; echo 50000 > /proc/sys/kernel/ns_last_pid");
    let pid = bed.sh(SRC, &format!("python3 -c '{START}' | tee /run/test.tree.pid"));
    bed.sh(SRC, "while ! test -s /srv/bare/counter; do sleep 0.02; done");
    let tasks = |host: &str| {
        bed.sh(host, &format!("for p in {pid} $(pgrep -P {pid}); do ls /proc/$p/task; done | sort"))
    };
    let count = |host: &str| bed.sh(host, "cat /srv/bare/counter").trim().parse::<u64>().unwrap();
    let before = tasks(SRC);
    assert_eq!(before.lines().count(), 4, "two children and a thread: {before}");

    let said = godwit(
        &bed,
        &[
            "--json",
            "migrate",
            &format!("pid:{pid}"),
            "ssh://dst",
            "--volume",
            "/srv/bare",
            "--max-downtime",
            "30s",
        ],
    );
    let summary = said.summary();
    assert_sound(&bed, &summary, SRC, DST);
    assert_eq!(summary["pid"].to_string(), pid);
    assert_eq!(tasks(DST), before);
    let last_here = count(SRC);
    bed.sh(DST, &format!("echo {pid} > /run/test.tree.pid"));
    let there = count(DST);
    assert!(there >= last_here, "it began anew: {there} after {last_here}");
    std::thread::sleep(Duration::from_millis(200));
    assert!(count(DST) > there, "it does not count on");
    assert_eq!(count(SRC), last_here, "it counts on at the source, too");
    src_before.assert_unchanged_without(&bed, SRC, "/srv");

    let back = godwit_with(
        &bed,
        DST,
        &[],
        &["--json", "migrate", &pid, "ssh://src", "--volume", "/srv/bare", "--max-downtime", "30s"],
    );
    assert_sound(&bed, &back.summary(), DST, SRC);
    assert_eq!(tasks(SRC), before);
    dst_before.assert_unchanged_without(&bed, DST, "/srv");
    bed.sh(SRC, &format!("kill -9 -- -{pid} $(pgrep -P {pid}) {pid} 2> /dev/null; true"));
}

#[test]
fn containers_without_a_link_or_without_a_network_namespace() {
    let Some(bed) = bed() else { return };
    let before = State::of(&bed, SRC).without("/srv");
    make_bundle(&bed, "nolink", IDLE, |_| {});
    make_bundle(&bed, "hostnet", IDLE, |config| {
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|namespace| namespace["type"] != "network");
    });
    for name in ["nolink", "hostnet"] {
        run_bundle(&bed, name);
        let said = godwit(
            &bed,
            &["--json", "migrate", &format!("runc:{name}"), "ssh://dst", "--max-downtime", "30s"],
        );
        assert_sound(&bed, &said.summary(), SRC, DST);
        assert_runs_only_on(&bed, DST, name);
        assert_eq!(bed.sh(DST, &format!("runc exec {name} sh -c 'echo alive'")), "alive");
    }
    before.assert_unchanged_without(&bed, SRC, "/srv");
}

#[test]
fn read_only_data_goes_before_the_freeze_and_never_again() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, "mkdir /srv/rodata && head -c 20M /dev/urandom > /srv/rodata/blob");
    make_bundle(&bed, "ro", IDLE, |config| add_bind(config, "/srv/rodata", "/ro", "ro"));
    run_bundle(&bed, "ro");
    let summary = godwit(
        &bed,
        &["--json", "migrate", "runc:ro", "ssh://dst", "--compress", "none", "--max-downtime", "30s"],
    )
    .summary();
    assert_sound(&bed, &summary, SRC, DST);
    let rounds = summary["rounds"].as_array().unwrap();
    let sum = |key: &str, last: bool| -> u64 {
        rounds.iter().filter(|round| round["last"] == last).map(|round| round[key].as_u64().unwrap()).sum()
    };
    assert!(sum("wire_bytes", false) > 20 << 20, "{summary}");
    assert!(sum("file_bytes", true) < 1 << 20, "read-only data was read under the freeze: {summary}");
    assert!(sum("wire_bytes", true) < 4 << 20, "read-only data was sent under the freeze: {summary}");
    assert_eq!(bed.sh(SRC, "sha256sum /srv/rodata/blob"), bed.sh(DST, "sha256sum /srv/rodata/blob"));
}

#[test]
fn a_single_file_moves_without_its_neighbours() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, "mkdir /srv/conf; echo yes > /srv/conf/app; echo no > /srv/conf/neighbour");
    bed.sh(DST, "mkdir /srv/conf; echo other > /srv/conf/resident");
    make_bundle(&bed, "single", IDLE, |config| add_bind(config, "/srv/conf/app", "/etc/app", "rw"));
    run_bundle(&bed, "single");
    let summary =
        godwit(&bed, &["--json", "migrate", "runc:single", "ssh://dst", "--max-downtime", "30s"]).summary();
    assert_sound(&bed, &summary, SRC, DST);
    assert_eq!(bed.sh(DST, "runc exec single cat /etc/app"), "yes");
    assert_eq!(bed.sh(DST, "ls /srv/conf; cat /srv/conf/*"), "app\nresident\nyes\nother");
}
