//! With a real CRIU, as root: `GODWIT_REQUIRE=all` makes it an error when there is none, or no soft-dirty.
//!
//! Each test runs a workload in a cgroup of its own: this program again, which writes pages of its memory all the time and
//! knows what each must hold. The images lie in `GODWIT_TEST_DIR`, by default `/var/tmp`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use godwit_criu::images::{Inventory, PageStore, Pagemap, chain_of, flatten, read_tasks};
use godwit_criu::{
    CriuBinary, CriuError, DumpOptions, NotifyAnswer, RestoreOptions, binary, cpu, dump, restore,
};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// CRIU, or the reason to skip said aloud.
fn criu(test: &str) -> Option<CriuBinary> {
    let why = match CriuBinary::find() {
        Ok(criu) if nix::unistd::geteuid().is_root() => return Some(criu),
        Ok(_) => "not root".to_owned(),
        Err(error) => error.to_string(),
    };
    skip(test, &why);
    None
}

fn skip(test: &str, why: &str) {
    assert_ne!(std::env::var("GODWIT_REQUIRE").as_deref(), Ok("all"), "{test} cannot run: {why}");
    println!("SKIPPED {test}: {why}");
}

/// A running workload with its cgroup and directory, all of which go with it.
struct Workload {
    dir: PathBuf,
    cgroup: PathBuf,
    pid: i32,
    child: Option<Child>,
}

