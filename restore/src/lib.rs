//! The destination half: preflight, assembly, restore, hold, go.
//!
//! [`destination::receive`] is the table of contents; it mirrors `source.rs` of the checkpoint crate.

mod compose;
mod cooperation;
pub mod destination;
mod error;
mod images;
mod job;
mod negotiation;
mod pages;
pub mod parked;
pub mod policy;
pub mod preflight;
mod processes;
pub mod recovery;
mod resume;
mod rollback;
mod streams;
mod trees;
mod volumes;

pub use destination::{Host, Outcome, receive};
pub use parked::Parking;
pub use policy::Policy;
pub use streams::{Joins, pass_on};
