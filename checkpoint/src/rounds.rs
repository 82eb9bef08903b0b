//! Pre-copy: memory and files while the container runs, until the verdict.

use crate::files::{Meter, send_round};
use crate::source::{Source, SourceError};
use crate::tracker::Images;
use godwit_migration::convergence::{Measured, Verdict, verdict};
use godwit_migration::journal;
use godwit_migration::observer::{Event, micros};
use godwit_migration::phase::Phase;
use godwit_migration::quantity::show_duration;
use godwit_migration::report::RoundReport;
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::Message;
use godwit_transfer::tree::{Options, TreeIndex, TreeSource};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What the final dump and the restore cost whatever the size of the container: processes, namespaces, sockets, a runtime
/// around CRIU. At least this much; an estimate from measurements of redis under runc, which only decides when rounds
/// end and never what is reported.
const SWITCH_FIXED: Duration = Duration::from_millis(120);
/// The same in starts of the runtime, as the destination measured one: 10 ms on a usual host, where both come to the
/// same; 250 ms on an emulated one, where the switchover was seen to take 2.6 s.
const SWITCH_IN_STARTS: u32 = 10;
/// Bytes a second that an eager restore copies into memory: likewise an estimate.
const RESTORE_BYTES_PER_SECOND: f64 = 1.0e9;
/// A round that sent less than this says nothing about the link.
const TELLING_BYTES: u64 = 256 << 10;

/// What the rounds so far have shown.
#[derive(Debug, Default)]
pub(crate) struct Insight {
    bandwidth: f64,
    dirty_rate: Option<f64>,
    previous: Option<Instant>,
    frozen: Duration,
}

