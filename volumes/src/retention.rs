//! Which snapshots stay.
//!
//! For each period the newest snapshot of each of the latest hours, days, weeks or months in which there is one stays, as many
//! as the policy says; a period without a snapshot does not count. Hours, days, weeks (from Monday) and months are those of UTC.

use godwit_migration::calendar::date_of_day;
use std::fmt;

/// How many stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest ones.
    pub last: u32,
    /// One for each of so many hours.
    pub hourly: u32,
    /// One for each of so many days.
    pub daily: u32,
    /// One for each of so many weeks.
    pub weekly: u32,
    /// One for each of so many months.
    pub monthly: u32,
}

/// Why a snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is one of the newest.
    Last,
    /// It is the newest of its hour.
    Hourly,
    /// Of its day.
    Daily,
    /// Of its week.
    Weekly,
    /// Of its month.
    Monthly,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Last => "last",
            Reason::Hourly => "hourly",
            Reason::Daily => "daily",
            Reason::Weekly => "weekly",
            Reason::Monthly => "monthly",
        })
    }
}

/// Seconds of a day.
const DAY: u64 = 86_400;

impl Reason {
    /// What is the same for all times of one period, and greater for later ones; seconds since 1970. Each time is a period of its own
    /// for [`Reason::Last`].
    fn period(self, nth: usize, unix_s: u64) -> u64 {
        let day = unix_s / DAY;
        match self {
            Reason::Last => nth as u64,
            Reason::Hourly => unix_s / 3600,
            Reason::Daily => day,
            // 1 January 1970 was a Thursday
            Reason::Weekly => (day + 3) / 7,
            Reason::Monthly => {
                let (year, month, _) = date_of_day(day);
                year * 12 + month
            }
        }
    }
}

impl Policy {
    /// It would let everything go.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Why each of these stays: those with no reason go. `newest_first`: seconds since 1970.
    pub fn reasons(&self, newest_first: &[u64]) -> Vec<Vec<Reason>> {
        let mut reasons = vec![Vec::new(); newest_first.len()];
        for (reason, mut left) in [
            (Reason::Last, self.last),
            (Reason::Hourly, self.hourly),
            (Reason::Daily, self.daily),
            (Reason::Weekly, self.weekly),
            (Reason::Monthly, self.monthly),
        ] {
            let mut before = None;
            for (nth, unix_s) in newest_first.iter().enumerate() {
                let period = Some(reason.period(nth, *unix_s));
                if left == 0 || period == before {
                    continue;
                }
                before = period;
                left -= 1;
                reasons[nth].push(reason);
            }
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// The same by another way: all periods, with the newest of each.
    fn model(policy: &Policy, times: &[u64]) -> BTreeSet<u64> {
        let mut stay: BTreeSet<u64> = times.iter().rev().take(policy.last as usize).copied().collect();
        let month = |time: u64| {
            let (year, month, _) = date_of_day(time / DAY);
            (year, month)
        };
        let mut keep = |count: u32, key: &dyn Fn(u64) -> (u64, u64)| {
            let newest: BTreeMap<(u64, u64), u64> = times.iter().map(|time| (key(*time), *time)).collect();
            stay.extend(newest.into_values().rev().take(count as usize));
        };
        keep(policy.hourly, &|time| (time / DAY, time % DAY / 3600));
        keep(policy.daily, &|time| (time / DAY, 0));
        // the Monday of its week
        keep(policy.weekly, &|time| ((time / DAY + 3) - (time / DAY + 3) % 7, 0));
        keep(policy.monthly, &month);
        stay
    }

    fn policies() -> impl Strategy<Value = Policy> {
        (0..4u32, 0..4u32, 0..4u32, 0..4u32, 0..4u32).prop_map(|(last, hourly, daily, weekly, monthly)| {
            Policy { last, hourly, daily, weekly, monthly }
        })
    }

    proptest! {
        #[test]
        fn those_stay_that_the_model_says(
            policy in policies(),
            times in prop::collection::btree_set(prop_oneof![0..200u64 * DAY, 0..3 * DAY], 0..60),
        ) {
            let ascending: Vec<u64> = times.into_iter().collect();
            let newest_first: Vec<u64> = ascending.iter().rev().copied().collect();
            let reasons = policy.reasons(&newest_first);
            let stay: BTreeSet<u64> =
                newest_first.iter().zip(&reasons).filter(|(_, why)| !why.is_empty()).map(|(time, _)| *time).collect();
            prop_assert_eq!(&stay, &model(&policy, &ascending));
            // what stayed stays when it is asked again
            let left: Vec<u64> = stay.iter().rev().copied().collect();
            prop_assert!(policy.reasons(&left).iter().all(|why| !why.is_empty()));
        }
    }

    #[test]
    fn weeks_begin_on_monday_and_months_on_the_first() {
        let at = |day: u64, hour: u64| day * DAY + hour * 3600;
        // Sunday 4 January 1970, 23:00, and Monday 5 January, 1:00
        let policy = Policy { weekly: 5, ..Policy::default() };
        assert_eq!(
            policy.reasons(&[at(4, 1), at(3, 23), at(3, 1)]),
            [vec![Reason::Weekly], vec![Reason::Weekly], vec![]]
        );
        let policy = Policy { monthly: 2, daily: 1, ..Policy::default() };
        // 1 February, 31 January, 1 January
        assert_eq!(
            policy.reasons(&[at(31, 0), at(30, 23), at(0, 0)]),
            [vec![Reason::Daily, Reason::Monthly], vec![Reason::Monthly], vec![]]
        );
        assert!(Policy::default().is_empty() && !policy.is_empty());
    }
}
