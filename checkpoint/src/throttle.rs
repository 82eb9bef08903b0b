//! Taking CPU time from a container that writes faster than the link carries, and giving it back.
//!
//! The change of its limit is in the journal before it is made, so that it can be undone after the death of this process. It is
//! undone in the freeze, in which no limit matters: whatever comes after finds the container with the limit that it had, above all the runtime at the destination.

use crate::source::{Source, SourceError};
use godwit_migration::convergence::Measured;
use godwit_migration::journal;
use godwit_migration::report::ThrottleReport;
use godwit_migration::throttle::next_step;
use std::time::{Duration, Instant};

/// What was taken, and what that is based on.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Percent of its CPU time.
    taken: u8,
    /// Processors that it kept busy in the last round before the first step.
    used: f64,
    /// When CPU time was last looked at, and what it was.
    sample: Option<(Instant, Duration)>,
    /// What would have remained to be sent after the round before.
    previous_remaining: f64,
    /// Set after a step: the next round still finds what was written before it.
    settling: bool,
    /// It cannot be done, which was said.
    unable: bool,
    since: Option<Instant>,
    report: Option<ThrottleReport>,
}

impl Source<'_> {
    /// After a round that was not the last: takes CPU time if rounds would not converge otherwise. A container that cannot be
    /// throttled moves on without.
    pub(crate) fn throttle(&mut self, measured: &Measured) -> Result<(), SourceError> {
        if self.plan.limits.throttle == 0 || self.throttle.unable {
            return Ok(());
        }
        if self.throttle.taken == 0 {
            match self.container.cpu_time() {
                Ok(now) => self.throttle.sample(now),
                Err(error) => {
                    self.cannot_be_throttled(&error);
                    return Ok(());
                }
            }
        }
        let previous_remaining =
            std::mem::replace(&mut self.throttle.previous_remaining, measured.remaining_bytes());
        if std::mem::take(&mut self.throttle.settling) {
            return Ok(());
        }
        match next_step(measured, &self.plan.limits, previous_remaining, self.throttle.taken) {
            Some(percent) => self.take(percent),
            None => Ok(()),
        }
    }

    fn take(&mut self, percent: u8) -> Result<(), SourceError> {
        let left = f64::from(100 - percent) / 100.0;
        let change = match self.container.plan_throttle(self.throttle.used * left) {
            Ok(change) => change,
            Err(error) => {
                self.cannot_be_throttled(&error);
                return Ok(());
            }
        };
        self.journal.append(journal::Event::Throttling(change.clone()))?;
        if let Err(error) = self.container.throttle(&change) {
            self.cannot_be_throttled(&error);
            return Ok(());
        }
        // nobody stands back for a container that is slowed down: the sooner it is over the better
        self.pace = None;
        self.throttle.taken = percent;
        self.throttle.settling = true;
        self.throttle.since.get_or_insert_with(Instant::now);
        self.observer.note(format!(
            "throttled to {} % of its CPU time: it writes faster than the link carries",
            100 - percent
        ));
        Ok(())
    }

    fn cannot_be_throttled(&mut self, error: &dyn std::fmt::Display) {
        self.throttle.unable = true;
        self.observer.note(format!("warning: `{}` cannot be throttled: {error}", self.name));
    }

    /// Gives back what was taken. Nothing to do where nothing was.
    pub(crate) fn unthrottle(&mut self) -> Result<(), SourceError> {
        let Some(since) = self.throttle.since else { return Ok(()) };
        self.container.unthrottle()?;
        self.throttle.since = None;
        self.throttle.report =
            Some(ThrottleReport { most_percent: self.throttle.taken, duration: since.elapsed() });
        self.throttle.taken = 0;
        self.journal.append(journal::Event::Unthrottled)?;
        Ok(())
    }

    /// What was taken, for the summary.
    pub(crate) fn throttle_report(&self) -> Option<ThrottleReport> {
        self.throttle.report
    }
}

impl Throttle {
    /// Notes how much CPU time it has used until now.
    fn sample(&mut self, used: Duration) {
        let now = Instant::now();
        if let Some((then, before)) = self.sample.replace((now, used)) {
            self.used = used.saturating_sub(before).as_secs_f64() / (now - then).as_secs_f64().max(1e-3);
        }
    }
}
