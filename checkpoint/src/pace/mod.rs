//! Stepping back: what is copied while the container runs takes no processor that anybody waits for.
//!
//! Two things are looked at. What of the host's processors was idle before copying began is the room that copying has
//! ([`room`]): it may use so much processor time and no more, compression and ssh included. And the kernel counts for each
//! thread how long it ran and how long it was ready but had to wait for a processor ([`schedule`]): if the container waits for
//! more of its time than it used to, the room gets smaller. The reader keeps to it by pauses between its batches, and with it
//! everything behind it. Neither nice values nor weights do that: they say nothing between different cgroups or sessions.

mod room;
mod schedule;

use room::Room;
use schedule::Schedule;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The container may wait for this much more of its time than before.
const TOLERATED: f64 = 0.03;
/// Between two looks. What comes of much less is chance.
const INTERVAL: Duration = Duration::from_millis(20);
/// Copying begins without pauses, to see what the link can do: with pauses, what lies behind works on while the reader sleeps,
/// and nobody can tell how much more it could have done.
const TRIAL: Duration = Duration::from_millis(150);
/// Pauses shorter than this are put off: a sleep costs a wake-up.
const SHORTEST: Duration = Duration::from_micros(500);
/// A pause at most: what is usual may change.
const LONGEST: Duration = Duration::from_millis(200);
/// The share of the time that is spent on copying, at least.
const LEAST_SHARE: f64 = 0.001;

/// The part of its room that copying takes when the container has waited for this share of its time. Back quickly, forth slowly.
fn next_part(part: f64, waiting: f64, usual: f64) -> f64 {
    match waiting > usual + TOLERATED {
        true => part * 0.6,
        false => (part * 1.15).min(1.0),
    }
}

/// The next share of the time to spend on copying, when it used so many times what it may use.
fn next_share(share: f64, used: f64) -> f64 {
    (share * (1.0 / used.max(1e-3)).clamp(0.5, 1.25)).clamp(LEAST_SHARE, 1.0)
}

/// Rounds that are slow leave more behind. Where they bring a move no nearer to its end, they are made without pauses; and if
/// that does not help either, with pauses again.
#[derive(Debug, PartialEq)]
enum Hurry {
    NotYet,
    Now,
    InVain,
}

/// What one round has to copy, and until when.
#[derive(Debug)]
struct Round {
    copied: u64,
    bytes: u64,
    until: Instant,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Pace {
    pids: BTreeSet<i32>,
    first: Schedule,
    /// The share of its time that the container waits without us; none while that is not known.
    usual: Option<f64>,
    room: Room,
    /// Of the room, and of the time.
    part: f64,
    share: f64,
    looked: (Instant, Schedule),
    hurry: Hurry,
    /// When the time for all rounds is over.
    end: Instant,
    round: Round,
    /// Since when copying goes on, and how many bytes, while that is tried; what came of it, in bytes a second.
    trial: Option<(Instant, u64)>,
    bandwidth: Option<f64>,
    /// Since when there was no pause, the pauses that were put off, and all pauses.
    at_work: Instant,
    owed: Duration,
    paused: Duration,
}

impl Pace {
    /// Begins to find out what is usual for these tasks and on this host.
    pub(crate) fn observe(pids: BTreeSet<i32>) -> Self {
        let first = Schedule::of(&pids);
        let now = Instant::now();
        Self {
            pids,
            first,
            usual: None,
            room: Room::observe(),
            part: 1.0,
            share: 1.0,
            looked: (now, first),
            hurry: Hurry::NotYet,
            end: now,
            round: Round { copied: 0, bytes: 0, until: now },
            trial: None,
            bandwidth: None,
            at_work: now,
            owed: Duration::ZERO,
            paused: Duration::ZERO,
        }
    }

    /// Copying begins, and has so much time for all its rounds. Usual is what was in all the container's life, or lately, whatever is less: what it waited for lately may
    /// have been our own preparations.
    pub(crate) fn begin(&mut self, time: Duration) {
        let now = Instant::now();
        self.end = now.checked_add(time).unwrap_or(now);
        let lately = Schedule::of(&self.pids).waiting_since(self.first);
        let ever = self.first.waiting_since(Schedule::default());
        self.usual = lately.map(|lately| ever.unwrap_or(lately).min(lately));
        self.room.begin();
        tracing::debug!(usual = ?self.usual, room = ?self.room.size(), "what copying may take");
    }

    /// A round of so many bytes at most begins, and may use up half of the time that is left for rounds. Gives all pauses so far.
    pub(crate) fn begin_round(&mut self, most_bytes: u64) -> Duration {
        let now = Instant::now();
        self.looked = (now, Schedule::of(&self.pids));
        self.room.forget();
        self.at_work = now;
        let bytes = match self.round.copied {
            0 => most_bytes,
            // about as many as in the last one
            copied => copied.min(most_bytes),
        };
        self.round = Round { copied: 0, bytes, until: now + self.end.saturating_duration_since(now) / 2 };
        self.paused
    }

