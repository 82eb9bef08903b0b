//! Checkpoints that share content with an earlier one: small, restored from anywhere in the chain, and useless without it.

use crate::bed::{Bed, DST, SRC, Said, bed};
use crate::cold::copy;
use crate::connection::Held;
use crate::container::{Redis, assert_runs_only_on};
use crate::engines::podman_redis;
use crate::engines_docker::{self, docker_redis};
use crate::godwit::godwit_with;
use crate::state::State;
use serde_json::Value;

fn checkpoint(bed: &Bed, container: &str, to: &str, more: &[&str]) -> Said {
    let words = ["--json", "checkpoint", container, "--to", to, "--tcp-established"];
    godwit_with(bed, SRC, &[], &[&words[..], more].concat())
}

#[track_caller]
fn written(said: &Said) -> Value {
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    said.lines("checkpoint").remove(0)
}

fn restore(bed: &Bed, path: &str) -> Said {
    godwit_with(bed, DST, &[], &["--json", "restore", path])
}

fn images(bed: &Bed, host: &str, words: &[&str]) -> Said {
    godwit_with(bed, host, &[], &[&["--json", "images"], words].concat())
}

/// KiB that a directory takes on the disk.
fn kib(bed: &Bed, path: &str) -> u64 {
    bed.sh(SRC, &format!("du -sk {path} | cut -f 1")).parse().unwrap()
}

#[test]
fn a_small_change_costs_a_small_checkpoint_and_each_of_the_chain_is_restored() {
    let Some(bed) = bed() else { return };
    let redis = Redis::create(&bed, "web", 32);
    bed.sh(
        SRC,
        "mkdir -m 700 /srv/cp; cd /srv/web-data && head -c 20M /dev/urandom > big && echo odd > odd && chown 5:7 odd && \
         chmod 6751 odd && ln odd second && truncate -s 50M holes && setfattr -n user.note -v here odd && \
         setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= odd",
    );
    let odd = "cd /srv/web-data && stat -c '%a %u %g %h %Y' odd && getfattr -dm- odd | sort && du -k holes && sha256sum big";
    let state = (redis.digest(&bed), bed.sh(SRC, odd));
    written(&checkpoint(&bed, "runc:web", "/srv/cp/whole", &["--leave-running"]));
    // in memory, in a file, and a file of another name with the same content
    redis.ask(&bed, "set a 1");
    bed.sh(SRC, "cd /srv/web-data && mv big moved && printf X | dd of=moved bs=1 seek=9000000 conv=notrunc status=none");
    let digests = [state.0.clone(), redis.digest(&bed)];
    let line = written(&checkpoint(
        &bed,
        "runc:web",
        "/srv/cp/first",
        &["--leave-running", "--parent", "/srv/cp/whole"],
    ));
    assert!(line["shared_bytes"].as_u64() > Some(100 << 20), "{line}");
    redis.ask(&bed, "set b 2");
    let moved = bed.sh(SRC, "sha256sum /srv/web-data/moved");
    let last = redis.digest(&bed);
    written(&checkpoint(&bed, "runc:web", "/srv/cp/second", &["--parent", "/srv/cp/first"]));
    let sizes = ["whole", "first", "second"].map(|name| kib(&bed, &format!("/srv/cp/{name}")));
    eprintln!("KiB on the disk: {sizes:?}");
    assert!(sizes[0] > 90 << 10 && sizes[1] < 6 << 10 && sizes[2] < 6 << 10, "{sizes:?}");
    let document = images(&bed, SRC, &["inspect", "/srv/cp/second"]).lines("image").remove(0);
    assert_eq!(document["faults"], Value::Array(vec![]), "{document}");
    assert_eq!(document["parents"].as_array().unwrap().len(), 2, "{document}");
    assert!(document["processes"][0]["memory_bytes"].as_u64() > Some(32 << 20), "{document}");

    copy(&bed);
    for (name, digest) in
        [("second", &last), ("first", &digests[1]), ("whole", &digests[0]), ("second", &last)]
    {
        let path = format!("/srv/cp/{name}");
        let said = images(&bed, DST, &["verify", &path]);
        assert_eq!(said.code, 0, "{name}: {}{}", said.out, said.err);
        let said = restore(&bed, &path);
        assert_eq!(said.code, 0, "{name}: {}{}", said.out, said.err);
        assert_eq!(said.lines("restored")[0]["leftovers"], Value::Array(vec![]), "{}", said.out);
        assert_runs_only_on(&bed, DST, "web");
        assert_eq!(redis.digest(&bed), *digest, "{name}");
        if name == "whole" {
            assert_eq!(bed.sh(DST, odd), state.1);
        } else {
            assert_eq!(bed.sh(DST, "sha256sum /srv/web-data/moved"), moved, "{name}");
            let same =
                "cd /srv/web-data && stat -c '%a %u %g %h %Y' odd && getfattr -dm- odd | sort && du -k holes";
            let expected: Vec<&str> = state.1.lines().collect();
            assert_eq!(
                bed.sh(DST, same).lines().collect::<Vec<_>>(),
                expected[..expected.len() - 1],
                "{name}"
            );
        }
        bed.sh(DST, "runc delete -f web; testbed-container remove web; rm -rf /srv/web /srv/web-data");
        assert!(!bed.holds(DST, "test -e /var/lib/godwit/restoring"), "what was made whole is left over");
    }
}

