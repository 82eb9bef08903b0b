//! `godwit checkpoint`: into a directory or a file. What goes to a place goes there from an [outbox](super::outbox), and so does what
//! the store [keeps](super::keep).

use super::earlier::settle_earlier;
use super::volume::policy;
use super::{Trouble, cancel_on_signal, open};
use super::{keep, outbox, parent, sealing};
use crate::args::{Args, CheckpointArgs, Location};
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::CheckpointJournal;
use godwit_checkpoint::archive::{self, Seal, Written};
use godwit_checkpoint::preflight::{check_privilege, usable_criu};
use godwit_engine::network::NetworkPlan;
use godwit_engine::{ContainerName, OpenRequest};
use godwit_migration::lock::lock_container;
use godwit_migration::quantity::{show_bytes, show_duration};
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_restore::preflight::host_facts;
use serde_json::json;
use std::path::Path;

pub fn run(args: &Args, command: &CheckpointArgs, draw: &Draw) -> Result<u8, Trouble> {
    let cancel = cancel_on_signal();
    match &command.to {
        Location::Store(Some(_)) => Err(refused(
            command,
            &format!("`{}` names a checkpoint that the store has, or could have", command.to),
            "write `--to store`: it gets a name of its own",
        )),
        Location::Store(None) => keep::run(args, command, draw, &cancel),
        Location::Place(place) => outbox::run(args, command, place, draw, &cancel),
        Location::Path(_) if !policy(&command.keep).is_empty() => Err(refused(
            command,
            "only from the store or a place do checkpoints go by a policy",
            "write `--to store`, or leave `--keep-…` out",
        )),
        Location::Path(path) => {
            let checkpoint = write(args, command, path, draw, &cancel)?;
            tell(command, &checkpoint, draw);
            Ok(checkpoint.exit_code())
        }
    }
}

/// What cannot be meant; the container was not looked at.
fn refused(command: &CheckpointArgs, message: &str, hint: &str) -> Trouble {
    Trouble::about(Failure::new(FailureKind::Usage, message).hint(hint), &command.container, None)
}

/// A checkpoint that was written.
pub struct Checkpoint {
    pub name: ContainerName,
    pub written: Written,
    /// What could not be removed here.
    pub leftovers: Vec<String>,
}

impl Checkpoint {
    pub fn exit_code(&self) -> u8 {
        if self.leftovers.is_empty() { 0 } else { FailureKind::Leftovers.exit_code() }
    }
}

/// Writes one to a path that is not there yet.
///
/// # Errors
/// When there is none; then the container runs on.
pub fn write(
    args: &Args,
    command: &CheckpointArgs,
    to: &Path,
    draw: &Draw,
    cancel: &Cancel,
) -> Result<Checkpoint, Trouble> {
    let about = |failure| Trouble::about(failure, &command.container, None);
    let show = Show::new(&args.global, draw);
    if to.exists() {
        return Err(about(
            Failure::new(FailureKind::Usage, format!("`{}` exists already", to.display()))
                .hint("name one that does not exist yet"),
        ));
    }
    settle_earlier(&args.global.root, &command.container, &mut |text| draw.talk(&text))?;
    let recipients = sealing::recipients(&command.recipients).map_err(about)?;
    check_privilege().map_err(about)?;
    let parent = parent::of(command, to).map_err(about)?;
    let criu = usable_criu().map_err(about)?;
    let request = OpenRequest {
        carry: command.carry.carry(),
        volumes: command.volumes.clone(),
        no_copy: command.no_copy.clone(),
        // where it will be attached is decided when it is restored
        network_plan: NetworkPlan::None,
        keep: false,
        // so is at which address it is reached
        ip_change: true,
        restart: None,
        together: false,
    };
    let (name, container) = open(&command.container, &request)?;
    if command.with_image && container.facts().image.is_none() {
        let message = format!("{} knows no images", name.engine);
        return Err(about(Failure::new(FailureKind::Usage, message).hint("leave `--with-image` out")));
    }
    if let Some(parent) = &parent {
        parent::is_of(parent, container.facts()).map_err(about)?;
    }
    for warning in &container.facts().warnings {
        draw.talk(&format!("warning: {warning}"));
    }
    let facts = host_facts(&criu).map_err(|error| {
        about(Failure::new(FailureKind::Missing, "this host could not be looked at").because_of(&error))
    })?;
    let lock = lock_container(&args.global.root, name.engine, &name.name).map_err(|error| {
        let root = args.global.root.display();
        about(Failure::new(FailureKind::Missing, format!("cannot write to `{root}`")).because_of(&error))
    })?;
    let Some(_lock) = lock else {
        let message = format!("a migration of `{name}` is under way");
        return Err(about(Failure::new(FailureKind::Locked, message).hint("`godwit status` shows it")));
    };
    if let Err(error) = godwit_checkpoint::staging::clear(&args.global.root) {
        draw.talk(&format!("warning: what a dead godwit has left cannot be removed: {error}"));
    }
    let staging = match &recipients {
        Some(_) => {
            let (root, with_image) = (&args.global.root, command.with_image);
            Some(sealing::staging_for(container.as_ref(), with_image, root, draw).map_err(about)?)
        }
        None => None,
    };
    let staged = staging.as_ref().map(|staging| staging.path());
    let seal = match (&recipients, &staged) {
        (Some(recipients), Some(staging)) => Some(Seal { recipients, staging }),
        _ => None,
    };
    let to = std::path::absolute(to).unwrap_or_else(|_| to.to_owned());
    let journal = CheckpointJournal::begin(&args.global.root, &name.to_string(), &to).map_err(|error| {
        let root = args.global.root.display();
        about(Failure::new(FailureKind::Missing, format!("cannot write to `{root}`")).because_of(&error))
    })?;
    let order = archive::Order {
        to: &to,
        seal,
        leave_running: command.leave_running,
        carry: request.carry,
        facts,
        with_image: command.with_image,
        parent: parent.as_ref(),
    };
    let (written, leftovers) =
        archive::write(container, &criu, &order, journal, &show, cancel).map_err(about)?;
    drop(staging);
    show.done();
    Ok(Checkpoint { name, written, leftovers })
}

/// Says what was written, and where the container is.
pub fn tell(command: &CheckpointArgs, checkpoint: &Checkpoint, draw: &Draw) {
    let Checkpoint { name, written, leftovers } = checkpoint;
    let now = if command.leave_running { "is running on this host" } else { "is not running any more" };
    if draw.is_json() {
        draw.json_line(&json!({
            "message_type": "checkpoint", "container": name.to_string(), "path": command.to.to_string(),
            "running": command.leave_running, "stopped_us": written.stopped.as_micros() as u64,
            "memory_bytes": written.memory_bytes, "file_bytes": written.file_bytes,
            "parent": command.parent, "shared_bytes": written.shared_bytes, "leftovers": leftovers,
        }));
        return;
    }
    draw.data(&format!(
        "{} holds {name}: memory {}, files {}. It stood still for {}.",
        command.to,
        show_bytes(written.memory_bytes),
        show_bytes(written.file_bytes),
        show_duration(written.stopped)
    ));
    if let Some(parent) = &command.parent {
        draw.data(&format!(
            "{} of it are in {}, without which it cannot be restored",
            show_bytes(written.shared_bytes),
            parent.display()
        ));
    }
    draw.data(&format!("{name} {now}"));
    for leftover in leftovers {
        draw.talk(&format!("warning: left over here: {leftover}"));
    }
}
