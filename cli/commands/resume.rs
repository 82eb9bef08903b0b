//! `godwit resume`: brings what a crash or a lost link has left to one end.

use super::journals::{self, Found, all, find};
use super::way::{NotReached, OpenWay, Way};
use super::{Trouble, scratch};
use crate::args::{Args, KeepArg, ResumeArgs};
use crate::draw::Draw;
use godwit_checkpoint::recovery::Interrupted;
use godwit_checkpoint::resume::{Answer, ask, needs_nobody, resume};
use godwit_migration::ownership::{Presence, Standing, has_given_word, is_held, may_have_run};
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, MigrationId, Role, host_name};
use godwit_restore::recovery::Orphan;
use godwit_transfer::Wire;
use godwit_witness::Witness;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the other side may take for one answer: it may have to wait for a CRIU that gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it is called when this side needs nobody.
const SHORT: Duration = Duration::from_secs(5);
/// The first pause before the other side is called again, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

pub fn run(args: &Args, command: &ResumeArgs, draw: &Draw) -> Result<u8, Trouble> {
    let root = &args.global.root;
    if let Some(witness) = &command.witness {
        super::witness::refuse_exposed(witness, command.insecure)?;
    }
    if let Err(error) = scratch::clear(root) {
        draw.talk(&format!("warning: what a dead `godwit restore` has left cannot be removed: {error}"));
    }
    let _held = godwit_restore::parked::sweep(root);
    let found = match &command.migration {
        Some(text) => vec![find(root, text)?],
        None => open(root)?,
    };
    if found.is_empty() {
        draw.talk("nothing is to be resumed here");
    }
    let mut worst = 0;
    for found in found {
        match one(root, &found, command, draw) {
            Ok(end) => drop(tell(draw, &found.id, &end)),
            Err(trouble) if command.migration.is_some() => return Err(trouble),
            Err(trouble) => {
                draw.failure(&trouble);
                worst = worst.max(trouble.failure.kind.exit_code());
            }
        }
    }
    Ok(worst)
}

/// Migrations of this host that wait for somebody.
fn open(root: &Path) -> Result<Vec<Found>, Failure> {
    let waits = |found: &Found| {
        let Ok((lines, state)) = found.read() else { return true };
        !state.is_settled() && journals::Told::of(root, &lines, state).is_some_and(|told| !told.under_way)
    };
    Ok(all(root)?.into_iter().filter(waits).collect())
}

/// How it ended, in words.
pub struct Told {
    container: String,
    /// Where the container is.
    pub disposition: Disposition,
    /// All of it in a sentence.
    pub text: String,
    leftovers: Vec<String>,
}

impl Told {
    fn new(container: &str, disposition: Disposition, text: impl Into<String>) -> Self {
        Self { container: container.into(), disposition, text: text.into(), leftovers: Vec::new() }
    }
}

/// Says it, and gives the exit code.
pub fn tell(draw: &Draw, id: &str, end: &Told) -> u8 {
    let code = if end.leftovers.is_empty() { 0 } else { FailureKind::Leftovers.exit_code() };
    if draw.is_json() {
        draw.json_line(&serde_json::json!({
            "message_type": "resumed", "migration": id, "container": end.container,
            "disposition": end.disposition, "text": end.text, "leftovers": end.leftovers }));
        return code;
    }
    draw.data(&end.text);
    for leftover in &end.leftovers {
        draw.talk(&format!("warning: left over: {leftover}"));
    }
    code
}

fn one(root: &Path, found: &Found, command: &ResumeArgs, draw: &Draw) -> Result<Told, Trouble> {
    let id: MigrationId = found.id.parse().map_err(|_| {
        Failure::new(FailureKind::Usage, format!("`{}` is no migration's id", found.path.display()))
    })?;
    end(root, &id, command, draw)
}

