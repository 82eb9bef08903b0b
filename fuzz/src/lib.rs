//! Every decoder of godwit's that reads what a peer or a disk gives, as a function of any bytes. None may panic, allocate
//! what only a length in the bytes speaks of, or write outside of the directory that it was given.
//!
//! With nightly Rust and cargo-fuzz: `cargo +nightly fuzz run --features libfuzzer wire corpus/wire seeds/wire` here (the first
//! directory gets what it finds). With stable Rust: `cargo test`, which mutates the seeds for a while.
#![allow(clippy::unwrap_used)]

use godwit_criu::images;
use godwit_hooks::http::{MAX_BODY, Patient, Until};
use godwit_hooks::reports::{Word, judge};
use godwit_hooks::token::Token;
use godwit_memory::batch::Batch;
use godwit_migration::hooks::HookUrl;
use godwit_migration::{Cancel, journal};
use godwit_neighbours::question::{Answer, Question};
use godwit_neighbours::stream::StreamAnswer;
use godwit_restore::policy::{Policy, Wish};
use godwit_store::{Chunks, Digest, Kind, Manifest, ObjectId, StoreError};
use godwit_transfer::tree::{TreeDestination, TreeIndex, TreeOp};
use godwit_transfer::{Incoming, Transport, Wire};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("wire", wire),
    ("index", index),
    ("tree_ops", tree_ops),
    ("manifest", manifest),
    ("object", object),
    ("question", question),
    ("journal", journal),
    ("images", images),
    ("batch", batch),
    ("log", log),
    ("policy", policy),
    ("report", report),
];

/// What a peer sends, and then hangs up.
struct Sent {
    bytes: Vec<u8>,
    at: usize,
}

impl Transport for Sent {
    fn receive(&mut self, buffer: &mut [u8], _: Duration) -> io::Result<usize> {
        let rest = &self.bytes[self.at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }

    fn send(&mut self, bytes: &[u8], _: Duration) -> io::Result<usize> {
        Ok(bytes.len())
    }
}

/// Everything that comes over the wire: preamble, frames, messages, steps, indexes, pages.
pub fn wire(bytes: &[u8]) {
    let transport = Box::new(Sent { bytes: bytes.to_vec(), at: 0 });
    let Ok(mut wire) = Wire::open(transport, Cancel::default(), Duration::from_secs(1)) else { return };
    while let Ok(heard) = wire.hear() {
        if let Incoming::Pages(pages) = heard {
            batch(pages.as_ref());
        }
    }
}

/// A list of a tree's entries.
pub fn index(bytes: &[u8]) {
    let Ok(index) = TreeIndex::from_bytes(bytes) else { return };
    for (path, _) in index.entries() {
        assert!(index.get(path).is_some());
    }
    let _ = index.file_bytes();
    // what was understood can be said again
    assert_eq!(TreeIndex::from_bytes(&index.to_bytes().unwrap()).unwrap(), index);
}

/// Steps that change a tree, one after the other: none may reach what is beside it.
pub fn tree_ops(bytes: &[u8]) {
    let place = scratch();
    let (root, beside) = (place.path().join("tree"), place.path().join("beside"));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(&beside, "untouched").unwrap();
    std::fs::write(root.join("file"), b"what was here before").unwrap();
    std::os::unix::fs::symlink("..", root.join("up")).unwrap();
    let mut destination = TreeDestination::open(&root).unwrap();
    let mut rest = bytes;
    for _ in 0..64 {
        let Ok((step, behind)) = postcard::take_from_bytes::<TreeOp>(rest) else { break };
        rest = behind;
        // a device of the host needs no test here, and a large file no room
        if matches!(step, TreeOp::Device { .. })
            || matches!(&step, TreeOp::FileBegin { size, .. } if *size > 1 << 20)
        {
            continue;
        }
        let _ = destination.apply(step);
    }
    assert_eq!(std::fs::read(&beside).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2, "something was made beside the tree");
}

/// Chunks of which only the length is known.
struct Zeros(HashMap<Digest, u64>);

impl Chunks for Zeros {
    fn chunk(&mut self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&digest).map(|bytes| vec![0; *bytes as usize]))
    }
}

/// What a neighbour is asked, and what it answers.
pub fn question(bytes: &[u8]) {
    if let Ok(question) = Question::from_bytes(bytes) {
        assert_eq!(Question::from_bytes(&question.to_bytes()).unwrap(), question);
    }
    let _ = (Answer::checkpoints(bytes), Answer::manifest(bytes), Answer::snapshots(bytes));
    let _ = Answer::of_image(bytes);
    let _ = (
        Answer::offer(bytes),
        Answer::taken(bytes),
        Answer::kept(bytes),
        StreamAnswer::from_bytes(bytes).is_ok(),
    );
    for count in [0, 1, 8, 32] {
        let _ = Answer::which(bytes, count);
        let _ = Answer::chunks(bytes, count);
    }
}

