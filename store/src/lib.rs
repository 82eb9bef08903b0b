//! Content by its digest, on one node: what several checkpoints, volumes and layers have in common is kept once.
//!
//! - A *chunk* is a piece of a file, or the pages of a group of addresses, named by its BLAKE3 digest ([`object`]).
//! - A *manifest* says which chunks make a tree or a checkpoint, and is named by its own digest ([`manifest`]).
//! - A *pin* is a name that keeps a manifest, and all that it needs ([`pin`]).
//! - A *lease* keeps what a living process writes or reads, until the process ends ([`lease`]).
//! - Whatever neither of them keeps may go ([`collect`]).
//!
//! Everything in the store can be made anew from elsewhere: whoever deletes it loses copies, and no container.
//! `docs/store.md` describes the format.

mod census;
pub mod check;
pub mod collect;
mod cut;
mod digest;
mod disk;
mod error;
mod ingest;
pub mod lease;
pub mod manifest;
mod materialise;
pub mod object;
mod page_cut;
pub mod pin;
mod plan;
mod record;
mod recut;
pub mod stats;
mod store;
mod unfold;
mod usage;

pub use check::Checked;
pub use collect::{Collected, Goal};
pub use digest::{Digest, Kind, ObjectId};
pub use error::StoreError;
pub use ingest::{Added, Files, Restless, Stood, Writers};
pub use lease::Lease;
pub use manifest::Manifest;
pub use pin::{Pin, PinName};
pub use stats::Stats;
pub use store::{Store, store_of};
pub use unfold::Chunks;
