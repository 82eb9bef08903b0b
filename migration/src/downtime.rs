//! What godwit calls downtime, and the clock it is measured with.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The downtime of a migration and its parts.
///
/// **Definition.** Downtime begins when the source starts to lock the container's network and to freeze its cgroup, and
/// ends when the source learns from the destination that the container's tasks were let go. It is measured by the
/// source alone, on its own `CLOCK_MONOTONIC` (Rust's [`Instant`]), so no two hosts' clocks are ever compared; the way
/// back of the last message (half a round trip) is counted in, never left out. godwit runs outside of the container,
/// and an offset that a time namespace adds to that clock (time_namespaces(7)) is the same at both ends of a
/// difference, so it cannot hide or add anything.
///
/// What a client sees can be longer by its own retransmission timer, or by the time an ARP table needs: that is what
/// `godwit probe` measures from outside.
///
/// The parts follow each other without gap or overlap, so they add up to the total exactly:
///
/// | part | from | to |
/// |---|---|---|
/// | freeze | network lock begins | every task is frozen |
/// | hook | | programs of the user's have ended (`--hook post-freeze=…`), where there are any |
/// | dump | | CRIU has written the process state, the last difference of the files is on its way |
/// | transfer | | everything has arrived, less what the destination spent on verifying |
/// | verify | | the destination has checked every digest and put the image together |
/// | restore | | the restored tree is held frozen at the destination, and was looked at |
/// | resume | commit is on disk | the source learns that the tasks run |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downtime {
    /// Network lock and cgroup freezer.
    #[serde(rename = "freeze_us", with = "micros")]
    pub freeze: Duration,
    /// Programs that run while it stands still.
    #[serde(default, rename = "hook_us", with = "micros")]
    pub hook: Duration,
    /// CRIU's final dump; the files' last difference runs beside it.
    #[serde(rename = "dump_us", with = "micros")]
    pub dump: Duration,
    /// The rest of the way over the wire.
    #[serde(rename = "transfer_us", with = "micros")]
    pub transfer: Duration,
    /// Digests and composing the image, at the destination.
    #[serde(rename = "verify_us", with = "micros")]
    pub verify: Duration,
    /// Restore up to the verified hold.
    #[serde(rename = "restore_us", with = "micros")]
    pub restore: Duration,
    /// Commit, go, and the news of it.
    #[serde(rename = "resume_us", with = "micros")]
    pub resume: Duration,
}

impl Downtime {
    /// The parts with their names, in their order.
    pub fn parts(&self) -> [(&'static str, Duration); 7] {
        [
            ("freeze", self.freeze),
            ("hook", self.hook),
            ("dump", self.dump),
            ("transfer", self.transfer),
            ("verify", self.verify),
            ("restore", self.restore),
            ("resume", self.resume),
        ]
    }

    /// The sum of the parts.
    pub fn total(&self) -> Duration {
        self.parts().iter().map(|(_, part)| *part).sum()
    }
}

/// Cuts the downtime into its parts while it happens: each call ends one part and begins the next.
#[derive(Debug)]
pub struct Stopwatch {
    begun: Instant,
    last: Instant,
    downtime: Downtime,
}

impl Stopwatch {
    /// Downtime begins now.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, downtime: Downtime::default() }
    }

    /// How long it has been so far.
    pub fn so_far(&self) -> Duration {
        self.begun.elapsed()
    }

    /// In whole microseconds, the unit of every output: the rest counts to the next part, so that what is printed adds up.
    fn lap(&mut self) -> Duration {
        let lap = Duration::from_micros(u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.last += lap;
        lap
    }

    /// Every task is frozen.
    pub fn frozen(&mut self) {
        self.downtime.freeze = self.lap();
    }

    /// The user's programs have ended.
    pub fn hooked(&mut self) {
        self.downtime.hook = self.lap();
    }

    /// The final dump is on the source's disk.
    pub fn dumped(&mut self) {
        self.downtime.dump = self.lap();
    }

    /// The destination has everything; of the time that took, it spent `verify` on checking and composing.
    pub fn ready(&mut self, verify: Duration) {
        let lap = self.lap();
        self.downtime.verify = verify.min(lap);
        self.downtime.transfer = lap - self.downtime.verify;
    }

    /// The destination holds the restored tree.
    pub fn restored(&mut self) {
        self.downtime.restore = self.lap();
    }

    /// The destination has let it run. Downtime ends.
    pub fn running(mut self) -> Downtime {
        self.downtime.resume = self.lap();
        self.downtime
    }
}

/// Durations as whole microseconds, the unit of every `_us` key.
pub mod micros {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Writes microseconds.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_micros()).unwrap_or(u64::MAX))
    }

    /// Reads microseconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn the_parts_add_up_to_the_time_that_passed() {
        let begin = Instant::now();
        let mut watch = Stopwatch::start();
        let pause = || sleep(Duration::from_millis(2));
        pause();
        watch.frozen();
        pause();
        watch.hooked();
        pause();
        watch.dumped();
        pause();
        // the peer's clock may run fast: verify can never be more than the lap it lies in
        watch.ready(Duration::from_secs(9));
        pause();
        watch.restored();
        pause();
        let downtime = watch.running();
        let outside = begin.elapsed();
        assert!(downtime.total() <= outside);
        assert!(outside - downtime.total() < Duration::from_millis(5), "{downtime:?} {outside:?}");
        assert_eq!(downtime.transfer, Duration::ZERO);
        assert!(downtime.parts().iter().filter(|part| part.1 > Duration::ZERO).count() == 6);
    }

    #[test]
    fn keys_carry_their_unit() {
        let json =
            serde_json::to_value(Downtime { dump: Duration::from_millis(41), ..Default::default() }).unwrap();
        assert_eq!(json["dump_us"], 41_000);
    }
}
