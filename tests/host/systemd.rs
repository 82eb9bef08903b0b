//! Hosts whose process 1 is systemd, as most are: it makes the cgroups of containers, and times podman's health checks.

use crate::attempt::runtime_there;
use crate::bed::{Bed, DST, SRC, systemd_bed};
use crate::container::Redis;
use crate::engines::{self, migrate, other};
use crate::engines_docker::{self, Configured};
use crate::godwit::{Background, godwit_with};
use crate::pods;
use crate::probe::Probe;
use serde_json::json;

const IP: &str = "10.77.0.100";
/// The units that the project brings.
const UNITS: [(&str, &str); 5] = [
    ("godwit-node.service", include_str!("../../systemd/godwit-node.service")),
    ("godwit-resume.service", include_str!("../../systemd/godwit-resume.service")),
    ("godwit-follow@.service", include_str!("../../systemd/godwit-follow@.service")),
    ("godwit-keep@.service", include_str!("../../systemd/godwit-keep@.service")),
    ("godwit-keep@.timer", include_str!("../../systemd/godwit-keep@.timer")),
];
/// The scopes of containers; what watches them has others.
const SCOPES: &str = "systemctl list-units --all --plain --no-legend '*.scope' | grep -v -e conmon -e ^init | tr -s ' ' | cut -d' ' -f1-4";

/// The container's scope is systemd's, and runs; on the other host there is none, and nothing of systemd's has failed.
#[track_caller]
fn assert_one_scope(bed: &Bed, host: &str, name: &str) {
    let scopes = bed.sh(host, SCOPES);
    assert!(scopes.lines().count() == 1 && scopes.contains(name), "{host}: {scopes}");
    assert!(scopes.ends_with(".scope loaded active running"), "{host}: {scopes}");
    let pid = format!("find /sys/fs/cgroup/*.slice -name '*{name}*.scope' -type d");
    let cgroup = bed.sh(host, &pid);
    assert!(
        !bed.holds(host, &format!("find {cgroup} -name '.*' | grep -q /")),
        "nothing of a restore is left in it"
    );
    let there = other(host);
    assert_eq!(bed.sh(there, &format!("{SCOPES}; systemctl --failed --plain --no-legend")), "", "{there}");
}

#[test]
fn a_container_of_podman_with_crun_moves_where_systemd_makes_its_cgroup() {
    let Some(bed) = systemd_bed() else { return };
    assert_eq!(bed.sh(SRC, "podman info -f '{{.Host.CgroupManager}}'"), "systemd");
    engines::goes_there_and_back(&bed, "crun", 2);
}

#[test]
fn a_container_of_podman_with_runc_moves_where_systemd_makes_its_cgroup() {
    let Some(bed) = systemd_bed() else { return };
    engines::goes_there_and_back(&bed, "runc", 2);
}

#[test]
fn a_pod_moves_where_systemd_makes_its_cgroups() {
    let Some(bed) = systemd_bed() else { return };
    pods::goes_there_and_back(&bed, "crun");
}

#[test]
fn a_container_of_docker_moves_where_systemd_makes_its_cgroup() {
    let Some(bed) = systemd_bed() else { return };
    let _systemd = Configured::begin(&bed, "s/cgroupdriver=cgroupfs/cgroupdriver=systemd/");
    engines_docker::goes_there_and_back(&bed, 2);
}

#[test]
fn a_container_of_a_runtime_alone_has_a_scope_on_both_hosts() {
    let Some(bed) = systemd_bed() else { return };
    for runtime in ["runc", "crun"] {
        bed.sh(
            SRC,
            &format!("testbed-container create web {IP} --ram 8 --engine {runtime} --systemd-cgroup"),
        );
        let redis = Redis { name: "web".into(), ip: IP.into(), pid: 0 };
        let probe = Probe::start(&bed, &redis);
        assert_one_scope(&bed, SRC, "web");
        for host in [SRC, DST] {
            let summary = migrate(&bed, host, &format!("{runtime}:web"), &[]).summary();
            assert_eq!(summary["leftovers"], json!([]), "{summary}");
            assert_one_scope(&bed, other(host), "web");
        }
        probe.assert_nothing_lost();
        bed.wipe();
    }
}

