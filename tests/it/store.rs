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
