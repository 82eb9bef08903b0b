//! `godwit volume replicate` of what btrfs keeps, between two nodes of this machine: each has a file system of its own at the same place, the
//! other one's in a mount namespace.

#[path = "../../volumes/tests/btrfs/mod.rs"]
mod btrfs;

use crate::cli::{Ran, run_in};
use crate::volume::{Follower, assert_equal, object};
use btrfs::run;
use serde_json::Value;
use std::fs::{read_dir, read_to_string, write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Scene {
    dir: tempfile::TempDir,
    /// In whose mount namespace the other node is.
    other: Option<Follower>,
}

/// Bytes that nothing packs.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flat_map(|bytes| bytes.into_iter().take(4)).take(bytes).collect()
}

impl Scene {
    /// With `there` mounted at the other node, by the words of mount(8); none where it cannot be had, after saying why.
    fn new(there: &[&str]) -> Option<Self> {
        if !btrfs::is_to_be_had() {
            return None;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut scene = Self { dir, other: None };
        btrfs::mount(scene.dir.path(), "disk", 512);
        btrfs::image(&scene.at("other.image"), 160);
        run("btrfs", &["subvolume", "create", scene.path().as_str()]);
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-euc"]);
        holder.args(["cd \"$1\"; shift; mount \"$@\" disk; : > mounted; exec sleep 600", "sh"]);
        holder.arg(scene.dir.path()).args(there).stdin(Stdio::null());
        scene.other = Some(Follower(holder.spawn().unwrap()));
        await_that("the other disk", || scene.at("mounted").exists());
        Some(scene)
    }

    fn btrfs() -> Option<Self> {
        Self::new(&["-o", "loop", "other.image"])
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self) -> String {
        self.at("disk/data").display().to_string()
    }

    fn url(&self) -> String {
        format!("unix://{}", self.at("other.sock").display())
    }

    /// What is at a place of the other node's disk.
    fn there(&self, name: &str) -> PathBuf {
        let holder = self.other.as_ref().unwrap().0.id();
        let root = PathBuf::from(format!("/proc/{holder}/root"));
        root.join(self.at("disk").strip_prefix("/").unwrap()).join(name)
    }

    fn kept_there(&self) -> Vec<String> {
        let found = read_dir(self.there(".data.godwit-snapshots")).into_iter().flatten();
        let mut names: Vec<_> = found.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn godwit(&self, words: &[&str]) -> Ran {
        run_in(&self.at("one"), &[&["volume"], words].concat())
    }

    fn json(&self, words: &[&str]) -> Value {
        object(&run_in(&self.at("one"), &[&["--json", "volume"], words].concat()))
    }

    fn keep(&self) -> String {
        let ran = self.godwit(&["snapshot", &self.path(), "--native", "--note", "mine"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.out.trim().to_owned()
    }

    /// To be run at the other node.
    fn other(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.other.as_ref().unwrap().0.id().to_string()]);
        command.arg(env!("CARGO_BIN_EXE_godwit")).arg("--root").arg(self.at("other")).args(words);
        command.env("GODWIT_ETC", "/nonexistent").env_remove("GODWIT_STORE_QUOTA").stdin(Stdio::null());
        command
    }

    fn other_json(&self, words: &[&str]) -> Value {
        let ran = self.other(&[&["--json", "volume"], words].concat()).output().unwrap();
        let (out, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
        assert_eq!(ran.status.code(), Some(0), "{err}");
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {out}{err}"))
    }

    fn serve(&self, etc: &Path) -> Follower {
        let mut command = self.other(&["--quiet", "node", "serve", "--listen", &self.url()]);
        let socket = self.at("other.sock");
        let _ = std::fs::remove_file(&socket);
        let server = Follower(command.env("GODWIT_ETC", etc).stdout(Stdio::null()).spawn().unwrap());
        await_that("the node", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        server
    }

    fn serve_all(&self) -> Follower {
        self.serve(Path::new("/nonexistent"))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.other = None;
        let _ = Command::new("umount").arg("--lazy").arg(self.at("disk")).status();
    }
}

#[track_caller]
fn await_that(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_btrfs_keeps_goes_as_its_own_stream_and_then_the_difference_in_either_direction() {
    let Some(scene) = Scene::btrfs() else { return };
    let (path, url, _server) = (scene.path(), scene.url(), scene.serve_all());
    write(scene.at("disk/data/bulk"), noise(8 << 20)).unwrap();
    let first = scene.keep();
    let line = scene.json(&["replicate", &path, "--to", &url]);
    assert_eq!(
        (&line["way"], &line["upon"], &line["id"]),
        (&"btrfs".into(), &Value::Null, &first.clone().into())
    );
    assert!(line["sent_bytes"].as_u64() > Some(8 << 20), "{line}");
    write(scene.at("disk/data/more"), "a little").unwrap();
    let second = scene.keep();
    let line = scene.json(&["replicate", &path, "--to", &url, "--all"]);
    assert_eq!((&line["upon"], &line["id"]), (&first.clone().into(), &second.clone().into()), "{line}");
    assert!(line["sent_bytes"].as_u64() < Some(10_000), "{line}");
    let ran = scene.godwit(&["replicate", &path, "--to", &url]);
    assert!(ran.code == 0 && ran.err.contains("is there already"), "{}", ran.err);
    let listed = scene.other_json(&["list"]);
    let there = &listed["snapshots"][1];
    assert_eq!(
        (&there["id"], &there["kept_by"], &there["note"]),
        (&second.clone().into(), &"btrfs".into(), &"mine".into())
    );
    assert_eq!(there["parent"], first, "{listed}");
    assert_eq!(listed["volumes"][0]["is_here"], false, "{listed}");
    assert_eq!(scene.kept_there().len(), 2);
    // there it is taken over, written to, and comes back
    let at = there["kept_at"].as_str().unwrap();
    run(
        "nsenter",
        &[
            "--mount",
            "--target",
            &scene.other.as_ref().unwrap().0.id().to_string(),
            "btrfs",
            "subvolume",
            "snapshot",
            at,
            &path,
        ],
    );
    let back = scene.other(&["volume", "owner", &path, "--take"]).output().unwrap();
    assert!(back.status.success(), "{back:?}");
    write(scene.there("data/theirs"), "new").unwrap();
    let third = scene.other_json(&["snapshot", &path, "--native"])["id"].clone();
    let line = scene.json(&["replicate", &path, "--from", &url]);
    assert_eq!(
        (&line["id"], &line["way"], &line["upon"]),
        (&third, &"btrfs".into(), &second.into()),
        "{line}"
    );
    assert!(line["received_bytes"].as_u64() < Some(10_000), "{line}");
    let at = line["kept_at"].as_str().unwrap();
    assert_equal(Path::new(at), &scene.there("data"));
    let ran = scene.godwit(&["replicate", &path, "--from", &url]);
    assert!(ran.code == 0 && ran.err.contains("is here already"), "{}", ran.err);
    let ran = scene.godwit(&["rollback", third.as_str().unwrap(), "--take"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(read_to_string(scene.at("disk/data/theirs")).unwrap(), "new");
}

#[test]
fn a_stream_that_either_side_does_not_survive_leaves_nothing_that_stays() {
    let Some(scene) = Scene::btrfs() else { return };
    let (path, url) = (scene.path(), scene.url());
    write(scene.at("disk/data/bulk"), noise(24 << 20)).unwrap();
    let id = scene.keep();
    let mut server = scene.serve_all();
    let bring = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.arg("--root").arg(scene.at("one")).args(["volume", "replicate", &path, "--to", &url]);
        command
            .env("GODWIT_ETC", "/nonexistent")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let coming = scene.there(".data.godwit-snapshots/.coming");
    let is_coming = || read_dir(&coming).is_ok_and(|entries| entries.count() == 1);
    // who brings it is killed: the node clears it away
    let mut child = bring();
    await_that("the stream", is_coming);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    await_that("nothing", || scene.kept_there().is_empty());
    // the node is killed: what it has left goes with the next attempt
    let child = bring();
    await_that("the stream", is_coming);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && said.contains("once more brings the rest"), "{said}");
    assert_eq!(scene.kept_there(), [".coming"]);
    assert_eq!(scene.other_json(&["list"])["snapshots"], Value::Array(vec![]));
    let _server = scene.serve_all();
    let line = scene.json(&["replicate", &path, "--to", &url]);
    assert_eq!((&line["way"], &line["id"]), (&"btrfs".into(), &id.into()), "{line}");
    assert_eq!(scene.kept_there().len(), 1, "{:?}", scene.kept_there());
    assert_equal(&scene.at("disk/data"), &scene.there(".data.godwit-snapshots").join(&scene.kept_there()[0]));
}

#[test]
fn where_there_is_no_btrfs_it_goes_by_way_of_the_store_in_either_direction_and_why_is_said() {
    let Some(scene) = Scene::new(&["-t", "tmpfs", "none"]) else { return };
    let (path, url, server) = (scene.path(), scene.url(), scene.serve_all());
    write(scene.at("disk/data/bulk"), noise(1 << 20)).unwrap();
    let id = scene.keep();
    let line = scene.json(&["replicate", &path, "--to", &url]);
    assert_eq!((&line["way"], &line["id"]), (&"store".into(), &id.clone().into()), "{line}");
    assert!(line["why"].as_str().unwrap().contains("not on btrfs there"), "{line}");
    let ran = scene.godwit(&["replicate", &path, "--to", &url]);
    assert!(ran.code == 0 && ran.err.contains("is there already"), "{}", ran.err);
    let listed = scene.other_json(&["list"]);
    assert_eq!(
        (&listed["snapshots"][0]["id"], &listed["snapshots"][0]["kept_by"]),
        (&id.clone().into(), &Value::Null)
    );
    let copy = scene.at("copy");
    scene.other_json(&["restore", &id, copy.to_str().unwrap()]);
    assert_equal(&scene.at("disk/data"), &copy);
    // it is the same one, and need not come back
    let ran = scene.godwit(&["replicate", &path, "--from", &url]);
    assert!(ran.code == 0 && ran.err.contains("is here already"), "{}", ran.err);
    drop(server);
    // the other way round: who has btrfs is asked by who has none
    let socket = scene.at("one.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.arg("--root").arg(scene.at("one")).args(["--quiet", "node", "serve", "--listen"]);
    command
        .arg(format!("unix://{}", socket.display()))
        .env("GODWIT_ETC", "/nonexistent")
        .stdin(Stdio::null());
    let _server = Follower(command.spawn().unwrap());
    await_that("the node", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    write(scene.at("disk/data/more"), "a little").unwrap();
    let id = scene.keep();
    let line = scene.other_json(&["replicate", &path, "--from", &format!("unix://{}", socket.display())]);
    assert_eq!((&line["way"], &line["id"]), (&"store".into(), &id.into()), "{line}");
    assert_eq!(line["received_bytes"], 8, "the rest was there: {line}");
}

#[test]
fn a_disk_that_is_full_there_and_a_policy_without_keep_are_said() {
    let Some(scene) = Scene::btrfs() else { return };
    let (path, url) = (scene.path(), scene.url());
    write(scene.at("disk/data/bulk"), noise(180 << 20)).unwrap();
    let id = scene.keep();
    let etc = scene.at("etc");
    std::fs::create_dir(&etc).unwrap();
    let policy = |right: &str| {
        let text = format!("[[allow]]\nrule = \"near\"\npeers = [\"unix:\"]\n{right} = true\n");
        write(etc.join("policy.toml"), text).unwrap();
        scene.serve(&etc)
    };
    {
        let _server = policy("store");
        let ran = scene.godwit(&["replicate", &path, "--to", &url]);
        assert!(ran.code == 12 && ran.err.contains("add `keep = true`"), "{}: {}", ran.code, ran.err);
        assert!(scene.kept_there().is_empty() && !scene.at("other/store").exists(), "nothing was made");
    }
    let _server = policy("keep");
    let line = scene.json(&["replicate", &path, "--to", &url]);
    assert_eq!((&line["way"], &line["id"]), (&"store".into(), &id.into()), "{line}");
    assert!(line["why"].as_str().unwrap().contains("No space left"), "{line}");
    assert!(scene.kept_there().is_empty(), "{:?}", scene.kept_there());
    // who may only bring something is shown nothing
    let third = scene.at("third");
    let ran = run_in(&third, &["volume", "replicate", &path, "--from", &url]);
    assert_eq!(ran.code, 10, "{}", ran.err);
}
