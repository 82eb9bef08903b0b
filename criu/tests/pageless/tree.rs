//! A tree to dump: python in a cgroup of its own, in our mount namespace or in one of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use godwit_criu::images::ImageError;
use godwit_criu::pageless::{PagemapName, TakenPages, take_pages};
use godwit_criu::{CriuBinary, DumpOptions, Version};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Checksums of pages by address, by the tasks' own pids.
pub type Memory = BTreeMap<u32, BTreeMap<u64, u32>>;

pub struct Tree {
    pub dir: PathBuf,
    cgroup: PathBuf,
    pub pid: i32,
    child: Option<Child>,
}

impl Tree {
    pub fn start(mib: u32, kind: &str, own_mounts: bool) -> Tree {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("godwit-pageless-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let base =
            std::env::var_os("GODWIT_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let (dir, cgroup) = (base.join(&name), Path::new(CGROUP_ROOT).join(&name));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(&cgroup).unwrap();
        // What CRIU cannot dump is closed or unmounted first.
        let close =
            r#"for f in /proc/$$/fd/*; do n=${f##*/}; if [ $n -gt 2 ]; then eval "exec $n>&-"; fi; done;"#;
        let away = r#"for m in /srv /var/lib/*/ /mnt/share; do while umount -l $m; do :; done 2> /dev/null; done; exec < /dev/null > /dev/null 2>&1;"#;
        // A child that it forks before it is in its cgroup would not be in there.
        let go = dir.join("go");
        let wait = format!("while [ ! -e '{}' ]; do sleep 0.01; done;", go.display());
        let script = if own_mounts {
            format!(
                r#"{wait} {close} exec setsid unshare -m --propagation private bash -c '{away} exec "$@"' - "$@""#
            )
        } else {
            format!(r#"{wait} {close} exec setsid "$@""#)
        };
        let child = Command::new("bash")
            .args(["-c", &script, "-", "python3", "-c", include_str!("workload.py"), &mib.to_string(), kind])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let tree = Tree { dir, cgroup, pid, child: Some(child) };
        fs::write(tree.cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(go, "").unwrap();
        let tasks = if ["tree", "guarded"].contains(&kind) { 3 } else { 1 };
        wait_for("the tree", || {
            let pids = tree.pids();
            pids.len() == tasks && pids.iter().all(|pid| name_of(*pid) == "ready")
        });
        tree
    }

    pub fn pids(&self) -> BTreeSet<i32> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    pub fn freeze(&self, freeze: bool) {
        fs::write(self.cgroup.join("cgroup.freeze"), if freeze { "1" } else { "0" }).unwrap();
        wait_for("the freezer", || self.frozen() == freeze);
    }

    pub fn frozen(&self) -> bool {
        fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    /// Options of a dump into the new directory `name`.
    pub fn options(&self, name: &str) -> DumpOptions {
        let images = self.dir.join(name);
        assert!(!images.exists());
        let mut options = DumpOptions::new(self.pid, images, self.work());
        options.freeze_cgroup = Some(self.cgroup.clone());
        options
    }

    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The tree's private memory, read by somebody else: all that this CRIU writes.
    pub fn read(&self, criu: &CriuBinary) -> Memory {
        let droppable = criu.version().unwrap() < Version { major: 4, minor: 2, sublevel: 0 };
        let output = Command::new("python3")
            .args(["-c", include_str!("reader.py"), if droppable { "1" } else { "0" }])
            .args(self.pids().iter().map(i32::to_string))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut memory = Memory::new();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            memory.entry(words[0] as u32).or_default().insert(words[1], words[2] as u32);
        }
        memory
    }

    fn kill(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
        wait_for("the end", || fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap().is_empty());
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir(&self.cgroup);
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes the pages out of the images.
pub fn take(images: &Path) -> (Memory, TakenPages) {
    let mut memory = Memory::new();
    let taken = take_pages::<ImageError>(images, &mut |name, vaddr, page| {
        let PagemapName::Task(pid) = name else { panic!("{name:?}") };
        assert_eq!(memory.entry(pid).or_default().insert(vaddr, crc32(page)), None);
        Ok(())
    })
    .unwrap();
    (memory, taken)
}

/// zlib's.
pub fn crc32(bytes: &[u8]) -> u32 {
    static TABLE: std::sync::OnceLock<[u32; 256]> = std::sync::OnceLock::new();
    let table = TABLE.get_or_init(|| {
        std::array::from_fn(|i| {
            (0..8).fold(i as u32, |c, _| c >> 1 ^ if c & 1 == 1 { 0xedb8_8320 } else { 0 })
        })
    });
    !bytes.iter().fold(!0, |crc, byte| crc >> 8 ^ table[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

/// Size of the images, bytes.
pub fn size_of_images(images: &Path) -> u64 {
    fs::read_dir(images).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}
