//! A container of podman's with limits: only the machines' cgroup v2 has controllers.

use crate::machines::{DST, Machines, SRC, machines_with};
use serde_json::Value;

const ADDRESS: &str = "10.77.0.100";

/// An image of little more than busybox, which an emulated processor unpacks in a second; the programs are the host's.
const IMAGE: &str = "d=/root/tiny; rm -rf $d; mkdir -p $d/bin $d/data $d/etc $d/proc $d/sys $d/dev $d/tmp $d/run $d/usr; \
     cp /usr/bin/busybox $d/bin/; ln -s busybox $d/bin/sh; ln -s usr/lib $d/lib; ln -s usr/lib64 $d/lib64; \
     tar -C $d -cf - . | podman import - localhost/tiny:1; rm -rf $d";

const RUN: &str = "run -d --name vmp --network testbed:ip=10.77.0.100,mac=02:42:0a:4d:00:64 --memory 200m --memory-swap 300m \
     --cpus 0.5 --pids-limit 64 -v vmp:/data -v /usr:/usr:ro localhost/tiny:1 redis-server --bind 0.0.0.0 --protected-mode no \
     --save '' --appendonly yes --dir /data --enable-debug-command yes";

/// Prints the cgroup that has its limits.
const CGROUP: &str = "echo /sys/fs/cgroup$(podman inspect -f '{{.State.CgroupPath}}' vmp)";

/// What the kernel holds the container to, and what podman says of it.
fn limits(machines: &Machines, host: &str) -> String {
    // crun has the tasks in a cgroup of its own in a scope
    let script = format!(
        "cd $({CGROUP}); for d in . container; do for f in memory.max memory.swap.max cpu.max pids.max; do grep -s . /dev/null $d/$f; done; done; \
         podman inspect -f '{{{{.HostConfig.Memory}}}} {{{{.HostConfig.MemorySwap}}}} {{{{.HostConfig.NanoCpus}}}} {{{{.HostConfig.PidsLimit}}}}' vmp"
    );
    machines.sh(host, &script)
}

#[test]
#[ignore = "minutes: `scripts/test --vm` runs it"]
fn a_container_of_podman_keeps_its_limits_under_load() {
    let Some(machines) = machines_with(&["--init", "systemd"]) else { return };
    machines.sh(SRC, IMAGE);
    // systemd sets them for a scope, the runtime for a cgroup of its own
    for (manager, hosts) in [("systemd", &[SRC, DST][..]), ("cgroupfs", &[SRC])] {
        moves_with_its_limits(&machines, manager, hosts);
    }
}

/// Moves one from each of `hosts` to the other one; `manager` has podman's cgroups made.
fn moves_with_its_limits(machines: &Machines, manager: &str, hosts: &[&str]) {
    machines.sh(SRC, &format!("podman --cgroup-manager {manager} {RUN}"));
    machines.wait_until("client", &format!("redis-cli -h {ADDRESS} ping"));
    machines.sh("client", &format!("redis-cli -h {ADDRESS} debug populate 2000 key 4000"));
    let before = limits(machines, SRC);
    assert_eq!(machines.sh(SRC, &format!("{CGROUP} | grep -c scope; true")) == "1", manager == "systemd");
    for limit in [
        "memory.max:209715200",
        "memory.swap.max:104857600",
        "cpu.max:50000 100000",
        "pids.max:64",
        "500000000",
    ] {
        assert!(before.contains(limit), "{limit} is not in {before}");
    }
    machines.sh("client", "rm -f /run/vmp.ready /run/vmp.sock");
    let probe = format!(
        "godwit --json --quiet probe redis://{ADDRESS}:6379 --rate 20/s --ready-file /run/vmp.ready --control /run/vmp.sock"
    );
    let probe = machines.start("client", &probe);
    machines.wait_until("client", "test -e /run/vmp.ready");
    let mut now = SRC;
    for from in hosts {
        let to = if *from == SRC { DST } else { SRC };
        let script = format!(
            "godwit --json migrate podman:vmp ssh://{to} --tcp-established --pace full --no-copy /usr --on-timeout switchover"
        );
        let (code, out, err) = machines.run(from, &script);
        assert_eq!(code, 0, "{out}{err}");
        let mut lines = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let summary = lines.rfind(|line| line["message_type"] == "summary").unwrap();
        assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
        assert_eq!(limits(machines, to), before);
        now = to;
        assert_eq!(machines.sh(from, "podman ps -aq; pgrep -x 'redis-server|conmon'; true"), "");
    }
    machines.sh("client", "printf 'stop\\n' | timeout 150 socat -t 120 - UNIX-CONNECT:/run/vmp.sock");
    let (code, out, err) = probe.finish();
    let report: Value = serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_default();
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(
        (&report["writes"]["lost"], &report["reconnects"]),
        (&0.into(), &0.into()),
        "PROMISE BROKEN: {report}"
    );
    // the limits bind: more than 200 MiB and 100 MiB of swap, of which there is none, it cannot have
    machines.run("client", &format!("timeout 200 redis-cli -h {ADDRESS} debug populate 1000 more 400000"));
    let events = format!(
        "cat $({CGROUP})/memory.events | grep -q '^oom_kill [1-9]' || ! podman inspect -f '{{{{.State.Running}}}}' vmp | grep -q true"
    );
    machines.wait_until(now, &events);
    machines.sh(now, "podman rm -a -f -t 0 -v; podman volume rm -a -f");
}
