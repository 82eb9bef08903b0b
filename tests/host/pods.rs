//! Pods of podman's: the infra container is made again, the containers in it move with all that they have.

use crate::bed::{Bed, CLIENT, DST, SRC, bed};
use crate::container::Redis;
use crate::engines::{assert_nothing_left, difference, migrate, other};
use crate::godwit::{Background, godwit_with};
use crate::inspected::DIFFERS_WITH_PODMAN;
use crate::probe::Probe;
use serde_json::{Value, json};

const IP: &str = "10.77.0.100";
pub const POD: &str = "podman:pod/shop";
/// podman's own image for infra containers needs catatonit, which the test hosts do not have.
const CREATE: &str =
    "podman pod create --infra-image localhost/redis:test --infra-command 'tail -f /dev/null'";

/// A pod on the source with a redis in it, which has a volume, a changed layer, and a file in the shared memory of the pod.
pub fn make_pod(bed: &Bed, runtime: &str) -> Redis {
    for host in [SRC, DST] {
        bed.sh(host, "testbed-container image");
    }
    let mac = "02:42:0a:4d:00:64";
    bed.sh(
        SRC,
        &format!(
            "{CREATE} --name shop --label team=blue --add-host friend:10.77.0.3 --network testbed:ip={IP},mac={mac}
             podman --runtime {runtime} run -d --pod shop --name web --restart always -v data:/data -e COLOR=green localhost/redis:test \
                redis-server --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --save '' --appendonly yes --dir /data
             until redis-cli -h {IP} ping; do sleep 0.05; done
             redis-cli -h {IP} debug populate 4000 key 4000
             podman exec web sh -c 'echo new > /new; echo shared > /dev/shm/file'"
        ),
    );
    Redis { name: "web".into(), ip: IP.into(), pid: 0 }
}

