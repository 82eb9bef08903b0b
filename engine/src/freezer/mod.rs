//! The cgroup freezer: the guard over who may run a container.
//!
//! One [`Freezer`] is one cgroup directory, of the v1 `freezer` hierarchy (`freezer.state`) or of cgroup2
//! (`cgroup.freeze`). Its state needs no process and survives the death of every one.

pub(crate) mod discover;
mod hold;
mod keeper;
mod named;
mod own;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use godwit_guardian::Brake;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use hold::{Hold, HookCall, cgroup_of_criu, hold_beside, hold_from_hook, move_criu_out};
pub use named::{cgroup_at, cgroups_named, remove_cgroup};
pub use own::OwnCgroup;
pub use tree::{adopted_by_others, others_in_pid_namespace, process_tree};

/// Time the discarded tasks may take to be gone: exit of large processes takes a while.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Why a freezer operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FreezerError {
    /// A file of the cgroup could not be read or written.
    #[error("cannot {what} `{}`: {source}", path.display())]
    File {
        /// `open`, `read`, `write`, `create` or `remove`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory is not a cgroup that can be frozen.
    #[error("`{}` is not a cgroup with a freezer", .0.display())]
    NotAFreezer(PathBuf),
    /// The process has no cgroup below the root, so freezing its cgroup would freeze the host.
    #[error("process {0} has no cgroup of its own in any hierarchy with a freezer")]
    NoOwnCgroup(i32),
    /// The cgroup has processes that are not of the container.
    #[error("cgroup `{}` of process {pid} also holds processes that are not of its tree: {}", dir.display(), list(others))]
    Shared {
        /// The process asked for.
        pid: i32,
        /// Its cgroup.
        dir: PathBuf,
        /// Who else is in it.
        others: Vec<i32>,
    },
    /// The tasks did not freeze in time; the cgroup was thawed again.
    #[error("cgroup `{}` did not freeze within {} ms and was thawed again", dir.display(), limit.as_millis())]
    NotFrozen {
        /// The cgroup.
        dir: PathBuf,
        /// The time given.
        limit: Duration,
    },
    /// The cgroup does not hold what it should.
    #[error("the container is not held in cgroup `{}`: {reason}", dir.display())]
    NotHeld {
        /// The cgroup.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Killed tasks are still there.
    #[error("processes of cgroup `{}` are still there {} s after SIGKILL: {}", dir.display(), KILL_LIMIT.as_secs(), list(pids))]
    NotGone {
        /// The cgroup.
        dir: PathBuf,
        /// The processes.
        pids: Vec<i32>,
    },
    /// A process could not be moved to any cgroup outside.
    #[error("cannot move process {pid} out of cgroup `{}`: {source}", dir.display())]
    NotMoved {
        /// The process.
        pid: i32,
        /// The cgroup it is in.
        dir: PathBuf,
        /// What the kernel said last.
        source: io::Error,
    },
    /// CRIU's environment for hooks is incomplete.
    #[error("not called by CRIU as an action script: `{0}` is not set")]
    NotAHook(&'static str),
}

/// Result of a freezer operation.
pub type Result<T, E = FreezerError> = std::result::Result<T, E>;

/// Whether the tasks of a cgroup run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreezeState {
    /// They run.
    Thawed,
    /// They were told to freeze; some still run.
    Freezing,
    /// None runs.
    Frozen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A cgroup that can be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freezer {
    dir: PathBuf,
    version: Version,
}

impl Freezer {
    /// The cgroup at `dir`, as this mount namespace sees it.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        if dir.join("freezer.state").exists() {
            Ok(Self { dir, version: Version::V1 })
        } else if dir.join("cgroup.freeze").exists() {
            Ok(Self { dir, version: Version::V2 })
        } else {
            Err(FreezerError::NotAFreezer(dir))
        }
    }

    /// The cgroup that holds the container whose first process is `pid`, and nothing else: of cgroup2 if the
    /// container has its own there, else of the v1 freezer.
    ///
    /// # Errors
    /// [`FreezerError::NoOwnCgroup`] when it sits at the root (see [`OwnCgroup::create`]), [`FreezerError::Shared`]
    /// when others are in its cgroup.
    pub fn of_pid(pid: i32) -> Result<Self> {
        discover::of_pid(pid, &BTreeSet::new())
    }

    /// The directory, for CRIU's `--freeze-cgroup`.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether this is a cgroup of the unified hierarchy.
    pub fn is_v2(&self) -> bool {
        self.version == Version::V2
    }

    /// Freezes every task and waits until all are; returns the time it took. Already frozen is fine. When `limit`
    /// passes, the cgroup is thawed again and [`FreezerError::NotFrozen`] returned.
    pub fn freeze(&self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        self.order(true)?;
        let mut ordered = begun;
        loop {
            if self.state()? == FreezeState::Frozen {
                return Ok(begun.elapsed());
            }
            let waited = begun.elapsed();
            if waited > limit {
                self.order(false)?;
                return Err(FreezerError::NotFrozen { dir: self.dir.clone(), limit });
            }
            // A task forked while v1 was freezing may have been missed: ask again.
            if self.version == Version::V1 && ordered.elapsed() > Duration::from_millis(50) {
                self.order(true)?;
                ordered = Instant::now();
            }
            let step = if waited < Duration::from_millis(20) { 100 } else { 1000 };
            std::thread::sleep(Duration::from_micros(step));
        }
    }

    /// Orders the freeze without waiting: for a guardian that must not block.
    pub fn order_freeze(&self) -> Result<()> {
        self.order(true)
    }

    /// What freezes it when CRIU dies, be CRIU in it or not.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn brake(&self) -> Result<Brake> {
        let failed = |path: &Path, source| FreezerError::File { what: "open", path: path.into(), source };
        let brake = Brake::of(&self.dir).map_err(|source| failed(&self.dir, source))?;
        // where we are there is room for a process
        let mount = discover::mount_of(&self.dir)?;
        let own = discover::own_cgroups(std::process::id().cast_signed())?;
        let own = own.into_iter().find(|(hierarchy, _)| hierarchy.mount == mount);
        let Some((_, below)) = own else { return Ok(brake) };
        let procs = mount.join(below.trim_start_matches('/')).join("cgroup.procs");
        let file =
            fs::OpenOptions::new().write(true).open(&procs).map_err(|source| failed(&procs, source))?;
        Ok(brake.with_outside(file))
    }

    /// Lets every task run. Thawed already is fine.
    pub fn thaw(&self) -> Result<()> {
        self.order(false)
    }

    /// Whether the tasks run, as the kernel says.
    pub fn state(&self) -> Result<FreezeState> {
        match self.version {
            Version::V1 => Ok(match self.read("freezer.state")?.trim() {
                "FROZEN" => FreezeState::Frozen,
                "FREEZING" => FreezeState::Freezing,
                _ => FreezeState::Thawed,
            }),
            Version::V2 => {
                let frozen = self.read("cgroup.events")?.lines().any(|line| line == "frozen 1");
                Ok(match (frozen, self.read("cgroup.freeze")?.trim()) {
                    (true, _) => FreezeState::Frozen,
                    (false, "1") => FreezeState::Freezing,
                    _ => FreezeState::Thawed,
                })
            }
        }
    }

    /// Every process in the cgroup and its children, as this pid namespace numbers them (0: not visible here).
    pub fn pids(&self) -> Result<BTreeSet<i32>> {
        pids_below(&self.dir)
    }

    /// Whether every process in the cgroup is one of `tree`.
    pub fn is_exclusively(&self, tree: &BTreeSet<i32>) -> Result<bool> {
        Ok(self.pids()?.is_subset(tree))
    }

    /// Verifies that the cgroup is frozen and every one of `pids` is in it that has not ended.
    pub fn verify_held(&self, pids: &BTreeSet<i32>) -> Result<()> {
        let not_held = |reason| Err(FreezerError::NotHeld { dir: self.dir.clone(), reason });
        let state = self.state()?;
        if state != FreezeState::Frozen {
            return not_held(format!("it is {}", format!("{state:?}").to_lowercase()));
        }
        if pids.is_empty() {
            return not_held("no process is to be held".into());
        }
        let inside = self.pids()?;
        // one that has ended is in no list of processes any more, and runs nowhere
        let outside: Vec<i32> =
            pids.difference(&inside).copied().filter(|pid| !tree::has_ended(*pid)).collect();
        if !outside.is_empty() {
            return not_held(format!("these processes are not in it: {}", list(&outside)));
        }
        Ok(())
    }

    /// Kills what was put into the frozen cgroup of the container of process `init` from outside, such as an engine's health check on
    /// its way in. The container stands still, and those do not run either. Nothing is done when `init` is not in it.
    pub fn kill_visitors(&self, init: i32) -> Result<()> {
        let inside = self.pids()?;
        let tree = process_tree(init);
        if !inside.contains(&init) || !tree.contains(&init) {
            return Ok(());
        }
        for visitor in inside.difference(&tree).copied().filter(|pid| *pid > 0) {
            // one that is gone is gone
            let _ = kill(Pid::from_raw(visitor), Signal::SIGKILL);
            // frozen tasks of v1 do not die
            if self.version == Version::V1 {
                self.move_out(visitor)?;
            }
        }
        Ok(())
    }

    /// Discards the container: kills every task while frozen and waits until all are gone. No instruction of the
    /// container runs. The empty cgroup is left thawed. Idempotent; a missing cgroup is done already.
    ///
    /// SIGKILL is left pending for all, on v2 by `cgroup.kill` (kernel 5.14), and the thaw lets them die of it: on v1 a frozen task cannot.
    pub fn kill_frozen(&self) -> Result<()> {
        match self.kill_what_is_frozen() {
            // systemd takes a scope away as soon as nobody is in it
            Err(_) if self.goes_away() => Ok(()),
            killed => killed,
        }
    }

    /// Whether the cgroup is gone, or will be in a moment: on its way it refuses everything, and is still seen.
    fn goes_away(&self) -> bool {
        (0..20).any(|_| {
            let is_gone = !self.dir.exists();
            if !is_gone {
                std::thread::sleep(Duration::from_millis(1));
            }
            is_gone
        })
    }

    fn kill_what_is_frozen(&self) -> Result<()> {
        if self.pids()?.is_empty() {
            return self.thaw();
        }
        self.freeze(Duration::from_secs(10))?;
        let begun = Instant::now();
        self.kill_all()?;
        // all of them have their SIGKILL, and do nothing else. An engine that hears of their end must not find them frozen: it would take
        // the container for one that runs, and docker leaves its shim
        self.thaw()?;
        loop {
            let left = self.pids()?;
            if left.is_empty() && !self.is_busy() {
                return self.thaw();
            }
            if begun.elapsed() > KILL_LIMIT {
                return Err(FreezerError::NotGone {
                    dir: self.dir.clone(),
                    pids: left.into_iter().collect(),
                });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether tasks are still on their way out: they leave `cgroup.procs` before the kernel lets the cgroup be removed
    /// (cgroup2 only; runc gives up on the first refusal there).
    fn is_busy(&self) -> bool {
        self.version == Version::V2
            && self.read("cgroup.events").is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    fn kill_all(&self) -> Result<()> {
        if self.version == Version::V2 && self.dir.join("cgroup.kill").exists() {
            return self.write("cgroup.kill", "1");
        }
        for pid in self.pids()? {
            // 0 would be our own process group.
            if pid <= 0 {
                return Err(FreezerError::NotHeld {
                    dir: self.dir.clone(),
                    reason: "it holds processes of a foreign pid namespace".into(),
                });
            }
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(FreezerError::NotHeld {
                        dir: self.dir.clone(),
                        reason: format!("process {pid} cannot be killed: {errno}"),
                    });
                }
            }
        }
        Ok(())
    }

    /// Moves process `pid` to a cgroup outside, where the freeze does not reach it: on v1 the root of the hierarchy;
    /// on v2 its leaf `init` if there is one, else the parent, else the root (a cgroup2 with controllers enabled
    /// takes no process).
    pub fn move_out(&self, pid: i32) -> Result<()> {
        let root = discover::mount_of(&self.dir)?;
        let parent = self.dir.parent().unwrap_or(&root).to_path_buf();
        let candidates = match self.version {
            Version::V1 => vec![root],
            Version::V2 => vec![root.join("init"), parent, root],
        };
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for candidate in candidates.iter().filter(|dir| dir.is_dir() && !dir.starts_with(&self.dir)) {
            match fs::write(candidate.join("cgroup.procs"), pid.to_string()) {
                Ok(()) => return Ok(()),
                // It ended meanwhile: it is out.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                Err(e) => last = e,
            }
        }
        Err(FreezerError::NotMoved { pid, dir: self.dir.clone(), source: last })
    }

    fn order(&self, freeze: bool) -> Result<()> {
        match self.version {
            Version::V1 => self.write("freezer.state", if freeze { "FROZEN" } else { "THAWED" }),
            Version::V2 => self.write("cgroup.freeze", if freeze { "1" } else { "0" }),
        }
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).map_err(|source| FreezerError::File { what: "read", path, source })
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, text).map_err(|source| FreezerError::File { what: "write", path, source })
    }
}

fn pids_below(dir: &Path) -> Result<BTreeSet<i32>> {
    let failed = |path: &Path, source| FreezerError::File { what: "read", path: path.into(), source };
    let procs = dir.join("cgroup.procs");
    let text = match fs::read_to_string(&procs) {
        // A threaded cgroup2 lists its processes at the root of its domain only.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        other => other.map_err(|e| failed(&procs, e))?,
    };
    let mut pids: BTreeSet<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(dir).map_err(|e| failed(dir, e))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match pids_below(&entry.path()) {
                // A child removed while we looked holds nothing.
                Err(_) if !entry.path().exists() => {}
                below => pids.extend(below?),
            }
        }
    }
    Ok(pids)
}

fn list(pids: &[i32]) -> String {
    const SHOWN: usize = 8;
    let mut text = pids.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if pids.len() > SHOWN {
        text += &format!(" and {} more", pids.len() - SHOWN);
    }
    text
}
