//! Content that does not come from the source: a neighbour has an earlier state of the volumes, or stops in the midst of it.

use crate::bed::{Bed, CLIENT, DST, SRC, bed};
use crate::container::{IDLE, Redis, add_bind, assert_runs_only_on, make_bundle, run_bundle};
use crate::etcd::Etcd;
use crate::godwit::{Background, godwit};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// MiB of each volume.
const SIZE: u64 = 16;
/// The neighbour's store, away from what a host keeps of its own.
const ROOT: &str = "GODWIT_ROOT=/srv/neighbour";
const MIB: u64 = 1 << 20;

/// A container with a volume that it may write to and one that it may not.
fn make_container(bed: &Bed) {
    bed.sh(SRC, &format!(
        "mkdir -p /srv/coop-rw/sub /srv/coop-ro
         head -c {bytes} /dev/urandom > /srv/coop-rw/sub/data
         head -c {bytes} /dev/urandom > /srv/coop-ro/data; ln /srv/coop-ro/data /srv/coop-ro/name; echo text > /srv/coop-ro/text",
        bytes = SIZE * MIB
    ));
    make_bundle(bed, "coop", IDLE, |config| {
        add_bind(config, "/srv/coop-rw", "/rw", "rw");
        add_bind(config, "/srv/coop-ro", "/ro", "ro");
    });
    run_bundle(bed, "coop");
}

/// The neighbour learns the volumes and the root directory as they are now.
fn teach(bed: &Bed) {
    std::fs::create_dir_all(bed.path(CLIENT, "/srv/copies")).unwrap();
    for (number, tree) in ["coop-rw", "coop-ro", "coop/rootfs"].iter().enumerate() {
        let copy = format!("/srv/copies/{number}");
        let (from, to) = (bed.path(SRC, &format!("/srv/{tree}")), bed.path(CLIENT, &copy));
        let copied = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(copied.unwrap().success());
        bed.sh(CLIENT, &format!("env {ROOT} godwit store add {copy} --pin snapshot/{number}"));
    }
    bed.sh(CLIENT, "rm -r /srv/copies");
}

/// The neighbour gets a checkpoint of a container of the source, which runs on.
fn teach_checkpoint(bed: &Bed, container: &str) {
    let checkpoint =
        ["checkpoint", container, "--to", "/srv/coop-checkpoint", "--leave-running", "--tcp-established"];
    let said = godwit(bed, &checkpoint);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    std::fs::create_dir_all(bed.path(CLIENT, "/srv/copies")).unwrap();
    let (from, to) = (bed.path(SRC, "/srv/coop-checkpoint"), bed.path(CLIENT, "/srv/copies"));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    bed.sh(CLIENT, &format!("env {ROOT} godwit store add /srv/copies/coop-checkpoint --pin checkpoint/coop"));
    bed.sh(SRC, "rm -r /srv/coop-checkpoint");
}

/// A twentieth of the writable volume becomes something else.
fn change(bed: &Bed) {
    let blocks = SIZE * MIB / 4096 / 20;
    bed.sh(SRC, &format!(
        "dd if=/dev/urandom of=/srv/coop-rw/sub/data bs=4096 count={blocks} seek=777 conv=notrunc status=none"
    ));
}

/// Somebody who is reached, and never says a word.
fn mute(bed: &Bed) -> Background<'_> {
    Background::start(bed, CLIENT, &["socat", "-u", "TCP-LISTEN:7711,fork,reuseaddr", "OPEN:/dev/null"])
}

fn serve<'a>(bed: &'a Bed) -> Background<'a> {
    serve_with(bed, &[])
}

fn serve_with<'a>(bed: &'a Bed, more: &[&str]) -> Background<'a> {
    let neighbour = ["env", ROOT, "godwit", "node", "serve", "--listen", "tcp://0.0.0.0:7711", "--insecure"];
    let node = Background::start(bed, CLIENT, &[&neighbour, more].concat());
    bed.sh(DST, "timeout 20 sh -c 'until godwit node list tcp://client:7711 --insecure; do sleep 0.1; done'");
    node
}

