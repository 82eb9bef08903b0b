//! From a process to its cgroup directories as this mount namespace sees them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::keeper::keepers;
use super::tree::process_tree;
use super::{Freezer, FreezerError, Result, pids_below};

/// A cgroup hierarchy with a controller, where it is mounted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    /// The cgroup that is mounted, relative to the root of our cgroup namespace.
    root: String,
    v2: bool,
}

/// The controller that freezes.
const FREEZER: &str = "freezer";

/// See [`Freezer::of_pid`]. Processes of `ignored` do not count as others.
pub(super) fn of_pid(pid: i32, ignored: &BTreeSet<i32>) -> Result<Freezer> {
    // every cgroup but a root has the file, of one version or the other
    let any = ["freezer.state", "cgroup.freeze"];
    Freezer::at(own_dir(pid, FREEZER, &any, ignored)?)
}

/// The cgroup that holds the tree of `pid` and nothing else, of cgroup2 or else of the v1 hierarchy of `controller`, where it
/// has one of `files`.
pub(crate) fn own_dir(
    pid: i32,
    controller: &str,
    files: &[&str],
    ignored: &BTreeSet<i32>,
) -> Result<PathBuf> {
    let tree = process_tree(pid);
    let mut refusal = FreezerError::NoOwnCgroup(pid);
    for (hierarchy, path) in cgroups_with(pid, controller)? {
        let dir = hierarchy.mount.join(path.trim_start_matches('/'));
        if dir == hierarchy.mount || !dir.is_dir() {
            continue;
        }
        let dir = widest(dir, &hierarchy.mount, &tree, ignored);
        let keepers = keepers(&dir);
        let mut others: Vec<i32> = pids_below(&dir)?
            .difference(&tree)
            .filter(|pid| !ignored.contains(pid) && !keepers.contains(pid))
            .copied()
            .collect();
        if !others.is_empty() {
            // one that was forked meanwhile belongs to it; one that has ended meanwhile to nobody
            let tree = process_tree(pid);
            others.retain(|other| !tree.contains(other) && Path::new(&format!("/proc/{other}")).exists());
        }
        if others.is_empty() {
            if files.iter().any(|file| dir.join(file).exists()) {
                return Ok(dir);
            }
            continue;
        }
        refusal = FreezerError::Shared { pid, dir, others };
    }
    Err(refusal)
}

/// A container may have cgroups of its own below its first one (systemd puts itself into `init.scope`): goes up
/// while parts of the tree are outside and nobody else is in the parent.
fn widest(mut dir: PathBuf, root: &Path, tree: &BTreeSet<i32>, ignored: &BTreeSet<i32>) -> PathBuf {
    while let (Ok(inside), Some(parent)) = (pids_below(&dir), dir.parent()) {
        let alone = |pids: BTreeSet<i32>| pids.iter().all(|pid| tree.contains(pid) || ignored.contains(pid));
        if tree.is_subset(&inside) || parent == root || !pids_below(parent).is_ok_and(alone) {
            break;
        }
        dir = parent.to_path_buf();
    }
    dir
}

/// The mount point of the hierarchy that `dir` is in.
pub(super) fn mount_of(dir: &Path) -> Result<PathBuf> {
    let found = hierarchies()?.into_iter().map(|h| h.mount).filter(|mount| dir.starts_with(mount));
    found.max_by_key(|mount| mount.as_os_str().len()).ok_or_else(|| FreezerError::NotAFreezer(dir.into()))
}

/// The hierarchies mounted here that can freeze: cgroup2 first.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    hierarchies_with(FREEZER)
}

/// The hierarchies mounted here that can have a controller: cgroup2 first.
fn hierarchies_with(controller: &str) -> Result<Vec<Hierarchy>> {
    let mut all = parse_mounts(&read(Path::new("/proc/self/mountinfo"))?, controller);
    all.sort_by_key(|hierarchy| !hierarchy.v2);
    Ok(all)
}

