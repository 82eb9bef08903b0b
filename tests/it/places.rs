//! Object storage: a real S3 server on loopback, and a line to it that fails. Everything is told of what is in the bucket and what
//! the line has carried.

mod forget;
mod https;
mod unfinished;

use crate::cli::{Ran, finish};
use godwit_s3_server::{Fault, KEYS, Line, Request, Server};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const BUCKET: &str = "of-tests";
const PLACE: &str = "s3://of-tests/deep/inside";

/// A key that nobody uses for anything else, and its secret half; and another one's secret half.
const RECIPIENT: &str = "age1x4n0ywup96n3vvuud2szmt262v5k0d7k5v9v4kpqw369e8y8lpmqelvxnm";
const IDENTITY: &str = "AGE-SECRET-KEY-1S0J6KYCLKX4ELQYLN0RGHJ04XESAZDM4PUX7RLX2DHRZ9FUE9VWQ7UK2WR";
const OTHER: &str = "AGE-SECRET-KEY-1JSSP6CLPSRUG6MC54PAEXR8KVFTY90QAKRJSMJH20R0A366UT6FSM5K4PG";

const MIB: usize = 1 << 20;

/// A volume, a bucket, and the server between them.
struct Scene {
    dir: tempfile::TempDir,
    volume: PathBuf,
    server: Server,
}

impl Scene {
    /// Of a volume with so many MiB that nothing compresses.
    fn new(mib: usize) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        std::fs::create_dir_all(dir.path().join("buckets").join(BUCKET)).unwrap();
        std::fs::write(volume.join("inner/noise"), noise(1, mib * MIB)).unwrap();
        std::fs::write(volume.join("words"), "read me if you can ".repeat(1000)).unwrap();
        let server = Server::start(&dir.path().join("buckets"));
        Self { dir, volume, server }
    }

    fn line(&self, judge: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Line {
        Line::to(&self.server.address, judge)
    }

    fn command(&self, root: &str, url: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(KEYS).env("AWS_ENDPOINT_URL", url).arg("--root").arg(self.dir.path().join(root));
        command.args(words).stdin(Stdio::null());
        command
    }

    /// godwit on the host `root`, whose line to the server is `line`.
    fn godwit(&self, root: &str, line: &Line, words: &[&str]) -> Ran {
        finish(self.command(root, &line.url, words))
    }

    #[track_caller]
    fn well(&self, root: &str, line: &Line, words: &[&str]) -> Ran {
        let ran = self.godwit(root, line, words);
        assert_eq!(ran.code, 0, "{words:?}: {}{}", ran.out, ran.err);
        ran
    }

    #[track_caller]
    fn snapshot(&self) {
        self.well("here", &self.line(|_| Fault::None), &["volume", "snapshot", self.name()]);
    }

    fn name(&self) -> &str {
        self.volume.to_str().unwrap()
    }

    fn put<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["--json", "volume", "replicate", self.name(), "--to", PLACE], more].concat()
    }

    fn take<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["--json", "volume", "replicate", self.name(), "--from", PLACE], more].concat()
    }

    /// On another host the volume can be made again as it is.
    #[track_caller]
    fn assert_comes_back(&self, root: &str, more: &[&str]) {
        let line = self.line(|_| Fault::None);
        self.well(root, &line, &self.take(more));
        let back = self.dir.path().join(format!("back-{root}"));
        self.well(
            root,
            &line,
            &["volume", "restore", &format!("{}@latest", self.name()), back.to_str().unwrap()],
        );
        crate::volume::assert_equal(&self.volume, &back);
    }

    /// All objects of the place, by their names in it.
    fn objects(&self) -> Vec<(String, PathBuf)> {
        let place = self.dir.path().join("buckets").join(BUCKET).join("deep/inside");
        let mut found = files(&place);
        found.sort();
        let named = |path: PathBuf| (path.strip_prefix(&place).unwrap().display().to_string(), path);
        found.into_iter().map(named).collect()
    }

    fn packs(&self) -> Vec<PathBuf> {
        self.objects()
            .into_iter()
            .filter(|(name, _)| name.starts_with("packs/"))
            .map(|(_, path)| path)
            .collect()
    }

    fn indexes(&self) -> Vec<PathBuf> {
        let is_index = |name: &str| name.starts_with("snapshots/");
        self.objects().into_iter().filter(|(name, _)| is_index(name)).map(|(_, path)| path).collect()
    }

    /// The server keeps no part of what was never completed.
    #[track_caller]
    fn assert_no_parts(&self) {
        let left: Vec<PathBuf> = files(&self.dir.path().join("buckets"))
            .into_iter()
            .filter(|path| path.file_name().unwrap().to_string_lossy().contains(".part-"))
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(|entry| below(entry.unwrap().path())).collect()
}

