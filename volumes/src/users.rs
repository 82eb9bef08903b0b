//! Who uses a directory: containers that have it mounted, and processes that have something of it open.

use crate::mounts::{Mount, mounts};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A process that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// As this host counts.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// How.
    pub way: Way,
}

/// How it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The process has a mount namespace in which it is mounted: it is a container's.
    Mounted,
    /// It has something of it open, mapped, or as its directory.
    Open,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.way {
            Way::Mounted => "has it mounted",
            Way::Open => "has something of it open",
        };
        write!(f, "process {} ({}) {how}", self.pid, self.name)
    }
}

/// Everybody who uses the directory at `path`, which is no symbolic link; this process does not count. Those who come and go meanwhile may
/// be missed.
///
/// # Errors
/// When /proc cannot be read.
pub fn users(path: &Path) -> io::Result<Vec<User>> {
    let own = mounts("self")?;
    // of several at one place the last one is seen
    let below = own.iter().rev().filter(|mount| path.starts_with(&mount.at));
    let mount = below.max_by_key(|mount| mount.at.as_os_str().len());
    let mount = mount.ok_or_else(|| io::Error::other("it is on no mount of this process"))?;
    let within = path.strip_prefix(&mount.at).unwrap_or(path);
    let place = if within.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(within) };
    let shows = |other: &Mount| {
        let whole = other.root == Path::new("/");
        let is_part = place.starts_with(&other.root) && !whole;
        other.device == mount.device && (is_part || other.root.starts_with(&place))
    };
    let mut seen = BTreeSet::from([namespace("self")]);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|text| text.parse::<i32>().ok()) else { continue };
        if pid as u32 == std::process::id() {
            continue;
        }
        let text = pid.to_string();
        // one speaks for all of its namespace
        let is_mounted = namespace(&text).is_some_and(|namespace| seen.insert(Some(namespace)))
            && mounts(&text).is_ok_and(|mounts| mounts.iter().any(shows));
        let way = match (is_mounted, has_open(&text, path)) {
            (true, _) => Way::Mounted,
            (false, true) => Way::Open,
            (false, false) => continue,
        };
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        found.push(User { pid, name: name.trim().to_owned(), way });
    }
    Ok(found)
}

fn namespace(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

fn has_open(process: &str, path: &Path) -> bool {
    let leads_in = |link: PathBuf| std::fs::read_link(link).is_ok_and(|to| to.starts_with(path));
    let directory = PathBuf::from(format!("/proc/{process}"));
    let any_of = |name: &str| {
        let links = std::fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
        links.map(|entry| entry.path()).any(leads_in)
    };
    ["cwd", "root", "exe"].into_iter().any(|name| leads_in(directory.join(name)))
        || any_of("fd")
        || any_of("map_files")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::is_mount_point;
    use std::process::{Command, Stdio};

    #[test]
    fn who_works_in_a_directory_uses_it_and_who_worked_there_does_not() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("volume");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(users(&path).unwrap(), []);
        let mut cat = Command::new("cat").current_dir(&path).stdin(Stdio::piped()).spawn().unwrap();
        let found = users(&path).unwrap();
        cat.kill().unwrap();
        cat.wait().unwrap();
        assert_eq!(
            found.iter().map(|user| (user.pid as u32, user.way)).collect::<Vec<_>>(),
            [(cat.id(), Way::Open)]
        );
        assert_eq!(users(&path).unwrap(), []);
    }

    #[test]
    fn a_mount_namespace_in_which_it_is_mounted_uses_it() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (path, there) = (dir.path().join("volume"), dir.path().join("there"));
        std::fs::create_dir(&path).unwrap();
        std::fs::create_dir(&there).unwrap();
        let script = "mount --bind \"$0\" \"$1\" && cd / && echo ready && exec cat";
        let mut other = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .args([&path, &there])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let found = users(&path).unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(found.iter().map(|user| user.way).collect::<Vec<_>>(), [Way::Mounted]);
        assert!(!is_mount_point(&there).unwrap());
    }
}
