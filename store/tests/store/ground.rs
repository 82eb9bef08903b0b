//! Directories and trees to test with, and judges of whether they are equal.

use godwit_store::{Digest, Lease, PinName, Store};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// An empty directory on a disk file system.
pub fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("godwit-store-").tempdir_in("/var/tmp").unwrap()
}

pub fn open(dir: &Path) -> Store {
    Store::open(&dir.join("store"), None).unwrap()
}

/// Whether a test that needs root and these tools can run here; says why not, and fails when `GODWIT_REQUIRE=all`.
pub fn can_run(tools: &[&str]) -> bool {
    let root = nix::unistd::geteuid().is_root();
    let have = |tool: &&&str| Command::new(tool).arg("--version").output().is_ok();
    let missing: Vec<_> = tools.iter().filter(|tool| !have(tool)).collect();
    if root && missing.is_empty() {
        return true;
    }
    let why = if root { format!("missing tools: {missing:?}") } else { "needs root".to_owned() };
    assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "cannot run: {why}");
    println!("skipped: {why}");
    false
}

/// Runs a script of bash in a directory.
pub fn bash(dir: &Path, script: &str) {
    let out = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

/// What rsync would change, by checksum, links, attributes and ACLs.
pub fn rsync(from: &Path, to: &Path) -> String {
    let out = Command::new("rsync")
        .args([
            "-aHAXS",
            "--numeric-ids",
            "--checksum",
            "--modify-window=-1",
            "--delete",
            "--dry-run",
            "--itemize-changes",
        ])
        .args([from.join(""), to.join("")])
        .output()
        .unwrap();
    assert!(out.status.success(), "rsync: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Bytes that hardly repeat and cannot be compressed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_derive_key("godwit test").update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A tree of two files: one of its own, and one that trees with the same `seed / 2` have in common.
pub fn make_tree(at: &Path, seed: u64, len: usize) {
    std::fs::create_dir_all(at).unwrap();
    std::fs::write(at.join("own"), noise(seed, len)).unwrap();
    std::fs::write(at.join("shared"), noise(1000 + seed / 2, len)).unwrap();
}

pub fn add(lease: &mut Lease, tree: &Path) -> Digest {
    lease.add_tree(tree, &mut |_| {}).unwrap().manifest
}

pub fn get(store: &Store, manifest: Digest, to: &Path) -> Result<(), godwit_store::StoreError> {
    store.lease()?.materialise(manifest, to, &mut |_, _| {}).map(drop)
}

pub fn name(text: &str) -> PinName {
    text.parse().unwrap()
}

/// The files of all objects, or of the chunks or manifests alone.
pub fn objects(store: &Store, kinds: &[&str]) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for kind in kinds {
        for shard in std::fs::read_dir(store.root().join(kind)).unwrap() {
            for entry in std::fs::read_dir(shard.unwrap().path()).unwrap() {
                files.insert(entry.unwrap().path().strip_prefix(store.root()).unwrap().to_owned());
            }
        }
    }
    files
}

pub const BOTH: &[&str] = &["chunks", "manifests"];

/// Asserts that all is as it should be.
pub fn assert_whole(store: &Store, what: &str) {
    let checked = store.check(false, &mut |_, _| {}).unwrap();
    assert!(checked.is_whole() && checked.strangers.is_empty(), "{what}: {checked:?}");
}

/// Starts a test of this binary, one that is ignored otherwise, as a process of its own.
pub fn process(test: &str, store: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("GODWIT_STORE_TEST", store);
    command.stdout(std::process::Stdio::null());
    command
}

/// The directory that such a process was given; none when the test was started by hand.
pub fn given() -> Option<PathBuf> {
    std::env::var_os("GODWIT_STORE_TEST").map(PathBuf::from)
}