/// Bytes that nothing compresses, the same for the same seed (xorshift64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn object(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("no JSON: {}{}", ran.out, ran.err))
}

/// A part of a pack, or a pack that is put as a whole.
fn is_content(request: &Request) -> bool {
    request.method == "PUT" && request.target.contains("/packs/")
}

/// Bytes of packs that were sent over a line.
fn content(line: &Line) -> u64 {
    line.seen().iter().filter(|request| is_content(request)).map(|request| request.bytes).sum()
}

/// The first of some requests fails so, the others do not.
fn once(fault: Fault, which: fn(&Request) -> bool) -> impl Fn(&Request) -> Fault {
    let met = AtomicUsize::new(0);
    move |request| match which(request) && met.fetch_add(1, Ordering::SeqCst) == 0 {
        true => fault,
        false => Fault::None,
    }
}

#[test]
fn a_snapshot_goes_there_once_and_of_the_next_what_is_new() {
    let scene = Scene::new(20);
    scene.snapshot();
    let line = scene.line(|_| Fault::None);
    let put = object(&scene.well("here", &line, &scene.put(&[])));
    assert_eq!(put["message_type"], "volume_replicated");
    assert!(put["sent_bytes"].as_u64() > Some(20 * MIB as u64), "{put}");
    assert_eq!((scene.packs().len(), scene.indexes().len()), (2, 1));
    // what is there already does not travel
    let before = content(&line);
    let again = scene.well("here", &line, &scene.put(&[]));
    assert!(again.err.contains("is there already"), "{}", again.err);
    std::fs::write(scene.volume.join("new"), noise(2, MIB)).unwrap();
    scene.snapshot();
    let put = object(&scene.well("here", &line, &scene.put(&[])));
    assert!(put["sent_bytes"].as_u64() < Some(2 * MIB as u64), "{put}");
    assert!(content(&line) - before < 2 * MIB as u64);
    scene.assert_comes_back("there", &[]);
    scene.assert_no_parts();
    // and the same the other way
    let quiet = scene.line(|_| Fault::None);
    let took = scene.well("there", &quiet, &scene.take(&[]));
    assert!(took.err.contains("is here already") && took.out.is_empty(), "{}{}", took.out, took.err);
    let all = scene.well("there", &quiet, &scene.take(&["--all"]));
    assert_eq!(object(&all)["received_bytes"], 0, "{}", all.out);
    let verified = scene.well("there", &quiet, &["--json", "images", "verify", PLACE]);
    assert_eq!(object(&verified)["images"], 2);
}

#[test]
fn who_may_not_write_there_is_told_so_and_nothing_is_there() {
    let scene = Scene::new(1);
    scene.snapshot();
    let line = scene.line(|request| match &*request.method {
        "GET" => Fault::None,
        _ => Fault::Status(403),
    });
    let ran = scene.godwit("here", &line, &scene.put(&[]));
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("403") && ran.out.contains("AWS_ACCESS_KEY_ID"), "{}", ran.out);
    assert!(!ran.out.contains(KEYS[1].1) && !ran.err.contains(KEYS[1].1));
    assert!(scene.objects().is_empty());
    assert_eq!(line.seen().iter().filter(|request| request.method == "PUT").count(), 1, "a no is a no");
    // with a wrong key, said by the server itself
    let mut command = scene.command("here", &line.url, &scene.put(&[]));
    let said = command.env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap();
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stdout).contains("SignatureDoesNotMatch"));
}

