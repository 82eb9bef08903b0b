//! Containers as other engines know them: crun, and podman with crun and with runc.

use crate::bed::{Bed, CLIENT, DST, SRC, Said, bed};
use crate::container::Redis;
use crate::godwit::godwit_with;
pub use crate::hosts::other;
use crate::hosts::{Hosts, left_over};
pub use crate::inspected::difference;
use crate::inspected::{self, same_with_podman};
use crate::probe::Probe;
use serde_json::Value;

const IP: &str = "10.77.0.100";
const NAME: &str = "web";
const MOVES: usize = 5;

/// Moves a container from one host to the other.
pub fn migrate(bed: &Bed, from: &str, container: &str, more: &[&str]) -> Said {
    let to = format!("ssh://{}", other(from));
    let words = ["--json", "migrate", container, &to, "--tcp-established", "--max-downtime", "60s"];
    godwit_with(bed, from, &[], &[&words[..], more].concat())
}

/// Nothing of a container is left on a host.
#[track_caller]
pub fn assert_nothing_left(hosts: &dyn Hosts, host: &str, runtime: &str) {
    let left = "ls -d /sys/fs/cgroup/*web* /run/netns/* /sys/class/net/v-web /sys/class/net/veth* /var/lib/godwit/parked/* \
        2> /dev/null; pgrep -ax 'redis-server|conmon|godwit|criu'; nft list ruleset | grep godwit; true";
    assert_eq!(left_over(hosts, host, left), "", "{host}");
    assert_eq!(hosts.sh(host, &format!("{runtime} list -q 2> /dev/null || {runtime} ps -aq")), "", "{host}");
}

#[test]
fn a_container_of_crun_goes_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, &format!("testbed-container create {NAME} {IP} --ram 16 --engine crun"));
    let redis = Redis { name: NAME.into(), ip: IP.into(), pid: 0 };
    let probe = Probe::start(&bed, &redis);
    let mut host = SRC;
    for _ in 0..MOVES {
        let summary = migrate(&bed, host, "crun:web", &[]).summary();
        assert_eq!(
            (&summary["tracker"], &summary["memory"]["restoration"], &summary["leftovers"]),
            (&"uffd".into(), &"local-lazy".into(), &Value::Array(vec![])),
            "{summary}"
        );
        assert_eq!(bed.sh(other(host), "crun list -q"), NAME, "{summary}");
        assert_nothing_left(&bed, host, "crun");
        host = other(host);
    }
    probe.assert_nothing_lost();
}

/// A redis of podman on the source, with a volume that has a name, one that has none, a read-only bind mount, and a changed layer.
pub fn podman_redis(bed: &Bed, runtime: &str) -> Redis {
    for host in [SRC, DST] {
        bed.sh(host, "testbed-container image");
        bed.sh(host, "podman rm -a -f -t 0 -v; podman volume rm -a -f");
    }
    bed.sh(SRC, "mkdir /srv/ro; echo fixed > /srv/ro/file");
    let mac = "02:42:0a:4d:00:64";
    bed.sh(
        SRC,
        &format!(
            "podman volume create --label team=blue data
             podman --runtime {runtime} run -d --name {NAME} --network testbed:ip={IP},mac={mac} --restart always --log-driver k8s-file \
                -v data:/data -v /anonymous -v /srv/ro:/ro:ro -e COLOR=green --label app=redis localhost/redis:test \
                redis-server --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --save '' --appendonly yes --dir /data
             until redis-cli -h {IP} ping; do sleep 0.05; done
             redis-cli -h {IP} debug populate 4000 key 4000
             podman exec {NAME} sh -c 'echo new > /new; echo more >> /etc/passwd; rm /etc/group; echo kept > /anonymous/file'"
        ),
    );
    Redis { name: NAME.into(), ip: IP.into(), pid: 0 }
}

/// What `podman inspect` says, without what differs by nature.
pub fn inspected(bed: &Bed, host: &str) -> Value {
    same_with_podman(inspected::inspected(bed, "podman", host))
}

pub fn diff(bed: &Bed, host: &str) -> String {
    bed.sh(host, &format!("podman diff {NAME} | sort"))
}

