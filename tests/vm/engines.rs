//! A container of docker's with limits, where systemd makes its cgroup: only the machines' cgroup v2 has controllers.

use crate::five_moves::{IP, Kept, five_moves};
use crate::hosts::{Hosts, left_over};
use crate::inspected::same_with_docker;
use crate::machines::{DST, Machines, SRC, machines_with};
use crate::redis_at_work::AppendOnly;

/// The image of all hosts made small, so that an emulated processor unpacks it in a second; its programs are the host's.
const SMALL_IMAGE: &str = "d=/root/small; image=/usr/share/godwit-testbed/redis.tar; rm -rf $d
     mkdir -p $d/bin $d/data $d/dev $d/etc $d/proc $d/root $d/run $d/srv $d/sys $d/tmp $d/usr; touch $d/root/.profilerc
     cp /usr/bin/busybox $d/bin/; for n in sh wget; do ln -s busybox $d/bin/$n; done; for n in lib lib64; do ln -s usr/$n $d/$n; done
     /usr/share/godwit-testbed/make-image $d $image; rm -rf $d; scp -q $image dst:$image";

const LIMITS: &str = "--memory 300m --memory-swap 400m --pids-limit 100 --cpus 0.8";
const HELD_TO: &[&str] =
    &["scope", "memory.max:314572800", "memory.swap.max:104857600", "pids.max:100", "cpu.max:80000 100000"];

fn machines() -> Option<Machines> {
    let machines = machines_with(&["--init", "systemd"])?;
    machines.sh(SRC, SMALL_IMAGE);
    Some(machines)
}

/// Nothing of a container is left in a machine. The client and its programs are in one of them.
fn assert_nothing_left(hosts: &dyn Hosts, host: &str) {
    let left =
        "ls -d /sys/fs/cgroup/*.slice/docker-*.scope /var/lib/godwit/parked/* /run/godwit-runc 2> /dev/null
         pgrep -ax 'redis-server|containerd-shim|criu'; nft list ruleset | grep godwit
         ls /run/netns | grep -vx client; ls /sys/class/net | grep veth; docker ps -aq; true";
    assert_eq!(left_over(hosts, host, left), "", "{host}");
}

#[test]
#[ignore = "minutes: `scripts/test --vm` runs it"]
fn a_redis_of_docker_keeps_its_limits_and_every_write_in_five_moves() {
    let Some(machines) = machines() else { return };
    for host in [SRC, DST] {
        machines.sh(
            host,
            "sed -i s/cgroupdriver=cgroupfs/cgroupdriver=systemd/ /etc/docker/daemon.json; testbed-container image --engine docker",
        );
    }
    let kept = Kept {
        engine: "docker",
        volumes: "/var/lib/docker/volumes",
        options: format!(
            "--network testbed --ip {IP} --mac-address 02:42:0a:4d:00:64 --health-cmd true --health-interval 1h {LIMITS}"
        ),
        limits: HELD_TO,
        same: same_with_docker,
        assert_nothing_left,
    };
    five_moves(&machines, &kept, &AppendOnly { rate: 20, keys: 2000 });
}
