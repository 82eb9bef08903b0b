//! `--strategy restart`: what CRIU cannot dump is stopped here and started there, with its files.

use crate::bed::{Bed, CLIENT, DST, SRC, Said, bed};
use crate::container::{add_bind, make_bundle, run_bundle, runc_state};
use crate::engines::{assert_nothing_left, podman_redis};
use crate::godwit::{Background, godwit_with};
use serde_json::Value;

const IP: &str = "10.77.0.100";

/// Moves a container by stopping it and starting it there.
pub fn migrate(bed: &Bed, from: &str, container: &str, more: &[&str]) -> Said {
    let to = if from == SRC { "ssh://dst" } else { "ssh://src" };
    godwit_with(
        bed,
        from,
        &[],
        &[&["--json", "migrate", container, to, "--strategy", "restart"], more].concat(),
    )
}

/// Waits until redis answers at its address, and gives a digest of all that it holds.
pub fn digest(bed: &Bed) -> String {
    let script = format!(
        "timeout 20 sh -c 'until redis-cli -h {IP} ping 2> /dev/null | grep -q PONG; do sleep 0.05; done'; redis-cli -h {IP} debug digest"
    );
    bed.sh(CLIENT, &script)
}

/// A redis of podman whose data are in its volume.
fn redis_with_data(bed: &Bed, runtime: &str) -> String {
    podman_redis(bed, runtime);
    filled(bed)
}

/// Gives redis data that are in its volume, unlike those of `debug populate`; their digest.
pub fn filled(bed: &Bed) -> String {
    let fill = "for i = 1, 2000 do redis.call('set', 'key:' .. i, string.rep('x', 1000) .. i) end";
    bed.sh(SRC, &format!("redis-cli -h {IP} flushall; redis-cli -h {IP} eval \"{fill}\" 0"));
    digest(bed)
}

fn status(bed: &Bed, host: &str) -> String {
    bed.sh(host, "podman inspect -f '{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}' web 2> /dev/null || echo none")
}

fn goes_there_and_back(runtime: &str) {
    let Some(bed) = bed() else { return };
    let data = redis_with_data(&bed, runtime);
    // what CRIU cannot dump is no obstacle: a session of `podman exec`
    bed.sh(SRC, "podman exec -d web tail -f /dev/null");
    let mut host = SRC;
    for _ in 0..3 {
        let said = migrate(&bed, host, "podman:web", &[]);
        let summary = said.summary();
        assert_eq!(
            (&summary["strategy"], &summary["leftovers"]),
            (&"restart".into(), &Value::Array(vec![])),
            "{summary}"
        );
        assert!(summary["downtime_us"].as_u64() > Some(1000), "{summary}");
        let there = if host == SRC { DST } else { SRC };
        assert_eq!(digest(&bed), data);
        assert_eq!(status(&bed, there), "running always");
        assert_eq!(bed.sh(there, "podman exec web cat /new /anonymous/file /ro/file"), "new\nkept\nfixed");
        assert_eq!(summary["pid"].to_string(), bed.sh(there, "podman inspect -f '{{.State.Pid}}' web"));
        assert_nothing_left(&bed, host, "podman");
        host = there;
    }
}

#[test]
fn a_container_of_podman_with_crun_is_started_there_with_its_files() {
    goes_there_and_back("crun");
}

#[test]
fn a_container_of_podman_with_runc_is_started_there_with_its_files() {
    goes_there_and_back("runc");
}

/// A program that says on a volume when it begins, when it is asked to end, and obeys if it is told to.
fn make_talker(bed: &Bed, obeys: bool) {
    let end = if obeys { "exit" } else { ":" };
    let script = format!(
        "trap 'echo end >> /kept/log; {end}' TERM; echo begin >> /kept/log; while :; do sleep 0.1; done"
    );
    make_bundle(bed, "talker", &["sh", "-c", &script], |config| add_bind(config, "/srv/kept", "/kept", "rw"));
    bed.sh(SRC, "mkdir -p /srv/kept");
    run_bundle(bed, "talker");
    bed.sh(SRC, "timeout 10 sh -c 'until test -s /srv/kept/log; do sleep 0.05; done'");
}

