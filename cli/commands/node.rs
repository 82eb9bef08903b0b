//! `godwit node`: what this host gives its neighbours, and which neighbours there are.

use super::receive::{exposed, listening_address};
use super::{Trouble, cancel_on_signal, on_signal};
use crate::args::{Args, Neighbours, NodeCommand, NodeServeArgs};
use crate::config::{Config, Name};
use crate::draw::Draw;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_neighbours::{Visit, attend};
use godwit_restore::Policy;
use godwit_store::Store;
use godwit_transfer::tls::{Identity, TlsError, config_dir};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{
    Address, Caller, Descriptors, Incoming, Listener, Message, Peer, Transport, Wire, WireError, connect,
};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a visitor may take for its first word.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// How often a wait looks whether somebody pressed Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Visitors at once.
const VISITORS: usize = 64;
/// What ssh runs at a neighbour's.
const REMOTE_COMMAND: &str = "godwit node serve --stdio";

pub fn run(args: &Args, command: &NodeCommand, draw: &Draw) -> Result<u8, Trouble> {
    match command {
        NodeCommand::Serve(command) => Ok(serve(args, command, draw)?),
        NodeCommand::List { neighbours, insecure } => Ok(list(neighbours.clone(), *insecure, draw)?),
    }
}

/// What visitors are answered from.
struct House {
    store: PathBuf,
    policy: Policy,
    host: String,
    cancel: Cancel,
    visitors: AtomicUsize,
}

fn serve(args: &Args, command: &NodeServeArgs, draw: &Draw) -> Result<u8, Failure> {
    let policy = Policy::load(&config_dir()).map_err(|error| {
        Failure::new(FailureKind::Usage, "the policy of this host cannot be used").because_of(&error)
    })?;
    let house = House {
        store: args.global.root.join("store"),
        policy,
        host: host_name(),
        cancel: if command.stdio { on_signal(Cancel::hang_up) } else { cancel_on_signal() },
        visitors: AtomicUsize::new(0),
    };
    if command.stdio {
        let from = std::env::var("SSH_CONNECTION").unwrap_or_default();
        let peer = format!("ssh:{}", from.split(' ').next().unwrap_or_default());
        let transport = Descriptors::stdio().map_err(|error| {
            Failure::new(FailureKind::Usage, "standard input or output is closed").because_of(&error)
        })?;
        let answered = house.answer(Box::new(transport), &Peer { shown: peer.clone(), name: peer });
        // the visitor tells whom it concerns
        return Ok(u8::from(answered.is_err()));
    }
    let address = listening_address(command.listen.as_deref().unwrap_or_default(), command.insecure)?;
    if let Address::Tls { .. } = address {
        let identity = Identity::load(&config_dir()).map_err(|error| super::keys::failure(&error))?;
        draw.talk(&format!("this host's key is {}", identity.fingerprint));
    }
    if address.is_exposed() {
        draw.talk(&format!("warning: {}", exposed(&address, "read content of this host's store")));
    }
    // what is no store is said now, and not to the first visitor
    Store::find(&house.store, None)
        .map_err(|error| super::store::failure("the store cannot be used", &error, &house.store))?;
    let listener = Listener::bind(&address).map_err(|error| {
        Failure::new(FailureKind::Failed, format!("cannot listen on `{address}`")).because_of(&error)
    })?;
    draw.talk(&format!("giving content of `{}` on {address}", house.store.display()));
    let house = Arc::new(house);
    while !house.cancel.is_raised() {
        match listener.accept(LOOK_UP) {
            Ok(caller) => welcome(&house, caller),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => {
                tracing::warn!(%error, "a visitor was lost");
                std::thread::sleep(LOOK_UP);
            }
        }
    }
    Ok(0)
}

/// Answers a caller in a thread of its own.
fn welcome(house: &Arc<House>, caller: Caller) {
    if house.visitors.fetch_add(1, Ordering::AcqRel) >= VISITORS {
        house.visitors.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(place = caller.place, "too many visitors at once");
        return;
    }
    let house = house.clone();
    std::thread::spawn(move || {
        let place = caller.place.clone();
        let answered = caller.answer(|| Identity::load(&config_dir())).map_err(|error| {
            let hint = TlsError::within(&error).and_then(TlsError::hint);
            format!("{error}{}", hint.map(|hint| format!("; {hint}")).unwrap_or_default())
        });
        let answered = answered
            .and_then(|(transport, peer)| house.answer(transport, &peer).map_err(|error| error.to_string()));
        if let Err(why) = answered {
            tracing::warn!("{place} was turned away: {why}");
        }
        house.visitors.fetch_sub(1, Ordering::AcqRel);
    });
}

