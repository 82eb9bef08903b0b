//! A client of redis in the third place: `godwit probe`, from its first answer to its account of every write.

use crate::bed::{Bed, CLIENT};
use crate::container::Redis;
use crate::godwit::Background;
use serde_json::Value;
use std::time::{Duration, Instant};

const READY: &str = "/run/test.probe-ready";

/// Writes under way.
pub struct Probe<'a> {
    running: Background<'a>,
}

impl<'a> Probe<'a> {
    /// 2,000 acknowledged writes a second over one connection; returns when the first was answered.
    pub fn start(bed: &'a Bed, redis: &Redis) -> Self {
        let address = format!("redis://{}:6379", redis.ip);
        bed.sh(CLIENT, &format!("rm -f {READY}"));
        let words =
            ["godwit", "--json", "--quiet", "probe", &address, "--rate", "2000/s", "--ready-file", READY];
        let running = Background::start(bed, CLIENT, &words);
        let begun = Instant::now();
        while !bed.holds(CLIENT, &format!("test -e {READY}")) {
            assert!(begun.elapsed() < Duration::from_secs(20), "redis gave no answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { running }
    }

    /// Stops writing and reads everything back: how many acknowledged writes are lost, or why that cannot be said. The
    /// connection may have broken meanwhile.
    pub fn lost(self) -> Option<String> {
        self.running.signal("INT");
        let said = self.running.finish();
        let Some(report) = said.lines("probe").pop() else { return Some(format!("no report: {}", said.err)) };
        let writes = &report["writes"];
        let is_whole =
            writes["lost"] == 0 && writes["unverified"] == 0 && writes["acknowledged"].as_u64() > Some(200);
        (!is_whole).then(|| report.to_string())
    }

    /// Stops writing, reads everything back, and asserts that no acknowledged write is lost and that the one connection
    /// held all the time. Gives the report.
    #[track_caller]
    pub fn assert_nothing_lost(self) -> Value {
        self.running.signal("INT");
        let said = self.running.finish();
        let reports = said.lines("probe");
        assert_eq!(reports.len(), 1, "{}{}", said.out, said.err);
        let report = &reports[0];
        let writes = &report["writes"];
        assert!(writes["acknowledged"].as_u64().unwrap() > 200, "{report}");
        assert_eq!(
            (&writes["lost"], &writes["unverified"]),
            (&0.into(), &0.into()),
            "PROMISE BROKEN: {report}"
        );
        assert_eq!(
            (&report["reconnects"], &report["connections_lost"], &report["errors"]),
            (&0.into(), &0.into(), &0.into()),
            "{report}"
        );
        assert_eq!(said.code, 0, "{report}");
        report.clone()
    }
}