#[test]
fn a_container_of_runc_ends_by_its_signal_or_is_killed_and_goes_on_there() {
    let Some(bed) = bed() else { return };
    make_talker(&bed, true);
    let summary = migrate(&bed, SRC, "runc:talker", &[]).summary();
    assert_eq!(summary["leftovers"], Value::Array(vec![]), "{summary}");
    assert!(runc_state(&bed, SRC, "talker").is_none());
    assert_eq!(runc_state(&bed, DST, "talker").unwrap()["status"], "running");
    // all that it said before it ended has come along
    bed.sh(DST, "timeout 10 sh -c 'until test $(wc -l < /srv/kept/log) = 3; do sleep 0.05; done'");
    assert_eq!(bed.sh(DST, "cat /srv/kept/log"), "begin\nend\nbegin");
    assert_nothing_left(&bed, SRC, "runc");
    bed.sh(DST, "runc delete --force talker; rm -rf /srv/*");
    bed.sh(SRC, "rm -rf /srv/*");

    make_talker(&bed, false);
    let begun = std::time::Instant::now();
    migrate(&bed, SRC, "runc:talker", &["--stop-timeout", "2s"]).summary();
    assert!(begun.elapsed() > std::time::Duration::from_secs(2), "it had no time");
    assert_eq!(runc_state(&bed, DST, "talker").unwrap()["status"], "running");
    assert_nothing_left(&bed, SRC, "runc");
}

/// With an address: nobody answers at the source any more, and its neighbours find it at the destination.
#[test]
fn containers_of_runtimes_keep_their_addresses() {
    let Some(bed) = bed() else { return };
    for engine in ["runc", "crun"] {
        bed.wipe();
        bed.sh(SRC, &format!("testbed-container create web {IP} --ram 8 --engine {engine}"));
        bed.sh(
            CLIENT,
            &format!("for words in flushall 'set kept {engine}' save; do redis-cli -h {IP} $words; done"),
        );
        let data = digest(&bed);
        let mut host = SRC;
        for _ in 0..2 {
            let summary = migrate(&bed, host, &format!("{engine}:web"), &[]).summary();
            assert_eq!(summary["leftovers"], Value::Array(vec![]), "{summary}");
            let there = if host == SRC { DST } else { SRC };
            assert_eq!(
                (digest(&bed), bed.sh(there, &format!("{engine} list -q"))),
                (data.clone(), "web".into())
            );
            assert_nothing_left(&bed, host, engine);
            host = there;
        }
    }
}

#[test]
fn what_cannot_be_started_there_is_started_again_here() {
    let Some(bed) = bed() else { return };
    let data = redis_with_data(&bed, "crun");
    // podman there cannot make it run: its runtime has gone meanwhile
    bed.write(DST, "/srv/bin/podman", "#!/bin/sh\ncase \" $* \" in *\" container inspect \"*) test ! -e /srv/broken || exit 1;; esac\nexec /usr/bin/podman \"$@\"\n");
    let remote = ["--remote-command", "env GODWIT_PODMAN=/srv/bin/podman godwit receive --stdio"];
    bed.sh(DST, "touch /srv/broken");
    let said = migrate(&bed, SRC, "podman:web", &remote);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    let error = said.lines("exit_error").remove(0);
    assert_eq!(error["disposition"], "running_at_source", "{error}");
    assert!(error.to_string().contains("it was started again here after"), "{error}");
    assert_eq!((digest(&bed), status(&bed, SRC)), (data, "running always".into()));
    assert_eq!(bed.sh(DST, "/usr/bin/podman ps -aq; /usr/bin/podman volume ls -q"), "");
}

/// Somebody who ends it would end it for good.
#[test]
fn what_podman_removes_when_it_ends_is_refused_and_not_stopped() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, "testbed-container image; podman run -d --rm --name web --network none localhost/redis:test tail -f /dev/null");
    let pid = bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web");
    let said = migrate(&bed, SRC, "podman:web", &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("podman removes it when it ends (`--rm`)"), "{}", said.out);
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web"), pid);
}

/// Killed in each phase from the stop on, then `godwit resume`: one side runs it, and the other has nothing of it.
#[test]
fn after_a_kill_resume_leaves_one_that_runs() {
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
        let data = redis_with_data(&bed, "crun");
        let mut running =
            Background::migrate(&bed, &[], &["podman:web", "ssh://dst", "--strategy", "restart"]);
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
        let mut found = [status(&bed, SRC), status(&bed, DST)];
        found.sort();
        assert_eq!(found, ["none", "running always"], "{context}");
    }
}
