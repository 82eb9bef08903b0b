//! Giving a running container less CPU time for a while: the bandwidth limit of its cgroup.
//!
//! cgroup2 has `cpu.max` (`QUOTA PERIOD` or `max PERIOD`), v1 has `cpu.cfs_quota_us` (-1: no limit) beside `cpu.cfs_period_us`;
//! all in microseconds (kernel, Documentation/admin-guide/cgroup-v2.rst and Documentation/scheduler/sched-bwc.rst). Either
//! way one file is written, so that there is no moment with half of a change.

use crate::error::EngineError;
use crate::freezer::FreezerError;
use crate::freezer::discover::own_dir;
use godwit_migration::throttle::LimitChange;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The kernel takes neither a shorter quota nor a shorter period (kernel/sched/core.c, `min_cfs_quota_period`), in µs.
const LEAST: u64 = 1000;
/// The period where it can be chosen, in µs: a throttled program stands still for the most of it, so shorter than the usual
/// 100 ms.
const PERIOD: u64 = 20_000;
/// The longest period that the kernel takes, in µs.
const LONGEST: u64 = 1_000_000;

const V2: &str = "cpu.max";
const V1: &str = "cpu.cfs_quota_us";
const V1_PERIOD: &str = "cpu.cfs_period_us";

/// Where the CPU time of a container is limited and counted.
#[derive(Debug)]
pub struct CpuCgroup {
    /// The file with the limit.
    limit: PathBuf,
    /// Of v1: the period that goes with it, in µs.
    v1_period: Option<u64>,
    /// The file that counts.
    count: PathBuf,
    /// What the limit was before the first change, while it is changed.
    original: Option<String>,
}

impl CpuCgroup {
    /// The CPU cgroup of the container whose first process is `pid`.
    ///
    /// # Errors
    /// [`EngineError::NoCpuLimit`] when it has none of its own: a limit would hit others.
    pub fn of_pid(pid: i32) -> Result<Self, EngineError> {
        let own = |controller: &str, file: &str| match own_dir(pid, controller, &[V2, file], &BTreeSet::new())
        {
            Err(FreezerError::NoOwnCgroup(_)) => Err(EngineError::NoCpuLimit(format!(
                "process {pid} has no cgroup of its own with the controller `{controller}`"
            ))),
            other => other.map_err(EngineError::from),
        };
        let dir = own("cpu", V1)?;
        if dir.join(V2).exists() {
            let (limit, count) = (dir.join(V2), dir.join("cpu.stat"));
            return Ok(Self { limit, v1_period: None, count, original: None });
        }
        let period = dir.join(V1_PERIOD);
        let v1_period = number(&read(&period)?, &period)?;
        let count = own("cpuacct", "cpuacct.usage")?.join("cpuacct.usage");
        Ok(Self { limit: dir.join(V1), v1_period: Some(v1_period), count, original: None })
    }

    /// CPU time that the container has used until now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn used(&self) -> Result<Duration, EngineError> {
        let text = read(&self.count)?;
        // v1: one number, of nanoseconds
        if self.v1_period.is_some() {
            return Ok(Duration::from_nanos(number(&text, &self.count)?));
        }
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(number(line.unwrap_or_default(), &self.count)?))
    }

    /// The change that leaves the container `processors` of them, or what it is limited to already if that is less.
    ///
    /// # Errors
    /// When the present limit cannot be read.
    pub fn plan(&self, processors: f64) -> Result<LimitChange, EngineError> {
        let original = match &self.original {
            Some(original) => original.clone(),
            None => read(&self.limit)?.trim().to_owned(),
        };
        let now = match self.v1_period {
            Some(period) => v1_quota(&original, period, processors),
            None => v2_limit(&original, processors),
        };
        let now = now.ok_or_else(|| EngineError::Unreadable {
            path: self.limit.clone(),
            reason: format!("`{original}` is no limit"),
        })?;
        Ok(LimitChange { file: self.limit.clone(), original, now })
    }

    /// Makes the change.
    ///
    /// # Errors
    /// When the kernel says no; a cgroup below may have a limit of its own that is higher.
    pub fn throttle(&mut self, change: &LimitChange) -> Result<(), EngineError> {
        write(&self.limit, &change.now)?;
        self.original.get_or_insert_with(|| change.original.clone());
        Ok(())
    }

    /// Whether its limit is changed at present.
    pub fn is_throttled(&self) -> bool {
        self.original.is_some()
    }

    /// Writes what there was before the first change. Idempotent; a cgroup that has gone needs nothing.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn unthrottle(&mut self) -> Result<(), EngineError> {
        let Some(original) = &self.original else { return Ok(()) };
        if self.limit.exists() {
            write(&self.limit, original)?;
        }
        self.original = None;
        Ok(())
    }
}

impl Drop for CpuCgroup {
    /// Whatever happened to whoever throttled it.
    fn drop(&mut self) {
        if let Err(error) = self.unthrottle() {
            tracing::warn!(%error, "a CPU limit could not be put back");
        }
    }
}

