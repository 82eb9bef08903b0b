//! Checkpoints by way of object storage: a real S3 server in the third place, which both hosts reach.

mod https;
mod podman;

use crate::bed::{Bed, CLIENT, DST, SRC, Said, bed};
use crate::container::{Redis, assert_runs_only_on, runc_state};
use crate::godwit::{Background, godwit_with};
use crate::sealed::{IDENTITY, RECIPIENT};
use godwit_s3_server::{KEYS, PROGRAM};
use serde_json::Value;

/// Where the server listens, in the third place.
pub const URL: &str = "http://10.77.0.3:9000";
/// Its directory of buckets.
pub const BUCKETS: &str = "/srv/buckets";

/// The server, with the empty bucket `of-tests` on a disk of so many MiB.
pub fn serve(bed: &Bed, mib: u32) -> Background<'_> {
    serve_at(bed, mib, URL, &[])
}

/// The same at a URL, with more words on its command line.
pub fn serve_at<'a>(bed: &'a Bed, mib: u32, url: &'static str, more: &[&str]) -> Background<'a> {
    let made = format!("mount -t tmpfs -o size={mib}M buckets {BUCKETS} && mkdir {BUCKETS}/of-tests");
    bed.sh(CLIENT, &format!("umount -l {BUCKETS} 2> /dev/null; mkdir -p {BUCKETS} && {made}"));
    std::fs::copy(&*PROGRAM, bed.path(CLIENT, "/srv/s3-server")).unwrap();
    let keys = KEYS.map(|(name, key)| format!("{name}={key}"));
    let (_, address) = url.split_once("://").unwrap();
    let words = ["env", &keys[0], &keys[1], "/srv/s3-server", BUCKETS, address];
    let mut server = Background::start(bed, CLIENT, &[&words[..], more].concat());
    server.wait_for("its URL", |line| line == url);
    server
}

/// Runs godwit on a host that knows the server.
pub fn godwit(bed: &Bed, host: &str, words: &[&str]) -> Said {
    let keys = KEYS.map(|(name, key)| format!("{name}={key}"));
    let url = format!("AWS_ENDPOINT_URL={URL}");
    godwit_with(bed, host, &[&keys[0], &keys[1], &url], &[&["--json"], words].concat())
}

#[track_caller]
pub fn line(said: &Said, message_type: &str) -> Value {
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    said.lines(message_type).remove(0)
}

#[track_caller]
pub fn assert_nothing_is_left(bed: &Bed) {
    for host in [SRC, DST] {
        let left = "find /var/lib/godwit/outbox /var/lib/godwit/restoring /var/lib/godwit/staging -not -name '*.lock' -type f 2> /dev/null";
        assert_eq!(bed.sh(host, &format!("{left}; true")), "", "on {host}");
    }
}

