//! What is moved while something breaks, with a client in the third place that knows what it was promised.

use crate::bed::{Bed, CLIENT, DST, SRC};
use crate::container::Redis;
use crate::godwit::Background;
use crate::probe::Probe;
use std::fmt;

/// Which server it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One process; 2000 writes a second.
    Redis,
    /// The same with so much memory that filling it takes a while.
    LargeRedis,
    /// The first in a container of podman's, with crun.
    PodmanRedis,
    /// The first in a pod of podman's, with crun.
    PodRedis,
    /// The first in a container of docker's.
    DockerRedis,
    /// Many processes with shared memory; transactions of two statements over two connections.
    Postgres,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Redis => "redis",
            Kind::LargeRedis => "large redis",
            Kind::PodmanRedis => "redis of podman's",
            Kind::PodRedis => "redis in a pod",
            Kind::DockerRedis => "redis of docker's",
            Kind::Postgres => "PostgreSQL",
        })
    }
}

impl Kind {
    /// Which program that is.
    pub fn server(self) -> &'static str {
        match self {
            Kind::Redis | Kind::LargeRedis | Kind::PodmanRedis | Kind::PodRedis | Kind::DockerRedis => {
                "redis"
            }
            Kind::Postgres => "PostgreSQL",
        }
    }

    /// What `godwit migrate` is given.
    pub fn move_flags(self) -> Vec<&'static str> {
        let name = match self {
            Kind::PodmanRedis => "podman:stay",
            Kind::PodRedis => "podman:pod/group",
            Kind::DockerRedis => "docker:stay",
            _ => "runc:stay",
        };
        let mut flags =
            vec![name, "ssh://dst", "--tcp-established", "--retries", "0", "--max-downtime", "60s"];
        if self == Kind::Postgres {
            flags.extend(["--no-copy", "/usr", "--pace", "full"]);
        }
        flags
    }
}

const ADDRESS: &str = "10.77.0.100";

/// In the container as user 1000. Nothing but its clients changes which processes there are.
const SERVE: &str = r#"#!/bin/sh
PATH=/usr/lib/postgresql/17/bin:/usr/bin
cd /data
initdb -D /data/base -U keeper -A trust --no-sync --wal-segsize 4 > /dev/null || exit
echo 'host all all 10.77.0.0/24 trust' >> /data/base/pg_hba.conf
exec postgres -D /data/base -c shared_buffers=16MB -c unix_socket_directories=/data -c listen_addresses='*' \
    -c autovacuum=off -c update_process_title=off -c max_wal_size=64MB 2> /data/server.log
"#;
/// A pod that comes and goes.
const POD_ONCE: &str = "testbed-container image
    podman pod create --name once --infra-image localhost/redis:test --infra-command 'tail -f /dev/null' --network testbed
    podman run --rm --pod once localhost/redis:test true; podman pod rm -f -t 0 once";
/// A redis in a pod.
const POD: &str =
    "podman pod create --name group --infra-image localhost/redis:test --infra-command 'tail -f /dev/null' \
        --network testbed:ip=10.77.0.100,mac=02:42:0a:4d:00:64
    podman run -d --pod group --name stay --restart always -v stay-data:/data localhost/redis:test \
        redis-server --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --save ''
    until redis-cli -h 10.77.0.100 ping; do sleep 0.05; done
    redis-cli -h 10.77.0.100 debug populate 2000 key 4000";
const LEDGER: &str = include_str!("ledger.py");

/// One that is moved; its name is `stay`.
pub struct Patient<'a> {
    bed: &'a Bed,
    client: Client<'a>,
}

enum Client<'a> {
    Redis(Probe<'a>),
    Postgres(Background<'a>),
}

impl<'a> Patient<'a> {
    /// Before it is made: what an engine makes for itself on a host is nobody's leftover.
    pub fn prepare_hosts(bed: &Bed, kind: Kind) {
        let make = match kind {
            Kind::PodmanRedis => {
                "testbed-container image; podman run --rm --network testbed localhost/redis:test true"
            }
            Kind::PodRedis => POD_ONCE,
            Kind::DockerRedis => {
                "testbed-container image --engine docker; docker run --rm --network testbed localhost/redis:test true"
            }
            _ => return,
        };
        for host in [SRC, DST] {
            bed.sh(host, make);
        }
    }

    /// Makes it on the source; returns when its client was answered.
    pub fn begin(bed: &'a Bed, kind: Kind) -> Self {
        let client = match kind {
            Kind::Redis | Kind::LargeRedis => {
                let mib = if kind == Kind::Redis { 8 } else { 128 };
                Client::Redis(Probe::start(bed, &Redis::create(bed, "stay", mib)))
            }
            Kind::PodmanRedis | Kind::DockerRedis => {
                let engine = if kind == Kind::PodmanRedis { "podman" } else { "docker" };
                bed.sh(SRC, &format!("testbed-container create stay {ADDRESS} --ram 8 --engine {engine}"));
                let redis = Redis { name: "stay".into(), ip: ADDRESS.into(), pid: 0 };
                Client::Redis(Probe::start(bed, &redis))
            }
            Kind::PodRedis => {
                bed.sh(SRC, POD);
                let redis = Redis { name: "stay".into(), ip: ADDRESS.into(), pid: 0 };
                Client::Redis(Probe::start(bed, &redis))
            }
            Kind::Postgres => {
                bed.write(SRC, "/srv/stay-data/serve", SERVE);
                bed.write(CLIENT, "/run/test.ledger", LEDGER);
                let create = "testbed-container create stay";
                let how = "--host-usr --user 1000 --seccomp default --args sh /data/serve";
                bed.sh(SRC, &format!("{create} {ADDRESS} {how}"));
                let mut client = Background::start(bed, CLIENT, &["python3", "/run/test.ledger", ADDRESS]);
                client.wait_for("the first transactions", |line| line == "ready");
                Client::Postgres(client)
            }
        };
        Self { bed, client }
    }

    /// Ends the client, and asks the server for everything that was acknowledged: what is lost, or why that cannot be said.
    pub fn lost(self, runner: &str) -> Option<String> {
        let client = match self.client {
            Client::Redis(probe) => return probe.lost(),
            Client::Postgres(client) => client,
        };
        client.signal("INT");
        let said = client.finish();
        let Some(report) = said.lines("ledger").pop() else {
            return Some(format!("no report: {}{}", said.out, said.err));
        };
        let is_whole =
            report["lost"] == 0 && report["sums_equal"] == true && report["acknowledged"].as_u64() > Some(50);
        if !is_whole {
            return Some(report.to_string());
        }
        // a server that started anew has told so; its processes were not moved as they were
        let log = self.bed.sh(runner, "cat /srv/stay-data/server.log");
        let bad = ["PANIC", "terminated by signal", "automatic recovery", "not properly shut down"];
        bad.into_iter().any(|bad| log.contains(bad)).then_some(log)
    }
}
