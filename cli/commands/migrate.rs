//! `godwit migrate`.

use super::earlier::settle_earlier;
use super::way::{self, NotReached, OpenWay, Way};
use super::{Trouble, cancel_on_signal, find, open_group};
use crate::args::{Args, CooperativeArg, FileWatchArg, IpChangeArg, MigrateArgs, PaceArg};
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::pages::{PageReader, method_of};
use godwit_checkpoint::preflight::{abilities, check_privilege, usable_criu};
use godwit_checkpoint::{Dial, Dumper, Group, Job, NothingToDump, Order, Parties, Plan};
use godwit_criu::CriuBinary;
use godwit_engine::{ContainerName, OpenRequest, SourceContainer};
use godwit_memory::source::TreeMemory;
use godwit_migration::hooks::Hooks;
use godwit_migration::journal::{Event, Journal, JournalState, VERSION, of_container};
use godwit_migration::lock::{ContainerLock, lock_container};
use godwit_migration::observer::Event as Told;
use godwit_migration::plan::{Strategy, Tracker, choose_tracker};
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, MigrationId, Observer, Role};
use godwit_object_storage::PlaceName;
use godwit_restore::preflight::host_facts;
use godwit_transfer::tls::{Identity, TlsError, config_dir};
use godwit_transfer::{Address, HostFacts, Wire};
use std::path::Path;
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

/// A container that is to move, with its lock: nobody else moves it meanwhile.
struct Ready {
    name: ContainerName,
    container: Box<dyn SourceContainer>,
    plan: Plan,
    lock: ContainerLock,
}

/// What is the same for all that move together.
struct Whole<'a> {
    args: &'a Args,
    command: &'a MigrateArgs,
    show: &'a Show<'a>,
    cancel: &'a Cancel,
    tried: Tried,
    /// Where to, as it is written down.
    to: String,
    request: OpenRequest,
    hooks: Hooks,
    tracker: Option<Tracker>,
    facts: HostFacts,
}

