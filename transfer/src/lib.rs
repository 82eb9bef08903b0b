//! Bytes between hosts: wire protocol, transports, file trees, delta.

pub mod address;
pub mod message;
pub mod stale;
mod sys;
pub mod transport;
pub mod tree;
pub mod wire;

pub use address::Address;
pub use message::{HostFacts, Message, Offer, Refusal, TreeBase, TreeId, TreeKind, TreeOffer};
pub use transport::{Descriptors, Listener, Transport, connect};
pub use wire::{Incoming, Wire, WireError};
