//! Stepping back: what is copied while the container runs takes no processor that the container waits for.
//!
//! The kernel counts for each thread how long it ran and how long it was ready but had to wait for a processor
//! (/proc/PID/schedstat, Documentation/scheduler/sched-stats.rst). If the container waits for more of its time than it
//! used to before the first round, the reader pauses between its batches, and with it everything behind it: compression,
//! ssh. Neither nice values nor weights do that: they say nothing between different cgroups or sessions.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The container may wait for this much more of its time than before.
const TOLERATED: f64 = 0.03;
/// Never less than this share of the time is spent on copying: a move must come to its end.
const LEAST: f64 = 0.1;
/// Between two looks. What comes of much less is chance.
const INTERVAL: Duration = Duration::from_millis(20);
/// The threads of a container that are looked at, at most: more would cost more than they tell.
const THREADS: usize = 128;
/// A container that was ready for less than this in an interval says nothing about processors.
const TELLING: Duration = Duration::from_micros(500);
/// Copying begins without pauses, to see what the link can do: with pauses, what lies behind works on while the reader sleeps,
/// and nobody can tell how much more it could have done.
const TRIAL: Duration = Duration::from_millis(150);
/// Pauses shorter than this are put off: a sleep costs a wake-up.
const SHORTEST: Duration = Duration::from_micros(500);

/// How long all threads of a container ran and waited, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Schedule {
    ran: u64,
    waited: u64,
}

impl Schedule {
    /// From the threads that are there now. A thread that ends between two looks makes the sum smaller; the look after
    /// that one tells again.
    fn of(pids: &BTreeSet<i32>) -> Self {
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
    fn waiting_since(self, before: Self) -> Option<f64> {
        let ran = self.ran.checked_sub(before.ran)?;
        let waited = self.waited.checked_sub(before.waited)?;
        (ran + waited >= TELLING.as_nanos() as u64).then(|| waited as f64 / (ran + waited) as f64)
    }
}

/// The next share of the time to spend on copying. Back quickly, forth slowly.
fn next_share(share: f64, waiting: f64, usual: f64) -> f64 {
    match waiting > usual + TOLERATED {
        true => (share * 0.6).max(LEAST),
        false => (share * 1.15).min(1.0),
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Pace {
    pids: BTreeSet<i32>,
    first: Schedule,
    /// The share of its time that the container waits without us; none while that is not known.
    usual: Option<f64>,
    share: f64,
    looked: (Instant, Schedule),
    /// Since when copying goes on, and how many bytes, while that is tried; what came of it, in bytes a second.
    trial: Option<(Instant, u64)>,
    bandwidth: Option<f64>,
    /// Since when there was no pause, the pauses that were put off, and all pauses.
    at_work: Instant,
    owed: Duration,
    paused: Duration,
}

impl Pace {
    /// Begins to find out what is usual for these tasks.
    pub(crate) fn observe(pids: BTreeSet<i32>) -> Self {
        let first = Schedule::of(&pids);
        let now = Instant::now();
        Self {
            pids,
            first,
            usual: None,
            share: 1.0,
            looked: (now, first),
            trial: None,
            bandwidth: None,
            at_work: now,
            owed: Duration::ZERO,
            paused: Duration::ZERO,
        }
    }

    /// Copying begins. Usual is what was in all its life, or lately, whatever is less: what the container waited for lately
    /// may have been our own preparations.
    pub(crate) fn begin(&mut self) {
        let lately = Schedule::of(&self.pids).waiting_since(self.first);
        let ever = self.first.waiting_since(Schedule::default());
        self.usual = lately.map(|lately| ever.unwrap_or(lately).min(lately));
        self.begin_round();
    }

    /// A round begins. Gives all pauses so far.
    pub(crate) fn begin_round(&mut self) -> Duration {
        self.looked = (Instant::now(), Schedule::of(&self.pids));
        self.at_work = self.looked.0;
        self.paused
    }

    /// So many bytes were copied: pauses if it is time for it.
    pub(crate) fn step(&mut self, bytes: u64) {
        let Some(usual) = self.usual else { return };
        let now = Instant::now();
        if self.bandwidth.is_none() {
            let (since, copied) = self.trial.get_or_insert((self.at_work, 0));
            *copied += bytes;
            if now - *since < TRIAL {
                return;
            }
            self.bandwidth = Some(*copied as f64 / (now - *since).as_secs_f64());
            self.at_work = now;
        }
        if now - self.looked.0 >= INTERVAL {
            let schedule = Schedule::of(&self.pids);
            if let Some(waiting) = schedule.waiting_since(self.looked.1) {
                self.share = next_share(self.share, waiting, usual);
            }
            self.looked = (now, schedule);
        }
        self.owed += (now - self.at_work).mul_f64(1.0 / self.share - 1.0);
        self.at_work = now;
        if self.owed >= SHORTEST {
            std::thread::sleep(self.owed.min(INTERVAL));
            self.at_work = Instant::now();
            self.paused += self.at_work - now;
            self.owed = Duration::ZERO;
        }
    }

    /// Bytes a second that went without pauses, once that is known.
    pub(crate) fn bandwidth(&self) -> Option<f64> {
        self.bandwidth
    }

    /// All pauses so far.
    pub(crate) fn paused(&self) -> Duration {
        self.paused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_waits_is_stepped_back_from_and_one_that_does_not_is_not() {
        let after = |waiting: f64| (0..20).fold(1.0, |share, _| next_share(share, waiting, 0.1));
        assert_eq!(after(0.1), 1.0);
        assert_eq!(after(0.5), LEAST, "it never stops");
        let back = (0..20).fold(LEAST, |share, _| next_share(share, 0.0, 0.1));
        assert_eq!(back, 1.0, "and no faster than it can");
    }

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

    #[test]
    fn what_the_link_can_do_is_tried_first() {
        let mut pace = Pace::observe(BTreeSet::new());
        pace.usual = Some(0.0);
        pace.share = LEAST;
        pace.begin_round();
        let begun = Instant::now();
        while pace.bandwidth().is_none() {
            std::thread::sleep(Duration::from_millis(10));
            pace.step(1000);
        }
        assert!(begun.elapsed() >= TRIAL);
        assert_eq!(pace.paused(), Duration::ZERO, "no pauses until then");
        assert!(pace.bandwidth().is_some_and(|found| (10_000.0..=100_000.0).contains(&found)));
    }

    #[test]
    fn pauses_are_what_the_share_says() {
        let mut pace = Pace::observe(BTreeSet::new());
        pace.usual = Some(0.0);
        pace.share = 0.25;
        pace.bandwidth = Some(1.0);
        pace.begin_round();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100) {
            std::thread::sleep(Duration::from_millis(1));
            pace.step(1);
        }
        let share = pace.paused().as_secs_f64() / begun.elapsed().as_secs_f64();
        assert!((0.6..0.95).contains(&share), "three quarters of the time are pauses, not {share}");
    }
}
