//! Containers of docker.

use crate::bed::{Bed, CLIENT, DST, SRC, bed};
use crate::container::Redis;
use crate::engines::{assert_a_volume_goes_whole, difference, migrate, other};
use crate::faults::{ORDER, bed_with_points};
use crate::godwit::{Background, godwit_with};
use crate::hosts::{Hosts, left_over};
use crate::inspected::{self, same_with_docker};
use crate::probe::Probe;
use crate::state::State;
use serde_json::Value;

const IP: &str = "10.77.0.100";
const NAME: &str = "web";
const MOVES: usize = 5;
/// The first process of the container.
pub const PID: &str = "docker inspect -f '{{.State.Pid}}' web";

/// Nothing of a container is left on a host: neither with docker, nor in the kernel, nor of godwit's.
#[track_caller]
pub fn assert_nothing_left(hosts: &dyn Hosts, host: &str) {
    let left = "ls -d /sys/fs/cgroup/docker/*/ /run/netns/* /run/godwit-runc /sys/class/net/veth* \
        /var/lib/godwit/parked/* /var/lib/godwit/migrations/*/root 2> /dev/null
        pgrep -ax 'redis-server|containerd-shim|godwit|criu'; nft list ruleset | grep godwit
        cut -d' ' -f5 /proc/self/mountinfo | grep overlay2; ls /var/lib/docker/containers; docker ps -aq; true";
    assert_eq!(left_over(hosts, host, left), "", "{host}");
    // a container's own layer has one below it for what docker puts there
    assert_eq!(hosts.sh(host, "ls /var/lib/docker/overlay2 | grep -e -init; true"), "", "{host}");
}

/// Another configuration of docker's on both hosts, as long as this lives; it counts when docker is started.
pub struct Configured<'a>(&'a Bed);

impl<'a> Configured<'a> {
    /// Changes daemon.json with sed(1).
    pub fn begin(bed: &'a Bed, change: &str) -> Self {
        let this = Self(bed);
        for host in [SRC, DST] {
            bed.sh(
                host,
                &format!("cp /etc/docker/daemon.json /root; sed -i '{change}' /etc/docker/daemon.json"),
            );
        }
        this
    }
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        for host in [SRC, DST] {
            self.0.try_sh(host, "cp /root/daemon.json /etc/docker");
        }
    }
}

/// docker on both hosts, with nothing but the image.
pub fn set_up(bed: &Bed) {
    for host in [SRC, DST] {
        // what docker makes for its first container stays
        bed.sh(host, "testbed-container image --engine docker; docker run --rm --network testbed localhost/redis:test true");
    }
}

/// A redis of docker on the source, with a volume that has a name, one that has none, a read-only bind mount, and a changed layer.
pub fn docker_redis(bed: &Bed) -> Redis {
    set_up(bed);
    let mac = "02:42:0a:4d:00:64";
    bed.sh(
        SRC,
        &format!(
            "mkdir /srv/ro; echo fixed > /srv/ro/file
             docker volume create --label team=blue data
             docker run -d --name {NAME} --network testbed --ip {IP} --mac-address {mac} --restart always --memory-reservation 6m \
                -v data:/data -v /anonymous -v /srv/ro:/ro:ro --tmpfs /scratch -e COLOR=green --label app=redis --init \
                --health-cmd true --health-interval 1h --log-opt max-size=5m --sysctl net.ipv4.tcp_keepalive_time=77 \
                localhost/redis:test \
                redis-server --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --save '' --appendonly yes --dir /data
             until redis-cli -h {IP} ping; do sleep 0.05; done
             redis-cli -h {IP} debug populate 4000 key 4000
             docker exec {NAME} sh -c 'echo new > /new; echo more >> /etc/passwd; rm /etc/group; echo kept > /anonymous/file
                echo there > /scratch/file; echo shared > /dev/shm/file'"
        ),
    );
    Redis { name: NAME.into(), ip: IP.into(), pid: 0 }
}

