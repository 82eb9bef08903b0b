//! The fault matrix: at every line of either journal something dies, breaks or cannot be written. After `godwit resume`
//! exactly one host runs the container, no acknowledged write is lost, and nothing is left over.
//!
//! Needs a godwit built with the feature `faults` (`scripts/test --faults` builds one); one row of the table at a time, for
//! a bed has one fault file a host.

use crate::bed::{Bed, DST, SRC, bed, skip};
use crate::container::{Redis, runc_state};
use crate::godwit::{Background, godwit_with};
use crate::probe::Probe;
use crate::state::State;
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

/// Where a build with faults looks for its orders (migration/src/fault.rs).
const ORDER: &str = "/run/godwit-fault";
/// Where one that holds waits.
const HOLD: &str = "/run/test.hold";

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL to godwit itself, on whose journal the line is.
    Kill,
    /// The line cannot be written.
    Enospc,
    Eio,
    /// While godwit waits there: SIGKILL to every CRIU of the host,
    KillCriu,
    /// to every runc,
    KillRuntime,
    /// to the handler of page faults at the destination,
    KillHandler,
    /// to the ssh that carries the wire.
    Cut,
    /// Nothing of the wire arrives any more, and nobody is told; the link is back when `resume` runs.
    Freeze,
    /// Both godwits at once.
    KillBoth,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Kill => "godwit is killed",
            Fault::Enospc => "ENOSPC",
            Fault::Eio => "EIO",
            Fault::KillCriu => "criu is killed",
            Fault::KillRuntime => "runc is killed",
            Fault::KillHandler => "the handler is killed",
            Fault::Cut => "the connection is cut",
            Fault::Freeze => "the connection is frozen",
            Fault::KillBoth => "both godwits are killed",
        })
    }
}

const SOURCE: &[&str] = &[
    "accepted",
    "prepared",
    "round",
    "freezing",
    "frozen",
    "dumped",
    "restored",
    "committed",
    "running",
    "discarded",
    "completed",
];
const DESTINATION: &[&str] = &[
    "planned",
    "accepted",
    "prepared",
    "round",
    "ready",
    "restoring",
    "restored",
    "going",
    "running",
    "completed",
];

/// One cell.
struct Cell {
    role: &'static str,
    event: &'static str,
    edge: &'static str,
    fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, event, edge, fault } = self;
        write!(f, "{role} {event} {edge}: {fault}")
    }
}

impl Cell {
    fn host(&self) -> &'static str {
        if self.role == "source" { SRC } else { DST }
    }

    /// Whether it belongs to the part that is always run: each line and each fault once, those about the commit twice.
    fn is_quick(&self) -> bool {
        match self.fault {
            Fault::Kill => self.edge == "after" || ["committed", "going"].contains(&self.event),
            Fault::Enospc => ["frozen", "committed", "restored", "going"].contains(&self.event),
            Fault::Eio => false,
            Fault::Freeze => (self.role, self.event) == ("source", "committed"),
            Fault::Cut => ["round", "restored", "committed"].contains(&self.event),
            _ => self.edge == "after",
        }
    }

    fn action(&self) -> String {
        match self.fault {
            Fault::Kill => "kill".into(),
            Fault::Enospc => "enospc".into(),
            Fault::Eio => "eio".into(),
            _ => format!("hold {HOLD}"),
        }
    }

    /// What is done from outside while godwit waits.
    fn strike(&self, bed: &Bed) {
        let (host, script) = match self.fault {
            Fault::KillCriu => (self.host(), "pkill -KILL -x criu; true"),
            Fault::KillRuntime => (DST, "pkill -KILL -x runc; true"),
            Fault::KillHandler => (DST, "pkill -KILL -o -f '[g]odwit fill'; true"),
            Fault::Cut => (SRC, "pkill -KILL -x ssh; true"),
            Fault::Freeze => (
                DST,
                "nft 'table inet frozen { chain input { type filter hook input priority 0; tcp dport 22 drop; }; }'",
            ),
            Fault::KillBoth => (DST, "pkill -KILL -f '[g]odwit receive'; true"),
            Fault::Kill | Fault::Enospc | Fault::Eio => return,
        };
        bed.sh(host, script);
        if self.fault == Fault::KillBoth {
            bed.sh(SRC, "pkill -KILL -f '[g]odwit --json migrate'; true");
        }
    }
}

