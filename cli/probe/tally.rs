//! Everything the probe counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::gaps::Gaps;
use super::latency::Latency;
use super::ledger::Ledger;

/// A request that left later than this after its time was late.
pub const LATE: Duration = Duration::from_millis(1);

/// Counters of a run.
#[derive(Debug)]
pub struct Tally {
    /// Requests handed to a connection.
    pub sent: u64,
    /// Requests that were answered well; gaps and latencies are of these.
    pub answered: u64,
    /// Requests that will never be answered, because their connection was lost or the run ended.
    pub unanswered: u64,
    /// Requests not sent because no connection could take them.
    pub skipped: u64,
    /// Replies that refused the request (redis errors, HTTP status other than 2xx).
    pub error_replies: u64,
    /// Replies out of sequence.
    pub sequence_errors: u64,
    /// Established connections that were lost, refused to answer in time or broke the protocol.
    pub connections_lost: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Connections established again.
    pub reconnects: u64,
    /// The text of the last error.
    pub last_error: Option<String>,
    /// HTTP replies by status.
    pub http_status: BTreeMap<u16, u64>,
    /// Gaps between answers.
    pub gaps: Gaps,
    /// From the time a request was due to its answer.
    pub latency: Latency,
    /// Acknowledged writes.
    pub ledger: Ledger,
    /// Requests that left more than [`LATE`] after they were due.
    pub late: u64,
    /// How late the sender was at most.
    pub lateness_max: Duration,
    /// The same, since somebody last asked for the gap.
    pub lateness_since_asked: Duration,
    /// When somebody last asked for the gap, or the run began.
    pub asked_at: Instant,
}

impl Tally {
    /// Counts from zero; keeps the `gaps_kept` largest gaps.
    pub fn new(ledger: Ledger, gaps_kept: usize) -> Self {
        Self {
            sent: 0,
            answered: 0,
            unanswered: 0,
            skipped: 0,
            error_replies: 0,
            sequence_errors: 0,
            connections_lost: 0,
            connect_failures: 0,
            reconnects: 0,
            last_error: None,
            http_status: BTreeMap::new(),
            gaps: Gaps::new(gaps_kept),
            latency: Latency::new(),
            ledger,
            late: 0,
            lateness_max: Duration::ZERO,
            lateness_since_asked: Duration::ZERO,
            asked_at: Instant::now(),
        }
    }

    /// All errors a client would have noticed.
    pub fn errors(&self) -> u64 {
        self.error_replies + self.sequence_errors + self.connections_lost + self.connect_failures
    }

    /// A request was due this long ago and is only now looked at.
    pub fn sender_was_late(&mut self, lateness: Duration) {
        self.lateness_max = self.lateness_max.max(lateness);
        self.lateness_since_asked = self.lateness_since_asked.max(lateness);
    }
}
