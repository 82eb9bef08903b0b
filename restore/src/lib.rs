//! The destination half: preflight, assembly, restore, hold, go.
//!
//! [`destination::receive`] is the table of contents; it mirrors `source.rs` of the checkpoint crate.

pub mod destination;
mod images;
pub mod preflight;
mod trees;

pub use destination::{Host, Outcome, receive};
