//! `godwit receive`.

use super::{Trouble, cancel_on_signal};
use crate::args::{Args, ReceiveArgs};
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::preflight::{check_privilege, usable_criu};
use godwit_migration::{Failure, FailureKind};
use godwit_restore::preflight::host_facts;
use godwit_restore::{Host, Outcome, pass_on, receive};
use godwit_transfer::{Address, Descriptors, HostFacts, Listener, Message, Refusal, Transport, Wire};
use std::time::Duration;

/// How long the source may take for its first word.
const FIRST_WORD: Duration = Duration::from_secs(30);

pub fn run(args: &Args, command: &ReceiveArgs, draw: &Draw) -> Result<u8, Trouble> {
    let cancel = cancel_on_signal();
    let (transport, peer, further) = transport(args, command, draw)?;
    // standard output is the wire then: nothing else may be written to it
    let wire = Wire::open(transport, cancel, FIRST_WORD).map_err(|error| {
        Failure::new(FailureKind::Failed, "whoever called cannot be spoken with").because_of(&error)
    })?;
    let host = Host {
        root: args.global.root.clone(),
        engines: godwit_engine::all(),
        facts: facts(),
        lazy: lazy(),
        peer,
    };
    let silent = godwit_migration::Silent;
    let show = Show::new(&args.global, draw);
    let outcome = if command.stdio { receive(wire, &host, &silent) } else { receive(wire, &host, &show) };
    show.done();
    drop(further);
    let outcome = match outcome {
        Ok(outcome) => outcome,
        // over ssh the source tells the user what happened; this side's words would come twice
        Err(failure) if command.stdio => {
            tracing::info!(%failure, "this side failed");
            return Ok(failure.kind.exit_code());
        }
        Err(failure) => return Err(failure.into()),
    };
    if !command.stdio {
        tell(draw, &outcome);
    }
    Ok(match outcome {
        Outcome::Running { leftovers, .. } if leftovers.is_empty() => 0,
        Outcome::Running { .. } => FailureKind::Leftovers.exit_code(),
        Outcome::Examined | Outcome::PassedOn => 0,
        Outcome::Undone { .. } => FailureKind::Failed.exit_code(),
        Outcome::Refused { .. } => FailureKind::Refused.exit_code(),
    })
}

/// Whether memory can be filled on demand here.
fn lazy() -> Result<(), String> {
    let criu = usable_criu().map_err(|failure| failure.message)?;
    match criu.features() {
        Ok(features) if features.lazy_pages => Ok(()),
        Ok(_) => Err("criu finds no usable userfaultfd in the kernel".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn transport(args: &Args, command: &ReceiveArgs, draw: &Draw) -> Result<Caller, Failure> {
    if command.stdio {
        let transport = Descriptors::stdio().map_err(|error| {
            Failure::new(FailureKind::Usage, "standard input or output is closed").because_of(&error)
        })?;
        let peer = std::env::var("SSH_CONNECTION").ok();
        let peer = peer.and_then(|text| text.split(' ').next().map(|host| format!("ssh from {host}")));
        return Ok((Box::new(transport), peer.unwrap_or_else(|| "standard input".into()), None));
    }
    let text = command.listen.as_deref().unwrap_or_default();
    let address: Address =
        text.parse().map_err(|error| Failure::new(FailureKind::Usage, format!("{error}")))?;
    if address.is_exposed() && !command.insecure {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("`{address}` is neither encrypted nor authenticated: anybody who reaches it could start containers here"),
        )
        .hint("use ssh, which needs no listener, or add `--insecure` if the network is yours alone"));
    }
    let cannot = |error: std::io::Error| {
        Failure::new(FailureKind::Failed, format!("cannot listen on `{address}`")).because_of(&error)
    };
    let listener = Listener::bind(&address).map_err(cannot)?;
    draw.talk(&format!("waiting for one migration on {address}"));
    let (transport, peer) = listener.accept().map_err(cannot)?;
    take_further(listener, args.global.root.clone());
    let file = match address {
        Address::Unix(path) => Some(SocketFile(path)),
        _ => None,
    };
    Ok((transport, peer, file))
}

/// The first connection, who is at its other end, and the socket's file where there is one.
type Caller = (Box<dyn Transport>, String, Option<SocketFile>);

/// The file of a listening socket: the listener itself ends with this process only.
struct SocketFile(std::path::PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Further connections of the migration go to whoever receives it, which is this process.
fn take_further(listener: Listener, root: std::path::PathBuf) {
    std::thread::spawn(move || {
        while let Ok((transport, peer)) = listener.accept() {
            let root = root.clone();
            std::thread::spawn(move || {
                let wire = Wire::open(transport, godwit_migration::Cancel::default(), FIRST_WORD);
                let taken = wire.map_err(|error| error.to_string()).and_then(|wire| take_one(wire, &root));
                if let Err(why) = taken {
                    tracing::warn!(%peer, why, "a connection that is no further one of this migration");
                }
            });
        }
    });
}

fn take_one(mut wire: Wire, root: &std::path::Path) -> Result<(), String> {
    let joins = wire.expect("join", |message| match message {
        Message::Join { migration, stream } => Ok((migration, stream)),
        other => Err(other),
    });
    let (migration, stream) = joins.map_err(|error| error.to_string())?;
    pass_on(wire, root, &migration, stream).map_err(|error| error.to_string())
}

/// What this host is like; a reason to refuse when it cannot receive anything.
fn facts() -> Result<HostFacts, Refusal> {
    let refusal = |failure: Failure| {
        let refusal = Refusal::new(failure.to_string());
        match failure.hints.first() {
            Some(hint) => refusal.hint(hint.clone()),
            None => refusal,
        }
    };
    check_privilege().map_err(refusal)?;
    let criu = usable_criu().map_err(refusal)?;
    host_facts(&criu).map_err(|error| Refusal::new(error.to_string()))
}

fn tell(draw: &Draw, outcome: &Outcome) {
    if draw.is_json() {
        let line = match outcome {
            Outcome::Running { migration, container, pid, leftovers } => serde_json::json!({
                "message_type": "received", "disposition": "running_at_destination", "migration": migration,
                "container": container, "pid": pid, "leftovers": leftovers }),
            Outcome::Undone { container, reason } => serde_json::json!({
                "message_type": "received", "disposition": "running_at_source", "container": container, "reason": reason }),
            Outcome::Refused { reasons } => serde_json::json!({
                "message_type": "received", "disposition": "untouched", "reasons": reasons }),
            Outcome::Examined | Outcome::PassedOn => {
                serde_json::json!({ "message_type": "received", "disposition": "untouched" })
            }
        };
        draw.json_line(&line);
        return;
    }
    match outcome {
        Outcome::Running { container, pid, migration, leftovers } => {
            draw.data(&format!("{container} is running here (pid {pid}). Migration {migration}."));
            for leftover in leftovers {
                draw.talk(&format!("warning: left over here: {leftover}"));
            }
        }
        Outcome::Undone { container, reason } => {
            draw.data(&format!("{container} stays where it was ({reason}); nothing of it is left here"));
        }
        Outcome::Refused { reasons } => {
            for refusal in reasons {
                draw.data(&format!("refused: {}", refusal.reason));
            }
        }
        Outcome::Examined | Outcome::PassedOn => draw.data("the source only asked whether it could"),
    }
}