/// What `podman pod inspect` says, without what differs by nature (docs/engines.md).
pub fn pod_shown(bed: &Bed, host: &str) -> Value {
    let text = bed.sh(host, "podman pod inspect shop");
    let mut shown = serde_json::from_str::<Vec<Value>>(&text).unwrap().remove(0);
    let id = shown["Id"].as_str().unwrap().to_owned();
    let infra = shown["InfraContainerID"].as_str().unwrap().to_owned();
    let masked = shown.to_string().replace(&id, "POD").replace(&infra, "INFRA").replace(&id[..12], "POD");
    shown = serde_json::from_str(&masked).unwrap();
    for key in ["Created", "CreateCommand", "LockNumber"] {
        shown[key] = Value::Null;
    }
    for list in ["SharedNamespaces", "Containers"] {
        shown[list].as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    shown
}

/// What `podman inspect` says of the container in it, without what differs by nature (docs/engines.md).
pub fn member_shown(bed: &Bed, host: &str) -> Value {
    let id = |format: &str| bed.sh(host, &format!("podman pod inspect -f '{{{{{format}}}}}' shop"));
    let (pod, infra) = (id(".Id"), id(".InfraContainerID"));
    let text = bed.sh(host, "podman container inspect web");
    let text = text.replace(&pod, "POD").replace(&infra, "INFRA").replace(&infra[..12], "INFRA");
    let mut shown = serde_json::from_str::<Vec<Value>>(&text).unwrap().remove(0);
    let of_the_pod = [
        "/Config/Annotations/io.kubernetes.cri-o.SandboxID",
        "/HostConfig/Annotations/io.kubernetes.cri-o.SandboxID",
    ];
    for pointer in DIFFERS_WITH_PODMAN.into_iter().chain(of_the_pod) {
        if let Some(value) = shown.pointer_mut(pointer) {
            *value = Value::Null;
        }
    }
    shown
}

/// Nothing of the pod is left on a host, by podman's word and the kernel's.
#[track_caller]
pub fn assert_no_half(bed: &Bed, host: &str) {
    assert_nothing_left(bed, host, "podman");
    let left = "podman pod ps -q; ls -d /sys/fs/cgroup/libpod_parent/*/ /run/godwit* 2> /dev/null; pgrep -ax tail; true";
    assert_eq!(bed.sh(host, left), "", "{host}");
}

/// Its container is in the namespaces of its infra container.
#[track_caller]
pub fn assert_namespaces_are_shared(bed: &Bed, host: &str) {
    let script = "for c in web $(podman pod inspect -f '{{.InfraContainerID}}' shop); do
        p=$(podman inspect -f '{{.State.Pid}}' $c); echo $(readlink /proc/$p/ns/net /proc/$p/ns/ipc /proc/$p/ns/uts)
    done | uniq | wc -l";
    assert_eq!(bed.sh(host, script), "1", "{host}");
}

/// Moves it there and back, under load, and looks at it whole each time.
pub fn goes_there_and_back(bed: &Bed, runtime: &str) {
    let redis = make_pod(bed, runtime);
    // System V objects of the namespace that the two share
    let of_ipc = "nsenter --ipc --target $(podman inspect -f '{{.State.Pid}}' web)";
    bed.sh(SRC, &format!("{of_ipc} ipcmk -S 3; {of_ipc} ipcmk -Q"));
    let objects = format!("{of_ipc} ipcs | grep 0x | cut -d' ' -f1-2");
    let objects_before = bed.sh(SRC, &objects);
    assert_eq!(objects_before.lines().count(), 2, "{objects_before}");
    let (pod, member) = (pod_shown(bed, SRC), member_shown(bed, SRC));
    assert_eq!((&pod["State"], &pod["NumContainers"]), (&json!("Running"), &json!(2)));
    let probe = Probe::start(bed, &redis);
    let mut host = SRC;
    for _ in 0..2 {
        let summary = migrate(bed, host, POD, &[]).summary();
        assert_eq!(
            (&summary["tracker"], &summary["memory"]["restoration"], &summary["leftovers"]),
            (&"uffd".into(), &"local-lazy".into(), &json!([])),
            "{summary}"
        );
        assert_no_half(bed, host);
        host = other(host);
        assert_eq!(difference("", &pod, &pod_shown(bed, host)), [""; 0]);
        assert_eq!(difference("", &member, &member_shown(bed, host)), [""; 0]);
        assert_namespaces_are_shared(bed, host);
        assert_eq!(bed.sh(host, &objects), objects_before);
        let seen = "podman exec web sh -c 'cat /new /dev/shm/file; hostname; grep -c friend /etc/hosts'";
        assert_eq!(bed.sh(host, seen), "new\nshared\nshop\n1");
        // the pod is a pod: another container finds the first one at its own loopback, and in its memory
        bed.sh(
            host,
            "podman run --rm --pod shop localhost/redis:test sh -c 'redis-cli -h 127.0.0.1 ping && cat /dev/shm/file' | grep -q shared",
        );
    }
    probe.assert_nothing_lost();
    // it is podman's: a dead container is started again, and a pod is stopped, started and removed as a whole
    let answers =
        format!("timeout 20 sh -c 'until redis-cli -h {IP} ping | grep -q PONG; do sleep 0.1; done'");
    bed.sh(host, "kill -9 $(podman inspect -f '{{.State.Pid}}' web)");
    assert_eq!(bed.try_sh(CLIENT, &answers).code, 0, "podman did not start it again");
    bed.sh(host, "podman pod stop -t 1 shop; podman pod start shop");
    assert_eq!(bed.try_sh(CLIENT, &answers).code, 0, "podman did not start the pod again");
    bed.sh(host, "podman pod rm -f -t 0 shop; podman volume rm data");
    assert_no_half(bed, host);
}

#[test]
fn a_pod_with_crun_goes_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    goes_there_and_back(&bed, "crun");
}

#[test]
fn a_pod_with_runc_goes_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    goes_there_and_back(&bed, "runc");
}

