//! How long the threads of a container ran, and waited for a processor.

use std::collections::BTreeSet;
use std::time::Duration;

/// The threads of a container that are looked at, at most: more would cost more than they tell.
const THREADS: usize = 128;
/// A container that was ready for less than this in an interval says nothing about processors.
const TELLING: Duration = Duration::from_micros(500);

/// How long all threads of a container ran and waited, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Schedule {
    pub(super) ran: u64,
    waited: u64,
}

impl Schedule {
    /// From the threads that are there now. A thread that ends between two looks makes the sum smaller; the look after
    /// that one tells again.
    pub(super) fn of(pids: &BTreeSet<i32>) -> Self {
        let mut sum = Self::default();
        let threads = pids
            .iter()
            .filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok())
            .flatten()
            .flatten()
            .take(THREADS);
        for thread in threads {
            let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse::<u64>().ok());
            sum.ran += numbers.next().unwrap_or(0);
            sum.waited += numbers.next().unwrap_or(0);
        }
        sum
    }

    /// The share of its time that it waited since `before`; none if that would not tell.
    pub(super) fn waiting_since(self, before: Self) -> Option<f64> {
        let ran = self.ran.checked_sub(before.ran)?;
        let waited = self.waited.checked_sub(before.waited)?;
        (ran + waited >= TELLING.as_nanos() as u64).then(|| waited as f64 / (ran + waited) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn little_time_tells_nothing_and_a_thread_that_has_ended_does_not_either() {
        let schedule = |ran, waited| Schedule { ran, waited };
        assert_eq!(schedule(2_000_000, 1_000_000).waiting_since(schedule(0, 0)), Some(1.0 / 3.0));
        assert_eq!(schedule(100, 100).waiting_since(schedule(0, 0)), None);
        assert_eq!(schedule(5_000_000, 0).waiting_since(schedule(6_000_000, 0)), None);
    }

    #[test]
    fn a_thread_at_work_is_seen_to_run() {
        let own = BTreeSet::from([std::process::id() as i32]);
        let before = Schedule::of(&own);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        assert!(Schedule::of(&own).ran > before.ran, "the kernel counts no times of threads");
    }
}