impl Hierarchy {
    pub(super) fn is_v2(&self) -> bool {
        self.v2
    }
}

/// The cgroup of `pid` in each hierarchy that can freeze, relative to its mount.
pub(super) fn own_cgroups(pid: i32) -> Result<Vec<(Hierarchy, String)>> {
    cgroups_with(pid, FREEZER)
}

fn cgroups_with(pid: i32, controller: &str) -> Result<Vec<(Hierarchy, String)>> {
    let paths = parse_paths(&read(Path::new(&format!("/proc/{pid}/cgroup")))?, controller);
    let of = |hierarchy: Hierarchy| {
        let path = if hierarchy.v2 { paths.v2.clone() } else { paths.v1.clone() }?;
        let below = strip_root(&path, &hierarchy.root)?.to_owned();
        Some((hierarchy, below))
    };
    Ok(hierarchies_with(controller)?.into_iter().filter_map(of).collect())
}

/// `path` relative to the mounted cgroup `root`; none when it lies outside and so is not visible.
fn strip_root<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let below = path.strip_prefix(root.trim_end_matches('/'))?;
    let visible = (below.is_empty() || below.starts_with('/')) && !below.split('/').any(|part| part == "..");
    visible.then_some(below)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Paths {
    v2: Option<String>,
    v1: Option<String>,
}

/// `/proc/PID/cgroup`: `ID:CONTROLLERS:PATH` (cgroups(7)).
fn parse_paths(text: &str, controller: &str) -> Paths {
    let mut paths = Paths::default();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if id == "0" && controllers.is_empty() {
            paths.v2 = Some(path.into());
        } else if controllers.split(',').any(|c| c == controller) {
            paths.v1 = Some(path.into());
        }
    }
    paths
}

/// `/proc/PID/mountinfo` (proc_pid_mountinfo(5)): fields 4 (root) and 5 (mount point), after ` - ` the type and the
/// options of the superblock.
fn parse_mounts(text: &str, controller: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
        let mut filesystem = filesystem.split(' ');
        let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
        let v2 = kind == "cgroup2";
        let v1 = kind == "cgroup" && options.split(',').any(|o| o == controller);
        (v1 || v2).then(|| Hierarchy { mount: point.into(), root, v2 })
    };
    text.lines().filter_map(parse).collect()
}

/// Space, tab, newline and backslash are written as `\ooo`.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| FreezerError::File { what: "read", path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hosts_have_both() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 /inner /sys/fs/cgroup/uni\\040fied rw shared:10 - cgroup2 cgroup2 rw\n";
        let found = parse_mounts(mounts, FREEZER);
        assert_eq!(found.len(), 2);
        assert!(!found[0].v2 && found[0].mount == Path::new("/sys/fs/cgroup/freezer"));
        assert!(
            found[1].v2
                && found[1].mount == Path::new("/sys/fs/cgroup/uni fied")
                && found[1].root == "/inner"
        );
    }

    #[test]
    fn paths_of_both_versions_are_read() {
        let paths = |controller| {
            parse_paths("9:name=systemd:/a\n6:freezer,pids:/b:c\n5:cpu,cpuacct:/e\n0::/d\n", controller)
        };
        let both = |v1: &str| Paths { v2: Some("/d".into()), v1: Some(v1.into()) };
        assert_eq!(paths("freezer"), both("/b:c"));
        assert_eq!(paths("cpu"), both("/e"));
        assert_eq!(paths("memory"), Paths { v2: Some("/d".into()), v1: None });
    }

    #[test]
    fn what_is_above_the_mount_is_not_visible() {
        assert_eq!(strip_root("/a/b", "/"), Some("/a/b"));
        assert_eq!(strip_root("/a/b", "/a"), Some("/b"));
        assert_eq!(strip_root("/a", "/a"), Some(""));
        assert_eq!(strip_root("/ab", "/a"), None);
        assert_eq!(strip_root("/../x", "/"), None);
    }
}