#[test]
fn a_parent_that_is_missing_or_altered_is_refused() {
    let Some(bed) = bed() else { return };
    let redis = Redis::create(&bed, "web", 8);
    let other = Redis::create_on(&bed, SRC, "other", "10.77.0.101", 1);
    bed.sh(SRC, "mkdir -m 700 /srv/cp");
    written(&checkpoint(&bed, "runc:web", "/srv/cp/whole", &["--leave-running"]));
    written(&checkpoint(&bed, "runc:web", "/srv/cp/part", &["--leave-running", "--parent", "/srv/cp/whole"]));
    let recipient = "age1x4n0ywup96n3vvuud2szmt262v5k0d7k5v9v4kpqw369e8y8lpmqelvxnm";
    let before = State::of(&bed, SRC);
    let parent = ["--parent", "/srv/cp/whole"];
    for (container, to, more, code, why) in [
        (
            "runc:web",
            "/srv/cp/x",
            &["--recipient", recipient][..],
            2,
            "an encrypted checkpoint shares nothing",
        ),
        ("runc:other", "/srv/cp/x", &[], 2, "is a checkpoint of `runc:web`"),
        ("runc:web", "/srv/cp/whole/x", &[], 2, "would lie in its parent"),
        ("runc:web", "/srv/cp/x", &["--parent", "/srv/cp"], 2, "cannot be used multiple times"),
    ] {
        let said = checkpoint(&bed, container, to, &[&parent, more].concat());
        assert_eq!(said.code, code, "{to} {more:?}: {}{}", said.out, said.err);
        assert!((said.out + &said.err).contains(why), "{why}");
    }
    let said = checkpoint(&bed, "runc:web", "/srv/cp/x", &["--parent", "/srv/cp/nothing"]);
    assert_eq!(said.code, 10, "{}{}", said.out, said.err);
    before.assert_unchanged(&bed, SRC);
    bed.sh(SRC, "cp -a /srv/cp /srv/kept");
    for (harm, why) in [
        ("rm -r whole", "it is neither `"),
        (
            "printf X | dd of=whole/images/pages-1.img bs=1 seek=100000 conv=notrunc status=none",
            "has other content",
        ),
        ("truncate -s 0 whole/images/pages-1.img", "has 0 bytes"),
        ("echo ' ' >> whole/digests.json", "is not any more what it was"),
        ("rm part/blocks", "`blocks` is missing"),
        (
            "printf X | dd of=part/shared.zst bs=1 seek=90 conv=notrunc status=none",
            "`shared.zst` has other content",
        ),
        ("rm part/shared.zst", "`shared.zst` is missing"),
    ] {
        bed.sh(SRC, &format!("rm -r /srv/cp; cp -a /srv/kept /srv/cp; cd /srv/cp; {harm}"));
        let before = State::of(&bed, SRC);
        let restored = godwit_with(&bed, SRC, &[], &["--json", "restore", "/srv/cp/part"]);
        for said in [restored, images(&bed, SRC, &["verify", "/srv/cp/part"])] {
            assert_eq!(said.code, 10, "{harm}: {}{}", said.out, said.err);
            let error = said.lines("exit_error").remove(0);
            assert!(error.to_string().contains(why), "{harm}: {error}");
            assert!(error["hints"].as_array().is_some_and(|hints| !hints.is_empty()), "{harm}: {error}");
        }
        if harm.contains("whole") {
            let said = checkpoint(&bed, "runc:web", "/srv/cp/x", &["--parent", "/srv/cp/part"]);
            assert_eq!(said.code, 10, "{harm}: {}{}", said.out, said.err);
        }
        if why == "it is neither `" || why == "is not any more what it was" {
            assert_eq!(images(&bed, SRC, &["inspect", "/srv/cp/part"]).code, 10, "{harm}");
        }
        before.assert_unchanged(&bed, SRC);
    }
    // under another name it is still the one
    bed.sh(SRC, "rm -r /srv/cp; mv /srv/kept /srv/cp; mv /srv/cp/whole /srv/cp/renamed");
    assert_eq!(images(&bed, SRC, &["verify", "/srv/cp/part"]).code, 0);
    redis.assert_untouched(&bed);
    assert_eq!(other.ask(&bed, "ping"), "PONG");
}

