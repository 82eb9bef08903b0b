//! `godwit store`: what it prints, and its exit codes.

use crate::cli::{Ran, run_in};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn object(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("no JSON: {}{}", ran.out, ran.err))
}

fn tree(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("inner")).unwrap();
    std::fs::write(tree.join("inner/file"), "content ".repeat(10_000)).unwrap();
    tree
}

/// The files of all chunks.
fn chunks(root: &Path) -> Vec<PathBuf> {
    let shards = std::fs::read_dir(root.join("store/chunks")).unwrap();
    shards
        .flat_map(|shard| {
            std::fs::read_dir(shard.unwrap().path()).unwrap().map(|entry| entry.unwrap().path())
        })
        .collect()
}

#[test]
fn there_and_back() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (root, to) = (dir.path().join("root"), dir.path().join("to"));
    let (tree, to_text) = (tree(dir.path()), to.to_str().unwrap());
    let tree = tree.to_str().unwrap();
    for command in ["check", "gc", "stats"] {
        let ran = run_in(&root, &["store", command]);
        assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{}", ran.err);
        assert!(ran.err.contains("there is no store"), "{}", ran.err);
    }
    assert!(!root.exists(), "looking makes nothing");
    let ran = run_in(&root, &["store", "add", tree, "--pin", "snapshot/web"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let manifest = ran.out.trim().to_owned();
    assert_eq!(manifest.len(), 64, "{manifest}");
    let again = object(&run_in(&root, &["--json", "store", "add", tree]));
    assert_eq!((again["manifest"].as_str(), again["written_bytes"].as_u64()), (Some(&*manifest), Some(0)));
    for from in [&*manifest, "snapshot/web"] {
        let ran = run_in(&root, &["store", "get", from, to_text]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_eq!(std::fs::read_to_string(to.join("inner/file")).unwrap(), "content ".repeat(10_000));
        std::fs::remove_dir_all(&to).unwrap();
    }
    let stats = object(&run_in(&root, &["--json", "store", "stats"]));
    assert_eq!(
        (stats["pins"][0]["pin"].as_str(), stats["unneeded_bytes"].as_u64()),
        (Some("snapshot/web"), Some(0))
    );
    assert_eq!(object(&run_in(&root, &["--json", "store", "check"]))["whole"], true);
    assert_eq!(run_in(&root, &["store", "unpin", "snapshot/web"]).code, 0);
    let would = object(&run_in(&root, &["--json", "store", "gc", "--dry-run"]));
    assert_eq!((would["dry_run"].as_bool(), would["manifests"].as_u64()), (Some(true), Some(1)));
    assert_eq!(run_in(&root, &["store", "gc"]).code, 0);
    assert!(chunks(&root).is_empty());
}

#[test]
fn each_failure_has_its_exit_code() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = dir.path().join("root");
    let tree = tree(dir.path());
    let tree = tree.to_str().unwrap();
    let nobody = "0".repeat(64);
    let to = dir.path().join("to");
    let to = to.to_str().unwrap();
    assert_eq!(run_in(&root, &["store", "get", &nobody, to]).code, 10, "no store");
    let ran = run_in(&root, &["store", "add", tree, "--quota", "100"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("quota of 100 bytes") && ran.err.contains("hint: "), "{}", ran.err);
    assert_eq!(run_in(&root, &["store", "add", tree, "--pin", "test/a"]).code, 0);
    for (code, args) in [
        (2, vec!["add", tree, "--pin", "../up"]),
        (2, vec!["add", dir.path().to_str().unwrap()]),
        (10, vec!["add", "/nowhere/at/all"]),
        (10, vec!["get", &nobody, to]),
        (10, vec!["get", "test/b", to]),
        (2, vec!["get", "b", to]),
        (2, vec!["get", "test/a", tree]),
        (10, vec!["unpin", "test/b"]),
    ] {
        let ran = run_in(&root, &[&["store"], &*args].concat());
        assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
        assert!(ran.err.contains("error: "), "{args:?}: {}", ran.err);
    }
    // damaged: named, mended by the same content, or taken away
    let chunk = chunks(&root).pop().unwrap();
    std::fs::write(&chunk, "something else").unwrap();
    let ran = run_in(&root, &["store", "check"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("the pin `test/a`") && ran.err.contains("--repair"), "{}", ran.err);
    assert_eq!(run_in(&root, &["store", "get", "test/a", to]).code, 10);
    assert!(!Path::new(to).exists());
    assert_eq!(run_in(&root, &["store", "add", tree]).code, 0);
    assert_eq!(run_in(&root, &["store", "check"]).code, 0);
    std::fs::remove_file(chunks(&root).pop().unwrap()).unwrap();
    assert_eq!(run_in(&root, &["store", "check", "--repair"]).code, 3);
    assert_eq!(run_in(&root, &["store", "check"]).code, 0);
    // another's store is left alone
    std::fs::write(root.join("store/format"), "godwit store 9\n").unwrap();
    let ran = run_in(&root, &["store", "stats"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("godwit store 9"), "{}", ran.err);
}

/// What looks like a checkpoint of a container to whoever does not restore it.
fn checkpoint(dir: &Path, container: &str, made_unix_s: u64) -> String {
    let (engine, name) = container.split_once(':').unwrap();
    let path = dir.join(format!("{name}-{made_unix_s}"));
    std::fs::create_dir_all(path.join("images")).unwrap();
    let carry = serde_json::json!({
        "tcp_established": false, "ext_unix_sk": false, "file_locks": false, "shell_job": false, "link_remap": false,
    });
    let manifest = serde_json::json!({
        "godwit_checkpoint": 1, "engine": engine, "name": name, "recipe": "{}", "network": null, "memory_bytes": 0,
        "carry": carry, "trees": [], "facts": { "host": "here", "kernel": "6.1", "criu": 40200, "cpu_flags": [] },
        "made_unix_s": made_unix_s, "image": "redis:test", "image_id": "sha256:1f",
    });
    std::fs::write(path.join("checkpoint.json"), manifest.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn checkpoints_of_the_store_are_listed_found_and_forgotten_by_a_policy() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = dir.path().join("root");
    let run = |args: &[&str]| run_in(&root, &[&["--json"], args].concat());
    assert_eq!(object(&run(&["images", "ls", "store"]))["images"], serde_json::json!([]));
    assert!(!root.exists(), "looking makes nothing");
    assert_eq!(run(&["images", "inspect", "store:web"]).code, 10);
    let hour = |hour: u64| 1_790_000_000 + hour * 3600;
    for (container, hours, name) in [
        ("runc:web", 0, "runc:web@20260921T000000.000000Z"),
        ("runc:web", 1, "runc:web@20260921T010000.000000Z"),
        ("runc:web", 2, "by-hand"),
        ("runc:db", 3, "runc:db@20260921T030000.000000Z"),
    ] {
        let path = checkpoint(dir.path(), container, hour(hours));
        let ran = run(&["store", "add", &path, "--pin", &format!("checkpoint/{name}")]);
        assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    }
    let names = || -> Vec<String> {
        let listed = object(&run(&["images", "ls", "store"]));
        let images = listed["images"].as_array().unwrap();
        images.iter().map(|image| image["path"].as_str().unwrap().to_owned()).collect()
    };
    let all = names();
    assert!(all.len() == 4 && all[0].starts_with("store:runc:db@") && all[1] == "store:by-hand", "{all:?}");
    let one = object(&run(&["images", "ls", "store:runc:web@latest"]));
    assert_eq!(one["images"][0]["path"], "store:by-hand", "{one}");
    let shown = object(&run(&["images", "inspect", "store:runc:db"]));
    assert_eq!((&shown["name"], &shown["image_id"]), (&"db".into(), &"sha256:1f".into()), "{shown}");
    for (code, args) in [
        (2, &["images", "inspect", "store:runc:web@2026"][..]),
        (2, &["images", "inspect", "store"]),
        (2, &["restore", "store"]),
        (10, &["images", "verify", "store:podman:web@latest"]),
        (10, &["images", "forget", "store:nothing"]),
        (2, &["images", "forget", "/srv/web"]),
        (2, &["images", "forget", "--container", "runc:web"]),
        (2, &["images", "forget", "store:by-hand", "--keep-last", "1"]),
        (2, &["checkpoint", "runc:web", "--to", "store:mine"]),
        (2, &["checkpoint", "runc:web", "--to", "/srv/web", "--keep-last", "1"]),
        (2, &["checkpoint", "runc:web", "--to", "store", "--parent", "/srv/web"]),
    ] {
        let ran = run(args);
        assert_eq!(ran.code, code, "{args:?}: {}{}", ran.out, ran.err);
    }
    let forget = ["images", "forget", "--container", "runc:web", "--keep-last", "1"];
    let would = object(&run(&[&forget[..], &["--dry-run"]].concat()));
    assert_eq!((&would["dry_run"], names().len()), (&true.into(), 4), "{would}");
    let gone = object(&run(&forget));
    assert_eq!(gone["forgotten"], serde_json::json!(["runc:web@20260921T000000.000000Z"]), "{gone}");
    assert_eq!(gone["kept"][0]["reasons"], serde_json::json!(["last"]), "{gone}");
    assert_eq!(
        object(&run(&["images", "forget", "store:by-hand"]))["forgotten"],
        serde_json::json!(["by-hand"])
    );
    assert_eq!(names(), ["store:runc:db@20260921T030000.000000Z", "store:runc:web@20260921T010000.000000Z"]);
}