/// Brings one migration to its end.
///
/// # Errors
/// When it is in doubt as before, or its container is lost.
pub fn end(root: &Path, id: &MigrationId, command: &ResumeArgs, draw: &Draw) -> Result<Told, Trouble> {
    let engines = godwit_engine::all();
    if let Some(here) = Interrupted::adopt(root, &engines, id)? {
        for told in super::limits::put_back(root, Some(&here.name)) {
            draw.talk(&told);
        }
        return at_source(here, id, command, draw);
    }
    match Orphan::adopt(root, &engines, id)? {
        Some(here) => match here.checkpoint().map(Path::to_owned) {
            Some(checkpoint) => from_checkpoint(here, id, command, &checkpoint),
            None => at_destination(here, id, command),
        },
        None => Err(Failure::new(FailureKind::NotFound, format!("migration {id} never began here")).into()),
    }
}

/// Whose it shall be, if a person says so.
fn keep(command: &ResumeArgs) -> Option<Role> {
    command.keep.map(|keep| match keep {
        KeepArg::Source => Role::Source,
        KeepArg::Destination => Role::Destination,
    })
}

fn at_source(
    mut here: Interrupted,
    id: &MigrationId,
    command: &ResumeArgs,
    draw: &Draw,
) -> Result<Told, Trouble> {
    let (name, peer) = (here.name.clone(), here.peer.clone());
    if let Some(checkpoint) = here.checkpoint().map(Path::to_owned) {
        return into_checkpoint(here, &checkpoint);
    }
    let is_settled = here.is_settled();
    let witness = command.witness.clone().or_else(|| here.witness().cloned());
    let witness = witness.as_ref().map(|witness| witness as &dyn Witness);
    // until what was asked over it is answered, and the answer is used
    let way = Way::parse(&peer).and_then(|way| way.open(&Cancel::default()));
    let is_short = is_settled || needs_nobody(here.standing());
    let answer = way.as_ref().map_err(Clone::clone).and_then(|way| call(id, way, command, is_short, draw));
    let end = resume(&mut here, answer, keep(command), witness).map_err(|mut failure| {
        if failure.kind == FailureKind::InDoubt {
            failure.message = format!("`{name}`: {}", failure.message);
            failure = failure
                .hint(format!("`godwit resume {id}` ends it as soon as {peer} can be asked"))
                .hint("or look there, and decide: `--keep source` if it is not there; `--keep destination` if it runs there");
        }
        Trouble::about(failure, &name, Some(&peer))
    })?;
    let decided = if end.by_decision { ", as you decided" } else { "" };
    let text = match (end.disposition, end.pid) {
        (Disposition::RunningAtDestination, None) if is_settled => format!("{name} has gone to {peer}"),
        (Disposition::RunningAtSource, _) if is_settled => format!("{name} has stayed on this host"),
        (Disposition::RunningAtSource, _) => format!("{name} is running on this host{decided}"),
        (Disposition::RunningAtDestination, Some(pid)) => {
            format!("{name} is running on {peer} (pid {pid} there)")
        }
        (Disposition::RunningAtDestination, None) => {
            format!("{name} is {peer}'s{decided}; nothing of it is left here")
        }
        _ => {
            let failure = Failure::new(
                FailureKind::Failed,
                format!("`{name}` is lost: nothing that could run is left on either host"),
            );
            return Err(failure.at(end.disposition).into());
        }
    };
    Ok(Told { leftovers: end.leftovers, ..Told::new(&name, end.disposition, text) })
}

/// A container that was to go into a checkpoint: it did, or it runs on.
fn into_checkpoint(mut here: Interrupted, checkpoint: &Path) -> Result<Told, Trouble> {
    let (name, path) = (here.name.clone(), checkpoint.display());
    if here.is_settled() {
        return Ok(nothing_to_do(&name));
    }
    let Standing { state, presence } = here.standing();
    if has_given_word(state) {
        let leftovers = here.conclude_checkpoint()?;
        let text = format!("{name} is in the checkpoint {path}, and does not run any more");
        return Ok(Told { leftovers, ..Told::new(&name, Disposition::NoContainer, text) });
    }
    if presence == Presence::Gone {
        here.bury()?;
        let failure = Failure::new(
            FailureKind::Failed,
            format!("`{name}` is lost: it ended before its checkpoint was complete"),
        );
        return Err(failure.at(Disposition::NoContainer).into());
    }
    here.take_back("its checkpoint was broken off")?;
    let text = format!("{name} is running on this host; its checkpoint {path} was broken off");
    Ok(Told::new(&name, Disposition::RunningAtSource, text))
}

