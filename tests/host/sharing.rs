//! Containers that share a network namespace outside of pods move together: `docker run --network container:web`, and podman's.

use crate::bed::{Bed, DST, SRC, bed};
use crate::container::{IDLE, Redis, make_bundle, run_bundle, runc_state};
use crate::engines::{self, migrate, other};
use crate::engines_docker;
use crate::godwit::{Background, godwit_with};
use crate::probe::Probe;
use crate::refusals::Hosts;
use serde_json::{Value, json};

const IP: &str = "10.77.0.100";
const ENGINES: [&str; 2] = ["docker", "podman"];

/// Images and whatever else the engine needs before.
fn set_up(bed: &Bed, engine: &str) {
    if engine == "docker" {
        return engines_docker::set_up(bed);
    }
    for host in [SRC, DST] {
        bed.sh(host, "testbed-container image");
    }
}

#[track_caller]
fn assert_nothing_left(bed: &Bed, engine: &str, host: &str) {
    match engine {
        "docker" => engines_docker::assert_nothing_left(bed, host),
        _ => {
            engines::assert_nothing_left(bed, host, "crun");
            assert_eq!(bed.sh(host, "podman ps -aq"), "", "{host}");
        }
    }
}

/// The option by which `side` shares the process numbers, too.
const NUMBERS: &str = "--pid container:web";

/// A redis on the source that has a network, and another one in that network, which follows it over the loopback. Both have a volume.
fn make_two(bed: &Bed, engine: &str, options: &str) -> Redis {
    set_up(bed, engine);
    bed.sh(
        SRC,
        &format!(
            "{engine} run -d --name web --network testbed --ip {IP} --mac-address 02:42:0a:4d:00:64 --restart always -v data:/data \
                localhost/redis:test \
                redis-server --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --save '' --appendonly yes --dir /data
             until redis-cli -h {IP} ping; do sleep 0.05; done
             redis-cli -h {IP} debug populate 4000 key 4000
             {engine} run -d --name side --network container:web {options} --restart always -v data:/both -v own:/own localhost/redis:test \
                redis-server --bind 0.0.0.0 --port 6380 --protected-mode no --save '' --dir /own --replicaof 127.0.0.1 6379 \
                --repl-backlog-size 1mb --repl-timeout 600
             until redis-cli -h {IP} -p 6380 info replication | grep -q master_link_status:up; do sleep 0.05; done
             {engine} exec side sh -c 'echo two > /both/two; echo two > /own/file; echo two > /two'"
        ),
    );
    Redis { name: "web".into(), ip: IP.into(), pid: 0 }
}

/// What the two say of each other: whether the connection between them is still the first one.
fn replication(bed: &Bed, host: &str) -> String {
    let field = |port: u16, section: &str, name: &str| {
        bed.sh(host, &format!("redis-cli -h {IP} -p {port} info {section} | grep ^{name}: | tr -d '\\r'"))
    };
    [
        field(6379, "stats", "sync_full"),
        field(6379, "stats", "sync_partial_ok"),
        field(6379, "replication", "connected_slaves"),
        field(6380, "replication", "master_link_status"),
    ]
    .join(" ")
}

/// The one that follows is in the network of the other, by the kernel's word and by the engine's.
#[track_caller]
fn assert_is_shared(bed: &Bed, engine: &str, host: &str) {
    let inspected =
        |format: &str, name: &str| bed.sh(host, &format!("{engine} inspect -f '{format}' {name}"));
    let namespace =
        |name: &str| bed.sh(host, &format!("readlink /proc/{}/ns/net", inspected("{{.State.Pid}}", name)));
    assert_eq!(namespace("web"), namespace("side"), "{host}");
    let owner = inspected("{{.Id}}", "web");
    assert_eq!(inspected("{{.HostConfig.NetworkMode}}", "side"), format!("container:{owner}"), "{host}");
    if engine == "docker" {
        let hostname = |name: &str| inspected("{{.Config.Hostname}}", name);
        assert_eq!(hostname("side"), hostname("web"), "{host}");
    }
}

#[test]
fn two_containers_of_docker_in_one_network_go_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    two_go_there_and_back(&bed, "docker");
}

#[test]
fn two_containers_of_podman_in_one_network_go_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    two_go_there_and_back(&bed, "podman");
}

