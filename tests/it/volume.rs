//! `godwit volume`: what it does to a directory, what it prints, and its exit codes.

use crate::cli::{Ran, run_in};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn object(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("no JSON: {}{}", ran.out, ran.err))
}

/// A volume, godwit's directory, and what holds both.
struct Scene {
    dir: tempfile::TempDir,
    volume: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let volume = dir.path().join("data");
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        std::fs::write(volume.join("inner/file"), "first ".repeat(50_000)).unwrap();
        std::os::unix::fs::symlink("inner/file", volume.join("link")).unwrap();
        Self { dir, volume }
    }

    fn godwit(&self, words: &[&str]) -> Ran {
        run_in(&self.dir.path().join("root"), &[&["volume"], words].concat())
    }

    fn json(&self, words: &[&str]) -> Value {
        object(&run_in(&self.dir.path().join("root"), &[&["--json", "volume"], words].concat()))
    }

    fn path(&self) -> &str {
        self.volume.to_str().unwrap()
    }

    /// Takes a snapshot; its id.
    fn snapshot(&self) -> String {
        let ran = self.godwit(&["snapshot", self.path()]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.out.trim().to_owned()
    }

    fn ids(&self) -> Vec<String> {
        let listed = self.json(&["list"]);
        listed["snapshots"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.volume.join("inner/file")).unwrap()
    }
}

/// rsync finds no difference.
#[track_caller]
pub fn assert_equal(one: &Path, other: &Path) {
    let said = Command::new("rsync")
        .args(["-aHAXnic", "--delete", "--numeric-ids"])
        .args([format!("{}/", one.display()), format!("{}/", other.display())])
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(String::from_utf8_lossy(&said.stdout), "");
}

#[test]
fn a_volume_goes_back_and_what_it_had_become_is_kept() {
    let scene = Scene::new();
    assert_eq!(scene.ids(), [""; 0]);
    let first = scene.snapshot();
    let copy = scene.dir.path().join("copy");
    assert_eq!(scene.godwit(&["restore", &first, copy.to_str().unwrap()]).code, 0);
    assert_equal(&scene.volume, &copy);

    std::fs::write(scene.volume.join("inner/file"), "second").unwrap();
    std::fs::write(scene.volume.join("new"), "new").unwrap();
    std::fs::remove_file(scene.volume.join("link")).unwrap();
    let ran = scene.godwit(&["diff", &first]);
    let mut told: Vec<&str> = ran.out.lines().collect();
    // the times of directories changed, too
    told.retain(|line| !line.starts_with("M "));
    assert_eq!((ran.code, told), (0, vec!["C /inner/file", "D /link", "A /new"]), "{}", ran.err);
    let second = scene.snapshot();
    assert_eq!(scene.json(&["diff", &second])["changes"], Value::Array(vec![]));
    assert_eq!(scene.json(&["diff", &first, &second])["changes"].as_array().map(Vec::len), Some(4));

    let back = scene.json(&["rollback", &first]);
    assert_equal(&copy, &scene.volume);
    let stash = back["stash"].as_str().unwrap().to_owned();
    assert_eq!(scene.ids(), [&*first, &*second, &*stash]);
    // what the stash has is what the second one has
    assert_eq!(scene.json(&["diff", &second, &stash])["changes"], Value::Array(vec![]));
    assert_eq!(scene.json(&["rollback", &stash])["left"], Value::Null);
    assert_eq!(scene.text(), "second");
    let left: Vec<_> =
        std::fs::read_dir(scene.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "beside volume, copy and godwit's directory: {left:?}");
    // to what it is already
    let count = scene.ids().len();
    assert_eq!(scene.json(&["rollback", &second])["stash"], Value::Null);
    assert_eq!(scene.ids().len(), count);
}

#[test]
fn a_volume_in_use_is_not_rolled_back() {
    let scene = Scene::new();
    let first = scene.snapshot();
    std::fs::write(scene.volume.join("inner/file"), "second").unwrap();
    let mut user = Command::new("cat").current_dir(&scene.volume).stdin(Stdio::piped()).spawn().unwrap();
    let ran = scene.godwit(&["rollback", &first]);
    user.kill().unwrap();
    user.wait().unwrap();
    assert_eq!(ran.code, 11, "{}", ran.err);
    assert!(
        ran.err.contains("is in use") && ran.err.contains(&format!("process {} (cat)", user.id())),
        "{}",
        ran.err
    );
    assert_eq!((scene.text().as_str(), scene.ids().len()), ("second", 1));
    assert_eq!(scene.godwit(&["rollback", &first]).code, 0);
    assert!(scene.text().starts_with("first "));
}