    /// What the last round has brought did not bring the move nearer to its end.
    pub(crate) fn did_not_help(&mut self) {
        self.hurry = match self.hurry {
            Hurry::NotYet => Hurry::Now,
            Hurry::Now | Hurry::InVain => Hurry::InVain,
        };
    }

    /// So many bytes were copied: pauses if it is time for it.
    pub(crate) fn step(&mut self, bytes: u64) {
        self.round.copied += bytes;
        let known = self.usual.is_some() || self.room.size().is_some();
        if !known || self.hurry == Hurry::Now {
            return;
        }
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
            self.look(now);
        }
        self.owed += (now - self.at_work).mul_f64(1.0 / self.share - 1.0);
        self.at_work = now;
        if self.owed >= SHORTEST {
            std::thread::sleep(self.owed.min(LONGEST));
            self.at_work = Instant::now();
            self.paused += self.at_work - now;
            self.owed = Duration::ZERO;
        }
    }

    fn look(&mut self, now: Instant) {
        let schedule = Schedule::of(&self.pids);
        if let (Some(waiting), Some(usual)) = (schedule.waiting_since(self.looked.1), self.usual) {
            self.part = next_part(self.part, waiting, usual).max(self.room.least_part());
        }
        self.looked = (now, schedule);
        if let Some(used) = self.room.used() {
            self.share = next_share(self.share, used / self.part);
        }
        self.share = self.share.max(self.share_in_time(now));
    }

    /// The share that is needed for the round to be over in time.
    fn share_in_time(&self, now: Instant) -> f64 {
        let bytes = self.round.bytes.saturating_sub(self.round.copied);
        let needed = bytes as f64 / self.bandwidth.unwrap_or(0.0).max(1.0);
        (needed / self.round.until.saturating_duration_since(now).as_secs_f64().max(1e-3)).min(1.0)
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

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_container_that_waits_is_stepped_back_from_and_one_that_does_not_is_not() {
        let after = |waiting: f64| (0..20).fold(1.0, |part, _| next_part(part, waiting, 0.1));
        assert_eq!(after(0.1), 1.0);
        assert!(after(0.5) < 0.001);
        let back = (0..60).fold(0.001, |part, _| next_part(part, 0.0, 0.1));
        assert_eq!(back, 1.0, "and no faster than it can");
    }

    #[test]
    fn the_share_settles_where_the_room_is_filled() {
        // it uses two processors when it works, and may use a twentieth of one
        let settled = (0..100).fold(1.0, |share, _| next_share(share, share * 2.0 / 0.05));
        assert!((0.024..0.026).contains(&settled), "{settled}");
        // and a hundred
        let settled = (0..100).fold(settled, |share, _| next_share(share, share * 2.0 / 100.0));
        assert_eq!(settled, 1.0);
    }

    #[test]
    fn what_the_link_can_do_is_tried_first() {
        let mut pace = Pace::observe(BTreeSet::new());
        pace.usual = Some(0.0);
        pace.share = LEAST_SHARE;
        pace.end += LONG;
        pace.begin_round(0);
        let begun = Instant::now();
        while pace.bandwidth().is_none() {
            std::thread::sleep(Duration::from_millis(10));
            pace.step(1000);
        }
        assert!(begun.elapsed() >= TRIAL);
        assert_eq!(pace.paused(), Duration::ZERO, "no pauses until then");
        assert!(pace.bandwidth().is_some_and(|found| (10_000.0..=100_000.0).contains(&found)));
    }

    /// One that knows the link, and copies for a quarter of the time.
    fn at_a_quarter(bytes: u64, time_left: Duration) -> Pace {
        let mut pace = Pace::observe(BTreeSet::new());
        pace.usual = Some(0.0);
        pace.share = 0.25;
        pace.bandwidth = Some(1.0);
        pace.end += time_left;
        pace.begin_round(bytes);
        pace
    }

    #[test]
    fn pauses_are_what_the_share_says() {
        let mut pace = at_a_quarter(0, LONG);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100) {
            std::thread::sleep(Duration::from_millis(1));
            pace.step(1);
        }
        let share = pace.paused().as_secs_f64() / begun.elapsed().as_secs_f64();
        assert!((0.6..0.95).contains(&share), "three quarters of the time are pauses, not {share}");
    }

    #[test]
    fn a_round_is_over_in_time() {
        let pace = at_a_quarter(100, Duration::from_secs(400));
        let needed = pace.share_in_time(Instant::now());
        assert!((0.49..0.52).contains(&needed), "100 s of work in 200 s: {needed}");
        assert_eq!(at_a_quarter(100, Duration::from_secs(2)).share_in_time(Instant::now()), 1.0);
    }

    #[test]
    fn hurry_is_tried_once() {
        let mut pace = at_a_quarter(0, LONG);
        let paused = |pace: &mut Pace| {
            let before = pace.paused();
            std::thread::sleep(Duration::from_millis(2));
            pace.step(1);
            pace.paused() > before
        };
        assert!(paused(&mut pace));
        pace.did_not_help();
        assert!(!paused(&mut pace), "slow rounds did not help");
        pace.did_not_help();
        assert!(paused(&mut pace), "and neither did quick ones");
        pace.did_not_help();
        assert!(paused(&mut pace));
    }
}
