//! Volumes on btrfs, on a loop device: its snapshots show them, and nothing is left beside them.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod btrfs;

use btrfs::run;
use godwit_store::{Files, Restless, Writers};
use godwit_volumes::difference::difference;
use godwit_volumes::{History, Snapshot, Volume, VolumeError};
use std::fs::{File, create_dir, read_dir, read_to_string};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So many files lie between what is written first and what repeats it.
const BETWEEN: usize = 400;

/// One test at a time: a program that another one is just starting has this process's locks until it runs.
static ALONE: Mutex<()> = Mutex::new(());

/// A btrfs of its own, and a store elsewhere.
struct Disk {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Disk {
    /// None where it cannot be had, after saying why.
    fn make() -> Option<Self> {
        if !btrfs::is_to_be_had() {
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        btrfs::mount(dir.path(), "disk", 512);
        Some(Self { dir, _alone: alone })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("disk").join(name)
    }

    fn subvolume(&self, name: &str) -> PathBuf {
        run("btrfs", &["subvolume", "create", self.at(name).to_str().unwrap()]);
        self.at(name)
    }

    fn history(&self) -> History {
        History::open(&self.dir.path().join("godwit"), None).unwrap()
    }

    fn take(&self, path: &Path) -> Snapshot {
        let volume = Volume::find(path.to_str().unwrap()).unwrap();
        self.history().take(&volume, None, &mut |_| {}).unwrap().snapshot
    }

    /// What a snapshot holds.
    fn restored(&self, snapshot: &Snapshot) -> PathBuf {
        let to = self.dir.path().join(format!("copy-{}", snapshot.made_unix_us));
        self.history().restore(snapshot, &to, &mut |_, _| {}).unwrap();
        to
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // not a second panic, which would end all tests
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path().join("disk")).status();
    }
}

/// Two who write as long as `act` takes: one counts in `a`, and the other writes down in `z` what the first has counted.
struct Pair {
    counted: File,
    repeated: File,
    /// What is counted is synced before it is repeated.
    syncs: bool,
    over: AtomicBool,
    /// Held by whoever writes, or has them stand still.
    turns: [Mutex<()>; 2],
}

impl Pair {
    fn start(volume: &Path, syncs: bool) -> Self {
        for number in 0..BETWEEN {
            std::fs::write(volume.join(format!("m{number:03}")), vec![number as u8; 16384]).unwrap();
        }
        let file = |name: &str| {
            let mut options = File::options();
            options.create(true).truncate(true).read(true).write(true).open(volume.join(name)).unwrap()
        };
        let (counted, repeated) = (file("a"), file("z"));
        counted.write_all_at(b"000000000000", 0).unwrap();
        Self { counted, repeated, syncs, over: AtomicBool::new(false), turns: Default::default() }
    }

    fn count(&self, known: &AtomicU64) {
        for number in 1.. {
            let turn = self.turns[0].lock().unwrap();
            self.counted.write_all_at(format!("{number:012}").as_bytes(), 0).unwrap();
            if self.syncs {
                self.counted.sync_data().unwrap();
            }
            known.store(number, Ordering::SeqCst);
            drop(turn);
            std::thread::sleep(Duration::from_micros(200));
            if self.over.load(Ordering::Relaxed) {
                break;
            }
        }
    }

    fn repeat(&self, known: &AtomicU64) {
        while !self.over.load(Ordering::Relaxed) {
            let turn = self.turns[1].lock().unwrap();
            let text = format!("{:012}", known.load(Ordering::SeqCst));
            self.repeated.write_all_at(text.as_bytes(), 0).unwrap();
            drop(turn);
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn at_work<T>(&self, act: impl FnOnce() -> T) -> T {
        let known = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| self.count(&known));
            scope.spawn(|| self.repeat(&known));
            // also when it panics
            let _over = Over(&self.over);
            std::thread::sleep(Duration::from_millis(200));
            act()
        })
    }
}

/// Dropped, all is over.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// They stand still between two turns.
struct Stopped<'a> {
    pair: &'a Pair,
    held: Vec<MutexGuard<'a, ()>>,
}

