//! `godwit migrate`.

use super::earlier::settle_earlier;
use super::{Trouble, cancel_on_signal, find, open_group};
use crate::args::{Args, CooperativeArg, FileWatchArg, IpChangeArg, MigrateArgs, PaceArg};
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::pages::{PageReader, method_of};
use godwit_checkpoint::preflight::{abilities, check_privilege, usable_criu};
use godwit_checkpoint::{Dumper, Group, Job, NothingToDump, Order, Parties, Plan};
use godwit_criu::CriuBinary;
use godwit_engine::{ContainerName, OpenRequest};
use godwit_memory::source::TreeMemory;
use godwit_migration::hooks::Hooks;
use godwit_migration::journal::{Event, Journal, JournalState, VERSION, of_container};
use godwit_migration::lock::{ContainerLock, lock_container};
use godwit_migration::observer::Event as Told;
use godwit_migration::plan::{Strategy, Tracker, choose_tracker};
use godwit_migration::{Cancel, Failure, FailureKind, MigrationId, Observer, Role};
use godwit_restore::preflight::host_facts;
use godwit_transfer::tls::{Identity, TlsError, config_dir};
use godwit_transfer::{Address, Wire, connect};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the other side may take for its first word: ssh has to log in.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// How long a container that has just arrived may take to settle.
const SETTLING: Duration = Duration::from_secs(900);

/// The first pause before another attempt, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How often the destination is asked for more room than it kept.
const GROWTHS: u32 = 4;

/// What the attempts before came to.
#[derive(Clone, Copy, Default)]
struct Tried {
    /// Their link was lost.
    lost: u32,
    /// The memory outgrew the room for it.
    outgrown: u32,
}

/// Attempts, until one ends otherwise than by what another one may mend: a lost link, or too little room for memory that
/// grows. Between two of them the container runs where it was.
pub fn run(args: &Args, command: &MigrateArgs, draw: &Draw) -> Result<u8, Trouble> {
    let show = Show::new(&args.global, draw);
    let cancel = cancel_on_signal();
    let mut pause = PAUSES.0;
    let mut tried = Tried::default();
    loop {
        let trouble = match attempt(args, command, draw, &show, &cancel, tried) {
            Err(trouble) if !cancel.is_raised() => trouble,
            done => return done,
        };
        match trouble.failure.kind {
            FailureKind::LinkLost if tried.lost < command.retries => {
                show.note(format!("{}; once more in {} s", trouble.failure, pause.as_secs()));
                cancel.wait(pause);
                pause = (pause * 2).min(PAUSES.1);
                tried.lost += 1;
            }
            FailureKind::Outgrown if tried.outgrown < GROWTHS => {
                show.note(format!("{}; once more with room for more", trouble.failure));
                tried.outgrown += 1;
            }
            _ => return Err(trouble),
        }
    }
}

