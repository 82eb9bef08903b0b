//! `godwit keys`: this host's key, and those that it trusts.

use super::Trouble;
use crate::args::KeysCommand;
use crate::draw::Draw;
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::tls::{Fingerprint, Identity, Peers, PeersError, TlsError, config_dir};

pub fn run(command: &KeysCommand, draw: &Draw) -> Result<u8, Trouble> {
    let dir = config_dir();
    match command {
        KeysCommand::New => {
            let identity = Identity::create(&dir, HOST).map_err(|error| failure(&error))?;
            show(&identity, draw);
        }
        KeysCommand::Show => show(&Identity::load(&dir).map_err(|error| failure(&error))?, draw),
        KeysCommand::Trust { name, fingerprint } => {
            let fingerprint: Fingerprint =
                fingerprint.parse().map_err(|error| Failure::new(FailureKind::Usage, format!("{error}")))?;
            let mut peers = load(&dir)?;
            peers.trust(name, fingerprint).map_err(|error| refused(&error))?;
            peers.save(&dir).map_err(|error| failure(&error.into()))?;
            draw.talk(&format!("`{name}` is trusted"));
        }
        KeysCommand::List => list(&load(&dir)?, draw),
        KeysCommand::Forget { name } => {
            let mut peers = load(&dir)?;
            if !peers.forget(name) {
                return Err(Failure::new(FailureKind::NotFound, format!("no host `{name}` is trusted here"))
                    .hint("`godwit keys list` shows those that are")
                    .into());
            }
            peers.save(&dir).map_err(|error| failure(&error.into()))?;
            draw.talk(&format!("`{name}` is trusted no more"));
        }
    }
    Ok(0)
}

/// The subject of every certificate: nobody looks at it, and a certificate need not tell who shows it.
const HOST: &str = "godwit";

fn load(dir: &std::path::Path) -> Result<Peers, Failure> {
    Peers::load(dir).map_err(|error| failure(&error.into()))
}

fn show(identity: &Identity, draw: &Draw) {
    let Identity { name, fingerprint, .. } = identity;
    if draw.is_json() {
        draw.json_line(&serde_json::json!({ "name": name, "fingerprint": fingerprint.to_string() }));
        return;
    }
    draw.data(&format!("{name} {fingerprint}"));
    draw.talk(&format!("for others to trust it: `godwit keys trust {name} {fingerprint}`"));
}

fn list(peers: &Peers, draw: &Draw) {
    if draw.is_json() {
        let all: Vec<_> = peers
            .all()
            .map(|(name, fingerprint)| serde_json::json!({ "name": name, "fingerprint": fingerprint.to_string() }))
            .collect();
        draw.json_line(&serde_json::json!({ "peers": all }));
        return;
    }
    let width = peers.all().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, fingerprint) in peers.all() {
        draw.data(&format!("{name:width$}  {fingerprint}"));
    }
    if peers.all().next().is_none() {
        draw.talk("no host is trusted here");
    }
}

fn refused(error: &PeersError) -> Failure {
    let failure = Failure::new(FailureKind::Usage, error.to_string());
    match error {
        PeersError::Taken { name, .. } => {
            failure.hint(format!("if it was given a new key: `godwit keys forget {name}` first"))
        }
        PeersError::Known(name) => failure.hint(format!("to rename it: `godwit keys forget {name}` first")),
        _ => failure,
    }
}

/// The failure for whatever is wrong with this host's keys.
pub fn failure(error: &TlsError) -> Failure {
    let kind = match error {
        TlsError::KeyExists(_) | TlsError::Peers(PeersError::Content { .. }) => FailureKind::Usage,
        _ => FailureKind::Missing,
    };
    let mut failure = Failure::new(kind, error.to_string());
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        failure = failure.because(cause);
        source = cause.source();
    }
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
