//! When the next snapshot of a volume is due: soon after a change, not too often, and at times anyway.

use std::time::{Duration, Instant};

/// What belongs to one change mostly comes within this time.
const REST: Duration = Duration::from_secs(1);

/// When snapshots are taken.
#[derive(Debug)]
pub struct Rhythm {
    interval: Duration,
    every: Option<Duration>,
    last: Option<Instant>,
    changed: Option<Instant>,
}

impl Rhythm {
    /// The first one is due at once. `interval`: the least time between two; `every`: the longest, whether anything is changed or not.
    pub fn new(interval: Duration, every: Option<Duration>) -> Self {
        Self { interval, every, last: None, changed: None }
    }

    /// Something was changed.
    pub fn changed(&mut self, now: Instant) {
        self.changed.get_or_insert(now);
    }

    /// One is begun: what is changed from now on belongs to the next.
    pub fn begun(&mut self, now: Instant) {
        self.last = Some(now);
        self.changed = None;
    }

    /// Whether one shall be taken.
    pub fn is_due(&self, now: Instant) -> bool {
        let Some(last) = self.last else { return true };
        let after_change = |changed: Instant| now >= last + self.interval && now >= changed + REST;
        self.changed.is_some_and(after_change)
            || self.every.is_some_and(|every| now >= last + every.max(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// The seconds at which one is taken, of those at which something is changed.
    fn taken(mut rhythm: Rhythm, changes: &[u64]) -> Vec<u64> {
        let begin = Instant::now();
        let mut taken = Vec::new();
        for second in 0..600 {
            let now = begin + Duration::from_secs(second);
            if changes.contains(&second) {
                rhythm.changed(now);
            }
            if rhythm.is_due(now) {
                rhythm.begun(now);
                taken.push(second);
            }
        }
        taken
    }

    #[test]
    fn a_change_is_kept_soon_and_many_are_kept_once() {
        assert_eq!(taken(Rhythm::new(MINUTE, None), &[]), [0]);
        assert_eq!(taken(Rhythm::new(MINUTE, None), &[100, 400]), [0, 101, 401]);
        // within the interval it waits, and what comes meanwhile goes along
        assert_eq!(taken(Rhythm::new(MINUTE, None), &[10, 20, 59, 70]), [0, 60, 120]);
        let always: Vec<u64> = (0..600).collect();
        assert_eq!(taken(Rhythm::new(MINUTE * 3, None), &always), [0, 180, 360, 540]);
    }

    #[test]
    fn a_timer_needs_no_change_and_is_not_quicker_than_the_interval() {
        assert_eq!(taken(Rhythm::new(MINUTE, Some(MINUTE * 4)), &[]), [0, 240, 480]);
        assert_eq!(taken(Rhythm::new(MINUTE, Some(MINUTE * 4)), &[100]), [0, 101, 341, 581]);
        assert_eq!(taken(Rhythm::new(MINUTE * 5, Some(MINUTE)), &[]), [0, 300]);
    }
}
