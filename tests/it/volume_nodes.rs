//! `godwit volume` on several nodes: directories of godwit's on this host, each with a neighbour that answers at a socket. They
//! share the place of the volume, which is what each of them says that it owns.

use crate::cli::{Ran, run_in};
use crate::volume::{Follower, assert_equal, object};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Scene {
    dir: tempfile::TempDir,
    volume: PathBuf,
    one: Node,
    other: Node,
}

/// A directory of godwit's.
struct Node {
    root: PathBuf,
    socket: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let volume = dir.path().join("data");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("file"), "first ".repeat(50_000)).unwrap();
        let [one, other] = ["one", "other"].map(|name| Node {
            root: dir.path().join(name),
            socket: dir.path().join(format!("{name}.sock")),
        });
        Self { dir, volume, one, other }
    }

    fn path(&self) -> &str {
        self.volume.to_str().unwrap()
    }

    fn write(&self, text: &str) {
        std::fs::write(self.volume.join("file"), text).unwrap();
    }
}

impl Node {
    fn godwit(&self, words: &[&str]) -> Ran {
        run_in(&self.root, &[&["volume"], words].concat())
    }

    fn json(&self, words: &[&str]) -> Value {
        object(&run_in(&self.root, &[&["--json", "volume"], words].concat()))
    }

