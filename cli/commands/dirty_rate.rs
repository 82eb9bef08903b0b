//! `godwit check --dirty-rate`: how fast a container writes, and what that means for each way of moving it.

use super::{Trouble, open};
use crate::args::{Args, CheckArgs};
use crate::draw::{Draw, table};
use godwit_checkpoint::pages::method_of;
use godwit_checkpoint::preflight::{abilities, check_privilege, usable_criu};
use godwit_engine::OpenRequest;
use godwit_memory::ledger::PageLedger;
use godwit_memory::source::{PageSink, SinkError, TreeMemory};
use godwit_memory::{ImageId, PAGE_SIZE};
use godwit_migration::plan::{Carry, Restoration, Tracker, TrackerChoice, choose_tracker};
use godwit_migration::prediction::{Parts, Way, fixed};
use godwit_migration::quantity::{show_bytes, show_duration};
use godwit_migration::{Failure, FailureKind};
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long one look is: short enough to see that pages are written again and again.
const LOOK: Duration = Duration::from_millis(250);

/// What was seen.
#[derive(Debug, Serialize)]
struct DirtyRate {
    container: String,
    tracker: Tracker,
    tasks: usize,
    memory_bytes: u64,
    /// Over how long.
    period_us: u64,
    /// Distinct pages written in a look, scaled to a second: median, least and most.
    pages_per_s: f64,
    pages_per_s_min: f64,
    pages_per_s_max: f64,
    /// The link that the ways are reckoned with.
    bandwidth_bytes_per_s: u64,
    ways: Vec<Expected>,
}

/// What one way would cost.
#[derive(Debug, Serialize)]
struct Expected {
    way: &'static str,
    flags: &'static str,
    expected_downtime_us: u64,
    /// Rounds make it shorter: the container writes more slowly than the link carries.
    converges: bool,
}