/// How a cell ended.
struct Outcome {
    runner: &'static str,
    took: Duration,
}

/// What was seen of all cells, for `--json` and the table.
#[derive(Default)]
struct Tally {
    cells: usize,
    one_runner: usize,
    lost_writes: usize,
    left_over: usize,
    rows: Vec<(Cell, Result<Outcome, String>)>,
}

/// Plays one cell; the words say what was wrong.
fn play(bed: &Bed, cell: &Cell) -> Result<Outcome, String> {
    bed.wipe();
    let (pristine, there) = (State::of(bed, SRC).without("/srv"), State::of(bed, DST).without("/srv"));
    let redis = Redis::create(bed, "stay", 8);
    let before = State::of(bed, SRC).without("/srv");
    let probe = Probe::start(bed, &redis);
    bed.sh(cell.host(), &format!("mkdir -p {HOLD}; rm -f {HOLD}/*"));
    bed.write(cell.host(), ORDER, &format!("{} {} {} {}\n", cell.role, cell.event, cell.edge, cell.action()));
    let begun = Instant::now();
    let running = Background::migrate(
        bed,
        &[],
        &["runc:stay", "ssh://dst", "--tcp-established", "--retries", "0", "--max-downtime", "60s"],
    );
    if cell.action().starts_with("hold") {
        let reached = format!("timeout 60 sh -c 'until [ -e {HOLD}/reached ]; do sleep 0.01; done'");
        if !bed.holds(cell.host(), &reached) {
            let said = running.finish();
            return Err(format!("the point was never reached: {}{}", said.out, said.err));
        }
        cell.strike(bed);
        bed.sh(cell.host(), &format!("touch {HOLD}/go"));
    }
    let said = running.finish();
    if bed.holds(cell.host(), &format!("test -e {ORDER}")) {
        return Err(format!("the fault did not happen: {}{}", said.out, said.err));
    }
    if cell.fault == Fault::Freeze {
        bed.sh(DST, "nft delete table inet frozen");
    }
    // as a user would
    let mut told = String::new();
    for host in [SRC, DST] {
        let resumed = godwit_with(bed, host, &[], &["resume"]);
        told += &format!("{host}: exit {} {}{}\n", resumed.code, resumed.out, resumed.err);
    }
    let took = begun.elapsed();
    let context = |what: &str| format!("{what}\nmigrate: exit {} {}\n{told}", said.code, said.err);
    // who runs it, by the kernel's and runc's word, not by godwit's
    let runs = |host: &str| {
        runc_state(bed, host, "stay").is_some_and(|state| state["status"] == "running")
            && bed.holds(host, "! grep -q 1 /sys/fs/cgroup/stay/cgroup.freeze")
    };
    let runner = match (runs(SRC), runs(DST)) {
        (true, false) => SRC,
        (false, true) => DST,
        (true, true) => return Err(context("it runs on both hosts")),
        (false, false) => return Err(context("it runs nowhere")),
    };
    if let Some(lost) = probe.lost() {
        return Err(context(&format!("lost: {lost}")));
    }
    let wants = if runner == SRC { &before } else { &pristine };
    let left = wants.left_over(bed, SRC);
    let left = left.or_else(|| (runner == SRC).then(|| there.left_over(bed, DST)).flatten());
    let busy =
        "pgrep -x 'godwit|criu' || ls -d /var/lib/godwit/migrations/*/images || nft list ruleset | grep .";
    let left = left.or_else(|| {
        [SRC, DST].into_iter().find_map(|host| {
            let said = bed.try_sh(host, busy);
            (said.code == 0).then(|| format!("{host}: {}", said.out))
        })
    });
    match left {
        Some(left) => Err(context(&format!("left over: {left}"))),
        None => Ok(Outcome { runner, took }),
    }
}