    #[track_caller]
    fn snapshot(&self, volume: &str) -> String {
        let ran = self.godwit(&["snapshot", volume]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.out.trim().to_owned()
    }

    fn ids(&self) -> Vec<String> {
        let listed = self.json(&["list"]);
        let all = listed["snapshots"].as_array().unwrap().iter();
        all.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    }

    /// What it knows of the volume.
    fn known(&self, volume: &str) -> Value {
        self.json(&["owner", volume])["volumes"][0].clone()
    }

    fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Answers others, until it is dropped.
    fn serve(&self, etc: Option<&Path>) -> Follower {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.args([
            "--quiet",
            "--root",
            self.root.to_str().unwrap(),
            "node",
            "serve",
            "--listen",
            &self.url(),
        ]);
        command.env("GODWIT_ETC", etc.unwrap_or(Path::new("/nonexistent"))).env_remove("GODWIT_STORE_QUOTA");
        let _ = std::fs::remove_file(&self.socket);
        let server = Follower(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

#[test]
fn a_snapshot_is_brought_to_another_node_which_then_knows_whose_the_volume_is() {
    let scene = Scene::new();
    let (one, other, path) = (&scene.one, &scene.other, scene.path());
    let _server = other.serve(None);
    let url = other.url();
    let first = one.snapshot(path);
    let line = one.json(&["replicate", path, "--to", &url]);
    assert_eq!((&line["id"], &line["sent_bytes"]), (&first.as_str().into(), &line["needed_bytes"]), "{line}");
    let ran = one.godwit(&["replicate", path, "--to", &url]);
    assert!(ran.code == 0 && ran.err.contains("is there already"), "{}", ran.err);
    std::fs::write(scene.volume.join("more"), "a little").unwrap();
    let second = one.snapshot(path);
    let line = one.json(&["replicate", path, "--to", &url, "--all"]);
    assert_eq!((&line["id"], &line["sent_bytes"]), (&second.as_str().into(), &8.into()), "{line}");
    assert_eq!(other.ids(), [&*first, &*second]);
    let listed = other.json(&["list"]);
    assert_eq!(listed["snapshots"][1]["parent"], first, "{listed}");
    let known = other.known(path);
    let host = nix::sys::utsname::uname().unwrap().nodename().to_str().unwrap().to_owned();
    assert_eq!((&known["owner"], &known["generation"]), (&host.into(), &1.into()), "{known}");
    assert_eq!((&one.known(path)["is_here"], &known["diverged"]), (&true.into(), &Value::Null));
    let copy = scene.dir.path().join("copy");
    assert_eq!(other.godwit(&["restore", &second, copy.to_str().unwrap()]).code, 0);
    assert_equal(&scene.volume, &copy);
    let ran = one.godwit(&["replicate", "/nothing", "--to", &url]);
    assert_eq!(ran.code, 10, "{}", ran.err);
    let ran = one.godwit(&["replicate", path, "--to", &url, "--keep-last", "1"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert_eq!(one.godwit(&["replicate", path, "--to", &url, "--from", &url]).code, 2);
}

#[test]
fn histories_that_have_diverged_are_found_from_either_side_and_a_rollback_says_which_goes_on() {
    let scene = Scene::new();
    let (one, other, path) = (&scene.one, &scene.other, scene.path());
    let _servers = (one.serve(None), other.serve(None));
    let first = one.snapshot(path);
    assert_eq!(one.godwit(&["replicate", path, "--to", &other.url()]).code, 0);
    // the first node is given up: the other one takes the volume
    let ran = other.godwit(&["rollback", &first]);
    assert!(ran.code == 11 && ran.err.contains("belongs to") && ran.err.contains("--take"), "{}", ran.err);
    let taken = other.json(&["owner", path, "--take"]);
    assert_eq!(
        (&taken["volumes"][0]["is_here"], &taken["volumes"][0]["generation"]),
        (&true.into(), &2.into())
    );
    scene.write("theirs");
    let theirs = other.snapshot(path);
    // and comes back, and has been written to
    scene.write("ours");
    let ours = one.snapshot(path);
    let refusals = [
        one.godwit(&["replicate", path, "--from", &other.url()]),
        one.godwit(&["replicate", path, "--to", &other.url()]),
        other.godwit(&["replicate", path, "--from", &one.url()]),
    ];
    for ran in refusals {
        assert_eq!(ran.code, 11, "{}", ran.err);
        for said in [format!("since {first}"), ours.clone(), theirs.clone(), "--diverged".into()] {
            assert!(ran.err.contains(&said), "{said}: {}", ran.err);
        }
    }
    assert_eq!(one.ids(), [&*first, &*ours]);
    let ran = one.godwit(&["replicate", path, "--from", &other.url(), "--diverged"]);
    assert!(ran.code == 0 && ran.err.contains("have diverged"), "{}", ran.err);
    // the later generation is the last, whatever the clocks say
    assert_eq!(one.ids(), [&*first, &*ours, &*theirs]);
    let known = one.known(path);
    assert_eq!((&known["is_here"], &known["generation"]), (&false.into(), &2.into()), "{known}");
    assert_eq!(known["diverged"]["since"], first, "{known}");
    let ran = one.godwit(&["list", path]);
    assert!(ran.err.contains("have diverged") && ran.err.contains("belongs to"), "{}", ran.err);
    let ran = one.godwit(&["snapshot", path]);
    assert!(ran.code == 0 && ran.err.contains("the copy that stayed here"), "{}", ran.err);
    assert_eq!(one.godwit(&["forget", ran.out.trim()]).code, 0);
    // what the other one made goes on, here, and what was here is kept
    let ran = one.godwit(&["rollback", &theirs]);
    assert!(ran.code == 11 && ran.err.contains("belongs to"), "{}", ran.err);
    let back = one.json(&["rollback", &theirs, "--take"]);
    assert!(back["stash"].is_string(), "{back}");
    assert_eq!(std::fs::read_to_string(scene.volume.join("file")).unwrap(), "theirs");
    let known = one.known(path);
    assert_eq!((&known["is_here"], &known["generation"]), (&true.into(), &3.into()), "{known}");
    assert_eq!(known["diverged"], Value::Null, "{known}");
    scene.write("after both");
    let last = one.snapshot(path);
    let ran = one.godwit(&["replicate", path, "--to", &other.url(), "--all"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(other.ids().last(), Some(&last));
    let known = other.known(path);
    assert_eq!(
        (&known["is_here"], &known["generation"], &known["diverged"]),
        (&false.into(), &3.into(), &Value::Null)
    );
}

#[test]
fn whoever_is_killed_or_left_alone_in_the_midst_has_brought_what_need_not_come_again() {
    let scene = Scene::new();
    let (one, other, path) = (&scene.one, &scene.other, scene.path());
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()
    };
    let bulk: Vec<u8> = std::iter::repeat_with(&mut next).flatten().take(48 << 20).collect();
    std::fs::write(scene.volume.join("bulk"), bulk).unwrap();
    let id = one.snapshot(path);
    let chunks = || {
        let shards = std::fs::read_dir(other.root.join("store/chunks")).into_iter().flatten().flatten();
        shards.map(|shard| std::fs::read_dir(shard.path()).unwrap().count()).sum::<usize>()
    };
    let mut server = other.serve(None);
    let bring = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.args([
            "--root",
            one.root.to_str().unwrap(),
            "volume",
            "replicate",
            path,
            "--to",
            &other.url(),
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // until more has come than there was before, or all has
    let await_more = |before: usize, child: &mut std::process::Child| {
        while chunks() <= before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let mut child = bring();
    await_more(0, &mut child);
    let _ = child.kill();
    child.wait().unwrap();
    assert!(chunks() > 0);
    let there = chunks();
    let mut child = bring();
    await_more(there, &mut child);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    // it may have been quicker than the kill
    if !ended.status.success() {
        assert!(ended.status.code() == Some(1) && said.contains("once more brings the rest"), "{said}");
        assert_eq!(other.ids(), [""; 0], "nothing is named before it is whole");
    }
    let _server = other.serve(None);
    let ran = run_in(&one.root, &["--json", "volume", "replicate", path, "--to", &other.url()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    if !ended.status.success() {
        let line = object(&ran);
        assert!(line["sent_bytes"].as_u64() < line["needed_bytes"].as_u64(), "{line}");
    }
    assert_eq!(run_in(&other.root, &["store", "check"]).code, 0);
    let copy = scene.dir.path().join("copy");
    assert_eq!(other.godwit(&["restore", &id, copy.to_str().unwrap()]).code, 0);
    assert_equal(&scene.volume, &copy);
}

#[test]
fn a_policy_lets_keep_or_read_each_by_itself() {
    let scene = Scene::new();
    let (one, other, path) = (&scene.one, &scene.other, scene.path());
    let etc = scene.dir.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    one.snapshot(path);
    let policy = |right: &str| {
        let text = format!("[[allow]]\nrule = \"near\"\npeers = [\"unix:\"]\n{right} = true\n");
        std::fs::write(etc.join("policy.toml"), text).unwrap();
        other.serve(Some(&etc))
    };
    {
        let _server = policy("store");
        let ran = one.godwit(&["replicate", path, "--to", &other.url()]);
        assert!(ran.code == 12 && ran.err.contains("add `keep = true`"), "{}: {}", ran.code, ran.err);
        assert!(!other.root.join("store").exists(), "nothing was made");
    }
    let _server = policy("keep");
    let ran = one.godwit(&["replicate", path, "--to", &other.url()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let third = Node { root: scene.dir.path().join("third"), socket: scene.dir.path().join("third.sock") };
    let ran = third.godwit(&["replicate", path, "--from", &other.url()]);
    assert_eq!(ran.code, 10, "it shows nothing: {}", ran.err);
}

#[test]
fn what_is_followed_is_at_the_other_node_soon_also_when_that_was_away() {
    let scene = Scene::new();
    let (one, other, path) = (&scene.one, &scene.other, scene.path());
    let mut follower = Command::new(env!("CARGO_BIN_EXE_godwit"));
    follower.args(["--root", one.root.to_str().unwrap(), "volume", "follow", path, "--interval", "1s"]);
    follower.args(["--to", &other.url()]);
    let piped = follower.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut follower = Follower(piped.spawn().unwrap());
    let mut ids = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    let mut said = BufReader::new(follower.0.stderr.take().unwrap()).lines();
    let first = ids.next().unwrap().unwrap();
    let mut await_word = |word: &str| assert!(said.any(|line| line.unwrap().contains(word)), "{word}");
    // nobody is there yet
    await_word("warning: not all of it is at");
    let _server = other.serve(None);
    await_word(&format!("{first} is at"));
    assert_eq!(other.ids(), [&*first]);
    scene.write("second");
    let second = ids.next().unwrap().unwrap();
    await_word(&format!("{second} is at"));
    assert_eq!(other.ids(), [&*first, &*second]);
    // of a copy that stayed nothing is kept, until the volume is back
    let taken = other.json(&["owner", path, "--take"]);
    assert_eq!(taken["volumes"][0]["generation"], 2);
    let theirs = other.snapshot(path);
    assert_eq!(other.godwit(&["replicate", path, "--to", &one.url()]).code, 1, "nobody answers there");
    let _here = one.serve(None);
    assert_eq!(other.godwit(&["replicate", path, "--to", &one.url()]).code, 0);
    scene.write("astray");
    await_word("nothing is kept of it here");
    assert_eq!(one.ids(), [&*first, &*second, &*theirs]);
    assert_eq!(one.json(&["owner", path, "--take"])["volumes"][0]["generation"], 3);
    scene.write("third");
    await_word("is this node's again");
    let third = ids.next().unwrap().unwrap();
    assert_eq!(one.ids().last(), Some(&third));
}