fn two_go_there_and_back(bed: &Bed, engine: &str) {
    let (owner, follower) = (format!("{engine}:web"), format!("{engine}:side"));
    let redis = make_two(bed, engine, "");
    let before = replication(bed, SRC);
    assert!(before.contains("sync_full:1") && before.contains("master_link_status:up"), "{before}");
    assert_is_shared(bed, engine, SRC);
    let hostname = bed.sh(SRC, &format!("{engine} exec side hostname"));
    let probe = Probe::start(bed, &redis);
    let mut host = SRC;
    // by the name of the one that follows, too
    for name in [&owner, &follower] {
        let said = migrate(bed, host, name, &["--together"]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let lines: Vec<Value> = said.out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let summaries: Vec<&Value> = lines.iter().filter(|line| line["message_type"] == "summary").collect();
        assert_eq!(summaries.len(), 2, "{}", said.out);
        for summary in summaries {
            assert_eq!(
                (&summary["memory"]["restoration"], &summary["leftovers"]),
                (&"local-lazy".into(), &json!([])),
                "{summary}"
            );
        }
        let together = lines.last().unwrap();
        assert_eq!(
            (&together["message_type"], &together["containers"]),
            (&json!("together"), &json!([owner, follower]))
        );
        eprintln!("{engine}: none stood still for longer than {} us", together["downtime_us"]);
        assert_nothing_left(bed, engine, host);
        host = other(host);
        assert_is_shared(bed, engine, host);
        let seen = format!("{engine} exec side sh -c 'cat /both/two /own/file /two; hostname'");
        assert_eq!(bed.sh(host, &seen), format!("two\ntwo\ntwo\n{hostname}"));
        assert_eq!(
            bed.sh(host, &format!("{engine} inspect -f '{{{{.HostConfig.RestartPolicy.Name}}}}' web side")),
            "always\nalways"
        );
        assert_eq!(replication(bed, host), before);
    }
    probe.assert_nothing_lost();
    // they are the engine's: stopped and started again they share as before
    bed.sh(
        host,
        &format!("{engine} stop -t 1 side; {engine} stop -t 1 web; {engine} start web; {engine} start side"),
    );
    assert_is_shared(bed, engine, host);
    bed.sh(host, &format!("{engine} rm -f side; {engine} rm -f web; {engine} volume rm data own"));
    assert_nothing_left(bed, engine, host);
}

#[test]
fn who_shares_a_network_is_refused_with_the_names_of_the_others() {
    let Some(bed) = bed() else { return };
    for engine in ENGINES {
        bed.wipe();
        who_shares_is_refused(&bed, engine);
    }
}

/// What is done at the source, who is to move, with which options; the exit code, and words of the reason.
type Case<'a> = (String, &'a str, &'a [&'a str], i32, &'a [&'a str]);

fn who_shares_is_refused(bed: &Bed, engine: &str) {
    make_two(bed, engine, "");
    let pids = format!("{engine} inspect -f '{{{{.State.Pid}}}}' web side");
    let before = bed.sh(SRC, &pids);
    let of_one: &[&str] = match engine {
        "docker" => &["of one container only", "`third`"],
        _ => &["other containers share its namespaces", "`third`"],
    };
    let third = |options: &str| {
        format!("{engine} run -d --name third {options} localhost/redis:test tail -f /dev/null")
    };
    let mut cases: Vec<Case<'_>> = vec![
        ("true".into(), "web", &[], 2, &["`side`", "--together"]),
        ("true".into(), "side", &[], 2, &["`web`", "--together"]),
        (
            "true".into(),
            "web",
            &["--together", "--strategy", "restart"],
            13,
            &["only single containers", "`side`"],
        ),
        ("true".into(), "web", &["--together", "--keep-source"], 2, &["several containers"]),
        (third("--network none --pid container:side"), "web", &["--together"], 13, of_one),
    ];
    if engine == "podman" {
        // podman removes nobody that others depend on, whether they run or not
        let ended = third("--network container:web") + "; podman kill third; podman wait third";
        cases.push((ended, "web", &["--together"], 13, &["do not run", "`third`"]));
        let its_ipc = third("--network container:web --ipc container:web");
        cases.push((its_ipc, "web", &["--together"], 13, &["shares a namespace"]));
    }
    for (spoil, container, flags, code, words) in cases {
        bed.sh(SRC, &spoil);
        let said = migrate(bed, SRC, &format!("{engine}:{container}"), flags);
        bed.sh(SRC, &format!("{engine} rm -f third 2> /dev/null; true"));
        assert_eq!(said.code, code, "{engine}: {spoil} {flags:?}: {}{}", said.out, said.err);
        for words in words {
            let all = format!("{}{}", said.out, said.err);
            assert!(said.out.contains(words), "{engine}: {spoil} {flags:?}: `{words}` is not in {all}");
        }
    }
    assert_eq!(bed.sh(SRC, &pids), before);
    assert_nothing_left(bed, engine, DST);
}

