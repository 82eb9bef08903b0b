//! The result, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::client::StoppedBy;
use super::gaps::{Gap, measure, micros};
use super::latency::Percentiles;
use super::ledger::WriteCounts;
use super::tally::Tally;

/// The result of a run; times are µs.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Always `probe`.
    pub message_type: &'static str,
    /// What was probed.
    pub address: String,
    /// Why sending ended.
    pub stopped_by: StoppedBy,
    /// How long was sent.
    pub duration_us: u64,
    /// Time between two requests.
    pub interval_us: u64,
    /// Connections at a time.
    pub connections: usize,
    /// Requests sent.
    pub sent: u64,
    /// Requests answered well.
    pub answered: u64,
    /// Requests whose answer never came.
    pub unanswered: u64,
    /// Requests not sent for want of a usable connection.
    pub skipped: u64,
    /// All errors.
    pub errors: u64,
    /// Errors: replies that refused the request.
    pub error_replies: u64,
    /// Errors: replies out of sequence.
    pub sequence_errors: u64,
    /// Errors: connections lost.
    pub connections_lost: u64,
    /// Errors: failed attempts to connect.
    pub connect_failures: u64,
    /// Connections established again.
    pub reconnects: u64,
    /// The text of the last error.
    pub last_error: Option<String>,
    /// The largest gap.
    pub max_gap_us: Option<u64>,
    /// The largest gaps, largest first.
    pub gaps: Vec<Gap>,
    /// Latencies from the time a request was due.
    pub latency_us: Option<Percentiles>,
    /// HTTP replies by status.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub http_status: BTreeMap<u16, u64>,
    /// Acknowledged writes; redis only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<WriteCounts>,
    /// Why acknowledged writes could not all be read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_error: Option<String>,
    /// Requests that left more than 1 ms late.
    pub late: u64,
    /// How late the sender was at most: the probe's own noise.
    pub sender_lateness_max_us: u64,
}

impl Report {
    /// Takes the figures from a tally.
    pub fn new(
        address: String,
        interval: Duration,
        connections: usize,
        (stopped_by, duration): (StoppedBy, Duration),
        tally: &Tally,
        verify_error: Option<String>,
    ) -> Self {
        Self {
            message_type: "probe",
            address,
            stopped_by,
            duration_us: micros(duration),
            interval_us: micros(interval),
            connections,
            sent: tally.sent,
            answered: tally.answered,
            unanswered: tally.unanswered,
            skipped: tally.skipped,
            errors: tally.errors(),
            error_replies: tally.error_replies,
            sequence_errors: tally.sequence_errors,
            connections_lost: tally.connections_lost,
            connect_failures: tally.connect_failures,
            reconnects: tally.reconnects,
            last_error: tally.last_error.clone(),
            max_gap_us: tally.gaps.largest().first().map(|gap| gap.duration_us),
            gaps: tally.gaps.largest().to_vec(),
            latency_us: tally.latency.percentiles(),
            http_status: tally.http_status.clone(),
            writes: tally.ledger.counts(),
            verify_error,
            late: tally.late,
            sender_lateness_max_us: micros(tally.lateness_max),
        }
    }

    /// 0, or 1 when writes were lost or not verifiable, or the server never answered.
    pub fn exit_code(&self) -> i32 {
        let bad_writes = self.writes.as_ref().is_some_and(|writes| writes.lost + writes.unverified > 0);
        let never_answered = self.answered == 0 && self.stopped_by != StoppedBy::VerifyOnly;
        i32::from(bad_writes || never_answered)
    }

