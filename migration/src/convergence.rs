//! When to stop copying and switch over: one pure function of what was measured.
//!
//! What a further round would have to send is what the container writes while the present one is on its way. So the
//! downtime to expect, if the freeze came now, is the time to send that much plus the part that does not depend on it
//! (freeze, dump of everything but pages, restore).

use crate::plan::{Limits, OnTimeout};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What was measured so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Rounds that are complete and acknowledged.
    pub rounds: u32,
    /// Rounds after which another one cannot bring the expected downtime down: the tracker's own bound.
    pub useful_rounds: u32,
    /// Since the first round began.
    pub elapsed: Duration,
    /// How long the last round took from its first look at memory to its acknowledgement.
    pub last_round: Duration,
    /// Bytes a second that the last rounds really got across (before compression).
    pub bandwidth: f64,
    /// Bytes a second that the container writes anew.
    pub dirty_rate: f64,
    /// All of the container's memory and files that could become dirty: the most that can remain.
    pub total_bytes: u64,
    /// The part of the downtime that does not depend on how much is dirty.
    pub fixed: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// One more round: the limit may be met by it.
    Another {
        /// The downtime if the freeze came now.
        expected: Duration,
    },
    /// Freeze now: the limit is met, or the user wants to switch over all the same.
    Switchover {
        /// The downtime to expect.
        expected: Duration,
        /// Set when the limit will be missed: why no further round is made.
        over_limit: Option<String>,
    },
    /// The container stays where it is.
    GiveUp {
        /// The downtime that it would have taken.
        expected: Duration,
        /// Why no further round is made.
        why: String,
    },
    /// The limit cannot be met: somebody has to say whether to switch over, and another round is made meanwhile.
    Ask {
        /// The downtime if the freeze came now.
        expected: Duration,
        /// Why the limit counts as missed.
        why: String,
    },
}

impl Measured {
    /// The bytes that would remain to be sent if the freeze came now.
    pub fn remaining_bytes(&self) -> f64 {
        (self.dirty_rate * self.last_round.as_secs_f64()).min(self.total_bytes as f64).max(0.0)
    }

    /// The downtime if the freeze came now.
    pub fn expected_downtime(&self) -> Duration {
        let remaining = self.remaining_bytes();
        let seconds = if remaining == 0.0 { 0.0 } else { remaining / self.bandwidth.max(1.0) };
        // a year is as good as never, and keeps the sum within a Duration
        self.fixed + Duration::from_secs_f64(seconds.min(31_536_000.0))
    }
}

