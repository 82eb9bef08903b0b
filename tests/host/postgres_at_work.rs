//! PostgreSQL with pgbench at work: beside it over a socket and over loopback, and from elsewhere.

use crate::five_moves::{Application, IP};
use crate::hosts::{Hosts, Load, SRC};

/// In a container as user 1000: makes a data base, and lets two times two clients work on it for so many seconds; then of what size it is
/// (100,000 accounts each), and how much they do (transactions a second).
pub const SERVE: &str = r#"#!/bin/sh
PATH=/usr/lib/postgresql/17/bin:/usr/bin
cd /data
initdb -D /data/base -A trust --no-sync > /dev/null || exit
echo 'host all all 10.77.0.0/24 trust' >> /data/base/pg_hba.conf
postgres -D /data/base -c shared_buffers=128MB -c unix_socket_directories=/data -c listen_addresses='*' \
    -c max_wal_size=256MB 2> /data/server.log &
until pg_isready -q -h /data -d postgres; do sleep 0.1; done
createdb -h /data bench
psql -q -h /data -c 'create extension amcheck; create extension pg_prewarm' bench
pgbench -q -i -s "${2:-5}" -h /data bench 2> /dev/null
psql -q -h /data -c "select pg_prewarm('pgbench_accounts')" bench > /dev/null
for host in /data 127.0.0.1; do
    # -n: the one would empty the table of transactions while the other works
    pgbench -n -c 2 -T "$1" -R "${3:-150}" -P 1 -h $host bench > /data/bench.${host##*/} 2>&1 &
done
touch /data/ready
wait
"#;

/// Sums that are one sum in every state that is whole.
pub const SUMS: &str =
    "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
    (select sum(tbalance) from pgbench_tellers), (select sum(delta) from pgbench_history),
    (select count(*) from pgbench_history)";

/// Two times two clients are at work on the data base in `data` on the source.
#[track_caller]
pub fn assert_begun(hosts: &dyn Hosts, data: &str) {
    hosts.sh(SRC, &format!("timeout 300 sh -c 'until [ -e {data}/ready ]; do sleep 0.1; done'; sleep 2"));
    let processes = hosts.sh(SRC, "pgrep -cx postgres").parse::<u32>().unwrap();
    assert!(processes >= 9, "{processes} processes");
}

/// The transactions that clients were told of, by what pgbench says at its end; none of them has failed.
#[track_caller]
fn told(said: &str) -> u64 {
    assert!(said.contains("number of failed transactions: 0 (0.000%)"), "{said}");
    let processed = "number of transactions actually processed: ";
    let line = said.lines().find_map(|line| line.strip_prefix(processed)).expect(said);
    line.parse().unwrap()
}

/// Waits for the clients on `host`, and asserts that what they were told, and what one elsewhere has said at its end, is what is there,
/// `least` at least; `exec` runs a program in the container.
#[track_caller]
pub fn assert_no_transaction_is_lost(
    hosts: &dyn Hosts,
    host: &str,
    data: &str,
    exec: &str,
    elsewhere: Option<&str>,
    least: u64,
) {
    hosts.sh(host, "timeout 100 sh -c 'while pgrep -u 1000 -x pgbench; do sleep 0.1; done'");
    let of_clients =
        ["data", "127.0.0.1"].map(|name| told(&hosts.sh(host, &format!("cat {data}/bench.{name}"))));
    let transactions = of_clients.iter().sum::<u64>() + elsewhere.map_or(0, told);
    let run = |words: &str| hosts.sh(host, &format!("{exec} /usr/lib/postgresql/17/bin/{words}"));
    let sums = run(&format!("psql -h /data -At -c '{SUMS}' bench"));
    let sums: Vec<i64> = sums.split('|').map(|sum| sum.parse().unwrap()).collect();
    assert!(sums[..4].iter().all(|sum| *sum == sums[0]), "PROMISE BROKEN: {sums:?}");
    assert_eq!(sums[4], transactions as i64, "PROMISE BROKEN: transactions that were told to the clients");
    assert!(transactions > least, "only {transactions}");
    assert_eq!(run("pg_amcheck -h /data --heapallindexed bench"), "");
    // whoever asked too early was told so
    let log =
        hosts.sh(host, &format!("grep -v 'FATAL:  the database system is starting up' {data}/server.log"));
    for bad in ["PANIC", "FATAL", "terminated by signal", "recovery"] {
        assert!(!log.contains(bad), "{log}");
    }
}

/// As much of it as the hosts can bear.
pub struct PostgreSql {
    /// Seconds that the clients would work; they are told to end before.
    pub seconds: u32,
    /// Of the data base: 100,000 accounts each.
    pub scale: u32,
    /// Transactions a second of each two clients.
    pub rate: u32,
    /// Transactions that there must be in the end.
    pub least: u64,
}

impl Application for PostgreSql {
    fn prepare(&self, hosts: &dyn Hosts, data: &str) -> String {
        hosts.sh(SRC, &format!("cat > {data}/serve <<'END'\n{SERVE}END"));
        format!("sh /data/serve {} {} {}", self.seconds, self.scale, self.rate)
    }

    fn begin<'a>(&self, hosts: &'a dyn Hosts, data: &str) -> Load<'a> {
        assert_begun(hosts, data);
        let command = format!(
            "/usr/lib/postgresql/17/bin/pgbench -n -c 2 -T {} -R {} -P 1 -h {IP} -U keeper bench",
            self.seconds,
            self.rate * 2 / 5
        );
        // as at the end of their time (pgbench: handle_sig_alarm)
        Load::start(hosts, &command, "ALRM")
    }

    fn assert_at_work(&self, hosts: &dyn Hosts, host: &str, _data: &str) {
        let clients = hosts.sh(host, "pgrep -cu 1000 -x pgbench; true");
        assert_eq!(clients, "2", "the load is over");
    }

    fn assert_nothing_lost(&self, hosts: &dyn Hosts, host: &str, data: &str, exec: &str, client: Load) {
        hosts.sh(host, "pkill -ALRM -u 1000 -x pgbench");
        let said = client.finish();
        assert_no_transaction_is_lost(hosts, host, data, exec, Some(&said), self.least);
    }
}