    /// A table.
    pub fn table(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        if self.stopped_by != StoppedBy::VerifyOnly {
            self.traffic(&mut rows);
        }
        if let Some(writes) = &self.writes {
            let WriteCounts { acknowledged, found, lost, unverified, .. } = writes;
            rows.push((
                "WRITES",
                format!("{acknowledged} acknowledged, {found} found, {lost} lost, {unverified} not verified"),
            ));
            for example in &writes.lost_examples {
                let found =
                    example.found.as_deref().map_or("nothing".to_owned(), |found| format!("`{found}`"));
                rows.push(("", format!("lost {} of `{}`, found {found}", example.acknowledged, example.key)));
            }
        }
        if let Some(error) = &self.verify_error {
            rows.push(("", format!("could not read back: {error}")));
        }
        if let Some(error) = &self.last_error {
            rows.push(("LAST ERROR", error.clone()));
        }
        let mut text = format!("{}\n", self.address);
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<11} {value}");
        }
        text
    }

    fn traffic(&self, rows: &mut Vec<(&str, String)>) {
        let seconds = self.duration_us as f64 / 1e6;
        let rate = if seconds > 0.0 { self.sent as f64 / seconds } else { 0.0 };
        rows.push((
            "REQUESTS",
            format!(
                "{} sent in {seconds:.1} s ({rate:.0}/s), {} answered, {} unanswered, {} skipped",
                self.sent, self.answered, self.unanswered, self.skipped
            ),
        ));
        rows.push(("ERRORS", format!("{}, {} reconnects", self.errors, self.reconnects)));
        if !self.http_status.is_empty() {
            let statuses: Vec<String> =
                self.http_status.iter().map(|(code, count)| format!("{count} × {code}")).collect();
            rows.push(("STATUS", statuses.join(", ")));
        }
        if let Some(Percentiles { p50, p99, max }) = self.latency_us {
            rows.push(("LATENCY", format!("p50 {}, p99 {}, max {}", time(p50), time(p99), time(max))));
        } else {
            rows.push(("LATENCY", "the server never answered".into()));
        }
        for (index, gap) in self.gaps.iter().enumerate() {
            let open = if gap.open { ", not ended by an answer" } else { "" };
            rows.push((
                if index == 0 { "GAPS" } else { "" },
                format!(
                    "{:>9} from {} UTC (sender at most {} late){open}",
                    time(gap.duration_us),
                    time_of_day(gap.start_unix_us),
                    time(gap.sender_lateness_us)
                ),
            ));
        }
        rows.push((
            "SENDER",
            format!(
                "at most {} late, {} requests more than 1 ms late",
                time(self.sender_lateness_max_us),
                self.late
            ),
        ));
    }
}

/// The answer to `gap`; times are µs.
#[derive(Debug, Serialize)]
struct GapLine {
    message_type: &'static str,
    /// The largest gap of the period; one that still lasts counts with its length so far.
    max_gap_us: Option<u64>,
    start_unix_us: Option<u64>,
    open: bool,
    sender_lateness_us: Option<u64>,
    /// Length of the period: since the last `gap`, or since the run began.
    period_us: u64,
    sender_lateness_max_us: u64,
    /// From here on since the run began.
    sent: u64,
    answered: u64,
    unanswered: u64,
    skipped: u64,
    errors: u64,
    reconnects: u64,
    acknowledged_writes: Option<u64>,
    lost_writes: Option<u64>,
}

/// One JSON line with the largest gap since the last that was asked with `reset`.
pub fn gap_line(tally: &mut Tally, now: Instant, open: Option<(Instant, Duration)>, reset: bool) -> String {
    let open = open.map(|(from, lateness)| measure(from, now, lateness, true));
    let largest = tally.gaps.since_asked().into_iter().chain(open).max_by_key(|gap| gap.duration_us);
    let writes = tally.ledger.counts();
    let line = GapLine {
        message_type: "gap",
        max_gap_us: largest.map(|gap| gap.duration_us),
        start_unix_us: largest.map(|gap| gap.start_unix_us),
        open: largest.is_some_and(|gap| gap.open),
        sender_lateness_us: largest.map(|gap| gap.sender_lateness_us),
        period_us: micros(now.saturating_duration_since(tally.asked_at)),
        sender_lateness_max_us: micros(tally.lateness_since_asked),
        sent: tally.sent,
        answered: tally.answered,
        unanswered: tally.unanswered,
        skipped: tally.skipped,
        errors: tally.errors(),
        reconnects: tally.reconnects,
        acknowledged_writes: writes.as_ref().map(|writes| writes.acknowledged),
        lost_writes: writes.as_ref().map(|writes| writes.lost),
    };
    if reset {
        tally.gaps.reset_asked();
        tally.lateness_since_asked = Duration::ZERO;
        tally.asked_at = now;
    }
    serde_json::to_string(&line).unwrap_or_default()
}

/// One line of progress.
pub fn progress_line(tally: &Tally, elapsed: Duration, open: Option<(Instant, Duration)>) -> String {
    let largest = tally.gaps.largest().first().map_or(0, |gap| gap.duration_us);
    let open = open.map_or(0, |(from, _)| micros(from.elapsed()));
    format!(
        "{} s   sent {}   answered {}   largest gap {}   errors {}   reconnects {}",
        elapsed.as_secs(),
        tally.sent,
        tally.answered,
        time(largest.max(open)),
        tally.errors(),
        tally.reconnects
    )
}

/// µs with a fitting unit.
fn time(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..10_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

fn time_of_day(unix_us: u64) -> String {
    let ms = unix_us / 1000;
    let seconds = ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, ms % 1000)
}