/// What receives where the client is a neighbour.
const RECEIVE: &str = "godwit receive --stdio --insecure --neighbours tcp://client:7711";

/// Moves it; the volumes are equal then.
fn migrate(bed: &Bed, flags: &[&str]) -> Value {
    migrate_to(bed, RECEIVE, flags)
}

fn migrate_to(bed: &Bed, receive: &str, flags: &[&str]) -> Value {
    let words =
        ["--json", "migrate", "runc:coop", "ssh://dst", "--max-downtime", "60s", "--remote-command", receive];
    let summary = godwit(bed, &[&words, flags].concat()).summary();
    assert_runs_only_on(bed, DST, "coop");
    for volume in ["coop-rw", "coop-ro"] {
        let judge = "rsync -aHAX --checksum --dry-run --delete --itemize-changes";
        assert_eq!(bed.sh(SRC, &format!("{judge} /srv/{volume}/ dst:/srv/{volume}/")), "", "{volume}");
    }
    summary
}

#[test]
fn what_a_neighbour_has_does_not_come_from_the_source() {
    let Some(bed) = bed() else { return };
    make_container(&bed);
    teach(&bed);
    change(&bed);
    let node = serve(&bed);
    let summary = migrate(&bed, &[]);
    let report = &summary["cooperation"];
    let gave = report["neighbours"][0]["bytes"].as_u64().unwrap();
    assert_eq!(report["neighbours"][0]["failed"], Value::Null, "{report}");
    // chunks that hold a change are whole chunks
    assert!(gave > 2 * SIZE * MIB * 85 / 100, "{report}");
    let from_source = summary["wire_bytes"].as_u64().unwrap();
    assert!(from_source < SIZE * MIB / 4, "{from_source} bytes came from the source: {report}");
    node.signal("TERM");
    node.finish();
    end(&bed);
}

#[test]
fn a_neighbour_that_stops_or_has_nothing_costs_no_more_than_time() {
    let Some(bed) = bed() else { return };
    make_container(&bed);
    bed.sh(CLIENT, &format!("mkdir -p /srv/empty; env {ROOT} godwit store add /srv/empty"));
    let mute = mute(&bed);
    let summary = migrate(&bed, &[]);
    let report = &summary["cooperation"];
    assert!(report["neighbours"][0]["failed"].as_str().unwrap().contains("silent"), "{report}");
    assert_eq!(report["neighbours"][0]["bytes"], 0);
    assert!(summary["wire_bytes"].as_u64().unwrap() > 2 * SIZE * MIB);
    mute.signal("TERM");
    mute.finish();

    // back, and there once more, now that it answers: it has nothing
    let back = ["godwit", "--json", "migrate", "runc:coop", "ssh://src", "--max-downtime", "60s"];
    let said = bed.run(DST, &back);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    bed.sh(DST, "rm -rf /srv/coop-rw /srv/coop-ro");
    let node = serve(&bed);
    let summary = migrate(&bed, &[]);
    let report = &summary["cooperation"];
    assert_eq!(
        (&report["neighbours"][0]["failed"], &report["neighbours"][0]["bytes"]),
        (&Value::Null, &0.into())
    );
    node.signal("TERM");
    node.finish();
    end(&bed);
}

