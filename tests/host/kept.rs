//! Checkpoints that the store keeps: what a further one costs, what stays, and the way back.

use crate::bed::{Bed, SRC, Said, bed};
use crate::container::Redis;
use crate::godwit::godwit_with;
use serde_json::Value;
use std::time::Instant;

const IP: &str = "10.77.0.100";
/// MiB of the data of the redis whose memory is kept.
const SIZE: u64 = 64;

fn godwit(bed: &Bed, words: &[&str]) -> Said {
    godwit_with(bed, SRC, &[], &[&["--json"], words].concat())
}

/// Keeps a checkpoint of a container; what was said of it.
#[track_caller]
fn keep(bed: &Bed, container: &str, more: &[&str]) -> (Value, Value) {
    let words = ["checkpoint", container, "--to", "store", "--tcp-established"];
    let begun = Instant::now();
    let said = godwit(bed, &[&words[..], more].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let (kept, written) = (said.lines("checkpoint_kept").remove(0), said.lines("checkpoint").pop());
    let written = written.unwrap_or_default();
    eprintln!(
        "{:.1} s; the store needed {} of {} bytes; stood still for {} µs",
        begun.elapsed().as_secs_f64(),
        kept["written_bytes"],
        kept["file_bytes"],
        written["stopped_us"]
    );
    (kept, written)
}

/// The ids of all that are kept, the newest first.
fn kept(bed: &Bed) -> Vec<String> {
    let said = godwit(bed, &["images", "ls", "store"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let listed = said.lines("images").remove(0);
    let paths = listed["images"].as_array().unwrap().iter();
    paths.map(|image| image["path"].as_str().unwrap().strip_prefix("store:").unwrap().to_owned()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Nothing waits below godwit's directory.
#[track_caller]
fn assert_nothing_waits(bed: &Bed) {
    assert_eq!(bed.sh(SRC, "ls /var/lib/godwit/outbox | grep -v lock$ || true"), "");
    assert_eq!(bed.sh(SRC, "ls /var/lib/godwit/restoring 2> /dev/null || true"), "");
}

#[test]
fn memory_is_kept_again_for_what_has_changed_and_comes_back_as_it_was_each_time() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, "testbed-container image");
    bed.sh(SRC, &format!("testbed-container create kept {IP} --ram 0 --engine podman"));
    // what nothing makes smaller
    let fill = format!("head -c {} /dev/urandom | redis-cli -h {IP} -x set noise:$i", 1 << 20);
    bed.sh(SRC, &format!("for i in $(seq {SIZE}); do {fill}; done"));
    let redis = Redis { name: "kept".into(), ip: IP.into(), pid: 0 };
    let mut digests = Vec::new();
    let mut ids = Vec::new();
    for round in 0..3 {
        for key in 0..20 {
            assert_eq!(redis.ask(&bed, &format!("set light:{key} {round}")), "OK");
        }
        digests.push(redis.digest(&bed));
        let (told, written) = keep(&bed, "podman:kept", &["--leave-running"]);
        let (needed, all) = (told["written_bytes"].as_u64().unwrap(), told["file_bytes"].as_u64().unwrap());
        assert!(all > SIZE << 20, "{told}");
        assert_eq!(
            (&written["running"], redis.ask(&bed, "ping")),
            (&true.into(), "PONG".into()),
            "{written}"
        );
        if round == 0 {
            assert!(needed > SIZE << 20, "{told}");
        } else {
            assert!(needed < (SIZE << 20) / 8, "{needed} bytes for twenty keys: {told}");
        }
        ids.insert(0, text(&told["id"]));
        assert_eq!(kept(&bed), ids);
        assert_nothing_waits(&bed);
    }
    let oldest = format!("store:{}", ids[2]);
    assert_eq!(godwit(&bed, &["images", "verify", &oldest]).code, 0);
    let said = godwit(&bed, &["images", "inspect", "store:podman:kept@latest"]);
    let document = said.lines("image").remove(0);
    assert_eq!((&document["name"], &document["image"]), (&"kept".into(), &"localhost/redis:test".into()));
    assert!(document["image_id"].as_str().unwrap().starts_with("sha256:"), "{document}");

    // the oldest one, and then the newest
    for (image, digest) in [(&*oldest, &digests[0]), ("store:podman:kept@latest", &digests[2])] {
        bed.sh(SRC, "podman rm -f -t 0 -v kept; podman volume rm -f kept-data");
        let said = godwit(&bed, &["restore", image]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert_eq!(&redis.digest(&bed), digest, "{image}");
    }
    assert_nothing_waits(&bed);

    // a policy says first what it would do, and what was named by hand is not its
    bed.sh(SRC, &format!("godwit store get checkpoint/{} /srv/out && godwit store add /srv/out --pin checkpoint/mine && rm -r /srv/out", ids[2]));
    let forget = ["images", "forget", "--container", "podman:kept", "--keep-last", "1"];
    let said = godwit(&bed, &[&forget[..], &["--dry-run"]].concat());
    let told = said.lines("images_forgotten").remove(0);
    assert_eq!(told["forgotten"], serde_json::json!(ids[1..]), "{told}");
    assert_eq!(kept(&bed).len(), 4);
    let (told, _) = keep(&bed, "podman:kept", &["--leave-running", "--keep-last", "2"]);
    assert_eq!(told["forgotten"], serde_json::json!(ids[1..]), "{told}");
    let left = kept(&bed);
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.contains(&"mine".to_owned()) && left.contains(&ids[0]), "{left:?}");
    assert_eq!(godwit(&bed, &["images", "verify", &oldest]).code, 10);
    let said = godwit(&bed, &["images", "forget", "store:mine", &format!("store:{}", ids[0])]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(kept(&bed), [text(&told["id"])]);
    bed.sh(SRC, "podman rm -f -t 0 -v kept; podman volume rm -f kept-data; godwit store check; rm -rf /var/lib/godwit/store");
}

#[test]
fn what_the_store_has_no_room_for_waits_and_goes_there_with_the_next_try() {
    let Some(bed) = bed() else { return };
    let redis = Redis::create(&bed, "kept", 16);
    let words = ["checkpoint", "runc:kept", "--to", "store", "--tcp-established", "--leave-running"];
    for (more, refused) in [
        (&["--parent", "/srv"][..], "has no parent"),
        (&["--recipient", "age1x4n0ywup96n3vvuud2szmt262v5k0d7k5v9v4kpqw369e8y8lpmqelvxnm"], "no encrypted"),
    ] {
        let said = godwit(&bed, &[&words[..], more].concat());
        assert_eq!(said.code, 2, "{}{}", said.out, said.err);
        assert!(said.out.contains(refused), "{}", said.out);
    }
    let said = godwit(&bed, &[&words[..], &["--quota", "1MiB"]].concat());
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(said.out.contains("it is whole in `"), "{}", said.out);
    redis.assert_untouched(&bed);
    assert_eq!(kept(&bed), [""; 0]);
    let (told, written) = keep(&bed, "runc:kept", &["--leave-running"]);
    assert_eq!((&told["waited"], &written), (&true.into(), &Value::Null), "{told}");
    assert_nothing_waits(&bed);
    // and without leaving it running it is in the store, and nowhere else
    let digest = redis.digest(&bed);
    let (told, _) = keep(&bed, "runc:kept", &[]);
    assert_eq!(told["waited"], false, "{told}");
    assert_eq!(bed.sh(SRC, "runc list -q"), "");
    let said = godwit(&bed, &["restore", "store:runc:kept@latest"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(redis.digest(&bed), digest);
    bed.sh(SRC, "rm -rf /var/lib/godwit/store");
}
