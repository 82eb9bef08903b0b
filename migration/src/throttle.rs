//! Taking CPU time from a container that writes faster than the link carries: how much, as one pure function of what was
//! measured.
//!
//! A container that is given less CPU time writes less. Each step is reckoned so that two more rounds bring what remains
//! down to what the downtime limit allows, which is right as long as it writes in proportion to its CPU time. What is
//! counted are different pages, however often each was written: when a round finds as many as the one before, the rate is
//! only the least that it can be, and most of the CPU time is taken at once.

use crate::convergence::Measured;
use crate::plan::{Limits, OnTimeout};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What may remain after a round, of what remained after the one before, so that the rounds count as converging.
const CONVERGING: f64 = 0.5;
/// From this part on all of what is written at all was written again.
const SATURATED: f64 = 0.9;
/// What is left of the CPU time then.
const SATURATED_SHARE: f64 = 0.25;
/// No step is smaller, in percent of the CPU time.
const SMALLEST_STEP: u8 = 20;
/// Rounds before there are two to compare.
const FIRST_ROUNDS: u32 = 2;

/// A change of a container's CPU limit: the file of its cgroup, and what is written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    /// The file, as the source sees it.
    pub file: PathBuf,
    /// What it held before anything was changed.
    pub original: String,
    /// What it holds from now on.
    pub now: String,
}