/// Moves it once more, when nobody writes: what has come of the directory of a volume is what has stayed here, by rsync's judgement.
/// Gives where the container is then.
#[track_caller]
pub fn assert_a_volume_goes_whole(bed: &Bed, from: &str, container: &str, dir: &str) -> &'static str {
    migrate(bed, from, container, &[]).summary();
    let to = other(from);
    let judge = "rsync -aHAX --checksum --dry-run --delete --itemize-changes";
    assert_eq!(bed.sh(from, &format!("ls -A {dir} | grep -q . && {judge} {dir}/ {to}:{dir}/")), "");
    to
}

/// Moves it so often, under load, and looks at it whole each time.
pub fn goes_there_and_back(bed: &Bed, runtime: &str, moves: usize) {
    let redis = podman_redis(bed, runtime);
    let (before, layer) = (inspected(bed, SRC), diff(bed, SRC));
    let layers =
        |host: &str| bed.sh(host, "podman image inspect -f '{{len .RootFS.Layers}}' localhost/redis:test");
    let layers_before = layers(SRC);
    let probe = Probe::start(bed, &redis);
    let mut host = SRC;
    for _ in 0..moves {
        let summary = migrate(bed, host, "podman:web", &[]).summary();
        assert_eq!(
            (&summary["tracker"], &summary["memory"]["restoration"], &summary["leftovers"]),
            (&"uffd".into(), &"local-lazy".into(), &Value::Array(vec![])),
            "{summary}"
        );
        assert_nothing_left(bed, host, "podman");
        host = other(host);
        assert_eq!(difference("", &before, &inspected(bed, host)), [""; 0]);
        assert_eq!((diff(bed, host), layers(host)), (layer.clone(), layers_before.clone()));
        assert_eq!(bed.sh(host, "podman exec web cat /new /anonymous/file /ro/file"), "new\nkept\nfixed");
        assert_eq!(bed.sh(host, "podman volume inspect -f '{{.Labels}}' data"), "map[team:blue]");
        assert!(bed.sh(host, "podman logs web").contains("Ready to accept connections"));
    }
    probe.assert_nothing_lost();
    let host =
        assert_a_volume_goes_whole(bed, host, "podman:web", "/var/lib/containers/storage/volumes/data/_data");
    // it is podman's: a dead container is started again, and a removed one is gone
    bed.sh(host, "kill -9 $(podman inspect -f '{{.State.Pid}}' web)");
    let again = format!("timeout 20 sh -c 'until redis-cli -h {IP} ping | grep -q PONG; do sleep 0.1; done'");
    assert_eq!(bed.try_sh(CLIENT, &again).code, 0, "podman did not start it again");
    bed.sh(host, "podman stop -t 2 web; podman start web; podman rm -f -t 0 -v web; podman volume rm data");
    assert_nothing_left(bed, host, "podman");
}

#[test]
fn a_container_of_podman_with_crun_goes_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    goes_there_and_back(&bed, "crun", MOVES);
}

#[test]
fn a_container_of_podman_with_runc_goes_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    goes_there_and_back(&bed, "runc", MOVES);
}

#[test]
fn what_cannot_be_made_there_is_refused_and_nothing_is_touched() {
    let Some(bed) = bed() else { return };
    podman_redis(&bed, "crun");
    let pid = bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web");
    for (spoil, mend, words) in [
        (
            "podman create --name web localhost/redis:test true",
            "podman rm web",
            "has a container `web` there already",
        ),
        (
            "mv /etc/containers/networks/testbed.json /root",
            "mv /root/testbed.json /etc/containers/networks",
            "there is no network `testbed`",
        ),
        (
            "podman volume create --opt type=tmpfs --opt device=tmpfs data",
            "podman volume rm data",
            "the volume `data` exists there with other options",
        ),
    ] {
        bed.sh(DST, spoil);
        let said = migrate(&bed, SRC, "podman:web", &[]);
        bed.sh(DST, mend);
        assert_eq!(said.code, 12, "{spoil}: {}{}", said.out, said.err);
        assert!(said.out.contains(words), "{spoil}: {}{}", said.out, said.err);
    }
    for (options, words) in [
        ("--privileged", "it is privileged"),
        ("-t", "is the terminal"),
        ("-v data:/data", "another running container uses the volume `data`"),
    ] {
        bed.sh(
            SRC,
            &format!(
                "podman run -d --name odd --network none {options} localhost/redis:test tail -f /dev/null"
            ),
        );
        let said = migrate(&bed, SRC, "podman:odd", &[]);
        bed.sh(SRC, "podman rm -f -t 0 odd");
        assert_eq!(said.code, 13, "{options}: {}{}", said.out, said.err);
        assert!(said.out.contains(words), "{options}: {}{}", said.out, said.err);
    }
    let id = bed.sh(SRC, "podman inspect -f '{{.Id}}' web");
    let said = migrate(&bed, SRC, &format!("crun:{id}"), &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("it is podman's"), "{}{}", said.out, said.err);
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web"), pid);
    assert_eq!(bed.sh(DST, "podman ps -aq; podman volume ls -q; ls /run/netns"), "");
}

