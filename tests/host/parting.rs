//! What a move leaves where it was because it was asked to: the dead container, volumes, the layer. And published ports, which
//! cannot move.

use crate::bed::{Bed, DST, SRC, Said, bed};
use crate::container::{IDLE, Redis, add_bind, make_bundle, run_bundle, runc_state};
use crate::engines::{assert_nothing_left, other, podman_redis};
use crate::godwit::{Background, godwit_with};
use crate::state::State;
use serde_json::Value;

fn migrate(bed: &Bed, container: &str, more: &[&str]) -> Said {
    let words = ["--json", "migrate", container, "ssh://dst", "--tcp-established", "--max-downtime", "60s"];
    godwit_with(bed, SRC, &[], &[&words[..], more].concat())
}

/// A container of podman that has nothing open but what its image has.
fn podman_idle(bed: &Bed, options: &str) {
    for host in [SRC, DST] {
        bed.sh(host, "testbed-container image");
    }
    bed.sh(
        SRC,
        &format!(
            "podman run -d --name web {options} -v data:/data -v other:/other localhost/redis:test tail -f /dev/null
             podman exec web sh -c 'echo new > /new; rm /etc/group; echo a > /data/file; echo b > /other/file; chown 5:7 /data; chmod 2750 /data'"
        ),
    );
}