#[test]
fn a_container_of_podman_shares_its_layer_its_volumes_and_its_image() {
    let Some(bed) = bed() else { return };
    let redis = podman_redis(&bed, "crun");
    bed.sh(SRC, "mkdir -m 700 /srv/cp");
    let more = ["--leave-running", "--with-image"];
    written(&checkpoint(&bed, "podman:web", "/srv/cp/whole", &more));
    redis.ask(&bed, "set later 1");
    bed.sh(SRC, "podman exec web sh -c 'echo newer > /newer; rm /new'");
    let (data, layer) = (redis.digest(&bed), bed.sh(SRC, "podman diff web | sort"));
    written(&checkpoint(&bed, "podman:web", "/srv/cp/part", &["--with-image", "--parent", "/srv/cp/whole"]));
    let sizes = ["whole", "part"].map(|name| kib(&bed, &format!("/srv/cp/{name}")));
    eprintln!("KiB on the disk: {sizes:?}");
    assert!(sizes[0] > 60 << 10 && sizes[1] < 6 << 10, "{sizes:?}");
    copy(&bed);
    // podman keeps what it makes for its first container of all
    bed.sh(DST, "podman run --rm --network none localhost/redis:test true; podman rmi -a -f");
    let said = restore(&bed, "/srv/cp/part");
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!((redis.digest(&bed), bed.sh(DST, "podman diff web | sort")), (data, layer));
    assert_eq!(bed.sh(DST, "podman exec web cat /newer /anonymous/file /ro/file"), "newer\nkept\nfixed");
    bed.sh(DST, "podman rm -a -f -t 0 -v; podman rmi -a -f; testbed-container image");
}

/// Its client does not notice but a pause: what was acknowledged is in the last one of the chain, and so is the connection.
#[test]
fn a_container_of_docker_shares_its_layer_its_volumes_and_its_image() {
    let Some(bed) = bed() else { return };
    let redis = docker_redis(&bed);
    let held = Held::begin(&bed, &redis);
    bed.sh(SRC, "mkdir -m 700 /srv/cp");
    let told = |host: &str| {
        let config = "docker inspect -f '{{json .Config}} {{json .HostConfig.RestartPolicy}}' web; docker diff web | sort";
        bed.sh(host, &format!("{config}; docker exec web sh -c 'cat /new /newer /anonymous/file /data/note' 2> /dev/null; true"))
    };
    let state = |host: &str| (redis.digest(&bed), told(host));
    let first = state(SRC);
    written(&checkpoint(&bed, "docker:web", "/srv/cp/whole", &["--leave-running", "--with-image"]));
    redis.ask(&bed, "set later 1");
    let change =
        "echo newer > /newer; rm /new; echo changed > /anonymous/file; echo noted > /data/note; rm /bin/wget";
    bed.sh(SRC, &format!("docker exec web sh -c '{change}'"));
    let last = state(SRC);
    assert!(
        last.1.ends_with("newer\nchanged\nnoted") && first.1.ends_with("new\nkept"),
        "{last:?} {first:?}"
    );
    let line = written(&checkpoint(
        &bed,
        "docker:web",
        "/srv/cp/part",
        &["--with-image", "--parent", "/srv/cp/whole"],
    ));
    assert_eq!(line["leftovers"], Value::Array(vec![]), "{line}");
    engines_docker::assert_nothing_left(&bed, SRC);
    let sizes = ["whole", "part"].map(|name| kib(&bed, &format!("/srv/cp/{name}")));
    eprintln!("KiB on the disk: {sizes:?}");
    assert!(sizes[0] > 60 << 10 && sizes[1] < 6 << 10, "{sizes:?}");
    copy(&bed);
    bed.sh(DST, "docker rmi -f localhost/redis:test");
    let restored = |name: &str| {
        let said = restore(&bed, &format!("/srv/cp/{name}"));
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert_eq!(said.lines("restored")[0]["leftovers"], Value::Array(vec![]), "{}", said.out);
    };
    restored("part");
    assert_eq!(state(DST), last);
    held.assert_goes_on();
    // the first of the chain is as good as it was, and has the image, too
    bed.sh(
        DST,
        "docker rm -f -v web; docker volume rm data; docker rmi -f localhost/redis:test; rm -r /srv/ro",
    );
    engines_docker::assert_nothing_left(&bed, DST);
    restored("whole");
    assert_eq!(state(DST), first);
    bed.sh(DST, "docker rm -f -v web; docker rmi -f localhost/redis:test");
}