#[test]
fn a_server_that_fails_once_is_asked_again_and_one_that_fails_for_ever_leaves_no_image() {
    let scene = Scene::new(20);
    scene.snapshot();
    let line = scene.line(|request| if is_content(request) { Fault::Status(500) } else { Fault::None });
    let ran = scene.godwit("here", &line, &scene.put(&[]));
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("500") && ran.out.contains("the same command again"), "{}", ran.out);
    assert!(scene.indexes().is_empty() && scene.packs().is_empty());
    scene.assert_no_parts();
    let ran = scene.godwit("there", &line, &scene.take(&[]));
    assert_eq!(ran.code, 10, "an upload that is not complete is none: {}", ran.out);
    let each: [fn(&Request) -> bool; 3] = [
        is_content,
        |request| request.method == "POST",
        |request| request.method == "PUT" && request.target.contains("/snapshots/"),
    ];
    for (seed, which) in (10..).zip(each) {
        let line = scene.line(once(Fault::Status(500), which));
        std::fs::write(scene.volume.join("more"), noise(seed, 9 * MIB)).unwrap();
        scene.snapshot();
        scene.well("here", &line, &scene.put(&[]));
        assert!(line.seen().iter().filter(|request| which(request)).count() > 1);
    }
    scene.assert_no_parts();
    let line = scene.line(once(Fault::Status(500), |request| {
        request.method == "GET" && request.target.contains("/packs/")
    }));
    scene.well("there", &line, &scene.take(&[]));
    scene.assert_comes_back("there", &[]);
}

#[test]
fn half_an_upload_is_begun_again_and_where_the_line_stays_broken_no_part_is_left() {
    let scene = Scene::new(20);
    scene.snapshot();
    let line = scene.line(|request| if is_content(request) { Fault::Cut(MIB as u64) } else { Fault::None });
    let ran = scene.godwit("here", &line, &scene.put(&[]));
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(scene.indexes().is_empty() && scene.packs().is_empty());
    scene.assert_no_parts();
    let line = scene.line(once(Fault::Cut(3 * MIB as u64), is_content));
    scene.well("here", &line, &scene.put(&[]));
    assert_eq!(
        line.seen().iter().filter(|request| is_content(request)).count(),
        4,
        "two parts, one again, one pack"
    );
    scene.assert_comes_back("there", &[]);
    scene.assert_no_parts();
}

#[test]
fn a_slow_line_only_takes_its_time() {
    let scene = Scene::new(10);
    scene.snapshot();
    let line = scene.line(|_| Fault::Slow(Duration::from_millis(10)));
    let begun = Instant::now();
    scene.well("here", &line, &scene.put(&[]));
    assert!(begun.elapsed() > Duration::from_secs(1), "it was not slow");
    scene.assert_comes_back("there", &[]);
}

/// A godwit that is killed when it is time.
fn kill_in_the_middle(scene: &Scene, more: &[&str], is_time: impl Fn() -> bool) {
    let line =
        scene.line(
            |request| if is_content(request) { Fault::Slow(Duration::from_millis(5)) } else { Fault::None },
        );
    let mut child: Child =
        scene.command("here", &line.url, &scene.put(more)).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !is_time() {
        assert!(begun.elapsed() < Duration::from_secs(50), "it does not get that far");
        assert!(child.try_wait().unwrap().is_none(), "it came to its end");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // what it has sent is still on the line, and then with the server
    while !line.is_idle() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(scene.indexes().is_empty(), "it was too late to kill it");
}

#[test]
fn killed_in_the_middle_only_the_rest_goes_the_next_time() {
    for more in [&[][..], &["--recipient", RECIPIENT]] {
        let scene = Scene::new(80);
        scene.snapshot();
        kill_in_the_middle(&scene, more, || scene.packs().len() >= 2);
        let there = scene.packs();
        let line = scene.line(|_| Fault::None);
        scene.well("here", &line, &scene.put(more));
        let bytes: u64 = there.iter().map(|path| path.metadata().unwrap().len()).sum();
        let all: u64 = scene.packs().iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(there.iter().all(|path| scene.packs().contains(path)));
        assert_eq!(content(&line), all - bytes, "what was there went once more");
        scene.assert_no_parts();
        let key = scene.dir.path().join("key");
        write_key(&key, IDENTITY);
        let identity = ["--identity", key.to_str().unwrap()];
        scene.assert_comes_back("there", if more.is_empty() { &[] } else { &identity });
    }
}

fn write_key(path: &Path, key: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, key).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn what_is_damaged_is_refused_and_nothing_of_it_is_taken() {
    let scene = Scene::new(3);
    scene.snapshot();
    let line = scene.line(|_| Fault::None);
    scene.well("here", &line, &scene.put(&[]));
    let objects = [scene.packs().remove(0), scene.indexes().remove(0)];
    for (number, path) in objects.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for (what, bytes) in
            [("a flipped bit", &flipped[..]), ("the end is missing", &whole[..whole.len() - 1])]
        {
            std::fs::write(path, bytes).unwrap();
            let ran = scene.godwit("there", &line, &scene.take(&[]));
            assert_eq!(ran.code, 10, "{what} of {number}: {}{}", ran.out, ran.err);
            assert!(ran.out.contains("damaged"), "{}", ran.out);
            let ran = scene.godwit("there", &line, &["images", "verify", PLACE]);
            assert_eq!(ran.code, 10, "{what} of {number}: {}", ran.err);
        }
        std::fs::remove_file(path).unwrap();
        let ran = scene.godwit("there", &line, &scene.take(&[]));
        assert_eq!(ran.code, 10, "{number}: {}{}", ran.out, ran.err);
        std::fs::write(path, &whole).unwrap();
    }
    let listed = scene.well("there", &line, &["volume", "list"]);
    assert!(listed.out.is_empty(), "{}", listed.out);
    scene.assert_comes_back("there", &[]);
    // the place of another version is left alone
    let mark = scene.objects().into_iter().find(|(name, _)| name == "godwit").unwrap().1;
    std::fs::write(&mark, "godwit place 2\n").unwrap();
    let ran = scene.godwit("here", &line, &scene.put(&[]));
    assert_eq!(
        (ran.code, std::fs::read_to_string(&mark).unwrap().as_str()),
        (2, "godwit place 2\n"),
        "{}",
        ran.out
    );
}