/// What `docker inspect` says, without what differs by nature.
#[track_caller]
pub fn inspected(bed: &Bed, host: &str) -> Value {
    same_with_docker(inspected::inspected(bed, "docker", host))
}

#[test]
fn a_container_of_docker_goes_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    goes_there_and_back(&bed, MOVES);
}

/// Moves it so often, under load, and looks at it whole each time.
pub fn goes_there_and_back(bed: &Bed, moves: usize) {
    let redis = docker_redis(bed);
    let diff = |host: &str| bed.sh(host, &format!("docker diff {NAME} | sort"));
    let (before, layer) = (inspected(bed, SRC), diff(SRC));
    let probe = Probe::start(bed, &redis);
    let mut host = SRC;
    for _ in 0..moves {
        let summary = migrate(bed, host, "docker:web", &[]).summary();
        assert_eq!(
            (&summary["tracker"], &summary["memory"]["restoration"], &summary["leftovers"]),
            (&"uffd".into(), &"local-lazy".into(), &Value::Array(vec![])),
            "{summary}"
        );
        assert_nothing_left(bed, host);
        host = other(host);
        assert_eq!(difference("", &before, &inspected(bed, host)), [""; 0]);
        assert_eq!(diff(host), layer);
        let files = "cat /new /anonymous/file /ro/file /scratch/file /dev/shm/file";
        assert_eq!(bed.sh(host, &format!("docker exec web {files}")), "new\nkept\nfixed\nthere\nshared");
        let sysctl = "cat /proc/sys/net/ipv4/tcp_keepalive_time";
        assert_eq!(bed.sh(host, &format!("docker exec web {sysctl}")), "77");
        assert_eq!(bed.sh(host, "docker volume inspect -f '{{.Labels}}' data"), "map[team:blue]");
        assert_eq!(bed.sh(host, "docker logs web 2>&1 | grep -c 'Ready to accept connections'"), "1");
        assert_eq!(bed.sh(host, "ls /var/lib/docker/containers/*/ | grep -c json.log"), "1");
        assert_eq!(
            bed.sh(
                host,
                "ls -d /run/netns/* /run/godwit-runc 2> /dev/null; nft list ruleset | grep godwit; true"
            ),
            ""
        );
    }
    probe.assert_nothing_lost();
    let host = assert_a_volume_goes_whole(bed, host, "docker:web", "/var/lib/docker/volumes/data/_data");
    // it is docker's: a dead container is started again, writes to the same log, and a removed one is gone
    bed.sh(host, &format!("kill -9 $({PID})"));
    let again = format!("timeout 20 sh -c 'until redis-cli -h {IP} ping | grep -q PONG; do sleep 0.1; done'");
    assert_eq!(bed.try_sh(CLIENT, &again).code, 0, "docker did not start it again");
    assert_eq!(bed.sh(host, "docker logs web 2>&1 | grep -c 'Ready to accept connections'"), "2");
    bed.sh(host, "docker stop -t 2 web; docker start web; docker rm -f -v web; docker volume rm data");
    assert_nothing_left(bed, host);
    assert_eq!(bed.sh(host, "docker volume ls -q"), "", "its anonymous volume has gone with it");
}

