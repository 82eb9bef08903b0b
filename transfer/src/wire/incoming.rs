//! What can come out of the wire.

use super::WireError;
use crate::message::{Message, TreeId};
use crate::tree::{TreeIndex, TreeOp};
use serde::{Deserialize, Serialize};

/// What can come out of the wire.
#[derive(Debug)]
pub enum Incoming {
    /// Words.
    Message(Message),
    /// One operation on a tree.
    Operation(TreeId, TreeOp),
    /// What lies at a tree's place already.
    Index(TreeId, TreeIndex),
    /// What the network lock held back, by interface.
    Frames(Vec<HeldFrames>),
    /// A batch of memory pages, as the memory crate encodes it.
    Pages(Vec<u8>),
    /// What is in which slots of a page store; nothing after the last ones.
    Digests(Vec<SlotDigest>),
    /// What only whoever waits for it understands.
    Bytes(Vec<u8>),
}

/// A slot of a page store, and the digest of the page in it.
pub type SlotDigest = (u32, u128);

/// Four bytes of the slot's number and sixteen of the digest, both little endian.
const SLOT_DIGEST: usize = 20;

pub(super) fn encode_digests(digests: &[SlotDigest]) -> Vec<u8> {
    let mut body = Vec::with_capacity(digests.len() * SLOT_DIGEST);
    for (slot, digest) in digests {
        body.extend_from_slice(&slot.to_le_bytes());
        body.extend_from_slice(&digest.to_le_bytes());
    }
    body
}

pub(super) fn decode_digests(body: &[u8]) -> Result<Vec<SlotDigest>, WireError> {
    let (records, rest) = body.as_chunks::<SLOT_DIGEST>();
    if !rest.is_empty() {
        return Err(WireError::Malformed(format!("{} bytes of digests", body.len())));
    }
    let decode = |record: &[u8; SLOT_DIGEST]| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&record[4..]);
        (u32::from_le_bytes([record[0], record[1], record[2], record[3]]), u128::from_le_bytes(bytes))
    };
    Ok(records.iter().map(decode).collect())
}

/// Frames that the network lock held back on one of the container's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFrames {
    /// The interface's name inside of the container.
    pub interface: String,
    /// Each is a virtio-net header and an Ethernet frame.
    pub frames: Vec<serde_bytes::ByteBuf>,
}

impl Incoming {
    pub(super) fn name(&self) -> String {
        match self {
            Incoming::Message(message) => message.name().to_owned(),
            Incoming::Operation(..) => "a tree operation".to_owned(),
            Incoming::Index(..) => "a tree index".to_owned(),
            Incoming::Frames(_) => "captured frames".to_owned(),
            Incoming::Pages(_) => "memory pages".to_owned(),
            Incoming::Digests(_) => "digests of pages".to_owned(),
            Incoming::Bytes(_) => "bytes".to_owned(),
        }
    }
}

/// The error for something that came out of [`Wire::hear`] in the wrong place.
pub fn unexpected(got: &Incoming, wanted: &str) -> WireError {
    WireError::Unexpected { got: got.name(), wanted: wanted.to_owned() }
}
