//! Tests on two virtual machines, whose kernel tracks dirty pages: CRIU's pre-dump rounds, from the first page to the
//! flattened image that is restored.
//!
//! The machines are emulated, 6 to 29 times slower than this one: outcomes are asserted, not times. They need root and
//! `scripts/testbed`. What cannot be run says why; with `GODWIT_REQUIRE=all` it fails.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod chaos;
mod engines;
#[path = "../host/five_moves.rs"]
mod five_moves;
#[path = "../host/hosts.rs"]
mod hosts;
#[path = "../host/inspected.rs"]
mod inspected;
mod kept;
mod kernels;
mod machines;
mod podman;
#[path = "../host/postgres_at_work.rs"]
mod postgres_at_work;
mod power;
#[path = "../host/program.rs"]
mod program;
#[path = "../host/redis_at_work.rs"]
mod redis_at_work;
mod versions;
mod workload;

use machines::{DST, Machines, SRC, machines};
use serde_json::Value;

const ADDRESS: &str = "10.77.0.100";

/// Moves the redis and gives the one summary.
fn migrate(machines: &Machines, from: &str, to: &str, flags: &str) -> Value {
    let script = format!("godwit --json migrate runc:vmt ssh://{to} --tcp-established --pace full {flags}");
    let (code, out, err) = machines.run(from, &script);
    assert_eq!(code, 0, "{out}{err}");
    let lines = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut summaries: Vec<Value> = lines.filter(|line| line["message_type"] == "summary").collect();
    assert_eq!(summaries.len(), 1, "{out}");
    summaries.remove(0)
}

fn digest(machines: &Machines) -> String {
    let digest = machines.sh("client", &format!("timeout 150 redis-cli -h {ADDRESS} debug digest"));
    assert_eq!(digest.len(), 40, "{digest}");
    digest
}

/// One test and not several: each step needs the one before.
#[test]
fn redis_moves_there_and_back_with_every_tracker_of_this_kernel() {
    let Some(machines) = machines() else { return };
    machines.sh(SRC, &format!("testbed-container create vmt {ADDRESS} --ram 24"));
    // memory.max comes back with the container: its own runtime sets it, from the same bundle
    let limit = machines.sh(SRC, "cat /sys/fs/cgroup/vmt/pids.max");

    // under load: at least two rounds, nothing lost, the one connection holds
    machines.sh("client", "rm -f /run/vmt.ready /run/vmt.sock");
    let probe = format!(
        "godwit --json --quiet probe redis://{ADDRESS}:6379 --rate 100/s --ready-file /run/vmt.ready --control /run/vmt.sock"
    );
    let probe = machines.start("client", &probe);
    machines.wait_until("client", "test -e /run/vmt.ready");
    let summary = migrate(
        &machines,
        SRC,
        DST,
        "--tracker pre-dump --max-rounds 3 --max-downtime 1ms --on-timeout switchover",
    );
    assert_eq!((&summary["strategy"], &summary["tracker"]), (&"pre-copy".into(), &"pre-dump".into()));
    let rounds = summary["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 3, "two rounds and the final one: {summary}");
    let memory = |round: usize| rounds[round]["memory_bytes"].as_u64().unwrap();
    assert!(memory(0) > 24 << 20, "the first round holds all: {summary}");
    assert!(memory(1) < memory(0) / 2, "the second holds what changed: {summary}");
    assert!(memory(rounds.len() - 1) < memory(0) / 2, "so does the final dump: {summary}");
    machines.sh("client", "printf 'stop\\n' | timeout 150 socat -t 120 - UNIX-CONNECT:/run/vmt.sock");
    let (code, out, err) = probe.finish();
    let report: Value = serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_default();
    assert_eq!(code, 0, "{out}{err}");
    assert!(report["writes"]["acknowledged"].as_u64().unwrap() > 50, "{report}");
    assert_eq!(
        (&report["writes"]["lost"], &report["reconnects"]),
        (&0.into(), &0.into()),
        "PROMISE BROKEN: {report}"
    );

    // nothing is left at the source, and the destination's copy is whole
    assert_eq!(
        machines.sh(
            SRC,
            "runc list -q; ls /run/netns; ls /var/lib/godwit/migrations/*/images 2> /dev/null; true"
        ),
        ""
    );
    assert_eq!(machines.sh(DST, "cat /sys/fs/cgroup/vmt/pids.max"), limit);

    // back, idle: every byte is the same, and no wish for a tracker is needed
    let before = digest(&machines);
    let summary = migrate(&machines, DST, SRC, "--tracker auto --max-rounds 2 --on-timeout switchover");
    assert_eq!(summary["tracker"], "uffd");
    assert_eq!(summary["memory"]["restoration"], "local-lazy", "{summary}");
    assert_eq!(digest(&machines), before);

    // and once more with a checkpoint first: the two ways meet on one container
    let summary = migrate(&machines, SRC, DST, "--tracker checkpoint --on-timeout switchover");
    assert_eq!(summary["tracker"], "checkpoint");
    assert_eq!(digest(&machines), before);

    // the kernel's soft-dirty bit, with no help of CRIU's
    let flags = "--tracker soft-dirty --max-rounds 3 --on-timeout switchover";
    let summary = migrate(&machines, DST, SRC, flags);
    assert_eq!(summary["tracker"], "soft-dirty");
    let rounds = summary["rounds"].as_array().unwrap();
    let memory = |round: usize| rounds[round]["memory_bytes"].as_u64().unwrap();
    assert!(memory(rounds.len() - 1) < memory(0) / 2, "only what was written goes again: {summary}");
    assert_eq!(digest(&machines), before);
}
