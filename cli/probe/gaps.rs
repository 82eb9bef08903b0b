//! The gaps between consecutive answers that a client saw.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The time between two consecutive answers on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Wall time of the answer before the gap, µs since 1970; a label, not a measurement.
    pub start_unix_us: u64,
    /// Length on the monotonic clock, µs.
    pub duration_us: u64,
    /// How late the probe itself sent at most in this gap, µs: what its host adds to the gap.
    pub sender_lateness_us: u64,
    /// No answer had ended the gap when it was written down.
    pub open: bool,
}

/// Keeps the largest gaps of a run, and the largest since somebody last asked.
#[derive(Debug)]
pub struct Gaps {
    kept: usize,
    largest: Vec<Gap>,
    since_asked: Option<Gap>,
}

impl Gaps {
    /// Keeps the `kept` largest gaps.
    pub fn new(kept: usize) -> Self {
        Self { kept: kept.max(1), largest: Vec::new(), since_asked: None }
    }

    /// A gap began with the answer at `from` and ended (or, if `open`, still lasts) at `to`.
    pub fn record(&mut self, from: Instant, to: Instant, lateness: Duration, open: bool) {
        let duration_us = micros(to.saturating_duration_since(from));
        let worth_keeping = self.largest.len() < self.kept
            || self.largest.last().is_some_and(|g| g.duration_us < duration_us);
        let largest_asked = self.since_asked.is_none_or(|gap| gap.duration_us < duration_us);
        if !worth_keeping && !largest_asked {
            return;
        }
        let gap = measure(from, to, lateness, open);
        if largest_asked {
            self.since_asked = Some(gap);
        }
        if worth_keeping {
            let at = self.largest.partition_point(|g| g.duration_us >= duration_us);
            self.largest.insert(at, gap);
            self.largest.truncate(self.kept);
        }
    }

    /// The largest gaps of the run, largest first.
    pub fn largest(&self) -> &[Gap] {
        &self.largest
    }

    /// The largest gap that ended since [`Self::reset_asked`].
    pub fn since_asked(&self) -> Option<Gap> {
        self.since_asked
    }

    /// Begins a new period for [`Self::since_asked`].
    pub fn reset_asked(&mut self) {
        self.since_asked = None;
    }
}

/// Describes a gap with the wall time of its start.
pub fn measure(from: Instant, to: Instant, lateness: Duration, open: bool) -> Gap {
    // the wall clock is read now, so that a step of it hours ago does not spoil the label
    let start = SystemTime::now().checked_sub(from.elapsed()).unwrap_or(UNIX_EPOCH);
    Gap {
        start_unix_us: micros(start.duration_since(UNIX_EPOCH).unwrap_or_default()),
        duration_us: micros(to.saturating_duration_since(from)),
        sender_lateness_us: micros(lateness),
        open,
    }
}

/// Whole microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_largest_in_order_and_resets_the_asked() {
        let mut gaps = Gaps::new(3);
        let start = Instant::now();
        for ms in [5, 1, 9, 7, 2, 8] {
            gaps.record(start, start + Duration::from_millis(ms), Duration::ZERO, false);
        }
        let lengths: Vec<u64> = gaps.largest().iter().map(|g| g.duration_us).collect();
        assert_eq!(lengths, [9000, 8000, 7000]);
        assert_eq!(gaps.since_asked().map(|g| g.duration_us), Some(9000));
        gaps.reset_asked();
        gaps.record(start, start + Duration::from_millis(1), Duration::ZERO, false);
        assert_eq!(gaps.since_asked().map(|g| g.duration_us), Some(1000));
        assert_eq!(gaps.largest().len(), 3);
    }
}