fn attempt(
    args: &Args,
    command: &MigrateArgs,
    draw: &Draw,
    show: &Show<'_>,
    cancel: &Cancel,
    tried: Tried,
) -> Result<u8, Trouble> {
    let to = way::written(&command.destination, command.via.as_ref());
    let about = |failure| Trouble::about(failure, &command.container, Some(&to));
    // everything that can be wrong is looked at before anything is touched
    let way = destination(command).map_err(about)?;
    if way.address.is_exposed() {
        show.note(format!("warning: `{way}` is neither encrypted nor authenticated"));
    }
    super::witness::examine(command).map_err(about)?;
    check_privilege().map_err(about)?;
    let hooks = super::hooks::checked(command.hooks.hooks()).map_err(about)?;
    let criu = usable_criu().map_err(about)?;
    settle_earlier(&args.global.root, &command.container, &mut |text| show.note(text))?;
    let request = request(command)?;
    let containers = open_group(&command.container, &request)?;
    let tracker = tracker(command, &criu, show).map_err(about)?;
    let facts = host_facts(&criu).map_err(|error| {
        about(Failure::new(FailureKind::Missing, "this host could not be looked at").because_of(&error))
    })?;
    if containers.len() > 1 {
        super::together::refuse(command).map_err(about)?;
    }
    let whole = Whole { args, command, show, cancel, tried, to: to.clone(), request, hooks, tracker, facts };
    let members = containers.into_iter().enumerate();
    let ready = members
        .map(|(number, (name, container))| whole.ready(number, name, container))
        .collect::<Result<Vec<_>, _>>()?;

    let way = way.open(cancel).map_err(about)?;
    let wires = ready.iter().map(|_| whole.call(&way)).collect::<Result<Vec<_>, _>>().map_err(about)?;

    let dial = way.dial(&command.remote_command);
    let dial = dial.as_ref().map(|dial| dial as &Dial<'_>);
    let is_restart = Strategy::from(command.strategy) == Strategy::Restart;
    let dumper: &dyn Dumper = if is_restart { &NothingToDump } else { &criu };
    let mut group: Option<Arc<Group>> = None;
    let (mut moves, mut locks) = (Vec::new(), Vec::new());
    let size = ready.len();
    for (number, (Ready { name, container, plan, lock }, wire)) in ready.into_iter().zip(wires).enumerate() {
        let (job, mut journal) = begin(args, &to, &name).map_err(about)?;
        if size > 1 {
            let group = group.get_or_insert_with(|| Group::of(size, job.id.clone()));
            follow(&mut journal, group, number).map_err(about)?;
        }
        let member = group.as_ref().map(|group| group.member(number));
        let reader = reader(tracker).map_err(about)?;
        let cancel = cancel.clone();
        let parties = Parties { container, criu: dumper, wire, dial, reader, observer: show, cancel };
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
            draw.talk(&format!("{to} would take {name}; nothing was done"));
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

/// What is asked of the engine.
fn request(command: &MigrateArgs) -> Result<OpenRequest, Trouble> {
    let (engine, _) = find(&command.container)?;
    let is_restart = Strategy::from(command.strategy) == Strategy::Restart;
    Ok(OpenRequest {
        carry: command.carry.carry(),
        volumes: super::parting::more_trees(command, engine.kind()),
        no_copy: command.no_copy.clone(),
        network_plan: command.network_plan.clone(),
        keep: command.keep_source,
        ip_change: command.ip_change == IpChangeArg::Allow,
        restart: is_restart.then_some(command.stop_timeout),
        together: command.together,
    })
}

impl Whole<'_> {
    /// One of them, looked at and locked. The first one leads.
    fn ready(
        &self,
        number: usize,
        name: ContainerName,
        mut container: Box<dyn SourceContainer>,
    ) -> Result<Ready, Trouble> {
        let Self { args, command, show, .. } = self;
        let about = |failure| Trouble::about(failure, &command.container, Some(&self.to));
        // the one that was named may be another one than that which leads
        if number > 0 || command.together {
            settle_earlier(&args.global.root, &name.to_string(), &mut |text| show.note(text))?;
        }
        let facts = container.facts();
        // those of the command line are of the whole, and called once
        let hooks = if number == 0 { self.hooks.clone() } else { Hooks::default() };
        let hooks = super::hooks::with_labels(hooks, &command.hooks, &facts.annotations).map_err(about)?;
        let parting = super::parting::of(command, facts).map_err(about)?;
        for warning in &facts.warnings {
            show.note(format!("warning: {warning}"));
        }
        container
            .spare(&parting.skipped)
            .map_err(|error| about(super::describe(&command.container, &error)))?;
        let plan = Plan {
            container: if number == 0 && !command.together {
                command.container.clone()
            } else {
                name.to_string()
            },
            destination: self.to.clone(),
            strategy: command.strategy.into(),
            tracker: self.tracker,
            limits: command.limits(show.can_ask()),
            carry: self.request.carry,
            network_plan: self.request.network_plan.clone(),
            bandwidth: command.bandwidth.unwrap_or(0),
            connections: command.connections,
            outgrown: self.tried.outgrown,
            cooperates: command.cooperative == CooperativeArg::Auto,
            watches_files: command.file_watch == FileWatchArg::Auto,
            compress: command.compress,
            restoration: command.restore.into(),
            gentle: command.pace == PaceArg::Gentle,
            highest_rung: command.highest_rung.map(Into::into),
            witness: command.witness.clone(),
            hooks,
            facts: self.facts.clone(),
            parting,
        };
        let Some(lock) = lock(args, &name, show, self.cancel).map_err(about)? else {
            return Err(about(
                Failure::new(FailureKind::Locked, format!("another migration of `{name}` is under way"))
                    .hint("`godwit status` shows it"),
            ));
        };
        for told in super::limits::put_back(&args.global.root, Some(&name.to_string())) {
            show.note(told);
        }
        Ok(Ready { name, container, plan, lock })
    }

    /// The destination, called for one of them.
    fn call(&self, way: &OpenWay) -> Result<Wire, Failure> {
        call(way, self.command, self.cancel.clone()).map_err(|mut failure| {
            if self.tried.lost > 0 || self.tried.outgrown > 0 {
                // it could be reached before
                failure.kind = FailureKind::LinkLost;
            }
            failure
        })
    }
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

fn destination(command: &MigrateArgs) -> Result<Way, Failure> {
    let way = Way::new(&command.destination, command.via.clone())?;
    if way.address.is_exposed() && !command.insecure {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("`{way}` is neither encrypted nor authenticated: memory and files would be readable on the way"),
        )
        .hint("use `ssh://` or `tls://`, or add `--insecure` if the network between the hosts is yours alone"));
    }
    if let Address::Tls { .. } = way.address {
        Identity::load(&config_dir()).map_err(|error| super::keys::failure(&error))?;
    }
    Ok(way)
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

fn call(way: &OpenWay, command: &MigrateArgs, cancel: Cancel) -> Result<Wire, Failure> {
    let what = || format!("{way} cannot be reached");
    let unreachable = |error: &(dyn std::error::Error + 'static)| {
        let hint = match way.address() {
            Address::Ssh { .. } => {
                "is godwit installed there, and does `ssh` log in without a password?".into()
            }
            address => {
                format!("is `godwit receive {}` running there?", listening(address, command.via.as_ref()))
            }
        };
        // the cause says it all where it is one of ours
        let failure = Failure::new(FailureKind::Refused, what());
        match TlsError::within(error) {
            Some(known) => {
                let failure = failure.because(known);
                known.hint().into_iter().fold(failure, Failure::hint)
            }
            None => failure.because_of(error).hint(hint),
        }
    };
    let transport = way.connect(&command.remote_command).map_err(|error| match error {
        NotReached::Place(error) => {
            super::object_storage::failure(&what(), &error, Path::new("")).at(Disposition::Untouched)
        }
        NotReached::Other(error) => unreachable(&error),
    })?;
    Wire::open(transport, cancel, FIRST_WORD).map_err(|error| unreachable(&error))
}

/// Where the other side must wait to be reached.
fn listening(address: &Address, via: Option<&PlaceName>) -> String {
    match (address, via) {
        (_, Some(place)) => format!("--via {place}"),
        (Address::Tls { port, .. }, _) => format!("--listen tls://0.0.0.0:{port}"),
        (Address::Tcp { port, .. }, _) => format!("--listen tcp://0.0.0.0:{port} --insecure"),
        (other, _) => format!("--listen {other}"),
    }
}

/// The migration's directory and journal; from here on `godwit status` shows it.
fn begin(args: &Args, to: &str, name: &ContainerName) -> Result<(Job, Journal), Failure> {
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
        peer: to.to_owned(),
        godwit: env!("CARGO_PKG_VERSION").into(),
    };
    journal.append(planned).map_err(|error| cannot(&error))?;
    Ok((job, journal))
}
