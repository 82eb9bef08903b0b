//! Writes the seeds anew: `cargo run --example seeds [DIRECTORY OF A SMALL CHECKPOINT'S IMAGES]`.
#![allow(clippy::unwrap_used)]

use godwit_criu::images::{PE_PRESENT, Pagemap, PagemapEntry};
use godwit_memory::batch::{BatchBuilder, Kind, Run};
use godwit_memory::{ImageId, PageRun};
use godwit_migration::Cancel;
use godwit_neighbours::question::{Answer, Known, Question};
use godwit_store::{Digest, Manifest, Store, object};
use godwit_transfer::tree::{Options, TreeDestination, TreeIndex, TreeOp, TreeSource};
use godwit_transfer::wire::HeldFrames;
use godwit_transfer::{Compression, Message, Transport, TreeId, Wire};
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn main() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(seeds.join(target)).unwrap();
        std::fs::write(seeds.join(target).join(name), bytes).unwrap();
    };
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("tree");
    make_tree(&root);
    let index = TreeDestination::open(&root).unwrap().index().unwrap();
    put("index", "small", &index.to_bytes().unwrap());
    put("index", "empty", &TreeIndex::default().to_bytes().unwrap());
    for (name, base) in [("new", TreeIndex::default()), ("changed", changed(&root, &index))] {
        let steps = steps(&root, base);
        let bytes: Vec<u8> = steps.iter().flat_map(|step| postcard::to_stdvec(step).unwrap()).collect();
        put("tree_ops", name, &bytes);
        put("wire", name, &conversation(&steps, &index));
    }
    for (name, bytes) in manifests(place.path(), &root) {
        put("manifest", name, &bytes);
        put("object", name, &object::encode(godwit_store::Kind::Manifest, &bytes));
    }
    put("object", "chunk", &object::encode(godwit_store::Kind::Chunk, b"not worth compressing"));
    let digests = vec![Digest::of(b"one"), Digest::of(b"other")];
    put("question", "has", &Question::Has(digests.clone()).to_bytes());
    put("question", "give", &Question::Give(digests).to_bytes());
    put("question", "checkpoints", &Question::Checkpoints("runc:web".into()).to_bytes());
    put("question", "manifest", &Question::Manifest(Digest::of(b"one"), 4096).to_bytes());
    put("question", "offer", &Question::Offer(vec![1, 2, 3].into(), false).to_bytes());
    put("question", "take", &Question::Take(vec![(Digest::of(b"one"), vec![1, 2, 3].into())]).to_bytes());
    put("question", "take-tree", &Question::TakeTree(4096, 0, vec![1, 2, 3].into()).to_bytes());
    put("question", "snapshots", &Question::Snapshots("podman:data".into()).to_bytes());
    put("question", "kept", &Answer::Snapshots(vec![Digest::of(b"one")]).to_bytes());
    put("question", "piece", &Answer::Manifest(Some((4099, vec![1, 2, 3].into()))).to_bytes());
    put(
        "question",
        "known",
        &Answer::Checkpoints(vec![Known { tree: Digest::of(b"one"), made_unix_s: 1_790_000_000 }]).to_bytes(),
    );
    put("question", "which", &Answer::has(&[true, false, true, true, false, false, true, false]).to_bytes());
    put("question", "chunks", &Answer::Chunks(vec![Some(vec![1, 2, 3].into())]).to_bytes());
    put("batch", "all-kinds", &batch());
    let lines = [
        r#"{"seq":1,"unix_us":1,"event":"planned","version":1,"migration":"01m7yydq3wn4cn3s58aezvtgt5","role":"source","container":"runc:web","peer":"ssh://dst","godwit":"0.1.0"}"#,
        r#"{"seq":2,"unix_us":2,"event":"accepted"}"#,
        r#"{"seq":3,"unix_us":3,"event":"prepared"}"#,
        r#"{"seq":4,"unix_us":4,"event":"round","round":0,"wire_bytes":54999756}"#,
        r#"{"seq":5,"unix_us":5,"event":"freezing"}"#,
        r#"{"seq":6,"unix_us":6,"event":"failed","reason":"why"}"#,
        r#"{"seq":7,"unix_us":7,"event":"rolled-back"}"#,
    ];
    put("journal", "rolled-back", format!("{}\n", lines.join("\n")).as_bytes());
    put("log", "dump", b"(00.010) Dumping task (pid: 4711 comm: redis-server)\n(00.012) 4711 fdinfo 6: pos: 0 flags: 4002/0x1\n\
        (00.013) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 1c\n(00.014) Error (criu/cr-dump.c:2128): Dumping FAILED.\n");
    put(
        "log",
        "runc",
        b"time=\"2026-01-01T00:00:00Z\" level=error msg=\"criu failed: type NOTIFY errno 0\"\n",
    );
    if let Some(images) = std::env::args().nth(1) {
        for entry in std::fs::read_dir(images).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let kinds = ["pagemap-", "inventory", "pstree", "mm-", "stats-"];
            if kinds.iter().any(|kind| name.starts_with(kind)) {
                put("images", name.trim_end_matches(".img"), &std::fs::read(&path).unwrap());
            }
        }
    }
}

