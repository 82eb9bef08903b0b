//! The frozen phases: the freeze, and everything that is not at the destination yet.

use crate::error::thread_died;
use crate::pages::{Outlet, PageMemory};
use crate::recovery;
use crate::source::{Source, SourceError, outlet};
use godwit_criu::DumpOptions;
use godwit_migration::downtime::Stopwatch;
use godwit_migration::report::{MemoryReport, RoundReport};
use godwit_migration::{Failure, FailureKind, Phase, journal, remains};
use godwit_transfer::{Message, PageStreams, TreeId};
use std::time::{Duration, Instant};

/// How long the destination may take for a step under the freeze. Restoring is the longest.
const FROZEN_PATIENCE: Duration = Duration::from_secs(120);

impl Source<'_> {
    /// Downtime begins here: lock first, so that nothing is acknowledged that the dump does not hold.
    pub(crate) fn freeze(&mut self) -> Result<(), SourceError> {
        self.hurry()?;
        self.wire.set_patience(FROZEN_PATIENCE);
        self.keep_remains()?;
        self.journal.append(journal::Event::Freezing)?;
        let options = self.last_dump();
        if let Some(pages) = &mut self.pages {
            pages.about_to_freeze(&self.container.tasks()?, &options)?;
        }
        self.stopwatch = Some(Stopwatch::start());
        self.container.lock_network()?;
        self.container.freeze()?;
        // the dump must find the limit that it had
        self.unthrottle()?;
        self.lap(Stopwatch::frozen);
        self.journal.append(journal::Event::Frozen)?;
        Ok(())
    }

    /// What whoever goes on after a crash must know.
    fn keep_remains(&mut self) -> Result<(), SourceError> {
        let engine = self.container.facts().engine.to_owned();
        let remains = recovery::Remains {
            engine,
            container: self.container.remains()?,
            parting: self.plan.parting.clone(),
            witness: self.plan.witness.as_ref().map(ToString::to_string),
        };
        remains::keep(&self.job.dir, &remains).map_err(|error| {
            let path = self.job.dir.display();
            let failure = Failure::new(FailureKind::Failed, format!("cannot write into `{path}`"));
            SourceError::Failure(Box::new(failure.because_of(&error)))
        })
    }

    /// No limit and no high compression while it stands still.
    fn hurry(&mut self) -> Result<(), SourceError> {
        self.bandwidth.set(0);
        self.wire.hurry();
        Ok(self.streams.as_ref().map_or(Ok(()), PageStreams::hurry)?)
    }

    /// The last difference, while it stands still.
    pub(crate) fn stop_and_copy(&mut self) -> Result<(), SourceError> {
        match self.pages.take() {
            Some(mut pages) => {
                let copied = self.stop_and_copy_pages(&mut pages);
                self.pages = Some(pages);
                copied
            }
            None => self.stop_and_copy_images(),
        }
    }

    /// The final dump, and beside it the last difference of the files; then the images.
    fn stop_and_copy_images(&mut self) -> Result<(), SourceError> {
        let begun = Instant::now();
        let wire_before = self.wire.bytes_sent();
        let round = self.rounds.len() as u32;
        self.wire.say(&Message::RoundBegin { round, last: true })?;
        let dump = self.tracker.last(&*self.container);
        let criu = self.criu;
        let (images, files) = std::thread::scope(|scope| {
            let dump = scope.spawn(move || dump.run(criu));
            let files = self.send_files(true, Phase::StopAndCopy);
            (dump.join(), files)
        });
        let images = images.map_err(|_| thread_died("the final dump"))??;
        let (file_bytes, _) = files?;
        self.container.verify_frozen()?;
        self.container.complete_images(&images.dir)?;
        self.journal.append(journal::Event::Dumped)?;
        self.lap(Stopwatch::dumped);
        self.send_images(&images.dir, images.tree, images.dumped.memory_bytes, Phase::StopAndCopy)?;
        self.ready(LastRound {
            round,
            begun,
            wire_before,
            memory_bytes: images.dumped.memory_bytes,
            file_bytes,
        })
    }

    /// CRIU dumps everything but pages; beside it the pages that were written of late and the last difference of the files
    /// go out. Then what CRIU has touched itself, the list of pages, and its images.
    fn stop_and_copy_pages(&mut self, pages: &mut PageMemory) -> Result<(), SourceError> {
        let begun = Instant::now();
        let wire_before = self.bytes_sent();
        let round = self.rounds.len() as u32;
        self.wire.say(&Message::RoundBegin { round, last: true })?;
        let tasks = self.container.tasks()?;
        let options = self.last_dump();
        let dir = options.images_dir.clone();
        let (ladder, mut memory) = pages.split();
        let streams = self.streams.take();
        let (dumped, looked, files) = std::thread::scope(|scope| {
            let dump = scope.spawn(move || ladder.dump(options));
            let (looked, files) = match &streams {
                Some(streams) => {
                    let look = scope.spawn(|| memory.look(&tasks, Outlet::Streams(streams)));
                    let files = self.send_files(true, Phase::StopAndCopy);
                    (look.join().map_err(|_| thread_died("memory")), files)
                }
                None => {
                    let looked = memory.look(&tasks, Outlet::Wire(&mut self.wire));
                    (Ok(looked), self.send_files(true, Phase::StopAndCopy))
                }
            };
            (dump.join().map_err(|_| thread_died("the final dump")), looked, files)
        });
        self.streams = streams;
        let (dumped, looked, (file_bytes, _)) = (dumped??, looked??, files?);
        self.observer.note(crate::pages::describe(&dumped));
        self.container.verify_frozen()?;
        self.container.complete_images(&dir)?;
        self.journal.append(journal::Event::Dumped)?;
        let outlet = outlet(&self.streams, Some(&mut self.wire))?;
        let finished = memory.finish(&tasks, looked, &dir, outlet)?;
        let objects = memory.shared_objects(&dumped.omitted)?;
        if let Some(streams) = &self.streams {
            streams.end_of(round)?;
        }
        self.lap(Stopwatch::dumped);
        if !objects.is_empty() {
            self.wire.say(&Message::Shared { objects })?;
        }
        self.send_images(&dir, TreeId::images(0), 0, Phase::StopAndCopy)?;
        self.memory_report = Some(MemoryReport {
            rung: dumped.rung.to_string(),
            fell: dumped.fell.iter().map(|(rung, why)| format!("{rung}: {why}")).collect(),
            ..self.memory_report.take().unwrap_or_default()
        });
        self.ready(LastRound { round, begun, wire_before, memory_bytes: finished.changed_bytes, file_bytes })
    }

    /// How CRIU is asked for the dump without pages.
    fn last_dump(&self) -> DumpOptions {
        let images = self.job.dir.join("images").join("last");
        self.container.dump_options(&images, &self.job.dir.join("work").join("last"))
    }

    /// The destination has all of it.
    fn ready(&mut self, last: LastRound) -> Result<(), SourceError> {
        self.end_round(last.round)?;
        let verify_us = self.wire.expect("ready", |message| match message {
            Message::Ready { verify_us } => Ok(verify_us),
            other => Err(other),
        })?;
        self.lap(|watch| watch.ready(Duration::from_micros(verify_us)));
        self.rounds.push(RoundReport {
            round: last.round,
            last: true,
            memory_bytes: last.memory_bytes,
            file_bytes: last.file_bytes,
            wire_bytes: self.bytes_sent() - last.wire_before,
            duration: last.begun.elapsed(),
            frozen: Duration::ZERO,
            dirty_rate_bytes_per_s: None,
            expected_downtime_us: None,
        });
        Ok(())
    }
}

/// What is known of the last round when all of it was sent.
struct LastRound {
    round: u32,
    begun: Instant,
    wire_before: u64,
    memory_bytes: u64,
    file_bytes: u64,
}
