//! Pre-copy: memory and files while the container runs, until the verdict.

use crate::files::{Meter, send_round};
use crate::group::Point;
use crate::pace::Pace;
use crate::source::{Source, SourceError, outlet};
use godwit_memory::PAGE_SIZE;
use godwit_memory::destination::EAGER_COW_PAGES;
use godwit_migration::convergence::{Measured, Verdict, verdict};
use godwit_migration::journal;
use godwit_migration::observer::{Event, micros};
use godwit_migration::phase::Phase;
use godwit_migration::plan::{Restoration, Strategy, Tracker};
use godwit_migration::prediction::{Parts, Way, fixed};
use godwit_migration::quantity::show_duration;
use godwit_migration::report::{MemoryReport, RoundReport};
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::tree::{Options, TreeIndex, TreeSource};
use godwit_transfer::{Message, TreeId};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// A round that sent less than this says nothing about the link.
const TELLING_BYTES: u64 = 256 << 10;

/// What the rounds so far have shown.
#[derive(Debug, Default)]
pub(crate) struct Insight {
    bandwidth: f64,
    dirty_rate: Option<f64>,
    previous: Option<Previous>,
    /// All that is written at all was written again between the last two looks: how much that is.
    working_set: Option<u64>,
    frozen: Duration,
    tasks: usize,
}

/// What is kept of the round before.
#[derive(Debug)]
struct Previous {
    begun: Instant,
    /// Since the round before that one; very long for the first, which finds all there is.
    interval: Duration,
    written: u64,
}

impl Insight {
    /// A round that began then has found so many bytes written.
    fn note(&mut self, begun: Instant, written: u64) {
        let mut interval = Duration::MAX;
        if let Some(previous) = &self.previous {
            interval = begun - previous.begun;
            self.dirty_rate = Some(written as f64 / interval.as_secs_f64().max(1e-3));
            self.working_set =
                is_working_set((previous.written, previous.interval), (written, interval)).then_some(written);
        }
        self.previous = Some(Previous { begun, interval, written });
    }

    /// Bytes a second that were written in a time like that of the last round. What is counted are different pages: where
    /// all of the working set is written in less time than there was between two looks, it is written again in the last
    /// round, too, however short that was.
    fn rate_within(&self, last_round: Duration) -> Option<f64> {
        let least = self.working_set.map_or(0.0, |set| set as f64 / last_round.as_secs_f64().max(1e-3));
        self.dirty_rate.map(|rate| rate.max(least))
    }
}

/// Whether the second of two looks, each with the bytes found written and the time since the look before, found as many, or
/// more in no more time: without a working set they follow the time.
fn is_working_set(before: (u64, Duration), now: (u64, Duration)) -> bool {
    let ratio = now.0 as f64 / (before.0 as f64).max(1.0);
    ratio >= 0.9 && (ratio <= 1.1 || now.1 <= before.1.saturating_add(before.1 / 10))
}

/// Another round of files alone would bring less than it takes.
const FEW_BYTES: u64 = 4 << 20;

/// What one round brought.
struct Brought {
    memory_bytes: u64,
    file_bytes: u64,
    /// Of memory and files, before compression.
    sent_bytes: u64,
    sent_file_bytes: u64,
    frozen: Duration,
    /// How long that took; none when there were pauses in it.
    sending: Option<Duration>,
    tasks: usize,
}

