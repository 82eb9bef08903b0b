//! What a move of docker's container leaves where it was because it was asked to, and what cannot go along.

use crate::bed::{Bed, CLIENT, DST, SRC, Said, bed};
use crate::container::Redis;
use crate::engines::migrate;
use crate::engines_docker::{Configured, PID, assert_nothing_left, docker_redis, set_up};
use crate::godwit::{Background, godwit_with};
use serde_json::Value;

/// What docker says of the container's state, its restart policy, and its first process.
const STATE: &str =
    "docker inspect -f '{{.State.Status}} {{.HostConfig.RestartPolicy.Name}} {{.State.Pid}}' web";

/// A container that has nothing open but what its image has.
fn docker_idle(bed: &Bed) {
    set_up(bed);
    bed.sh(
        SRC,
        "docker run -d --name web --network none -v data:/data -v other:/other localhost/redis:test tail -f /dev/null
         docker exec web sh -c 'echo new > /new; rm /etc/group; echo a > /data/file; echo b > /other/file; chown 5:7 /data; chmod 2750 /data'",
    );
}

#[test]
fn a_stopped_container_of_docker_is_kept_at_the_source_and_never_started() {
    let Some(bed) = bed() else { return };
    let redis = docker_redis(&bed);
    let data = redis.digest(&bed);
    let said = migrate(&bed, SRC, "docker:web", &["--keep-source"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert!(said.out.contains("stays here, stopped"), "{}", said.out);
    assert_eq!(redis.digest(&bed), data);
    assert_eq!(bed.sh(SRC, STATE), "exited no 0");
    assert!(bed.sh(DST, STATE).starts_with("running always "));
    assert_eq!(bed.sh(SRC, "docker diff web | grep -c /new; docker volume ls -q | wc -l"), "1\n2");
    // nothing of it runs, and its network is down: it would answer for the one that has moved
    let runs = "pgrep -x 'redis-server|containerd-shim'; ls /run/netns; ls /sys/class/net | grep veth; nft list ruleset | grep godwit; true";
    assert_eq!(bed.sh(SRC, runs), "");
    // not even by a docker that begins anew
    bed.sh(SRC, "d=$(cat /run/docker.pid); kill $d; while [ -e /proc/$d ]; do sleep 0.1; done; testbed-container image --engine docker");
    assert_eq!(bed.sh(SRC, STATE), "exited no 0");
    assert_eq!(redis.ask(&bed, "ping"), "PONG");
    // it is docker's to remove
    bed.sh(SRC, "docker rm -v web");
    assert_nothing_left(&bed, SRC);
    assert_eq!(redis.digest(&bed), data);

    // one that docker removes when it ends cannot be kept
    bed.sh(SRC, "docker run -d --rm --name odd --network none localhost/redis:test tail -f /dev/null");
    let said = migrate(&bed, SRC, "docker:odd", &["--keep-source"]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(
        said.out.contains("docker removes it when it ends (`--rm`), so it cannot be kept"),
        "{}",
        said.out
    );
    // but it can be moved
    migrate(&bed, SRC, "docker:odd", &[]).summary();
    assert_eq!(
        bed.sh(DST, "docker inspect -f '{{.HostConfig.AutoRemove}} {{.State.Status}}' odd"),
        "true running"
    );
    assert_nothing_left(&bed, SRC);
}

/// What was asked for outlasts the process that was asked.
#[test]
fn a_container_of_docker_that_is_kept_is_kept_by_whoever_ends_the_move() {
    let Some(bed) = bed() else { return };
    let redis = docker_redis(&bed);
    let data = redis.digest(&bed);
    let words = ["docker:web", "ssh://dst", "--tcp-established", "--max-downtime", "60s", "--keep-source"];
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
    assert_eq!(bed.sh(SRC, STATE), "exited no 0");
    assert!(bed.sh(DST, STATE).starts_with("running always "));
    assert_eq!(redis.digest(&bed), data);
}

#[test]
fn a_volume_of_docker_that_is_skipped_is_made_and_stays_empty() {
    let Some(bed) = bed() else { return };
    docker_idle(&bed);
    // one is not there, the other holds something else
    bed.sh(DST, "docker volume create other; echo own > /var/lib/docker/volumes/other/_data/own");
    let by_path = "/var/lib/docker/volumes/other/_data";
    let said = migrate(&bed, SRC, "docker:web", &["--skip-volume", "data", "--skip-volume", by_path]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    let there = "docker exec web sh -c 'ls /data /other; stat -c \"%u:%g %a\" /data; cat /new'";
    assert_eq!(bed.sh(DST, there), "/data:\n\n/other:\nown\n5:7 2750\nnew");
    let here = "cd /var/lib/docker/volumes; cat data/_data/file other/_data/file";
    assert_eq!(bed.sh(SRC, here), "a\nb");
    // the way back must not take what never left for a copy of its own
    let said = migrate(&bed, DST, "docker:web", &[]);
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("exists there with other content"), "{}", said.out);
    assert_eq!(bed.sh(SRC, here), "a\nb");
    for (name, why) in [("nothing", "the container has no volume `nothing`"), ("/data", "no volume `/data`")]
    {
        let said = migrate(&bed, DST, "docker:web", &["--skip-volume", name]);
        assert_eq!(said.code, 2, "{}{}", said.out, said.err);
        assert!(said.out.contains(why), "{}", said.out);
    }
}

/// Named or not: what stays is not removed with the container.
#[test]
fn only_the_volumes_of_docker_that_are_named_move() {
    let Some(bed) = bed() else { return };
    set_up(&bed);
    bed.sh(
        SRC,
        "mkdir /srv/bound; echo c > /srv/bound/file
         docker run -d --name web --network none -v data:/data -v other:/other -v /anonymous -v /srv/bound:/bound \
            localhost/redis:test tail -f /dev/null
         docker exec web sh -c 'echo new > /new; echo a > /data/file; echo b > /other/file; echo d > /anonymous/file'",
    );
    let anonymous = bed.sh(
        SRC,
        "docker inspect -f '{{range .Mounts}}{{if eq .Destination \"/anonymous\"}}{{.Source}}{{end}}{{end}}' web",
    );
    let pid = bed.sh(SRC, PID);
    for (more, why) in [
        (&["--volume", "nothing"][..], "the container has no volume `nothing`"),
        (&["--volume", "/srv"], "the container has no volume `/srv`"),
        (&["--volume", "data", "--skip-volume", "data"], "shall move, and stay"),
    ] {
        let said = migrate(&bed, SRC, "docker:web", more);
        assert_eq!(said.code, 2, "{}{}", said.out, said.err);
        assert!(said.out.contains(why), "{}", said.out);
    }
    assert_eq!(bed.sh(SRC, PID), pid);
    assert_eq!(bed.sh(DST, "docker ps -aq; docker volume ls -q"), "");
    // by name, and by path
    let said = migrate(&bed, SRC, "docker:web", &["--volume", "data", "--volume", "/srv/bound"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    let there = "docker exec web sh -c 'cat /data/file /bound/file /new; ls /other /anonymous'";
    assert_eq!(bed.sh(DST, there), "a\nc\nnew\n/anonymous:\n\n/other:");
    let here = format!("cat /var/lib/docker/volumes/other/_data/file {anonymous}/file");
    assert_eq!(bed.sh(SRC, &here), "b\nd");
    assert_nothing_left(&bed, SRC);

    // what docker itself removes when the container ends cannot stay
    bed.sh(
        SRC,
        "docker run -d --rm --name odd --network none -v /anonymous localhost/redis:test tail -f /dev/null",
    );
    let anonymous = "docker inspect -f '{{range .Mounts}}{{.Source}}{{end}}' odd";
    let said = migrate(&bed, SRC, "docker:odd", &["--skip-volume", &bed.sh(SRC, anonymous)]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("with it the volume without a name"), "{}", said.out);
    assert_eq!(bed.sh(SRC, "docker inspect -f '{{.State.Status}}' odd"), "running");
    assert_eq!(bed.sh(DST, "docker ps -aq --filter name=odd"), "");
}

#[test]
fn a_layer_of_docker_that_is_skipped_stays() {
    let Some(bed) = bed() else { return };
    docker_idle(&bed);
    let said = migrate(&bed, SRC, "docker:web", &["--layer", "skip"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    let there = "docker exec web sh -c 'ls /new; ls /etc/group; cat /data/file' 2> /dev/null; true";
    assert_eq!(bed.sh(DST, there), "/etc/group\na");
    assert_nothing_left(&bed, SRC);
    bed.sh(DST, "docker rm -f -v web; docker volume rm data other");
    // a file of it is open: CRIU finds that it is missing, and everything is as before
    bed.sh(
        SRC,
        "docker run -d --name web --network none localhost/redis:test sh -c 'exec 3> /open; echo x >&3; exec tail -f /dev/null'
         timeout 20 sh -c 'until docker exec web test -s /open; do sleep 0.1; done'",
    );
    let pid = bed.sh(SRC, PID);
    let said = migrate(&bed, SRC, "docker:web", &["--layer", "skip"]);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert_eq!(said.lines("exit_error")[0]["disposition"], "running_at_source", "{}", said.out);
    assert_eq!((bed.sh(SRC, PID), bed.sh(SRC, "docker exec web cat /open")), (pid, "x".into()));
    assert_nothing_left(&bed, DST);
}

/// Asks through the published port of a host.
fn ask(bed: &Bed, host: &str, words: &str) -> Said {
    bed.try_sh(CLIENT, &format!("timeout 5 redis-cli -h {host} -p 8379 {words}"))
}

#[test]
fn ports_that_docker_has_published_break_and_it_is_said_before() {
    let Some(bed) = bed() else { return };
    // the tests' docker forwards nothing else
    let _configured = Configured::begin(&bed, r#"s/"userland-proxy": false/"userland-proxy": true/"#);
    set_up(&bed);
    bed.sh(
        SRC,
        "docker run -d --name web --network testbed --ip 10.77.0.100 --mac-address 02:42:0a:4d:00:64 -p 8379:6379 localhost/redis:test \
            redis-server --bind 0.0.0.0 --protected-mode no --save ''
         until redis-cli -h 10.77.0.100 ping; do sleep 0.05; done",
    );
    let redis = Redis { name: "web".into(), ip: "10.77.0.100".into(), pid: 0 };
    assert_eq!(ask(&bed, "src", "set a b").out.trim(), "OK");
    let pid = bed.sh(SRC, PID);
    let said = migrate(&bed, SRC, "docker:web", &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    let error = said.lines("exit_error").remove(0);
    assert!(error["causes"].to_string().contains("it publishes 0.0.0.0:8379/tcp"), "{error}");
    assert!(error["hints"].to_string().contains("`--ip-change allow`"), "{error}");
    // the same port is another's there
    bed.sh(
        DST,
        "socat TCP-LISTEN:8379,fork /dev/null > /dev/null 2>&1 & echo $! > /run/test.port.pid
         timeout 20 sh -c 'until ss -Hltn sport = :8379 | grep -q .; do sleep 0.1; done'",
    );
    let said = migrate(&bed, SRC, "docker:web", &["--ip-change", "allow"]);
    bed.sh(DST, "kill $(cat /run/test.port.pid)");
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(said.out.contains("0.0.0.0:8379"), "{}", said.out);
    assert_eq!(bed.sh(SRC, PID), pid);
    let said = migrate(&bed, SRC, "docker:web", &["--ip-change", "allow"]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
    assert!(said.out.contains("warning: it publishes 0.0.0.0:8379/tcp"), "{}", said.out);
    // its own address is the same, the published one is the other host's
    assert_eq!(redis.ask(&bed, "get a"), "b");
    assert_eq!(ask(&bed, "dst", "get a").out.trim(), "b");
    assert_ne!(ask(&bed, "src", "get a").out.trim(), "b");
    assert_eq!(bed.sh(SRC, "pgrep -a docker-proxy; true"), "");
    assert_nothing_left(&bed, SRC);
    // and back, with connections open through it: they break, nothing else does
    let back = migrate(&bed, DST, "docker:web", &["--ip-change", "allow"]);
    assert_eq!(back.summary()["leftovers"], Value::Array(vec![]), "{}", back.out);
    assert_eq!(ask(&bed, "src", "get a").out.trim(), "b");
}