/// What shares process numbers is restored among those that are there; it may have a network of its own.
#[test]
fn who_shares_process_numbers_goes_along() {
    let Some(bed) = bed() else { return };
    for engine in ENGINES {
        bed.wipe();
        numbers_are_shared_there(&bed, engine);
    }
}

fn numbers_are_shared_there(bed: &Bed, engine: &str) {
    make_two(bed, engine, "");
    let third = "redis-cli -h 10.77.0.101";
    bed.sh(
        SRC,
        &format!(
            "{engine} run -d --name third --network testbed --ip 10.77.0.101 --mac-address 02:42:0a:4d:00:65 --pid container:web \
                localhost/redis:test redis-server --bind 0.0.0.0 --protected-mode no --save ''
             until {third} ping; do sleep 0.05; done; {third} set key value"
        ),
    );
    let seen = |host: &str| {
        let pid = |name: &str| bed.sh(host, &format!("{engine} inspect -f '{{{{.State.Pid}}}}' {name}"));
        let (web, third) = (pid("web"), pid("third"));
        let namespace = |pid: &str| bed.sh(host, &format!("readlink /proc/{pid}/ns/pid"));
        assert_eq!(namespace(&web), namespace(&third), "{engine} on {host}");
        let owner = bed.sh(host, &format!("{engine} inspect -f '{{{{.Id}}}}' web"));
        let mode = bed.sh(host, &format!("{engine} inspect -f '{{{{.HostConfig.PidMode}}}}' third"));
        assert_eq!(mode, format!("container:{owner}"), "{host}");
        // its number among theirs, and that it sees the other's first process
        let number = bed.sh(host, &format!("awk '/^NSpid:/ {{ print $NF }}' /proc/{third}/status"));
        let first = bed.sh(host, &format!("{engine} exec third sh -c 'tr \"\\0\" \" \" < /proc/1/cmdline'"));
        (number, first, bed.sh(host, "redis-cli -h 10.77.0.101 get key"))
    };
    let before = seen(SRC);
    let mut host = SRC;
    for _ in 0..2 {
        let said = migrate(bed, host, &format!("{engine}:third"), &["--together"]);
        assert_eq!(said.code, 0, "{engine}: {}{}", said.out, said.err);
        assert_nothing_left(bed, engine, host);
        host = other(host);
        assert_eq!(seen(host), before, "{engine} on {host}");
        assert_is_shared(bed, engine, host);
    }
    bed.sh(
        host,
        &format!("for name in third side web; do {engine} rm -f $name; done; {engine} volume rm data own"),
    );
    assert_nothing_left(bed, engine, host);
}

/// Who has lost its parent is a child of the owner's first process, which CRIU would look for there.
#[test]
fn a_process_that_another_container_has_adopted_is_named_before_the_move_and_at_the_freeze() {
    let Some(bed) = bed() else { return };
    make_two(&bed, "podman", NUMBERS);
    let adopted = "podman exec side setsid sh -c 'sleep 1000 > /dev/null 2>&1 < /dev/null &'";
    let words = ["(`sleep`) has ended, and another container of its pid namespace"];
    let flags = ["podman:web", "ssh://dst", "--together", "--tcp-established", "--max-downtime", "60s"];
    // nobody stands still as long as hooks are called
    bed.write(SRC, "/root/adopted", &format!("#!/bin/sh -e\n{adopted}\n"));
    bed.sh(SRC, "chmod +x /root/adopted");
    let with_hook = [&["migrate"], &flags[..], &["--hook", "pre-freeze=/root/adopted"]].concat();
    let said = godwit_with(&bed, SRC, &[], &with_hook);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.err.contains(words[0]), "{}", said.err);
    assert_eq!(said.last_line(), "podman:web is running on this host");
    assert_nothing_left(&bed, "podman", DST);
    let hosts = Hosts::now(&bed);
    hosts.refuse(&[], &flags, 13, &words);
    // when it ends its new parent takes no notice of it
    bed.sh(SRC, "pkill -f '^sleep 1000'");
    Hosts::now(&bed).refuse(&[], &flags, 13, &["(`sleep`) has ended in a session of others"]);
}

