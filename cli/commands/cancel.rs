//! `godwit cancel`.

use super::journals::{Told, find};
use super::{Trouble, resume};
use crate::args::{Args, CancelArgs, ResumeArgs};
use crate::draw::Draw;
use godwit_migration::journal::JournalState;
use godwit_migration::lock::holder;
use godwit_migration::ownership::{has_given_word, may_have_run};
use godwit_migration::{Failure, FailureKind, Role};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How long the rollback may take.
const ROLLBACK: Duration = Duration::from_secs(180);

pub fn run(args: &Args, command: &CancelArgs, draw: &Draw) -> Result<u8, Trouble> {
    let root = &args.global.root;
    let found = find(root, &command.migration)?;
    let damaged = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::InDoubt, "its journal cannot be read").because_of(error)
    };
    let (lines, state) = found.read().map_err(|error| damaged(&error))?;
    let Some(told) = Told::of(root, &lines, state) else {
        return Err(Failure::new(FailureKind::NotFound, "it ended before it began").into());
    };
    let (name, peer) = (told.container.to_owned(), told.peer.to_owned());
    if state.is_settled() {
        let failure = Failure::new(
            FailureKind::NotFound,
            format!("the migration of `{name}` is over: {}", told.words()),
        );
        return Err(failure.into());
    }
    let too_late = match told.role {
        Role::Source => has_given_word(state),
        Role::Destination => may_have_run(state),
    };
    if too_late {
        return Err(Failure::new(
            FailureKind::InDoubt,
            format!("`{name}` cannot be called back: switchover was granted"),
        )
        .hint(format!("`godwit resume {}` brings it to its end", found.id))
        .into());
    }
    if !told.under_way {
        let resume = ResumeArgs { migration: Some(found.id), ..command.as_resume() };
        return resume::run(args, &resume, draw);
    }
    let (engine, bare_name) = name.split_once(':').unwrap_or(("", &name));
    if let Some(pid) = holder(root, engine, bare_name) {
        draw.talk(&format!("telling process {pid} to roll back"));
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let until = Instant::now() + ROLLBACK;
    loop {
        let (_, state) = found.read().map_err(|error| damaged(&error))?;
        match state {
            JournalState::RolledBack => {
                draw.data(&format!("the migration of {name} was rolled back"));
                return Ok(0);
            }
            JournalState::Completed | JournalState::Running | JournalState::Committed => {
                let failure = Failure::new(
                    FailureKind::Failed,
                    format!("too late: `{name}` has been switched over to {peer}"),
                );
                return Err(failure.into());
            }
            state if state.is_over() => {
                return Err(Failure::new(FailureKind::InDoubt, format!("`{name}` could not be rolled back"))
                    .hint(format!("`godwit resume {}`", found.id))
                    .into());
            }
            _ if Instant::now() > until => {
                return Err(Failure::new(
                    FailureKind::Failed,
                    format!("the rollback of `{name}` takes long"),
                )
                .hint("`godwit status` shows how far it is")
                .into());
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
