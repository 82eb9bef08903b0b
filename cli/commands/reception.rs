//! Where callers are received, each in a thread of its own: whoever stops in the midst of its first words holds nobody up.

use super::object_storage;
use crate::draw::Draw;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_object_storage::{PlaceName, Post};
use godwit_restore::Policy;
use godwit_transfer::tls::{Fingerprint, Identity, TlsError, config_dir};
use godwit_transfer::{Address, Caller, Descriptors, Listener, Peer, Transport};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long a caller may take for its first word.
pub const FIRST_WORD: Duration = Duration::from_secs(30);
/// How often a wait looks whether somebody pressed Ctrl-C.
pub const LOOK_UP: Duration = Duration::from_millis(100);

/// What this host allows whom.
///
/// # Errors
/// When the file cannot be understood.
pub fn policy() -> Result<Policy, Failure> {
    Policy::load(&config_dir()).map_err(|error| {
        Failure::new(FailureKind::Usage, "the policy of this host cannot be used").because_of(&error)
    })
}

/// The one caller whom ssh has brought, on standard input and output.
///
/// # Errors
/// When they are closed.
pub fn of_ssh() -> Result<(Descriptors, Peer), Failure> {
    let transport = Descriptors::stdio().map_err(|error| {
        Failure::new(FailureKind::Usage, "standard input or output is closed").because_of(&error)
    })?;
    let from = std::env::var("SSH_CONNECTION").ok();
    let from = from.and_then(|text| text.split(' ').next().map(str::to_owned));
    let peer = match from {
        Some(from) => Peer { name: format!("ssh:{from}"), shown: format!("ssh from {from}") },
        None => Peer { name: "ssh:".into(), shown: "standard input".into() },
    };
    Ok((transport, peer))
}

/// Listens at `address`, and says what there is to be said of that; plain TCP only for whoever says so. `danger`: what
/// callers in the open could do.
///
/// # Errors
/// When it is exposed and nobody said that it may be, or cannot be had.
pub fn listen(address: &Address, insecure: bool, danger: &str, draw: &Draw) -> Result<Listener, Failure> {
    if let Address::Tls { .. } = address {
        own_key(draw)?;
    }
    if address.is_exposed() {
        let exposed = format!(
            "`{address}` is neither encrypted nor authenticated: anybody who reaches it could {danger}"
        );
        if !insecure {
            return Err(Failure::new(FailureKind::Usage, exposed)
                .hint("use `tls://`, or ssh, which needs no listener; or add `--insecure` if the network is yours alone"));
        }
        draw.talk(&format!("warning: {exposed}"));
    }
    Listener::bind(address).map_err(|error| {
        Failure::new(FailureKind::Failed, format!("cannot listen on `{address}`")).because_of(&error)
    })
}

/// This host's key, which whoever calls must know.
fn own_key(draw: &Draw) -> Result<Fingerprint, Failure> {
    let identity = Identity::load(&config_dir()).map_err(|error| super::keys::failure(&error))?;
    draw.talk(&format!("this host's key is {}", identity.fingerprint));
    Ok(identity.fingerprint)
}

/// Waits at a place for calls to this host's key.
///
/// # Errors
/// When the host has none, or the place says no.
pub fn listen_at(place: &PlaceName, cancel: &Cancel, draw: &Draw) -> Result<Listener, Failure> {
    let key = own_key(draw)?;
    let letterbox = Post::open(place, cancel.clone()).and_then(|post| post.listen(key));
    let letterbox = letterbox.map_err(|error| {
        object_storage::failure(&format!("cannot wait for calls at `{place}`"), &error, Path::new(""))
    })?;
    Ok(Listener::Elsewhere(Box::new(letterbox)))
}

/// Has `answer` done for each caller that has proved who it is, until `cancel` is raised. `most`: callers at once. Whoever is turned away
/// is named in the log.
pub fn receive_all(
    listener: &Listener,
    cancel: &Cancel,
    most: usize,
    answer: impl Fn(Box<dyn Transport>, &Peer) -> Result<(), String> + Send + Sync + 'static,
) {
    let (answer, present) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    while !cancel.is_raised() {
        let caller = match listener.accept(LOOK_UP) {
            Ok(caller) => caller,
            Err(error) if error.kind() == ErrorKind::TimedOut => continue,
            Err(error) => {
                tracing::warn!(%error, "a caller was lost");
                // such as too many open files: not to be tried at once
                std::thread::sleep(LOOK_UP);
                continue;
            }
        };
        if present.fetch_add(1, Ordering::AcqRel) >= most {
            present.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(place = caller.place, "too many callers at once");
            continue;
        }
        let (answer, present) = (answer.clone(), present.clone());
        std::thread::spawn(move || {
            let place = caller.place.clone();
            if let Err(why) = proved(caller).and_then(|(transport, peer)| answer(transport, &peer)) {
                tracing::warn!("{place} was turned away: {why}");
            }
            present.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

fn proved(caller: Caller) -> Result<(Box<dyn Transport>, Peer), String> {
    caller.answer(|| Identity::load(&config_dir())).map_err(|error| {
        let hint = TlsError::within(&error).and_then(TlsError::hint);
        format!("{error}{}", hint.map(|hint| format!("; {hint}")).unwrap_or_default())
    })
}
