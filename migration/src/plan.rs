//! What the user asked for: how memory travels, when to stop trying, what CRIU is allowed to carry.

use crate::quantity::show_duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How memory gets across.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Everything under one freeze.
    StopAndCopy,
    /// Memory and files are copied while the container runs, again for what changed, and only the last
    /// difference under the freeze.
    PreCopy,
}

/// How the memory that changed between rounds is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracker {
    /// CRIU pre-dump rounds; needs the kernel's soft-dirty bit.
    PreDump,
    /// One full checkpoint of the running container first; at the freeze what differs in the final dump, by address.
    Checkpoint,
}

/// The tracker as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerChoice {
    /// The best that this kernel and this CRIU can do.
    Auto,
    /// Only this one; refused where it cannot work.
    Only(Tracker),
}

/// What happens when the downtime limit cannot be met in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// The container stays where it is; exit code 14.
    Cancel,
    /// Switch over all the same, and say by how much the limit was missed.
    Switchover,
}

/// When rounds end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The downtime that the user accepts.
    pub max_downtime: Duration,
    /// Pre-copy rounds at most.
    pub max_rounds: u32,
    /// Time for all rounds together.
    pub timeout: Duration,
    /// What to do when rounds or time run out.
    pub on_timeout: OnTimeout,
}

impl Default for Limits {
    /// 300 ms as QEMU and cloud-hypervisor, 8 rounds as go-criu's phaul.
    fn default() -> Self {
        Self {
            max_downtime: Duration::from_millis(300),
            max_rounds: 8,
            timeout: Duration::from_secs(600),
            on_timeout: OnTimeout::Cancel,
        }
    }
}

/// What CRIU may carry; each is off unless asked for, since each has a price that the user should know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carry {
    /// Established TCP connections.
    pub tcp_established: bool,
    /// Unix sockets whose other end is outside of the container.
    pub ext_unix_sk: bool,
    /// File locks.
    pub file_locks: bool,
    /// The process belongs to a terminal session outside.
    pub shell_job: bool,
    /// Files that were unlinked while open and have other names left.
    pub link_remap: bool,
}

/// Chooses the tracker and says why, for the output.
///
/// `soft_dirty` is whether CRIU finds memory tracking usable on the source's kernel.
///
/// # Errors
/// The sentence to refuse with, when the one asked for cannot work here.
pub fn choose_tracker(
    choice: TrackerChoice,
    soft_dirty: Result<(), String>,
) -> Result<(Tracker, String), String> {
    match (choice, soft_dirty) {
        (TrackerChoice::Only(Tracker::PreDump), Err(why)) => {
            Err(format!("tracker `pre-dump` cannot work on this host: {why}"))
        }
        (TrackerChoice::Only(tracker), _) => Ok((tracker, "asked for".into())),
        (TrackerChoice::Auto, Ok(())) => {
            Ok((Tracker::PreDump, "the kernel has soft-dirty page tracking".into()))
        }
        (TrackerChoice::Auto, Err(why)) => Ok((Tracker::Checkpoint, why)),
    }
}

impl std::fmt::Display for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tracker::PreDump => "pre-dump",
            Tracker::Checkpoint => "checkpoint",
        })
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Strategy::StopAndCopy => "stop-and-copy",
            Strategy::PreCopy => "pre-copy",
        })
    }
}

impl std::fmt::Display for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "max downtime {}, {} rounds", show_duration(self.max_downtime), self.max_rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tracker_follows_the_kernel_and_says_why() {
        let no = || Err("no soft-dirty".to_owned());
        assert_eq!(choose_tracker(TrackerChoice::Auto, Ok(())).map(|c| c.0), Ok(Tracker::PreDump));
        assert_eq!(
            choose_tracker(TrackerChoice::Auto, no()),
            Ok((Tracker::Checkpoint, "no soft-dirty".into()))
        );
        assert!(choose_tracker(TrackerChoice::Only(Tracker::PreDump), no()).is_err());
        assert_eq!(
            choose_tracker(TrackerChoice::Only(Tracker::Checkpoint), Ok(())).map(|c| c.0),
            Ok(Tracker::Checkpoint)
        );
    }
}