/// Calls the destination until it tells where it stands, or the time is over. A container that this side may let run at
/// once does not wait long.
fn call(
    id: &MigrationId,
    way: &OpenWay,
    command: &ResumeArgs,
    needs_nobody: bool,
    draw: &Draw,
) -> Result<Answer, Failure> {
    let limit = if needs_nobody { command.timeout.min(SHORT) } else { command.timeout };
    let until = Instant::now() + limit;
    let mut pause = PAUSES.0;
    loop {
        let failure = match call_once(way, id, command) {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if Instant::now() + pause > until {
            return Err(failure);
        }
        draw.talk(&format!("{failure}; once more in {} s", pause.as_secs_f32()));
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}

fn call_once(way: &OpenWay, id: &MigrationId, command: &ResumeArgs) -> Result<Answer, Failure> {
    let unreachable = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::Failed, format!("{way} cannot be asked")).because_of(error)
    };
    let transport = way.connect(&command.remote_command).map_err(|error| match error {
        NotReached::Place(error) => unreachable(&error),
        NotReached::Other(error) => unreachable(&error),
    })?;
    let wire = Wire::open(transport, Cancel::default(), PATIENCE).map_err(|error| unreachable(&error))?;
    ask(wire, id, &host_name(), command.forget).map_err(|error| unreachable(&error))
}

/// It is over here.
fn nothing_to_do(name: &str) -> Told {
    let text = format!("the migration of {name} is over: nothing is to be done");
    Told::new(name, Disposition::Untouched, text)
}

fn run_here(here: &mut Orphan) -> Result<Told, Trouble> {
    let (pid, name) = (here.go(vec![])?, here.name.clone());
    let text = format!("{name} is running on this host (pid {pid})");
    Ok(Told { leftovers: here.complete(), ..Told::new(&name, Disposition::RunningAtDestination, text) })
}

/// There is no source that could be asked, and none that could have let it run: what is held goes, since all of it is in the
/// checkpoint.
fn from_checkpoint(
    mut here: Orphan,
    id: &MigrationId,
    command: &ResumeArgs,
    checkpoint: &Path,
) -> Result<Told, Trouble> {
    let name = here.name.clone();
    let again = format!("`godwit restore {}`", checkpoint.display());
    let Standing { state, presence } = here.standing();
    if state.is_settled() {
        return Ok(nothing_to_do(&name));
    }
    match (presence, keep(command)) {
        (Presence::Running, _) => return run_here(&mut here),
        (Presence::Frozen, _) if may_have_run(state) => return run_here(&mut here),
        (Presence::Frozen, Some(Role::Destination)) if is_held(state) => return run_here(&mut here),
        (Presence::Gone, _) if may_have_run(state) => {
            here.bury()?;
            let failure =
                Failure::new(FailureKind::Failed, format!("`{name}` is lost: it ran here, and is gone"))
                    .hint(format!("{again} brings back what the checkpoint holds"));
            return Err(failure.at(Disposition::NoContainer).into());
        }
        (Presence::Frozen, None) if is_held(state) && !checkpoint.is_dir() => {
            let path = checkpoint.display();
            let failure = Failure::new(
                FailureKind::InDoubt,
                format!("`{name}`: it is held frozen here, and its checkpoint `{path}` is gone"),
            )
            .hint(format!("`godwit resume {id} --keep destination` lets it run, `--keep source` removes it"));
            return Err(failure.at(Disposition::Untouched).into());
        }
        _ => {}
    }
    let leftovers = here.abandon("resumed: the restore was broken off")?;
    let text = format!("nothing of {name} is left here; {again} brings it back");
    Ok(Told { leftovers, ..Told::new(&name, Disposition::NoContainer, text) })
}

