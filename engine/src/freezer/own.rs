//! A cgroup of godwit's own, for a bare process tree that has none.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::discover::{hierarchies, mount_of, own_cgroups};
use super::{Freezer, FreezerError, Result};

/// A cgroup made by godwit, and where its processes came from. It can be written into a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCgroup {
    /// The cgroup.
    pub dir: PathBuf,
    /// The cgroup each adopted process was in.
    pub origins: BTreeMap<i32, PathBuf>,
}

impl OwnCgroup {
    /// Makes cgroup `name` below the root of the v1 freezer hierarchy if there is one, which moves nothing but the
    /// freezer, else of cgroup2. An empty one left by an earlier run is taken over.
    pub fn create(name: &str) -> Result<Self> {
        let all = hierarchies()?;
        let hierarchy = all.iter().find(|h| !h.is_v2()).or(all.first());
        let mount = hierarchy.map(|h| h.mount.clone());
        let mount = mount.ok_or_else(|| FreezerError::NotAFreezer("/sys/fs/cgroup".into()))?;
        Self::create_at(mount.join(name))
    }

    /// Makes the cgroup at `dir`, below an existing one.
    pub fn create_at(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        match fs::create_dir(&dir) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FreezerError::File { what: "create", path: dir, source });
            }
            _ => {}
        }
        let freezer = Freezer::at(&dir)?;
        let others: Vec<i32> = freezer.pids()?.into_iter().collect();
        if let Some(&pid) = others.first() {
            return Err(FreezerError::Shared { pid, dir, others });
        }
        freezer.thaw()?;
        Ok(Self { dir, origins: BTreeMap::new() })
    }

    /// Its freezer.
    pub fn freezer(&self) -> Result<Freezer> {
        Freezer::at(&self.dir)
    }

    /// Moves `pids` in, remembering where they were. One that has ended is skipped. Repeat with a fresh list until
    /// it is stable: a process may fork while it is moved.
    pub fn adopt(&mut self, pids: impl IntoIterator<Item = i32>) -> Result<()> {
        let here = mount_of(&self.dir)?;
        for pid in pids {
            let Ok(cgroups) = own_cgroups(pid) else { continue };
            let Some((hierarchy, path)) = cgroups.into_iter().find(|(h, _)| h.mount == here) else {
                continue;
            };
            let origin = hierarchy.mount.join(path.trim_start_matches('/'));
            if origin == self.dir {
                continue;
            }
            put(pid, &self.dir)?;
            self.origins.insert(pid, origin);
        }
        Ok(())
    }

    /// Moves every process back to where it was (one born here: to where its siblings were) and removes the cgroup.
    /// Frozen processes are thawed by leaving. Idempotent.
    pub fn release(&self) -> Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        let freezer = self.freezer()?;
        let begun = Instant::now();
        loop {
            for pid in freezer.pids()? {
                let origin =
                    self.origins.get(&pid).or(self.origins.values().next()).filter(|dir| dir.is_dir());
                match origin.map(|origin| put(pid, origin)) {
                    Some(Ok(())) => {}
                    _ => freezer.move_out(pid)?,
                }
            }
            // A dying process keeps the cgroup busy for a moment.
            match fs::remove_dir(&self.dir) {
                Err(e)
                    if e.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < Duration::from_secs(5) =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(FreezerError::File { what: "remove", path: self.dir.clone(), source });
                }
                _ => return Ok(()),
            }
        }
    }
}

/// Moves a process; one that ended needs no moving.
fn put(pid: i32, dir: &std::path::Path) -> Result<()> {
    let path = dir.join("cgroup.procs");
    match fs::write(&path, pid.to_string()) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map_err(|source| FreezerError::File { what: "write", path, source }),
    }
}