/// systemd looks after the cgroups of its units: it must not let run what godwit has frozen.
#[test]
fn what_stands_still_goes_on_standing_still_when_systemd_is_told_to_read_all_anew() {
    let Some(bed) = systemd_bed() else { return };
    for runtime in ["runc", "crun"] {
        bed.sh(SRC, &format!("testbed-container create web {IP} --engine {runtime} --systemd-cgroup"));
        let there = runtime_there(&bed, runtime, "sleep 4");
        let container = format!("{runtime}:web");
        let words = [&container, "ssh://dst", "--tcp-established", "--max-downtime", "60s"];
        let mut running = Background::migrate(&bed, &[&there], &words);
        running.wait_for_phase("restore");
        let frozen =
            "grep -l 'frozen 1' $(find /sys/fs/cgroup/system.slice -path '*web.scope*' -name cgroup.events)";
        let before = bed.sh(SRC, frozen);
        assert!(!before.is_empty(), "it stands still");
        bed.sh(
            SRC,
            &format!("systemctl daemon-reload; systemctl set-property --runtime {runtime}-web.scope CPUWeight=50; systemctl daemon-reexec"),
        );
        assert_eq!(bed.sh(SRC, frozen), before);
        let summary = running.finish().summary();
        assert_eq!(summary["leftovers"], json!([]), "{summary}");
        bed.wipe();
    }
}

#[test]
fn after_a_kill_while_it_is_restored_one_host_has_a_scope() {
    let Some(bed) = systemd_bed() else { return };
    for runtime in ["crun", "runc"] {
        for (phase, side) in [("restore", DST), ("restore", SRC), ("stop-and-copy", DST)] {
            bed.wipe();
            bed.sh(DST, "testbed-container image");
            bed.sh(SRC, &format!("testbed-container image; podman --runtime {runtime} run -d --name web --network testbed:ip={IP} \
                -v data:/data localhost/redis:test redis-server --bind 0.0.0.0 --protected-mode no --appendonly yes --dir /data
                until redis-cli -h {IP} ping; do sleep 0.05; done"));
            let redis = Redis { name: "web".into(), ip: IP.into(), pid: 0 };
            let probe = Probe::start(&bed, &redis);
            let words =
                ["podman:web", "ssh://dst", "--tcp-established", "--max-downtime", "60s", "--retries", "0"];
            let mut running = Background::migrate(&bed, &[], &words);
            running.wait_for_phase(phase);
            match side {
                SRC => running.signal("KILL"),
                _ => drop(bed.try_sh(DST, "for p in $(pgrep -f '[g]odwit receive'); do kill -9 $p; done")),
            }
            let said = running.finish();
            let mut context = format!("{runtime}, {phase} on {side}: {}{}", said.out, said.err);
            for host in [SRC, DST] {
                let resumed = godwit_with(&bed, host, &[], &["resume", "--timeout", "30s"]);
                context += &format!("\n{host}: {} {}{}", resumed.code, resumed.out, resumed.err);
            }
            bed.end_what_is_kept();
            let runs = |host: &&str| {
                bed.holds(host, "[ \"$(podman inspect -f '{{.State.Status}}' web)\" = running ]")
            };
            let runners: Vec<&str> = [SRC, DST].into_iter().filter(|host| runs(host)).collect();
            let [runner] = runners[..] else { panic!("PROMISE BROKEN: it runs on {runners:?}: {context}") };
            assert_eq!(probe.lost(), None, "{context}");
            assert_one_scope(&bed, runner, "libpod");
        }
    }
}

#[test]
fn a_host_without_systemd_takes_none_of_its_containers() {
    let Some(bed) = systemd_bed() else { return };
    bed.sh(SRC, &format!("testbed-container create web {IP} --engine crun --systemd-cgroup"));
    bed.sh(DST, "mv /run/systemd/system /run/systemd/away");
    let said = migrate(&bed, SRC, "crun:web", &[]);
    bed.sh(DST, "mv /run/systemd/away /run/systemd/system");
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("systemd is not process 1 of that host"), "{}{}", said.out, said.err);
    assert_one_scope(&bed, SRC, "web");
}

/// podman has systemd call for its health checks; each puts a program into the container.
#[test]
fn a_container_whose_health_is_checked_every_second_moves_and_is_healthy() {
    let Some(bed) = systemd_bed() else { return };
    let check = "--health-cmd 'sleep 0.3; redis-cli ping' --health-interval 1s";
    let redis =
        "localhost/redis:test redis-server --bind 0.0.0.0 --protected-mode no --appendonly yes --dir /data";
    for (engine, network) in
        [("podman", format!("--network testbed:ip={IP}")), ("docker", format!("--network testbed --ip {IP}"))]
    {
        for host in [SRC, DST] {
            bed.sh(host, &format!("testbed-container image --engine {engine}"));
        }
        bed.sh(SRC, &format!("{engine} run -d --name web {network} -v data:/data {check} {redis}"));
        bed.sh(SRC, &format!("until redis-cli -h {IP} ping; do sleep 0.05; done"));
        let healthy = format!(
            "timeout 20 sh -c \"until {engine} inspect -f '{{{{.State.Health.Status}}}}' web | grep -qx healthy; do sleep 0.1; done\""
        );
        bed.sh(SRC, &healthy);
        let probe = Probe::start(&bed, &Redis { name: "web".into(), ip: IP.into(), pid: 0 });
        // long enough for a check to begin while it stands still: podman's lock on it is held until that has begun
        bed.write(SRC, "/root/slow", "#!/bin/sh\nsleep 2\n");
        for (host, hook) in [
            (SRC, &["--hook", "post-freeze=/root/slow", "--post-freeze-timeout", "9s"][..]),
            (DST, &[]),
            (SRC, &[]),
        ] {
            let summary = migrate(&bed, host, &format!("{engine}:web"), hook).summary();
            assert_eq!(summary["leftovers"], json!([]), "{summary}");
            bed.sh(other(host), &healthy);
            assert_eq!(
                bed.sh(host, "systemctl list-timers --no-legend; systemctl --failed --plain --no-legend"),
                ""
            );
        }
        probe.assert_nothing_lost();
        // it is looked at there, too, and not only remembered as healthy
        let looked = format!("{engine} inspect -f '{{{{json .State.Health.Log}}}}' web");
        let before = bed.sh(DST, &looked);
        bed.sh(
            DST,
            &format!(
                "for i in $(seq 100); do [ \"$({looked})\" = '{before}' ] || exit 0; sleep 0.1; done; exit 1"
            ),
        );
        bed.wipe();
    }
}

/// The units on both hosts, as long as this lives, and nothing of what they have begun after it.
struct Units<'a>(&'a Bed);

