//! All that is spoken with CRIU: RPC, images, statistics, log explainer.
//!
//! - [`CriuBinary`] finds a criu and says what it and the kernel can do.
//! - [`Session`] is one `criu swrk` process and the socket to it; [`DumpOptions`] and [`RestoreOptions`] run on it.
//! - [`relay`] stands between a container runtime and the CRIU that it starts.
//! - [`pageless`] dumps everything but the pages.
//! - [`images`] reads and writes the image files godwit has to understand; [`images::flatten()`] resolves a chain of pre-dumps.
//! - [`log`] turns a CRIU log into a cause and a hint.

pub mod binary;
pub mod cpu;
pub mod dump;
pub mod error;
pub mod images;
pub mod log;
pub mod pageless;
pub mod relay;
pub mod restore;
pub mod session;
mod sys;

pub use binary::{CriuBinary, Features, Linkage, Version};
pub use dump::{DumpOptions, DumpReport, PageServer};
pub use error::CriuError;
pub use log::Explanation;
pub use restore::{RestoreOptions, RestoreReport};
pub use session::{Bind, Notify, NotifyAnswer, Session, SessionOptions};
