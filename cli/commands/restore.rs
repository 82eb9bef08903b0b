//! `godwit restore`: a checkpoint is moved to this host's own destination half.

use super::scratch::{self, Scratch};
use super::{Trouble, cancel_on_signal, kept, object_storage, sealing, store};
use crate::args::{Args, Location, RestoreArgs};
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::archive::ArchiveError;
use godwit_checkpoint::chain::Chain;
use godwit_checkpoint::preflight::{check_privilege, usable_criu};
use godwit_checkpoint::{Job, Order, Parties, Parting, Plan, archive};
use godwit_engine::SourceContainer;
use godwit_migration::hooks::Hooks;
use godwit_migration::journal::{Event, Journal, VERSION, checkpoint_as_peer};
use godwit_migration::plan::{Limits, Restoration, Strategy};
use godwit_migration::quantity::show_duration;
use godwit_migration::report::Summary;
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, MigrationId, Role, Silent};
use godwit_restore::preflight::host_facts;
use godwit_restore::{Host, Joins, Policy, receive};
use godwit_transfer::{Compression, Descriptors, Peer, Refusal, Wire};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one half may wait for the other, both in this process.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(args: &Args, command: &RestoreArgs, draw: &Draw) -> Result<u8, Trouble> {
    let cancel = cancel_on_signal();
    match &command.checkpoint {
        Location::Path(path) => {
            let shown = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            bring(args, command, path, &shown, draw, &cancel)
        }
        Location::Place(place) => {
            check_privilege()?;
            let fetched = object_storage::fetch_checkpoint(args, place, draw, &cancel)?;
            bring(args, command, &fetched.path, Path::new(&place.to_string()), draw, &cancel)
        }
        Location::Store(None) => Err(Failure::new(
            FailureKind::Usage,
            "which checkpoint of the store was not said",
        )
        .hint("name one: `store:ID`, or `store:ENGINE:NAME@latest`; `godwit images ls store` shows them")
        .into()),
        Location::Store(Some(text)) => {
            check_privilege()?;
            let unpacked = kept::unpack_kept(&args.global.root, text, &store::bar(args))?;
            bring(args, command, &unpacked.tree, Path::new(&command.checkpoint.to_string()), draw, &cancel)
        }
    }
}

/// Brings the checkpoint at a path back. Whoever finds what a dead restore has left is told of it as `shown`.
fn bring(
    args: &Args,
    command: &RestoreArgs,
    checkpoint: &Path,
    shown: &Path,
    draw: &Draw,
    cancel: &Cancel,
) -> Result<u8, Trouble> {
    let name = command.checkpoint.to_string();
    let identities = sealing::identities_for(checkpoint, &command.identities)?;
    check_privilege()?;
    let root = &args.global.root;
    if let Err(error) = scratch::clear(root) {
        draw.talk(&format!("warning: what a dead godwit has left cannot be removed: {error}"));
    }
    let criu = usable_criu()?;
    let staging = match identities {
        Some(identities) => Some(sealing::open(checkpoint, &identities, root, draw, cancel)?),
        None => None,
    };
    let opened = staging.as_ref().map(|staging| staging.path().join(sealing::OPENED));
    // what was sealed was whole when it could be opened
    if opened.is_none() {
        archive::verify(checkpoint).map_err(|error| not_whole(&name, &error))?;
    }
    let cannot = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::Missing, "this host could not be looked at").because_of(error)
    };
    let id = MigrationId::generate().map_err(|error| cannot(&error))?;
    // the destination's half keeps the journal of that id; the other half's is only needed while it runs
    let scratch = Scratch::make(&args.global.root).map_err(|error| {
        Failure::new(FailureKind::Missing, format!("cannot write to `{}`", args.global.root.display()))
            .because_of(&error)
            .hint("name another directory with `--root`")
    })?;
    let whole = match &opened {
        Some(opened) => opened.clone(),
        None => assembled(checkpoint, &scratch, &id, draw, cancel)?,
    };
    let archived = archive::open(&whole).map_err(|error| not_whole(&name, &error))?;
    let host = Host {
        root: args.global.root.clone(),
        engines: godwit_engine::all(),
        facts: host_facts(&criu).map_err(|error| Refusal::new(error.to_string())),
        lazy: Err("the pages of a checkpoint lie in its images".into()),
        peer: Peer { name: "file:".into(), shown: checkpoint_as_peer(shown) },
        policy: Policy::default(),
        joins: Joins::default(),
        parking: None,
        neighbours: Vec::new(),
        catalog: None,
    };
    let plan = Plan {
        container: name.clone(),
        destination: "this host".into(),
        strategy: Strategy::StopAndCopy,
        tracker: None,
        limits: Limits::default(),
        carry: archived.carry,
        network_plan: command.network_plan.clone(),
        bandwidth: 0,
        connections: 1,
        outgrown: 0,
        cooperates: false,
        watches_files: false,
        compress: Compression::None,
        restoration: Restoration::Eager,
        gentle: false,
        highest_rung: None,
        witness: None,
        hooks: Hooks::default(),
        facts: archived.host.clone(),
        parting: Parting::default(),
    };
    // images that were sealed stay in memory on both sides
    let journals = match &staging {
        Some(staging) => {
            sealing::keep_images_off_disks(staging, archived.facts().memory_bytes, root, &id)?;
            staging.path()
        }
        None => scratch.path.clone(),
    };
    let job = Job::new(journals, id.clone());
    let show = Show::new(&args.global, draw);
    let (one, two) = Descriptors::pair().map_err(|error| cannot(&error))?;
    let result = std::thread::scope(|scope| {
        let theirs = cancel.clone();
        let destination = scope.spawn(move || {
            let wire = Wire::open(Box::new(two), theirs, PATIENCE).map_err(|error| cannot(&error))?;
            receive(wire, &host, &Silent)
        });
        let summary = serve(one, archived, plan, job, &show, cancel.clone());
        (summary, destination.join())
    });
    drop((scratch, staging));
    show.done();
    let summary = result.0.map_err(not_here)?;
    tell(draw, &summary);
    Ok(if summary.leftovers.is_empty() { 0 } else { FailureKind::Leftovers.exit_code() })
}