impl<'a> Units<'a> {
    fn install(bed: &'a Bed) -> Self {
        let units = Self(bed);
        for host in [SRC, DST] {
            for (name, text) in UNITS {
                bed.write(host, &format!("/etc/systemd/system/{name}"), text);
                bed.sh(host, &format!("chmod 644 /etc/systemd/system/{name}"));
            }
            bed.sh(host, "systemctl daemon-reload; systemd-analyze verify /etc/systemd/system/godwit-*");
        }
        units
    }
}

impl Drop for Units<'_> {
    fn drop(&mut self) {
        for host in [SRC, DST] {
            self.0.try_sh(
                host,
                "systemctl stop 'godwit-*'; rm -rf /etc/systemd/system/godwit-* /etc/godwit; systemctl daemon-reload; systemctl reset-failed",
            );
        }
    }
}

#[test]
fn the_services_go_on_after_they_were_killed() {
    let Some(bed) = systemd_bed() else { return };
    let _units = Units::install(&bed);
    let main_pid = |unit: &str| bed.sh(SRC, &format!("systemctl show -P MainPID '{unit}'"));
    let await_another = |unit: &str, pid: &str| {
        let is_another = format!("p=$(systemctl show -P MainPID '{unit}'); [ $p != 0 ] && [ $p != {pid} ]");
        bed.sh(SRC, &format!("for i in $(seq 300); do {is_another} && exit 0; sleep 0.1; done; exit 1"));
    };
    // a wrong configuration does not begin again and again
    bed.try_sh(SRC, "systemctl start godwit-node");
    bed.sh(SRC, "for i in $(seq 100); do systemctl is-failed godwit-node && exit 0; sleep 0.1; done; exit 1");
    assert!(bed.sh(SRC, "journalctl -u godwit-node | cat").contains("where to listen was not said"));

    let follow = "godwit-follow@-srv-data.service";
    bed.sh(
        SRC,
        "mkdir /srv/data; echo one > /srv/data/file; godwit config set follow.interval 1s; godwit config set follow.keep-last 5
         godwit config set node.listen unix:///run/godwit-node.sock; systemctl restart godwit-node",
    );
    bed.sh(SRC, &format!("systemctl start '{follow}'"));
    let await_snapshots = |least: u32| {
        let count = "godwit --json volume list /srv/data | grep -o '\"id\":' | wc -l";
        bed.sh(
            SRC,
            &format!("for i in $(seq 300); do [ $({count}) -ge {least} ] && exit 0; sleep 0.1; done; exit 1"),
        );
    };
    await_snapshots(1);
    for (unit, killed) in [("godwit-node", main_pid("godwit-node")), (follow, main_pid(follow))] {
        bed.sh(SRC, &format!("kill -9 {killed}"));
        await_another(unit, &killed);
    }
    bed.sh(SRC, "sleep 1; echo two > /srv/data/file");
    await_snapshots(2);
    // another store of this host is the visitor
    let replicated =
        "godwit --root /srv/other volume replicate /srv/data --from unix:///run/godwit-node.sock --insecure";
    bed.sh(SRC, replicated);
    assert_eq!(
        bed.sh(SRC, "godwit --root /srv/other volume restore /srv/data@latest /srv/back; cat /srv/back/file"),
        "two"
    );
}

