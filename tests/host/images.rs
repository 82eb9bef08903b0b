//! `godwit images` on checkpoints of godwit, podman and CRIU.

use crate::bed::{Bed, SRC, Said, bed};
use crate::container::Redis;
use crate::engines::podman_redis;
use crate::godwit::godwit_with;
use crate::state::State;
use serde_json::Value;

fn images(bed: &Bed, words: &[&str]) -> Said {
    godwit_with(bed, SRC, &[], &[&["--json", "images"], words].concat())
}

#[track_caller]
fn inspect(bed: &Bed, words: &[&str]) -> Value {
    let said = images(bed, &[&["inspect"], words].concat());
    assert_eq!(said.code, 0, "{words:?}: {}{}", said.out, said.err);
    said.lines("image").remove(0)
}

/// The one redis with its data, whoever wrote the images.
#[track_caller]
fn assert_is_redis(document: &Value) {
    let process = &document["processes"][0];
    assert_eq!(
        (&process["pid"], &process["ppid"], &process["comm"]),
        (&1.into(), &0.into(), &"redis-server".into())
    );
    assert!(process["memory_bytes"].as_u64() > Some(16 << 20), "{process}");
    assert!(process["threads"].as_u64() > Some(1), "{process}");
    let has =
        |list: &str, holds: &dyn Fn(&Value) -> bool| document[list].as_array().unwrap().iter().any(holds);
    assert!(
        has("sockets", &|socket| socket["protocol"] == "tcp"
            && socket["state"] == "listen"
            && socket["local"].as_str().is_some_and(|local| local.ends_with(":6379"))),
        "{}",
        document["sockets"]
    );
    assert!(has("files", &|file| file["kind"] == "file" && file["pid"] == 1), "{}", document["files"]);
    assert!(
        has("mounts", &|mount| mount["at"] == "/proc" && mount["file_system"] == "proc"),
        "{}",
        document["mounts"]
    );
    assert_eq!(document["faults"], Value::Array(vec![]), "{document}");
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
        - document["made_unix_s"].as_u64().unwrap();
    assert!(age < 600, "{document}");
}

#[test]
fn podmans_own_archives_are_understood_in_each_compression() {
    let Some(bed) = bed() else { return };
    podman_redis(&bed, "crun");
    let id = bed.sh(SRC, "podman inspect -f '{{.Id}}' web");
    for (name, compression) in [("p.tar", "none"), ("p.tar.gz", "gzip"), ("p.tar.zst", "zstd")] {
        let export = format!(
            "podman container checkpoint -R --tcp-established --export /srv/{name} --compress {compression} web"
        );
        bed.sh(SRC, &export);
    }
    let before = State::of(&bed, SRC);
    for name in ["p.tar", "p.tar.gz", "p.tar.zst"] {
        let path = format!("/srv/{name}");
        let document = inspect(&bed, &[&path]);
        assert_is_redis(&document);
        assert_eq!(
            (&document["writer"], &document["name"], &document["id"], &document["image"]),
            (&"podman".into(), &"web".into(), &id.clone().into(), &"localhost/redis:test".into())
        );
        assert_eq!(document["versions"]["runtime"], "crun");
        let parts: Vec<&str> =
            document["parts"].as_array().unwrap().iter().filter_map(|part| part["part"].as_str()).collect();
        for part in ["checkpoint", "rootfs-diff.tar", "volumes", "config.dump"] {
            assert!(parts.contains(&part), "{parts:?}");
        }
        assert_eq!(images(&bed, &["verify", &path]).code, 0, "{name}");
        // damaged in the middle, and cut off
        for damage in [
            "printf XXXXXXXX | dd of=/srv/bad bs=1 seek=$((size / 2)) conv=notrunc status=none",
            "truncate -s $((size / 2)) /srv/bad",
        ] {
            bed.sh(SRC, &format!("cp {path} /srv/bad; size=$(stat -c %s /srv/bad); {damage}"));
            let said = images(&bed, &["verify", "/srv/bad"]);
            // there is no sum over what is not compressed: of pages, nothing says what they were
            let is_silent = name == "p.tar" && damage.starts_with("printf");
            assert_eq!(
                said.code,
                if is_silent { 0 } else { 10 },
                "{name}, {damage}: {}{}",
                said.out,
                said.err
            );
            bed.sh(SRC, "rm /srv/bad");
        }
    }
    // as people see it
    let said = godwit_with(&bed, SRC, &[], &["images", "inspect", "/srv/p.tar.gz"]);
    for words in ["podman:web", "redis-server", "0.0.0.0:6379", "rootfs-diff.tar"] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    let said = godwit_with(&bed, SRC, &[], &["images", "ls", "/srv"]);
    assert_eq!(said.out.lines().count(), 4, "{}", said.out);
    before.assert_unchanged(&bed, SRC);

    // a part that is missing, and archives that mean harm
    bed.sh(SRC, "mkdir -m 700 /srv/x; cd /srv/x; tar xf ../p.tar");
    assert_eq!(images(&bed, &["verify", "/srv/x"]).code, 0);
    assert_is_redis(&inspect(&bed, &["/srv/x"]));
    for (harm, named) in [
        ("rm checkpoint/pages-1.img", "`pages-1.img` is missing"),
        ("truncate -s -4096 checkpoint/pages-1.img", "`pages-1.img` has "),
        ("rm checkpoint/core-1.img", "`core-1.img` is missing"),
        (
            "head -c 40 checkpoint/pstree.img > t; mv t checkpoint/pstree.img; printf '\\377\\377' >> checkpoint/pstree.img",
            "`pstree.img` is broken",
        ),
        ("echo '{' > config.dump", "`config.dump` is broken"),
        ("rm spec.dump", "`spec.dump` is missing"),
    ] {
        bed.sh(
            SRC,
            &format!(
                "rm -rf /srv/x; mkdir -m 700 /srv/x; cd /srv/x; tar xf ../p.tar; {harm}; tar cf ../y.tar ."
            ),
        );
        for path in ["/srv/x", "/srv/y.tar"] {
            let said = images(&bed, &["verify", path]);
            assert_eq!(said.code, 10, "{harm}: {}{}", said.out, said.err);
            assert!(said.out.contains(named), "{harm}: {}", said.out);
            // what there is can be looked at all the same
            assert_eq!(images(&bed, &["inspect", path]).code, 0, "{harm}");
        }
    }
    bed.sh(SRC, "cd /srv/x; echo x > /srv/out; tar -P -cf /srv/y.tar config.dump ../out");
    let said = images(&bed, &["inspect", "/srv/y.tar"]);
    assert_eq!(said.code, 10, "{}{}", said.out, said.err);
    assert!(said.out.contains("a name leads out of it"), "{}", said.out);
    let said = images(&bed, &["inspect", "/etc/passwd"]);
    assert_eq!(said.code, 10, "{}{}", said.out, said.err);
}

