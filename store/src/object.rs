//! A chunk or a manifest as it lies on disk: twelve bytes of header, then its bytes, compressed where that helps.
//!
//! | bytes | |
//! |---|---|
//! | 4 | `GWO` and the version, 1 |
//! | 1 | `c`: a chunk, `m`: a manifest |
//! | 1 | 0: as it is, 1: zstd |
//! | 2 | 0 |
//! | 4 | how many bytes it has as it is, little-endian |

use std::io::{self, Read};

use crate::{Digest, Kind, ObjectId};

/// Most bytes of a chunk.
pub const MAX_CHUNK: usize = 256 << 10;
/// Most bytes of a manifest.
pub const MAX_MANIFEST: usize = 256 << 20;

const MAGIC: [u8; 4] = *b"GWO\x01";
const HEADER: usize = 12;
const AS_IS: u8 = 0;
const ZSTD: u8 = 1;
/// The fastest but one: the store must keep up with the disk.
const LEVEL: i32 = 1;
/// It is compressed if that spares at least one part in this many.
const WORTH: usize = 8;

impl Kind {
    /// Most bytes that one may have.
    pub fn limit(self) -> usize {
        match self {
            Kind::Chunk => MAX_CHUNK,
            Kind::Manifest => MAX_MANIFEST,
        }
    }

    /// Most bytes that one has on disk.
    pub(crate) fn disk_limit(self) -> u64 {
        (self.limit() + HEADER) as u64
    }
}

/// What is to be written for these bytes.
pub fn encode(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(bytes, LEVEL).ok();
    let packed = packed.filter(|packed| packed.len() + bytes.len() / WORTH < bytes.len());
    let (codec, body) = packed.as_deref().map_or((AS_IS, bytes), |packed| (ZSTD, packed));
    let mut object = Vec::with_capacity(HEADER + body.len());
    object.extend_from_slice(&MAGIC);
    object.extend_from_slice(&[kind.byte(), codec, 0, 0]);
    object.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    object.extend_from_slice(body);
    object
}

/// The bytes of an object, if it is the one that its name says.
///
/// # Errors
/// What is wrong with it.
pub fn decode(id: ObjectId, object: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (header, body) = object.split_at_checked(HEADER).ok_or("it is shorter than a header")?;
    if header[..4] != MAGIC {
        return Err("it does not begin as an object of this version does");
    }
    if header[4] != id.kind.byte() || header[6..8] != [0, 0] {
        return Err("its header is not that of such an object");
    }
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if length > id.kind.limit() {
        return Err("it says that it is larger than it may be");
    }
    let bytes = match header[5] {
        AS_IS => body.to_vec(),
        ZSTD => decompress(body, length).map_err(|_| "it cannot be decompressed")?,
        _ => return Err("it is compressed in an unknown way"),
    };
    if bytes.len() != length {
        return Err("it has another length than it says");
    }
    if Digest::of(&bytes) != id.digest {
        return Err("its bytes have another digest");
    }
    Ok(bytes)
}

/// At most `length` bytes and one more. Room is taken as the bytes come, not as the header promises.
fn decompress(body: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length.min(MAX_CHUNK));
    zstd::stream::read::Decoder::with_buffer(body)?.take(length as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn back_as_it_was(bytes: Vec<u8>, repeat in 1usize..200, manifest: bool) {
            let bytes = bytes.repeat(repeat);
            let kind = if manifest { Kind::Manifest } else { Kind::Chunk };
            let id = ObjectId { kind, digest: Digest::of(&bytes) };
            let object = encode(kind, &bytes);
            prop_assert!(object.len() <= bytes.len() + HEADER);
            prop_assert_eq!(decode(id, &object), Ok(bytes));
        }

        #[test]
        fn any_flipped_bit_is_seen(bytes in proptest::collection::vec(any::<u8>(), 1..400), repeat in 1usize..9, at: usize, bit in 0u8..8) {
            let bytes = bytes.repeat(repeat);
            let id = ObjectId::chunk(Digest::of(&bytes));
            let mut object = encode(Kind::Chunk, &bytes);
            let at = at % object.len();
            object[at] ^= 1u8 << bit;
            // a bit of a compressed frame may be of no meaning; then the bytes are right all the same
            if let Ok(same) = decode(id, &object) {
                prop_assert_eq!(same, bytes);
            }
        }

        #[test]
        fn any_cut_is_seen(bytes in proptest::collection::vec(any::<u8>(), 1..400), repeat in 1usize..9, at: usize) {
            let bytes = bytes.repeat(repeat);
            let id = ObjectId::chunk(Digest::of(&bytes));
            let object = encode(Kind::Chunk, &bytes);
            prop_assert!(decode(id, &object[..at % object.len()]).is_err());
        }
    }

    #[test]
    fn a_large_promise_is_no_allocation() {
        let mut object = encode(Kind::Chunk, &[7; 4096]);
        object[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            decode(ObjectId::chunk(Digest::of(&[7; 4096])), &object),
            Err("it says that it is larger than it may be")
        );
    }
}
