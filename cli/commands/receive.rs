//! `godwit receive`: over standard input and output for one migration that ssh brings, or listening, for one or for all that
//! come.

use super::park::parking;
use super::{Trouble, cancel_on_signal, on_signal};
use crate::args::{Args, ReceiveArgs};
use crate::draw::Draw;
use crate::progress::Show;
use godwit_checkpoint::preflight::{check_privilege, usable_criu};
use godwit_migration::{Cancel, Failure, FailureKind, Observer};
use godwit_restore::preflight::host_facts;
use godwit_restore::{Host, Joins, Outcome, Policy, receive};
use godwit_transfer::tls::{Identity, TlsError, config_dir};
use godwit_transfer::{
    Address, Caller, Descriptors, HostFacts, Incoming, Listener, Message, Peer, Refusal, Wire,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// How long the source may take for its first word.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// How often a wait looks whether somebody pressed Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Callers that may be on their way to their first word at once: whoever has not proved who it is costs no more than that.
const CALLERS: usize = 32;

pub fn run(args: &Args, command: &ReceiveArgs, draw: &Draw) -> Result<u8, Trouble> {
    // whoever ssh has started learns by SIGHUP that its source is gone
    let cancel = if command.stdio { on_signal(Cancel::hang_up) } else { cancel_on_signal() };
    let policy = Policy::load(&config_dir()).map_err(|error| {
        Failure::new(FailureKind::Usage, "the policy of this host cannot be used").because_of(&error)
    })?;
    super::node::refuse_exposed(&command.neighbours, command.insecure)?;
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
    };
    if command.stdio {
        return over_stdio(&host, cancel);
    }
    let address = listening_address(command.listen.as_deref().unwrap_or_default(), command.insecure)?;
    if let Address::Tls { .. } = address {
        let identity = Identity::load(&config_dir()).map_err(|error| super::keys::failure(&error))?;
        draw.talk(&format!("this host's key is {}", identity.fingerprint));
    }
    if address.is_exposed() {
        draw.talk(&format!("warning: {}", exposed(&address, START)));
    }
    let listener = Listener::bind(&address).map_err(|error| {
        Failure::new(FailureKind::Failed, format!("cannot listen on `{address}`")).because_of(&error)
    })?;
    let what = if command.forever { "migrations" } else { "one migration" };
    draw.talk(&format!("waiting for {what} on {address}"));
    let (give, calls) = sync_channel(1);
    let desk = Arc::new(Desk {
        joins: joins.clone(),
        cancel: cancel.clone(),
        busy: AtomicBool::new(false),
        callers: AtomicUsize::new(0),
    });
    let clerk = desk.clone();
    let answering = std::thread::spawn(move || clerk.answer_all(listener, &give));
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
    let transport = Descriptors::stdio().map_err(|error| {
        Failure::new(FailureKind::Usage, "standard input or output is closed").because_of(&error)
    })?;
    let from = std::env::var("SSH_CONNECTION").ok();
    let from = from.and_then(|text| text.split(' ').next().map(str::to_owned));
    let peer = match from {
        Some(from) => Peer { name: format!("ssh:{from}"), shown: format!("ssh from {from}") },
        None => Peer { name: "ssh:".into(), shown: "standard input".into() },
    };
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
const START: &str = "start containers here";

/// Where to listen; plain TCP only for whoever says so.
///
/// # Errors
/// When it is no such address.
pub fn listening_address(text: &str, insecure: bool) -> Result<Address, Failure> {
    let address: Address =
        text.parse().map_err(|error| Failure::new(FailureKind::Usage, format!("{error}")))?;
    if address.is_exposed() && !insecure {
        return Err(Failure::new(FailureKind::Usage, exposed(&address, START))
            .hint("use `tls://`, or ssh, which needs no listener; or add `--insecure` if the network is yours alone"));
    }
    Ok(address)
}

/// What is wrong with plain TCP.
pub fn exposed(address: &Address, danger: &str) -> String {
    format!("`{address}` is neither encrypted nor authenticated: anybody who reaches it could {danger}")
}

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

/// Where callers are answered, each in a thread of its own: whoever stops in the midst of its first words holds nobody up.
struct Desk {
    joins: Joins,
    cancel: Cancel,
    /// A container is being received; in a process that waits for one this stays.
    busy: AtomicBool,
    callers: AtomicUsize,
}

impl Desk {
    fn answer_all(self: Arc<Self>, listener: Listener, give: &SyncSender<(Wire, Peer)>) {
        while !self.cancel.is_raised() {
            let caller = match listener.accept(LOOK_UP) {
                Ok(caller) => caller,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => continue,
                Err(error) => {
                    tracing::warn!(%error, "a caller was lost");
                    // such as too many open files: not to be tried at once
                    std::thread::sleep(LOOK_UP);
                    continue;
                }
            };
            if self.callers.fetch_add(1, Ordering::AcqRel) >= CALLERS {
                self.callers.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(place = caller.place, "too many callers at once");
                continue;
            }
            let (desk, give) = (self.clone(), give.clone());
            std::thread::spawn(move || {
                let place = caller.place.clone();
                if let Err(why) = desk.answer(caller, &give) {
                    tracing::warn!("{place} was turned away: {why}");
                }
                desk.callers.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }

    fn answer(&self, caller: Caller, give: &SyncSender<(Wire, Peer)>) -> Result<(), String> {
        let (transport, peer) = caller.answer(|| Identity::load(&config_dir())).map_err(|error| {
            let known = TlsError::within(&error);
            let hint = known.and_then(TlsError::hint).map(|hint| format!("; {hint}"));
            format!("{error}{}", hint.unwrap_or_default())
        })?;
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
                give.send((wire, peer)).map_err(|_| "nobody waits any more".into())
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