/// Decides after a round. Pure: the same numbers give the same answer.
///
/// N.B. no verdict depends on whether the container writes faster than the link carries: such a container may calm
/// down, and the bounds on rounds and time end the attempt if it does not.
pub fn verdict(measured: &Measured, limits: &Limits) -> Verdict {
    let expected = measured.expected_downtime();
    if expected <= limits.max_downtime {
        return Verdict::Switchover { expected, over_limit: None };
    }
    let why = if measured.elapsed >= limits.timeout {
        "the time for rounds is over".to_owned()
    } else if measured.rounds >= limits.max_rounds {
        format!("{} pre-copy rounds were made", measured.rounds)
    } else if measured.rounds >= measured.useful_rounds {
        "another round of this tracker would not help".to_owned()
    } else {
        return Verdict::Another { expected };
    };
    match limits.on_timeout {
        OnTimeout::Switchover => {
            let why = format!("{why}, and `--on-timeout switchover` was given");
            Verdict::Switchover { expected, over_limit: Some(why) }
        }
        OnTimeout::Cancel => Verdict::GiveUp { expected, why },
        OnTimeout::Ask => Verdict::Ask { expected, why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: f64 = 1048576.0;

    fn measured() -> Measured {
        Measured {
            rounds: 1,
            useful_rounds: u32::MAX,
            elapsed: Duration::from_secs(2),
            last_round: Duration::from_secs(2),
            bandwidth: 100.0 * MIB,
            dirty_rate: 20.0 * MIB,
            total_bytes: 512 << 20,
            fixed: Duration::from_millis(100),
        }
    }

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn expected_downtime_is_what_was_written_meanwhile_over_the_bandwidth() {
        // 20 MiB/s for 2 s at 100 MiB/s is 400 ms, and 100 ms are fixed
        assert_eq!(measured().expected_downtime(), ms(500));
    }

    #[test]
    fn table() {
        let limits = Limits::default();
        let cases: Vec<(&str, Measured, Limits, Verdict)> = vec![
            ("too much remains", measured(), limits, Verdict::Another { expected: ms(500) }),
            (
                "short last round",
                Measured { last_round: ms(500), ..measured() },
                limits,
                Verdict::Switchover { expected: ms(200), over_limit: None },
            ),
            (
                "an idle container switches at once",
                Measured { dirty_rate: 0.0, bandwidth: 0.0, ..measured() },
                limits,
                Verdict::Switchover { expected: ms(100), over_limit: None },
            ),
            (
                "exactly the limit is within the limit",
                measured(),
                Limits { max_downtime: ms(500), ..limits },
                Verdict::Switchover { expected: ms(500), over_limit: None },
            ),
            (
                "rounds run out",
                Measured { rounds: 8, ..measured() },
                limits,
                Verdict::GiveUp { expected: ms(500), why: "8 pre-copy rounds were made".into() },
            ),
            (
                "rounds run out, the user wants to go all the same",
                Measured { rounds: 8, ..measured() },
                Limits { on_timeout: OnTimeout::Switchover, ..limits },
                Verdict::Switchover {
                    expected: ms(500),
                    over_limit: Some(
                        "8 pre-copy rounds were made, and `--on-timeout switchover` was given".into(),
                    ),
                },
            ),
            (
                "rounds run out, somebody is to say what then",
                Measured { rounds: 8, ..measured() },
                Limits { on_timeout: OnTimeout::Ask, ..limits },
                Verdict::Ask { expected: ms(500), why: "8 pre-copy rounds were made".into() },
            ),
            (
                "time runs out",
                Measured { elapsed: Duration::from_secs(600), ..measured() },
                limits,
                Verdict::GiveUp { expected: ms(500), why: "the time for rounds is over".into() },
            ),
            (
                "the tracker has said all it can",
                Measured { useful_rounds: 1, ..measured() },
                limits,
                Verdict::GiveUp {
                    expected: ms(500),
                    why: "another round of this tracker would not help".into(),
                },
            ),
            (
                "no more can remain than there is",
                Measured { dirty_rate: 1e18, total_bytes: 10 << 20, ..measured() },
                limits,
                Verdict::Switchover { expected: ms(200), over_limit: None },
            ),
        ];
        for (name, measured, limits, want) in cases {
            assert_eq!(verdict(&measured, &limits), want, "{name}");
        }
    }

    proptest! {
        /// Whatever was measured, nothing overflows, rounds end, and a verdict never contradicts the limit.
        #[test]
        fn never_panics_and_always_ends(
            rounds in 0u32..20, elapsed in 0u64..2_000, last in 0u64..1_000_000,
            bandwidth in -1.0f64..1e12, dirty in -1.0f64..1e15, total in 0u64..u64::MAX,
        ) {
            let limits = Limits::default();
            let m = Measured {
                rounds, elapsed: Duration::from_secs(elapsed), last_round: ms(last), bandwidth,
                dirty_rate: dirty, total_bytes: total, ..measured()
            };
            match verdict(&m, &limits) {
                Verdict::Another { expected } => {
                    prop_assert!(expected > limits.max_downtime);
                    prop_assert!(rounds < limits.max_rounds && m.elapsed < limits.timeout);
                }
                Verdict::Switchover { expected, over_limit } => {
                    prop_assert!(over_limit.is_none() && expected <= limits.max_downtime)
                }
                Verdict::GiveUp { expected, .. } | Verdict::Ask { expected, .. } => {
                    prop_assert!(expected > limits.max_downtime)
                }
            }
        }
    }
}