impl Writers for Stopped<'_> {
    fn files(&mut self) -> Result<Files, Restless> {
        Err("the file system shows what there is".into())
    }

    fn stop(&mut self) -> Result<(), Restless> {
        self.held.extend(self.pair.turns.iter().map(|turn| turn.lock().unwrap()));
        Ok(())
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn go_on(&mut self) -> Result<(), Restless> {
        self.held.clear();
        Ok(())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that nothing is repeated that was not counted.
#[track_caller]
fn assert_in_order(disk: &Disk, snapshot: &Snapshot, volume: &str) {
    assert_eq!(snapshot.shown_by.as_deref(), Some("btrfs"), "{volume}");
    assert_eq!(snapshot.path, disk.at(volume));
    let copy = disk.restored(snapshot);
    let read = |name: &str| read_to_string(copy.join(name)).unwrap().parse::<u64>().unwrap();
    let (counted, repeated) = (read("a"), read("z"));
    assert!(repeated <= counted, "PROMISE BROKEN: {volume}: {repeated} repeated of {counted}");
    assert!(repeated > 0 && names(&copy).len() >= BETWEEN + 2, "{volume}");
}

/// A directory of the file system, a subvolume, and a directory in that.
const VOLUMES: [&str; 3] = ["data", "sub", "sub/with space"];

fn with_volumes() -> Option<Disk> {
    let disk = Disk::make()?;
    create_dir(disk.at("data")).unwrap();
    disk.subvolume("sub");
    create_dir(disk.at("sub/with space")).unwrap();
    Some(disk)
}

fn assert_nothing_left(disk: &Disk) {
    assert_eq!(names(&disk.at("")), ["data", "sub"]);
    assert_eq!(run("btrfs", &["subvolume", "list", disk.at("").to_str().unwrap()]).lines().count(), 1);
}

#[test]
fn what_was_synced_is_in_it_and_nothing_that_came_after_without_it() {
    let Some(disk) = with_volumes() else { return };
    for volume in VOLUMES {
        let at = disk.at(volume);
        for snapshot in Pair::start(&at, true).at_work(|| [0; 3].map(|_| disk.take(&at))) {
            assert_eq!(snapshot.stood_us, None, "nobody has to stand still");
            assert_in_order(&disk, &snapshot, volume);
        }
        run("find", &[at.to_str().unwrap(), "-maxdepth", "1", "-type", "f", "-delete"]);
    }
    assert_nothing_left(&disk);
}

#[test]
fn who_stands_still_meanwhile_has_it_of_one_moment() {
    let Some(disk) = with_volumes() else { return };
    for volume in VOLUMES {
        let at = disk.at(volume);
        let (pair, known) = (Pair::start(&at, false), Volume::find(at.to_str().unwrap()).unwrap());
        let take = |_| {
            let mut writers = Stopped { pair: &pair, held: Vec::new() };
            disk.history().take_of(&known, None, &mut writers, &mut |_| {}).unwrap().snapshot
        };
        for snapshot in pair.at_work(|| [0; 3].map(take)) {
            assert!(snapshot.stood_us.is_some_and(|us| us > 0 && us < 5_000_000), "{snapshot:?}");
            assert_in_order(&disk, &snapshot, volume);
        }
        run("find", &[at.to_str().unwrap(), "-maxdepth", "1", "-type", "f", "-delete"]);
    }
    assert_nothing_left(&disk);
}

#[test]
fn what_a_snapshot_would_not_show_is_read_as_everywhere_else() {
    let Some(disk) = Disk::make() else { return };
    // a file system of its own has no place beside it
    std::fs::write(disk.at("file"), "top").unwrap();
    let top = disk.take(&disk.at(""));
    assert_eq!(top.shown_by, None);
    assert_eq!(read_to_string(disk.restored(&top).join("file")).unwrap(), "top");
    // a subvolume in it would be empty
    create_dir(disk.at("data")).unwrap();
    disk.subvolume("data/inner");
    std::fs::write(disk.at("data/inner/file"), "inner").unwrap();
    let nested = disk.take(&disk.at("data"));
    assert_eq!(nested.shown_by, None);
    assert_eq!(read_to_string(disk.restored(&nested).join("inner/file")).unwrap(), "inner");
    // one beside it is nothing of its
    disk.subvolume("database");
    run("btrfs", &["subvolume", "delete", disk.at("data/inner").to_str().unwrap()]);
    assert_eq!(disk.take(&disk.at("data")).shown_by.as_deref(), Some("btrfs"));
    // what is mounted elsewhere, too
    create_dir(disk.at("place")).unwrap();
    run("mount", &["--bind", disk.at("data").to_str().unwrap(), disk.at("place").to_str().unwrap()]);
    let mounted = disk.take(&disk.at("place"));
    run("umount", &[disk.at("place").to_str().unwrap()]);
    assert_eq!(mounted.shown_by, None);
}

#[test]
fn what_one_that_was_killed_has_left_goes() {
    let Some(disk) = Disk::make() else { return };
    create_dir(disk.at("data")).unwrap();
    let (top, left) = (disk.at(""), disk.at(".data.godwit-moment"));
    run("btrfs", &["subvolume", "snapshot", "-r", top.to_str().unwrap(), left.to_str().unwrap()]);
    std::fs::write(disk.at("data/file"), "new").unwrap();
    let snapshot = disk.take(&disk.at("data"));
    assert_eq!(snapshot.shown_by.as_deref(), Some("btrfs"));
    assert_eq!(read_to_string(disk.restored(&snapshot).join("file")).unwrap(), "new");
    assert!(!left.exists());
    // somebody else's directory of that name stays, and the volume is read itself
    create_dir(&left).unwrap();
    std::fs::write(left.join("precious"), "").unwrap();
    assert_eq!(disk.take(&disk.at("data")).shown_by, None);
    assert!(left.join("precious").exists());
}

fn is_subvolume(path: &Path) -> bool {
    path.metadata().unwrap().ino() == 256
}

#[test]
fn what_the_file_system_keeps_is_compared_gone_back_to_and_let_go_of_like_any_other() {
    let Some(disk) = Disk::make() else { return };
    let (volume, history) = (disk.subvolume("data"), disk.history());
    let known = Volume::find(volume.to_str().unwrap()).unwrap();
    std::fs::write(volume.join("file"), "before").unwrap();
    let first = history.keep(&known, Some("mine"), None).unwrap().snapshot;
    let kept = first.kept.clone().unwrap();
    assert_eq!((&*kept.by, read_to_string(kept.at.join("file")).unwrap().as_str()), ("btrfs", "before"));
    let shards = read_dir(history.store().root().join("chunks")).unwrap();
    assert!(shards.flatten().all(|shard| names(&shard.path()).is_empty()), "nothing was copied");
    let described = history.store().described(first.manifest).unwrap().unwrap();
    assert_eq!(Snapshot::offered(first.manifest, &described), None, "it does not travel");
    std::fs::write(volume.join("file"), "after").unwrap();
    let second = disk.take(&volume);
    assert!(second.lineage() > first.lineage());
    let changes = difference(&history.tree(&first).unwrap(), &history.tree(&second).unwrap());
    assert!(changes.iter().any(|(path, _)| path.to_string() == "file"), "{changes:?}");
    assert_eq!(read_to_string(disk.restored(&first).join("file")).unwrap(), "before");
    // there and back
    let stash = history.roll_back(&first, false, &mut |_, _| {}).unwrap().stash.unwrap();
    assert_eq!(read_to_string(volume.join("file")).unwrap(), "before");
    assert!(is_subvolume(&volume) && stash.kept.is_some());
    std::fs::write(volume.join("new"), "it is no read-only one").unwrap();
    assert_eq!(history.roll_back(&stash, false, &mut |_, _| {}).unwrap().left, None);
    assert_eq!(read_to_string(volume.join("file")).unwrap(), "after");
    assert!(!volume.join("new").exists());
    let all = history.list(None).unwrap();
    assert_eq!((all.len(), &all[0]), (4, &first));
    all.iter().for_each(|snapshot| history.forget(snapshot).unwrap());
    assert_eq!(names(&disk.at("")), ["data"]);
    assert_eq!(run("btrfs", &["subvolume", "list", disk.at("").to_str().unwrap()]).lines().count(), 1);
}

#[test]
fn what_the_file_system_cannot_keep_is_refused_and_nothing_is_made() {
    let Some(disk) = Disk::make() else { return };
    create_dir(disk.at("data")).unwrap();
    let elsewhere = disk.dir.path().join("elsewhere");
    create_dir(&elsewhere).unwrap();
    for (path, why) in [(disk.at("data"), "none itself"), (elsewhere, "has no snapshots")] {
        let known = Volume::find(path.to_str().unwrap()).unwrap();
        let refused = disk.history().keep(&known, None, None).unwrap_err();
        assert!(matches!(refused, VolumeError::Moment(_)) && refused.to_string().contains(why), "{refused}");
    }
    assert_eq!(names(&disk.at("")), ["data"]);
    assert_eq!(disk.history().list(None).unwrap(), []);
}