fn attempt(
    args: &Args,
    command: &MigrateArgs,
    draw: &Draw,
    show: &Show<'_>,
    cancel: &Cancel,
    tried: Tried,
) -> Result<u8, Trouble> {
    let about = |failure| Trouble::about(failure, &command.container, Some(&command.destination));
    // everything that can be wrong is looked at before anything is touched
    let address = destination(command).map_err(about)?;
    if address.is_exposed() {
        show.note(format!("warning: `{address}` is neither encrypted nor authenticated"));
    }
    super::witness::examine(command).map_err(about)?;
    check_privilege().map_err(about)?;
    let hooks = super::hooks::checked(command.hooks.hooks()).map_err(about)?;
    let criu = usable_criu().map_err(about)?;
    let is_restart = Strategy::from(command.strategy) == Strategy::Restart;
    settle_earlier(&args.global.root, &command.container, &mut |text| show.note(text))?;
    let (engine, _) = find(&command.container)?;
    let request = OpenRequest {
        carry: command.carry.carry(),
        volumes: super::parting::more_trees(command, engine.kind()),
        no_copy: command.no_copy.clone(),
        network_plan: command.network_plan.clone(),
        keep: command.keep_source,
        ip_change: command.ip_change == IpChangeArg::Allow,
        restart: is_restart.then_some(command.stop_timeout),
    };
    let containers = open_group(&command.container, &request)?;
    let tracker = tracker(command, &criu, show).map_err(about)?;
    let facts = host_facts(&criu).map_err(|error| {
        about(Failure::new(FailureKind::Missing, "this host could not be looked at").because_of(&error))
    })?;
    if containers.len() > 1 {
        super::together::refuse(command).map_err(about)?;
    }
    let mut ready = Vec::new();
    for (number, (name, container)) in containers.into_iter().enumerate() {
        if number > 0 {
            settle_earlier(&args.global.root, &name.to_string(), &mut |text| show.note(text))?;
        }
        let labels = &container.facts().annotations;
        // those of the command line are of the whole, and called once
        let given = if number == 0 { hooks.clone() } else { Hooks::default() };
        let hooks = super::hooks::with_labels(given, &command.hooks, labels).map_err(about)?;
        let parting = super::parting::of(command, container.facts()).map_err(about)?;
        for warning in &container.facts().warnings {
            show.note(format!("warning: {warning}"));
        }
        let plan = Plan {
            container: if number == 0 { command.container.clone() } else { name.to_string() },
            destination: command.destination.clone(),
            strategy: command.strategy.into(),
            tracker,
            limits: command.limits(show.can_ask()),
            carry: request.carry,
            network_plan: request.network_plan.clone(),
            bandwidth: command.bandwidth.unwrap_or(0),
            connections: command.connections,
            outgrown: tried.outgrown,
            cooperates: command.cooperative == CooperativeArg::Auto,
            watches_files: command.file_watch == FileWatchArg::Auto,
            compress: command.compress,
            restoration: command.restore.into(),
            gentle: command.pace == PaceArg::Gentle,
            highest_rung: command.highest_rung.map(Into::into),
            witness: command.witness.clone(),
            hooks,
            facts: facts.clone(),
            parting,
        };
        let Some(lock) = lock(args, &name, show, cancel).map_err(about)? else {
            return Err(about(
                Failure::new(FailureKind::Locked, format!("another migration of `{name}` is under way"))
                    .hint("`godwit status` shows it"),
            ));
        };
        for told in super::limits::put_back(&args.global.root, Some(&name.to_string())) {
            show.note(told);
        }
        ready.push((name, container, plan, lock));
    }
    let mut called = Vec::new();
    for (name, container, plan, lock) in ready {
        let wire = call(&address, command, cancel.clone()).map_err(|mut failure| {
            if tried.lost > 0 || tried.outgrown > 0 {
                // it could be reached before
                failure.kind = FailureKind::LinkLost;
            }
            about(failure)
        })?;
        called.push((name, container, plan, lock, wire));
    }
    let dial = || connect(&address, &command.remote_command);
    let dumper: &dyn Dumper = if is_restart { &NothingToDump } else { &criu };
    let mut group: Option<Arc<Group>> = None;
    let size = called.len();
    let mut moves = Vec::new();
    let mut locks = Vec::new();
    for (number, (name, container, plan, lock, wire)) in called.into_iter().enumerate() {
        let (job, mut journal) = begin(args, command, &name).map_err(about)?;
        if size > 1 {
            let group = group.get_or_insert_with(|| Group::of(size, job.id.clone()));
            follow(&mut journal, group, number).map_err(about)?;
        }
        let member = group.as_ref().map(|group| group.member(number));
        let (container, reader) = (container, reader(tracker).map_err(about)?);
        let parties = Parties {
            container,
            criu: dumper,
            wire,
            dial: Some(&dial),
            reader,
            observer: show,
            cancel: cancel.clone(),
        };
        moves.push((name, parties, Order { plan, job, journal, member }));
        locks.push(lock);
    }
    if command.dry_run {
        for (name, parties, order) in moves {
            let dir = order.job.dir.clone();
            let answer = godwit_checkpoint::rehearse(parties, order);
            // a question leaves no trace; if it does, `godwit status` shows it and nothing is worse for it
            let _ = std::fs::remove_dir_all(dir);
            show.done();
            answer.map_err(about)?;
            draw.talk(&format!("{} would take {name}; nothing was done", command.destination));
        }
        return Ok(0);
    }
    if let Some(group) = group {
        return super::together::run(&group, moves, show, draw, about);
    }
    let Some((_, parties, order)) = moves.pop() else { return Ok(0) };
    let id = order.job.id.clone();
    let summary = godwit_checkpoint::migrate(parties, order);
    show.done();
    let summary = match summary {
        Err(doubt) if doubt.kind == FailureKind::InDoubt && command.witness.is_some() => {
            drop(locks);
            return super::witness::decide(args, command, &id, doubt, draw);
        }
        summary => summary.map_err(about)?,
    };
    draw.summary(&summary);
    Ok(if summary.leftovers.is_empty() { 0 } else { FailureKind::Leftovers.exit_code() })
}

/// Notes in the journal of one that follows whom it follows.
fn follow(journal: &mut Journal, group: &Group, number: usize) -> Result<(), Failure> {
    if number == 0 {
        return Ok(());
    }
    journal.append(Event::Follows { leader: group.leader().clone() }).map_err(|error| {
        Failure::new(FailureKind::Missing, "the journal cannot be written").because_of(&error)
    })
}

fn destination(command: &MigrateArgs) -> Result<Address, Failure> {
    let address: Address =
        command.destination.parse().map_err(|error| Failure::new(FailureKind::Usage, format!("{error}")))?;
    if address.is_exposed() && !command.insecure {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("`{address}` is neither encrypted nor authenticated: memory and files would be readable on the way"),
        )
        .hint("use `ssh://` or `tls://`, or add `--insecure` if the network between the hosts is yours alone"));
    }
    if let Address::Tls { .. } = address {
        Identity::load(&config_dir()).map_err(|error| super::keys::failure(&error))?;
    }
    Ok(address)
}

