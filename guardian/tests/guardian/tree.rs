//! Two processes with two threads each, in a cgroup of their own, that write the time as long as they run.

use crate::as_role;
use godwit_guardian::Brake;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, SystemTime};

/// Threads of all of its processes.
const THREADS: u64 = 4;
/// A thread's part of the file: how often it wrote, and when it did last, ns since 1970.
const PART: u64 = 16;

/// What a process of the tree does.
pub fn run(file: &Path, children: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    let _child =
        (children > 0).then(|| as_role(&format!("witness {path} {}", children - 1)).spawn().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (file, at) = (&file, (children * 2 + thread) * PART);
            scope.spawn(move || {
                for count in 1u64.. {
                    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                    let text = [count.to_ne_bytes(), (now.as_nanos() as u64).to_ne_bytes()].concat();
                    file.write_all_at(&text, at).unwrap();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
    });
}

pub struct Tree {
    pub dir: PathBuf,
    pub pids: Vec<i32>,
    root: Child,
    file: File,
    _temporary: tempfile::TempDir,
}

impl Tree {
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir(dir).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("witness");
        std::fs::write(&path, vec![0; (THREADS * PART) as usize]).unwrap();
        let root = as_role(&format!("witness {} 1", path.display())).spawn().unwrap();
        let file = File::open(&path).unwrap();
        let pid = root.id().cast_signed();
        let mut tree = Self { dir: dir.to_owned(), pids: vec![pid], root, file, _temporary: temporary };
        crate::wait_for("the tree", || (0..THREADS).all(|thread| tree.part(thread) > 0));
        // its one child has come from another thread than the first at times
        let children = |pid: i32| {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let texts =
                tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap());
            texts.collect::<String>().split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        };
        tree.pids.extend(children(pid));
        assert_eq!(tree.pids.len(), 2);
        for pid in &tree.pids {
            tree.adopt(*pid);
        }
        tree
    }

    pub fn adopt(&self, pid: i32) {
        std::fs::write(self.dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn part(&self, thread: u64) -> u64 {
        let mut count = [0; 8];
        self.file.read_exact_at(&mut count, thread * PART).unwrap();
        u64::from_ne_bytes(count)
    }

    /// How often all of its threads have written.
    pub fn writes(&self) -> u64 {
        (0..THREADS).map(|thread| self.part(thread)).sum()
    }

    /// The same, after a while.
    pub fn writes_within(&self, time: Duration) -> u64 {
        std::thread::sleep(time);
        self.writes()
    }

    pub fn is_frozen(&self) -> bool {
        let read = |name| std::fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        read("freezer.state").trim() == "FROZEN" || read("cgroup.events").contains("frozen 1")
    }

    pub fn freeze(&self) {
        Brake::of(&self.dir).unwrap().pull().unwrap();
        crate::wait_for("the freeze", || self.is_frozen());
    }

    pub fn thaw(&self) {
        thaw(&self.dir);
    }
}

pub fn thaw(dir: &Path) {
    let (file, word) = match dir.join("freezer.state").exists() {
        true => ("freezer.state", "THAWED"),
        false => ("cgroup.freeze", "0"),
    };
    std::fs::write(dir.join(file), word).unwrap();
}

impl Drop for Tree {
    fn drop(&mut self) {
        for pid in &self.pids {
            crate::kill(*pid);
        }
        self.thaw();
        let _ = self.root.wait();
        crate::wait_for("the cgroup's end", || std::fs::remove_dir(&self.dir).is_ok());
    }
}
