//! A histogram of latencies in constant memory.

use std::time::Duration;

use serde::Serialize;

/// Buckets in each power of two: an error of at most 1/64.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// Latencies in log-linear buckets of nanoseconds.
#[derive(Debug)]
pub struct Latency {
    buckets: Vec<u64>,
    count: u64,
    max_ns: u64,
}

/// What is reported of the latencies, µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the answers took at most this.
    pub p50: u64,
    /// 99 of 100 answers took at most this.
    pub p99: u64,
    /// The slowest answer, exact.
    pub max: u64,
}

impl Latency {
    /// An empty histogram.
    pub fn new() -> Self {
        Self { buckets: vec![0; bucket(u64::MAX) + 1], count: 0, max_ns: 0 }
    }

    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// The median, the 99th percentile and the maximum; nothing when nothing was recorded.
    pub fn percentiles(&self) -> Option<Percentiles> {
        (self.count > 0).then(|| Percentiles {
            p50: self.quantile_ns(50) / 1000,
            p99: self.quantile_ns(99) / 1000,
            max: self.max_ns / 1000,
        })
    }

    fn quantile_ns(&self, percent: u64) -> u64 {
        let rank = self.count.saturating_mul(percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(index).min(self.max_ns);
            }
        }
        self.max_ns
    }
}

/// Values below 64 have their own bucket; above, the six bits after the leading one choose it.
fn bucket(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEP_BITS;
    (u64::from(shift + 1) * STEPS + ((ns >> shift) - STEPS)) as usize
}

/// The largest value in a bucket.
fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index;
    }
    let shift = index / STEPS - 1;
    ((index % STEPS + STEPS) << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_its_bucket() {
        for ns in [0, 1, 63, 64, 65, 127, 128, 1000, 123_456_789, u64::MAX / 3, u64::MAX] {
            let upper = upper_bound(bucket(ns));
            assert!(upper >= ns && upper - ns <= ns / 64 + 1, "{ns} {upper}");
        }
    }

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut latency = Latency::new();
        assert_eq!(latency.percentiles(), None);
        for us in 1..=1000 {
            latency.record(Duration::from_micros(us));
        }
        let found = latency.percentiles().unwrap();
        assert!((500..=509).contains(&found.p50), "{found:?}");
        assert!((990..=1000).contains(&found.p99), "{found:?}");
        assert_eq!(found.max, 1000);
    }
}
