use super::*;
use proptest::prelude::*;
use std::fs;
use std::io::Write;
use std::path::Path;

/// A `struct fanotify_event_info_fid`: type, handle, name.
fn record(kind: u8, handle: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend([7; 8]);
    bytes.extend((handle.len() as u32).to_ne_bytes());
    bytes.extend(1i32.to_ne_bytes());
    bytes.extend(handle);
    if !name.is_empty() {
        bytes.extend(name.as_bytes());
        bytes.push(0);
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let length = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn event(mask: u64, records: &[Vec<u8>]) -> Vec<u8> {
    let records = records.concat();
    let mut bytes = ((EVENT + records.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
    bytes.extend((EVENT as u16).to_ne_bytes());
    bytes.extend(mask.to_ne_bytes());
    bytes.extend((-1i32).to_ne_bytes());
    bytes.extend(0i32.to_ne_bytes());
    bytes.extend(records);
    bytes
}

#[test]
fn events_are_taken_apart() {
    assert_eq!(EVENT, size_of::<libc::fanotify_event_metadata>());
    let named = record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[1, 2, 3, 4, 5, 6, 7, 8], "file");
    let object = record(libc::FAN_EVENT_INFO_TYPE_FID, &[9; 12], "");
    let all = [event(libc::FAN_MODIFY, &[named, object]), event(libc::FAN_Q_OVERFLOW, &[])].concat();
    let (first, rest) = Event::first(&all).unwrap();
    let records: Vec<_> = first.records().map(|record| record.unwrap()).collect();
    assert_eq!((first.mask, records.len()), (libc::FAN_MODIFY, 2));
    assert_eq!(
        (records[0].name, &records[0].handle[8..]),
        (Some(&b"file"[..]), &[1, 2, 3, 4, 5, 6, 7, 8][..])
    );
    assert_eq!((records[1].name, records[1].handle.len()), (None, 20));
    let (second, rest) = Event::first(rest).unwrap();
    assert_eq!((second.mask, second.records().count(), rest.len()), (libc::FAN_Q_OVERFLOW, 0, 0));
}

proptest! {
    #[test]
    fn no_bytes_are_a_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..80) {
        let mut events = event(u64::from(bytes.first().copied().unwrap_or(0)), std::slice::from_ref(&bytes));
        events.truncate(events.len().saturating_sub(cut));
        for bytes in [&bytes, &events] {
            let mut rest = &bytes[..];
            while let Some((event, behind)) = Event::first(rest) {
                event.records().for_each(drop);
                rest = behind;
            }
        }
    }
}

/// A directory with a file in it, and who listens.
fn watched() -> (tempfile::TempDir, Watch) {
    assert!(
        nix::unistd::geteuid().is_root() || std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"),
        "needs root"
    );
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(dir.path().join("file"), "before").unwrap();
    let watch = Watch::begin(&Beneath::open(dir.path()).unwrap()).unwrap();
    (dir, watch)
}

fn number(path: &Path) -> Number {
    let stat = fstat(fs::File::open(path).unwrap()).unwrap();
    (stat.st_dev, stat.st_ino)
}

#[test]
fn a_change_is_told_once_by_name_and_by_inode() {
    let (dir, watch) = watched();
    let (directory, file) = (number(dir.path()), number(&dir.path().join("file")));
    drop(watch.take());
    fs::OpenOptions::new().append(true).open(dir.path().join("file")).unwrap().write_all(b"more").unwrap();
    let told = watch.take().unwrap();
    assert!(told.names.contains(&(directory, b"file".to_vec())) && told.inodes.contains(&file), "{told:?}");
    assert!(!told.inodes.contains(&directory), "its directory is as it was: {told:?}");
    let told = watch.take().unwrap();
    assert!(!told.inodes.contains(&file), "{told:?}");
    // reading is no change
    fs::read(dir.path().join("file")).unwrap();
    assert!(!watch.take().unwrap().inodes.contains(&file));
    // a name that comes changes the directory, too
    fs::create_dir(dir.path().join("new")).unwrap();
    let told = watch.take().unwrap();
    assert!(
        told.names.contains(&(directory, b"new".to_vec())) && told.inodes.contains(&directory),
        "{told:?}"
    );
}

#[test]
fn a_file_is_heard_of_by_a_name_outside() {
    let (dir, watch) = watched();
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::hard_link(dir.path().join("file"), outside.path().join("other")).unwrap();
    drop(watch.take());
    fs::write(outside.path().join("other"), "after").unwrap();
    assert!(watch.take().unwrap().inodes.contains(&number(&dir.path().join("file"))));
}

#[test]
fn what_was_lost_is_said_once_and_nothing_stays_open() {
    let (dir, watch) = watched();
    watch.shared.note_all(&event(libc::FAN_Q_OVERFLOW, &[]), &mut watch.shared.lock());
    assert!(watch.take().is_none());
    assert!(watch.take().is_some());
    // half an event is as bad
    watch.shared.note_all(&event(libc::FAN_MODIFY, &[])[..20], &mut watch.shared.lock());
    assert!(watch.take().is_none());
    let path = dir.path().to_owned();
    let is_open = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|to| to == path)
    };
    assert!(is_open());
    drop(watch);
    assert!(!is_open());
}

#[test]
fn where_it_is_not_known_what_is_told_nobody_listens() {
    let tree = Beneath::open(Path::new("/proc/sys")).unwrap();
    assert_eq!(Watch::begin(&tree).err(), Some(Errno::EOPNOTSUPP));
}

#[test]
fn a_directory_has_news_of_its_own_and_holds_nothing_open() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (volume, other) = (root.join("volume"), root.join("volume-other"));
    fs::create_dir_all(volume.join("deep")).unwrap();
    fs::create_dir(&other).unwrap();
    let notice = ChangeNotice::of(&volume).unwrap();
    fs::write(other.join("file"), "elsewhere").unwrap();
    assert!(!notice.has_come());
    fs::write(volume.join("deep/file"), "here").unwrap();
    assert!(notice.has_come() && !notice.has_come());
    // what comes from outside is within from then on
    fs::rename(&other, volume.join("came")).unwrap();
    assert!(notice.has_come());
    fs::write(volume.join("came/file"), "again").unwrap();
    assert!(notice.has_come());
    fs::remove_dir_all(volume.join("came")).unwrap();
    assert!(notice.has_come());
    // another directory in its place, in which nothing is changed
    fs::create_dir(root.join("next")).unwrap();
    fs::rename(&volume, root.join("before")).unwrap();
    assert!(notice.has_come());
    fs::rename(root.join("next"), &volume).unwrap();
    assert!(notice.has_come());
    fs::write(root.join("before/file"), "elsewhere by now").unwrap();
    assert!(!notice.has_come());
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = links.filter_map(|link| fs::read_link(link.path()).ok()).find(|to| to.starts_with(&volume));
    assert_eq!(open, None);
}

#[test]
fn a_directory_that_is_mounted_has_news_too() {
    use nix::mount::{MsFlags, mount};
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (volume, place) = (root.join("volume"), root.join("place"));
    fs::create_dir(&volume).unwrap();
    fs::create_dir(&place).unwrap();
    // what is mounted goes with the thread, whose namespace it is
    let checked = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&Path>;
        mount(none, Path::new("/"), none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some(&volume), &place, none, MsFlags::MS_BIND, none).unwrap();
        let notice = ChangeNotice::of(&place).unwrap();
        fs::write(place.join("file"), "by this mount").unwrap();
        assert!(notice.has_come());
        fs::write(volume.join("file"), "by the other").unwrap();
        assert!(notice.has_come());
    });
    checked.join().unwrap();
}
