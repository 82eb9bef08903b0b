//! Playing cells, and what each came to.

use super::cell::{Cell, Fault};
use super::patient::Patient;
use super::{HOLD, ORDER, is_built_in, runners};
use crate::bed::{Bed, DST, SRC, bed, skip};
use crate::godwit::{Background, godwit_with};
use crate::state::State;
use std::io::Write;
use std::time::{Duration, Instant};

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
    Patient::prepare_hosts(bed, cell.patient);
    let (pristine, there) = (State::of(bed, SRC).without("/srv"), State::of(bed, DST).without("/srv"));
    let patient = Patient::begin(bed, cell.patient);
    let before = State::of(bed, SRC).without("/srv");
    cell.order(bed);
    let begun = Instant::now();
    let running = Background::migrate(bed, &[], &cell.patient.move_flags());
    if cell.action().starts_with("hold") {
        if !cell.hold(bed) {
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
    bed.end_what_is_kept();
    let context = |what: &str| format!("{what}\nmigrate: exit {} {}\n{told}", said.code, said.err);
    let runner = match runners(bed)[..] {
        [runner] => runner,
        [] => return Err(context("it runs nowhere")),
        _ => return Err(context("it runs on both hosts")),
    };
    if let Some(lost) = patient.lost(runner) {
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
pub fn matrix(cells: Vec<Cell>) {
    let Some(bed) = bed() else { return };
    if !is_built_in(&bed) {
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
            "patient": cell.patient.server(), "role": cell.role, "event": cell.event, "edge": cell.edge, "fault": cell.fault.to_string(),
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
