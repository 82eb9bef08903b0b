//! The past of volumes, on one node.
//!
//! - A *snapshot* is what a volume was at one time: a tree in the content store, with its volume, host and time ([`history`]).
//! - Where the file system can show a volume as of one moment, that is what is read ([`moment`]).
//! - Each stems from others, and a volume belongs to one node: histories of two nodes that have diverged are known ([`lineage`]).
//! - What a file system keeps itself goes to other nodes as its own stream ([`stream`]).
//! - Two of them, or one and the volume as it is, differ in entries ([`difference`]).
//! - Snapshots are made by hand, or soon after changes ([`rhythm`]).
//! - A policy says which snapshots stay ([`retention`]).
//! - A *rollback* makes a volume what it was, keeps what it had become as one more snapshot, and is refused while somebody
//!   uses the volume ([`rollback`], [`users`]).
//!
//! Snapshots are the store's: there is no list of them anywhere else that could say something else.

pub mod difference;
mod error;
pub mod history;
pub mod lineage;
mod moment;
mod mounts;
mod native;
pub mod retention;
pub mod rhythm;
pub mod rollback;
pub mod snapshot;
pub mod stream;
pub mod users;
pub mod volume;

pub use error::VolumeError;
pub use history::{History, Taken};
pub use lineage::{Divergence, End};
pub use moment::{Kept, MomentError};
pub use retention::{Policy, Reason};
pub use rhythm::Rhythm;
pub use snapshot::{Cause, Snapshot};
pub use stream::{Awaited, Reception, Sending};
pub use volume::Volume;