impl Source<'_> {
    /// All rounds, until the verdict says to freeze.
    pub(crate) fn pre_copy(&mut self) -> Result<(), SourceError> {
        let begun = Instant::now();
        let mut insight = Insight::default();
        let mut asked = None;
        let mut before = None;
        if let Some(pace) = &mut self.pace {
            pace.begin(self.plan.limits.timeout);
        }
        let useful_rounds = if self.pages.is_some() { u32::MAX } else { self.tracker.useful_rounds() };
        let slow = self.container.facts().starts_slowly;
        if useful_rounds == 0 {
            self.files_only_rounds()?;
            self.meet(Point::Converged)?;
            if slow {
                self.in_turn(Point::Started, Self::get_ready)?;
            }
            return self.meet(Point::Switchover);
        }
        for round in 0.. {
            let report = self.round(round, &mut insight)?;
            let measured = Measured {
                rounds: round + 1,
                useful_rounds,
                elapsed: begun.elapsed(),
                last_round: report.duration,
                bandwidth: insight.bandwidth,
                // before there are two rounds to compare, all of it may have been written again
                dirty_rate: insight
                    .rate_within(report.duration)
                    .unwrap_or(self.memory_bytes as f64 / report.duration.as_secs_f64().max(1e-3)),
                total_bytes: self.memory_bytes,
                fixed: self.fixed_downtime(&insight),
            };
            let verdict = verdict(&measured, &self.plan.limits);
            self.tell_round(report, measured.expected_downtime())?;
            let verdict = self.answered(verdict, &mut asked)?;
            if round == 0 {
                self.tell_of_sharing();
            }
            if self.pages.is_some() {
                let expected_downtime = measured.expected_downtime();
                self.memory_report = Some(MemoryReport { expected_downtime, ..MemoryReport::default() });
            }
            match verdict {
                Verdict::Another { expected } => {
                    self.step_forth(expected, before.replace(expected));
                    self.throttle(&measured)?;
                }
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
                        "switchover although up to {} of downtime are expected (limit {}): {why}",
                        show_duration(expected),
                        show_duration(self.plan.limits.max_downtime)
                    ));
                    break;
                }
                Verdict::GiveUp { expected, why } | Verdict::Ask { expected, why } => {
                    return Err(self.not_converged(expected, &why));
                }
            }
        }
        // what others take long for is long enough to write much
        let mut another = |source: &mut Self| source.one_more_round(&mut insight);
        self.meet_in_rounds(Point::Converged, &mut another)?;
        if slow {
            self.in_turn(Point::Started, Self::get_ready)?;
            self.rounds_until(Point::Started, &mut another)?;
            another(self)?;
        }
        self.meet(Point::Switchover)
    }

    /// What was written while something else was waited for.
    pub(crate) fn one_more_round(&mut self, insight: &mut Insight) -> Result<(), SourceError> {
        let round = self.rounds.len() as u32;
        let report = self.round(round, insight)?;
        let expected = self.memory_report.as_ref().map(|report| report.expected_downtime);
        self.tell_round(report, expected.unwrap_or_default())
    }

    /// Pauses make rounds longer, and longer rounds leave more behind.
    fn step_forth(&mut self, expected: Duration, before: Option<Duration>) {
        if before.is_some_and(|before| expected > before.mul_f64(0.7)) {
            self.pace.iter_mut().for_each(Pace::did_not_help);
        }
    }

    /// What does not depend on what is dirty at the end.
    fn fixed_downtime(&self, insight: &Insight) -> Duration {
        let eager_pages = self.cow_pages().filter(|pages| *pages <= EAGER_COW_PAGES).unwrap_or(0);
        let parts = Parts {
            memory_bytes: self.memory_bytes,
            shared_bytes: self.pages.as_ref().map_or(0, |pages| pages.shared_bytes()),
            eager_bytes: eager_pages * PAGE_SIZE,
            tasks: insight.tasks,
            process_start: self.process_start,
            round_trip: self.round_trip,
            last_dump: insight.frozen,
        };
        let way = match self.plan.tracker {
            Some(tracker) if tracker.reads_from_outside() => Way::Outside(self.restoration.0),
            Some(Tracker::PreDump) => Way::PreDump,
            _ => Way::Checkpoint,
        };
        fixed(way, &parts)
    }

    /// Pages that several tasks share copy-on-write.
    fn cow_pages(&self) -> Option<u64> {
        self.pages.as_ref().map(|pages| pages.cow_pages())
    }

    /// What will not be shared any more is worth knowing before it moves.
    fn tell_of_sharing(&self) {
        let Some(pages) = self.cow_pages().filter(|pages| *pages > EAGER_COW_PAGES) else { return };
        if self.restoration.0 == Restoration::LocalLazy {
            self.observer.note(format!(
                "warning: its tasks share {} copy-on-write; each of them will have its own copy over there \
                 (`--restore eager` keeps them shared, for a longer downtime)",
                godwit_migration::quantity::show_bytes(pages * PAGE_SIZE)
            ));
        }
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
    fn files_only_rounds(&mut self) -> Result<(), SourceError> {
        let mut before = self.files_only_round(0)?;
        // what is stopped for the last of them waits for nothing else
        let most = if self.plan.strategy == Strategy::Restart { self.plan.limits.max_rounds } else { 1 };
        for round in 1..most {
            if before < FEW_BYTES {
                break;
            }
            let now = self.files_only_round(round)?;
            if now > before / 2 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// Gives the bytes that were sent.
    fn files_only_round(&mut self, round: u32) -> Result<u64, SourceError> {
        let begun = Instant::now();
        let wire_before = self.wire.bytes_sent();
        self.wire.say(&Message::RoundBegin { round, last: false })?;
        let (file_bytes, sent) = self.send_files(round > 0, Phase::PreCopy)?;
        self.finish_round(round)?;
        self.tell_round(
            RoundReport {
                round,
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
        )?;
        Ok(sent)
    }

    fn round(&mut self, round: u32, insight: &mut Insight) -> Result<RoundReport, SourceError> {
        let begun = Instant::now();
        let wire_before = self.bytes_sent();
        self.wire.say(&Message::RoundBegin { round, last: false })?;
        let brought = if self.pages.is_some() { self.page_round(round)? } else { self.image_round(round)? };
        let asked = Instant::now();
        self.finish_round(round)?;
        let acknowledged = asked.elapsed();

        let tried = self.pace.as_ref().and_then(Pace::bandwidth);
        if let (None, Some(tried)) = (brought.sending, tried) {
            insight.bandwidth = tried;
        } else if brought.sent_bytes >= TELLING_BYTES || insight.bandwidth == 0.0 {
            let sending = brought.sending.unwrap_or_else(|| begun.elapsed()) + acknowledged;
            insight.bandwidth = brought.sent_bytes as f64 / sending.as_secs_f64().max(1e-4);
        } else {
            // nothing much was on its way: this was the way there and back
            self.round_trip = acknowledged;
        }
        let tells = self.pages.is_some() || self.tracker.tells_dirty_rate();
        if tells {
            insight.note(begun, brought.memory_bytes + brought.sent_file_bytes);
        }
        insight.frozen = brought.frozen;
        insight.tasks = brought.tasks;
        Ok(RoundReport {
            round,
            last: false,
            memory_bytes: brought.memory_bytes,
            file_bytes: brought.file_bytes,
            wire_bytes: self.bytes_sent() - wire_before,
            duration: begun.elapsed(),
            frozen: brought.frozen,
            dirty_rate_bytes_per_s: insight.dirty_rate.map(|rate| rate as u64),
            expected_downtime_us: None,
        })
    }

    /// CRIU's images, then files.
    fn image_round(&mut self, round: u32) -> Result<Brought, SourceError> {
        let images = self.tracker.round(&mut *self.container, self.criu)?;
        self.container.complete_images(&images.dir)?;
        let sending = Instant::now();
        let dumped = images.dumped;
        let image_bytes = self.send_images(&images.dir, images.tree, dumped.memory_bytes, Phase::PreCopy)?;
        let (file_bytes, sent_file_bytes) = self.send_files(round > 0, Phase::PreCopy)?;
        Ok(Brought {
            memory_bytes: dumped.memory_bytes,
            file_bytes,
            sent_bytes: image_bytes + sent_file_bytes,
            sent_file_bytes,
            frozen: dumped.frozen,
            sending: Some(sending.elapsed()),
            tasks: 1,
        })
    }

    /// Pages and files, side by side where there is more than one connection.
    fn page_round(&mut self, round: u32) -> Result<Brought, SourceError> {
        let begun = Instant::now();
        let tasks = self.container.tasks()?;
        let Some(mut pages) = self.pages.take() else { return self.image_round(round) };
        let streams = self.streams.take();
        let mut pace = self.pace.take();
        let paused_before = pace.as_mut().map(|pace| pace.begin_round(self.memory_bytes)).unwrap_or_default();
        let mut meter = Meter::new(self.observer, Phase::PreCopy, "memory", self.memory_bytes);
        let mut copied = |bytes| {
            meter.add(bytes);
            pace.iter_mut().for_each(|pace| pace.step(bytes));
        };
        let (pass, files) = match &streams {
            Some(_) => std::thread::scope(|scope| {
                let memory = scope.spawn(|| {
                    let outlet = outlet(&streams, None)?;
                    let pass = pages.round(&tasks, outlet, &mut copied)?;
                    streams.as_ref().map_or(Ok(()), |streams| streams.end_of(round))?;
                    Ok::<_, SourceError>(pass)
                });
                let files = self.send_files(round > 0, Phase::PreCopy);
                (memory.join().map_err(|_| crate::source::thread_died("memory")), files)
            }),
            None => {
                let outlet = outlet(&streams, Some(&mut self.wire))?;
                let pass = pages.round(&tasks, outlet, &mut copied);
                (Ok(pass.map_err(SourceError::from)), self.send_files(round > 0, Phase::PreCopy))
            }
        };
        let sending = begun.elapsed();
        self.streams = streams;
        self.pages = Some(pages);
        let paused = pace.as_ref().map(Pace::paused).unwrap_or_default() - paused_before;
        self.pace = pace;
        if paused > sending / 10 {
            self.observer.note(format!(
                "round {round}: stood back for {} of {}, so that the container need not wait for a processor \
                 (`--pace full` does not)",
                show_duration(paused),
                show_duration(sending)
            ));
        }
        let (pass, (file_bytes, sent_file_bytes)) = (pass??, files?);
        Ok(Brought {
            memory_bytes: pass.changed_bytes,
            file_bytes,
            sent_bytes: pass.changed_bytes + sent_file_bytes,
            sent_file_bytes,
            frozen: Duration::ZERO,
            sending: (paused <= sending / 10).then_some(sending),
            tasks: pass.tasks,
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
        if self.files.are_watched() {
            self.files.look_at(&self.container.open_files()?);
        }
        Ok(self.files.round(writable_only, &also, &mut self.wire, self.observer, phase, &self.cancel)?)
    }

    /// Sends an image directory; `memory_bytes` of it are pages.
    pub(crate) fn send_images(
        &mut self,
        dir: &Path,
        tree: TreeId,
        memory_bytes: u64,
        phase: Phase,
    ) -> Result<u64, SourceError> {
        self.send_tree(dir, tree, TreeIndex::default(), memory_bytes, phase)
    }

    /// Sends a directory that is not the container's, of which `there` is at the destination.
    pub(crate) fn send_tree(
        &mut self,
        dir: &Path,
        tree: TreeId,
        there: TreeIndex,
        bytes: u64,
        phase: Phase,
    ) -> Result<u64, SourceError> {
        let unreadable = |source| crate::files::FilesError::Tree { path: dir.display().to_string(), source };
        let mut source = TreeSource::new(dir, there, Options::default()).map_err(unreadable)?;
        let what = if tree == TreeId::CONTAINER_IMAGE { "the container's image" } else { "memory" };
        let mut meter = Meter::new(self.observer, phase, what, bytes);
        let stats = send_round(&mut source, tree, dir, &HashSet::new(), &mut self.wire, &mut meter)?;
        Ok(stats.bytes_sent)
    }

    pub(crate) fn end_round(&mut self, round: u32) -> Result<(), SourceError> {
        let streams = self.streams.as_ref().map_or(0, |streams| streams.count() as u16);
        Ok(self.wire.say(&Message::RoundEnd { round, streams })?)
    }

    fn finish_round(&mut self, round: u32) -> Result<(), SourceError> {
        self.end_round(round)?;
        Ok(self.wire.expect("the acknowledgement of a round", |message| match message {
            Message::RoundAck { round: acknowledged } if acknowledged == round => Ok(()),
            other => Err(other),
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_set_that_is_written_again_in_less_time_is_written_again_in_the_last_round() {
        let ms = Duration::from_millis;
        let all = (400u64, Duration::MAX);
        assert!(is_working_set(all, (390, ms(2000))), "all there is");
        assert!(!is_working_set(all, (30, ms(2000))));
        assert!(is_working_set((200, ms(2000)), (190, ms(1000))), "as much in half the time");
        assert!(!is_working_set((200, ms(2000)), (110, ms(1000))), "in proportion");
        assert!(is_working_set((200, ms(1000)), (200, ms(2000))), "no more in twice the time");
        assert!(!is_working_set((200, ms(1000)), (390, ms(2000))), "in proportion");

        let begun = Instant::now();
        let mut insight = Insight::default();
        insight.note(begun, 400);
        assert_eq!(insight.rate_within(ms(100)), None);
        insight.note(begun + ms(2000), 400);
        assert_eq!(insight.dirty_rate, Some(200.0));
        assert_eq!(insight.rate_within(ms(500)), Some(800.0), "all of it in half a second");
        insight.note(begun + ms(4000), 100);
        assert_eq!(insight.rate_within(ms(500)), Some(50.0));
    }
}