impl House {
    fn answer(&self, transport: Box<dyn Transport>, peer: &Peer) -> Result<(), WireError> {
        let mut wire = Wire::open(transport, self.cancel.clone(), FIRST_WORD)?;
        match wire.hear()? {
            Incoming::Message(Message::Visit { .. }) => {}
            other => return Err(unexpected(&other, "a visit")),
        }
        if let Err(refusal) = self.policy.may_ask(&peer.name) {
            let failure = Failure::new(FailureKind::Refused, refusal.reason);
            let failure = refusal.hint.into_iter().fold(failure, Failure::hint);
            wire.say(&Message::Failed { failure })?;
            return Ok(());
        }
        // looked for anew each time: it may have been made, or deleted, since
        let store = Store::find(&self.store, None).unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing can be given");
            None
        });
        let attended = attend(&mut wire, store.as_ref(), &self.host)?;
        tracing::info!(peer = peer.shown, ?attended, "a visitor went");
        Ok(())
    }
}

fn host_name() -> String {
    let uname = nix::sys::utsname::uname();
    uname.map(|uname| uname.nodename().to_string_lossy().into_owned()).unwrap_or_default()
}

fn list(named: Option<Neighbours>, insecure: bool, draw: &Draw) -> Result<u8, Failure> {
    let neighbours = match named {
        Some(named) => named,
        None => configured()?,
    };
    refuse_exposed(&neighbours, insecure)?;
    let host = host_name();
    let mut silent = 0;
    let mut rows = Vec::new();
    for address in &neighbours.0 {
        let begun = Instant::now();
        let visited =
            connect(address, REMOTE_COMMAND).map_err(|error| error.to_string()).and_then(|transport| {
                Visit::begin(address.to_string(), transport, &host, Cancel::default())
                    .map_err(|error| error.to_string())
            });
        let spent = begun.elapsed();
        silent += usize::from(visited.is_err());
        let line = match &visited {
            Ok(visit) => serde_json::json!({
                "neighbour": address.to_string(), "host": visit.host, "answered_us": spent.as_micros() as u64 }),
            Err(why) => serde_json::json!({ "neighbour": address.to_string(), "failed": why }),
        };
        rows.push(line);
        if !draw.is_json() {
            draw.data(&match visited {
                Ok(visit) => format!("{address}  {}  answered within {} ms", visit.host, spent.as_millis()),
                Err(why) => format!("{address}  {why}"),
            });
        }
    }
    if draw.is_json() {
        draw.json_line(&serde_json::json!({ "message_type": "nodes", "neighbours": rows }));
    } else if rows.is_empty() {
        draw.talk("no neighbours are configured: `godwit config set receive.neighbours URLS`");
    }
    Ok(if silent == 0 { 0 } else { FailureKind::Failed.exit_code() })
}

fn configured() -> Result<Neighbours, Failure> {
    let config = Config::load().map_err(|error| super::config_failure(&error))?;
    let text = Name::find("receive.neighbours").ok().and_then(|name| config.setting(&name).cloned());
    let parsed = text.map(|setting| Neighbours::parse(&setting.value)).transpose();
    Ok(parsed.map_err(|why| Failure::new(FailureKind::Usage, why))?.unwrap_or_default())
}

/// Plain TCP only for whoever says so.
///
/// # Errors
/// Which neighbour would be spoken to in the open.
pub fn refuse_exposed(neighbours: &Neighbours, insecure: bool) -> Result<(), Failure> {
    match neighbours.exposed() {
        Some(address) if !insecure => Err(Failure::new(
            FailureKind::Usage,
            format!("neighbour `{address}` is neither encrypted nor authenticated: anybody on the way could read what it gives"),
        )
        .hint("use `tls://` or ssh; or add `--insecure` if the network is yours alone")),
        _ => Ok(()),
    }
}