#[test]
fn what_is_in_a_group_is_refused_with_its_names_and_nothing_is_touched() {
    let Some(bed) = bed() else { return };
    make_pod(&bed, "crun");
    let pid = bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web");
    let idle = "localhost/redis:test tail -f /dev/null";
    let odd_pod = |share: &str| {
        format!("{CREATE} --name odd {share} --network none; podman run -d --pod odd --name inside {idle}")
    };
    for (spoil, container, words) in [
        ("true".to_owned(), "podman:web", &["in a pod", "podman:pod/shop"][..]),
        (
            format!("podman run -d --pod shop --name second {idle}; podman kill second"),
            POD,
            &["do not run", "`second` (exited)"],
        ),
        (
            odd_pod("--share net,pid"),
            "podman:pod/odd",
            &["namespaces that CRIU cannot restore one into: pid"],
        ),
        (odd_pod("--no-hosts"), "podman:pod/odd", &["settings that are not carried yet", "NoManageHosts"]),
        (odd_pod("--volume /srv:/srv"), "podman:pod/odd", &["settings that are not carried yet", "volumes"]),
    ] {
        bed.sh(SRC, &spoil);
        let said = migrate(&bed, SRC, container, &[]);
        bed.sh(SRC, "podman rm -f -t 0 -i second; podman pod rm -f -t 0 -i odd; true");
        assert_eq!(said.code, 13, "{spoil}: {}{}", said.out, said.err);
        for words in words {
            assert!(said.out.contains(words), "{spoil}: `{words}` is not in {}{}", said.out, said.err);
        }
    }
    for (spoil, words) in [
        (format!("{CREATE} --name shop --network none"), "has a pod `shop` there already"),
        (format!("podman create --name web {idle}"), "has a container `web` there already"),
    ] {
        bed.sh(DST, &spoil);
        let said = migrate(&bed, SRC, POD, &[]);
        bed.sh(DST, "podman rm -f -t 0 -i web; podman pod rm -f -t 0 -i shop");
        assert_eq!(said.code, 12, "{spoil}: {}{}", said.out, said.err);
        assert!(said.out.contains(words), "{spoil}: {}{}", said.out, said.err);
    }
    assert_eq!(bed.sh(SRC, "podman inspect -f '{{.State.Pid}}' web"), pid);
    assert_no_half(&bed, DST);
}

/// A replica beside the redis: it follows that over the loopback of the pod, and both write to one volume.
pub fn add_replica(bed: &Bed, runtime: &str) {
    bed.sh(
        SRC,
        &format!(
            "podman --runtime {runtime} run -d --pod shop --name zweit -v data:/both -v own:/own localhost/redis:test \
                redis-server --bind 0.0.0.0 --port 6380 --protected-mode no --save '' --dir /own --replicaof 127.0.0.1 6379 \
                --repl-backlog-size 1mb --repl-timeout 600
             until redis-cli -h {IP} -p 6380 info replication | grep -q master_link_status:up; do sleep 0.05; done
             podman exec zweit sh -c 'echo two > /both/two; echo two > /own/file; echo two > /two'"
        ),
    );
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

/// Moves a pod of two there and back under load. The connection that its containers have with each other lives.
fn two_go_there_and_back(bed: &Bed, runtime: &str) {
    let redis = make_pod(bed, runtime);
    add_replica(bed, runtime);
    let before = replication(bed, SRC);
    assert!(before.contains("sync_full:1") && before.contains("master_link_status:up"), "{before}");
    let pod = pod_shown(bed, SRC);
    assert_eq!(pod["NumContainers"], json!(3));
    let probe = Probe::start(bed, &redis);
    let mut host = SRC;
    for _ in 0..2 {
        let said = migrate(bed, host, POD, &[]);
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
            (&json!("together"), &json!([POD, "podman:pod/shop/zweit"]))
        );
        eprintln!("{runtime}: none stood still for longer than {} us", together["downtime_us"]);
        assert_no_half(bed, host);
        host = other(host);
        assert_eq!(difference("", &pod, &pod_shown(bed, host)), [""; 0]);
        assert_namespaces_are_shared(bed, host);
        let seen = "podman exec zweit sh -c 'cat /both/two /own/file /two /dev/shm/file; hostname'";
        assert_eq!(bed.sh(host, seen), "two\ntwo\ntwo\nshared\nshop");
        // the same memory, not a copy of it
        bed.sh(host, "podman exec zweit sh -c 'echo again > /dev/shm/again'");
        assert_eq!(bed.sh(host, "podman exec web cat /dev/shm/again"), "again");
        assert_eq!(replication(bed, host), before);
    }
    probe.assert_nothing_lost();
    let caught_up = format!(
        "timeout 20 sh -c 'until [ $(redis-cli -h {IP} dbsize) = $(redis-cli -h {IP} -p 6380 dbsize) ]; do sleep 0.1; done'"
    );
    bed.sh(host, &caught_up);
    bed.sh(host, "podman pod rm -f -t 0 shop; podman volume rm data own");
    assert_no_half(bed, host);
}