#[test]
fn a_stopped_container_is_kept_at_the_source_and_never_started() {
    let Some(bed) = bed() else { return };
    let redis = podman_redis(&bed, "crun");
    let data = redis.digest(&bed);
    let said = migrate(&bed, "podman:web", &["--keep-source"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert!(said.out.contains("stays here, stopped"), "{}", said.out);
    assert_eq!(redis.digest(&bed), data);
    let state = "podman inspect -f '{{.State.Status}} {{.HostConfig.RestartPolicy.Name}} {{.State.Pid}}' web";
    assert_eq!(bed.sh(SRC, state), "exited no 0");
    assert!(bed.sh(DST, state).starts_with("running always "));
    assert_eq!(bed.sh(SRC, "podman diff web | grep -c /new; podman volume ls -q | wc -l"), "1\n2");
    // nothing of it runs, and its network is down: it would answer for the one that has moved
    assert_eq!(
        bed.sh(SRC, "pgrep -x 'redis-server|conmon'; ls /run/netns; nft list ruleset | grep godwit; true"),
        ""
    );
    // it is podman's to remove
    bed.sh(SRC, "podman rm -v web");
    assert_nothing_left(&bed, SRC, "podman");
    assert_eq!(redis.ask(&bed, "ping"), "PONG");
    bed.sh(DST, "podman rm -f -t 0 -v web; podman volume rm -a -f");

    // one that podman removes when it ends cannot be kept
    bed.sh(SRC, "podman volume rm -a -f; podman run -d --rm --name web --network none localhost/redis:test tail -f /dev/null");
    let said = migrate(&bed, "podman:web", &["--keep-source"]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    bed.sh(SRC, "podman rm -f -t 0 web");

    // and of runc
    let redis = Redis::create(&bed, "web", 8);
    migrate(&bed, "runc:web", &["--keep-source"]).summary();
    assert_eq!(runc_state(&bed, SRC, "web").unwrap()["status"], "stopped");
    assert_eq!(runc_state(&bed, DST, "web").unwrap()["status"], "running");
    assert_eq!(redis.ask(&bed, "ping"), "PONG");
    bed.sh(SRC, "runc delete web");
    assert_nothing_left(&bed, SRC, "runc");
}

#[test]
fn a_volume_that_is_skipped_is_made_and_stays_empty() {
    let Some(bed) = bed() else { return };
    podman_idle(&bed, "--network none");
    // one is not there, the other holds something else
    bed.sh(
        DST,
        "podman volume create other; echo own > $(podman volume inspect -f '{{.Mountpoint}}' other)/own",
    );
    let said = migrate(&bed, "podman:web", &["--skip-volume", "data", "--skip-volume", "other"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    let there = "podman exec web sh -c 'ls /data /other; stat -c \"%u:%g %a\" /data; cat /new'";
    assert_eq!(bed.sh(DST, there), "/data:\n\n/other:\nown\n5:7 2750\nnew");
    let here = "cd /var/lib/containers/storage/volumes; cat data/_data/file other/_data/file";
    assert_eq!(bed.sh(SRC, here), "a\nb");
    // the way back must not take what never left for a copy of its own
    let back = ["--json", "migrate", "podman:web", "ssh://src", "--max-downtime", "60s"];
    let said = godwit_with(&bed, DST, &[], &back);
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("exists there with other content"), "{}", said.out);
    assert_eq!(bed.sh(SRC, here), "a\nb");
    bed.sh(DST, "podman rm -f -t 0 -v web; podman volume rm -a -f");

    // by path, of another engine
    make_bundle(&bed, "idle", IDLE, |config| add_bind(config, "/srv/kept", "/kept", "rw"));
    bed.sh(SRC, "mkdir -m 2750 /srv/kept; chown 5:7 /srv/kept; echo a > /srv/kept/file");
    run_bundle(&bed, "idle");
    migrate(&bed, "runc:idle", &["--skip-volume", "/srv/kept"]).summary();
    assert_eq!(bed.sh(DST, "ls /srv/kept; stat -c '%u:%g %a' /srv/kept"), "5:7 2750");
    assert_eq!(bed.sh(SRC, "cat /srv/kept/file"), "a");
}

/// What was skipped is never taken for a copy, however often the container was there before.
#[test]
fn what_was_skipped_is_not_overwritten_on_any_way_back() {
    let Some(bed) = bed() else { return };
    podman_idle(&bed, "--network none");
    let go = |from: &str, more: &[&str]| {
        let to = format!("ssh://{}", other(from));
        let words = ["--json", "migrate", "podman:web", &to, "--max-downtime", "60s"];
        godwit_with(&bed, from, &[], &[&words[..], more].concat())
    };
    let files = |host: &str| bed.sh(host, "cd /var/lib/containers/storage/volumes/data/_data; grep -H . *");
    // there and back whole: each side knows the other's copy
    go(SRC, &[]).summary();
    go(DST, &[]).summary();
    assert_eq!((files(SRC), files(DST)), ("file:a".into(), "file:a".into()));
    // there without the volume: it goes on with the old copy, which is nobody's copy from now on
    go(SRC, &["--skip-volume", "data"]).summary();
    bed.sh(DST, "podman exec web sh -c 'echo there > /data/file'");
    assert_eq!((files(SRC), files(DST)), ("file:a".into(), "file:there".into()));
    for (from, code) in [(DST, 12), (SRC, 10)] {
        let said = go(from, &[]);
        assert_eq!(said.code, code, "{}{}", said.out, said.err);
    }
    // back without it: it finds what it had left here
    go(DST, &["--skip-volume", "data"]).summary();
    assert_eq!(bed.sh(SRC, "podman exec web cat /data/file"), "a");
    assert_eq!((files(SRC), files(DST)), ("file:a".into(), "file:there".into()));
    let said = go(SRC, &[]);
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("exists there with other content"), "{}", said.out);
    assert_eq!((files(SRC), files(DST)), ("file:a".into(), "file:there".into()));
    // the way out that it names
    bed.sh(DST, "podman volume rm data");
    go(SRC, &[]).summary();
    assert_eq!(bed.sh(DST, "podman exec web cat /data/file"), "a");
}

/// A volume that podman would remove with the container stays where it is asked to, whatever becomes of a move back.
fn what_has_no_name_stays(bed: &Bed) {
    bed.wipe();
    let run = |options: &str| {
        bed.sh(
            SRC,
            &format!(
                "podman run -d --name web --network none {options} -v /stays -v /moves localhost/redis:test \
                    sh -c 'exec 3> /open; echo x >&3; exec tail -f /dev/null'
                 podman exec web sh -c 'echo a > /stays/file; echo b > /moves/file'"
            ),
        );
        let name = "{{range .Mounts}}{{if eq .Destination \"/stays\"}}{{.Name}}{{end}}{{end}}";
        bed.sh(SRC, &format!("podman inspect -f '{name}' web"))
    };
    let name = run("--rm");
    // podman itself removes it when the container ends
    let said = migrate(bed, "podman:web", &["--skip-volume", &name]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("with it the volume without a name"), "{}", said.out);
    assert_eq!(bed.sh(SRC, "podman exec web cat /stays/file; podman rm -f -v -t 0 web"), "a\nweb");
    let name = run("");
    migrate(bed, "podman:web", &["--skip-volume", &name]).summary();
    assert_eq!(bed.sh(DST, "podman exec web sh -c 'ls /stays; cat /moves/file'"), "b");
    let here = format!("podman volume ls -q; cat /var/lib/containers/storage/volumes/{name}/_data/file");
    assert_eq!(bed.sh(SRC, &here), format!("{name}\na"));
    // back, without the file that it has open: what was made is taken away again, and the volume was not
    let back =
        ["--json", "migrate", "podman:web", "ssh://src", "--max-downtime", "60s", "--skip-volume", &name];
    let said = godwit_with(bed, DST, &[], &[&back[..], &["--layer", "skip"]].concat());
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert_eq!(bed.sh(SRC, &here), format!("{name}\na"), "{}", said.out);
    godwit_with(bed, DST, &[], &back).summary();
    assert_eq!(bed.sh(SRC, "podman exec web cat /stays/file /moves/file"), "a\nb");
    // and where it is stopped here and started there
    bed.sh(DST, "podman volume rm -a -f");
    migrate(bed, "podman:web", &["--skip-volume", &name, "--strategy", "restart", "--stop-timeout", "1s"])
        .summary();
    assert_eq!(bed.sh(DST, "podman exec web sh -c 'ls /stays; cat /moves/file'"), "b");
    assert_eq!(bed.sh(SRC, &here), format!("{name}\na"));
    bed.wipe();
}

#[test]
fn only_the_volumes_that_are_named_move() {
    let Some(bed) = bed() else { return };
    podman_idle(&bed, "--network none");
    let pid = bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web");
    for (more, why) in [
        (&["--volume", "nothing"][..], "the container has no volume `nothing`"),
        (&["--volume", "/srv"], "the container has no volume `/srv`"),
        (&["--volume", "data", "--skip-volume", "data"], "shall move, and stay"),
    ] {
        let said = migrate(&bed, "podman:web", more);
        assert_eq!(said.code, 2, "{}{}", said.out, said.err);
        assert!(said.out.contains(why), "{}", said.out);
    }
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web"), pid);
    assert_eq!(bed.sh(DST, "podman ps -aq; podman volume ls -q"), "");
    let said = migrate(&bed, "podman:web", &["--volume", "data"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert_eq!(bed.sh(DST, "podman exec web sh -c 'cat /data/file /new; ls /other'"), "a\nnew");
    let here = "cd /var/lib/containers/storage/volumes; cat other/_data/file";
    assert_eq!(bed.sh(SRC, here), "b");

    what_has_no_name_stays(&bed);

    // of another engine, by path; a single file moves all the same
    make_bundle(&bed, "idle", IDLE, |config| {
        add_bind(config, "/srv/moves", "/moves", "rw");
        add_bind(config, "/srv/stays", "/stays", "rw");
        add_bind(config, "/srv/settings", "/settings", "ro");
    });
    bed.sh(SRC, "mkdir /srv/moves /srv/stays; touch /srv/moves/x /srv/stays/y; echo s > /srv/settings");
    run_bundle(&bed, "idle");
    migrate(&bed, "runc:idle", &["--volume", "/srv/moves"]).summary();
    assert_eq!(
        bed.sh(DST, "ls /srv/moves /srv/stays; cat /srv/settings"),
        "/srv/moves:\nx\n\n/srv/stays:\ns"
    );
    assert_eq!(bed.sh(SRC, "ls /srv/stays"), "y");
}

/// What was asked for outlasts the process that was asked.
#[test]
fn a_container_that_is_kept_is_kept_by_whoever_ends_the_move() {
    let Some(bed) = bed() else { return };
    let redis = podman_redis(&bed, "crun");
    let data = redis.digest(&bed);
    let words = ["podman:web", "ssh://dst", "--tcp-established", "--max-downtime", "60s", "--keep-source"];
    let mut running = Background::migrate(&bed, &[], &words);
    // the destination has told that it runs before this is told
    running.wait_for("the end of the commit", |line| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        line["phase"] == "commit" && line["event"] == "end"
    });
    running.signal("KILL");
    let said = running.finish();
    let resumed = godwit_with(&bed, SRC, &[], &["--json", "resume", "--timeout", "30s"]);
    assert_eq!(resumed.code, 0, "{}{}\n{}{}", said.out, said.err, resumed.out, resumed.err);
    let state = "podman inspect -f '{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}' web";
    assert_eq!((bed.sh(SRC, state), bed.sh(DST, state)), ("exited no".into(), "running always".into()));
    assert_eq!(redis.digest(&bed), data);
}

/// CRIU finds that a file is missing, and everything is as before.
#[test]
fn what_is_open_cannot_be_left_behind() {
    let Some(bed) = bed() else { return };
    let redis = podman_redis(&bed, "crun");
    let data = redis.digest(&bed);
    let pid = bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web");
    // podman keeps what it makes for its first container of all
    bed.sh(DST, "podman run --rm --network testbed localhost/redis:test true");
    let before = State::of(&bed, DST);
    let said = migrate(&bed, "podman:web", &["--skip-volume", "data"]);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert_eq!(said.lines("exit_error")[0]["disposition"], "running_at_source", "{}", said.out);
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web"), pid);
    assert_eq!(redis.digest(&bed), data);
    assert_eq!(bed.sh(DST, "podman ps -aq; podman volume ls -q"), "");
    before.assert_unchanged(&bed, DST);
    for (more, why) in [
        (["--skip-volume", "nothing"], "the container has no volume `nothing`"),
        (["--skip-volume", "/data"], "the container has no volume `/data`"),
    ] {
        let said = migrate(&bed, "podman:web", &more);
        assert_eq!(said.code, 2, "{}{}", said.out, said.err);
        assert!(said.out.contains(why), "{}", said.out);
    }
    assert_eq!(redis.ask(&bed, "ping"), "PONG");
}

#[test]
fn a_layer_that_is_skipped_stays() {
    let Some(bed) = bed() else { return };
    podman_idle(&bed, "--network none");
    let said = migrate(&bed, "podman:web", &["--layer", "skip"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert_eq!(
        bed.sh(DST, "podman exec web sh -c 'ls /new; ls /etc/group; cat /data/file' 2> /dev/null; true"),
        "/etc/group\na"
    );
    assert_nothing_left(&bed, SRC, "podman");
    bed.sh(DST, "podman rm -f -t 0 -v web; podman volume rm -a -f");
    // a file of it is open
    podman_idle(&bed, "--network none");
    bed.sh(SRC, "podman exec -d web sh -c 'exec 3> /open; echo x >&3; exec tail -f /dev/null'");
    let said = migrate(&bed, "podman:web", &["--layer", "skip"]);
    assert_eq!(said.code, 13, "an exec session is open: {}{}", said.out, said.err);
    bed.sh(
        SRC,
        "podman rm -f -t 0 web
         podman run -d --name web --network none localhost/redis:test sh -c 'exec 3> /open; echo x >&3; exec tail -f /dev/null'",
    );
    let said = migrate(&bed, "podman:web", &["--layer", "skip"]);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert_eq!(
        bed.sh(SRC, "podman inspect -f '{{.State.Status}}' web; podman exec web cat /open"),
        "running\nx"
    );
    assert_eq!(bed.sh(DST, "podman ps -aq"), "");
    let redis = Redis::create(&bed, "plain", 8);
    let said = migrate(&bed, "runc:plain", &["--layer", "skip"]);
    assert_eq!(said.code, 2, "{}{}", said.out, said.err);
    redis.assert_untouched(&bed);
}

#[test]
fn published_ports_break_and_it_is_said_before() {
    let Some(bed) = bed() else { return };
    for host in [SRC, DST] {
        bed.sh(host, "testbed-container image");
    }
    bed.sh(
        SRC,
        "podman run -d --name web --network testbed:ip=10.77.0.100,mac=02:42:0a:4d:00:64 -p 8379:6379 localhost/redis:test \
            redis-server --bind 0.0.0.0 --protected-mode no --save ''
         until redis-cli -h 10.77.0.100 ping; do sleep 0.05; done",
    );
    let redis = Redis { name: "web".into(), ip: "10.77.0.100".into(), pid: 0 };
    assert_eq!(redis.ask(&bed, "set a b"), "OK");
    // the hosts' network is not podman's to route; it holds the port all the same
    let published = "ss -Hltn 'sport = :8379' | wc -l";
    assert_eq!(bed.sh(SRC, published), "1");
    let pid = bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web");
    let said = migrate(&bed, "podman:web", &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    let error = said.lines("exit_error").remove(0);
    assert!(error["causes"].to_string().contains("it publishes 0.0.0.0:8379/tcp"), "{error}");
    assert!(error["hints"].to_string().contains("`--ip-change allow`"), "{error}");
    // the same port is another's there
    bed.sh(
        DST,
        "socat TCP-LISTEN:8379,fork /dev/null > /dev/null 2>&1 & echo $! > /run/test.port.pid; sleep 0.3",
    );
    let said = migrate(&bed, "podman:web", &["--ip-change", "allow"]);
    bed.sh(DST, "kill $(cat /run/test.port.pid)");
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("0.0.0.0:8379"), "{}", said.out);
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web"), pid);
    let said = migrate(&bed, "podman:web", &["--ip-change", "allow"]);
    said.summary();
    assert!(said.out.contains("warning: it publishes 0.0.0.0:8379/tcp"), "{}", said.out);
    assert_eq!(redis.ask(&bed, "get a"), "b");
    assert_eq!((bed.sh(SRC, published), bed.sh(DST, published)), ("0".into(), "1".into()));
    assert_nothing_left(&bed, SRC, "podman");
}
