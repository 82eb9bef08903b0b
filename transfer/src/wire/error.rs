//! What can go wrong between the two halves.

use super::version::{NEWEST, OLDEST};
use godwit_migration::Failure;
use std::io;
use std::time::Duration;

/// What went wrong between the two halves.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke.
    #[error("the connection broke{}", after.as_ref().map_or(String::new(), |why| format!(" ({why})")))]
    Broken {
        /// What the kernel said.
        #[source]
        source: io::Error,
        /// What the carrier said, for instance the exit status of ssh.
        after: Option<String>,
    },
    /// The other half closed the connection.
    #[error("the other side closed the connection{}", after.as_ref().map_or(String::new(), |why| format!(" ({why})")))]
    Closed {
        /// What the carrier said.
        after: Option<String>,
    },
    /// Nothing came, or nothing could be sent, for too long.
    #[error("the other side was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// Whoever is there does not speak this protocol.
    #[error("whoever answers there is not godwit (it began with `{}`)", .0.escape_ascii())]
    NotGodwit(Vec<u8>),
    /// No common version.
    #[error(
        "the godwit there is {}: it speaks versions {theirs_oldest} to {theirs_newest} of the wire, this one {OLDEST} to {NEWEST}",
        if *theirs_newest < NEWEST { "older" } else { "newer" }
    )]
    Version {
        /// Its oldest.
        theirs_oldest: u16,
        /// Its newest.
        theirs_newest: u16,
    },
    /// Bytes that cannot be.
    #[error("the other side sent what cannot be: {0}")]
    Malformed(String),
    /// A message in the wrong place.
    #[error("the other side said `{got}` where {wanted} was due")]
    Unexpected {
        /// What came.
        got: String,
        /// What should have come.
        wanted: String,
    },
    /// The other half gave up, and said why.
    #[error("{0}")]
    Peer(Box<Failure>),
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl WireError {
    /// Whether the same may succeed at another time: the link was lost, rather than anything said over it.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Closed { .. } | Self::Silent(_))
    }
}
