//! `godwit node`: what this host gives its neighbours, and which neighbours there are.

mod custodian;

use super::reception::{self, FIRST_WORD};
use super::{Trouble, cancel_on_signal, on_signal};
use crate::args::{Args, Neighbours, NodeCommand, NodeServeArgs};
use crate::config::{Config, Name};
use crate::draw::Draw;
use custodian::Custodian;
use godwit_migration::{Cancel, Failure, FailureKind, host_name};
use godwit_neighbours::{Acquaintance, Keeper, attend};
use godwit_restore::Policy;
use godwit_store::{Store, store_of};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Incoming, Message, Peer, Refusal, Transport, Wire, WireError};
use std::path::PathBuf;
use std::time::Instant;

/// Visitors at once.
const VISITORS: usize = 64;
/// What visitors in the open could do.
const DANGER: &str = "read content of this host's store, and fill it";

pub fn run(args: &Args, command: &NodeCommand, draw: &Draw) -> Result<u8, Trouble> {
    match command {
        NodeCommand::Serve(command) => Ok(serve(args, command, draw)?),
        NodeCommand::List { neighbours, insecure } => Ok(list(neighbours.clone(), *insecure, draw)?),
    }
}

/// What visitors are answered from.
struct House {
    root: PathBuf,
    quota: Option<u64>,
    policy: Policy,
    host: String,
    cancel: Cancel,
}

fn serve(args: &Args, command: &NodeServeArgs, draw: &Draw) -> Result<u8, Failure> {
    let house = House {
        root: std::path::absolute(&args.global.root).unwrap_or(args.global.root.clone()),
        quota: command.quota,
        policy: reception::policy()?,
        host: host_name(),
        cancel: if command.stdio { on_signal(Cancel::hang_up) } else { cancel_on_signal() },
    };
    if command.stdio {
        let (transport, peer) = reception::of_ssh()?;
        let answered = house.answer(Box::new(transport), &peer);
        // the visitor tells whom it concerns
        return Ok(u8::from(answered.is_err()));
    }
    // what is no store is said now, and not to the first visitor
    let store = store_of(&house.root);
    Store::find(&store, None)
        .map_err(|error| super::store::failure("the store cannot be used", &error, &store))?;
    let (listener, address) =
        reception::listen(command.listen.as_deref().unwrap_or_default(), command.insecure, DANGER, draw)?;
    draw.talk(&format!("giving content of `{}` on {address}", store.display()));
    let cancel = house.cancel.clone();
    reception::receive_all(&listener, &cancel, VISITORS, move |transport, peer| {
        house.answer(transport, peer).map_err(|error| error.to_string())
    });
    Ok(0)
}

impl House {
    fn answer(&self, transport: Box<dyn Transport>, peer: &Peer) -> Result<(), WireError> {
        let mut wire = Wire::open(transport, self.cancel.clone(), FIRST_WORD)?;
        match wire.hear()? {
            Incoming::Message(Message::Visit { .. }) => {}
            other => return Err(unexpected(&other, "a visit")),
        }
        let (may_ask, may_keep) = (self.policy.may_ask(&peer.name), self.policy.may_keep(&peer.name));
        if let (Err(refusal), Err(_)) = (&may_ask, &may_keep) {
            let refusal = refusal.clone();
            let failure = Failure::new(FailureKind::Refused, refusal.reason);
            let failure = refusal.hint.into_iter().fold(failure, Failure::hint);
            wire.say(&Message::Failed { failure })?;
            return Ok(());
        }
        // looked for anew each time: it may have been made, or deleted, since
        let store = Store::find(&store_of(&self.root), None).unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing can be given");
            None
        });
        let given = store.as_ref().filter(|_| may_ask.is_ok());
        let mut custodian = Custodian::new(&self.root, self.quota);
        let keeper = match may_keep {
            Ok(()) => Ok(&mut custodian as &mut dyn Keeper),
            Err(Refusal { reason, hint }) => {
                Err(hint.map_or(reason.clone(), |hint| format!("{reason}: {hint}")))
            }
        };
        let attended = attend(&mut wire, given, &self.host, keeper)?;
        tracing::info!(peer = peer.shown, ?attended, "a visitor went");
        Ok(())
    }
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
        let mut acquaintance = Acquaintance::new(address.clone(), &host, Cancel::default());
        let visited = acquaintance.visit();
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