#[test]
fn a_container_goes_by_way_of_a_bucket_and_the_second_time_only_what_has_changed_is_put_there() {
    let Some(bed) = bed() else { return };
    let _server = serve(&bed, 400);
    let redis = Redis::create(&bed, "web", 24);
    let place = "s3://of-tests/containers/web";
    let put = ["checkpoint", "runc:web", "--to", place, "--tcp-established"];
    let whole = godwit(&bed, SRC, &[&put[..], &["--leave-running"]].concat());
    let first = line(&whole, "checkpoint_put");
    assert_eq!(line(&whole, "checkpoint")["running"], true);
    redis.assert_untouched(&bed);
    assert_eq!(redis.ask(&bed, "set late arrival"), "OK");
    let digest = redis.digest(&bed);
    let last = line(&godwit(&bed, SRC, &put), "checkpoint_put");
    let sent = |line: &Value| line["sent_bytes"].as_u64().unwrap();
    assert!(sent(&last) * 4 < sent(&first), "{first} {last}");
    assert!(runc_state(&bed, SRC, "web").is_none());
    assert_nothing_is_left(&bed);

    let listed = line(&godwit(&bed, DST, &["images", "ls", place]), "images");
    let images: Vec<&Value> = listed["images"].as_array().unwrap().iter().collect();
    assert_eq!(images.len(), 2, "{listed}");
    assert!(images.iter().all(|image| image["container"] == "runc:web"), "{listed}");
    line(&godwit(&bed, DST, &["images", "verify", place]), "verified");
    let other = Redis::create_on(&bed, SRC, "other", "10.77.0.101", 1);
    let said = godwit(&bed, SRC, &["checkpoint", "runc:other", "--to", place]);
    assert_eq!(said.code, 2, "another container's place: {}", said.out);
    other.assert_untouched(&bed);

    line(&godwit(&bed, DST, &["restore", place]), "restored");
    assert_eq!(redis.digest(&bed), digest);
    assert_eq!(redis.ask(&bed, "get late"), "arrival");
    assert_runs_only_on(&bed, DST, "web");
    assert_nothing_is_left(&bed);
    let named = format!("{place}#{}", first["image"].as_str().unwrap());
    let said = godwit(&bed, DST, &["restore", &named]);
    assert_ne!(said.code, 0, "it runs there already: {}", said.out);
    assert_eq!(redis.digest(&bed), digest);

    // the older one goes, and what the newer one shares with it stays; of both nothing is left two days later
    let forgotten =
        line(&godwit(&bed, DST, &["images", "forget", place, "--keep-last", "1"]), "images_forgotten");
    assert_eq!(forgotten["forgotten"], serde_json::json!([named]));
    assert_eq!(line(&godwit(&bed, DST, &["images", "verify", place]), "verified")["images"], 1);
    let newest = format!("{place}#{}", last["image"].as_str().unwrap());
    line(&godwit(&bed, DST, &["images", "forget", &newest]), "images_forgotten");
    for what in ["packs_condemned", "packs_removed"] {
        bed.sh(CLIENT, &format!("find {BUCKETS}/of-tests -type f -exec touch -d '25 hours ago' {{}} +"));
        let gone = line(&godwit(&bed, DST, &["images", "gc", place]), "place_collected");
        assert!(gone[what]["packs"].as_u64() > Some(0) && gone["packs_kept"]["packs"] == 0, "{gone}");
    }
    assert_eq!(bed.sh(CLIENT, &format!("find {BUCKETS}/of-tests -path '*/packs/*' -type f")), "");

    // what a timer does: one more, and only so many stay
    let keep = ["checkpoint", "runc:web", "--to", place, "--tcp-established", "-R", "--keep-last", "1"];
    let images = || line(&godwit(&bed, DST, &["images", "ls", place]), "images")["images"].clone();
    for _ in 0..2 {
        let newest = line(&godwit(&bed, DST, &keep), "checkpoint_put")["image"].clone();
        let there = images();
        assert_eq!(there.as_array().unwrap().len(), 1, "{there}");
        assert!(there[0]["path"].as_str().unwrap().ends_with(newest.as_str().unwrap()), "{there} {newest}");
        assert_runs_only_on(&bed, DST, "web");
    }
}

#[test]
fn a_checkpoint_that_does_not_get_there_waits_and_goes_the_next_time_encrypted() {
    let Some(bed) = bed() else { return };
    // a server whose disk is full says 500 to all that is large
    let _server = serve(&bed, 2);
    let redis = Redis::create(&bed, "vault", 12);
    assert_eq!(redis.ask(&bed, "set password correct-horse-battery-staple"), "OK");
    let digest = redis.digest(&bed);
    let place = "s3://of-tests/vault";
    let put = ["checkpoint", "runc:vault", "--to", place, "--tcp-established", "--recipient", RECIPIENT];
    let said = godwit(&bed, SRC, &put);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(said.out.contains("/var/lib/godwit/outbox/"), "{}", said.out);
    assert!(runc_state(&bed, SRC, "vault").is_none(), "it is in the checkpoint");
    bed.sh(DST, "mkdir -m 700 /srv/keys");
    bed.write(DST, "/srv/keys/key", IDENTITY);
    bed.sh(DST, "chmod 600 /srv/keys/key");
    let restore = ["restore", place, "--identity", "/srv/keys/key"];
    assert_eq!(godwit(&bed, DST, &restore).code, 10, "what is not complete is none");

    bed.sh(CLIENT, &format!("mount -o remount,size=400M {BUCKETS}"));
    assert_eq!(line(&godwit(&bed, SRC, &put), "checkpoint_put")["waited"], true);
    assert!(!bed.holds(CLIENT, &format!("grep -rqE 'battery-staple|vault' {BUCKETS}/of-tests/vault")));
    assert_nothing_is_left(&bed);
    assert_eq!(godwit(&bed, DST, &restore[..2]).code, 2, "without the key");
    line(&godwit(&bed, DST, &restore), "restored");
    assert_eq!(redis.digest(&bed), digest);
    assert_runs_only_on(&bed, DST, "vault");
    assert_nothing_is_left(&bed);
    bed.sh(CLIENT, &format!("umount -l {BUCKETS}"));
}