/// A checkpoint that is none, or not whole.
fn not_whole(name: &str, error: &ArchiveError) -> Failure {
    match error {
        ArchiveError::NotOne { .. } => Failure::new(FailureKind::NotFound, error.to_string()),
        _ => Failure::new(FailureKind::NotFound, format!("`{name}` cannot be restored; nothing was touched"))
            .because_of(error),
    }
    .hint(error.hint())
}

/// The directory of a checkpoint with all that it shares with its parents; its own when it shares nothing.
fn assembled(
    checkpoint: &Path,
    scratch: &Scratch,
    id: &MigrationId,
    draw: &Draw,
    cancel: &Cancel,
) -> Result<PathBuf, Failure> {
    let name = checkpoint.display().to_string();
    let chain = Chain::open(checkpoint).map_err(|error| not_whole(&name, &error))?;
    let Some(parent) = chain.parents().next() else { return Ok(checkpoint.to_owned()) };
    draw.talk(&format!("{name} shares content with {}", parent.display()));
    let whole = scratch.path.join(format!("whole-{id}"));
    chain.assemble(&whole, cancel).map_err(|error| match error {
        ArchiveError::Interrupted => {
            Failure::new(FailureKind::Interrupted, "interrupted; nothing was restored")
        }
        ArchiveError::Io { .. } | ArchiveError::Tree { .. } => {
            let message = format!("`{name}` could not be made whole in `{}`", scratch.path.display());
            Failure::new(FailureKind::Missing, message).because_of(&error).hint(
                "it needs as much room as a checkpoint without a parent; `--root` names another directory",
            )
        }
        error => not_whole(&name, &error),
    })?;
    Ok(whole)
}

/// The source's half: the checkpoint stands in for a container.
fn serve(
    transport: Descriptors,
    archived: archive::Archived,
    plan: Plan,
    job: Job,
    show: &Show<'_>,
    cancel: Cancel,
) -> Result<Summary, Failure> {
    let broken = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::Failed, "the checkpoint could not be read back").because_of(error)
    };
    let wire = Wire::open(Box::new(transport), cancel.clone(), PATIENCE).map_err(|error| broken(&error))?;
    let mut journal = Journal::create(&job.dir).map_err(|error| broken(&error))?;
    let planned = Event::Planned {
        version: VERSION,
        migration: job.id.clone(),
        role: Role::Source,
        container: plan.container.clone(),
        peer: plan.destination.clone(),
        godwit: env!("CARGO_PKG_VERSION").into(),
    };
    journal.append(planned).map_err(|error| broken(&error))?;
    let dumper = archived.dumper();
    let parties = Parties {
        container: Box::new(archived),
        criu: &dumper,
        wire,
        dial: None,
        reader: None,
        observer: show,
        cancel,
    };
    godwit_checkpoint::migrate(parties, Order { plan, job, journal, member: None })
}

/// A checkpoint does not run anywhere, whatever the other half thinks.
fn not_here(mut failure: Failure) -> Trouble {
    if failure.disposition != Disposition::InDoubt {
        failure.disposition = Disposition::NoContainer;
    }
    failure.into()
}

fn tell(draw: &Draw, summary: &Summary) {
    if draw.is_json() {
        draw.json_line(&serde_json::json!({
            "message_type": "restored", "checkpoint": summary.container, "migration": summary.migration,
            "pid": summary.pid, "duration_us": summary.duration.as_micros() as u64, "leftovers": summary.leftovers,
        }));
        return;
    }
    draw.data(&format!(
        "{} is running here (pid {}) after {}",
        summary.container,
        summary.pid,
        show_duration(summary.duration)
    ));
}
