//! `godwit migrate` of several containers that move together: a pod, or those that share namespaces.

use super::Trouble;
use crate::args::MigrateArgs;
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::{Group, Order, Parties, migrate};
use godwit_engine::ContainerName;
use godwit_migration::observer::Event;
use godwit_migration::report::Summary;
use godwit_migration::{Disposition, Failure, FailureKind, Observer};

/// What is not there for several containers at once.
///
/// # Errors
/// What was asked for, and cannot be had.
pub fn refuse(command: &MigrateArgs) -> Result<(), Failure> {
    let odd = [
        (command.witness.is_some(), "--witness"),
        (!command.volumes.is_empty(), "--volume"),
        (!command.skip_volumes.is_empty(), "--skip-volume"),
        (command.keep_source, "--keep-source"),
    ];
    match odd.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, option)) => Err(Failure::new(
            FailureKind::Usage,
            format!("`{option}` is not there yet for several containers at once"),
        )
        .hint(format!("leave `{option}` out"))),
        None => Ok(()),
    }
}

/// Tells what happens with its name. Nobody is asked: several could not ask at once.
struct OfMember<'a> {
    show: &'a Show<'a>,
    name: &'a str,
}

impl Observer for OfMember<'_> {
    fn event(&self, event: &Event) {
        self.show.event_of(self.name, event);
    }
}

/// Moves all of them, each in a thread.
///
/// # Errors
/// That of whoever gave up first; when some of them are in doubt, that.
pub fn run(
    group: &Group,
    moves: Vec<(ContainerName, Parties<'_>, Order)>,
    show: &Show<'_>,
    draw: &Draw,
    about: impl Fn(Failure) -> Trouble,
) -> Result<u8, Trouble> {
    let names: Vec<String> = moves.iter().map(|(name, ..)| name.to_string()).collect();
    let observers: Vec<OfMember> = names.iter().map(|name| OfMember { show, name }).collect();
    let ends: Vec<Result<Summary, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = moves
            .into_iter()
            .zip(&observers)
            .map(|((_, parties, order), observer)| {
                let parties = Parties { observer, ..parties };
                scope.spawn(move || migrate(parties, order))
            })
            .collect();
        let died = |_| Err(Failure::new(FailureKind::InDoubt, "a thread died").at(Disposition::InDoubt));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(died)).collect()
    });
    show.done();
    let mut failures = Vec::new();
    let mut summaries = Vec::new();
    for (number, (name, end)) in names.iter().zip(ends).enumerate() {
        match end {
            Ok(summary) => summaries.push(summary),
            Err(failure) => failures.push((number, name, failure)),
        }
    }
    for summary in &summaries {
        draw.summary(summary);
    }
    if failures.is_empty() {
        draw.together(&summaries);
        let is_clean = summaries.iter().all(|summary| summary.leftovers.is_empty());
        return Ok(if is_clean { 0 } else { FailureKind::Leftovers.exit_code() });
    }
    // in doubt is worse than anything else; before the word the first to fail says why
    let worst = failures.iter().position(|(_, _, failure)| failure.kind == FailureKind::InDoubt);
    let first = failures.iter().position(|(number, ..)| Some(*number) == group.first_to_fail());
    let (_, _, mut failure) = failures.swap_remove(worst.or(first).unwrap_or(0));
    for (_, name, other) in failures {
        if other.disposition != failure.disposition {
            failure = failure.because(format!("`{name}`: {other}"));
        }
    }
    let gone = summaries
        .iter()
        .map(|summary| format!("`{}` has gone to {}", summary.container, summary.destination));
    Err(about(gone.fold(failure, Failure::because)))
}
