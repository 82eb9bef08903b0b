//! Checkpoints of what engines keep more of than files and processes: written, copied to another host, looked through and restored
//! there, more than once.

use crate::bed::{Bed, DST, SRC, Said, bed};
use crate::connection::Held;
use crate::container::Redis;
use crate::engines::{assert_nothing_left, diff, difference, inspected, podman_redis};
use crate::engines_docker::docker_redis;
use crate::godwit::godwit_with;
use crate::pods::{self, POD};
use crate::state::State;
use serde_json::Value;
use std::process::Command;

const IP: &str = "10.77.0.100";

fn checkpoint(bed: &Bed, container: &str, more: &[&str]) -> Value {
    let words = ["--json", "checkpoint", container, "--to", "/srv/cp", "--tcp-established"];
    let said = godwit_with(bed, SRC, &[], &[&words[..], more].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let line = said.lines("checkpoint").remove(0);
    assert_eq!(line["leftovers"], Value::Array(vec![]), "{line}");
    line
}

/// Brings checkpoints to the other host as a user would: owners, modes and attributes stay, times do not quite.
pub fn copy(bed: &Bed) {
    let (from, to) = (bed.path(SRC, "/srv"), bed.path(DST, "/srv"));
    let script = "tar --create --xattrs --xattrs-include='*' --file=- --directory \"$0\" cp | \
        tar --extract --xattrs --xattrs-include='*' --same-owner --same-permissions --file=- --directory \"$1\"";
    let status = Command::new("sh").args(["-c", script]).arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn restore(bed: &Bed) -> Said {
    godwit_with(bed, DST, &[], &["--json", "restore", "/srv/cp"])
}

#[track_caller]
fn assert_restored(said: &Said) {
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(said.lines("restored")[0]["leftovers"], Value::Array(vec![]), "{}", said.out);
}

fn verify(bed: &Bed, host: &str, path: &str) -> Said {
    godwit_with(bed, host, &[], &["--json", "images", "verify", path])
}

fn is_restored_twice(runtime: &str) {
    let Some(bed) = bed() else { return };
    let redis = podman_redis(&bed, runtime);
    let (before, layer, data) = (inspected(&bed, SRC), diff(&bed, SRC), redis.digest(&bed));
    let line = checkpoint(&bed, "podman:web", &[]);
    assert!(line["memory_bytes"].as_u64() > Some(16 << 20), "{line}");
    assert_nothing_left(&bed, SRC, "podman");
    copy(&bed);
    assert_eq!(verify(&bed, DST, "/srv/cp").code, 0);
    for _ in 0..2 {
        assert_restored(&restore(&bed));
        assert_eq!(redis.digest(&bed), data);
        assert_eq!(difference("", &before, &inspected(&bed, DST)), [""; 0]);
        assert_eq!(diff(&bed, DST), layer);
        assert_eq!(bed.sh(DST, "podman exec web cat /new /anonymous/file /ro/file"), "new\nkept\nfixed");
        assert_eq!(bed.sh(DST, "podman volume inspect -f '{{.Labels}}' data"), "map[team:blue]");
        // what was restored lives, and a checkpoint is no worse for it
        assert_eq!(redis.ask(&bed, "set later 1"), "OK");
        let again = restore(&bed);
        assert_eq!(again.code, 12, "{}{}", again.out, again.err);
        assert!(again.out.contains("has a container `web` there already"), "{}", again.out);
        assert_eq!(redis.ask(&bed, "get later"), "1");
        bed.sh(DST, "podman stop -t 2 web; podman start web; podman rm -f -t 0 -v web; podman volume rm data; rm -r /srv/ro");
        assert_nothing_left(&bed, DST, "podman");
        assert_eq!(bed.sh(DST, "podman volume ls -q"), "");
        assert_eq!(verify(&bed, DST, "/srv/cp").code, 0);
    }
}

#[test]
fn a_container_of_podman_with_crun_is_restored_twice_on_another_host() {
    is_restored_twice("crun");
}

#[test]
fn a_container_of_podman_with_runc_is_restored_twice_on_another_host() {
    is_restored_twice("runc");
}

#[test]
fn a_container_of_crun_is_restored_on_another_host() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, &format!("testbed-container create web {IP} --ram 16 --engine crun"));
    let redis = Redis { name: "web".into(), ip: IP.into(), pid: 0 };
    let data = redis.digest(&bed);
    checkpoint(&bed, "crun:web", &[]);
    assert_nothing_left(&bed, SRC, "crun");
    copy(&bed);
    assert_restored(&restore(&bed));
    assert_eq!((bed.sh(DST, "crun list -q"), redis.digest(&bed)), ("web".into(), data));
}

