//! What is said after a migration: rounds, downtime, one sentence.

use crate::downtime::{Downtime, micros};
use crate::failure::Disposition;
use crate::id::MigrationId;
use crate::plan::{Strategy, Tracker};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One pre-copy round, or the final one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// From 0; the final one under the freeze has the next number.
    pub round: u32,
    /// Whether it ran under the freeze.
    pub last: bool,
    /// Bytes of memory that the tracker wrote.
    pub memory_bytes: u64,
    /// Bytes of files that were read because they had changed.
    pub file_bytes: u64,
    /// Bytes that went over the wire, compressed, headers included.
    pub wire_bytes: u64,
    /// From the first look at memory to the acknowledgement.
    #[serde(rename = "duration_us", with = "micros")]
    pub duration: Duration,
    /// How long the container stood still for this round, by CRIU's own count; the final one is the downtime.
    #[serde(rename = "frozen_us", with = "micros")]
    pub frozen: Duration,
    /// Bytes a second written anew; absent before there are two rounds to compare.
    pub dirty_rate_bytes_per_s: Option<u64>,
    /// What the verdict expected after this round.
    pub expected_downtime_us: Option<u64>,
}

/// The whole migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its id, the same on both hosts.
    pub migration: MigrationId,
    /// The container as the user named it.
    pub container: String,
    /// Where it went, as the user named it.
    pub destination: String,
    /// Where the container is now.
    pub disposition: Disposition,
    /// How memory travelled.
    pub strategy: Strategy,
    /// How changed memory was found; absent for stop-and-copy.
    pub tracker: Option<Tracker>,
    /// The container's first process at the destination, in that host's pid namespace.
    pub pid: i32,
    /// From the command to the end.
    #[serde(rename = "duration_us", with = "micros")]
    pub duration: Duration,
    /// The limit that the user set.
    #[serde(rename = "max_downtime_us", with = "micros")]
    pub max_downtime: Duration,
    /// Total of the parts.
    #[serde(rename = "downtime_us", with = "micros")]
    pub downtime_total: Duration,
    /// The parts.
    pub downtime: Downtime,
    /// All rounds, the final one last.
    pub rounds: Vec<RoundReport>,
    /// Bytes over the wire in all.
    pub wire_bytes: u64,
    /// What remains to be cleaned up by hand.
    pub leftovers: Vec<String>,
}
