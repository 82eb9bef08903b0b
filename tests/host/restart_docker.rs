//! `--strategy restart` with docker, which stops and starts the container itself.

use crate::bed::{Bed, CLIENT, DST, SRC, bed};
use crate::engines::{difference, other};
use crate::engines_docker::{Configured, PID, assert_nothing_left, docker_redis, inspected, set_up};
use crate::godwit::{Background, godwit_with};
use crate::restart::{digest, filled, migrate};
use serde_json::Value;
use std::time::{Duration, Instant};

/// docker's word for the container on a host, and what docker does when it ends.
fn status(bed: &Bed, host: &str) -> String {
    let shown =
        "docker container inspect -f '{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}' web 2> /dev/null";
    bed.sh(host, &format!("{shown} | grep . || echo none"))
}

fn redis_with_data(bed: &Bed) -> String {
    docker_redis(bed);
    filled(bed)
}

#[test]
fn a_container_of_docker_is_started_there_with_its_files() {
    let Some(bed) = bed() else { return };
    let data = redis_with_data(&bed);
    let diff = |host: &str| bed.sh(host, "docker diff web | sort");
    let (before, layer) = (inspected(&bed, SRC), diff(SRC));
    // what CRIU cannot dump is no obstacle: a session of `docker exec`
    bed.sh(SRC, "docker exec -d web tail -f /dev/null");
    let mut host = SRC;
    for starts in 2..5 {
        let said = migrate(&bed, host, "docker:web", &[]);
        let summary = said.summary();
        assert_eq!(
            (&summary["strategy"], &summary["leftovers"]),
            (&"restart".into(), &Value::Array(vec![])),
            "{summary}"
        );
        assert!(summary["downtime_us"].as_u64() > Some(1000), "{summary}");
        let there = other(host);
        assert_eq!(digest(&bed), data);
        assert_eq!(status(&bed, there), "running always");
        assert_eq!(difference("", &before, &inspected(&bed, there)), [""; 0]);
        assert_eq!(diff(there), layer);
        let files = "docker exec web cat /new /anonymous/file /ro/file";
        assert_eq!(bed.sh(there, files), "new\nkept\nfixed");
        assert_eq!(summary["pid"].to_string(), bed.sh(there, PID));
        // one log, of all that it has said
        let ready = "docker logs web 2>&1 | grep -c 'Ready to accept connections'";
        assert_eq!(bed.sh(there, ready), starts.to_string());
        assert_eq!(bed.sh(there, "ls /var/lib/docker/containers/*/ | grep -c json.log"), "1");
        assert_eq!(bed.sh(there, "docker inspect -f '{{.HostConfig.Runtime}}' web"), "runc");
        assert_nothing_left(&bed, host);
        host = there;
    }
    // it needs nothing of godwit's there, and can be moved while it runs again
    let said = crate::engines::migrate(&bed, host, "docker:web", &[]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert_eq!(digest(&bed), data);
}

/// A program that says on a volume when it begins, when it is asked to end, and obeys if it is told to.
fn make_talker(bed: &Bed, obeys: bool) {
    set_up(bed);
    let end = if obeys { "exit" } else { ":" };
    bed.sh(
        SRC,
        &format!(
            "docker run -d --name web --network none --restart always -v kept:/kept localhost/redis:test \
                sh -c \"trap 'echo end >> /kept/log; {end}' TERM; echo begin >> /kept/log; while :; do sleep 0.1; done\"
             timeout 20 sh -c 'until docker exec web test -s /kept/log; do sleep 0.1; done'"
        ),
    );
}

#[test]
fn a_container_of_docker_ends_by_its_signal_or_is_killed_and_goes_on_there() {
    let Some(bed) = bed() else { return };
    let log = "docker exec web cat /kept/log";
    make_talker(&bed, true);
    let summary = migrate(&bed, SRC, "docker:web", &[]).summary();
    assert_eq!(summary["leftovers"], Value::Array(vec![]), "{summary}");
    // all that it said before it ended has come along
    bed.sh(DST, &format!("timeout 20 sh -c 'until test $({log} | wc -l) = 3; do sleep 0.1; done'"));
    assert_eq!(bed.sh(DST, log), "begin\nend\nbegin");
    assert_nothing_left(&bed, SRC);
    bed.sh(DST, "docker rm -f -v web; docker volume rm kept");
    bed.sh(SRC, "docker volume rm kept");

    make_talker(&bed, false);
    let begun = Instant::now();
    migrate(&bed, SRC, "docker:web", &["--stop-timeout", "2s"]).summary();
    assert!(begun.elapsed() > Duration::from_secs(2), "it had no time");
    assert_eq!(status(&bed, DST), "running always");
    assert_nothing_left(&bed, SRC);
}

/// Somebody removes what was made for it there, while it is being stopped here.
#[test]
fn what_cannot_be_started_there_is_started_again_here_by_docker() {
    let Some(bed) = bed() else { return };
    make_talker(&bed, false);
    let words = ["docker:web", "ssh://dst", "--strategy", "restart", "--stop-timeout", "8s"];
    let mut running = Background::migrate(&bed, &[], &words);
    running.wait_for_phase("freeze");
    bed.sh(DST, "docker rm -f web");
    let said = running.finish();
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    let error = said.lines("exit_error").remove(0);
    assert_eq!(error["disposition"], "running_at_source", "{error}");
    assert!(error.to_string().contains("it was started again here after"), "{error}");
    assert_eq!(status(&bed, SRC), "running always");
    let log = "docker exec web cat /kept/log";
    bed.sh(SRC, &format!("timeout 20 sh -c 'until test $({log} | wc -l) = 3; do sleep 0.1; done'"));
    assert_eq!(bed.sh(SRC, log), "begin\nend\nbegin");
    assert_nothing_left(&bed, DST);
    assert_eq!(bed.sh(DST, "docker volume ls -q"), "");
}

/// Killed in each phase from the stop on, then `godwit resume`: one side runs it, and the other has nothing of it.
#[test]
fn after_a_kill_resume_leaves_one_of_docker_that_runs() {
    let Some(bed) = bed() else { return };
    for (phase, side) in [
        ("freeze", SRC),
        ("stop-and-copy", SRC),
        ("restore", SRC),
        ("commit", SRC),
        ("restore", DST),
        ("commit", DST),
    ] {
        bed.wipe();
        let data = redis_with_data(&bed);
        let mut running =
            Background::migrate(&bed, &[], &["docker:web", "ssh://dst", "--strategy", "restart"]);
        running.wait_for_phase(phase);
        match side {
            SRC => running.signal("KILL"),
            _ => drop(bed.try_sh(DST, "for p in $(pgrep -f '[g]odwit receive'); do kill -9 $p; done")),
        }
        let said = running.finish();
        let resumed = godwit_with(&bed, SRC, &[], &["--json", "resume", "--timeout", "30s"]);
        let context = format!("{phase} on {side}: {}{}\n{}{}", said.out, said.err, resumed.out, resumed.err);
        assert_eq!(resumed.code, 0, "{context}");
        assert_eq!(digest(&bed), data, "{context}");
        let found = [status(&bed, SRC), status(&bed, DST)];
        let (runs, without) = match found[0] == "none" {
            true => (DST, SRC),
            false => (SRC, DST),
        };
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(sorted, ["none", "running always"], "{context}");
        // what the destination keeps for another attempt
        bed.end_what_is_kept();
        bed.sh(
            DST,
            "timeout 20 sh -c 'while ls -d /var/lib/godwit/parked/* 2> /dev/null; do sleep 0.1; done'",
        );
        assert_nothing_left(&bed, without);
        assert_eq!(bed.sh(runs, "ls /var/lib/docker/containers/*/ | grep -c json.log"), "1", "{context}");
    }
}

#[test]
fn what_docker_could_not_start_again_is_refused_and_not_stopped() {
    let Some(bed) = bed() else { return };
    docker_redis(&bed);
    let pid = bed.sh(SRC, PID);
    for (options, words) in [
        (
            "--network none --rm",
            "docker removes it when it ends (`--rm`), so it could not be started again here",
        ),
        ("--network container:web", "shares the network of another container"),
        ("--network none --pid container:web", "shares a namespace (`--pid container:"),
        ("--network none --volumes-from web", "depends on other containers"),
    ] {
        bed.sh(SRC, &format!("docker run -d --name odd {options} localhost/redis:test tail -f /dev/null"));
        let odd = "docker inspect -f '{{.State.Pid}}' odd";
        let before = bed.sh(SRC, odd);
        let said = migrate(&bed, SRC, "docker:odd", &[]);
        assert_eq!(said.code, 13, "{options}: {}{}", said.out, said.err);
        assert!(said.out.contains(words), "{options}: {}{}", said.out, said.err);
        assert_eq!(bed.sh(SRC, odd), before, "{options}");
        bed.sh(SRC, "docker rm -f odd");
    }
    assert_eq!(bed.sh(SRC, PID), pid);
    assert_eq!(bed.sh(DST, "docker ps -aq; docker volume ls -q"), "");
}

/// One of which godwit knows nothing.
#[test]
fn any_runtime_will_do_that_docker_there_knows() {
    let Some(bed) = bed() else { return };
    set_up(&bed);
    let reload = "kill -HUP $(cat /run/docker.pid); sleep 1";
    let _configured = Configured::begin(&bed, r#"s|"runtimes": {|&"other": {"path": "/srv/bin/other"}, |"#);
    for host in [SRC, DST] {
        bed.write(host, "/srv/bin/other", "#!/bin/sh\nexec runc \"$@\"\n");
    }
    bed.sh(SRC, reload);
    bed.sh(
        SRC,
        "docker run -d --name web --runtime other --network none localhost/redis:test tail -f /dev/null",
    );
    let pid = bed.sh(SRC, PID);
    let said = crate::engines::migrate(&bed, SRC, "docker:web", &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("its runtime is `other`, and not runc"), "{}", said.out);
    let said = migrate(&bed, SRC, "docker:web", &[]);
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("docker there has no runtime `other`"), "{}", said.out);
    assert_eq!(bed.sh(SRC, PID), pid);
    bed.sh(DST, reload);
    migrate(&bed, SRC, "docker:web", &[]).summary();
    let runtime = "docker inspect -f '{{.HostConfig.Runtime}} {{.State.Status}}' web";
    assert_eq!(bed.sh(DST, runtime), "other running");
    assert_nothing_left(&bed, SRC);
    bed.sh(DST, "docker rm -f web");
}

/// docker gives out the addresses of its default network itself: it can only be started there, with another one.
#[test]
fn in_the_default_network_it_is_started_with_another_address() {
    let Some(bed) = bed() else { return };
    // the tests' hosts are usually without
    let _configured = Configured::begin(&bed, r#"s/"bridge": "none",//"#);
    set_up(&bed);
    bed.sh(
        SRC,
        "docker run -d --name first localhost/redis:test tail -f /dev/null
         docker run -d --name web -p 8379:6379 -v data:/data localhost/redis:test \
            redis-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly yes --dir /data
         docker rm -f first",
    );
    let address = "docker inspect -f '{{.NetworkSettings.Networks.bridge.IPAddress}}' web";
    let ask = |host: &str, words: &str| {
        bed.sh(
            host,
            &format!(
                "timeout 20 sh -c 'until redis-cli -h $({address}) {words} 2> /dev/null; do sleep 0.1; done'"
            ),
        )
    };
    assert_eq!(ask(SRC, "set kept yes"), "OK");
    let (pid, had) = (bed.sh(SRC, PID), bed.sh(SRC, address));
    // moved while it runs it could not keep its own
    let said = crate::engines::migrate(&bed, SRC, "docker:web", &["--ip-change", "allow"]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("docker's default network"), "{}", said.out);
    assert!(said.out.contains("`--strategy restart --ip-change allow`"), "{}", said.out);
    // nor is it started with another one unless that is allowed
    let said = migrate(&bed, SRC, "docker:web", &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("`--ip-change allow`"), "{}", said.out);
    assert_eq!(bed.sh(SRC, PID), pid);
    let said = migrate(&bed, SRC, "docker:web", &["--ip-change", "allow"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert!(said.out.contains("docker gives it another address there"), "{}", said.out);
    assert_ne!(bed.sh(DST, address), had);
    assert_eq!(ask(DST, "get kept"), "yes");
    assert_eq!(bed.sh(DST, "docker inspect -f '{{json .NetworkSettings.Ports}}' web | grep -c 8379"), "1");
    assert_eq!(bed.try_sh(CLIENT, "timeout 2 redis-cli -h src -p 8379 get kept").out.trim(), "");
    assert_eq!(status(&bed, SRC), "none");
    bed.sh(DST, "docker rm -f -v web; docker volume rm data");
}
