//! Cgroups by name: a runtime whose restore fails leaves those behind that it had made for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use procfs::process::Process;

use super::{FreezerError, Result};

/// Where the cgroup of this path is below the hierarchy of version 2, if that is mounted here.
pub fn cgroup_at(path: &Path) -> Option<PathBuf> {
    let mounts = Process::myself().and_then(|process| process.mountinfo()).ok()?;
    let hierarchy = mounts.into_iter().find(|mount| mount.fs_type == "cgroup2")?;
    Some(hierarchy.mount_point.join(path))
}

/// Every cgroup, of whatever hierarchy is mounted here, whose own name is `name`.
pub fn cgroups_named(name: &str) -> BTreeSet<PathBuf> {
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    let hierarchies =
        mounts.into_iter().flatten().filter(|mount| matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2"));
    let mut todo: Vec<PathBuf> = hierarchies.map(|mount| mount.mount_point).collect();
    let mut found = BTreeSet::new();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name() == name {
                found.insert(entry.path());
            } else {
                todo.push(entry.path());
            }
        }
    }
    found
}

/// Removes a cgroup and those below it. None may hold a task. Idempotent.
pub fn remove_cgroup(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FreezerError::File { what: "remove", path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}
