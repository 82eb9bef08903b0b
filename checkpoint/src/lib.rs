//! The source half: preflight, rounds, freeze, dump, switchover.
//!
//! [`source::migrate`] is the table of contents: each line of it is a phase.

pub mod archive;
pub mod dumper;
mod files;
pub mod preflight;
mod rollback;
mod rounds;
pub mod source;
pub mod tracker;

pub use dumper::{Dumped, Dumper};
pub use source::{Job, Order, Parties, Plan, migrate, rehearse};