/// Undoes the changes of a migration that died, in the order they were made; whether there was anything to undo. A limit that is
/// none of those that were written has been set by somebody else since, or belongs to another container, and stays.
///
/// # Errors
/// When the limit cannot be read or written.
pub fn undo(changes: &[LimitChange]) -> Result<bool, EngineError> {
    let Some(last) = changes.last().filter(|last| last.file.exists()) else { return Ok(false) };
    let present = read(&last.file)?;
    if !changes.iter().any(|change| change.file == last.file && change.now == present.trim()) {
        return Ok(false);
    }
    write(&last.file, &last.original)?;
    Ok(true)
}

/// `cpu.max` for so many processors; `None` when `original` cannot be understood.
fn v2_limit(original: &str, processors: f64) -> Option<String> {
    let (quota, period) = original.split_once(' ')?;
    let period: u64 = period.trim().parse().ok()?;
    let own =
        if quota == "max" { f64::INFINITY } else { quota.parse::<u64>().ok()? as f64 / period.max(1) as f64 };
    let processors = processors.min(own).max(0.0);
    // the period that makes the quota long enough for the kernel
    let period = (LEAST as f64 / processors.max(1e-9)).ceil().clamp(PERIOD as f64, LONGEST as f64);
    let quota = ((processors * period) as u64).max(LEAST);
    Some(format!("{quota} {}", period as u64))
}

/// `cpu.cfs_quota_us` for so many processors; `None` when `original` cannot be understood.
fn v1_quota(original: &str, period: u64, processors: f64) -> Option<String> {
    let own: i64 = original.parse().ok()?;
    let quota = ((processors.max(0.0) * period as f64) as u64).max(LEAST);
    Some(u64::try_from(own).map_or(quota, |own| quota.min(own)).to_string())
}

fn read(path: &Path) -> Result<String, EngineError> {
    std::fs::read_to_string(path).map_err(EngineError::io("read", path))
}

fn write(path: &Path, text: &str) -> Result<(), EngineError> {
    std::fs::write(path, text).map_err(EngineError::io("write", path))
}

fn number(text: &str, path: &Path) -> Result<u64, EngineError> {
    let unreadable = |error: std::num::ParseIntError| EngineError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    text.trim().parse().map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_both_versions() {
        for (original, processors, want) in [
            ("max 100000", 1.0, "20000 20000"),
            ("max 100000", 0.1, "2000 20000"),
            ("max 100000", 0.01, "1000 100000"),
            ("max 100000", 0.0, "1000 1000000"),
            ("max 100000", 1.5, "30000 20000"),
            // no more than it had
            ("5000 50000", 0.5, "2000 20000"),
            ("5000 50000", 0.05, "1000 20000"),
        ] {
            assert_eq!(v2_limit(original, processors).as_deref(), Some(want), "{original} {processors}");
        }
        for (original, processors, want) in
            [("-1", 0.5, "50000"), ("-1", 0.0, "1000"), ("30000", 0.5, "30000"), ("30000", 0.1, "10000")]
        {
            assert_eq!(v1_quota(original, 100_000, processors).as_deref(), Some(want), "{original}");
        }
        for nonsense in ["", "max", "many 100000", "1 x"] {
            assert_eq!(v2_limit(nonsense, 1.0), None);
            assert_eq!(v1_quota(nonsense, 100_000, 1.0), None);
        }
    }

    fn cgroup(dir: &Path) -> CpuCgroup {
        CpuCgroup { limit: dir.join(V2), v1_period: None, count: dir.join("cpu.stat"), original: None }
    }

    #[test]
    fn the_first_value_comes_back_whatever_the_steps() {
        let dir = tempfile::tempdir().unwrap();
        let limit = || std::fs::read_to_string(dir.path().join(V2)).unwrap();
        std::fs::write(dir.path().join(V2), "150000 100000\n").unwrap();
        std::fs::write(dir.path().join("cpu.stat"), "usage_usec 1500\nuser_usec 1\n").unwrap();
        let mut cpu = cgroup(dir.path());
        assert_eq!(cpu.used().unwrap(), Duration::from_micros(1500));
        let mut changes = Vec::new();
        for processors in [0.5, 0.2] {
            let change = cpu.plan(processors).unwrap();
            assert_eq!(change.original, "150000 100000");
            cpu.throttle(&change).unwrap();
            assert_eq!(limit(), change.now);
            changes.push(change);
        }
        cpu.unthrottle().unwrap();
        assert_eq!(limit(), "150000 100000");
        // another process that knows only the journal
        assert!(!undo(&changes).unwrap(), "nothing to undo");
        for change in &changes {
            std::fs::write(&change.file, format!("{}\n", change.now)).unwrap();
            assert!(undo(&changes).unwrap());
            assert_eq!(limit(), "150000 100000");
        }
        // dropped in the midst
        cpu.throttle(&changes[0]).unwrap();
        drop(cpu);
        assert_eq!(limit(), "150000 100000");
    }

    #[test]
    fn a_limit_that_somebody_else_has_set_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(V2), "max 100000").unwrap();
        let change = cgroup(dir.path()).plan(0.5).unwrap();
        std::fs::write(&change.file, "70000 100000").unwrap();
        assert!(!undo(std::slice::from_ref(&change)).unwrap());
        assert_eq!(std::fs::read_to_string(&change.file).unwrap(), "70000 100000");
        std::fs::remove_file(&change.file).unwrap();
        assert!(!undo(&[change]).unwrap(), "its cgroup has gone");
    }
}