impl Source<'_> {
    /// All rounds, until the verdict says to freeze.
    pub(crate) fn pre_copy(&mut self) -> Result<(), SourceError> {
        let begun = Instant::now();
        let mut insight = Insight::default();
        if self.tracker.useful_rounds() == 0 {
            return self.files_only_round();
        }
        for round in 0.. {
            let report = self.round(round, &mut insight)?;
            let measured = Measured {
                rounds: round + 1,
                useful_rounds: self.tracker.useful_rounds(),
                elapsed: begun.elapsed(),
                last_round: report.duration,
                bandwidth: insight.bandwidth,
                // before there are two rounds to compare, all of it may have been written again
                dirty_rate: insight
                    .dirty_rate
                    .unwrap_or(self.memory_bytes as f64 / report.duration.as_secs_f64().max(1e-3)),
                total_bytes: self.memory_bytes,
                fixed: self.fixed_downtime(&insight),
            };
            let verdict = verdict(&measured, &self.plan.limits);
            self.tell_round(report, measured.expected_downtime())?;
            match verdict {
                Verdict::Another { .. } => {}
                Verdict::Switchover { expected, over_limit: None } => {
                    self.observer.note(format!(
                        "switchover: expected downtime {} within the limit of {}",
                        show_duration(expected),
                        show_duration(self.plan.limits.max_downtime)
                    ));
                    break;
                }
                Verdict::Switchover { expected, over_limit: Some(why) } => {
                    self.observer.note(format!(
                        "switchover although up to {} of downtime are expected (limit {}): {why}, and `--on-timeout switchover` was given",
                        show_duration(expected),
                        show_duration(self.plan.limits.max_downtime)
                    ));
                    break;
                }
                Verdict::GiveUp { expected, why } => return Err(self.not_converged(expected, &why)),
            }
        }
        Ok(())
    }

    fn fixed_downtime(&self, insight: &Insight) -> Duration {
        let copy = Duration::from_secs_f64(self.memory_bytes as f64 / RESTORE_BYTES_PER_SECOND);
        insight.frozen + SWITCH_FIXED.max(self.process_start * SWITCH_IN_STARTS) + copy
    }

    fn not_converged(&self, expected: Duration, why: &str) -> SourceError {
        let limit = show_duration(self.plan.limits.max_downtime);
        SourceError::Failure(Box::new(
            Failure::new(FailureKind::NotConverged, format!("`{}` did not converge: {why}", self.name))
                .because(format!(
                    "the expected downtime is up to {} (limit {limit})",
                    show_duration(expected)
                ))
                .hint("raise `--max-downtime`, or add `--on-timeout switchover` to go all the same"),
        ))
    }

    /// Files while the container runs, when its memory is only read under the freeze.
    fn files_only_round(&mut self) -> Result<(), SourceError> {
        let begun = Instant::now();
        let wire_before = self.wire.bytes_sent();
        self.wire.say(&Message::RoundBegin { round: 0, last: false })?;
        let (file_bytes, _) = self.send_files(false, Phase::PreCopy)?;
        self.finish_round(0)?;
        self.tell_round(
            RoundReport {
                round: 0,
                last: false,
                memory_bytes: 0,
                file_bytes,
                wire_bytes: self.wire.bytes_sent() - wire_before,
                duration: begun.elapsed(),
                frozen: Duration::ZERO,
                dirty_rate_bytes_per_s: None,
                expected_downtime_us: None,
            },
            Duration::ZERO,
        )
    }

    fn round(&mut self, round: u32, insight: &mut Insight) -> Result<RoundReport, SourceError> {
        let begun = Instant::now();
        let wire_before = self.wire.bytes_sent();
        self.wire.say(&Message::RoundBegin { round, last: false })?;
        let images = self.tracker.round(&mut *self.container, self.criu)?;
        self.complete_images(&images)?;
        let sending = Instant::now();
        let image_bytes = self.send_images(&images, Phase::PreCopy)?;
        let (file_bytes, sent_file_bytes) = self.send_files(round > 0, Phase::PreCopy)?;
        self.finish_round(round)?;

        let sent = image_bytes + sent_file_bytes;
        if sent >= TELLING_BYTES || insight.bandwidth == 0.0 {
            insight.bandwidth = sent as f64 / sending.elapsed().as_secs_f64().max(1e-4);
        }
        if let Some(previous) = insight.previous.replace(begun)
            && self.tracker.tells_dirty_rate()
        {
            let interval = (begun - previous).as_secs_f64().max(1e-3);
            insight.dirty_rate = Some((images.dumped.memory_bytes + sent_file_bytes) as f64 / interval);
        }
        insight.frozen = images.dumped.frozen;
        Ok(RoundReport {
            round,
            last: false,
            memory_bytes: images.dumped.memory_bytes,
            file_bytes,
            wire_bytes: self.wire.bytes_sent() - wire_before,
            duration: begun.elapsed(),
            frozen: images.dumped.frozen,
            dirty_rate_bytes_per_s: insight.dirty_rate.map(|rate| rate as u64),
            expected_downtime_us: None,
        })
    }

    fn tell_round(&mut self, mut report: RoundReport, expected: Duration) -> Result<(), SourceError> {
        if !expected.is_zero() {
            report.expected_downtime_us = Some(micros(expected));
        }
        self.journal.append(journal::Event::Round { round: report.round, wire_bytes: report.wire_bytes })?;
        self.observer.event(&Event::Round(report.clone()));
        self.rounds.push(report);
        Ok(())
    }

    /// Sends what changed in the container's files.
    pub(crate) fn send_files(
        &mut self,
        writable_only: bool,
        phase: Phase,
    ) -> Result<(u64, u64), SourceError> {
        let also = self.container.mapped_files()?;
        Ok(self.files.round(writable_only, &also, &mut self.wire, self.observer, phase, &self.cancel)?)
    }

    /// Adds what the engine wants to find beside CRIU's images.
    pub(crate) fn complete_images(&self, images: &Images) -> Result<(), SourceError> {
        Ok(self.container.complete_images(&images.dir)?)
    }

    /// Sends an image directory.
    pub(crate) fn send_images(&mut self, images: &Images, phase: Phase) -> Result<u64, SourceError> {
        let unreadable =
            |source| crate::files::FilesError::Tree { path: images.dir.display().to_string(), source };
        let mut source =
            TreeSource::new(&images.dir, TreeIndex::default(), Options::default()).map_err(unreadable)?;
        let mut meter = Meter::new(self.observer, phase, "memory", images.dumped.memory_bytes);
        let (_, sent) =
            send_round(&mut source, images.tree, &images.dir, &HashSet::new(), &mut self.wire, &mut meter)?;
        Ok(sent)
    }

    fn finish_round(&mut self, round: u32) -> Result<(), SourceError> {
        self.wire.say(&Message::RoundEnd { round })?;
        Ok(self.wire.expect("the acknowledgement of a round", |message| match message {
            Message::RoundAck { round: acknowledged } if acknowledged == round => Ok(()),
            other => Err(other),
        })?)
    }
}
