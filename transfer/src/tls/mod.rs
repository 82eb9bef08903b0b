//! TLS between hosts that know each other's keys: no names of a certificate authority, no dates, only fingerprints, as
//! with ssh's `known_hosts` turned both ways.
//!
//! Only TLS 1.3, both sides show a certificate, nothing is resumed and nothing sent before the handshake is over.

mod carrier;
mod error;
mod fingerprint;
mod identity;
mod peers;
mod pinning;
mod stream;

pub use carrier::Carrier;
pub use error::TlsError;
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use identity::{Identity, config_dir};
pub use peers::{Peers, PeersError, is_peer_name};
pub use stream::{TlsStream, answer, call};