/// Plays them all, and says what each came to.
fn matrix(cells: Vec<Cell>) {
    let Some(bed) = bed() else { return };
    if !bed.holds(SRC, "GODWIT_FAULTS=1 godwit --version") {
        return skip("this godwit is built without the feature `faults`");
    }
    let wanted = std::env::var("GODWIT_FAULT_CELLS").unwrap_or_default();
    let quick = std::env::var("GODWIT_FAULT_QUICK").is_ok_and(|text| !text.is_empty());
    let mut tally = Tally::default();
    for cell in
        cells.into_iter().filter(|cell| cell.to_string().contains(&wanted) && (!quick || cell.is_quick()))
    {
        let played = play(&bed, &cell);
        tally.cells += 1;
        match &played {
            Ok(outcome) => {
                tally.one_runner += 1;
                let _ = writeln!(std::io::stderr(), "{cell}: {} after {:.1?}", outcome.runner, outcome.took);
            }
            Err(why) => {
                tally.one_runner += usize::from(!why.starts_with("it runs"));
                tally.lost_writes += usize::from(why.starts_with("lost"));
                tally.left_over += usize::from(why.starts_with("left over"));
                let _ = writeln!(std::io::stderr(), "{cell}: WRONG: {why}");
            }
        }
        tally.rows.push((cell, played));
    }
    report(&tally);
    let wrong: Vec<String> = tally
        .rows
        .iter()
        .filter_map(|(cell, played)| Some(format!("{cell}: {}", played.as_ref().err()?)))
        .collect();
    assert!(wrong.is_empty(), "{} of {} cells:\n{}", wrong.len(), tally.cells, wrong.join("\n"));
}

/// Appends lines of JSON to the file that `GODWIT_FAULT_REPORT` names.
fn report(tally: &Tally) {
    let Some(path) = std::env::var_os("GODWIT_FAULT_REPORT") else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    for (cell, played) in &tally.rows {
        let line = serde_json::json!({
            "role": cell.role, "event": cell.event, "edge": cell.edge, "fault": cell.fault.to_string(),
            "runner": played.as_ref().map(|outcome| outcome.runner).ok(),
            "took_ms": played.as_ref().map(|outcome| outcome.took.as_millis() as u64).ok(),
            "wrong": played.as_ref().err(),
        });
        writeln!(file, "{line}").unwrap();
    }
    let sum = serde_json::json!({
        "cells": tally.cells, "exactly_one_runner": tally.one_runner, "lost_writes": tally.lost_writes,
        "left_over": tally.left_over });
    writeln!(file, "{sum}").unwrap();
}

fn cells(role: &'static str, events: &[&'static str], edges: &[&'static str], faults: &[Fault]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &fault in faults {
        for &event in events {
            for &edge in edges {
                cells.push(Cell { role, event, edge, fault });
            }
        }
    }
    cells
}

/// The edges at which it matters most what is on the disk.
const COMMIT: &[&str] = &["dumped", "restored", "committed"];
const HELD: &[&str] = &["restoring", "restored", "going", "running"];

#[test]
fn the_source_is_killed() {
    matrix(cells("source", SOURCE, &["before", "after"], &[Fault::Kill]));
}

#[test]
fn the_destination_is_killed() {
    matrix(cells("destination", DESTINATION, &["before", "after"], &[Fault::Kill]));
}

#[test]
fn both_are_killed() {
    let mut all = cells(
        "source",
        &["prepared", "frozen", "dumped", "restored", "committed", "running"],
        &["after"],
        &[Fault::KillBoth],
    );
    all.extend(cells("source", COMMIT, &["before"], &[Fault::KillBoth]));
    matrix(all);
}

#[test]
fn the_connection_is_cut() {
    let mut all = cells("source", SOURCE, &["after"], &[Fault::Cut]);
    all.extend(cells("destination", HELD, &["before", "after"], &[Fault::Cut]));
    matrix(all);
}

#[test]
fn the_connection_is_frozen() {
    let mut all =
        cells("source", &["round", "dumped", "restored", "committed"], &["after"], &[Fault::Freeze]);
    all.extend(cells("destination", &["restored"], &["before", "after"], &[Fault::Freeze]));
    matrix(all);
}

#[test]
fn a_journal_cannot_be_written() {
    let mut all = cells("source", SOURCE, &["before"], &[Fault::Enospc, Fault::Eio]);
    all.extend(cells("destination", DESTINATION, &["before"], &[Fault::Enospc, Fault::Eio]));
    matrix(all);
}

#[test]
fn what_godwit_started_is_killed() {
    let mut all = cells("source", &["freezing", "frozen"], &["before", "after"], &[Fault::KillCriu]);
    all.extend(cells(
        "destination",
        &["ready", "restoring"],
        &["after"],
        &[Fault::KillCriu, Fault::KillRuntime],
    ));
    all.extend(cells(
        "destination",
        &["prepared", "restored", "going", "running"],
        &["after"],
        &[Fault::KillHandler],
    ));
    matrix(all);
}
