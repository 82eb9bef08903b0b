//! What can go wrong with a place.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_store::StoreError;
use rustls::CertificateError;

/// Why nothing, or not all, came to a place or from it.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It cannot be spoken to at all.
    #[error("it cannot be used: {0}")]
    Unusable(String),
    /// It was asked, and said no or nothing.
    #[error("cannot {act} `{object}`: {why}")]
    Object {
        /// What was tried.
        act: &'static str,
        /// With which object.
        object: String,
        /// What it said.
        why: String,
        /// What kind of no it is.
        refusal: Refusal,
    },
    /// It is there, and not what this godwit knows.
    #[error("`{object}` is nothing that this godwit knows: {why}")]
    Format {
        /// Which object.
        object: String,
        /// What is in it.
        why: String,
    },
    /// Not what was written.
    #[error("`{object}` is damaged: {why}")]
    Damaged {
        /// Which object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is encrypted, and there is no key.
    #[error("`{0}` is encrypted")]
    Sealed(String),
    /// It is encrypted for others.
    #[error("`{0}` is encrypted for others: none of the identities opens it")]
    NotForUs(String),
    /// No such image.
    #[error("there is no {0}")]
    NoImage(String),
    /// Another process of this host puts something there.
    #[error("another godwit of this host is writing to it")]
    Locked,
    /// A file of this host.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// This host's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Who was called there has not answered for so long.
    #[error("nobody has answered for {} s", .0.as_secs())]
    Silent(Duration),
    /// Whoever wanted it does not any more.
    #[error("it was interrupted")]
    Interrupted,
}

/// How a place says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// We may not.
    Denied,
    /// There is no such object, or no such bucket.
    Missing,
    /// Who answers there has not proved to be the server; nothing was said to it.
    Untrusted,
    /// It failed, or nothing was heard of it.
    Failed,
}

/// Longest text of somebody else's that goes into an error, characters.
const LONGEST: usize = 500;

impl PlaceError {
    /// `f` for `map_err`: the failed act, and on which object.
    pub(crate) fn object(
        act: &'static str,
        object: &object_store::path::Path,
    ) -> impl FnOnce(object_store::Error) -> PlaceError + use<> {
        let object = object.to_string();
        move |error| {
            use object_store::Error;
            let said = one_line(&error.to_string());
            let (refusal, why) = match (&error, of_tls(&error)) {
                (_, Some(rustls::Error::InvalidCertificate(why))) => (Refusal::Untrusted, distrust(why)),
                (_, Some(error)) => (Refusal::Failed, format!("{said}: {error}")),
                (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, _) => {
                    (Refusal::Denied, said)
                }
                (Error::NotFound { .. }, _) => (Refusal::Missing, said),
                _ => (Refusal::Failed, said),
            };
            PlaceError::Object { act, object, why, refusal }
        }
    }

    /// `f` for `map_err`: the failed act, and on which file.
    pub(crate) fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError + use<> {
        let path = path.to_owned();
        move |source| PlaceError::Io { act, path, source }
    }

    /// Whether it says that there is no such object.
    pub fn is_missing(&self) -> bool {
        matches!(self, PlaceError::Object { refusal: Refusal::Missing, .. })
    }
}

/// What TLS has said, if that is the cause: whoever passes it on does not repeat it.
fn of_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // its source is the source of what is in it
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = within.map(|within| within as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

/// What is wrong with the certificate of whoever answers.
fn distrust(why: &CertificateError) -> String {
    let why = match why {
        CertificateError::UnknownIssuer => "no authority that counts here has signed it".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            let ago = time.as_secs().saturating_sub(not_after.as_secs());
            format!("it has expired, {} h ago by this host's clock", ago / 3600)
        }
        // as rustls-webpki calls it, which has no type for it here
        CertificateError::Other(why) if why.to_string().contains("CaUsedAsEndEntity") => {
            "it is one of an authority (`CA:TRUE`), which no server may have".to_owned()
        }
        why => one_line(&why.to_string()),
    };
    format!("the certificate of whoever answers there proves nothing: {why}")
}

/// What a server has answered, on one line.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|letter| !letter.is_control()).take(LONGEST).collect()
}
