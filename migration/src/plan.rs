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
    /// Only files move: the container is stopped here and started there, its memory is lost.
    Restart,
}

/// How the memory that changed between rounds is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracker {
    /// Written pages by userfaultfd, read from outside while the container runs; needs Linux 6.7.
    Uffd,
    /// Written pages by the kernel's soft-dirty bit, read from outside while the container runs.
    SoftDirty,
    /// Every page is read from outside in every round; what did not change is not sent.
    Hash,
    /// CRIU pre-dump rounds; needs the kernel's soft-dirty bit.
    PreDump,
    /// One full checkpoint of the running container first; at the freeze what differs in the final dump, by address.
    Checkpoint,
}

impl Tracker {
    /// Whether memory is read from outside, page by page, and CRIU dumps everything but pages. The other trackers send
    /// CRIU's own images.
    pub fn reads_from_outside(self) -> bool {
        matches!(self, Tracker::Uffd | Tracker::SoftDirty | Tracker::Hash)
    }
}

/// How the restored container gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restoration {
    /// Local-lazy where it can work, else eager.
    #[default]
    Auto,
    /// All of it before it runs.
    Eager,
    /// It runs at once; pages, all of which lie on the destination already, are put in place as they are touched and in
    /// the background.
    LocalLazy,
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
    /// Somebody is asked while further rounds go on.
    Ask,
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
    /// Percent of its CPU time that may be taken from the container so that rounds converge: 0 (nothing) to 99.
    pub throttle: u8,
}

impl Default for Limits {
    /// 300 ms as QEMU and cloud-hypervisor, 8 rounds as go-criu's phaul.
    fn default() -> Self {
        Self {
            max_downtime: Duration::from_millis(300),
            max_rounds: 8,
            timeout: Duration::from_secs(600),
            on_timeout: OnTimeout::Cancel,
            throttle: 0,
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

impl Carry {
    /// Whatever there is: for who moves nothing.
    pub const ALL: Self = Self {
        tcp_established: true,
        ext_unix_sk: true,
        file_locks: true,
        shell_job: true,
        link_remap: true,
    };
}

/// What the source's kernel can do to find written pages; each error says why not.
#[derive(Clone, Debug)]
pub struct Abilities {
    /// userfaultfd with asynchronous write protection, and PAGEMAP_SCAN.
    pub uffd: Result<(), String>,
    /// The soft-dirty bit.
    pub soft_dirty: Result<(), String>,
}

/// Chooses the tracker and says why, for the output.
///
/// # Errors
/// The sentence to refuse with, when the one asked for cannot work here.
pub fn choose_tracker(choice: TrackerChoice, can: &Abilities) -> Result<(Tracker, String), String> {
    let needed = |tracker| match tracker {
        Tracker::Uffd => can.uffd.clone(),
        Tracker::SoftDirty | Tracker::PreDump => can.soft_dirty.clone(),
        Tracker::Hash | Tracker::Checkpoint => Ok(()),
    };
    match choice {
        TrackerChoice::Only(tracker) => match needed(tracker) {
            Ok(()) => Ok((tracker, "asked for".into())),
            Err(why) => Err(format!("tracker `{tracker}` cannot work on this host: {why}")),
        },
        TrackerChoice::Auto => Ok(match (&can.uffd, &can.soft_dirty) {
            (Ok(()), _) => (Tracker::Uffd, "the kernel tells which pages are written".into()),
            (Err(why), Ok(())) => (Tracker::SoftDirty, why.clone()),
            (Err(why), Err(also)) => (Tracker::Hash, format!("{why}, and {also}")),
        }),
    }
}

impl std::fmt::Display for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tracker::Uffd => "uffd",
            Tracker::SoftDirty => "soft-dirty",
            Tracker::Hash => "hash",
            Tracker::PreDump => "pre-dump",
            Tracker::Checkpoint => "checkpoint",
        })
    }
}

impl std::fmt::Display for Restoration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Restoration::Auto => "auto",
            Restoration::Eager => "eager",
            Restoration::LocalLazy => "local-lazy",
        })
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Strategy::StopAndCopy => "stop-and-copy",
            Strategy::PreCopy => "pre-copy",
            Strategy::Restart => "restart",
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
        let no = |what: &str| Err(format!("no {what}"));
        let can = |uffd, soft_dirty| Abilities { uffd, soft_dirty };
        let auto = |can: &Abilities| choose_tracker(TrackerChoice::Auto, can).unwrap();
        assert_eq!(auto(&can(Ok(()), Ok(()))).0, Tracker::Uffd);
        assert_eq!(auto(&can(no("uffd"), Ok(()))), (Tracker::SoftDirty, "no uffd".into()));
        let neither = can(no("uffd"), no("soft-dirty"));
        assert_eq!(auto(&neither), (Tracker::Hash, "no uffd, and no soft-dirty".into()));
        for tracker in [Tracker::Uffd, Tracker::SoftDirty, Tracker::PreDump] {
            assert!(choose_tracker(TrackerChoice::Only(tracker), &neither).is_err(), "{tracker}");
        }
        for tracker in [Tracker::Hash, Tracker::Checkpoint] {
            assert_eq!(choose_tracker(TrackerChoice::Only(tracker), &neither).unwrap().0, tracker);
        }
    }
}