#[test]
fn a_container_of_docker_is_restored_twice_on_another_host() {
    let Some(bed) = bed() else { return };
    let redis = docker_redis(&bed);
    let data = redis.digest(&bed);
    let labels = "docker inspect -f '{{json .Config}} {{json .HostConfig.RestartPolicy}}' web";
    let changed = "docker diff web | sort";
    let told = |host: &str| (bed.sh(host, labels), bed.sh(host, changed));
    let before = told(SRC);
    checkpoint(&bed, "docker:web", &["--with-image"]);
    assert_eq!(bed.sh(SRC, "docker ps -aq; pgrep -x redis-server; true"), "");
    copy(&bed);
    for image in ["there", "missing"] {
        assert_restored(&restore(&bed));
        assert_eq!((redis.digest(&bed), told(DST)), (data.clone(), before.clone()), "{image}");
        assert_eq!(bed.sh(DST, "docker exec web cat /new /anonymous/file /ro/file"), "new\nkept\nfixed");
        assert_eq!(bed.sh(DST, "docker volume inspect -f '{{.Labels}}' data"), "map[team:blue]");
        assert_eq!(redis.ask(&bed, "set later 1"), "OK");
        bed.sh(DST, "docker stop -t 2 web; docker start web; docker rm -f -v web; docker volume rm data; rm -r /srv/ro");
        bed.sh(DST, "docker rmi -f localhost/redis:test");
    }
    assert_eq!(bed.sh(DST, "docker ps -aq; docker volume ls -q"), "");
}

/// With what the pod has, under other ids of the pod and of its infra container; its client notices a pause.
#[test]
fn a_pod_of_one_container_is_restored_on_another_host() {
    let Some(bed) = bed() else { return };
    let redis = pods::make_pod(&bed, "crun");
    let (pod, member) = (pods::pod_shown(&bed, SRC), pods::member_shown(&bed, SRC));
    let layer = diff(&bed, SRC);
    let held = Held::begin(&bed, &redis);
    let data = redis.digest(&bed);
    checkpoint(&bed, POD, &["--with-image"]);
    pods::assert_no_half(&bed, SRC);
    copy(&bed);
    assert_eq!(verify(&bed, DST, "/srv/cp").code, 0);
    assert_restored(&restore(&bed));
    assert_eq!((redis.digest(&bed), diff(&bed, DST)), (data.clone(), layer.clone()));
    held.assert_goes_on();
    assert_eq!(difference("", &pod, &pods::pod_shown(&bed, DST)), [""; 0]);
    assert_eq!(difference("", &member, &pods::member_shown(&bed, DST)), [""; 0]);
    pods::assert_namespaces_are_shared(&bed, DST);
    let seen = "podman exec web sh -c 'cat /new /dev/shm/file; hostname; grep -c friend /etc/hosts'";
    assert_eq!(bed.sh(DST, seen), "new\nshared\nshop\n1");
    let again = restore(&bed);
    assert_eq!(again.code, 12, "{}{}", again.out, again.err);
    assert!(again.out.contains("has a pod `shop` there already"), "{}", again.out);
    assert_eq!(redis.ask(&bed, "ping"), "PONG");
    // it is podman's, and the checkpoint is no worse for it
    bed.sh(
        DST,
        "podman pod stop -t 1 shop; podman pod start shop; podman pod rm -f -t 0 shop; podman volume rm data",
    );
    pods::assert_no_half(&bed, DST);
    assert_restored(&restore(&bed));
    assert_eq!((redis.digest(&bed), diff(&bed, DST)), (data, layer));
}

#[test]
fn a_pod_that_cannot_be_written_or_stopped_whole_is_refused_and_nothing_is_touched() {
    let Some(bed) = bed() else { return };
    let redis = pods::make_pod(&bed, "crun");
    let restart = ["--json", "migrate", POD, "ssh://dst", "--strategy", "restart"];
    let write = ["--json", "checkpoint", POD, "--to", "/srv/cp", "--tcp-established"];
    let refuse = |words: &[&str], why: &str| {
        let states = [SRC, DST].map(|host| (host, State::of(&bed, host)));
        let said = godwit_with(&bed, SRC, &[], words);
        assert_eq!(said.code, 13, "{words:?}: {}{}", said.out, said.err);
        let error = said.lines("exit_error").remove(0);
        assert_eq!(error["disposition"], "untouched", "{words:?}: {error}");
        assert!(error.to_string().contains(why), "{words:?}: {error}");
        states.into_iter().for_each(|(host, state)| state.assert_unchanged(&bed, host));
        assert_eq!(redis.ask(&bed, "ping"), "PONG");
    };
    refuse(&restart, "only single containers can be stopped here and started there yet");
    pods::add_replica(&bed, "crun");
    let several = "it is a pod of more than one container: only `godwit migrate` takes them all";
    refuse(&write, several);
    refuse(&[&write[..], &["--leave-running", "--with-image"]].concat(), several);
    refuse(&restart, "only single containers can be stopped here and started there yet");
    // and none of its containers by itself
    let one = ["--json", "checkpoint", "podman:zweit", "--to", "/srv/cp", "--tcp-established"];
    refuse(&one, "move the pod, with all that is in it");
}