/// Layers that the destination has do not travel.
#[test]
fn an_image_that_is_missing_goes_along() {
    let Some(bed) = bed() else { return };
    podman_redis(&bed, "crun");
    bed.sh(DST, "podman rmi -f localhost/derived:1 2> /dev/null; true");
    bed.sh(
        SRC,
        &format!(
            "podman rm -f -t 0 -v {NAME}; podman volume rm -f data
             podman create --name seed localhost/redis:test true
             head -c 1000000 /dev/urandom > /root/extra; podman cp /root/extra seed:/extra
             podman commit -q seed localhost/derived:1; podman rm seed
             podman run -d --name {NAME} --network none localhost/derived:1 tail -f /dev/null"
        ),
    );
    let image = "podman image inspect -f '{{.Id}}' localhost/derived:1";
    let said = migrate(&bed, SRC, "podman:web", &[]);
    said.summary();
    let brought = said.lines("note").into_iter().find_map(|note| {
        note["text"].as_str().filter(|text| text.contains("has the container's image now")).map(str::to_owned)
    });
    let brought = brought.unwrap_or_else(|| panic!("{}", said.out));
    assert!(brought.contains("KiB") || brought.contains(" 1.0 MiB"), "more than its own layer: {brought}");
    assert_eq!(bed.sh(DST, image), bed.sh(SRC, image));
    assert_eq!(bed.sh(DST, "podman exec web wc -c /extra"), "1000000 /extra");
    assert_eq!(bed.sh(SRC, "ls -d /var/lib/godwit/migrations/*/images 2> /dev/null; true"), "");
    // whole, to a host that has nothing of it
    bed.sh(DST, "podman rm -f -t 0 web");
    bed.sh(SRC, &format!("podman run -d --name {NAME} --network none localhost/derived:1 tail -f /dev/null"));
    bed.sh(DST, "podman rmi -a -f");
    migrate(&bed, SRC, "podman:web", &[]).summary();
    assert_eq!(bed.sh(DST, image), bed.sh(SRC, image));
    // docker's kind of image, too
    bed.sh(DST, "podman rm -f -t 0 web; podman rmi -a -f");
    bed.sh(
        SRC,
        &format!("podman run -d --name {NAME} --network none localhost/redis:test tail -f /dev/null"),
    );
    migrate(&bed, SRC, "podman:web", &[]).summary();
    let image = image.replace("derived:1", "redis:test");
    assert_eq!(bed.sh(DST, &image), bed.sh(SRC, &image));
    for host in [SRC, DST] {
        bed.sh(host, "podman rm -a -f -t 0; podman rmi -a -f; testbed-container image");
    }
}

