//! The same move on hosts that have the old freezer: cgroup v1. They are a bed of their own, up for this test only.

use crate::bed::said;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

const ADDRESS: &str = "10.77.0.100";

/// Takes its bed down, whatever happens.
pub struct OldHosts;

impl OldHosts {
    fn testbed(args: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/testbed"));
        command.args(args).env("GODWIT_TESTBED_KIND", "ns").env("GODWIT_TESTBED_NAME", "hosttestsv1");
        command.stdin(Stdio::null());
        command
    }

    /// Brings it up, with the program under test in it.
    pub fn up() -> Self {
        Self::must(&["up", "--cgroup", "v1"]);
        let up = Self;
        Self::must(&["push", &crate::bed::binary().to_string_lossy(), "/usr/local/bin/godwit"]);
        up
    }

    /// `scripts/testbed` with some arguments; its output. It must succeed.
    #[track_caller]
    pub fn must(args: &[&str]) -> String {
        let said = said(&Self::testbed(args).output().unwrap());
        assert_eq!(said.code, 0, "{args:?}: {}{}", said.out, said.err);
        said.out.trim().to_owned()
    }

    /// Runs a shell script in a host; its output. It must succeed.
    #[track_caller]
    pub fn sh(host: &str, script: &str) -> String {
        Self::must(&["exec", host, "timeout", "--kill-after=5", "100", "sh", "-c", script])
    }
}

impl Drop for OldHosts {
    fn drop(&mut self) {
        let _ = Self::testbed(&["down"]).output();
    }
}

#[test]
fn redis_moves_between_hosts_with_the_old_freezer() {
    // the other bed first: it says whether test hosts can be had at all, and keeps other tests off the processors
    let Some(_others_wait) = crate::bed::quiet_bed() else { return };
    let _down = OldHosts::up();
    OldHosts::sh("src", &format!("testbed-container create old {ADDRESS} --ram 8"));
    let digest = || OldHosts::sh("client", &format!("timeout 10 redis-cli -h {ADDRESS} debug digest"));
    let before = digest();
    assert_eq!(before.len(), 40, "{before}");
    let freezer = OldHosts::sh("src", "find /sys/fs/cgroup/freezer -name old");
    assert!(!freezer.is_empty(), "the container has a v1 freezer");
    for (from, to) in [("src", "dst"), ("dst", "src")] {
        let out =
            OldHosts::sh(from, &format!("godwit --json migrate runc:old ssh://{to} --max-downtime 30s"));
        let lines = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let summary = lines.rev().find(|line| line["message_type"] == "summary").unwrap();
        assert_eq!(
            (&summary["disposition"], &summary["leftovers"]),
            (&"running_at_destination".into(), &serde_json::json!([]))
        );
        assert_eq!(digest(), before);
        assert_eq!(OldHosts::sh(to, &format!("cat {freezer}/freezer.state")), "THAWED");
        // nothing of it is left: no container, no namespace, no cgroup in any hierarchy
        assert_eq!(OldHosts::sh(from, "runc list -q; ls /run/netns; find /sys/fs/cgroup -name old"), "");
    }
}