/// A manifest of the store's.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    let _ = manifest.children();
    if let Manifest::Tree(tree) = &manifest {
        let _ = tree.file_bytes();
        // as a destination makes it, with chunks of the length that it says
        let mut chunks = Zeros(tree.needs().into_iter().take(64).collect());
        let _ = tree.unfold(&mut chunks, &mut |_| Ok(()), &mut |_, _| {});
    }
    // one encoding only, or equal trees would have several names
    assert_eq!(manifest.encode().unwrap(), bytes);
}

/// What is in a file of the store's, by whatever name.
pub fn object(bytes: &[u8]) {
    for kind in [Kind::Chunk, Kind::Manifest] {
        let id = ObjectId { kind, digest: Digest([0; 32]) };
        assert!(godwit_store::object::decode(id, bytes).is_err(), "nobody has bytes of that digest");
    }
}

/// A journal.
pub fn journal(bytes: &[u8]) {
    let place = scratch();
    let path = file(&place, "journal", bytes);
    let _ = journal::read(&path);
}

/// A policy, and what it says to somebody whom its own words may name.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(policy) = Policy::parse(text) else { return };
    let places = [PathBuf::from("/srv/web/data"), PathBuf::from("/srv/web/../../etc")];
    for peer in ["rack1", "ssh:10.0.0.1", "tcp:", text.get(..32).unwrap_or(text)] {
        let container = "runc:web-1";
        let hook = Some(Path::new("/usr/local/lib/net/up"));
        let _ = policy.examine(&Wish { peer, container, places: &places, memory: u64::MAX, hook });
    }
}

impl io::Read for Sent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(buffer, Duration::ZERO)
    }
}

impl io::Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Patient for Sent {
    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// What an application reports, what it answers, and the URL that its label names.
pub fn report(bytes: &[u8]) {
    let until = Instant::now() + Duration::from_secs(1);
    let said = || Until::new(Sent { bytes: bytes.to_vec(), at: 0 }, until);
    let token = Token::generate().unwrap();
    if let Ok(request) = said().take() {
        assert!(request.body.len() <= MAX_BODY);
        let mut word: Option<Word> = None;
        let _ = judge(&request, &token, &mut word);
        assert_eq!(word, None, "nobody knows the token");
    }
    let url: HookUrl = "http://127.0.0.1:80/".parse().unwrap();
    let _ = said().post(&url, "{}");
    if let Some(url) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<HookUrl>().ok()) {
        let parts = format!("http://{}{}", url.authority(), url.path());
        assert!(parts == url.to_string() || parts == format!("{url}/"));
    }
}

/// CRIU's images.
pub fn images(bytes: &[u8]) {
    let place = scratch();
    for name in ["pagemap-1.img", "inventory.img", "pstree.img", "mm-1.img", "stats-dump", "stats-restore"] {
        file(&place, name, bytes);
    }
    let at = |name: &str| place.path().join(name);
    if let Ok(map) = images::Pagemap::read(&at("pagemap-1.img")) {
        let _ = (map.present_pages(), map.pages_name());
    }
    let _ = images::Inventory::read(place.path());
    let _ = images::read_tasks(place.path());
    let _ = images::mappings(&at("mm-1.img"));
    let _ = images::stats::read_dump(place.path());
    let _ = images::stats::read_restore(place.path());
    // what `godwit images` shows of anybody's
    use images::contents;
    let _ =
        (contents::core(bytes), contents::files_id(bytes), contents::memory(bytes), contents::tasks(bytes));
    let _ = (contents::open_files(bytes), contents::descriptors(bytes), contents::mounts(bytes));
    let _ = contents::inventory_version(bytes);
}

/// A batch of memory pages.
pub fn batch(bytes: &[u8]) {
    let Ok(batch) = Batch::decode(bytes) else { return };
    let data: usize = batch.runs().map(|(_, data)| data.len()).sum();
    assert!(data <= bytes.len());
}

/// A log of CRIU's.
pub fn log(bytes: &[u8]) {
    let _ = godwit_criu::log::explain(&String::from_utf8_lossy(bytes));
}

/// A directory in memory.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn file(place: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path: &Path = place.path();
    let path = path.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