#[test]
fn an_image_that_is_missing_is_named_or_comes_out_of_the_checkpoint() {
    let Some(bed) = bed() else { return };
    let redis = podman_redis(&bed, "crun");
    let data = redis.digest(&bed);
    let image = "podman image inspect -f '{{.Id}}' localhost/redis:test";
    let id = bed.sh(SRC, image);
    let pid = bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web");
    checkpoint(&bed, "podman:web", &["--leave-running"]);
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web"), pid);
    assert_eq!(redis.ask(&bed, "ping"), "PONG");
    copy(&bed);
    // podman keeps what it makes for its first container of all
    bed.sh(DST, "podman run --rm --network none localhost/redis:test true; podman rmi -a -f");
    let before = State::of(&bed, DST);
    let said = restore(&bed);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    let error = said.lines("exit_error").remove(0);
    assert!(error.to_string().contains("the image `localhost/redis:test` is not there"), "{error}");
    assert!(error["hints"].to_string().contains("podman pull localhost/redis:test"), "{error}");
    before.assert_unchanged(&bed, DST);
    assert_eq!(bed.sh(DST, "podman ps -aq; podman volume ls -q; podman images -q"), "");

    bed.sh(SRC, "rm -r /srv/cp");
    bed.sh(DST, "rm -r /srv/cp");
    checkpoint(&bed, "podman:web", &["--with-image"]);
    copy(&bed);
    assert_restored(&restore(&bed));
    assert_eq!((redis.digest(&bed), bed.sh(DST, image)), (data, id));
    assert_eq!(bed.sh(DST, "podman exec web cat /new"), "new");
    assert_eq!(verify(&bed, DST, "/srv/cp").code, 0);
    // the archive of the hosts, as on the source: the same image in another archive has another digest
    bed.sh(DST, "podman rm -a -f -t 0 -v; podman rmi -a -f; testbed-container image");
}

#[test]
fn a_damaged_checkpoint_is_recognised_and_not_restored() {
    let Some(bed) = bed() else { return };
    podman_redis(&bed, "crun");
    checkpoint(&bed, "podman:web", &[]);
    let whole = verify(&bed, SRC, "/srv/cp");
    assert_eq!(whole.code, 0, "{}{}", whole.out, whole.err);
    assert!(whole.lines("verified")[0]["digests"].as_u64() > Some(20), "{}", whole.out);
    copy(&bed);
    bed.sh(DST, "cp -a /srv/cp /srv/whole");
    let turn = |file: &str, at: u32| {
        format!("printf X | dd of={file} bs=1 seek={at} count=1 conv=notrunc status=none")
    };
    for (damage, named) in [
        (turn("/srv/cp/images/pages-1.img", 1_000_000), "`images/pages-1.img` has other content"),
        (turn("/srv/cp/images/core-1.img", 60), "`images/core-1.img` has other content"),
        (turn("/srv/cp/checkpoint.json", 40), "`checkpoint.json` has other content"),
        ("truncate -s -1 /srv/cp/images/pages-1.img".into(), "`images/pages-1.img` has "),
        ("rm /srv/cp/images/pstree.img".into(), "`images/pstree.img` is missing"),
        ("rm /srv/cp/trees/0.gone".into(), "`trees/0.gone` is missing"),
        ("echo x >> /srv/cp/trees/0/new".into(), "the tree `trees/0` has other files"),
        ("chmod 600 /srv/cp/trees/0/etc/passwd".into(), "the tree `trees/0` has other files"),
        ("rm -r /srv/cp/trees/3".into(), "the tree `trees/3` is missing"),
        ("rm /srv/cp/digests.json".into(), "`digests.json` is missing"),
        ("echo '{' > /srv/cp/digests.json".into(), "digests.json` is no list of digests"),
    ] {
        bed.sh(DST, &format!("rm -rf /srv/cp; cp -a /srv/whole /srv/cp; {damage}"));
        let before = State::of(&bed, DST);
        for said in [verify(&bed, DST, "/srv/cp"), restore(&bed)] {
            assert_eq!(said.code, 10, "{damage}: {}{}", said.out, said.err);
            let error = said.lines("exit_error").remove(0);
            assert!(error.to_string().contains(named), "{damage}: {error}");
        }
        before.assert_unchanged(&bed, DST);
        assert!(!bed.holds(DST, "ls /var/lib/godwit/migrations/*"), "{damage}: it was begun");
    }
    bed.sh(DST, "rm -rf /srv/cp; mv /srv/whole /srv/cp");
    assert_restored(&restore(&bed));
}