#[test]
fn checkpoints_of_godwit_and_criu_are_understood() {
    let Some(bed) = bed() else { return };
    let redis = Redis::create(&bed, "web", 16);
    let recipient = "age1x4n0ywup96n3vvuud2szmt262v5k0d7k5v9v4kpqw369e8y8lpmqelvxnm";
    let identity = "AGE-SECRET-KEY-1S0J6KYCLKX4ELQYLN0RGHJ04XESAZDM4PUX7RLX2DHRZ9FUE9VWQ7UK2WR";
    bed.sh(SRC, &format!("umask 077; echo {identity} > /srv/key"));
    for (to, more) in [("/srv/cp", &[][..]), ("/srv/cp.age", &["--recipient", recipient])] {
        let words = ["checkpoint", "runc:web", "--to", to, "--tcp-established", "--leave-running"];
        let said = godwit_with(&bed, SRC, &[], &[&words[..], more].concat());
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    }
    redis.assert_untouched(&bed);
    let before = State::of(&bed, SRC);
    let document = inspect(&bed, &["/srv/cp"]);
    assert_is_redis(&document);
    assert_eq!(
        (&document["writer"], &document["engine"], &document["name"]),
        (&"godwit".into(), &"runc".into(), &"web".into())
    );
    let versions = &document["versions"];
    assert!(versions["criu"].as_str().is_some_and(|criu| criu.starts_with("4.")), "{versions}");
    assert_eq!(versions["kernel"], bed.sh(SRC, "uname -r"));
    assert!(versions["runtime"].as_str().is_some_and(|runtime| runtime.starts_with("runc 1.")), "{versions}");
    let key = ["--identity", "/srv/key"];
    assert_is_redis(&inspect(&bed, &[&["/srv/cp.age"], &key[..]].concat()));
    assert_eq!(images(&bed, &[&["verify", "/srv/cp.age"], &key[..]].concat()).code, 0);
    assert_eq!(images(&bed, &["inspect", "/srv/cp.age"]).code, 2, "without its key");
    let criu = inspect(&bed, &["/srv/cp/images"]);
    assert_is_redis(&criu);
    assert_eq!((&criu["writer"], &criu["name"]), (&"criu".into(), &Value::Null));
    assert_eq!(images(&bed, &["verify", "/srv/cp/images"]).code, 0);
    let said = images(&bed, &["ls", "/srv"]);
    let list = said.lines("images").remove(0);
    let paths: Vec<&str> =
        list["images"].as_array().unwrap().iter().filter_map(|one| one["path"].as_str()).collect();
    assert_eq!(paths, ["/srv/cp", "/srv/cp.age"], "{list}");
    assert_eq!(
        (&list["images"][0]["container"], &list["images"][1]["encrypted"]),
        (&"runc:web".into(), &true.into())
    );
    before.assert_unchanged(&bed, SRC);
    redis.assert_untouched(&bed);
}
