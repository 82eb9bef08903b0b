//! PostgreSQL as people run it with podman and docker: a volume that has a name, one that has none, some that are read-only, a changed
//! layer, and clients beside it and elsewhere; there and back five times while they work.

use crate::bed::{Bed, CLIENT, SRC, bed};
use crate::engines::{self, difference, other};
use crate::engines_docker;
use crate::godwit::Background;
use crate::postgres::{SERVE, assert_at_work, assert_no_transaction_is_lost, moved, told};
use serde_json::Value;

const IP: &str = "10.77.0.100";
const MOVES: usize = 5;
/// Seconds that the clients would work; they are told to end before.
const LOAD: u32 = 170;

/// What is different with each engine.
struct Kept {
    engine: &'static str,
    /// Where it has the volumes that have a name.
    volumes: &'static str,
    network: String,
    /// What `inspect` says, without what differs by nature.
    inspected: fn(&Bed, &str) -> Value,
    assert_nothing_left: fn(&Bed, &str),
}

impl Kept {
    /// Asks the engine of a host.
    fn ask(&self, bed: &Bed, host: &str, words: &str) -> String {
        bed.sh(host, &format!("{} {words}", self.engine))
    }

    /// What of the container's layer is changed, and how many layers its image has.
    fn layers(&self, bed: &Bed, host: &str) -> (String, String) {
        let image = "image inspect -f '{{len .RootFS.Layers}}' localhost/redis:test";
        (self.ask(bed, host, "diff web | sort"), self.ask(bed, host, image))
    }

    /// Where the volume without a name lies.
    fn anonymous(&self, bed: &Bed, host: &str) -> String {
        let source = "{{range .Mounts}}{{if eq .Destination \"/anonymous\"}}{{.Source}}{{end}}{{end}}";
        self.ask(bed, host, &format!("inspect -f '{source}' web"))
    }

    fn run(&self, bed: &Bed) {
        let data = format!("{}/pg-data/_data", self.volumes);
        for volume in ["--label team=blue pg-data", "fixed"] {
            self.ask(bed, SRC, &format!("volume create {volume}"));
        }
        bed.write(SRC, &format!("{data}/serve"), SERVE);
        bed.sh(
            SRC,
            &format!(
                "mkdir /srv/ro; echo bound > /srv/ro/file; chown 1000 {data}
                 printf 'root:x:0:0::/root:/bin/sh\\nkeeper:x:1000:1000::/data:/bin/sh\\n' > /srv/passwd
                 cd {}/fixed/_data; echo fixed > file; chown 5:7 file; chmod 6751 file; ln file second; ln -s gone link; truncate -s 9M hole
                 setfattr -n user.note -v here file; setfacl -m u:1000:r second",
                self.volumes
            ),
        );
        let volumes = "-v pg-data:/data -v /anonymous -v fixed:/fixed:ro -v /srv/ro:/ro:ro -v /usr:/usr:ro";
        self.ask(
            bed,
            SRC,
            &format!(
                "create --name web --user 1000 --restart always {} {volumes} localhost/redis:test sh /data/serve {LOAD}",
                self.network
            ),
        );
        // PostgreSQL wants its user to have a name
        self.ask(bed, SRC, "cp /srv/passwd web:/etc/passwd");
        self.ask(bed, SRC, "start web");
        let change =
            "echo new > /new; rm /root/.*rc /bin/wget; chmod 700 /srv; cp -a /fixed /anonymous/of-fixed";
        self.ask(bed, SRC, &format!("exec -u 0 web sh -c '{change}'"));
        assert_at_work(bed, &data);
    }
}

/// What rsync finds different between a directory of the source's and one of a host.
fn rsync(bed: &Bed, ours: &str, host: &str, theirs: &str) -> String {
    let judge = "rsync -aHAX --checksum --dry-run --delete --itemize-changes";
    let there = if host == SRC { String::new() } else { format!("{host}:") };
    bed.sh(SRC, &format!("{judge} {ours}/ {there}{theirs}/"))
}