#[test]
fn a_catalog_knows_who_may_be_asked_and_without_it_the_move_goes_on() {
    let Some(bed) = bed() else { return };
    let Some(mut etcd) = Etcd::start(&bed) else { return };
    let receive = &*format!("godwit receive --stdio --insecure --catalog {}", Etcd::PLACE);
    make_container(&bed);
    teach(&bed);
    bed.sh(CLIENT, &format!(
        "mkdir /srv/data; echo text > /srv/data/file; env {ROOT} godwit volume snapshot /srv/data; rm -r /srv/data"
    ));
    let node = serve_with(&bed, &["--catalog", Etcd::PLACE]);
    let ask = |words: &str| {
        bed.try_sh(DST, &format!("godwit --json node {words} --catalog {} --insecure", Etcd::PLACE))
    };
    let listed = |words: &str| ask(words).out.contains("tcp://client:7711");
    let begun = Instant::now();
    while !(listed("list") && listed("find /srv/data")) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", ask("list").err);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ask("find /srv/other").code, 10);
    let summary = migrate_to(&bed, receive, &[]);
    let report = &summary["cooperation"];
    assert_eq!(report["neighbours"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["neighbours"][0]["neighbour"], "tcp://client:7711", "{report}");
    assert!(report["neighbours"][0]["bytes"].as_u64().unwrap() > 2 * SIZE * MIB * 95 / 100, "{report}");

    // back, and there once more without etcd: the report says so, and the source gives all of it
    etcd.kill();
    let back = ["godwit", "--json", "migrate", "runc:coop", "ssh://src", "--max-downtime", "60s"];
    assert_eq!(bed.run(DST, &back).code, 0);
    bed.sh(DST, "rm -rf /srv/coop-rw /srv/coop-ro");
    let summary = migrate_to(&bed, receive, &[]);
    let report = &summary["cooperation"];
    let why = report["neighbours"][0]["failed"].as_str().unwrap();
    assert!(why.contains("no etcd answers"), "{report}");
    assert!(summary["wire_bytes"].as_u64().unwrap() > 2 * SIZE * MIB);
    assert_eq!(ask("list").code, 13, "{}", ask("list").err);

    // the node is there when etcd is; when it leaves, it is gone
    etcd.restart();
    let begun = Instant::now();
    while !listed("list") {
        assert!(begun.elapsed() < Duration::from_secs(40), "{}", ask("list").err);
        std::thread::sleep(Duration::from_millis(100));
    }
    node.signal("TERM");
    node.finish();
    assert!(!listed("list"));
    end(&bed);
}

#[test]
fn memory_begins_with_an_earlier_checkpoint() {
    let Some(bed) = bed() else { return };
    crate::workload::push(&bed);
    let size = 48;
    let command = format!("/godwit-workload dirty --dir /data/w --size {size} --rate 200");
    bed.sh(SRC, &format!("testbed-container create coop --command '{command}'"));
    bed.sh(SRC, "timeout 60 sh -c 'until [ -e /srv/coop-data/w/ready ]; do sleep 0.1; done'");
    teach_checkpoint(&bed, "runc:coop");
    let node = serve(&bed);
    let words =
        ["--json", "migrate", "runc:coop", "ssh://dst", "--max-downtime", "60s", "--remote-command", RECEIVE];
    let summary = godwit(&bed, &words).summary();
    assert_runs_only_on(&bed, DST, "coop");
    let pages = summary["cooperation"]["pages"].as_u64().unwrap();
    assert!(pages * 4096 > size * MIB * 9 / 10, "{summary}");
    let sent = summary["memory"]["pages_sent"].as_u64().unwrap();
    assert!(sent < pages / 4, "{sent} pages were sent although {pages} were there: {summary}");
    // the program compares every page with what it must hold
    let checked = bed.sh(
        DST,
        "cd /srv/coop-data/w && touch check && timeout 60 sh -c 'until [ -e result.1 ]; do sleep 0.05; done' && cat result.1",
    );
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert_eq!(checked["pass"], true, "{checked}");
    node.signal("TERM");
    node.finish();
    end(&bed);
}

/// Two of redis with the same data, of the same image; a neighbour keeps a checkpoint of the first.
const TWINS: [(&str, &str); 2] = [("first", "10.77.0.100"), ("second", "10.77.0.101")];
/// MiB of the data of each.
const TWIN: u64 = 24;

/// Moves the second one to the destination; what came of it.
fn migrate_twin(bed: &Bed, engine: &str) -> Value {
    let second = format!("{engine}:second");
    let words = ["--json", "migrate", &second, "ssh://dst", "--max-downtime", "60s", "--tcp-established"];
    let summary = godwit(bed, &[&words[..], &["--remote-command", RECEIVE]].concat()).summary();
    assert_eq!(summary["disposition"], "running_at_destination", "{summary}");
    summary
}

#[track_caller]
fn assert_begun_with_twin(summary: &Value, twin: &str) {
    let report = &summary["cooperation"];
    assert_eq!(report["earlier"], twin, "{summary}");
    let neighbour = &report["neighbours"][0];
    assert_eq!(neighbour["failed"], Value::Null, "{summary}");
    // these values are alike, addresses and tables are not
    let (pages, sent) =
        (&report["pages"].as_u64().unwrap(), &summary["memory"]["pages_sent"].as_u64().unwrap());
    assert!(pages * 4096 > TWIN * MIB * 9 / 10, "{summary}");
    assert!(sent * 4096 < TWIN * MIB / 2, "{summary}");
    eprintln!("gathered {} bytes, {pages} pages at hand, {sent} pages sent", neighbour["bytes"]);
}

#[test]
fn memory_begins_with_a_checkpoint_of_another_container_of_the_same_image_where_the_policy_allows_it() {
    let Some(bed) = bed() else { return };
    let [_, second] = TWINS.map(|(name, ip)| {
        let redis = Redis::create_on(&bed, SRC, name, ip, TWIN as u32);
        let path = bed.path(SRC, &format!("/srv/{name}/config.json"));
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["annotations"]["godwit.image"] = "redis:test".into();
        std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
        redis
    });
    let digest = second.digest(&bed);
    teach_checkpoint(&bed, "runc:first");
    let node = serve(&bed);
    // whoever may send the second one alone does not learn what the first one has
    let policy = "/etc/godwit/policy.toml";
    bed.write(DST, policy, "[[allow]]\nrule = \"second\"\ncontainers = [\"runc:second\"]\n");
    let summary = migrate_twin(&bed, "runc");
    bed.sh(DST, &format!("rm {policy}"));
    let report = &summary["cooperation"];
    assert_eq!((&report["earlier"], &report["pages"]), (&Value::Null, &0.into()), "{summary}");
    let without = summary["memory"]["pages_sent"].as_u64().unwrap();
    assert!(without * 4096 > TWIN * MIB, "{summary}");
    let back = [
        "godwit",
        "--json",
        "migrate",
        "runc:second",
        "ssh://src",
        "--max-downtime",
        "60s",
        "--tcp-established",
    ];
    let said = bed.run(DST, &back);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    // and with a rule for both of them
    bed.write(DST, policy, "[[allow]]\nrule = \"both\"\ncontainers = [\"runc:*\"]\n");
    let summary = migrate_twin(&bed, "runc");
    bed.sh(DST, &format!("rm {policy}"));
    assert_begun_with_twin(&summary, "runc:first");
    assert_eq!(second.digest(&bed), digest);
    node.signal("TERM");
    node.finish();
    end(&bed);
}

#[test]
fn containers_of_podman_of_one_image_begin_with_each_others_memory() {
    let Some(bed) = bed() else { return };
    for host in [SRC, DST] {
        bed.sh(host, "testbed-container image");
    }
    for (name, ip) in TWINS {
        bed.sh(SRC, &format!("testbed-container create {name} {ip} --ram {TWIN} --engine podman"));
    }
    let second = Redis { name: "second".into(), ip: TWINS[1].1.into(), pid: 0 };
    let digest = second.digest(&bed);
    teach_checkpoint(&bed, "podman:first");
    let node = serve(&bed);
    let summary = migrate_twin(&bed, "podman");
    assert_begun_with_twin(&summary, "podman:first");
    assert_eq!(second.digest(&bed), digest);
    node.signal("TERM");
    node.finish();
    end(&bed);
}

#[test]
fn layers_of_the_image_that_a_neighbour_has_come_from_there() {
    let Some(bed) = bed() else { return };
    crate::engines::podman_redis(&bed, "crun");
    let (image, extra) = ("localhost/near:1", 8 * MIB);
    bed.sh(DST, &format!("podman rmi -f {image} 2> /dev/null; true"));
    bed.sh(
        SRC,
        &format!(
            "podman rm -f -t 0 -v web; podman volume rm -f data; podman create --name seed localhost/redis:test true
             head -c {extra} /dev/urandom > /root/extra; podman cp /root/extra seed:/extra; rm /root/extra
             podman commit -q seed {image}; podman rm seed
             podman run -d --name web --network none {image} tail -f /dev/null
             env {ROOT} godwit store add --image podman:{image} --pin image/near"
        ),
    );
    let unknown = bed.try_sh(SRC, "godwit store add --image podman:localhost/nobody:1");
    assert_eq!(unknown.code, 10, "{}", unknown.err);
    assert!(unknown.err.contains("the image `podman:localhost/nobody:1` cannot be had"), "{}", unknown.err);
    assert_eq!(bed.try_sh(SRC, "godwit store add --image /srv").code, 2);
    bed.sh(CLIENT, "rm -rf /srv/neighbour");
    let (from, to) = (bed.path(SRC, "/srv/neighbour"), bed.path(CLIENT, "/srv/neighbour"));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    bed.sh(SRC, "rm -r /srv/neighbour");
    let node = serve(&bed);
    let words = ["--json", "migrate", "podman:web", "ssh://dst", "--max-downtime", "60s", "--remote-command"];
    let summary = godwit(&bed, &[&words[..], &[RECEIVE]].concat()).summary();
    let report = &summary["cooperation"];
    assert_eq!(report["neighbours"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["neighbours"][0]["bytes"].as_u64().unwrap() >= extra, "{report}");
    let from_source = summary["wire_bytes"].as_u64().unwrap();
    assert!(from_source < extra / 2, "{from_source} bytes came from the source: {report}");
    let id = format!("podman image inspect -f '{{{{.Id}}}}' {image}");
    assert_eq!(bed.sh(DST, &id), bed.sh(SRC, &id));
    assert_eq!(bed.sh(DST, "podman exec web wc -c /extra"), format!("{extra} /extra"));
    node.signal("TERM");
    node.finish();
    for host in [SRC, DST] {
        bed.sh(host, &format!("podman rm -a -f -t 0; podman rmi -f {image}"));
    }
}

#[test]
fn a_neighbour_that_ssh_reaches_needs_no_listener() {
    let Some(bed) = bed() else { return };
    make_container(&bed);
    // the source is near, too; so what its store has need not wait for its container
    for volume in ["coop-rw", "coop-ro"] {
        bed.sh(SRC, &format!("godwit store add /srv/{volume} --pin snapshot/{volume}"));
    }
    let listed = bed.run(DST, &["godwit", "--json", "node", "list", "ssh://src"]);
    assert_eq!(listed.code, 0, "{}{}", listed.out, listed.err);
    let listed = listed.lines("nodes").remove(0);
    assert_eq!(listed["neighbours"][0]["host"], bed.sh(SRC, "uname -n"), "{listed}");
    let summary = migrate_to(&bed, "godwit receive --stdio --neighbours ssh://src", &[]);
    let report = &summary["cooperation"]["neighbours"][0];
    assert!(report["bytes"].as_u64().unwrap() >= 2 * SIZE * MIB, "{report}");
    assert_eq!((&report["neighbour"], &report["failed"]), (&"ssh://src".into(), &Value::Null));
}

#[test]
fn of_a_volume_that_was_replicated_the_difference_comes_from_the_source() {
    let Some(bed) = bed() else { return };
    make_container(&bed);
    let taken = bed.sh(SRC, "godwit --quiet volume snapshot /srv/coop-rw");
    let replicate = ["godwit", "--json", "volume", "replicate", "/srv/coop-rw", "--from", "ssh://src"];
    let said = bed.run(DST, &replicate);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let line = said.lines("volume_replicated").remove(0);
    assert_eq!(
        (&line["id"], &line["host"]),
        (&taken.clone().into(), &bed.sh(SRC, "uname -n").into()),
        "{line}"
    );
    assert!(line["received_bytes"].as_u64().unwrap() >= SIZE * MIB, "{line}");
    // it is there, and a later one has little that is not
    let said = bed.run(DST, &replicate);
    assert_eq!((said.code, said.lines("volume_replicated").len()), (0, 0), "{}{}", said.out, said.err);
    change(&bed);
    bed.sh(SRC, "godwit volume snapshot /srv/coop-rw");
    let said = bed.run(DST, &[&replicate[..], &["--keep-last", "1"]].concat());
    let line = said.lines("volume_replicated").remove(0);
    assert!(line["received_bytes"].as_u64().unwrap() < SIZE * MIB / 4, "{line}");
    let listed = bed.run(DST, &["godwit", "--json", "volume", "list"]).lines("volume_snapshots").remove(0);
    let ids: Vec<&Value> = listed["snapshots"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, [&line["id"]]);
    let said = bed.run(DST, &["godwit", "volume", "replicate", "/srv/nothing", "--from", "ssh://src"]);
    assert_eq!(said.code, 10, "{}", said.err);
    // a move finds it
    change(&bed);
    let summary = migrate_to(&bed, "godwit receive --stdio", &[]);
    assert!(summary["cooperation"]["own_bytes"].as_u64().unwrap() > SIZE * MIB * 85 / 100, "{summary}");
    let all = bed.sh(SRC, "du -sbc /srv/coop-rw /srv/coop-ro /srv/coop/rootfs | tail -n 1 | cut -f 1");
    let (from_source, all) = (summary["wire_bytes"].as_u64().unwrap(), all.parse::<u64>().unwrap());
    assert!(from_source < all - SIZE * MIB * 3 / 4, "{from_source} of {all} bytes came from the source");
    // whose it is went along, with all that it stems from
    let known = |host| {
        let said = bed.run(host, &["godwit", "--json", "volume", "owner", "/srv/coop-rw"]);
        said.lines("volume_owners").remove(0)["volumes"][0].clone()
    };
    let (left, arrived) = (known(SRC), known(DST));
    assert_eq!((&left["owner"], &left["generation"]), (&"ssh://dst".into(), &2.into()), "{left}");
    assert_eq!((&arrived["is_here"], &arrived["generation"]), (&true.into(), &2.into()), "{arrived}");
    assert_eq!(arrived["lineage"], left["lineage"]);
    // a snapshot there goes on from those that were made here
    bed.sh(DST, "godwit volume snapshot /srv/coop-rw");
    assert_eq!(known(DST)["diverged"], Value::Null);
    let said = bed.run(SRC, &["godwit", "volume", "replicate", "/srv/coop-rw", "--from", "ssh://dst"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(known(SRC)["diverged"], Value::Null);
    // one of the copy that stayed does not
    let said = bed.run(SRC, &["godwit", "volume", "snapshot", "/srv/coop-rw"]);
    assert!(said.code == 0 && said.err.contains("belongs to"), "{}", said.err);
    assert_ne!(known(SRC)["diverged"], Value::Null);
    let said = bed.run(SRC, &["godwit", "volume", "replicate", "/srv/coop-rw", "--to", "ssh://dst"]);
    assert!(said.code == 11 && said.err.contains("have diverged"), "{}: {}", said.code, said.err);
}

#[test]
fn ctrl_c_does_not_wait_for_a_neighbour_that_is_silent() {
    let Some(bed) = bed() else { return };
    make_container(&bed);
    let mute = mute(&bed);
    let running = Background::migrate(&bed, &[], &["runc:coop", "ssh://dst", "--remote-command", RECEIVE]);
    bed.sh(
        DST,
        "timeout 30 sh -c 'until ss -Htn state established dport = :7711 | grep -q .; do sleep 0.05; done'",
    );
    let begun = Instant::now();
    running.signal("INT");
    let said = running.finish();
    assert_eq!(said.code, 130, "{}{}", said.out, said.err);
    // whoever is silent is given up after ten seconds
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_runs_only_on(&bed, SRC, "coop");
    bed.sh(DST, "timeout 20 sh -c 'while pgrep -x godwit; do sleep 0.05; done'");
    assert!(!bed.holds(DST, "ls -d /srv/coop* | grep -q ."), "something of it is left there");
    mute.signal("TERM");
    mute.finish();
}

#[test]
fn whoever_does_not_want_it_asks_nobody() {
    let Some(bed) = bed() else { return };
    make_container(&bed);
    let summary = migrate(&bed, &["--cooperative", "never"]);
    assert_eq!(summary["cooperation"], Value::Null);
    end(&bed);
}

fn end(bed: &Bed) {
    bed.sh(CLIENT, "rm -rf /srv/neighbour /srv/copies /srv/empty");
}