fn at_destination(mut here: Orphan, id: &MigrationId, command: &ResumeArgs) -> Result<Told, Trouble> {
    let name = here.name.clone();
    let Standing { state, presence } = here.standing();
    if state.is_settled() {
        return Ok(nothing_to_do(&name));
    }
    let undo = |here: &mut Orphan, why: &str| -> Result<Told, Trouble> {
        let leftovers = here.abandon(why)?;
        let text = format!("{name} stays where it was; nothing of it is left here");
        Ok(Told { leftovers, ..Told::new(&name, Disposition::RunningAtSource, text) })
    };
    match (presence, keep(command)) {
        (Presence::Running, _) => run_here(&mut here),
        (Presence::Frozen, _) if may_have_run(state) => run_here(&mut here),
        (Presence::Frozen, Some(Role::Destination)) if is_held(state) => run_here(&mut here),
        (_, Some(Role::Source)) if is_held(state) => {
            undo(&mut here, "a person decided that it is the source's")
        }
        _ if is_held(state) || may_have_run(state) => {
            let why = match (presence, here.holder()) {
                (Presence::Gone, _) => "it is gone here",
                (Presence::Frozen, Ok(Some(Role::Destination))) if is_held(state) => {
                    return run_here(&mut here);
                }
                (_, Ok(Some(Role::Source))) if is_held(state) => {
                    return undo(&mut here, "the witness says that it is the source's");
                }
                (_, Err(_)) => "it is held frozen here, and the witness cannot be asked",
                _ => "it is held frozen here, and only the source knows whether it may run",
            };
            let failure = Failure::new(FailureKind::InDoubt, format!("`{name}`: {why}"))
                .hint(format!("`godwit resume {id}` on the source ends it"))
                .hint("if the source will never come back: `--keep destination` here lets it run");
            Err(Trouble::from(failure))
        }
        // the word is never given before it is held
        _ => undo(&mut here, "resumed: it was never whole here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;
    use clap::Parser;
    use godwit_migration::journal::{Event, Journal, JournalState, VERSION, checkpoint_as_peer, dir_of};

    /// What a `godwit restore` leaves that was killed after these events; nothing of its container is on this host.
    fn restore_of(root: &Path, checkpoint: &Path, events: &[Event]) -> Found {
        let id = MigrationId::generate().unwrap();
        let mut journal = Journal::create(&dir_of(root, &id)).unwrap();
        let planned = Event::Planned {
            version: VERSION,
            migration: id.clone(),
            role: Role::Destination,
            container: "runc:web".into(),
            peer: format!("{} (rack1)", checkpoint_as_peer(checkpoint)),
            godwit: "0.1.0".into(),
        };
        let until_held = [planned, Event::Prepared, Event::Ready, Event::Restoring, Event::Restored];
        for event in until_held.iter().chain(events) {
            journal.append(event.clone()).unwrap();
        }
        find(root, id.as_str()).unwrap()
    }

    fn told(root: &Path, found: &Found) -> String {
        let (lines, state) = found.read().unwrap();
        journals::Told::of(root, &lines, state).unwrap().words()
    }

    #[test]
    fn a_restore_that_was_killed_is_ended_without_a_source() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let args = Args::parse_from(["godwit", "resume", "x"]);
        let Command::Resume(command) = &args.command else { unreachable!() };
        let draw = Draw::new(&args.global);
        let again = format!("`godwit restore {}`", root.display());

        let found = restore_of(root, root, &[]);
        assert_eq!(told(root, &found), "held frozen: the restore was broken off");
        let end = one(root, &found, command, &draw).unwrap();
        assert_eq!(end.disposition, Disposition::NoContainer);
        assert!(end.text.contains(&again), "{}", end.text);
        assert_eq!(found.read().unwrap().1, JournalState::RolledBack);
        let end = one(root, &found, command, &draw).unwrap();
        assert_eq!(end.disposition, Disposition::Untouched);

        let found = restore_of(root, root, &[Event::Going, Event::Running { pid: 7 }]);
        let failure = one(root, &found, command, &draw).map(|end| end.text).unwrap_err().failure;
        assert_eq!((failure.kind, failure.disposition), (FailureKind::Failed, Disposition::NoContainer));
        assert!(failure.hints.iter().any(|hint| hint.contains(&again)), "{failure:?}");
        assert_eq!(found.read().unwrap().1, JournalState::Lost);
    }
}
