//! The source half: what is written by a running process tree, found and read from outside, while nothing stops.

mod descriptors;
mod inject;
pub(crate) mod maps;
mod method;
mod read;
mod rules;
mod scan;
mod shared;
mod soft_dirty;
mod space;
mod stats;
mod tree;
mod walk;

pub use method::{Choice, Method};
pub use rules::Rules;
pub use stats::{RoundSeconds, RoundStats, Unreadable, Untracked};
pub use tree::{Registrations, TreeMemory};

use crate::page::ImageId;
use nix::errno::Errno;

/// Takes pages.
pub trait PageSink {
    /// Content of consecutive pages: `bytes.len()` is a multiple of [`crate::PAGE_SIZE`]. The same page can come several
    /// times in a round; the last content counts.
    ///
    /// # Errors
    ///
    /// Stop the round.
    fn pages(&mut self, image: ImageId, address: u64, bytes: &[u8]) -> Result<(), SinkError>;
}

/// An error of a receiver of pages.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SinkError(pub Box<dyn std::error::Error + Send + Sync>);

/// Why a round failed. A task that ends, executes another program or gives up memory meanwhile is no failure.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The receiver refused pages.
    #[error("pages could not be handed over: {0}")]
    Sink(#[source] SinkError),
    /// The kernel does not have the method.
    #[error("writes cannot be followed: {0}")]
    Method(String),
    /// A task cannot be looked at.
    #[error("cannot {what} task {pid}: {source}")]
    Task {
        /// Its host pid.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Asking what was written failed.
    #[error("cannot find the written pages of task {pid}: {}", errno.desc().to_lowercase())]
    Scan {
        /// Its host pid.
        pid: i32,
        /// Why.
        errno: Errno,
    },
    /// A shared object cannot be read.
    #[error("cannot read shared object `{name}`: {source}")]
    Object {
        /// Its name in /proc/PID/maps.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
}
