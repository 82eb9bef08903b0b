use super::letter::MOST;
use super::pump::{GONE, WINDOW};
use super::*;
use crate::place::Objects;
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use proptest::prelude::*;
use std::sync::Arc;
use std::thread;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Two ends of an exchange by way of a store in memory.
struct Scene {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    session: Session,
    /// Who called.
    near: End,
    /// Who answered.
    far: End,
}

struct End {
    socket: UnixStream,
    fate: Fate,
    pump: JoinHandle<()>,
}

impl Scene {
    fn new() -> Self {
        Self::over(Arc::new(InMemory::new()))
    }

    fn over(store: Arc<dyn ObjectStore>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let directory = Directory { objects: Objects::of(store.clone()), name: "calls/x".into() };
        let session = Session::new(directory).unwrap();
        let [near, far] = [Way::To, Way::Fro].map(|out| End::begin(&runtime, &session, out));
        Self { runtime, store, session, near, far }
    }

    fn letters(&self) -> Vec<String> {
        let listed = self.runtime.block_on(self.store.list(None).try_collect::<Vec<_>>()).unwrap();
        listed.into_iter().map(|object| object.location.to_string()).collect()
    }

    /// Closes what is still open, and asserts that both ends are content and nothing is left.
    #[track_caller]
    fn end_well(self) {
        let Scene { runtime, store, near, far, .. } = self;
        for End { socket, fate, pump } in [near, far] {
            drop(socket);
            runtime.block_on(pump).unwrap();
            assert_eq!(fate.get(), None);
        }
        let left = runtime.block_on(store.list(None).try_collect::<Vec<_>>()).unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl End {
    fn begin(runtime: &Runtime, session: &Session, out: Way) -> Self {
        let (socket, inner) = UnixStream::pair().unwrap();
        inner.set_nonblocking(true).unwrap();
        let _inside = runtime.enter();
        let inner = tokio::net::UnixStream::from_std(inner).unwrap();
        let fate = Fate::default();
        let pump = runtime.spawn(carry(inner, session.clone(), out, 0, fate.clone()));
        Self { socket, fate, pump }
    }

    /// Writes pieces, with pauses, and meanwhile reads so many bytes.
    fn talk(&self, pieces: Vec<Vec<u8>>, pause: Duration, hears: usize) -> thread::JoinHandle<Vec<u8>> {
        let mut out = self.socket.try_clone().unwrap();
        let mut back = self.socket.try_clone().unwrap();
        thread::spawn(move || {
            let writing = thread::spawn(move || {
                for piece in pieces {
                    out.write_all(&piece).unwrap();
                    thread::sleep(pause);
                }
            });
            let mut heard = vec![0; hears];
            back.read_exact(&mut heard).unwrap();
            writing.join().unwrap();
            heard
        })
    }
}

/// Both say what they have to say at once.
#[track_caller]
fn converse(scene: &Scene, near: Vec<Vec<u8>>, far: Vec<Vec<u8>>, pause: Duration) {
    let (to, fro) = (near.concat(), far.concat());
    let near = scene.near.talk(near, pause, fro.len());
    let far = scene.far.talk(far, pause, to.len());
    assert!(near.join().unwrap() == fro, "not what the far side said");
    assert!(far.join().unwrap() == to, "not what the near side said");
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_pieces_all_of_it_arrives_in_order(
        near in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..12),
        far in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..12),
        pause in 0..4u64,
    ) {
        let scene = Scene::new();
        converse(&scene, near, far, Duration::from_millis(pause));
        scene.end_well();
    }
}

#[test]
fn much_goes_both_ways_at_once_through_a_place_that_takes_its_time() {
    let wait = Duration::from_millis(15);
    let config =
        ThrottleConfig { wait_get_per_call: wait, wait_put_per_call: wait, ..ThrottleConfig::default() };
    let scene = Scene::over(Arc::new(ThrottledStore::new(InMemory::new(), config)));
    let all = noise(5 * MOST + 12_345);
    let pieces: Vec<Vec<u8>> = all.chunks(777_777).map(<[u8]>::to_vec).collect();
    converse(&scene, pieces.clone(), pieces, Duration::ZERO);
    scene.end_well();
}