fn make_tree(root: &Path) {
    std::fs::create_dir_all(root.join("dir")).unwrap();
    std::fs::write(root.join("file"), b"what was here before, and more").unwrap();
    std::fs::write(root.join("dir/long"), vec![7; 5000]).unwrap();
    std::fs::hard_link(root.join("file"), root.join("dir/linked")).unwrap();
    std::os::unix::fs::symlink("../file", root.join("dir/link")).unwrap();
}

/// Of a tree, and of a checkpoint with a few pages.
fn manifests(place: &Path, root: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let store = Store::open(&place.join("store"), None).unwrap();
    let mut lease = store.lease().unwrap();
    let images = place.join("checkpoint/images");
    std::fs::create_dir_all(&images).unwrap();
    let entry = PagemapEntry { vaddr: 0x7000, nr_pages: 2, flags: PE_PRESENT };
    let map = Pagemap { pages_id: 1, entries: vec![entry] };
    map.write(&images.join("pagemap-1.img")).unwrap();
    std::fs::write(images.join("pages-1.img"), [vec![0; 4096], vec![5; 4096]].concat()).unwrap();
    let facts = [("container".to_owned(), "runc:web".to_owned())].into();
    let tree = lease.add_tree(root, &mut |_| {}).unwrap().manifest;
    let checkpoint = lease.add_checkpoint(&place.join("checkpoint"), facts, &mut |_| {}).unwrap().manifest;
    let pages = Manifest::Tree(lease.tree(checkpoint).unwrap());
    [("tree", lease.hold(tree).unwrap()), ("checkpoint", lease.hold(checkpoint).unwrap()), ("pages", pages)]
        .map(|(name, manifest)| (name, manifest.encode().unwrap()))
        .into()
}

/// An index from before some changes.
fn changed(root: &Path, before: &TreeIndex) -> TreeIndex {
    std::fs::write(root.join("dir/long"), [vec![7; 4000], vec![8; 1500]].concat()).unwrap();
    std::fs::remove_file(root.join("dir/link")).unwrap();
    std::fs::rename(root.join("file"), root.join("renamed")).unwrap();
    before.clone()
}

fn steps(root: &Path, base: TreeIndex) -> Vec<TreeOp> {
    let mut steps = Vec::new();
    let mut source = TreeSource::new(root, base, Options::default()).unwrap();
    source
        .round(&HashSet::new(), &mut |step| {
            steps.push(step);
            Ok::<(), io::Error>(())
        })
        .unwrap();
    steps
}

fn batch() -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    let run =
        |start: u64, pages, kind| Run { image: ImageId::Task(1), pages: PageRun { start, pages }, kind };
    builder.push(run(0x10000, 1, Kind::Data { first: 0 }), &[5; 4096]);
    builder.push(run(0x20000, 3, Kind::Zero), &[]);
    builder.push(run(0x30000, 2, Kind::Reference { first: 0 }), &[]);
    builder.push(run(0x40000, 1, Kind::Forget), &[]);
    builder.finish()
}

/// Keeps what is sent, and answers with a preamble.
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Transport for Kept {
    fn receive(&mut self, buffer: &mut [u8], _: Duration) -> io::Result<usize> {
        let kept = self.0.lock().unwrap();
        buffer[..16].copy_from_slice(&kept[..16]);
        Ok(16)
    }

    fn send(&mut self, bytes: &[u8], _: Duration) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
}

fn conversation(steps: &[TreeOp], index: &TreeIndex) -> Vec<u8> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let mut wire =
        Wire::open(Box::new(Kept(kept.clone())), Cancel::default(), Duration::from_secs(1)).unwrap();
    wire.say(&Message::Hello { godwit: "0.1.0".into(), host: "src".into() }).unwrap();
    wire.say(&Message::Prepare).unwrap();
    wire.send_index(TreeId(0), index).unwrap();
    wire.set_compression(Compression::None);
    for step in steps {
        wire.operate(TreeId(0), step).unwrap();
    }
    wire.send_pages(&batch()).unwrap();
    let frames = vec![vec![0u8; 60].into(), vec![1u8; 90].into()];
    wire.send_frames(&[HeldFrames { interface: "eth0".into(), frames }]).unwrap();
    wire.say(&Message::Cancel { reason: "enough".into(), again: false }).unwrap();
    wire.flush().unwrap();
    kept.lock().unwrap().clone()
}
