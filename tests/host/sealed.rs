//! Encrypted checkpoints: nobody but the holder of the key has any of it, and what is not whole is not restored.

use crate::bed::{Bed, DST, SRC, Said, bed};
use crate::connection::Held;
use crate::container::{Redis, assert_runs_only_on, runc_state};
use crate::engines::podman_redis;
use crate::engines_docker::{self, docker_redis};
use crate::godwit::{Background, godwit, godwit_with};
use crate::state::State;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// A key that nobody uses for anything else, and its secret half; and another one's secret half.
pub const RECIPIENT: &str = "age1x4n0ywup96n3vvuud2szmt262v5k0d7k5v9v4kpqw369e8y8lpmqelvxnm";
pub const IDENTITY: &str = "AGE-SECRET-KEY-1S0J6KYCLKX4ELQYLN0RGHJ04XESAZDM4PUX7RLX2DHRZ9FUE9VWQ7UK2WR";
const OTHER: &str = "AGE-SECRET-KEY-1JSSP6CLPSRUG6MC54PAEXR8KVFTY90QAKRJSMJH20R0A366UT6FSM5K4PG";

/// What redis has in memory only.
const SECRET: &str = "correct-horse-battery-staple";

/// What is done when all of the checkpoint lies there: says on which disk of godwit's it is, and that it is in memory.
const LOOK: &str = "find /var/lib/godwit /srv/sealed -xdev -type f -exec grep -l battery-staple {} + > /srv/bin/on-disk; \
     find -L /var/lib/godwit -type f -exec grep -l battery-staple {} + > /srv/bin/in-memory";

/// A program of the host that does something else before, or otherwise, when it gets a certain argument.
fn stand_in(bed: &Bed, host: &str, name: &str, argument: &str, script: &str) {
    let path = bed.sh(host, &format!("command -v {name}"));
    let text =
        format!("#!/bin/sh\ncase \" $* \" in *\" {argument} \"*) {script};; esac\nexec {path} \"$@\"\n");
    bed.write(host, &format!("/srv/bin/{name}"), &text);
}

const STAND_INS: &str = "PATH=/srv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Asserts that `LOOK` found the secret where it may be and nowhere else.
#[track_caller]
fn assert_in_memory_only(bed: &Bed, host: &str) {
    let seen = bed.sh(host, "cat /srv/bin/in-memory");
    assert!(seen.contains("/var/lib/godwit/"), "nothing was looked at: {seen}");
    assert_eq!(bed.sh(host, "cat /srv/bin/on-disk"), "");
}

/// A file with all that a file can have besides bytes.
const ODD: &str = "cd /srv/vault-data && echo odd > odd && chown 5:7 odd && chmod 6751 odd && setfacl -m u:1000:r odd && \
     setfattr -n user.note -v here odd && setfattr -n trusted.note -v there odd && \
     setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= odd";
const SHOW_ODD: &str =
    "cd /srv/vault-data && stat -c '%a %u %g %Y' odd && getfattr -dm- odd | sort && getfacl -n odd";

#[track_caller]
fn assert_nothing_staged(bed: &Bed, host: &str) {
    let left = "test ! -e /var/lib/godwit/staging && ! grep /var/lib/godwit/ /proc/self/mountinfo";
    assert!(bed.holds(host, left), "{}", bed.sh(host, "ls -R /var/lib/godwit; cat /proc/self/mountinfo"));
    assert!(!bed.holds(host, &format!("grep -rq {SECRET} /var/lib/godwit")));
}

fn checkpoint(bed: &Bed, more: &[&str]) -> Said {
    let to = ["checkpoint", "runc:vault", "--to", "/srv/sealed/vault.age", "--tcp-established"];
    godwit_with(bed, SRC, &[STAND_INS], &[&["--json"], &to[..], &["--recipient", RECIPIENT], more].concat())
}

fn a_redis_with_a_secret(bed: &Bed) -> Redis {
    let redis = Redis::create(bed, "vault", 8);
    assert_eq!(redis.ask(bed, &format!("set password {SECRET}")), "OK");
    bed.sh(SRC, "mkdir -m 700 /srv/sealed");
    redis
}

