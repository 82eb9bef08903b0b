//! Objects of shared memory that a tree has mapped: the ones godwit can read and fill itself.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A memfd, an anonymous shared mapping's object, or a SysV segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SharedObject {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// Adds the objects to `found` that the task `pid`, whose `/proc/PID/maps` is this, has mapped shared. Only those of ordinary
/// pages: an object of huge pages cannot be written through its file.
pub(super) fn add_mapped(pid: i32, maps: &[u8], found: &mut BTreeSet<SharedObject>) {
    for line in maps.split(|byte| *byte == b'\n') {
        let Some((object, range)) = parse_line(line) else { continue };
        if !found.contains(&object) && is_tmpfs(Path::new(&format!("/proc/{pid}/map_files/{range}"))) {
            found.insert(object);
        }
    }
}

/// `7f00-7f01 rw-s 00000000 00:01 1027 /memfd:x (deleted)`: the object and the range.
fn parse_line(line: &[u8]) -> Option<(SharedObject, &str)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.splitn(6, ' ');
    let (range, permissions, _offset) = (words.next()?, words.next()?, words.next()?);
    let (device, inode, name) = (words.next()?, words.next()?, words.next()?.trim_start());
    if permissions.as_bytes().get(3) != Some(&b's') || !godwit_shim::answer::is_shared_memory(name.as_bytes())
    {
        return None;
    }
    let (major, minor) = device.split_once(':')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let device = nix::sys::stat::makedev(number(major)?, number(minor)?);
    Some((SharedObject { device, inode: inode.parse().ok()? }, range))
}

fn is_tmpfs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let parsed =
            |line: &str| parse_line(line.as_bytes()).map(|(object, range)| (object.inode, range.to_owned()));
        let memfd = "7f0000-7f1000 rw-s 00000000 00:01 1027                       /memfd:a b (deleted)";
        assert_eq!(parsed(memfd), Some((1027, "7f0000-7f1000".into())));
        assert_eq!(parse_line(memfd.as_bytes()).unwrap().0.device, 1);
        assert_eq!(parsed("7f0000-7f1000 r--s 00000000 00:01 5 /dev/zero (deleted)").unwrap().0, 5);
        assert_eq!(
            parsed("7f0000-7f1000 r--s 00000000 00:01 32769    /SYSV00000000 (deleted)").unwrap().0,
            32769
        );
        for other in [
            "7f0000-7f1000 rw-p 00000000 00:01 1027 /memfd:x (deleted)",
            "7f0000-7f1000 rw-s 00000000 00:05 12 /dev/shm/x",
            "7f0000-7f1000 rw-s 00000000 00:0f 12 /anon_hugepage (deleted)",
            "7f0000-7f1000 rw-p 00000000 00:00 0 ",
            "",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }

    #[test]
    fn an_own_object() {
        use std::os::unix::fs::MetadataExt;
        let memfd = nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let file = std::fs::File::from(memfd);
        file.set_len(8192).unwrap();
        // cat(1) does not map it: take any task's maps, and a line of one that does not exist.
        let metadata = file.metadata().unwrap();
        let line = format!(
            "1000-2000 rw-s 00000000 00:{:02x} {} /memfd:x (deleted)",
            metadata.dev(),
            metadata.ino()
        );
        let (object, _) = parse_line(line.as_bytes()).unwrap();
        assert_eq!(object, SharedObject { device: metadata.dev(), inode: metadata.ino() });
        let mut found = BTreeSet::new();
        add_mapped(std::process::id() as i32, line.as_bytes(), &mut found);
        assert!(found.is_empty(), "its range is not mapped here, so its pages cannot be reached");
    }
}