/// The tracker, and why.
fn tracker(command: &MigrateArgs, criu: &CriuBinary, show: &Show<'_>) -> Result<Option<Tracker>, Failure> {
    if Strategy::from(command.strategy) == Strategy::StopAndCopy {
        show.event(&Told::Note { text: "strategy stop-and-copy: all memory moves under one freeze".into() });
        return Ok(None);
    }
    if Strategy::from(command.strategy) == Strategy::Restart {
        let text =
            "strategy restart: it is stopped here and started there; its memory and connections are lost";
        show.event(&Told::Note { text: text.into() });
        return Ok(None);
    }
    let (tracker, why) = choose_tracker(command.tracker.into(), &abilities(criu))
        .map_err(|why| Failure::new(FailureKind::Missing, why).hint("use `--tracker auto`"))?;
    show.note(format!("strategy pre-copy, tracker {tracker}: {why}"));
    if tracker == Tracker::Checkpoint {
        show.note("  the first checkpoint stops the container for a moment: see STOOD STILL below".into());
    }
    Ok(Some(tracker))
}

/// Reads memory from outside, for the trackers that do.
fn reader(tracker: Option<Tracker>) -> Result<Option<Box<dyn PageReader>>, Failure> {
    let Some(tracker) = tracker.filter(|tracker| tracker.reads_from_outside()) else { return Ok(None) };
    let memory = TreeMemory::new(method_of(tracker)).map_err(|error| {
        Failure::new(FailureKind::Missing, format!("tracker `{tracker}` cannot work on this host"))
            .because_of(&error)
            .hint("use `--tracker auto`")
    })?;
    Ok(Some(Box::new(memory)))
}

/// The container's lock. One that has just arrived here may still be getting its memory: that is waited for.
fn lock(
    args: &Args,
    name: &ContainerName,
    show: &Show<'_>,
    cancel: &Cancel,
) -> Result<Option<ContainerLock>, Failure> {
    let until = Instant::now() + SETTLING;
    let mut told = false;
    loop {
        let taken = lock_container(&args.global.root, name.engine, &name.name).map_err(|error| {
            Failure::new(FailureKind::Missing, format!("cannot write to `{}`", args.global.root.display()))
                .because_of(&error)
                .hint("name another directory with `--root`")
        })?;
        if taken.is_some() || Instant::now() >= until || cancel.is_raised() || !is_settling(args, name) {
            return Ok(taken);
        }
        if !std::mem::replace(&mut told, true) {
            show.note(format!("waiting until `{name}` has settled here: it has just arrived"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether the container runs here at the end of a migration that is not over.
fn is_settling(args: &Args, name: &ContainerName) -> bool {
    let name = name.to_string();
    of_container(&args.global.root, Role::Destination, &name, usize::MAX)
        .rev()
        .any(|found| found.state == JournalState::Running)
}

fn call(address: &Address, command: &MigrateArgs, cancel: Cancel) -> Result<Wire, Failure> {
    let unreachable = |error: &(dyn std::error::Error + 'static)| {
        let known = TlsError::within(error);
        let hint = match address {
            Address::Ssh { .. } => {
                "is godwit installed there, and does `ssh` log in without a password?".into()
            }
            _ => format!("is `godwit receive --listen {}` running there?", listening(address)),
        };
        // the cause says it all where it is one of ours
        let failure = Failure::new(FailureKind::Refused, format!("{address} cannot be reached"));
        match known {
            Some(known) => {
                let failure = failure.because(known);
                known.hint().into_iter().fold(failure, Failure::hint)
            }
            None => failure.because_of(error).hint(hint),
        }
    };
    let transport = connect(address, &command.remote_command).map_err(|error| unreachable(&error))?;
    Wire::open(transport, cancel, FIRST_WORD).map_err(|error| unreachable(&error))
}

/// Where the other side must listen to be reached at an address.
fn listening(address: &Address) -> String {
    match address {
        Address::Tls { port, .. } => format!("tls://0.0.0.0:{port}"),
        Address::Tcp { port, .. } => format!("tcp://0.0.0.0:{port} --insecure"),
        other => other.to_string(),
    }
}

/// The migration's directory and journal; from here on `godwit status` shows it.
fn begin(args: &Args, command: &MigrateArgs, name: &ContainerName) -> Result<(Job, Journal), Failure> {
    let cannot = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::Missing, format!("cannot write to `{}`", args.global.root.display()))
            .because_of(error)
            .hint("name another directory with `--root`")
    };
    let id = MigrationId::generate().map_err(|error| cannot(&error))?;
    let job = Job::new(&args.global.root, id.clone());
    let mut journal = Journal::create(&job.dir).map_err(|error| cannot(&error))?;
    let planned = Event::Planned {
        version: VERSION,
        migration: id,
        role: Role::Source,
        container: name.to_string(),
        peer: command.destination.clone(),
        godwit: env!("CARGO_PKG_VERSION").into(),
    };
    journal.append(planned).map_err(|error| cannot(&error))?;
    Ok((job, journal))
}
