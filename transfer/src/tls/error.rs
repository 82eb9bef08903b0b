//! Why a connection over TLS does not come about, and what to do about it.

use super::{Fingerprint, PeersError};
use std::io;
use std::path::PathBuf;

/// Why there is no connection, or no key to make one with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// This host has no key yet.
    #[error("this host has no key: there is no `{}`", .0.display())]
    NoKey(PathBuf),
    /// A key is there already.
    #[error("`{}` exists already", .0.display())]
    KeyExists(PathBuf),
    /// Others could read the key.
    #[error("`{}` can be read by others (mode {mode:03o})", path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file of this host's own.
    #[error("cannot {act} `{}`", path.display())]
    File {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that does not hold what it should.
    #[error("`{}` holds no usable {what}: {why}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No key could be made.
    #[error("no key could be made: {0}")]
    Generate(String),
    /// The file of trusted hosts.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// Bytes that are no certificate.
    #[error("what was shown is no certificate")]
    Certificate(#[source] rustls::Error),
    /// A host that this one does not know.
    #[error("`{place}` shows the key {theirs}, which this host does not trust (its own is {ours})")]
    Unknown {
        /// Who: as the user wrote it, or where the connection came from.
        place: String,
        /// The name it would be trusted by.
        name: String,
        /// Its key.
        theirs: Fingerprint,
        /// This host's.
        ours: Fingerprint,
    },
    /// A host that is to be called, and that this one does not know.
    #[error("this host trusts nobody called `{0}`")]
    NoPeer(String),
    /// Another host than the one that was called.
    #[error("`{place}` shows the key {theirs} of `{is}`, not that of `{expected}`")]
    Another {
        /// As the user wrote it.
        place: String,
        /// Who should be there.
        expected: String,
        /// Who is there.
        is: String,
        /// Its key.
        theirs: Fingerprint,
    },
    /// The host that was called has another key than it had.
    #[error("`{place}` shows the key {theirs}, but `{expected}` has the key {trusted}")]
    Changed {
        /// As the user wrote it.
        place: String,
        /// Who should be there.
        expected: String,
        /// Its key, as this host knows it.
        trusted: Fingerprint,
        /// The key that was shown.
        theirs: Fingerprint,
    },
    /// The other host does not know this one.
    #[error("`{place}` (its key is {theirs}) does not trust this host, whose key is {ours}")]
    NotTrusted {
        /// As the user wrote it.
        place: String,
        /// The name of this host.
        name: String,
        /// The other host's key.
        theirs: Fingerprint,
        /// This host's.
        ours: Fingerprint,
    },
    /// No certificate was shown at all.
    #[error("`{0}` showed no certificate")]
    Nobody(String),
    /// Anything else that the protocol does not allow.
    #[error("`{place}` and this host do not agree about TLS: {why}")]
    Protocol {
        /// Who.
        place: String,
        /// What is wrong.
        why: String,
    },
}

impl TlsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            TlsError::NoKey(_) => "make one: `godwit keys new`".into(),
            TlsError::KeyExists(path) => format!(
                "`godwit keys show` shows it; to replace it remove `{}` first: every host that trusts it must be told",
                path.display()
            ),
            TlsError::Exposed { path, .. } => {
                format!("it is no secret any more: make a new one, or `chmod 600 {}`", path.display())
            }
            TlsError::Unknown { name, theirs, .. } => format!(
                "if `godwit keys show` there prints the same, run here: `godwit keys trust {name} {theirs}`"
            ),
            TlsError::NoPeer(name) => format!(
                "`godwit keys show` there prints its key; run here: `godwit keys trust {name} sha256:…`"
            ),
            TlsError::Another { is, place, expected, .. } => format!(
                "if `{is}` is meant, write `{}`",
                place
                    .replacen("tls://", &format!("tls://{is}@"), 1)
                    .replace(&format!("{expected}@{expected}"), expected)
            ),
            TlsError::Changed { expected, theirs, .. } => format!(
                "somebody may be in between; if it was given a new key, run here: `godwit keys forget {expected} && godwit keys trust {expected} {theirs}`"
            ),
            TlsError::NotTrusted { name, ours, .. } => {
                format!("run there: `godwit keys trust {name} {ours}`")
            }
            _ => return None,
        })
    }

    /// The TLS error within another one, however deep.
    pub fn within<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            // an io::Error shows what it wraps only so: its source is the source of that
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(found) = wrapped.and_then(|inner| inner.downcast_ref::<Self>()) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match &error {
            TlsError::NoKey(_) => io::ErrorKind::NotFound,
            TlsError::Protocol { .. } | TlsError::Certificate(_) => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, error)
    }
}
