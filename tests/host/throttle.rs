//! A container that writes as fast as it can converges when it may be throttled, and has the CPU limit that it had on every way
//! out: moved, rolled back, and after the death of godwit.
//!
//! This kernel may have its CPU controller in cgroup v1, which only the hosts with the old hierarchies see.

use crate::cgroup_v1::OldHosts;
use crate::program::PROGRAM;
use serde_json::Value;

const NAME: &str = "fast";
/// The limit that the container has of its own: 1.5 processors, in µs of 100 ms.
const OWN: &str = "150000";
/// A link that no full-speed writer can be followed over, throttled or not, and no downtime in which it would not matter.
const SLOW: &str =
    "--pace full --throttle 90 --max-downtime 110ms --bandwidth 16MiB/s --compress none --max-rounds 60";

/// Starts the writer on the source; gives the file with its CPU limit, the same on both hosts.
fn start(mib: u32) -> String {
    for host in ["src", "dst"] {
        OldHosts::sh(
            host,
            &format!("testbed-container remove {NAME}; ip netns del godwit-{NAME} 2> /dev/null; true"),
        );
    }
    let command = format!("/godwit-workload dirty --dir /data/w --size {mib} --rate full");
    OldHosts::sh("src", &format!("testbed-container create {NAME} --command '{command}'"));
    OldHosts::sh("src", &format!("until [ -e /srv/{NAME}-data/w/ready ]; do sleep 0.05; done"));
    let file = OldHosts::sh("src", &format!("find /sys/fs/cgroup/cpu/ -path '*/{NAME}/cpu.cfs_quota_us'"));
    assert!(!file.is_empty(), "the container has a CPU cgroup");
    file
}

fn limit(host: &str, file: &str) -> String {
    OldHosts::sh(host, &format!("cat {file}"))
}

fn summary(flags: &str) -> Value {
    let out = OldHosts::sh("src", &format!("godwit --json migrate runc:{NAME} ssh://dst {flags}"));
    let lines = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.rev().find(|line| line["message_type"] == "summary").unwrap()
}

/// Starts a migration that throttles, and does something to it as soon as that has begun; the exit code of godwit.
fn in_the_midst(then: &str) -> String {
    let script = format!(
        "rm -f /tmp/told; godwit --json migrate runc:{NAME} ssh://dst {SLOW} > /tmp/told & p=$!
        for try in $(seq 600); do grep -qs 'throttled to' /tmp/told && break; sleep 0.05; done
        {then}
        wait $p; echo $?"
    );
    OldHosts::sh("src", &script).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_writer_at_full_speed_converges_and_has_its_own_limit_afterwards() {
    // the other bed first: it says whether test hosts can be had at all, and keeps other tests off the processors
    let Some(_others_wait) = crate::bed::quiet_bed() else { return };
    let _down = OldHosts::up();
    OldHosts::must(&["push", &PROGRAM.to_string_lossy(), "/usr/local/bin/godwit-workload"]);

    let slow = {
        start(384);
        // standing back for it would only take longer
        summary("--on-timeout switchover --pace full")
    };
    assert_eq!(slow["throttle"], Value::Null, "not asked for: {slow}");
    let file = start(384);
    assert_eq!(limit("src", &file), "-1");
    let fast = summary("--on-timeout switchover --throttle 90");
    let downtime = |summary: &Value| summary["downtime_us"].as_u64().unwrap();
    assert!(
        downtime(&fast) <= 300_000 || downtime(&fast) < downtime(&slow),
        "throttling did not help:\n{slow}\n{fast}"
    );
    // without it all of the memory is written again in every round, the last one, too
    let last = |summary: &Value| {
        summary["rounds"].as_array().unwrap().last().unwrap()["memory_bytes"].as_u64().unwrap()
    };
    assert!(last(&fast) * 2 < last(&slow), "{slow}\n{fast}");
    let most = fast["throttle"]["most_percent"].as_u64().unwrap();
    assert!((20..=90).contains(&most) && fast["throttle"]["duration_us"].as_u64().unwrap() > 0, "{fast}");
    assert_eq!(limit("dst", &file), "-1", "the destination knows nothing of it");

    // a limit of its own, whatever happens
    let file = start(48);
    OldHosts::sh("src", &format!("echo {OWN} > {file}"));
    assert_eq!(in_the_midst("kill -INT $p"), "130");
    assert_eq!(limit("src", &file), OWN, "after Ctrl-C");
    assert_eq!(in_the_midst("kill -9 $p"), "137");
    assert_ne!(limit("src", &file), OWN, "nobody could put it back");
    let told = OldHosts::sh("src", "sleep 0.3; godwit status 2>&1");
    assert!(told.contains(&format!("`runc:{NAME}` has its CPU limit again")), "{told}");
    assert_eq!(limit("src", &file), OWN, "after the next command");
    let told = OldHosts::sh("src", "godwit status 2>&1");
    assert!(!told.contains("has its CPU limit again"), "{told}");
}