#[test]
fn a_policy_says_what_goes_and_a_stash_only_goes_by_name() {
    let scene = Scene::new();
    let first = scene.snapshot();
    std::fs::write(scene.volume.join("inner/file"), "second").unwrap();
    let second = scene.snapshot();
    let stash = scene.json(&["rollback", &first])["stash"].as_str().unwrap().to_owned();
    let third = scene.snapshot();
    for dry_run in [true, false] {
        let words =
            ["forget", "--volume", scene.path(), "--keep-last", "1", "--keep-monthly", "2", "--dry-run"];
        let said = scene.json(&words[..if dry_run { 8 } else { 7 }]);
        assert_eq!(said["forgotten"], serde_json::json!([first, second]));
        assert_eq!(said["kept"], serde_json::json!([{ "id": third, "reasons": ["last", "monthly"] }]));
        let left: Vec<&str> =
            if dry_run { vec![&first, &second, &stash, &third] } else { vec![&stash, &third] };
        assert_eq!(scene.ids(), left);
    }
    assert_eq!(scene.json(&["forget", &stash])["forgotten"], serde_json::json!([stash]));
    assert_eq!(scene.ids(), [&*third]);
    // what is left can be made, and the store is whole without the rest
    assert_eq!(run_in(&scene.dir.path().join("root"), &["store", "gc"]).code, 0);
    assert_eq!(run_in(&scene.dir.path().join("root"), &["store", "check"]).code, 0);
    let copy = scene.dir.path().join("copy");
    assert_eq!(
        scene.godwit(&["restore", &format!("{}@latest", scene.path()), copy.to_str().unwrap()]).code,
        0
    );
    assert_equal(&copy, &scene.volume);
}

#[test]
fn what_cannot_be_meant_is_refused_and_nothing_is_touched() {
    let scene = Scene::new();
    let path = scene.path();
    let copy = scene.dir.path().join("copy");
    for (words, code, said) in [
        (vec!["rollback", "none"], 10, "there is no snapshot `none`"),
        (vec!["diff", "none"], 10, "there is no snapshot `none`"),
        (vec!["restore", "none", copy.to_str().unwrap()], 10, "there is no snapshot `none`"),
        (vec!["snapshot", "/does/not/exist"], 10, "is no volume"),
        (vec!["snapshot", "/"], 10, "it is the whole host"),
        (vec!["snapshot", "podman:-a"], 10, "is no volume"),
        (vec!["forget", "--volume", path], 2, "belong together"),
        (vec!["forget"], 2, "required"),
        (vec!["snapshot", scene.dir.path().to_str().unwrap()], 2, "lie in each other"),
    ] {
        let ran = scene.godwit(&words);
        assert_eq!(ran.code, code, "{words:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(said), "{words:?}: {}", ran.err);
    }
    assert!(!scene.dir.path().join("root/store").exists(), "nothing was made");
    let (first, second) = (scene.snapshot(), scene.snapshot());
    let (label, _) = first.rsplit_once('@').unwrap();
    let ran = scene.godwit(&["forget", label]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("means several snapshots") && ran.err.contains(&second), "{}", ran.err);
    assert_eq!(scene.ids(), [first, second]);
}

#[test]
fn a_rollback_that_was_killed_leaves_the_one_or_the_other() {
    let scene = Scene::new();
    for number in 0..300 {
        std::fs::write(scene.volume.join(format!("file-{number}")), format!("{number} ").repeat(3000))
            .unwrap();
    }
    let first = scene.snapshot();
    std::fs::write(scene.volume.join("inner/file"), "second").unwrap();
    let second = scene.snapshot();
    let copies = [&first, &second].map(|id| {
        let copy = scene.dir.path().join(format!("copy-{}", id.rsplit_once('@').unwrap().1));
        assert_eq!(scene.godwit(&["restore", id, copy.to_str().unwrap()]).code, 0);
        copy
    });
    let root = scene.dir.path().join("root");
    for delay_ms in [5, 20, 40, 60, 80, 120, 200] {
        let target = if scene.text().starts_with("first ") { &second } else { &first };
        let mut rollback = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(["--root", root.to_str().unwrap(), "volume", "rollback", target])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        let _ = rollback.kill();
        rollback.wait().unwrap();
        assert_equal(&copies[usize::from(!scene.text().starts_with("first "))], &scene.volume);
    }
    // and the next one goes through, and takes away what was left
    let target = if scene.text().starts_with("first ") { &second } else { &first };
    let ran = scene.godwit(&["rollback", target]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!scene.dir.path().join(".data.godwit").exists());
}

/// Ended with the test, however that ends.
struct Follower(std::process::Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_volume_that_is_followed_has_a_snapshot_after_each_change_and_can_be_rolled_back() {
    let scene = Scene::new();
    let follower = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(["--root", scene.dir.path().join("root").to_str().unwrap(), "volume", "follow", scene.path()])
        .args(["--interval", "1s", "--keep-last", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut follower = Follower(follower);
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let first = next();
    // nothing is changed
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(scene.ids(), [&*first]);
    std::fs::write(scene.volume.join("inner/file"), "second").unwrap();
    let second = next();
    std::fs::write(scene.volume.join("inner/new"), "third").unwrap();
    let third = next();
    let begun = Instant::now();
    while scene.ids() != [&*second, &*third] {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", scene.ids());
    }
    // it holds nothing open, and hears of the other directory that the volume is then
    let back = scene.json(&["rollback", &second]);
    assert!(back["stash"].is_string(), "{back}");
    assert!(!scene.volume.join("inner/new").exists());
    let fourth = next();
    assert_eq!(scene.json(&["diff", &fourth])["changes"], Value::Array(vec![]));
    let pid = nix::unistd::Pid::from_raw(follower.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).unwrap();
    assert_eq!(follower.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_the_kernel_does_not_tell_of_is_followed_by_a_timer_or_not_at_all() {
    let scene = Scene::new();
    let ran = scene.godwit(&["follow", "/proc/self"]);
    assert_eq!(ran.code, 13, "{}", ran.err);
    assert!(ran.err.contains("`--every DURATION`"), "{}", ran.err);
    assert_eq!(scene.godwit(&["follow", "/nowhere", "--every", "1s"]).code, 10);
}