/// The percent of its CPU time that is to be taken from the container from now on, of which `taken` are taken already; `None`
/// when nothing is to change. `previous_remaining`: the bytes that would have remained to be sent after the round before.
pub fn next_step(measured: &Measured, limits: &Limits, previous_remaining: f64, taken: u8) -> Option<u8> {
    let most = limits.throttle.min(99);
    if taken >= most || measured.rounds < FIRST_ROUNDS || measured.expected_downtime() <= limits.max_downtime
    {
        return None;
    }
    let remaining = measured.remaining_bytes();
    // what may remain at the freeze: where that is nothing, writing less helps only whoever goes all the same
    let mut spare = limits.max_downtime.saturating_sub(measured.fixed);
    if limits.on_timeout != OnTimeout::Cancel {
        spare = spare.max(limits.max_downtime / 4);
    }
    let room = spare.as_secs_f64() * measured.bandwidth;
    if room <= 0.0 || remaining <= CONVERGING * previous_remaining {
        return None;
    }
    let share = f64::from(100 - taken) / 100.0;
    // remaining × ratio² = room
    let ratio = (room / remaining).sqrt();
    let mut next = share * (ratio * measured.bandwidth / measured.dirty_rate).min(1.0);
    if remaining >= SATURATED * previous_remaining {
        next = next.min(share * SATURATED_SHARE);
    }
    let percent = ((1.0 - next) * 100.0).ceil() as u8;
    Some(percent.max(taken.saturating_add(SMALLEST_STEP)).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const MIB: f64 = 1048576.0;

    /// All of 512 MiB is written again in every round.
    fn measured() -> Measured {
        Measured {
            rounds: 2,
            useful_rounds: u32::MAX,
            elapsed: Duration::from_secs(2),
            last_round: Duration::from_secs(1),
            bandwidth: 512.0 * MIB,
            dirty_rate: 512.0 * MIB,
            total_bytes: 512 << 20,
            fixed: Duration::from_millis(100),
        }
    }

    fn limits(throttle: u8) -> Limits {
        Limits { throttle, ..Limits::default() }
    }

    type Case = (&'static str, Measured, Limits, f64, u8, Option<u8>);

    const ALL: f64 = 512.0 * MIB;

    #[test]
    fn table() {
        let slower = Measured { dirty_rate: 460.0 * MIB, ..measured() };
        let hopeless = Measured { fixed: Duration::from_millis(300), ..measured() };
        let all_the_same = Limits { on_timeout: OnTimeout::Switchover, ..limits(90) };
        let cases: Vec<Case> = vec![
            ("but a shorter downtime does", hopeless, all_the_same, ALL, 0, Some(75)),
            ("not asked for", measured(), limits(0), ALL, 0, None),
            ("all of it again: the rate is a lower bound", measured(), limits(90), ALL, 0, Some(75)),
            ("and again", measured(), limits(90), ALL, 75, Some(90)),
            ("never beyond the most", measured(), limits(50), ALL, 0, Some(50)),
            ("a small most is a small step", measured(), limits(5), ALL, 0, Some(5)),
            ("all is taken", measured(), limits(90), ALL, 90, None),
            (
                "it converges by itself",
                Measured { dirty_rate: 250.0 * MIB, ..measured() },
                limits(90),
                ALL,
                0,
                None,
            ),
            // 102 of 460 MiB may remain: each of two rounds must leave 47 %
            ("in proportion", slower, limits(90), 600.0 * MIB, 0, Some(48)),
            ("no small steps", slower, limits(90), 600.0 * MIB, 70, Some(90)),
            ("the first round tells nothing", Measured { rounds: 1, ..measured() }, limits(90), ALL, 0, None),
            (
                "less memory to write would not help",
                Measured { fixed: Duration::from_millis(300), ..measured() },
                limits(90),
                ALL,
                0,
                None,
            ),
        ];
        for (name, measured, limits, previous, taken, want) in cases {
            assert_eq!(next_step(&measured, &limits, previous, taken), want, "{name}");
        }
    }

    proptest! {
        /// Never when the limit is met, never beyond what is allowed, and always upwards: so it ends.
        #[test]
        fn steps_go_up_to_the_most_and_only_where_the_limit_is_missed(
            rounds in 0u32..20, last in 0u64..100_000, bandwidth in -1.0f64..1e12, dirty in -1.0f64..1e15,
            total in 0u64..u64::MAX, previous in 0.0f64..1e18, taken in 0u8..=99, throttle in 0u8..=255, fixed in 0u64..1000,
        ) {
            let m = Measured {
                rounds, last_round: Duration::from_millis(last), bandwidth, dirty_rate: dirty, total_bytes: total,
                fixed: Duration::from_millis(fixed), ..measured()
            };
            if let Some(next) = next_step(&m, &limits(throttle), previous, taken) {
                prop_assert!(next > taken && next <= throttle && next <= 99);
                prop_assert!(m.expected_downtime() > limits(throttle).max_downtime);
            }
        }

        /// A container whose writes follow its CPU time is slowed down far enough within the default number of rounds, if
        /// that is allowed at all.
        #[test]
        fn rounds_converge(bandwidth_mib in 50.0f64..4000.0, factor in 0.1f64..8.0, total_mib in 64u64..8192) {
            let bandwidth = bandwidth_mib * MIB;
            let total = (total_mib << 20) as f64;
            let limits = Limits { throttle: 99, ..Limits::default() };
            let fixed = Duration::from_millis(100);
            let (mut taken, mut rate_of_last_round, mut to_send, mut previous) = (0, 0.0, total, total);
            let (mut settling, mut met) = (false, false);
            for rounds in 1..=12 {
                let rate = bandwidth * factor * f64::from(100 - taken) / 100.0;
                let seconds = to_send / bandwidth;
                let written = (rate * seconds).min(total);
                let m = Measured {
                    rounds, elapsed: Duration::ZERO, last_round: Duration::from_secs_f64(seconds), bandwidth,
                    dirty_rate: if rounds == 1 { total / seconds } else { rate_of_last_round },
                    total_bytes: total as u64, fixed, ..measured()
                };
                if m.expected_downtime() <= limits.max_downtime { met = true; break; }
                if !std::mem::take(&mut settling)
                    && let Some(next) = next_step(&m, &limits, previous, taken) {
                    taken = next;
                    settling = true;
                }
                previous = m.remaining_bytes();
                rate_of_last_round = written / seconds;
                to_send = written.max(1.0);
            }
            prop_assert!(met, "taken {taken} %");
        }
    }
}