pub fn run(_: &Args, command: &CheckArgs, container: &str, draw: &Draw) -> Result<u8, Trouble> {
    check_privilege()?;
    let criu = usable_criu()?;
    // nothing is moved: whatever would need a word first does not matter here
    let (name, container) =
        open(container, &OpenRequest { carry: Carry::ALL, ip_change: true, ..OpenRequest::default() })?;
    let about = |failure| Trouble::about(failure, &name.to_string(), None);
    let (tracker, _) = choose_tracker(TrackerChoice::Auto, &abilities(&criu))
        .map_err(|why| about(Failure::new(FailureKind::Missing, why)))?;
    let unreadable = |error: &(dyn std::error::Error + 'static)| {
        about(Failure::new(FailureKind::Failed, "its memory cannot be read").because_of(error))
    };
    let mut memory = TreeMemory::new(method_of(tracker)).map_err(|error| unreadable(&error))?;
    // room to grow to twice its size while it is watched
    let room = container.facts().memory_bytes / PAGE_SIZE * 2 + (1 << 18);
    let mut seen = Seen { ledger: PageLedger::new(1, room, 1) };
    let mut look = || -> Result<(u64, usize), Trouble> {
        let before = seen.changed();
        let tasks = container.tasks().map_err(|error| unreadable(&error))?;
        memory.round(&tasks, &mut seen).map_err(|error| unreadable(&error))?;
        seen.end_round();
        Ok((seen.changed() - before, tasks.len()))
    };
    look()?;
    let begun = Instant::now();
    let mut rates = Vec::new();
    let mut tasks = 1;
    while rates.is_empty() || begun.elapsed() < command.period {
        let from = Instant::now();
        std::thread::sleep(LOOK.min(command.period));
        let (pages, now) = look()?;
        tasks = now;
        rates.push(pages as f64 / from.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let parts = Parts {
        memory_bytes: container.facts().memory_bytes,
        shared_bytes: memory.shared_objects().iter().map(|object| object.bytes).sum(),
        eager_bytes: 0,
        tasks,
        ..Parts::default()
    };
    let rate = rates[rates.len() / 2];
    let report = DirtyRate {
        container: name.to_string(),
        tracker,
        tasks,
        memory_bytes: parts.memory_bytes,
        period_us: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        pages_per_s: rate,
        pages_per_s_min: rates[0],
        pages_per_s_max: rates[rates.len() - 1],
        bandwidth_bytes_per_s: command.bandwidth,
        ways: ways(&parts, rate * PAGE_SIZE as f64, command.bandwidth as f64),
    };
    memory.release();
    show(&report, draw);
    Ok(0)
}

/// What each way costs at a rate of bytes a second over a link of bytes a second.
fn ways(parts: &Parts, rate: f64, bandwidth: f64) -> Vec<Expected> {
    let memory = parts.memory_bytes as f64;
    let converges = rate < bandwidth;
    // what is written while a round of what was written in the round before is sent: in the end it is the shortest round
    let least_round = 0.05;
    let remaining = if converges { (rate * least_round).min(memory) } else { memory };
    let expected = |way, flags, bytes: f64, kind, converges| {
        let downtime = fixed(kind, parts) + Duration::from_secs_f64(bytes / bandwidth.max(1.0));
        let expected_downtime_us = u64::try_from(downtime.as_micros()).unwrap_or(u64::MAX);
        Expected { way, flags, expected_downtime_us, converges }
    };
    vec![
        expected("stop-and-copy", "--strategy stop-and-copy", memory, Way::StopAndCopy, true),
        expected(
            "pre-copy, eager restore",
            "--restore eager",
            remaining,
            Way::Outside(Restoration::Eager),
            converges,
        ),
        expected(
            "pre-copy, local-lazy restore",
            "--restore local-lazy",
            remaining,
            Way::Outside(Restoration::LocalLazy),
            converges,
        ),
    ]
}

fn show(report: &DirtyRate, draw: &Draw) {
    if draw.is_json() {
        draw.json_line(report);
        return;
    }
    draw.data(&format!(
        "{}: {} in {} tasks, {:.0} pages/s written ({} /s; from {:.0} to {:.0} pages/s), tracker {}",
        report.container,
        show_bytes(report.memory_bytes),
        report.tasks,
        report.pages_per_s,
        show_bytes((report.pages_per_s * PAGE_SIZE as f64) as u64),
        report.pages_per_s_min,
        report.pages_per_s_max,
        report.tracker,
    ));
    let header = ["way", "expected downtime", "converges", "flags"].map(String::from).to_vec();
    let rows = report.ways.iter().map(|way| {
        vec![
            way.way.to_owned(),
            show_duration(Duration::from_micros(way.expected_downtime_us)),
            if way.converges { "yes" } else { "no" }.to_owned(),
            way.flags.to_owned(),
        ]
    });
    draw.data(table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()).trim_end());
}

/// Counts pages that are new or different; nothing goes anywhere.
struct Seen {
    ledger: PageLedger,
}

impl Seen {
    fn changed(&self) -> u64 {
        let totals = self.ledger.statistics();
        totals.data + totals.zero + totals.referenced
    }
}

impl Seen {
    fn end_round(&mut self) {
        // nothing can fail that goes nowhere
        let _ = self.ledger.end_round(&mut |_, _| Ok::<(), std::convert::Infallible>(()));
    }
}

impl PageSink for Seen {
    fn pages(&mut self, image: ImageId, address: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let mut nowhere = |_: usize, _: &mut Vec<u8>| Ok::<(), std::convert::Infallible>(());
        self.ledger.add(image, address, bytes, &mut nowhere).map_err(|error| SinkError(Box::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_faster_than_the_link_does_not_converge() {
        let parts = Parts { memory_bytes: 1 << 30, tasks: 1, ..Parts::default() };
        let slow = ways(&parts, 1e6, 1e8);
        let fast = ways(&parts, 1e9, 1e8);
        assert!(slow.iter().all(|way| way.converges));
        assert_eq!(fast.iter().filter(|way| !way.converges).count(), 2);
        let downtime = |ways: &[Expected], at: usize| ways[at].expected_downtime_us;
        assert!(downtime(&slow, 2) * 5 < downtime(&slow, 1) && downtime(&slow, 1) * 5 < downtime(&slow, 0));
        assert!(downtime(&fast, 2) > 5_000_000, "all of it is left");
    }
}
