//! `godwit receive`: over standard input and output for one migration that ssh brings, or listening, for one or for all that
//! come.

use super::park::parking;
use super::reception::{self, FIRST_WORD, LOOK_UP};
use super::{Trouble, cancel_on_signal, on_signal};
use crate::args::{Args, ReceiveArgs};
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::preflight::{check_privilege, usable_criu};
use godwit_migration::{Cancel, Failure, FailureKind, Observer};
use godwit_restore::preflight::host_facts;
use godwit_restore::{Host, Joins, Outcome, receive};
use godwit_transfer::{HostFacts, Incoming, Message, Peer, Refusal, Transport, Wire};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};

/// Callers that may be on their way to their first word at once: whoever has not proved who it is costs no more than that.
const CALLERS: usize = 32;

pub fn run(args: &Args, command: &ReceiveArgs, draw: &Draw) -> Result<u8, Trouble> {
    // whoever ssh has started learns by SIGHUP that its source is gone
    let cancel = if command.stdio { on_signal(Cancel::hang_up) } else { cancel_on_signal() };
    let policy = reception::policy()?;
    super::node::refuse_exposed(&command.neighbours, command.insecure)?;
    let catalog = command.catalog.as_ref().map(|place| super::nodes::catalog(place, command.insecure));
    let catalog = catalog.transpose()?.map(Arc::new);
    let joins = Joins::default();
    // whoever waits for one migration goes with it, and nobody could come back
    let stays = command.stdio || command.forever;
    let parking =
        (stays && !command.keep_received.is_zero()).then(|| Arc::new(parking(command.keep_received)));
    let host = |peer| Host {
        root: args.global.root.clone(),
        engines: godwit_engine::all(),
        facts: facts(),
        lazy: lazy(),
        peer,
        policy: policy.clone(),
        joins: joins.clone(),
        parking: parking.clone(),
        neighbours: command.neighbours.0.clone(),
        catalog: catalog.clone(),
    };
    if command.stdio {
        return over_stdio(&host, cancel);
    }
    let (listener, place) = match (&command.listen, &command.via) {
        (Some(address), _) => {
            let listener = reception::listen(address, command.insecure, DANGER, draw)?;
            (listener, format!("on {address}"))
        }
        (None, Some(place)) => (reception::listen_at(place, &cancel, draw)?, format!("at {place}")),
        (None, None) => {
            let unsaid = Failure::new(FailureKind::Usage, "where to listen was not said");
            return Err(unsaid.hint("`--listen URL`, `--via PLACE`, or `--stdio`").into());
        }
    };
    let what = if command.forever { "migrations" } else { "one migration" };
    draw.talk(&format!("waiting for {what} {place}"));
    let (give, calls) = sync_channel(1);
    let desk = Arc::new(Desk { joins: joins.clone(), cancel: cancel.clone(), busy: AtomicBool::new(false) });
    let clerk = desk.clone();
    let answering = std::thread::spawn(move || {
        let cancel = clerk.cancel.clone();
        reception::receive_all(&listener, &cancel, CALLERS, move |transport, peer| {
            clerk.answer(transport, peer, &give)
        });
    });
    let mut last = Ok(0);
    while let Some((wire, peer)) = next(&calls, &cancel) {
        let show = Show::new(&args.global, draw);
        let outcome = receive(wire, &host(peer), &show);
        show.done();
        last = outcome.map(|outcome| told(draw, &outcome)).map_err(Trouble::from);
        if !command.forever {
            break;
        }
        if let Err(trouble) = std::mem::replace(&mut last, Ok(0)) {
            draw.failure(&trouble);
        }
        desk.busy.store(false, Ordering::Release);
    }
    let came = desk.busy.load(Ordering::Acquire);
    // the listener, and with it the file of a socket, goes before this process does
    desk.cancel.raise();
    let _ = answering.join();
    if !came && !command.forever {
        return Err(Failure::new(FailureKind::Interrupted, "interrupted before anybody came").into());
    }
    last
}

/// What ssh started. Standard output is the wire: nothing else may be written to it.
fn over_stdio(host: &dyn Fn(Peer) -> Host, cancel: Cancel) -> Result<u8, Trouble> {
    let (transport, peer) = reception::of_ssh()?;
    let wire = Wire::open(Box::new(transport), cancel, FIRST_WORD).map_err(|error| {
        Failure::new(FailureKind::Failed, "whoever called cannot be spoken with").because_of(&error)
    })?;
    let observer: &dyn Observer = &godwit_migration::Silent;
    match receive(wire, &host(peer), observer) {
        Ok(outcome) => Ok(code(&outcome)),
        // the source tells the user what happened; this side's words would come twice
        Err(failure) => {
            tracing::info!(%failure, "this side failed");
            Ok(failure.kind.exit_code())
        }
    }
}

/// What callers of a receiver in the open could do.
const DANGER: &str = "start containers here";

/// The next caller that wants to bring a container; nobody after Ctrl-C.
fn next(calls: &Receiver<(Wire, Peer)>, cancel: &Cancel) -> Option<(Wire, Peer)> {
    while !cancel.is_raised() {
        match calls.recv_timeout(LOOK_UP) {
            Ok(call) => return Some(call),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

/// Where callers say what they want.
struct Desk {
    joins: Joins,
    cancel: Cancel,
    /// A container is being received; in a process that waits for one this stays.
    busy: AtomicBool,
}

impl Desk {
    fn answer(
        &self,
        transport: Box<dyn Transport>,
        peer: &Peer,
        give: &SyncSender<(Wire, Peer)>,
    ) -> Result<(), String> {
        let wire = Wire::open(transport, self.cancel.clone(), FIRST_WORD);
        let mut wire = wire.map_err(|error| error.to_string())?;
        match wire.hear().map_err(|error| error.to_string())? {
            Incoming::Message(Message::Join { migration, .. }) => {
                self.joins.join(wire, &migration, &peer.name).map_err(|error| error.to_string())
            }
            first => {
                if self.busy.swap(true, Ordering::AcqRel) {
                    let busy =
                        Failure::new(FailureKind::Locked, "another migration is under way to this receiver")
                            .hint("try again when it is over");
                    let _ = wire.say(&Message::Failed { failure: busy });
                    return Err("another migration is under way".into());
                }
                wire.put_back(first);
                give.send((wire, peer.clone())).map_err(|_| "nobody waits any more".into())
            }
        }
    }
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

/// Says how it ended, and gives the exit code.
fn told(draw: &Draw, outcome: &Outcome) -> u8 {
    tell(draw, outcome);
    code(outcome)
}

fn code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Running { leftovers, .. } if leftovers.is_empty() => 0,
        Outcome::Running { .. } => FailureKind::Leftovers.exit_code(),
        Outcome::Examined | Outcome::PassedOn => 0,
        Outcome::Undone { .. } => FailureKind::Failed.exit_code(),
        Outcome::Refused { .. } => FailureKind::Refused.exit_code(),
    }
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
