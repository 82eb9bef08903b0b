//! The source half: preflight, rounds, freeze, dump, switchover.
//!
//! [`source::migrate`] is the table of contents: each line of it is a phase.

pub mod archive;
mod connections;
pub mod dumper;
mod files;
mod pace;
pub mod pages;
pub mod preflight;
mod question;
pub mod recovery;
pub mod resume;
mod rollback;
mod rounds;
pub mod source;
mod throttle;
pub mod tracker;

pub use dumper::{Circumstances, Dumped, Dumper, PagelessDumped, PagelessDumper};
pub use pages::PageReader;
pub use source::{Job, Order, Parties, Plan, migrate, rehearse};