#[test]
fn the_service_ends_a_migration_that_a_kill_has_interrupted() {
    let Some(bed) = systemd_bed() else { return };
    let _units = Units::install(&bed);
    bed.sh(SRC, &format!("testbed-container create web {IP} --ram 8 --engine crun --systemd-cgroup"));
    let probe = Probe::start(&bed, &Redis { name: "web".into(), ip: IP.into(), pid: 0 });
    let words = ["crun:web", "ssh://dst", "--tcp-established", "--max-downtime", "60s", "--retries", "0"];
    let mut running = Background::migrate(&bed, &[], &words);
    running.wait_for_phase("stop-and-copy");
    running.signal("KILL");
    running.finish();
    bed.sh(SRC, "systemctl start godwit-resume");
    bed.sh(DST, "systemctl start godwit-resume");
    bed.end_what_is_kept();
    let runs = |host: &&str| bed.holds(host, "crun state web | grep -q '\"status\": \"running\"'");
    let runners: Vec<&str> = [SRC, DST].into_iter().filter(|host| runs(host)).collect();
    let [runner] = runners[..] else { panic!("PROMISE BROKEN: it runs on {runners:?}") };
    assert_eq!(probe.lost(), None, "on {runner}");
    assert_one_scope(&bed, runner, "web");
    assert_eq!(bed.sh(SRC, "godwit --json status | grep -c in-doubt; true"), "0");
}

#[test]
fn a_timer_keeps_snapshots_of_a_container() {
    let Some(bed) = systemd_bed() else { return };
    let _units = Units::install(&bed);
    bed.sh(SRC, &format!("testbed-container create web {IP} --ram 8 --engine crun --systemd-cgroup"));
    let timer = "godwit-keep@$(systemd-escape crun:web).timer";
    bed.sh(SRC, &format!("systemctl enable --now {timer}"));
    assert!(bed.sh(SRC, "systemctl list-timers --no-legend").contains("godwit-keep@"), "it does not wait");
    // what it does when it is time
    for _ in 0..2 {
        bed.sh(SRC, "systemctl start godwit-keep@$(systemd-escape crun:web).service");
    }
    let said = godwit_with(&bed, SRC, &[], &["--json", "images", "ls", "store"]);
    let listed = said.lines("images").remove(0);
    assert_eq!(listed["images"].as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(bed.sh(SRC, &format!("redis-cli -h {IP} ping")), "PONG");
    bed.sh(SRC, &format!("systemctl disable --now {timer}; rm -rf /var/lib/godwit/store"));
    assert_one_scope(&bed, SRC, "web");
}
