//! Two directories, a source and a destination of a tree, and judges of whether they are equal.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stdout)]

pub mod sys;

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use godwit_transfer::tree::{
    Node, Options, RoundError, RoundStats, TreeDestination, TreeError, TreeIndex, TreeOp, TreePath,
    TreeSource, equal_digest,
};
use tempfile::TempDir;

/// Whether the test can run here; says why not, and fails when `GODWIT_REQUIRE=all`.
pub fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let tools = ["rsync", "setfacl", "setfattr", "bash"];
    let have = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
    let missing: Vec<_> = tools.iter().filter(|tool| !have(tool)).collect();
    if root && missing.is_empty() {
        return true;
    }
    let why = if root { format!("missing tools: {missing:?}") } else { "needs root".to_owned() };
    assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "cannot run: {why}");
    println!("skipped: {why}");
    false
}

/// An empty directory on a disk file system.
pub fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("godwit-tree-").tempdir_in("/var/tmp").unwrap()
}

/// Runs a script of bash in a directory.
pub fn bash(dir: &Path, script: &str) -> String {
    let out = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub type Ops = Vec<TreeOp>;

pub struct Pair {
    pub dir: TempDir,
    pub source: TreeSource,
    pub destination: TreeDestination,
    pub also: HashSet<(u64, u64)>,
}

impl Pair {
    pub fn new() -> Pair {
        Pair::in_dir(scratch(), |_| {})
    }

    /// The kernel is asked what is changed, however little there is.
    pub fn watched() -> Pair {
        let options = Options { watch_from: Some(0), ..Options::default() };
        let pair = Pair::with(scratch(), |_| {}, options);
        assert!(pair.source.is_watched(), "the kernel tells nothing here");
        pair
    }

    /// With a stale copy at the destination, which `make` makes in an empty directory.
    pub fn in_dir(dir: TempDir, make: impl Fn(&Path)) -> Pair {
        Pair::with(dir, make, Options::default())
    }

    fn with(dir: TempDir, make: impl Fn(&Path), options: Options) -> Pair {
        let (from, to) = (dir.path().join("source"), dir.path().join("destination"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        make(&to);
        let destination = TreeDestination::open(&to).unwrap();
        let base = destination.index().unwrap();
        let base = TreeIndex::from_bytes(&base.to_bytes().unwrap()).unwrap();
        let source = TreeSource::new(&from, base, options).unwrap();
        Pair { dir, source, destination, also: HashSet::new() }
    }

    pub fn from(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub fn to(&self) -> PathBuf {
        self.dir.path().join("destination")
    }

    /// One round, every operation over the wire's encoding; what was emitted, with blobs.
    pub fn try_round(&mut self) -> Result<(RoundStats, Ops), RoundError<TreeError>> {
        let mut ops = Vec::new();
        let destination = &mut self.destination;
        let stats = self.source.round(&self.also, &mut |op| {
            let wire = postcard::to_stdvec(&op).unwrap();
            assert!(wire.len() <= 9 << 20, "an operation of {} bytes", wire.len());
            let same: TreeOp = postcard::from_bytes(&wire).unwrap();
            if ops.len() < 100_000 {
                ops.push(op);
            }
            destination.apply(same)
        })?;
        Ok((stats, ops))
    }

    pub fn round(&mut self) -> (RoundStats, Ops) {
        self.try_round().unwrap()
    }

    /// Asserts that both are equal, by every judge.
    pub fn assert_equal(&self, what: &str) {
        self.assert_index(what);
        let (a, b) = (equal_digest(&self.from()).unwrap(), equal_digest(&self.to()).unwrap());
        let difference = rsync(&self.from(), &self.to());
        assert_eq!(difference, "", "{what}: rsync sees differences");
        assert_eq!(a, b, "{what}: the digests differ");
        assert_eq!(self.source.index().equal_digest(), b, "{what}: the index has another digest");
    }

    /// Asserts that the index is what the destination holds, and the times of everything too.
    pub fn assert_index(&self, what: &str) {
        let (mine, real) = (self.source.index(), self.destination.index().unwrap());
        let entries = |index: &TreeIndex| -> Vec<(TreePath, Node)> {
            index.entries().map(|(path, node)| (path.clone(), node.clone())).collect()
        };
        for (mine, real) in entries(mine).iter().zip(&entries(&real)) {
            assert_eq!(mine, real, "{what}: the index differs from the destination");
        }
        assert_eq!(mine.entries().count(), real.entries().count(), "{what}: entries");
    }

    pub fn blocks(&self, name: &str) -> (u64, u64) {
        let blocks = |dir: PathBuf| dir.join(name).symlink_metadata().unwrap().blocks();
        (blocks(self.from()), blocks(self.to()))
    }
}

/// What rsync would change, by checksum, with times to the nanosecond.
pub fn rsync(from: &Path, to: &Path) -> String {
    let out = Command::new("rsync")
        .args(["-aHAX", "--checksum", "--dry-run", "--delete", "--itemize-changes", "--modify-window=-1"])
        .arg(format!("{}/", from.display()))
        .arg(format!("{}/", to.display()))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Bytes that do not compress or repeat.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Waits until what was written is no longer racy.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(150));
}
