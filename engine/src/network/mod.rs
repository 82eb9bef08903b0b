//! A container's own network: captured at the source, rebuilt at the destination, locked while it moves.
//!
//! - [`Namespace`]: a network namespace and work done inside it
//! - [`NetworkState`]: interfaces, addresses, routes and sysctls, as data that travels
//! - [`RebuiltNetwork`]: the destination's copy, unreachable until [`RebuiltNetwork::go`]
//! - [`NetworkAttachment`]: the source's end: down before Go, up again on rollback, removed at completion
//! - [`NetworkLock`]: drops everything in and out while the container is frozen or moving
//! - [`Gate`]: the frames the lock dropped, kept and replayed, so that no peer waits for its retransmission timer

mod announce;
mod attachment;
mod command;
mod criu_lock;
mod drops;
mod frames;
mod gate;
mod lock;
mod metrics;
mod namespace;
mod netlink;
mod plan;
mod rebuild;
mod rule;
mod screen;
mod state;
mod sysctl;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use announce::announce;
pub use attachment::NetworkAttachment;
pub use criu_lock::remove_criu_lock;
pub(crate) use criu_lock::{LockTable, lock_tables};
pub use frames::Frame;
pub use gate::{FramesByLink, Gate, forward};
pub use lock::NetworkLock;
pub use metrics::Acquaintance;
pub use namespace::Namespace;
pub use plan::{NetworkPlan, ParsePlanError};
pub use rebuild::{HostLink, NetworkRecord, RebuiltNetwork};
pub use screen::Screen;
pub use state::{Address, HostPeer, Link, NetworkState, Route};
pub use sysctl::Sysctl;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace could not be opened or entered.
    #[error("cannot enter network namespace `{}`: {source}", path.display())]
    Namespace {
        /// Path of the namespace.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The container shares the network namespace of the host: there is nothing of its own to move.
    #[error("`{}` is the host's own network namespace, not one of the container", .0.display())]
    HostNetwork(PathBuf),
    /// A tool could not be run, or failed.
    #[error("`{command}` failed: {reason}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status and the last of its standard error.
        reason: String,
    },
    /// A netlink request was refused.
    #[error("cannot {what}: {source}")]
    Netlink {
        /// What was asked for.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A packet socket could not be opened or used.
    #[error("packet socket on `{interface}`: {source}")]
    Packet {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// `ip -j` said something this version does not understand.
    #[error("cannot read the output of `{command}`: {reason}")]
    Unreadable {
        /// The command line.
        command: String,
        /// What is wrong with its output.
        reason: String,
    },
    /// The network has something that cannot be rebuilt elsewhere.
    #[error("{what} cannot be rebuilt on another host: {why}")]
    Unsupported {
        /// The interface, route or rule.
        what: String,
        /// Why, and what would help.
        why: String,
    },
    /// A name to be created exists already.
    #[error("{0} exists already")]
    Taken(String),
    /// Something the network needs on this host does not exist.
    #[error("{0} does not exist on this host")]
    Missing(String),
    /// The link did not come up in time.
    #[error("interface `{0}` did not come up within {1} ms")]
    NotUp(String, u128),
}

/// Result of a network operation.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;
