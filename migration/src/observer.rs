//! The library reports, the command line draws.

use crate::phase::{Phase, Role};
use crate::quantity::show_duration;
use crate::report::RoundReport;
use serde::Serialize;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Something worth telling while a migration runs. Serialized as it is for `--json`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "message_type", rename_all = "kebab-case")]
pub enum Event {
    /// A phase began or ended.
    Phase {
        /// Who speaks.
        role: Role,
        /// Which phase.
        phase: Phase,
        /// `begin` or `end`.
        event: &'static str,
        /// Which pre-copy round, from 0.
        #[serde(skip_serializing_if = "Option::is_none")]
        round: Option<u32>,
        /// Microseconds it took; only at its end.
        #[serde(skip_serializing_if = "Option::is_none")]
        duration_us: Option<u64>,
    },
    /// How far the bytes are.
    Status {
        /// Which phase.
        phase: Phase,
        /// What is being sent: memory, or a directory's name.
        what: String,
        /// Bytes read and sent so far, before compression.
        bytes_done: u64,
        /// Bytes expected in all; 0 where nobody knows.
        bytes_total: u64,
        /// Bytes a second so far.
        bandwidth_bytes_per_s: u64,
    },
    /// A pre-copy round is complete.
    Round(RoundReport),
    /// A sentence for people: a choice and its reason, or a warning.
    Note {
        /// The sentence.
        text: String,
    },
}

/// What somebody has to decide: the limit cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The downtime to expect.
    pub expected: Duration,
    /// The downtime that was accepted.
    pub limit: Duration,
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (expected, limit) = (show_duration(self.expected), show_duration(self.limit));
        write!(f, "expected downtime {expected}, limit {limit}: switch over all the same?")
    }
}

/// Is told what happens.
pub trait Observer: Send + Sync {
    /// Something happened. Must return at once: some events fall into the downtime.
    fn event(&self, event: &Event);

    /// Asks somebody, and returns at once: yes or no comes later, or the sender is dropped without an answer. `None` when
    /// there is nobody to ask.
    fn ask(&self, _question: &Question) -> Option<Receiver<bool>> {
        None
    }

    /// How long an answer is waited for; none is a no.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// A sentence for people.
    fn note(&self, text: String) {
        self.event(&Event::Note { text });
    }
}

/// Tells nobody.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event) {}
}

/// Microseconds as every `_us` key wants them.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