#[test]
fn what_docker_cannot_make_there_is_refused_and_nothing_is_touched() {
    let Some(bed) = bed() else { return };
    docker_redis(&bed);
    let pid = bed.sh(SRC, PID);
    let reload = "kill -HUP $(cat /run/docker.pid); sleep 1";
    let before = State::of(&bed, DST).without("/run/docker");
    for (spoil, mend, words) in [
        (
            "docker create --name web --network none localhost/redis:test true",
            "docker rm web",
            "has a container `web` there already",
        ),
        (
            "docker network rm testbed",
            "testbed-container image --engine docker",
            "there is no network `testbed`",
        ),
        (
            "docker volume create --opt type=tmpfs --opt device=tmpfs data",
            "docker volume rm data",
            "the volume `data` exists there with other options",
        ),
        (
            &format!(
                "cp /etc/docker/daemon.json /root; sed -i s/godwit-runc/runc/ /etc/docker/daemon.json; {reload}"
            ),
            &format!("cp /root/daemon.json /etc/docker; {reload}"),
            "no runtime that restores what godwit brings",
        ),
    ] {
        bed.sh(DST, spoil);
        let said = migrate(&bed, SRC, "docker:web", &[]);
        bed.sh(DST, mend);
        assert_eq!(said.code, 12, "{spoil}: {}{}", said.out, said.err);
        assert!(said.out.contains(words), "{spoil}: {}{}", said.out, said.err);
    }
    for (options, words) in [
        ("--network none --privileged", "it is privileged"),
        ("--network none -t", "it has a terminal"),
        ("--network none --pid host", "it shares a namespace (`--pid host`)"),
        ("--network none --ipc shareable", "it shares a namespace (`--ipc shareable`)"),
        ("--network none --volumes-from web", "depends on other containers"),
        ("--network none -v data:/data", "another running container uses the volume `data`"),
    ] {
        bed.sh(SRC, &format!("docker run -d --name odd {options} localhost/redis:test tail -f /dev/null"));
        let said = migrate(&bed, SRC, "docker:odd", &[]);
        bed.sh(SRC, "docker rm -f odd");
        assert_eq!(said.code, 13, "{options}: {}{}", said.out, said.err);
        assert!(said.out.contains(words), "{options}: {}{}", said.out, said.err);
    }
    let said = migrate(&bed, SRC, "docker:nobody", &[]);
    assert_eq!(said.code, 10, "{}{}", said.out, said.err);
    assert!(said.out.contains("no container `docker:nobody`"), "{}{}", said.out, said.err);
    assert_eq!(bed.sh(SRC, PID), pid);
    assert_eq!(bed.sh(DST, "docker ps -aq; docker volume ls -q; ls /run/netns"), "");
    before.assert_unchanged_without(&bed, DST, "/run/docker");
    // docker itself is not there
    bed.sh(
        DST,
        "kill $(cat /run/docker.pid); while pgrep -x dockerd; do sleep 0.1; done; rm -f /run/docker.sock",
    );
    let said = migrate(&bed, SRC, "docker:web", &[]);
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    assert!(
        said.out.contains("the container runtime `docker` cannot be used there"),
        "{}{}",
        said.out,
        said.err
    );
    assert_eq!(bed.sh(SRC, PID), pid);
}

/// Layers that the destination has do not travel.
#[test]
fn an_image_of_dockers_that_is_missing_goes_along() {
    let Some(bed) = bed() else { return };
    set_up(&bed);
    let run = |image: &str| format!("docker run -d --name {NAME} --network none {image} tail -f /dev/null");
    bed.sh(
        SRC,
        &format!(
            "docker create --name seed localhost/redis:test true
             head -c 1200000 /dev/urandom > /root/extra; docker cp /root/extra seed:/extra
             docker commit seed localhost/derived:1; docker rm seed; {}",
            run("localhost/derived:1")
        ),
    );
    let image = "docker image inspect -f '{{.Id}} {{.RepoTags}}' localhost/derived:1";
    let said = migrate(&bed, SRC, "docker:web", &[]);
    said.summary();
    let brought = said.lines("note").into_iter().find_map(|note| {
        note["text"].as_str().filter(|text| text.contains("has the container's image now")).map(str::to_owned)
    });
    let brought = brought.unwrap_or_else(|| panic!("{}", said.out));
    assert!(
        brought.contains(" 1.1 MiB") || brought.contains(" 1.2 MiB"),
        "more than its own layer: {brought}"
    );
    assert_eq!(bed.sh(DST, image), bed.sh(SRC, image));
    assert_eq!(bed.sh(DST, "docker exec web wc -c /extra"), "1200000 /extra");
    // what the store has of it does not come once more
    bed.sh(DST, "godwit store add --image docker:localhost/derived:1 --pin image/derived; docker rm -f web");
    bed.sh(DST, "docker rmi -f localhost/derived:1");
    bed.sh(SRC, &run("localhost/derived:1"));
    let summary = migrate(&bed, SRC, "docker:web", &[]).summary();
    assert!(summary["cooperation"]["own_bytes"].as_u64().unwrap() >= 1_200_000, "{summary}");
    assert_eq!(bed.sh(DST, image), bed.sh(SRC, image));
    bed.sh(DST, "rm -r /var/lib/godwit/store");
    assert_eq!(bed.sh(SRC, "ls -d /var/lib/godwit/migrations/*/images 2> /dev/null; true"), "");
    // whole, to a host that has nothing of it
    bed.sh(DST, "docker rm -f web; docker rmi -f localhost/derived:1 localhost/redis:test");
    assert_eq!(bed.sh(DST, "docker image ls -aq"), "");
    bed.sh(SRC, &run("localhost/derived:1"));
    migrate(&bed, SRC, "docker:web", &[]).summary();
    assert_eq!(bed.sh(DST, image), bed.sh(SRC, image));
    for host in [SRC, DST] {
        bed.sh(
            host,
            "docker ps -aq | xargs -r docker rm -f; docker rmi -f localhost/derived:1; rm -f /root/extra",
        );
    }
}

