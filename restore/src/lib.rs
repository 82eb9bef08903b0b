//! The destination half: preflight, assembly, restore, hold, go.
//!
//! [`destination::receive`] is the table of contents; it mirrors `source.rs` of the checkpoint crate.

mod compose;
pub mod destination;
mod images;
mod pages;
pub mod policy;
pub mod preflight;
pub mod recovery;
mod resume;
mod streams;
mod trees;

pub use destination::{Host, Outcome, receive};
pub use policy::Policy;
pub use streams::{Joins, pass_on};
