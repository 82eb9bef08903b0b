//! What is said after a migration: rounds, downtime, one sentence.

use crate::downtime::{Downtime, micros};
use crate::failure::Disposition;
use crate::id::MigrationId;
use crate::plan::{Restoration, Strategy, Tracker};
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

/// What became of the memory, when it was read from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// How CRIU was kept from dumping pages.
    pub rung: String,
    /// The better ways that did not work, and why.
    pub fell: Vec<String>,
    /// How the restored container got its memory.
    pub restoration: Restoration,
    /// Why not otherwise, where that needs saying.
    pub restoration_why: String,
    /// Pages that were read.
    pub pages_read: u64,
    /// Pages whose content was sent.
    pub pages_sent: u64,
    /// Pages that were all zeroes: a few bytes for any number of them.
    pub pages_zero: u64,
    /// Pages with the content of another one that was there already.
    pub pages_shared: u64,
    /// Pages that were sent in vain: read again, and the same.
    pub pages_unchanged: u64,
    /// How long the longest stop of a thread for the tracker was.
    #[serde(rename = "longest_stop_us", with = "micros")]
    pub longest_stop: Duration,
    /// What the source expected the downtime to be, right before the freeze.
    #[serde(rename = "expected_downtime_us", with = "micros")]
    pub expected_downtime: Duration,
    /// Filling the memory at the destination, after it ran.
    pub fill: Option<FillReport>,
}

/// How the memory of the running container was filled at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FillReport {
    /// Pages put in place.
    pub pages: u64,
    /// Of them, those that a task waited for.
    pub faults: u64,
    /// From go to the last page.
    #[serde(rename = "duration_us", with = "micros")]
    pub duration: Duration,
    /// How often the handler had to be started again.
    pub restarts: u64,
}

/// CPU time that was taken from the container so that rounds converged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThrottleReport {
    /// The most that was taken, in percent of what it used before.
    pub most_percent: u8,
    /// From the first step to the freeze, or to the end of the attempt.
    #[serde(rename = "duration_us", with = "micros")]
    pub duration: Duration,
}

/// Content of the container's files and memory that came from elsewhere than the source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CooperationReport {
    /// Bytes of files and of an earlier checkpoint's memory that were looked for, those that are there several times counted once.
    pub wanted_bytes: u64,
    /// Pages of that checkpoint that are at hand: what the container still has of them need not be sent.
    #[serde(default)]
    pub pages: u64,
    /// Of them, those that the destination's own store had.
    pub own_bytes: u64,
    /// What each neighbour gave.
    pub neighbours: Vec<NeighbourReport>,
    /// Whose checkpoint memory began with, `ENGINE:NAME`: this container's, or that of another one of the same image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<String>,
    /// From the first question to the last answer.
    #[serde(rename = "duration_us", with = "micros")]
    pub duration: Duration,
}

/// What one neighbour of the destination gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NeighbourReport {
    /// Who, as the destination calls it.
    pub neighbour: String,
    /// Bytes of content that were made use of.
    pub bytes: u64,
    /// Why no more was asked of it, where that needs saying.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed: Option<String>,
}

impl CooperationReport {
    /// Bytes that came from elsewhere.
    pub fn gathered_bytes(&self) -> u64 {
        self.own_bytes + self.neighbours.iter().map(|neighbour| neighbour.bytes).sum::<u64>()
    }

    /// What was gathered later is counted, too.
    pub fn add(&mut self, later: Self) {
        let Self { wanted_bytes, pages, earlier, own_bytes, neighbours, duration } = later;
        self.wanted_bytes += wanted_bytes;
        self.pages += pages;
        self.earlier = earlier.or(self.earlier.take());
        self.own_bytes += own_bytes;
        self.duration += duration;
        for neighbour in neighbours {
            match self.neighbours.iter_mut().find(|known| known.neighbour == neighbour.neighbour) {
                Some(known) => {
                    known.bytes += neighbour.bytes;
                    known.failed = neighbour.failed.or(known.failed.take());
                }
                None => self.neighbours.push(neighbour),
            }
        }
    }
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
    /// Memory, when it was read from outside.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory: Option<MemoryReport>,
    /// The CPU time that was taken from it, when it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub throttle: Option<ThrottleReport>,
    /// Content that came from elsewhere than the source, when it was looked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cooperation: Option<CooperationReport>,
    /// All rounds, the final one last.
    pub rounds: Vec<RoundReport>,
    /// Bytes over the wire in all.
    pub wire_bytes: u64,
    /// What remains to be cleaned up by hand.
    pub leftovers: Vec<String>,
}