#[test]
fn a_container_needs_no_network_of_dockers() {
    let Some(bed) = bed() else { return };
    set_up(&bed);
    for network in ["none", "host"] {
        bed.sh(
            SRC,
            &format!(
                "docker run -d --name {NAME} --network {network} -v data:/data localhost/redis:test tail -f /dev/null
                 docker exec {NAME} sh -c 'echo {network} > /data/file; echo {network} > /file'"
            ),
        );
        let said = migrate(&bed, SRC, "docker:web", &[]);
        assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{network}");
        assert_eq!(
            bed.sh(DST, "docker exec web cat /data/file /file"),
            format!("{network}\n{network}"),
            "{}",
            said.out
        );
        assert_eq!(bed.sh(DST, "docker inspect -f '{{.HostConfig.NetworkMode}}' web"), network);
        bed.sh(DST, "docker rm -f -v web; docker volume rm data");
        assert_nothing_left(&bed, SRC);
        assert_nothing_left(&bed, DST);
        bed.sh(SRC, "docker volume rm data");
    }
}

/// docker starts it late, the receiver dies meanwhile: what it has made is found again and goes.
#[test]
fn what_a_receiver_that_was_killed_has_made_goes() {
    let Some(bed) = bed_with_points() else { return };
    docker_redis(&bed);
    let (pid, before) = (bed.sh(SRC, PID), State::of(&bed, DST).without("/run/docker"));
    for line in ["accepted", "prepared", "round", "ready", "restoring", "restored"] {
        bed.write(DST, ORDER, &format!("destination {line} after kill\n"));
        let flags =
            ["docker:web", "ssh://dst", "--tcp-established", "--retries", "0", "--max-downtime", "60s"];
        let said = Background::migrate(&bed, &[], &flags).finish();
        assert!(!bed.holds(DST, &format!("rm {ORDER}")), "{line}: it never came there: {}", said.out);
        for host in [SRC, DST] {
            godwit_with(&bed, host, &[], &["resume"]);
        }
        assert_eq!(bed.sh(SRC, PID), pid, "{line}: {}{}", said.out, said.err);
        assert_eq!(bed.sh(SRC, &format!("redis-cli -h {IP} ping")), "PONG", "{line}");
        assert_nothing_left(&bed, DST);
        assert_eq!(bed.sh(DST, "docker volume ls -q"), "", "{line}");
    }
    before.assert_unchanged_without(&bed, DST, "/run/docker");
}

