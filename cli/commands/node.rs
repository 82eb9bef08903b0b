//! `godwit node`: what this host gives its neighbours.

mod custodian;
mod giver;

use super::reception::{self, FIRST_WORD};
use super::{Trouble, cancel_on_signal, nodes, on_signal};
use crate::args::{Args, Neighbours, NodeCommand, NodeServeArgs};
use crate::draw::Draw;
use custodian::Custodian;
use giver::Treasurer;
use godwit_migration::{Cancel, Failure, FailureKind, host_name};
use godwit_neighbours::{Giver, Keeper, Place, Registration, TTL, attend};
use godwit_restore::Policy;
use godwit_store::{Store, store_of};
use godwit_transfer::tls::config_dir;
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Address, Incoming, Message, Peer, Refusal, Transport, Wire, WireError};
use std::net::IpAddr;
use std::path::PathBuf;

/// Visitors at once.
const VISITORS: usize = 64;
/// What visitors in the open could do.
const DANGER: &str = "read content of this host's store, and fill it";

pub fn run(args: &Args, command: &NodeCommand, draw: &Draw) -> Result<u8, Trouble> {
    match command {
        NodeCommand::Serve(command) => Ok(serve(args, command, draw)?),
        NodeCommand::List { neighbours, catalog } => Ok(nodes::list(neighbours.clone(), catalog, draw)?),
        NodeCommand::Find { what, catalog } => Ok(nodes::find(what, catalog, draw)?),
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
    let listen = command.listen.as_ref().ok_or_else(|| {
        Failure::new(FailureKind::Usage, "where to listen was not said")
            .hint("`--listen URL`, or `godwit config set node.listen URL`; or `--stdio`")
    })?;
    // what is no store is said now, and not to the first visitor
    let store = store_of(&house.root);
    Store::find(&store, None)
        .map_err(|error| super::store::failure("the store cannot be used", &error, &store))?;
    let listed = command
        .catalog
        .as_ref()
        .map(|place| registration(&house, (place, listen), command, draw))
        .transpose()?;
    let listener = reception::listen(listen, command.insecure, DANGER, draw)?;
    draw.talk(&format!("giving content of `{}` on {listen}", store.display()));
    let cancel = house.cancel.clone();
    std::thread::scope(|scope| {
        if let Some(listed) = listed {
            scope.spawn(|| listed.keep(&cancel, |text| draw.talk(text)));
        }
        reception::receive_all(&listener, &cancel, VISITORS, move |transport, peer| {
            house.answer(transport, peer).map_err(|error| error.to_string())
        });
    });
    Ok(0)
}

/// This node's part of the catalog.
fn registration(
    house: &House,
    (place, listens): (&Place, &Address),
    command: &NodeServeArgs,
    draw: &Draw,
) -> Result<Registration, Failure> {
    nodes::refuse_exposed_catalog(place, command.insecure)?;
    let address = match &command.advertise {
        Some(address) => Some(address.clone()),
        None => reachable(listens, &house.host),
    };
    let address = address.ok_or_else(|| {
        Failure::new(FailureKind::Usage, format!("nobody else can reach `{listens}`"))
            .hint("say where others reach this node: `--advertise tls://HOST`")
    })?;
    draw.talk(&format!("this node is `{address}` in the catalog {place}"));
    Registration::new(place, &config_dir(), &address, &house.host, store_of(&house.root), TTL)
        .map_err(|error| nodes::unusable(place, &error))
}

/// Where others reach what listens here, if they can.
fn reachable(listens: &Address, own_name: &str) -> Option<Address> {
    let is_any = |host: &str| host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    match listens.clone() {
        Address::Tls { name, host, port } if is_any(&host) => {
            Some(Address::Tls { name, host: own_name.to_owned(), port })
        }
        Address::Tcp { host, port } if is_any(&host) => {
            Some(Address::Tcp { host: own_name.to_owned(), port })
        }
        Address::Unix(_) => None,
        other => Some(other),
    }
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
        let mut treasurer = Treasurer::new(&self.root, self.quota);
        let giver = may_ask.is_ok().then_some(&mut treasurer as &mut dyn Giver);
        let attended = attend(&mut wire, given, &self.host, giver, keeper)?;
        tracing::info!(peer = peer.shown, ?attended, "a visitor went");
        Ok(())
    }
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