#[test]
fn what_was_said_before_the_end_is_heard_and_then_the_end() {
    let mut scene = Scene::new();
    let all = noise(3 << 20);
    let (mut out, said) = (scene.near.socket.try_clone().unwrap(), all.clone());
    let saying = thread::spawn(move || out.write_all(&said).unwrap());
    // half of it is read before the other side closes
    let mut heard = vec![0; 1 << 20];
    scene.far.socket.read_exact(&mut heard).unwrap();
    saying.join().unwrap();
    scene.near.socket.shutdown(Shutdown::Both).unwrap();
    scene.far.socket.read_to_end(&mut heard).unwrap();
    assert!(heard == all);
    // whoever did not know of the end yet learns of it
    let begun = Instant::now();
    while scene.far.socket.write(b"x").is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it still writes to nobody");
        thread::sleep(Duration::from_millis(10));
    }
    scene.end_well();
}

#[test]
fn a_letter_that_was_put_twice_goes_at_the_end() {
    let scene = Scene::new();
    converse(&scene, vec![b"one".to_vec()], vec![b"other".to_vec()], Duration::ZERO);
    // as a server has it whose answer was lost, and that was asked once more
    for way in ["to", "fro"] {
        let name = format!("calls/x/{}.{way}.{:016x}", scene.session.id, 0).into();
        let letter = PutPayload::from(Letter::default().encode());
        scene.runtime.block_on(scene.store.put(&name, letter)).unwrap();
    }
    scene.end_well();
}