/// In two networks, of which the second has another bridge on each host.
#[test]
fn a_container_of_docker_in_two_networks_keeps_both_addresses() {
    let Some(bed) = bed() else { return };
    set_up(&bed);
    for host in [SRC, DST] {
        bed.sh(
            host,
            "docker network create --subnet 10.66.0.0/24 zone 2> /dev/null || docker network inspect zone",
        );
    }
    let run = |networks: &str| {
        bed.sh(
            SRC,
            &format!(
                "docker run -d --name {NAME} {networks} localhost/redis:test \
                    redis-server --bind 0.0.0.0 --protected-mode no --save '' --enable-debug-command yes
                 until redis-cli -h {IP} ping; do sleep 0.05; done"
            ),
        )
    };
    let testbed = format!("--network name=testbed,ip={IP},mac-address=02:42:0a:4d:00:64");
    run(&format!("{testbed} --network name=zone,alias=second"));
    let network = |host: &str| {
        let inside = format!("nsenter -t $({PID}) -n ip");
        let links = "sed -n 's/.*\\(eth[0-9]\\).*ether \\([0-9a-f:]*\\).*/\\1 \\2/p'";
        bed.sh(
            host,
            &format!(
                "({inside} -o link | {links}; {inside} -o addr | awk '{{ print $2, $4 }}'; {inside} route) | sort"
            ),
        )
    };
    let before = network(SRC);
    assert!(before.contains("eth1 10.66.0."), "{before}");
    let redis = Redis { name: NAME.into(), ip: IP.into(), pid: 0 };
    let probe = Probe::start(&bed, &redis);
    let mut host = SRC;
    for _ in 0..2 {
        let said = migrate(&bed, host, "docker:web", &[]);
        assert_eq!(said.summary()["leftovers"], Value::Array(vec![]), "{}", said.out);
        assert_nothing_left(&bed, host);
        host = other(host);
        assert_eq!(network(host), before);
        assert_eq!(
            bed.sh(host, "docker inspect -f '{{.NetworkSettings.Networks.zone.Aliases}}' web"),
            "[second]"
        );
        let bridge = "ip -o link show type bridge | grep -o 'br-[0-9a-f]*'";
        assert_eq!(
            bed.sh(host, &format!("ping -c 1 -W 5 -I $({bridge}) 10.66.0.2 | grep -c '1 received'")),
            "1"
        );
    }
    probe.assert_nothing_lost();
    bed.sh(host, "docker rm -f web");
    assert_nothing_left(&bed, host);

    // docker numbers its interfaces by the networks' names when it starts it: here they came one after the other
    let zone = "--network name=zone,ip=10.66.0.9";
    bed.sh(SRC, &format!("docker run -d --name {NAME} {zone} localhost/redis:test tail -f /dev/null; docker network connect --ip {IP} testbed web"));
    let pid = bed.sh(SRC, PID);
    let said = migrate(&bed, SRC, "docker:web", &[]);
    assert_eq!(said.code, 13, "{}{}", said.out, said.err);
    assert!(said.out.contains("docker would number its interfaces in another order"), "{}", said.out);
    assert!(said.out.contains("`docker restart web`"), "{}", said.out);
    assert_eq!(bed.sh(SRC, PID), pid);
    bed.sh(SRC, "docker restart -t 0 web");
    migrate(&bed, SRC, "docker:web", &[]).summary();
    for host in [SRC, DST] {
        bed.sh(host, "docker ps -aq | xargs -r docker rm -f; docker network rm zone");
    }
}

/// The row of `godwit check` about docker on the other host.
fn checked(bed: &Bed) -> String {
    let said = godwit_with(bed, SRC, &[], &["--json", "check", "ssh://dst"]);
    let report: Value =
        serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{}{}", said.out, said.err));
    let row = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == "docker");
    row.unwrap_or_else(|| panic!("{report}"))["there"].as_str().unwrap().into()
}

#[test]
fn a_check_says_whether_docker_there_can_take_containers() {
    let Some(bed) = bed() else { return };
    assert_eq!(checked(&bed), "not there (no `docker:` can move)");
    set_up(&bed);
    assert!(checked(&bed).ends_with(", runtime `godwit` is godwit's"), "{}", checked(&bed));
    let reload = "kill -HUP $(cat /run/docker.pid); sleep 1";
    let _configured = Configured::begin(&bed, "s/godwit-runc/runc/");
    bed.sh(DST, reload);
    let said = "without godwit's runtime: containers can leave, none can come";
    assert!(checked(&bed).contains(said), "{}", checked(&bed));
}