#[test]
fn a_checkpoint_that_is_encrypted_is_nobody_elses_and_comes_back() {
    let Some(bed) = bed() else { return };
    let redis = a_redis_with_a_secret(&bed);
    let digest = redis.digest(&bed);
    bed.sh(SRC, ODD);
    let odd = bed.sh(SRC, SHOW_ODD);
    assert!(odd.contains("security.capability") && odd.contains("user:1000:r"), "{odd}");
    stand_in(&bed, SRC, "tar", "--format=posix", LOOK);
    let said = checkpoint(&bed, &[]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let line = said.lines("checkpoint").remove(0);
    assert_eq!((&line["path"], &line["running"]), (&"/srv/sealed/vault.age".into(), &Value::from(false)));
    assert!(runc_state(&bed, SRC, "vault").is_none());
    assert_in_memory_only(&bed, SRC);
    assert_nothing_staged(&bed, SRC);
    let file = bed.path(SRC, "/srv/sealed/vault.age");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let whole = std::fs::read(&file).unwrap();
    assert!(whole.len() > 8 << 20 && whole.starts_with(b"age-encryption.org/v1\n"));
    assert!(!whole.windows(SECRET.len()).any(|some| some == SECRET.as_bytes()));
    assert_eq!(bed.sh(SRC, "ls /srv/sealed"), "vault.age");

    // another host, which has nothing of it yet
    bed.sh(DST, "mkdir -m 700 /srv/sealed /srv/bin");
    let restore = |name: &str, more: &[&str]| {
        let environment = [STAND_INS, "GODWIT_RUNC=/srv/bin/runc"];
        let path = format!("/srv/sealed/{name}");
        godwit_with(&bed, DST, &environment, &[&["--json", "restore", &path], more].concat())
    };
    let put = |name: &str, bytes: &[u8]| {
        let path = format!("/srv/sealed/{name}");
        bed.write(DST, &path, "");
        std::fs::write(bed.path(DST, &path), bytes).unwrap();
        bed.sh(DST, &format!("chmod 600 {path}"));
    };
    put("vault.age", &whole);
    put("key", IDENTITY.as_bytes());
    put("other-key", OTHER.as_bytes());
    put("cut", &whole[..whole.len() - 1]);
    // as if the last piece had never been written
    let header = whole.windows(4).position(|some| some == b"\n---").unwrap() + 1 + 3 + 1 + 43 + 1 + 16;
    let pieces = (whole.len() - header - 1) / ((64 << 10) + 16);
    put("cut-at-a-border", &whole[..header + pieces * ((64 << 10) + 16)]);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    put("flipped", &flipped);
    stand_in(&bed, DST, "runc", "restore", LOOK);
    let before = State::of(&bed, DST);
    let key = ["--identity", "/srv/sealed/key"];
    let cases: [(&str, &[&str], i32, &str); 5] = [
        ("vault.age", &[], 2, "is encrypted"),
        ("vault.age", &["--identity", "/srv/sealed/other-key"], 2, "sealed for others"),
        ("cut", &key, 10, "damaged or cut off"),
        ("cut-at-a-border", &key, 10, "damaged or cut off"),
        ("flipped", &key, 10, "damaged or cut off"),
    ];
    for (name, more, code, why) in cases {
        let said = restore(name, more);
        assert_eq!(said.code, code, "{name} {more:?}: {}{}", said.out, said.err);
        assert!(said.out.contains(why), "{name} {more:?}: {}", said.out);
        assert!(!(said.out + &said.err).contains(&IDENTITY[..24]), "a key was said");
        before.assert_unchanged(&bed, DST);
        assert!(!bed.holds(DST, "test -e /var/lib/godwit/migrations"), "it was begun");
    }

    let both = ["--identity", "/srv/sealed/other-key", "--identity", "/srv/sealed/key"];
    let said = restore("vault.age", &both);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_in_memory_only(&bed, DST);
    assert_nothing_staged(&bed, DST);
    assert_runs_only_on(&bed, DST, "vault");
    assert_eq!((redis.digest(&bed), redis.ask(&bed, "get password")), (digest, SECRET.to_owned()));
    assert_eq!(bed.sh(DST, SHOW_ODD), odd);
    assert!(!bed.holds(DST, "ls -d /var/lib/godwit/migrations/*/images"));
}

#[test]
fn an_encrypted_checkpoint_carries_its_image() {
    let Some(bed) = bed() else { return };
    let redis = podman_redis(&bed, "crun");
    let data = redis.digest(&bed);
    bed.sh(SRC, "mkdir -m 700 /srv/sealed");
    let words = ["--json", "checkpoint", "podman:web", "--to", "/srv/sealed/web.age", "--tcp-established"];
    let said =
        godwit_with(&bed, SRC, &[], &[&words[..], &["--with-image", "--recipient", RECIPIENT]].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_nothing_staged(&bed, SRC);
    let image = "podman image inspect -f '{{.Id}}' localhost/redis:test";
    let id = bed.sh(SRC, image);
    bed.sh(DST, "mkdir -m 700 /srv/sealed");
    std::fs::copy(bed.path(SRC, "/srv/sealed/web.age"), bed.path(DST, "/srv/sealed/web.age")).unwrap();
    bed.write(DST, "/srv/sealed/key", IDENTITY);
    bed.sh(DST, "chmod 600 /srv/sealed/key");
    // podman keeps what it makes for its first container of all
    bed.sh(DST, "podman run --rm --network none localhost/redis:test true; podman rmi -a -f");
    let words = ["--json", "restore", "/srv/sealed/web.age", "--identity", "/srv/sealed/key"];
    let said = godwit_with(&bed, DST, &[], &words);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_nothing_staged(&bed, DST);
    assert_eq!((redis.digest(&bed), bed.sh(DST, image)), (data, id));
    bed.sh(DST, "podman rm -a -f -t 0 -v; podman rmi -a -f; testbed-container image");
}

#[test]
fn an_encrypted_checkpoint_of_dockers_carries_its_image_and_its_connections() {
    let Some(bed) = bed() else { return };
    let redis = docker_redis(&bed);
    assert_eq!(redis.ask(&bed, &format!("set password {SECRET}")), "OK");
    let held = Held::begin(&bed, &redis);
    let (data, layer) = (redis.digest(&bed), bed.sh(SRC, "docker diff web | sort"));
    let image = "docker image inspect -f '{{.Id}}' localhost/redis:test";
    let id = bed.sh(SRC, image);
    bed.sh(SRC, "mkdir -m 700 /srv/sealed");
    let words = ["--json", "checkpoint", "docker:web", "--to", "/srv/sealed/web.age", "--tcp-established"];
    let said =
        godwit_with(&bed, SRC, &[], &[&words[..], &["--with-image", "--recipient", RECIPIENT]].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(said.lines("checkpoint")[0]["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert_nothing_staged(&bed, SRC);
    engines_docker::assert_nothing_left(&bed, SRC);
    assert!(!bed.holds(SRC, "grep -qa battery-staple /srv/sealed/web.age"));
    bed.sh(DST, "mkdir -m 700 /srv/sealed; docker rmi -f localhost/redis:test");
    std::fs::copy(bed.path(SRC, "/srv/sealed/web.age"), bed.path(DST, "/srv/sealed/web.age")).unwrap();
    for (name, identity) in [("key", IDENTITY), ("other-key", OTHER)] {
        bed.write(DST, &format!("/srv/sealed/{name}"), identity);
        bed.sh(DST, &format!("chmod 600 /srv/sealed/{name}"));
    }
    let restore = |key: &str| {
        godwit_with(&bed, DST, &[], &["--json", "restore", "/srv/sealed/web.age", "--identity", key])
    };
    let said = restore("/srv/sealed/other-key");
    assert_eq!(said.code, 2, "{}{}", said.out, said.err);
    assert_eq!(bed.sh(DST, "docker ps -aq; docker volume ls -q; docker image ls -q"), "");
    let said = restore("/srv/sealed/key");
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_nothing_staged(&bed, DST);
    assert_eq!((redis.digest(&bed), bed.sh(DST, image)), (data, id));
    assert_eq!(bed.sh(DST, "docker diff web | sort"), layer);
    assert_eq!(bed.sh(DST, "docker exec web cat /new /anonymous/file /ro/file"), "new\nkept\nfixed");
    held.assert_goes_on();
    bed.sh(DST, "docker rm -f -v web; docker rmi -f localhost/redis:test");
}

/// Waits until half of the checkpoint has been sealed.
fn wait_for_sealing(bed: &Bed) {
    let begun = Instant::now();
    while !bed.holds(SRC, "test -e /srv/sealing") {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was sealed");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_checkpoint_that_is_broken_off_while_it_is_encrypted_leaves_nothing_for_long() {
    let Some(bed) = bed() else { return };
    let redis = a_redis_with_a_secret(&bed);
    let slowly = "/usr/bin/tar \"$@\" | (head -c 4000000; touch /srv/sealing; sleep 3; cat); exit";
    stand_in(&bed, SRC, "tar", "--format=posix", slowly);
    let before = State::of(&bed, SRC);
    let begin = |more: &[&str]| {
        let _ = std::fs::remove_file(bed.path(SRC, "/srv/sealing"));
        let words = [
            &["env", STAND_INS, "godwit", "--json", "checkpoint", "runc:vault", "--tcp-established"],
            &["--to", "/srv/sealed/vault.age", "--recipient", RECIPIENT][..],
            more,
        ];
        let running = Background::start(&bed, SRC, &words.concat());
        wait_for_sealing(&bed);
        assert!(bed.holds(SRC, "grep -q /var/lib/godwit/staging/ /proc/self/mountinfo"));
        running
    };
    // asked to end, with the container standing still, and with it running
    for more in [&[][..], &["--leave-running"]] {
        let running = begin(more);
        running.signal("INT");
        let said = running.finish();
        assert_eq!(said.code, 130, "{}{}", said.out, said.err);
        assert_eq!(said.lines("exit_error")[0]["disposition"], "running_at_source", "{}", said.out);
        redis.assert_untouched(&bed);
        assert_nothing_staged(&bed, SRC);
        bed.sh(SRC, "rm /srv/sealing");
        before.assert_unchanged(&bed, SRC);
    }
    // killed: the next one clears, whatever it does
    for next in [
        &["resume"][..],
        &["restore", "/srv/nothing"],
        &["checkpoint", "runc:vault", "--to", "/srv/nowhere/x"],
    ] {
        let running = begin(&["--leave-running"]);
        running.signal("KILL");
        assert_ne!(running.finish().code, 0);
        redis.assert_untouched(&bed);
        assert!(
            bed.holds(SRC, &format!("grep -rq {SECRET} /var/lib/godwit/staging")),
            "nothing is left over"
        );
        let said = godwit(&bed, next);
        assert_eq!(said.code == 0, next == ["resume"], "{}{}", said.out, said.err);
        assert_nothing_staged(&bed, SRC);
        redis.assert_untouched(&bed);
    }
    // the file that the dead one began is no obstacle
    assert_eq!(bed.sh(SRC, "ls /srv/sealed"), "vault.age.part");
    bed.sh(SRC, "rm /srv/bin/tar");
    let said = checkpoint(&bed, &["--leave-running"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(bed.sh(SRC, "ls /srv/sealed"), "vault.age");
    redis.assert_untouched(&bed);
}

#[test]
fn what_cannot_be_encrypted_is_refused_before_anything_is_touched() {
    let Some(bed) = bed() else { return };
    let redis = a_redis_with_a_secret(&bed);
    stand_in(&bed, SRC, "tar", "--version", "exit 1");
    bed.sh(SRC, "sed 's/^MemAvailable:.*/MemAvailable: 150000 kB/' /proc/meminfo > /srv/meminfo");
    let refuse = |more: &[&str], code: i32, why: &str| {
        let before = State::of(&bed, SRC);
        let said = checkpoint(&bed, more);
        assert_eq!(said.code, code, "{}{}", said.out, said.err);
        let error = said.lines("exit_error").remove(0);
        assert_eq!(error["disposition"], "untouched", "{error}");
        assert!(error.to_string().contains(why), "{error}");
        redis.assert_untouched(&bed);
        before.assert_unchanged(&bed, SRC);
        assert_nothing_staged(&bed, SRC);
    };
    refuse(&["--recipient", "age1nobody"], 2, "`age1nobody` is no recipient");
    refuse(&["--recipient", "@/srv/missing"], 2, "cannot read `/srv/missing`");
    refuse(&[], 13, "is not GNU tar");
    bed.sh(SRC, "rm /srv/bin/tar; mount --bind /srv/meminfo /proc/meminfo");
    // the image of redis alone has 50 MiB
    refuse(&[], 13, "an encrypted checkpoint does not fit in memory");
    bed.sh(SRC, "umount /proc/meminfo; : > /srv/sealed/vault.age");
    refuse(&[], 2, "exists already");
}