/// Nobody knows of a runtime's groups: who shares its process numbers does not go, and neither does whose they are, with which the others would end.
#[test]
fn containers_of_a_runtime_that_share_process_numbers_stay() {
    let Some(bed) = bed() else { return };
    make_bundle(&bed, "owner", IDLE, |_| {});
    run_bundle(&bed, "owner");
    let pid = runc_state(&bed, SRC, "owner").unwrap()["pid"].clone();
    make_bundle(&bed, "follower", IDLE, |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        let numbers = namespaces.iter_mut().find(|namespace| namespace["type"] == "pid").unwrap();
        numbers["path"] = format!("/proc/{pid}/ns/pid").into();
    });
    run_bundle(&bed, "follower");
    let hosts = Hosts::now(&bed);
    let words = ["another container shares its pid namespace", "(`tail`)", "--together"];
    for name in ["runc:owner", "runc:follower"] {
        hosts.refuse(&[], &[name, "ssh://dst"], 13, &words);
        hosts.refuse(&[], &[name, "ssh://dst", "--strategy", "restart"], 13, &words);
    }
}

/// Killed, then `godwit resume`: both run on one side, and the other has nothing of them.
#[test]
fn after_a_kill_resume_leaves_both_on_one_side() {
    let Some(bed) = bed() else { return };
    for engine in ENGINES {
        for (phase, side, options) in [
            ("stop-and-copy", SRC, ""),
            ("restore", DST, ""),
            ("restore", DST, NUMBERS),
            ("commit", SRC, NUMBERS),
        ] {
            a_kill_leaves_both_on_one_side(&bed, engine, phase, side, options);
        }
    }
}

fn a_kill_leaves_both_on_one_side(bed: &Bed, engine: &str, phase: &str, side: &str, options: &str) {
    bed.wipe();
    let (redis, owner) = (make_two(bed, engine, options), format!("{engine}:web"));
    let probe = Probe::start(bed, &redis);
    let flags =
        [&owner, "ssh://dst", "--together", "--tcp-established", "--retries", "0", "--max-downtime", "60s"];
    let mut running = Background::migrate(bed, &[], &flags);
    running.wait_for_phase(phase);
    match side {
        SRC => running.signal("KILL"),
        _ => drop(bed.try_sh(DST, "for p in $(pgrep -f '[g]odwit receive'); do kill -9 $p; done")),
    }
    let said = running.finish();
    let mut context = format!("{engine} {options}: {phase} on {side}: {}{}", said.out, said.err);
    for host in [SRC, DST] {
        let resumed = godwit_with(bed, host, &[], &["resume", "--timeout", "30s"]);
        context += &format!("\n{host}: {} {}{}", resumed.code, resumed.out, resumed.err);
    }
    eprintln!("{context}");
    bed.end_what_is_kept();
    let runs = |host: &str, name: &str| {
        bed.holds(host, &format!("[ \"$({engine} inspect -f '{{{{.State.Status}}}}' {name})\" = running ]"))
    };
    let running: Vec<(&str, &str)> = [SRC, DST]
        .into_iter()
        .flat_map(|host| ["web", "side"].map(|name| (host, name)))
        .filter(|(host, name)| runs(host, name))
        .collect();
    let runner = running.first().map_or("nowhere", |(host, _)| host);
    assert_eq!(running, [(runner, "web"), (runner, "side")], "{context}");
    assert_is_shared(bed, engine, runner);
    if runner == SRC {
        assert_eq!(bed.sh(DST, &format!("{engine} volume ls -q")), "", "{context}");
    }
    assert_eq!(probe.lost(), None, "{context}");
    assert_nothing_left(bed, engine, other(runner));
}