/// Moves it under load, and looks at it whole each time.
fn loses_no_transaction(bed: &Bed, kept: &Kept) {
    kept.run(bed);
    let (before, layers) = ((kept.inspected)(bed, SRC), kept.layers(bed, SRC));
    assert!(layers.0.contains("A /new") && layers.0.contains("D /bin/wget"), "{layers:?}");
    let of_fixed = format!("{}/fixed/_data", kept.volumes);
    bed.sh(SRC, &format!("cp -a {of_fixed} /srv/fixed; cp -a {} /srv/anonymous", kept.anonymous(bed, SRC)));
    let load = LOAD.to_string();
    let words = [
        "/usr/lib/postgresql/17/bin/pgbench",
        "-n",
        "-c",
        "2",
        "-T",
        &load,
        "-R",
        "60",
        "-P",
        "1",
        "-h",
        IP,
        "-U",
        "keeper",
        "bench",
    ];
    let elsewhere = Background::start(bed, CLIENT, &words);
    let reference = format!("{}:web", kept.engine);
    let mut host = SRC;
    for number in 0..MOVES {
        assert!(bed.holds(host, "pgrep -x pgbench"), "the load is over before move {number}");
        moved(bed, &reference, host, &[]);
        (kept.assert_nothing_left)(bed, host);
        assert_eq!(bed.sh(host, "pgrep -ax 'postgres|pgbench'; true"), "");
        host = other(host);
        assert_eq!(difference("", &before, &(kept.inspected)(bed, host)), [""; 0]);
        assert_eq!(kept.layers(bed, host), layers);
        assert_eq!(rsync(bed, "/srv/fixed", host, &of_fixed), "");
        assert_eq!(rsync(bed, "/srv/anonymous", host, &kept.anonymous(bed, host)), "");
        assert_eq!(kept.ask(bed, host, "exec web cat /new /ro/file"), "new\nbound");
        assert_eq!(kept.ask(bed, host, "volume inspect -f '{{.Labels}}' pg-data"), "map[team:blue]");
    }
    // as at the end of their time (pgbench: handle_sig_alarm)
    bed.sh(host, "pkill -ALRM -x pgbench");
    elsewhere.signal("ALRM");
    let said = elsewhere.finish();
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let data = format!("{}/pg-data/_data", kept.volumes);
    let exec = format!("{} exec web", kept.engine);
    assert_no_transaction_is_lost(bed, host, &data, &exec, told(&said.out));
    let removed = "rm -f -v web; volume rm pg-data fixed";
    removed.split("; ").for_each(|words| drop(kept.ask(bed, host, words)));
    (kept.assert_nothing_left)(bed, host);
}

#[test]
fn postgresql_of_podman_loses_no_transaction() {
    let Some(bed) = bed() else { return };
    for host in [SRC, other(SRC)] {
        bed.sh(host, "testbed-container image");
    }
    loses_no_transaction(
        &bed,
        &Kept {
            engine: "podman",
            volumes: "/var/lib/containers/storage/volumes",
            network: format!("--network testbed:ip={IP},mac=02:42:0a:4d:00:64 --log-driver k8s-file"),
            inspected: engines::inspected,
            assert_nothing_left: |bed, host| engines::assert_nothing_left(bed, host, "podman"),
        },
    );
}

#[test]
fn postgresql_of_docker_loses_no_transaction() {
    let Some(bed) = bed() else { return };
    engines_docker::set_up(&bed);
    loses_no_transaction(
        &bed,
        &Kept {
            engine: "docker",
            volumes: "/var/lib/docker/volumes",
            network: format!(
                "--network testbed --ip {IP} --mac-address 02:42:0a:4d:00:64 --health-cmd true --health-interval 1h"
            ),
            inspected: engines_docker::inspected,
            assert_nothing_left: engines_docker::assert_nothing_left,
        },
    );
}
