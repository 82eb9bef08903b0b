//! The destination half: preflight, assembly, restore, hold, go.
//!
//! [`destination::receive`] is the table of contents; it mirrors `source.rs` of the checkpoint crate.

mod compose;
pub mod destination;
mod images;
mod pages;
pub mod preflight;
mod streams;
mod trees;

pub use destination::{Host, Outcome, receive};
pub use streams::pass_on;
