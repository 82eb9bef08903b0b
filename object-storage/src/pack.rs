//! Packs: chunks one after the other as the store has them ([`godwit_store::object`]), encrypted as a whole where that is wanted. A pack is
//! named by the BLAKE3 digest of its bytes as they lie in the place. No name ever comes twice: a pack that is not encrypted has a chunk more
//! that nobody needs, of random bytes. So a collection that takes one away late never takes another one.

use std::fmt;

use godwit_checkpoint::sealed::Recipients;
use godwit_store::{Digest, Kind, ObjectId, object};
use serde::{Deserialize, Serialize};

use crate::PlaceError;
use crate::index::Keys;
use crate::records::fresh_name;

/// Bytes of chunks at which a pack is closed: one more chunk, and what encryption adds, make no part more than two of 8 MiB.
pub const FULL: usize = (16 << 20) - (512 << 10);
/// Most bytes that a pack has in a place, whoever made it.
pub const MOST: u64 = 64 << 20;

/// A pack that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackEntry {
    /// The digest of its bytes.
    pub name: Digest,
    /// How many it has in the place.
    pub bytes: u64,
    /// The chunks in it, in their order, and how many bytes each takes.
    pub chunks: Vec<(Digest, u32)>,
}

impl fmt::Display for PackEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.name, self.bytes)?;
        for (number, (digest, bytes)) in self.chunks.iter().enumerate() {
            write!(f, "{}{digest}:{bytes}", if number > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl PackEntry {
    /// One that was written in three words.
    pub fn read(name: &str, bytes: &str, chunks: &str) -> Option<PackEntry> {
        let chunk = |text: &str| {
            let (digest, bytes) = text.split_once(':')?;
            Some((digest.parse().ok()?, bytes.parse().ok()?))
        };
        let chunks = chunks.split(',').map(chunk).collect::<Option<_>>()?;
        Some(PackEntry { name: name.parse().ok()?, bytes: bytes.parse().ok()?, chunks })
    }

    /// The chunks of a pack that was read, as they are, verified; of those only that are wanted.
    ///
    /// # Errors
    /// [`PlaceError::Damaged`] when anything of it is not what was written, or it cannot be decrypted.
    pub fn unpack(
        &self,
        bytes: Vec<u8>,
        keys: Keys<'_>,
        wanted: &dyn Fn(Digest) -> bool,
    ) -> Result<Vec<(Digest, Vec<u8>)>, PlaceError> {
        let object = self.name.to_string();
        let damaged = |why: &str| PlaceError::Damaged { object: object.clone(), why: why.to_owned() };
        if Digest::of(&bytes) != self.name {
            return Err(damaged("its bytes have another digest"));
        }
        let plain = keys.open(&object, bytes)?;
        let mut rest = &plain[..];
        let mut found = Vec::new();
        for (digest, bytes) in &self.chunks {
            let (chunk, behind) =
                rest.split_at_checked(*bytes as usize).ok_or_else(|| damaged("it is too short"))?;
            rest = behind;
            if wanted(*digest) {
                found.push((*digest, object::decode(ObjectId::chunk(*digest), chunk).map_err(damaged)?));
            }
        }
        if rest.is_empty() { Ok(found) } else { Err(damaged("it is too long")) }
    }
}

/// A pack that is being made.
#[derive(Debug, Default)]
pub struct Packing {
    bytes: Vec<u8>,
    chunks: Vec<(Digest, u32)>,
}

impl Packing {
    /// Adds a chunk as the store has it.
    pub fn add(&mut self, digest: Digest, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        self.chunks.push((digest, chunk.len() as u32));
    }

    /// Whether it is large enough.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What is to be put, and a new one.
    ///
    /// # Errors
    /// When it cannot be encrypted.
    pub fn close(&mut self, recipients: Option<&Recipients>) -> Result<(PackEntry, Vec<u8>), PlaceError> {
        let mut packing = std::mem::take(self);
        // what age encrypts never comes out the same
        if recipients.is_none() {
            let salt = fresh_name()?.into_bytes();
            packing.add(Digest::of(&salt), &object::encode(Kind::Chunk, &salt));
        }
        let bytes = seal(recipients, packing.bytes)?;
        let (name, length) = (Digest::of(&bytes), bytes.len() as u64);
        Ok((PackEntry { name, bytes: length, chunks: packing.chunks }, bytes))
    }
}

/// The bytes as they are to lie in a place.
pub(crate) fn seal(recipients: Option<&Recipients>, plain: Vec<u8>) -> Result<Vec<u8>, PlaceError> {
    let Some(recipients) = recipients else { return Ok(plain) };
    recipients
        .seal_bytes(&plain)
        .map_err(|error| PlaceError::Unusable(format!("it cannot be encrypted: {error}")))
}
