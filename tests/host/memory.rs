//! Memory that is read from outside and given back on demand: every tracker, every rung of the ladder that keeps CRIU from
//! dumping pages, every way of restoring, and a handler of page faults that is killed.

use crate::bed::{DST, SRC, quiet_bed};
use crate::container::{Redis, assert_runs_only_on};
use crate::godwit::{Background, godwit, godwit_with};
use crate::probe::Probe;
use serde_json::Value;

/// Moves a redis from the source and checks every byte of it; the summary.
#[track_caller]
fn moved(bed: &crate::bed::Bed, redis: &Redis, flags: &[&str]) -> Value {
    let digest = redis.digest(bed);
    let name = redis.reference();
    let words = [
        &["--json", "migrate", &name, "ssh://dst", "--tcp-established", "--on-timeout", "switchover"][..],
        flags,
    ];
    let summary = godwit(bed, &words.concat()).summary();
    assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
    assert_runs_only_on(bed, DST, &redis.name);
    assert_eq!(redis.digest(bed), digest, "{summary}");
    summary
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("`{value}` is no number"))
}

#[test]
fn memory_comes_on_demand_and_the_next_move_waits_for_it() {
    let Some(bed) = quiet_bed() else { return };
    let redis = Redis::create(&bed, "lazy", 128);
    let probe = Probe::start(&bed, &redis);
    let mut there = (SRC, "ssh://dst");
    for _ in 0..4 {
        let words =
            ["--json", "migrate", "runc:lazy", there.1, "--tcp-established", "--on-timeout", "switchover"];
        let summary = godwit_with(&bed, there.0, &[], &words).summary();
        let memory = &summary["memory"];
        assert_eq!(summary["tracker"], "uffd", "{summary}");
        assert_eq!(memory["rung"], "shim with smaps snapshot", "{summary}");
        assert_eq!(memory["restoration"], "local-lazy", "{summary}");
        assert!(count(&memory["fill"]["pages"]) > 20_000, "{summary}");
        assert_eq!(memory["fill"]["restarts"], 0, "{summary}");
        assert!(count(&memory["expected_downtime_us"]) > 0, "{summary}");
        // at once: memory is still being filled
        there = if there.0 == SRC { (DST, "ssh://src") } else { (SRC, "ssh://dst") };
    }
    probe.assert_nothing_lost();
}

#[test]
fn every_rung_carries_all_of_the_memory() {
    let Some(bed) = quiet_bed() else { return };
    for (flag, rung) in [
        ("shim", "shim"),
        ("fake-parent", "fake parent"),
        ("page-server", "page server"),
        ("plain", "plain dump"),
    ] {
        let redis = Redis::create(&bed, "rung", 16);
        let summary = moved(&bed, &redis, &["--highest-rung", flag]);
        assert_eq!(summary["memory"]["rung"], rung, "{summary}");
        assert_eq!(summary["memory"]["fell"], serde_json::json!([]), "{summary}");
        bed.wipe();
    }
}

#[test]
fn trackers_connections_and_ways_of_restoring() {
    let Some(bed) = quiet_bed() else { return };
    let cases: &[(&[&str], &str, &str)] = &[
        (&["--tracker", "hash"], "hash", "local-lazy"),
        (&["--restore", "eager"], "uffd", "eager"),
        (&["--connections", "1", "--compress", "zstd:3"], "uffd", "local-lazy"),
        (&["--connections", "5", "--bandwidth", "60MiB/s", "--compress", "none"], "uffd", "local-lazy"),
    ];
    for (flags, tracker, restoration) in cases {
        let redis = Redis::create(&bed, "ways", 24);
        let summary = moved(&bed, &redis, flags);
        assert_eq!(summary["tracker"], *tracker, "{summary}");
        assert_eq!(summary["memory"]["restoration"], *restoration, "{summary}");
        bed.wipe();
    }
}

/// `godwit fill` is killed as soon as it is there, and again a moment later: before and during the fill.
/// Has mappings that are divided while it moves, and makes each one again afterwards.
const DIVIDED: &str = include_str!("divided.py");

#[test]
fn a_mapping_that_was_divided_when_it_moved_is_one_again() {
    let Some(bed) = quiet_bed() else { return };
    bed.write(SRC, "/srv/divided-data/divided.py", DIVIDED);
    bed.sh(
        SRC,
        "testbed-container create divided --host-usr --command 'python3 /data/divided.py'
         timeout 20 sh -c 'until [ -e /srv/divided-data/ready.child ] && [ -e /srv/divided-data/ready.parent ]; do sleep 0.05; done'",
    );
    let words = ["--json", "migrate", "runc:divided", "ssh://dst", "--no-copy", "/usr"];
    let summary = godwit(&bed, &words).summary();
    assert_eq!(summary["memory"]["restoration"], "local-lazy", "{summary}");
    let said = bed.sh(
        DST,
        "cd /srv/divided-data && touch go
         timeout 20 sh -c 'until [ -e said.child ] && [ -e said.parent ]; do sleep 0.05; done'; cat said.parent said.child",
    );
    assert_eq!(said, "parent: whole\nchild: whole");
}

#[test]
fn a_handler_that_is_killed_loses_nothing() {
    let Some(bed) = quiet_bed() else { return };
    let redis = Redis::create(&bed, "killed", 192);
    let killer = "
        for n in 1 2 3; do
            for try in $(seq 2000); do
                pid=$(pgrep -f '[f]ill --for' | head -n 1)
                [ -z \"$pid\" ] || [ \"$pid\" = \"$last\" ] || break
                sleep 0.005
            done
            [ \"$n\" = 1 ] || sleep 0.02
            kill -9 \"$pid\" && echo killed
            last=$pid
            # the second is to die in the midst of its work, when the container runs
            [ \"$n\" != 1 ] || until runc state killed 2> /dev/null | grep -q running; do sleep 0.005; done
        done";
    let killing = Background::start(&bed, DST, &["sh", "-c", killer]);
    let summary = moved(&bed, &redis, &[]);
    let killed = killing.finish();
    let restarts = count(&summary["memory"]["fill"]["restarts"]);
    assert!(restarts >= 1, "{summary}\n{}\n{}", killed.out, killed.err);
}

#[test]
fn how_fast_a_container_writes_is_said_before_any_move() {
    let Some(bed) = quiet_bed() else { return };
    let redis = Redis::create(&bed, "rate", 32);
    let check = || {
        let words = ["--json", "check", "--dirty-rate", "runc:rate", "--period", "1s"];
        let said = godwit(&bed, &words);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        serde_json::from_str::<Value>(said.out.trim()).unwrap()
    };
    let idle = check();
    let probe = Probe::start(&bed, &redis);
    let busy = check();
    probe.assert_nothing_lost();
    let rate = |report: &Value| report["pages_per_s"].as_f64().unwrap();
    assert!(rate(&busy) > 1.5 * rate(&idle) && rate(&busy) > 100.0, "{idle}\n{busy}");
    let ways = busy["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 3);
    let downtimes: Vec<u64> = ways.iter().map(|way| count(&way["expected_downtime_us"])).collect();
    assert!(downtimes.is_sorted_by(|one, next| one > next), "{busy}");
    redis.assert_untouched(&bed);
}
