//! The phases of a migration, in their order, on both sides.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Which half is speaking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Where the container runs at the start.
    Source,
    /// Where it shall run.
    Destination,
}

/// One phase. The order of the variants is the order in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// What the container, CRIU and the kernel can do; nothing is touched.
    Preflight,
    /// Hello, Offer, Accept or Refuse.
    Negotiate,
    /// The destination makes everything that can exist early.
    Prepare,
    /// Memory and files, while the container runs.
    PreCopy,
    /// The application gets ready to be moved: it is waited for.
    Shutdown,
    /// The application stands still by itself.
    Quiesce,
    /// Network lock and cgroup freezer: the downtime starts.
    Freeze,
    /// The final dump and the last difference of the files.
    StopAndCopy,
    /// The destination restores the tree and holds it just before it may run.
    Restore,
    /// The source gives up its right to run the container; the destination lets it run: the downtime ends.
    Commit,
    /// The source discards its frozen copy.
    Complete,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Destination => "destination",
        })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Preflight => "preflight",
            Phase::Negotiate => "negotiate",
            Phase::Prepare => "prepare",
            Phase::PreCopy => "pre-copy",
            Phase::Shutdown => "shutdown",
            Phase::Quiesce => "quiesce",
            Phase::Freeze => "freeze",
            Phase::StopAndCopy => "stop-and-copy",
            Phase::Restore => "restore",
            Phase::Commit => "commit",
            Phase::Complete => "complete",
        })
    }
}
