//! Bytes between hosts: wire protocol, transports, file trees, delta.

pub mod address;
pub mod compression;
pub mod handover;
pub mod limit;
pub mod message;
pub mod stale;
pub mod streams;
mod sys;
pub mod tls;
pub mod transport;
pub mod tree;
pub mod wire;

pub use address::Address;
pub use compression::Compression;
pub use limit::Bandwidth;
pub use message::{HostFacts, Message, Offer, Refusal, TreeBase, TreeId, TreeKind, TreeOffer};
pub use streams::PageStreams;
pub use transport::{Caller, Descriptors, Elsewhere, Listener, Peer, Transport, connect, connect_tls};
pub use wire::{Incoming, Wire, WireError};