#[test]
fn what_is_encrypted_can_be_read_by_nobody_else() {
    let scene = Scene::new(3);
    scene.snapshot();
    let line = scene.line(|_| Fault::None);
    scene.well("here", &line, &scene.put(&["--recipient", RECIPIENT]));
    let name = scene.volume.file_name().unwrap().as_encoded_bytes();
    for (object, path) in scene.objects() {
        let bytes = std::fs::read(path).unwrap();
        let has = |word: &[u8]| bytes.windows(word.len()).any(|some| some == word);
        assert!(object == "godwit" || bytes.starts_with(b"age-encryption.org/v1\n"), "{object}");
        assert!(!has(b"read me") && !has(b"noise") && !has(name) && !object.contains("volume"), "{object}");
    }
    let (key, other) = (scene.dir.path().join("key"), scene.dir.path().join("other"));
    write_key(&key, IDENTITY);
    write_key(&other, OTHER);
    assert_eq!(scene.godwit("there", &line, &scene.take(&[])).code, 2);
    assert_eq!(scene.godwit("there", &line, &scene.take(&["--identity", other.to_str().unwrap()])).code, 2);
    scene.assert_comes_back("there", &["--identity", key.to_str().unwrap()]);
}

#[test]
fn a_directory_is_a_place_too_which_others_cannot_look_into() {
    let scene = Scene::new(20);
    scene.snapshot();
    let (line, place) = (scene.line(|_| Fault::None), scene.dir.path().join("mnt/place"));
    let url = format!("file://{}", place.display());
    let put = ["--json", "volume", "replicate", scene.name(), "--to", &url];
    assert!(object(&scene.well("here", &line, &put))["sent_bytes"].as_u64() > Some(20 * MIB as u64));
    assert_eq!(std::fs::metadata(&place).unwrap().mode() & 0o7777, 0o700);
    let take = ["--json", "volume", "replicate", scene.name(), "--from", &url];
    assert!(object(&scene.well("there", &line, &take))["received_bytes"].as_u64() > Some(20 * MIB as u64));
    assert!(line.seen().is_empty());
    let nowhere = ["volume", "replicate", scene.name(), "--from", "file:///var/tmp/there/is/nothing"];
    assert_eq!(scene.godwit("there", &line, &nowhere).code, 10);
    for words in [
        &["volume", "replicate", "x", "--to", "s3://ab"][..],
        &["volume", "replicate", "x"],
        &["volume", "replicate", "x", "--to", PLACE, "--from", PLACE],
        &["checkpoint", "runc:x", "--to", PLACE, "--parent", "/srv/x"],
        &["images", "inspect", PLACE],
    ] {
        assert_eq!(scene.godwit("here", &line, words).code, 2, "{words:?}");
    }
}