impl Workload {
    fn start() -> Workload {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("godwit-criu-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let base =
            std::env::var_os("GODWIT_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let (dir, cgroup) = (base.join(&name), Path::new(CGROUP_ROOT).join(&name));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(&cgroup).unwrap();
        // Descriptors inherited from outside, which CRIU could not dump, are closed first.
        let child = Command::new("bash")
            .args(["-c", r#"for f in /proc/$$/fd/*; do n=${f##*/}; if [ $n -gt 2 ]; then eval "exec $n>&-"; fi; done; exec setsid "$@""#, "-"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "workload"])
            .env("GODWIT_TEST_WORKLOAD", &dir)
            // Only the large heap is a mapping of its own: the kernel merges neighbours, and a new mapping that joins an old
            // one makes all of it soft-dirty.
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_MMAP_THRESHOLD_", "4194304")
            .env_remove("GODWIT_REQUIRE")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let workload = Workload { dir, cgroup, pid, child: Some(child) };
        fs::write(workload.cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
        wait_for("the workload", || workload.dir.join("ready").exists());
        workload
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn freeze(&self, freeze: bool) {
        fs::write(self.cgroup.join("cgroup.freeze"), if freeze { "1" } else { "0" }).unwrap();
        wait_for("the freezer", || self.frozen() == freeze);
    }

    fn frozen(&self) -> bool {
        fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    /// Lets the workload look at all its memory; what it counts while running.
    fn verify(&self) -> u64 {
        let _ = fs::remove_file(self.path("verified"));
        fs::write(self.path("verify"), "").unwrap();
        wait_for("the verdict", || self.path("verified").exists());
        let verdict = fs::read_to_string(self.path("verified")).unwrap();
        verdict.strip_prefix("ok ").unwrap_or_else(|| panic!("{verdict}")).parse().unwrap()
    }

    /// Kills the workload, frozen or not.
    fn kill(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
        wait_for("the end", || fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap().is_empty());
        let _ = fs::write(self.cgroup.join("cgroup.freeze"), "0");
    }

    fn dump_options(&self, round: &str) -> DumpOptions {
        let mut options = DumpOptions::new(self.pid, self.path(round), self.path(&format!("work-{round}")));
        options.freeze_cgroup = Some(self.cgroup.clone());
        options
    }

    /// Restores and holds; the tree is frozen afterwards.
    fn restore_held(&mut self, criu: &CriuBinary, images: &str) -> restore::RestoreReport {
        let mut options = RestoreOptions::new(self.path(images), self.path("work-restore"));
        options.criu_cgroups = vec![self.cgroup.clone()];
        let started = options.start(criu).unwrap();
        let criu_pid = started.criu_pid().unwrap();
        let (cgroup, home) = (self.cgroup.clone(), own_cgroup());
        let mut seen = Vec::new();
        let report = started
            .restore(&mut |notify| {
                seen.push(notify.script.clone());
                if notify.script == "pre-resume" {
                    assert!(notify.pid.is_some());
                    fs::write(home.join("cgroup.procs"), criu_pid.to_string()).unwrap();
                    fs::write(cgroup.join("cgroup.freeze"), "1").unwrap();
                }
                NotifyAnswer::Continue
            })
            .unwrap();
        assert!(
            seen.contains(&"post-restore".to_owned()) && seen.contains(&"pre-resume".to_owned()),
            "{seen:?}"
        );
        wait_for("the hold", || self.frozen());
        report
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir(&self.cgroup);
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn own_cgroup() -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    Path::new(CGROUP_ROOT).join(own)
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const PAGE: usize = 512;

fn stamp(page: &mut [u64], key: u64) {
    for (i, word) in page.iter_mut().enumerate() {
        *word = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64;
    }
}

fn stamped(page: &[u64], key: u64) -> bool {
    page.iter().enumerate().all(|(i, word)| *word == key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64)
}

/// The other tests start this binary again with the environment set, and it becomes the workload that they dump. By itself
/// it makes sure that the workload would notice a wrong word.
#[test]
fn workload() {
    let Some(dir) = std::env::var_os("GODWIT_TEST_WORKLOAD").map(PathBuf::from) else {
        let mut page = vec![0; PAGE];
        stamp(&mut page, 7);
        assert!(stamped(&page, 7) && !stamped(&page, 8));
        page[PAGE - 1] ^= 1;
        assert!(!stamped(&page, 7));
        return;
    };
    // A heap of 8192 pages written here and there, and blocks that come and go.
    let mut heap = vec![0u64; 8192 * PAGE];
    let mut keys = vec![0u64; 8192];
    for (page, key) in heap.chunks_exact_mut(PAGE).zip(1u64..) {
        stamp(page, key);
        keys[key as usize - 1] = key;
    }
    let mut blocks: VecDeque<(u64, Vec<u64>)> = VecDeque::new();
    let (mut ticks, mut random) = (0u64, 1u64);
    fs::write(dir.join("ready"), "").unwrap();
    loop {
        ticks += 1;
        for _ in 0..8 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // In huge pages one write makes 512 pages dirty, so a part of the heap is left alone.
            let page = (random >> 33) as usize % 1024;
            keys[page] = random;
            stamp(&mut heap[page * PAGE..][..PAGE], random);
        }
        if ticks.is_multiple_of(16) {
            let mut block = vec![0u64; PAGE * (20 + (random >> 40) as usize % 200)];
            stamp(&mut block, ticks);
            blocks.push_back((ticks, block));
            if blocks.len() > 20 {
                blocks.pop_front();
            }
        }
        if fs::remove_file(dir.join("verify")).is_ok() {
            let sound = heap.chunks_exact(PAGE).zip(&keys).all(|(page, key)| stamped(page, *key));
            let blocks_sound = blocks.iter().all(|(key, block)| stamped(block, *key));
            let verdict = if sound && blocks_sound {
                format!("ok {ticks}")
            } else {
                format!("heap {sound}, blocks {blocks_sound}")
            };
            fs::write(dir.join("verdict"), verdict).unwrap();
            fs::rename(dir.join("verdict"), dir.join("verified")).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    let (varint, rest) = bytes.split_at(length);
    *bytes = rest;
    varint.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[test]
fn the_binary_and_the_host() {
    let Some(criu) = criu("the_binary_and_the_host") else { return };
    let version = criu.version().unwrap();
    assert!(version.major >= 3, "{version}");
    criu.check().unwrap();
    let features = criu.features().unwrap();
    println!("criu {version} at {}, {:?}, {features:?}", criu.path().display(), criu.linkage());
    assert_eq!(features.soft_dirty_works, binary::soft_dirty_works().unwrap());
    assert_eq!(features.mem_track, features.soft_dirty_works);

    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = criu.cpuinfo_dump(dir.path()).unwrap();
    assert_eq!(fs::metadata(&image).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(criu.cpuinfo_check(dir.path()).unwrap(), cpu::CpuVerdict::Compatible);
    // A processor that has everything: all bits set in the capability words (field 6 of field 1, cpuinfo.proto).
    if cfg!(target_arch = "x86_64") {
        let bytes = fs::read(&image).unwrap();
        let (mut record, mut inner) = (&bytes[12..], Vec::new());
        assert_eq!((take_varint(&mut record), bytes[8..12].len()), (0x0a, 4));
        let length = take_varint(&mut record) as usize;
        let mut entry = &record[..length];
        while !entry.is_empty() {
            let (tag, value) = (take_varint(&mut entry), take_varint(&mut entry));
            put_varint(&mut inner, tag);
            if tag & 7 == 2 {
                put_varint(&mut inner, value);
                inner.extend(&entry[..value as usize]);
                entry = &entry[value as usize..];
            } else {
                put_varint(&mut inner, if tag >> 3 == 6 { u32::MAX.into() } else { value });
            }
        }
        let mut outer = vec![0x0a];
        put_varint(&mut outer, inner.len() as u64);
        outer.extend(inner);
        let size = (outer.len() as u32).to_le_bytes();
        fs::write(&image, [&bytes[..8], &size, &outer].concat()).unwrap();
        let verdict = criu.cpuinfo_check(dir.path()).unwrap();
        println!("{verdict:?}");
        assert!(matches!(verdict, cpu::CpuVerdict::Incompatible { .. }));
    }
    fs::write(&image, b"nonsense").unwrap();
    assert!(criu.cpuinfo_check(dir.path()).is_err());
}

#[test]
fn a_frozen_tree_is_dumped_stays_frozen_and_is_restored_held() {
    let Some(criu) = criu("a_frozen_tree_is_dumped_stays_frozen_and_is_restored_held") else { return };
    let mut workload = Workload::start();
    workload.freeze(true);
    let mut seen = Vec::new();
    let report = dump::dump(&criu, workload.dump_options("1"), &mut |notify| {
        seen.push(notify.script.clone());
        NotifyAnswer::Continue
    })
    .unwrap();
    assert!(workload.frozen(), "left as it was");
    assert_eq!(seen.last().map(String::as_str), Some("post-dump"), "{seen:?}");
    let stats = report.stats.unwrap();
    println!("dump: wall {:?}, {stats:?}", report.wall);
    assert!(
        stats.pages_written >= 8192 && stats.frozen_time > Duration::ZERO && stats.frozen_time < report.wall
    );
    let tasks = read_tasks(&workload.path("1")).unwrap();
    assert_eq!((tasks.len(), tasks[0].pid as i32), (1, workload.pid));
    assert!(tasks[0].threads.len() >= 2);
    assert!(Inventory::read(&workload.path("1")).unwrap().img_version >= 1);
    for file in fs::read_dir(workload.path("1")).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.file_name());
    }

    workload.freeze(false);
    std::thread::sleep(Duration::from_millis(500));
    let ticks = workload.verify();
    workload.kill();

    let flat = flatten(&[workload.path("1")], &workload.path("flat")).unwrap();
    println!("flatten: {flat:?}");
    assert_eq!(flat.pages, stats.pages_written + stats.shpages_written);
    let lazy = |images: &str| -> u64 {
        let name = format!("pagemap-{}.img", workload.pid);
        let map = Pagemap::read(&workload.path(images).join(name)).unwrap();
        map.entries.iter().filter(|entry| entry.lazy()).map(|entry| entry.nr_pages).sum()
    };
    assert!(lazy("1") >= 8192);
    assert_eq!(lazy("flat"), lazy("1"));
    let report = workload.restore_held(&criu, "flat");
    println!("restore: {report:?}");
    assert_eq!(report.pid, workload.pid);
    assert!(report.stats.unwrap().pages_restored >= 8192);
    let _ = fs::remove_file(workload.path("verified"));
    fs::write(workload.path("verify"), "").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(!workload.path("verified").exists(), "it ran");
    workload.freeze(false);
    assert!(workload.verify() < ticks, "it goes on from the dump, not from its end");
}

#[test]
fn a_refused_dump_leaves_the_tree_frozen_and_well() {
    let Some(criu) = criu("a_refused_dump_leaves_the_tree_frozen_and_well") else { return };
    let workload = Workload::start();
    workload.freeze(true);
    let mut asked = false;
    let result = dump::dump(&criu, workload.dump_options("1"), &mut |notify| {
        asked |= notify.script == "post-dump";
        if asked { NotifyAnswer::Refuse } else { NotifyAnswer::Continue }
    });
    assert!(matches!(&result, Err(CriuError::Failed { operation: "dump", .. })), "{result:?}");
    assert!(asked, "it failed before: {result:?}");
    assert!(workload.frozen());

    // Somebody who goes away in the middle.
    let started = workload.dump_options("2").start(&criu).unwrap();
    let mut options = workload.dump_options("3");
    options.deadline = Duration::ZERO;
    let result = dump::dump(&criu, options, &mut |_| NotifyAnswer::Continue);
    assert!(matches!(&result, Err(CriuError::Timeout { .. })), "{result:?}");
    drop(started);
    std::thread::sleep(Duration::from_millis(500));
    assert!(workload.frozen());
    workload.freeze(false);
    workload.verify();
}

#[test]
fn failures_are_explained() {
    let Some(criu) = criu("failures_are_explained") else { return };
    let workload = Workload::start();
    if !binary::soft_dirty_works().unwrap() {
        let mut options = workload.dump_options("1");
        options.track_mem = true;
        let error = dump::pre_dump(&criu, options, &mut |_| NotifyAnswer::Continue).unwrap_err();
        println!("{error}");
        assert!(error.to_string().contains("no soft-dirty"), "{error}");
    }
    let result =
        restore::restore(&criu, RestoreOptions::new(&workload.dir, workload.path("work")), &mut |_| {
            NotifyAnswer::Continue
        });
    let error = result.unwrap_err();
    println!("{error}");
    assert!(error.explanation().unwrap().hint.is_some(), "{error:?}");

    workload.freeze(true);
    dump::dump(&criu, workload.dump_options("2"), &mut |_| NotifyAnswer::Continue).unwrap();
    workload.freeze(false);
    let result =
        restore::restore(&criu, RestoreOptions::new(workload.path("2"), workload.path("work")), &mut |_| {
            NotifyAnswer::Continue
        });
    let error = result.unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("pid of the container is taken"), "{error}");
    workload.verify();
}

#[test]
fn a_chain_of_pre_dumps_is_flattened_and_restored() {
    const NAME: &str = "a_chain_of_pre_dumps_is_flattened_and_restored";
    let Some(criu) = criu(NAME) else { return };
    if !criu.features().unwrap().mem_track {
        return skip(NAME, "no soft-dirty in this kernel");
    }
    let mut workload = Workload::start();
    for (round, parent) in [("1", None), ("2", Some("../1"))] {
        let mut options = workload.dump_options(round);
        options.track_mem = true;
        options.parent_dir = parent.map(str::to_owned);
        let report = dump::pre_dump(&criu, options, &mut |_| NotifyAnswer::Continue).unwrap();
        println!("pre-dump {round}: wall {:?}, {:?}", report.wall, report.stats.unwrap());
        assert!(!workload.frozen());
        std::thread::sleep(Duration::from_millis(100));
    }
    workload.freeze(true);
    let mut options = workload.dump_options("3");
    options.track_mem = true;
    options.parent_dir = Some("../2".to_owned());
    let report = dump::dump(&criu, options, &mut |_| NotifyAnswer::Continue).unwrap();
    let stats = report.stats.unwrap();
    println!("dump: wall {:?}, {stats:?}", report.wall);
    assert!(stats.pages_skipped_parent > stats.pages_written);
    workload.freeze(false);
    std::thread::sleep(Duration::from_millis(500));
    let ticks = workload.verify();
    workload.kill();

    let chain = chain_of(&workload.path("3")).unwrap();
    assert_eq!(chain.len(), 3);
    let whole = flatten(&chain, &workload.path("flat")).unwrap();
    let mut store = PageStore::create(workload.path("store")).unwrap();
    for round in &chain[..2] {
        println!("absorb: {:?}", store.absorb(round).unwrap());
    }
    let composed = store.compose(&chain[2], &workload.path("composed")).unwrap();
    println!("flatten {whole:?}, compose {composed:?}");
    assert_eq!(whole.pages, composed.pages);
    for images in ["flat", "composed"] {
        let report = workload.restore_held(&criu, images);
        println!("restore of {images}: {report:?}");
        workload.freeze(false);
        assert!(workload.verify() < ticks);
        workload.kill();
    }
}
