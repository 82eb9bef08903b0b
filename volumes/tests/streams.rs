//! Snapshots of one btrfs that go to another one as its stream: two loop devices, and a store for each.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod btrfs;

use btrfs::run;
use godwit_volumes::{Awaited, History, Reception, Snapshot, Volume, VolumeError};
use std::fs::{create_dir, read_dir, read_to_string, write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PIECE: usize = 1 << 16;

/// One test at a time: a program that another one is just starting has this process's locks until it runs.
static ALONE: Mutex<()> = Mutex::new(());

/// Two file systems, `here` and `there`, with a store for each, and the volume `data` here.
struct Pair {
    dir: tempfile::TempDir,
    volume: Volume,
    here: History,
    there: History,
    _alone: MutexGuard<'static, ()>,
}

impl Pair {
    /// None where it cannot be had, after saying why.
    fn make() -> Option<Self> {
        if !btrfs::is_to_be_had() {
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = |name: &str| History::open(&dir.path().join(name), None).unwrap();
        let (here, there) = (store("store-here"), store("store-there"));
        for (name, size) in [("here", 512), ("there", 160)] {
            btrfs::mount(dir.path(), name, size);
        }
        let path = dir.path().join("here/data");
        run("btrfs", &["subvolume", "create", path.to_str().unwrap()]);
        let volume = Volume::find(path.to_str().unwrap()).unwrap();
        Some(Self { dir, volume, here, there, _alone: alone })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn keep(&self) -> Snapshot {
        self.here.keep(&self.volume, Some("mine"), None).unwrap().snapshot
    }

    /// As the other node hears of it: the volume has its place there.
    fn offered(&self, snapshot: &Snapshot) -> Snapshot {
        Snapshot { path: self.at("there/data"), kept: None, ..snapshot.clone() }
    }

    fn marks(&self) -> Vec<(Snapshot, u128)> {
        self.here.marked(&self.volume.name, 64).unwrap()
    }

    fn mark(&self, snapshot: &Snapshot) -> u128 {
        self.marks().into_iter().find(|(one, _)| one == snapshot).unwrap().1
    }

    fn await_it(&self, snapshot: &Snapshot) -> Result<Awaited, VolumeError> {
        let parents: Vec<u128> =
            self.marks().iter().filter(|(one, _)| one != snapshot).map(|(_, mark)| *mark).collect();
        self.there.await_stream(&self.offered(snapshot), self.mark(snapshot), &parents, 1 << 30)
    }

    #[track_caller]
    fn reception(&self, snapshot: &Snapshot) -> Reception {
        match self.await_it(snapshot).unwrap() {
            Awaited::Stream(reception) => *reception,
            Awaited::There(there) => panic!("{} is there", there.id),
        }
    }

    /// The stream that a reception waits for.
    fn stream(&self, snapshot: &Snapshot, parent: Option<u128>) -> Vec<u8> {
        let marks = self.marks();
        let parent = parent.map(|mark| &marks.iter().find(|(_, one)| *one == mark).unwrap().0);
        let mut sending = self.here.send(snapshot, parent).unwrap();
        std::iter::from_fn(|| sending.piece(PIECE).unwrap()).flatten().collect()
    }

    /// Has it come; the bytes of the stream.
    fn bring(&self, snapshot: &Snapshot) -> (Snapshot, usize) {
        let mut reception = self.reception(snapshot);
        let stream = self.stream(snapshot, reception.parent());
        stream.chunks(PIECE).for_each(|piece| reception.take(piece).unwrap());
        (reception.keep(&self.there).unwrap(), stream.len())
    }

    fn kept_there(&self) -> Vec<String> {
        names(&self.at("there/.data.godwit-snapshots"))
    }

    /// Nothing of it is there, and nobody has written down that it was.
    #[track_caller]
    fn assert_nothing_there(&self) {
        assert_eq!(names(&self.at("there")), [""; 0]);
        let listed = run("btrfs", &["subvolume", "list", self.at("there").to_str().unwrap()]);
        assert_eq!((listed.as_str(), self.there.list(None).unwrap()), ("", vec![]));
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // not a second panic, which would end all tests
        for name in ["here", "there"] {
            let _ = Command::new("umount").arg("--lazy").arg(self.dir.path().join(name)).status();
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Bytes that nothing packs.
fn noise(bytes: usize) -> Vec<u8> {
    let words = (1..=bytes as u64 / 8)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n as u32).to_be_bytes());
    words.collect()
}

#[test]
fn a_snapshot_comes_whole_and_of_the_next_the_difference_and_so_on_the_way_back() {
    let Some(pair) = Pair::make() else { return };
    write(pair.volume.path.join("bulk"), noise(8 << 20)).unwrap();
    std::os::unix::fs::symlink("/etc", pair.volume.path.join("link")).unwrap();
    run("mknod", &[pair.volume.path.join("null").to_str().unwrap(), "c", "1", "3"]);
    let first = pair.keep();
    let (came, all) = pair.bring(&first);
    assert!(all > 8 << 20, "{all}");
    assert!(came.is(&first) && came.note == first.note && came.position == first.position);
    let kept = came.kept.clone().unwrap();
    assert!(kept.at.starts_with(pair.at("there/.data.godwit-snapshots")));
    assert_eq!(pair.kept_there().len(), 1);
    write(pair.volume.path.join("more"), "a little").unwrap();
    run(
        "cp",
        &[
            "--reflink=always",
            pair.volume.path.join("bulk").to_str().unwrap(),
            pair.volume.path.join("twice").to_str().unwrap(),
        ],
    );
    let second = pair.keep();
    let (came, difference) = pair.bring(&second);
    assert!(difference < 20_000, "{difference}");
    let (ours, theirs) = (second.kept.clone().unwrap().at, came.kept.clone().unwrap().at);
    run("diff", &["-r", "--no-dereference", ours.to_str().unwrap(), theirs.to_str().unwrap()]);
    assert!(write(theirs.join("more"), "changed").is_err(), "it is read-only");
    assert!(matches!(pair.await_it(&second), Ok(Awaited::There(there)) if *there == came));
    assert_eq!(pair.there.list(None).unwrap().len(), 2);
    // the other node goes on with it, and its next snapshot builds upon what came from here
    let back = pair.at("there/data");
    run("btrfs", &["subvolume", "snapshot", theirs.to_str().unwrap(), back.to_str().unwrap()]);
    write(back.join("theirs"), "new").unwrap();
    let known = Volume { name: pair.volume.name.clone(), path: back };
    let third = pair.there.keep(&known, None, None).unwrap().snapshot;
    let marks = pair.there.marked(&known.name, 64).unwrap();
    let parents: Vec<u128> = marks[1..].iter().map(|(_, mark)| *mark).collect();
    let offered = Snapshot { path: pair.volume.path.clone(), kept: None, ..third.clone() };
    let Awaited::Stream(mut reception) =
        pair.here.await_stream(&offered, marks[0].1, &parents, 1 << 20).unwrap()
    else {
        panic!("it is there");
    };
    assert_eq!(reception.parent(), Some(pair.mark(&second)));
    let mut sending = pair.there.send(&third, Some(&marks[1].0)).unwrap();
    while let Some(piece) = sending.piece(PIECE).unwrap() {
        reception.take(&piece).unwrap();
    }
    let came = reception.keep(&pair.here).unwrap();
    assert_eq!(read_to_string(came.kept.unwrap().at.join("theirs")).unwrap(), "new");
}

#[test]
fn what_is_broken_off_leaves_nothing_and_what_was_complete_need_not_come_again() {
    let Some(pair) = Pair::make() else { return };
    write(pair.volume.path.join("bulk"), noise(4 << 20)).unwrap();
    let first = pair.keep();
    let stream = pair.stream(&first, None);
    for cut in [0, 10, 300, stream.len() / 2, stream.len() - 1] {
        let mut reception = pair.reception(&first);
        stream[..cut].chunks(PIECE).for_each(|piece| reception.take(piece).unwrap());
        if cut % 2 == 0 {
            let said = reception.keep(&pair.there).unwrap_err().to_string();
            assert!(said.contains("in the midst"), "{said}");
        } else {
            drop(reception);
        }
        pair.assert_nothing_there();
    }
    // a process that was killed has cleared nothing away
    let left = pair.at("there/.data.godwit-snapshots/.coming");
    std::fs::create_dir_all(&left).unwrap();
    run("chmod", &["700", left.parent().unwrap().to_str().unwrap()]);
    run("btrfs", &["subvolume", "create", left.join("half").to_str().unwrap()]);
    let (came, _) = pair.bring(&first);
    assert!(!left.exists());
    // or has had all of it, and has not written that down
    let pin = format!("snapshot/{}", came.id).parse().unwrap();
    pair.there.store().unpin(&pin).unwrap();
    assert!(matches!(pair.await_it(&first), Ok(Awaited::There(there)) if *there == came));
    assert_eq!(pair.there.list(None).unwrap(), [came]);
}

#[test]
fn a_parent_that_is_gone_or_can_be_written_to_is_none() {
    let Some(pair) = Pair::make() else { return };
    write(pair.volume.path.join("file"), "one").unwrap();
    let (first, second, third) = (pair.keep(), pair.keep(), pair.keep());
    let (came, _) = pair.bring(&first);
    pair.bring(&second);
    let at = pair.there.list(None).unwrap()[1].kept.clone().unwrap().at;
    run("btrfs", &["property", "set", "-f", "-ts", at.to_str().unwrap(), "ro", "false"]);
    assert_eq!(pair.reception(&third).parent(), Some(pair.mark(&first)));
    run("btrfs", &["property", "set", "-ts", at.to_str().unwrap(), "ro", "true"]);
    assert_eq!(pair.reception(&third).parent(), Some(pair.mark(&first)), "its name is all that is left");
    run("btrfs", &["subvolume", "delete", came.kept.unwrap().at.to_str().unwrap()]);
    assert_eq!(pair.reception(&third).parent(), None);
    pair.bring(&third);
}

#[test]
fn where_it_has_no_place_the_store_is_to_have_it() {
    let Some(pair) = Pair::make() else { return };
    write(pair.volume.path.join("file"), "one").unwrap();
    let (first, plain) = (pair.keep(), pair.at("plain"));
    create_dir(pair.at("there/directory")).unwrap();
    std::os::unix::fs::symlink("there", pair.at("way")).unwrap();
    create_dir(pair.at("there/open")).unwrap();
    run("chmod", &["777", pair.at("there/open").to_str().unwrap()]);
    create_dir(&plain).unwrap();
    for (path, why) in [
        (plain, "not on btrfs"),
        (pair.at("there/directory"), "no subvolume there"),
        (pair.at("there/none/data"), "is not there"),
        (pair.at("there/../there/data"), "is not there"),
        (pair.at("way/data"), "is not there"),
        (pair.at("there"), "not on btrfs"),
        (pair.at("there/open/data"), "others may write"),
        ("/".into(), "no place"),
        ("data".into(), "is not there"),
    ] {
        let offered = Snapshot { path: path.clone(), ..pair.offered(&first) };
        let said = pair.there.await_stream(&offered, 1, &[], 1).unwrap_err();
        assert!(matches!(said, VolumeError::Moment(_)) && said.to_string().contains(why), "{path:?}: {said}");
    }
    let mut lease = pair.here.lease().unwrap();
    let read = pair.here.read(&mut lease, &first, &mut |_| {}).unwrap();
    assert!(read.kept.is_none() && read.is(&first) && read.tree != first.tree);
    let copy = pair.at("copy");
    pair.here.restore(&read, &copy, &mut |_, _| {}).unwrap();
    assert_eq!(read_to_string(copy.join("file")).unwrap(), "one");
}

#[test]
fn a_stream_of_something_else_or_for_too_much_is_refused_and_leaves_nothing() {
    let Some(pair) = Pair::make() else { return };
    write(pair.volume.path.join("bulk"), noise(1 << 20)).unwrap();
    let (first, second) = (pair.keep(), pair.keep());
    let lie = pair.stream(&second, None);
    let said = pair.reception(&first).take(&lie).unwrap_err().to_string();
    assert!(said.contains("another snapshot than was said"), "{said}");
    let difference = pair.stream(&second, Some(pair.mark(&first)));
    let said = pair.reception(&second).take(&difference).unwrap_err().to_string();
    assert!(said.contains("builds upon something else"), "{said}");
    let mut damaged = pair.stream(&first, None);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let mut reception = pair.reception(&first);
    let taken = damaged.chunks(PIECE).try_for_each(|piece| reception.take(piece));
    let said = taken.and_then(|()| reception.keep(&pair.there).map(drop)).unwrap_err().to_string();
    assert!(said.contains("btrfs receive") || said.contains("what came is not kept"), "{said}");
    pair.assert_nothing_there();
    let Awaited::Stream(mut reception) =
        pair.there.await_stream(&pair.offered(&first), pair.mark(&first), &[], 100).unwrap()
    else {
        panic!("it is there");
    };
    assert!(reception.take(&[0; 101]).unwrap_err().to_string().contains("more bytes"));
    drop(reception);
    pair.assert_nothing_there();
    // two at once would be in each other's way
    let one = pair.reception(&first);
    assert!(matches!(pair.await_it(&second), Err(VolumeError::Locked(_))));
    drop(one);
}

#[test]
fn a_full_disk_is_said_and_is_as_empty_as_before() {
    let Some(pair) = Pair::make() else { return };
    write(pair.volume.path.join("bulk"), noise(200 << 20)).unwrap();
    let first = pair.keep();
    let (stream, mut reception) = (pair.stream(&first, None), pair.reception(&first));
    let taken = stream.chunks(PIECE).try_for_each(|piece| reception.take(piece));
    let said = taken.and_then(|()| reception.keep(&pair.there).map(drop)).unwrap_err().to_string();
    assert!(said.contains("No space left"), "{said}");
    pair.assert_nothing_there();
}

/// A command of a stream with its checksum: CRC-32C from 0, without the usual inversions, over all of it with 0 in the checksum's place.
fn command(number: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let attribute = |(number, value): &(u16, &[u8])| {
        [&number.to_le_bytes(), &(value.len() as u16).to_le_bytes(), *value].concat()
    };
    let body: Vec<u8> = attributes.iter().flat_map(attribute).collect();
    let mut all = [&(body.len() as u32).to_le_bytes()[..], &number.to_le_bytes(), &[0; 4], &body].concat();
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let crc = all.iter().fold(0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit));
    all[6..10].copy_from_slice(&crc.to_le_bytes());
    all
}

#[test]
fn what_a_stream_writes_by_a_device_or_a_link_of_its_own_does_not_get_there() {
    let Some(pair) = Pair::make() else { return };
    let (image, precious) = (pair.at("device.image"), pair.at("precious"));
    write(&image, vec![7; 1 << 20]).unwrap();
    create_dir(&precious).unwrap();
    let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]).trim().to_owned();
    let (major, minor) = (7u64, device.trim_start_matches("/dev/loop").parse::<u64>().unwrap());
    let (offset, mode) = (0u64.to_le_bytes(), 0o060_600u64.to_le_bytes());
    let (number, mark) = ((major << 8 | minor).to_le_bytes(), 77u128);
    let link = precious.display().to_string();
    let begin = [
        &b"btrfs-stream\0\x01\0\0\0"[..],
        &command(1, &[(15, b"name"), (1, &mark.to_be_bytes()), (2, &offset)]),
    ];
    let evil_device = [
        command(5, &[(15, b"node"), (3, &offset), (5, &mode), (8, &number)]),
        command(15, &[(15, b"node"), (18, &offset), (19, b"overwritten")]),
    ];
    let evil_link = [
        command(8, &[(15, b"link"), (3, &offset), (17, link.as_bytes())]),
        command(3, &[(15, b"link/file"), (3, &offset)]),
    ];
    let is_as_it_was = || {
        run("sync", &[]);
        std::fs::read(&image).unwrap()[0] == 7 && names(&precious).is_empty()
    };
    let volume = pair.keep();
    for evil in [&evil_device, &evil_link] {
        let stream = [begin.concat(), evil.concat(), command(21, &[])].concat();
        let awaited = pair.there.await_stream(&pair.offered(&volume), mark, &[], 1 << 20).unwrap();
        let Awaited::Stream(mut reception) = awaited else { panic!("it is there") };
        let taken = reception.take(&stream);
        let said = taken.and_then(|()| reception.keep(&pair.there).map(drop)).unwrap_err().to_string();
        assert!(said.contains("btrfs receive") && said.contains("ERROR"), "{said}");
        assert!(is_as_it_was());
        pair.assert_nothing_there();
    }
    // what is not confined does it
    let file = pair.at("stream");
    write(&file, [begin.concat(), evil_device.concat(), command(21, &[])].concat()).unwrap();
    let words = ["receive", "--quiet", "-e", "--chroot", "-f", file.to_str().unwrap()];
    run("btrfs", &[&words[..], &[pair.at("there").to_str().unwrap()]].concat());
    assert!(!is_as_it_was(), "the stream would do no harm: the test shows nothing");
    run("losetup", &["--detach", &device]);
}
