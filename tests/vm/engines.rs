//! Containers of docker's and podman's with limits, where systemd makes their cgroups: only the machines' cgroup v2 has controllers.

use crate::five_moves::{IP, Kept, five_moves};
use crate::hosts::{Hosts, left_over};
use crate::inspected::{same_with_docker, same_with_podman};
use crate::machines::{DST, Machines, SRC, machines_with};
use crate::postgres_at_work::PostgreSql;
use crate::redis_at_work::AppendOnly;

/// The image of all hosts made small, so that an emulated processor unpacks it in a second; its programs are the host's.
const SMALL_IMAGE: &str = "d=/root/small; image=/usr/share/godwit-testbed/redis.tar; rm -rf $d
     mkdir -p $d/bin $d/data $d/dev $d/etc $d/proc $d/root $d/run $d/srv $d/sys $d/tmp $d/usr; touch $d/root/.profilerc
     cp /usr/bin/busybox $d/bin/; for n in sh wget; do ln -s busybox $d/bin/$n; done; for n in lib lib64; do ln -s usr/$n $d/$n; done
     /usr/share/godwit-testbed/make-image $d $image; rm -rf $d; scp -q $image dst:$image";

const LIMITS: &str = "--memory 300m --memory-swap 400m --pids-limit 100 --cpus 0.5";
const HELD_TO: &[&str] =
    &["scope", "memory.max:314572800", "memory.swap.max:104857600", "pids.max:100", "cpu.max:50000 100000"];

/// Machines whose engines have the small image.
fn machines(engine: &str, set_up: &str) -> Option<Machines> {
    let machines = machines_with(&["--init", "systemd"])?;
    machines.sh(SRC, SMALL_IMAGE);
    for host in [SRC, DST] {
        machines.sh(host, &format!("{set_up}testbed-container image --engine {engine}"));
    }
    Some(machines)
}

fn docker() -> Option<(Machines, Kept)> {
    let set_up = "sed -i s/cgroupdriver=cgroupfs/cgroupdriver=systemd/ /etc/docker/daemon.json; ";
    let kept = Kept {
        engine: "docker",
        volumes: "/var/lib/docker/volumes",
        options: format!(
            "--network testbed --ip {IP} --mac-address 02:42:0a:4d:00:64 --health-cmd true --health-interval 1h {LIMITS}"
        ),
        limits: HELD_TO,
        same: same_with_docker,
        assert_nothing_left: |hosts, host| {
            assert_nothing_left(
                hosts,
                host,
                "ls -d /sys/fs/cgroup/*.slice/docker-*.scope /run/godwit-runc 2> /dev/null
                 pgrep -ax 'redis-server|postgres|containerd-shim|criu'; docker ps -aq",
            );
        },
    };
    Some((machines("docker", set_up)?, kept))
}

fn podman() -> Option<(Machines, Kept)> {
    let kept = Kept {
        engine: "podman",
        volumes: "/var/lib/containers/storage/volumes",
        // its choice where systemd is would be the journal
        options: format!("--network testbed:ip={IP},mac=02:42:0a:4d:00:64 --log-driver k8s-file {LIMITS}"),
        limits: HELD_TO,
        same: same_with_podman,
        assert_nothing_left: |hosts, host| {
            assert_nothing_left(
                hosts,
                host,
                "ls -d /sys/fs/cgroup/*.slice/libpod-*.scope 2> /dev/null
                 pgrep -ax 'redis-server|postgres|conmon|criu'; podman ps -aq",
            );
        },
    };
    Some((machines("podman", "")?, kept))
}

/// Nothing of a container is left in a machine, by a script that knows the engine. The client and its programs are in one of them.
fn assert_nothing_left(hosts: &dyn Hosts, host: &str, of_engine: &str) {
    let left = format!(
        "{of_engine}; ls -d /var/lib/godwit/parked/* 2> /dev/null; nft list ruleset | grep godwit
         ls /run/netns | grep -vx client; ls /sys/class/net | grep veth; true"
    );
    assert_eq!(left_over(hosts, host, &left), "", "{host}");
}

#[test]
#[ignore = "minutes: `scripts/test --vm` runs it"]
fn a_redis_of_docker_keeps_its_limits_and_every_write_in_five_moves() {
    let Some((machines, kept)) = docker() else { return };
    five_moves(&machines, &kept, &AppendOnly { rate: 20, keys: 2000 });
}

#[test]
#[ignore = "minutes: `scripts/test --vm` runs it"]
fn a_postgresql_of_podman_keeps_its_limits_and_every_transaction_in_five_moves() {
    let Some((machines, kept)) = podman() else { return };
    five_moves(&machines, &kept, &PostgreSql { seconds: 2000, scale: 1, rate: 3, least: 200 });
}