#[test]
fn two_containers_of_a_pod_go_together_with_crun() {
    let Some(bed) = bed() else { return };
    two_go_there_and_back(&bed, "crun");
}

#[test]
fn two_containers_of_a_pod_go_together_with_runc() {
    let Some(bed) = bed() else { return };
    two_go_there_and_back(&bed, "runc");
}

/// The pod is stopped with its container, so that nothing answers for the one that has moved.
#[test]
fn a_pod_is_kept_at_the_source_stopped() {
    let Some(bed) = bed() else { return };
    let redis = make_pod(&bed, "crun");
    let said = migrate(&bed, SRC, POD, &["--keep-source"]);
    assert_eq!(said.summary()["leftovers"], json!([]), "{}", said.out);
    assert_eq!(
        bed.sh(SRC, "podman pod inspect -f '{{.State}}' shop; podman inspect -f '{{.State.Status}}' web"),
        "Exited\nexited"
    );
    assert_eq!(bed.sh(SRC, "pgrep -x 'redis-server|conmon|tail'; ls /run/netns; true"), "");
    assert_eq!(redis.ask(&bed, "ping"), "PONG");
    bed.sh(SRC, "podman pod rm -f -t 0 shop");
    assert_no_half(&bed, SRC);
}

/// Killed in each phase from the freeze on, then `godwit resume`: one side runs the pod, and the other has nothing of it.
#[test]
fn after_a_kill_resume_leaves_one_whole_pod() {
    let Some(bed) = bed() else { return };
    let points = [
        ("pre-copy", SRC),
        ("stop-and-copy", SRC),
        ("restore", SRC),
        ("commit", SRC),
        ("pre-copy", DST),
        ("restore", DST),
        ("commit", DST),
    ];
    for (phase, side) in points {
        a_kill_leaves_one_whole_pod(&bed, phase, side, false);
    }
}

/// The same with two containers, of which none runs where the other does not.
#[test]
fn after_a_kill_resume_leaves_one_whole_pod_of_two() {
    let Some(bed) = bed() else { return };
    for (phase, side) in
        [("pre-copy", SRC), ("stop-and-copy", SRC), ("commit", SRC), ("restore", DST), ("commit", DST)]
    {
        a_kill_leaves_one_whole_pod(&bed, phase, side, true);
    }
}

fn a_kill_leaves_one_whole_pod(bed: &Bed, phase: &str, side: &str, of_two: bool) {
    bed.wipe();
    let redis = make_pod(bed, "crun");
    let members: &[&str] = if of_two { &["web", "zweit"] } else { &["web"] };
    if of_two {
        add_replica(bed, "crun");
    }
    let probe = Probe::start(bed, &redis);
    let flags = [POD, "ssh://dst", "--tcp-established", "--retries", "0", "--max-downtime", "60s"];
    let mut running = Background::migrate(bed, &[], &flags);
    running.wait_for_phase(phase);
    match side {
        SRC => running.signal("KILL"),
        _ => drop(bed.try_sh(DST, "for p in $(pgrep -f '[g]odwit receive'); do kill -9 $p; done")),
    }
    let said = running.finish();
    let mut context = format!("{phase} on {side}: {}{}", said.out, said.err);
    for host in [SRC, DST] {
        let resumed = godwit_with(bed, host, &[], &["resume", "--timeout", "30s"]);
        context += &format!("\n{host}: {} {}{}", resumed.code, resumed.out, resumed.err);
    }
    eprintln!("{context}");
    bed.end_what_is_kept();
    let running: Vec<(&str, &str)> = [SRC, DST]
        .into_iter()
        .flat_map(|host| members.iter().map(move |member| (host, *member)))
        .filter(|(host, member)| {
            bed.holds(
                host,
                &format!("[ \"$(podman inspect -f '{{{{.State.Status}}}}' {member})\" = running ]"),
            )
        })
        .collect();
    let runner = running.first().map_or("nowhere", |(host, _)| host);
    let whole: Vec<(&str, &str)> = members.iter().map(|member| (runner, *member)).collect();
    assert_eq!(running, whole, "{context}");
    assert_eq!(bed.sh(runner, "podman pod inspect -f '{{.State}}' shop"), "Running", "{context}");
    let lost = probe.lost();
    assert_eq!(lost, None, "{context}");
    assert_no_half(bed, other(runner));
}
