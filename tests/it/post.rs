//! The post over a real S3 server on loopback, by a line that fails: what is said arrives, or both sides know in time that it does not.

use crate::cli::{Ran, finish};
use godwit_migration::Cancel;
use godwit_object_storage::error::Refusal;
use godwit_object_storage::{PlaceError, PlaceName, Post};
use godwit_s3_server::{Fault, KEYS, Line, Request, Server};
use godwit_transfer::tls::{self, Identity, TlsError};
use godwit_transfer::{Elsewhere, Listener, Transport};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PLACE: &str = "s3://of-tests/between";
const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(20);

/// A server with one bucket, and two hosts that know each other.
struct Scene {
    dir: tempfile::TempDir,
    server: Server,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir_all(dir.path().join("buckets/of-tests")).unwrap();
        let server = Server::start(&dir.path().join("buckets"));
        let scene = Self { dir, server };
        let [src, dst] = ["src", "dst"].map(|name| Identity::create(&scene.etc(name), name).unwrap());
        for (at, name, key) in [("src", "dst", dst.fingerprint), ("dst", "src", src.fingerprint)] {
            let mut peers = scene.identity(at).peers;
            peers.trust(name, key).unwrap();
            peers.save(&scene.etc(at)).unwrap();
        }
        scene
    }

    fn etc(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&self.etc(host)).unwrap()
    }

    fn line(&self, judge: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Line {
        Line::to(&self.server.address, judge)
    }

    fn post(line: &Line, place: &str) -> Post {
        let place: PlaceName = place.parse().unwrap();
        let mut environment: std::collections::BTreeMap<String, String> =
            KEYS.iter().map(|(name, key)| ((*name).into(), (*key).into())).collect();
        environment.insert("AWS_ENDPOINT_URL".into(), line.url.clone());
        Post::open_in(&environment, &place, Cancel::default()).unwrap()
    }

    /// Whatever lies in the bucket.
    fn left(&self) -> Vec<PathBuf> {
        files(&self.dir.path().join("buckets/of-tests"))
    }

    /// godwit on a host.
    fn godwit(&self, host: &str, line: &Line, words: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(KEYS).env("AWS_ENDPOINT_URL", &line.url).env("GODWIT_ETC", self.etc(host));
        command.arg("--root").arg(self.dir.path().join("root")).args(words).stdin(Stdio::null());
        finish(command)
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(|entry| below(entry.unwrap().path())).collect()
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    (seed..seed + length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// What both sides heard, when each has said so much over its line; `None` where it was cut short.
fn converse(scene: &Scene, near: &Line, far: &Line, bytes: usize) -> [Option<Vec<u8>>; 2] {
    let key = scene.identity("dst").fingerprint;
    let letterbox = Scene::post(far, PLACE).listen(key).unwrap();
    let talk = move |read: &mut dyn Read, said: &mut (dyn FnMut() + Send)| {
        let mut heard = vec![0; bytes];
        let is_whole = thread::scope(|scope| {
            scope.spawn(said);
            read.read_exact(&mut heard).is_ok()
        });
        is_whole.then_some(heard)
    };
    thread::scope(|scope| {
        let calling = scope.spawn(move || {
            let post = Scene::post(near, PLACE);
            let exchange = post.call(key).unwrap();
            let (mut read, mut write) = split(&exchange);
            let all = noise(1, bytes);
            talk(&mut read, &mut || drop(write.write_all(&all)))
        });
        let (carrier, from) = letterbox.accept(SOON).unwrap();
        assert_eq!(from, PLACE);
        let (mut read, mut write) = split(&carrier);
        let all = noise(2, bytes);
        let far = talk(&mut read, &mut || drop(write.write_all(&all)));
        drop((read, write, carrier));
        [calling.join().unwrap(), far]
    })
}

/// The socket, to be read and to be written.
fn split(socket: &impl std::os::fd::AsFd) -> (std::fs::File, std::fs::File) {
    let other = || std::fs::File::from(socket.as_fd().try_clone_to_owned().unwrap());
    (other(), other())
}

#[test]
fn requests_that_fail_now_and_then_are_made_again_and_nothing_is_left() {
    let scene = Scene::new();
    let met = Arc::new(AtomicUsize::new(0));
    // every seventh, whatever it is, and of those that carry something every fifth breaks in its middle
    let judge = move |request: &Request| match met.fetch_add(1, Ordering::SeqCst) {
        number if number % 7 == 3 => Fault::Status(500),
        number if number % 5 == 2 && request.bytes > 1000 => Fault::Cut(request.bytes / 2),
        _ => Fault::None,
    };
    let (near, far) = (scene.line(judge.clone()), scene.line(judge));
    let [back, to] = converse(&scene, &near, &far, 12 * MIB);
    assert!(back == Some(noise(2, 12 * MIB)) && to == Some(noise(1, 12 * MIB)), "something is another");
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
    assert!(near.seen().iter().any(|request| request.method == "DELETE"));
}

#[test]
fn a_slow_line_only_takes_its_time() {
    let scene = Scene::new();
    // about 3 MiB/s for each request
    let line = || scene.line(|_| Fault::Slow(Duration::from_millis(20)));
    let (near, far) = (line(), line());
    let begun = Instant::now();
    let [back, to] = converse(&scene, &near, &far, 8 * MIB);
    assert!(back == Some(noise(2, 8 * MIB)) && to == Some(noise(1, 8 * MIB)), "something is another");
    assert!(begun.elapsed() > Duration::from_millis(500), "it was not slow");
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_place_that_stays_dead_ends_both_sides_in_time() {
    let scene = Scene::new();
    let dead = Arc::new(AtomicBool::new(false));
    let judge = {
        let dead = dead.clone();
        move |_: &Request| if dead.load(Ordering::SeqCst) { Fault::Status(500) } else { Fault::None }
    };
    let (near, far) = (scene.line(judge.clone()), scene.line(judge));
    let key = scene.identity("dst").fingerprint;
    let letterbox = Scene::post(&far, PLACE).listen(key).unwrap();
    let post = Scene::post(&near, PLACE);
    let calling = thread::spawn(move || {
        let exchange = post.call(key).unwrap();
        (post, exchange)
    });
    let (mut answered, _) = letterbox.accept(SOON).unwrap();
    let (_post, mut called) = calling.join().unwrap();
    called.write_all(b"x").unwrap();
    answered.read_exact(&mut [0; 1]).unwrap();
    dead.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let _ = called.write_all(b"y");
    for (who, end) in [("who called", &mut called as &mut dyn tls::Carrier), ("who answered", &mut *answered)]
    {
        assert_eq!(end.read(&mut [0; 1]).unwrap(), 0, "{who}");
        let why = end.post_mortem().unwrap();
        assert!(why.contains(PLACE) && why.contains("500"), "{who}: {why}");
    }
    assert!(begun.elapsed() < Duration::from_secs(35), "{:?}", begun.elapsed());
}

#[test]
fn hosts_prove_who_they_are_over_it_and_a_stranger_is_turned_away() {
    let scene = Scene::new();
    let line = scene.line(|_| Fault::None);
    let (src, dst) = (scene.identity("src"), scene.identity("dst"));
    let key = dst.fingerprint;
    let letterbox = Scene::post(&line, PLACE).listen(key).unwrap();
    let listener = Listener::Elsewhere(Box::new(letterbox));
    let post = Scene::post(&line, PLACE);
    let call = |identity: Identity| {
        let exchange = post.call(key)?;
        let stream = tls::call(exchange, "tls://dst via a bucket", "dst", &identity);
        Ok::<_, PlaceError>(stream)
    };
    thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let mut stream = call(src).unwrap().unwrap();
            stream.send(b"hello", SOON).unwrap();
            let mut back = [0; 8];
            let length = stream.receive(&mut back, SOON).unwrap();
            back[..length].to_vec()
        });
        let (mut stream, peer) = listener.accept(SOON).unwrap().answer(|| Ok(dst)).unwrap();
        assert_eq!((peer.name.as_str(), peer.shown), ("src", format!("src ({PLACE})")));
        let mut heard = [0; 8];
        assert_eq!(stream.receive(&mut heard, SOON).unwrap(), 5);
        stream.send(b"you", SOON).unwrap();
        assert_eq!(calling.join().unwrap(), b"you");
    });
    let stranger = Identity::create(&scene.etc("stranger"), "stranger").unwrap();
    thread::scope(|scope| {
        let calling = scope.spawn(|| call(stranger).unwrap().unwrap_err());
        let answered = listener.accept(SOON).unwrap().answer(|| Ok(scene.identity("dst")));
        let refused = calling.join().unwrap();
        assert!(matches!(TlsError::within(&refused), Some(TlsError::Unknown { .. })), "{refused}");
        assert!(answered.is_err());
    });
    drop((post, listener));
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_place_that_says_no_is_named_and_nothing_is_begun() {
    let scene = Scene::new();
    let key = scene.identity("dst").fingerprint;
    let may_not =
        scene.line(|request| if request.method == "PUT" { Fault::Status(403) } else { Fault::None });
    let denied = Scene::post(&may_not, PLACE).call(key).unwrap_err();
    assert!(matches!(denied, PlaceError::Object { refusal: Refusal::Denied, .. }), "{denied}");
    let line = scene.line(|_| Fault::None);
    let missing = Scene::post(&line, "s3://no-such-bucket/x").call(key).unwrap_err();
    assert!(matches!(missing, PlaceError::Object { refusal: Refusal::Missing, .. }), "{missing}");
    assert_eq!(scene.left(), Vec::<PathBuf>::new());
    // and as a user sees it
    let ran = scene.godwit("dst", &may_not, &["receive", "--via", PLACE]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("403") && ran.err.contains("AWS_ACCESS_KEY_ID"), "{}", ran.err);
    let ran = scene.godwit("dst", &line, &["receive", "--via", "s3://no-such-bucket/x"]);
    assert_eq!(ran.code, 10, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("is the bucket there?"), "{}", ran.err);
    let ran = scene.godwit("nobody", &line, &["receive", "--via", PLACE]);
    assert_eq!(ran.code, 13, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("`godwit keys new`"), "{}", ran.err);
    assert!(files(&scene.etc("nobody")).is_empty());
}

#[test]
fn what_cannot_carry_a_migration_is_refused_by_name() {
    let scene = Scene::new();
    let line = scene.line(|_| Fault::None);
    for words in [
        &["migrate", "runc:x", "tls://dst", "--via", "tls://rack3"][..],
        &["migrate", "runc:x", "tls://dst", "--via", "s3://ab"],
        &["migrate", "runc:x", "tls://dst", "--via", "file://relative"],
        &["migrate", "runc:x", "tls://dst", "--via", "s3://of-tests/x#1234"],
        &["migrate", "runc:x", "tls://dst via s3://of-tests/x"],
        &["receive", "--via", "s3://ab"],
        &["receive", "--via", PLACE, "--listen", "tls://0.0.0.0"],
        &["receive", "--via", PLACE, "--stdio"],
    ] {
        let ran = scene.godwit("src", &line, words);
        assert_eq!(ran.code, 2, "{words:?}: {}{}", ran.out, ran.err);
    }
    for destination in ["ssh://dst", "unix:///run/x", "tcp://dst:1"] {
        let ran = scene.godwit("src", &line, &["migrate", "runc:x", destination, "--via", PLACE]);
        assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
        let clear = format!("`{destination}` cannot be reached by way of `{PLACE}`: only `tls://NAME` can");
        assert!(ran.err.contains(&clear), "{}", ran.err);
    }
    assert!(line.seen().is_empty() && scene.left().is_empty());
}
