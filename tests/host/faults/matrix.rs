//! The matrix: which fault at which line.

use super::cell::{Cell, Fault, cells};
use super::oom;
use super::patient::Kind;
use super::play::matrix;
use crate::bed::skip;

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
    all.extend(handler_cells(Fault::KillHandler));
    matrix(all);
}

/// While there is a handler of page faults.
fn handler_cells(fault: Fault) -> Vec<Cell> {
    let all = cells(
        "destination",
        &["prepared", "restoring", "restored", "going", "running"],
        &["after"],
        &[fault],
    );
    all.into_iter().map(|cell| Cell { patient: Kind::LargeRedis, ..cell }).collect()
}

#[test]
fn the_kernel_has_no_memory_for_the_handler() {
    if let Err(why) = oom::hierarchy() {
        return skip(&format!("{why}; the same cells with SIGKILL are in `what_godwit_started_is_killed`"));
    }
    matrix(handler_cells(Fault::Oom));
}

#[test]
fn postgresql_loses_no_committed_transaction() {
    let mut all = cells("source", &["dumped"], &["after"], &[Fault::Kill]);
    all.extend(cells("source", &["committed"], &["before", "after"], &[Fault::Kill, Fault::KillBoth]));
    all.extend(cells("source", &["frozen"], &["before"], &[Fault::KillCriu]));
    all.extend(cells("source", &["restored", "committed"], &["after"], &[Fault::Cut]));
    all.extend(cells("destination", &["restored"], &["after"], &[Fault::Kill]));
    all.extend(cells("destination", &["going"], &["before", "after"], &[Fault::Kill]));
    all.extend(cells("destination", &["restoring"], &["after"], &[Fault::KillCriu]));
    all.extend(cells("destination", &["going"], &["after"], &[Fault::Cut]));
    matrix(all.into_iter().map(|cell| Cell { patient: Kind::Postgres, ..cell }).collect());
}

/// What is tried with a container of an engine's.
fn cells_of(patient: Kind) -> Vec<Cell> {
    let mut all = cells("source", SOURCE, &["after"], &[Fault::Kill]);
    all.extend(cells("destination", DESTINATION, &["after"], &[Fault::Kill]));
    all.extend(cells("source", &["round", "restored", "committed"], &["after"], &[Fault::Cut]));
    all.extend(cells("source", &["frozen", "committed"], &["after"], &[Fault::KillBoth]));
    all.extend(cells("destination", &["restoring"], &["after"], &[Fault::KillCriu, Fault::KillRuntime]));
    all.extend(cells("destination", &["restored", "going"], &["before"], &[Fault::Enospc]));
    all.into_iter().map(|cell| Cell { patient, ..cell }).collect()
}

#[test]
fn podman_has_it_on_one_side() {
    matrix(cells_of(Kind::PodmanRedis));
}

#[test]
fn podman_has_the_pod_on_one_side() {
    matrix(cells_of(Kind::PodRedis));
}

#[test]
fn docker_has_it_on_one_side() {
    matrix(cells_of(Kind::DockerRedis));
}