/// A volume of which it sees a part, and all of it read-only; binds with each propagation that CRIU can make again.
#[test]
fn mounts_arrive_as_they_were_given() {
    let Some(bed) = bed() else { return };
    podman_redis(&bed, "crun");
    let run = |options: &str| {
        bed.sh(
            SRC,
            &format!(
                "podman rm -a -f -t 0 -v; podman volume rm -a -f; podman volume create data; mkdir -p /srv/a /srv/b
                 cd /var/lib/containers/storage/volumes/data/_data; mkdir -p dir; echo beside > beside
                 podman run -d --name {NAME} --network none --mount type=volume,src=data,dst=/part,subpath=dir \
                    -v data:/all:ro {options} localhost/redis:test sh -c 'while sleep 0.05; do date >> /part/log; done'"
            ),
        )
    };
    let mounts = |host: &str| bed.sh(host, "podman inspect -f '{{json .Mounts}}' web");
    let seen = "podman exec web sh -c 'cut -d\" \" -f5-7 /proc/self/mountinfo | grep -E \"^/(part|all|a|b) \" | sed \"s/:.*//\" | sort'";
    run("-v /srv/a:/a:rslave,Z -v /srv/b:/b:rslave,noexec");
    let (before, shown) = (mounts(SRC), bed.sh(SRC, seen));
    assert!(
        shown.contains("/a rw,relatime master") && shown.contains("/b rw,noexec,relatime master"),
        "{shown}"
    );
    let said = migrate(&bed, SRC, "podman:web", &[]);
    assert_eq!(said.summary()["leftovers"], Value::Array(vec![]));
    assert_eq!((mounts(DST), bed.sh(DST, seen)), (before, shown));
    // written until the freeze, through the one mount of two that can be written through
    let lines =
        "podman exec web sh -c 'cat /all/beside; wc -l < /all/dir/log; sleep 0.5; wc -l < /all/dir/log'";
    let lines = bed.sh(DST, lines);
    let counts: Vec<u32> = lines.lines().skip(1).map(|count| count.parse().unwrap()).collect();
    assert!(lines.starts_with("beside\n") && counts[0] > 5 && counts[1] > counts[0], "{lines}");
    bed.sh(DST, "podman rm -a -f -t 0 -v; podman volume rm -a -f; rm -rf /srv/a /srv/b");

    run("-v /srv/a:/a:rshared -v /srv/b:/b:rshared");
    let said = migrate(&bed, SRC, "podman:web", &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("propagate to each other"), "{}", said.out);
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Running}}' web"), "true");
}

/// podman's own bridge with its address translation: the address is kept, ports are published again.
#[test]
fn published_ports_are_published_there() {
    let Some(bed) = bed() else { return };
    podman_redis(&bed, "crun");
    bed.sh(
        SRC,
        &format!(
            "podman rm -a -f -t 0 -v; podman volume rm -a -f
             podman run -d --name {NAME} -p 8080:6379 localhost/redis:test redis-server --bind 0.0.0.0 --protected-mode no --save ''"
        ),
    );
    let ask = |host: &str, words: &str| {
        bed.try_sh(CLIENT, &format!("timeout 5 redis-cli -h {host} -p 8080 {words}"))
    };
    let ports = "podman inspect -f '{{json .NetworkSettings.Ports}} {{.NetworkSettings.IPAddress}}' web";
    let published = bed.sh(SRC, ports);
    assert_eq!(bed.sh(CLIENT, "until redis-cli -h src -p 8080 set kept yes; do sleep 0.1; done"), "OK");
    let moved = migrate(&bed, SRC, "podman:web", &["--ip-change", "allow"]);
    assert_eq!(moved.summary()["leftovers"], Value::Array(vec![]));
    assert_eq!(bed.sh(DST, ports), published);
    assert_eq!(ask("dst", "get kept").out.trim(), "yes");
    assert_ne!(ask("src", "get kept").out.trim(), "yes");
    assert_eq!(bed.sh(SRC, "nft list ruleset | grep -c 'dport 8080'; true"), "0");
}

#[test]
fn a_container_needs_no_network_of_podmans() {
    let Some(bed) = bed() else { return };
    podman_redis(&bed, "crun");
    for network in ["none", "host"] {
        bed.sh(SRC, "podman rm -a -f -t 0 -v; podman volume rm -a -f");
        bed.sh(DST, "podman rm -a -f -t 0 -v; podman volume rm -a -f; rm -rf /srv/ro");
        bed.sh(
            SRC,
            &format!(
                "podman run -d --name {NAME} --network {network} -v data:/data -v /srv/ro:/ro:ro --tmpfs /scratch \
                    localhost/redis:test tail -f /dev/null
                 podman exec {NAME} sh -c 'echo {network} > /data/file; echo {network} > /scratch/file; echo {network} > /dev/shm/file'"
            ),
        );
        let said = migrate(&bed, SRC, "podman:web", &[]);
        assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{network}");
        let files = bed.sh(DST, "podman exec web cat /data/file /scratch/file /dev/shm/file /ro/file");
        assert_eq!(files, format!("{network}\n{network}\n{network}\nfixed"), "{}", said.out);
    }
}
