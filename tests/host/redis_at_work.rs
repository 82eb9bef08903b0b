//! A redis that writes all into a file of its volume, and a client elsewhere whose writes it acknowledges.

use crate::five_moves::{Application, IP};
use crate::hosts::{CLIENT, Hosts, Load, SRC};
use serde_json::Value;

const READY: &str = "/run/test.probe-ready";

/// As much of it as the hosts can bear.
pub struct AppendOnly {
    /// Writes a second.
    pub rate: u32,
    /// Of 4 KB each, that it has before.
    pub keys: u32,
}

fn ask(hosts: &dyn Hosts, words: &str) -> String {
    hosts.sh(CLIENT, &format!("timeout 150 redis-cli -h {IP} {words}"))
}

impl Application for AppendOnly {
    fn prepare(&self, _hosts: &dyn Hosts, _data: &str) -> String {
        "redis-server --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --save '' --appendonly yes --dir /data"
            .into()
    }

    fn begin<'a>(&self, hosts: &'a dyn Hosts, _data: &str) -> Load<'a> {
        // docker does not announce an address: whoever knows it from before would look for it elsewhere
        let serves = format!("until redis-cli -h {IP} ping; do sleep 0.2; done");
        hosts.sh(SRC, &format!("timeout 60 sh -c '{serves}'"));
        hosts.sh(CLIENT, "ip neigh flush all");
        ask(hosts, &format!("debug populate {} key 4000", self.keys));
        let command = format!(
            "rm -f {READY}; exec godwit --json --quiet probe redis://{IP}:6379 --rate {}/s --ready-file {READY}",
            self.rate
        );
        let load = Load::start(hosts, &format!("sh -c '{command}'"), "INT");
        hosts.sh(CLIENT, &format!("timeout 60 sh -c 'until [ -e {READY} ]; do sleep 0.1; done'"));
        load
    }

    fn assert_at_work(&self, hosts: &dyn Hosts, _host: &str, _data: &str) {
        hosts.sh(CLIENT, "kill -0 $(cat /run/test.load.pid)");
    }

    fn assert_nothing_lost(&self, hosts: &dyn Hosts, _host: &str, _data: &str, _exec: &str, client: Load) {
        let said = client.finish();
        let report: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).expect(&said);
        let writes = &report["writes"];
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
        assert!(writes["acknowledged"].as_u64().unwrap() > 200, "{report}");
        // its file has them, too: each has a key of its own, and what `debug populate` made was never in the file
        assert_eq!(ask(hosts, "debug loadaof"), "OK");
        let acknowledged = writes["acknowledged"].to_string();
        assert_eq!(ask(hosts, "dbsize"), acknowledged, "PROMISE BROKEN: its file is not whole: {report}");
    }
}