#[test]
fn a_side_that_does_not_read_holds_up_the_other_before_the_place_is_full() {
    let mut scene = Scene::new();
    scene.near.socket.set_nonblocking(true).unwrap();
    // over and over, wherever a write was cut short
    let cycle = noise(1 << 20);
    let (mut written, mut last, mut most) = (0, Instant::now(), 0);
    while last.elapsed() < Duration::from_secs(1) {
        match scene.near.socket.write(&cycle[written % cycle.len()..]) {
            Ok(bytes) => (written, last) = (written + bytes, Instant::now()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        most = most.max(scene.letters().iter().filter(|name| name.contains(".to.")).count() as u64);
        thread::sleep(Duration::from_millis(1));
    }
    assert!((2..=WINDOW).contains(&most), "{most} letters lay there at once");
    // and nothing of it is lost
    let mut heard = vec![0; written];
    scene.far.socket.read_exact(&mut heard).unwrap();
    for (number, part) in heard.chunks(cycle.len()).enumerate() {
        assert!(part == &cycle[..part.len()], "part {number} is another");
    }
    scene.end_well();
}

#[test]
fn who_is_silent_is_there_and_who_is_dead_is_gone() {
    let mut silent = Scene::new();
    let mut dead = Scene::new();
    dead.far.pump.abort();
    let begun = Instant::now();
    let mut nothing = [0; 1];
    assert_eq!(dead.near.socket.read(&mut nothing).unwrap(), 0);
    let why = dead.near.fate.get().unwrap();
    assert!(why.contains("nothing has come"), "{why}");
    assert!((GONE / 2..GONE * 3 / 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let End { pump, .. } = dead.near;
    dead.runtime.block_on(pump).unwrap();
    let listed = dead.runtime.block_on(dead.store.list(None).try_collect::<Vec<_>>()).unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    // the others have said nothing for longer than that
    thread::sleep((GONE + Duration::from_secs(2)).saturating_sub(begun.elapsed()));
    silent.near.socket.write_all(b"still").unwrap();
    let mut heard = [0; 5];
    silent.far.socket.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still");
    silent.end_well();
}

#[test]
fn what_is_no_letter_ends_the_exchange_and_goes() {
    let too_many = Letter { acknowledged: 1 << 40, ..Letter::default() }.encode();
    for bytes in [b"something else".to_vec(), vec![0; 9 << 20], too_many] {
        let mut scene = Scene::new();
        let mut heard = [0; 1];
        scene.far.socket.write_all(b"1").unwrap();
        scene.near.socket.read_exact(&mut heard).unwrap();
        scene.far.pump.abort();
        // behind its greeting and what it has said
        let name = format!("calls/x/{}.fro.{:016x}", scene.session.id, 2).into();
        scene.runtime.block_on(scene.store.put(&name, PutPayload::from(bytes))).unwrap();
        assert_eq!(scene.near.socket.read(&mut heard).unwrap(), 0);
        assert!(scene.near.fate.get().is_some());
        scene.runtime.block_on(scene.near.pump).unwrap();
        let left = scene.runtime.block_on(scene.store.list(None).try_collect::<Vec<_>>()).unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn key(digit: &str) -> Fingerprint {
    format!("sha256:{}", digit.repeat(64)).parse().unwrap()
}

/// The names of all files below a directory.
fn files(directory: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    found
}

#[test]
fn a_call_reaches_whom_it_is_for_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let name: PlaceName = format!("file://{}/place", dir.path().display()).parse().unwrap();
    let open = || Post::open(&name, Cancel::default()).unwrap();
    let (one, other) = (open().listen(key("1")).unwrap(), open().listen(key("2")).unwrap());
    let calling = {
        let post = open();
        thread::spawn(move || {
            let mut exchange = post.call(key("2")).unwrap();
            exchange.write_all(b"hello").unwrap();
            let mut back = Vec::new();
            exchange.read_to_end(&mut back).unwrap();
            back
        })
    };
    let (mut answered, from) = other.accept(Duration::from_secs(10)).unwrap();
    assert_eq!(from, name.to_string());
    let mut heard = [0; 5];
    answered.read_exact(&mut heard).unwrap();
    answered.write_all(b"you").unwrap();
    drop(answered);
    assert_eq!(calling.join().unwrap(), b"you");
    for nobody_s in [&one, &other] {
        let error = nobody_s.accept(LOOK * 3 / 2).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
    drop((one, other));
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn a_call_that_nobody_answers_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let name: PlaceName = format!("file://{}/place", dir.path().display()).parse().unwrap();
    let cancel = Cancel::default();
    let post = Post::open(&name, cancel.clone()).unwrap();
    let stopped = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        cancel.raise();
    });
    assert!(matches!(post.call(key("1")), Err(PlaceError::Interrupted)));
    stopped.join().unwrap();
    assert_eq!(files(dir.path()), Vec::<String>::new());
    let begun = Instant::now();
    let post = Post::open(&name, Cancel::default()).unwrap();
    assert!(matches!(post.call(key("1")), Err(PlaceError::Silent(_))));
    assert!((ANSWER..ANSWER + Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn what_the_dead_have_left_goes_after_a_day_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let name: PlaceName = format!("file://{}", dir.path().display()).parse().unwrap();
    let calls = dir.path().join(format!("calls/{}", "1".repeat(64)));
    std::fs::create_dir_all(&calls).unwrap();
    let young = LEFTOVER - Duration::from_secs(60);
    let old = LEFTOVER + Duration::from_secs(60);
    let id = |digit: &str| format!("01m7ydqxqzmwddpq8wywbxhyh{digit}");
    let lie = |name: &str, age: Duration| {
        let file = std::fs::File::create(calls.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    };
    lie(&format!("{}.to.0000000000000003", id("1")), old);
    lie(&format!("{}.fro.0000000000000004", id("1")), old);
    lie(&format!("{}.fro.0000000000000004", id("2")), young);
    lie("somebody's file", old);
    drop(Post::open(&name, Cancel::default()).unwrap().listen(key("1")).unwrap());
    let mut left = files(dir.path());
    left.sort();
    assert_eq!(left, [format!("{}.fro.0000000000000004", id("2")), "somebody's file".into()]);
}
