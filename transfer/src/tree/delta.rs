//! The bytes of one segment: its digest and signature, and how to tell it by what the destination has.

use fast_rsync::{Signature, SignatureOptions};
use rayon::prelude::*;

use super::SEGMENT;
use super::index::SegmentRecord;
use super::op::{Body, ChangedBlock};

/// Bytes of a block: the unit a change is found in. A page, since pages are what databases and mappings write.
pub(super) const BLOCK: usize = 4096;

/// Bytes of MD4 kept for each block. A wrong match fails the digest of the segment, so they need only make it rare.
const HASH: usize = 8;

/// Bytes of the rolling hash and of both together.
const ROLLING: usize = 4;
const BLOCK_HASHES: usize = ROLLING + HASH;

/// The header of a signature as librsync writes it: magic (`RS_MD4_SIG_MAGIC`), block size, hash size; big endian. It
/// is the same for all, so the index does not keep it.
const HEADER: [u8; 12] = [0x72, 0x73, 0x01, 0x36, 0, 0, 0x10, 0, 0, 0, 0, HASH as u8];

/// Bytes of the signature of a segment of `len` bytes.
pub(super) fn signature_len(len: usize) -> usize {
    len.div_ceil(BLOCK) * BLOCK_HASHES
}

/// Bytes that are worth a second processor: below, waking it costs more than it saves (blake3's own advice).
const WORTH_SHARING: usize = 128 << 10;

/// The digest of bytes; all processors help, since under the freeze the container leaves them idle.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    if bytes.len() < WORTH_SHARING {
        return *blake3::hash(bytes).as_bytes();
    }
    *blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes()
}

/// The signature of bytes without its header. Each block's hashes depend on that block alone, so pieces of whole blocks
/// can be done side by side.
fn signature(bytes: &[u8]) -> Vec<u8> {
    let of_piece = |piece: &[u8]| {
        let options = SignatureOptions { block_size: BLOCK as u32, crypto_hash_size: HASH as u32 };
        let mut signature = Signature::calculate(piece, options).into_serialized();
        signature.drain(..HEADER.len());
        signature
    };
    if bytes.len() < WORTH_SHARING {
        return of_piece(bytes);
    }
    let piece = bytes.len().div_ceil(4 * rayon::current_num_threads()).next_multiple_of(BLOCK);
    bytes.par_chunks(piece).map(of_piece).collect::<Vec<_>>().concat()
}

/// What the index keeps of a segment's bytes.
pub(super) fn record(bytes: &[u8], digest: [u8; 32]) -> SegmentRecord {
    SegmentRecord { len: bytes.len() as u32, digest, signature: signature(bytes) }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen at a time: slices compare by memcmp.
    bytes.chunks(BLOCK).all(|chunk| chunk == &[0; BLOCK][..chunk.len()])
}

/// The cheapest way to tell `bytes`, of which `new` is the record, to who has what `base` records.
pub(super) fn body(bytes: &[u8], new: &SegmentRecord, base: Option<&SegmentRecord>) -> Body {
    let Some(base) = base else { return Body::Data(bytes.to_vec()) };
    let blocks = changed_blocks(bytes, new, base);
    let weight: usize = blocks.iter().map(|block| block.data.len() + 8).sum();
    // Pages rewritten in place are the common case and cost nothing more to find.
    let delta = if weight > bytes.len() / 16 { rolling(&blocks, bytes, base) } else { None };
    match delta {
        Some(delta) if delta.len() < weight.min(bytes.len()) => Body::Delta { len: new.len, delta },
        _ if weight < bytes.len() => Body::Blocks { len: new.len, blocks },
        _ => Body::Data(bytes.to_vec()),
    }
}

/// The blocks of `bytes` that are not the same at the same place in the base, neighbours as one.
fn changed_blocks(bytes: &[u8], new: &SegmentRecord, base: &SegmentRecord) -> Vec<ChangedBlock> {
    let mut changed: Vec<ChangedBlock> = Vec::new();
    let hashes = new.signature.chunks(BLOCK_HASHES);
    let mut base_hashes = base.signature.chunks(BLOCK_HASHES);
    for (i, (block, hash)) in bytes.chunks(BLOCK).zip(hashes).enumerate() {
        // The last block of each may be short: equal hashes of unequal lengths are no match.
        let base_len = (base.len as usize).saturating_sub(i * BLOCK).min(BLOCK);
        if base_hashes.next() == Some(hash) && base_len == block.len() {
            continue;
        }
        let at = (i * BLOCK) as u32;
        match changed.last_mut() {
            Some(last) if last.at as usize + last.data.len() == at as usize => {
                last.data.extend_from_slice(block)
            }
            _ => changed.push(ChangedBlock { at, data: block.to_vec() }),
        }
    }
    changed
}

/// A `fast_rsync` delta, if samples of the changed runs show content that has moved: the search takes 15 ns for each
/// byte that is nowhere in the base, longer than a fast link takes to carry it.
fn rolling(changed: &[ChangedBlock], bytes: &[u8], base: &SegmentRecord) -> Option<Vec<u8>> {
    /// Moved content as long as this contains a whole block of the base, wherever it lies.
    const SAMPLE: usize = 2 * BLOCK;
    const SAMPLES: usize = 8;
    let mut signature = HEADER.to_vec();
    signature.extend_from_slice(&base.signature);
    let signature = Signature::deserialize(signature).ok()?;
    let signature = signature.index();
    let samples: Vec<&[u8]> = changed.iter().flat_map(|run| run.data.chunks_exact(SAMPLE)).collect();
    let every = samples.len().div_ceil(SAMPLES).max(1);
    let moved = samples.iter().step_by(every).any(|sample| {
        let mut delta = Vec::new();
        fast_rsync::diff(&signature, sample, &mut delta).is_ok() && delta.len() < SAMPLE
    });
    let mut delta = Vec::new();
    (moved && fast_rsync::diff(&signature, bytes, &mut delta).is_ok()).then_some(delta)
}

impl Body {
    /// The bytes of the segment that it tells to who has `base` of it, verified.
    ///
    /// # Errors
    /// When it does not fit `base`, or these are not the bytes with that digest.
    pub fn rebuild(self, base: &[u8], announced: &[u8; 32]) -> Result<Vec<u8>, String> {
        let bytes = rebuild(self, base, SEGMENT as usize)?;
        if digest(&bytes) == *announced { Ok(bytes) } else { Err("its digest is another one".into()) }
    }
}

/// The bytes that a body tells, which the caller has yet to verify. `base` is what the destination has.
pub(super) fn rebuild(body: Body, base: &[u8], max_len: usize) -> Result<Vec<u8>, String> {
    let too_long = |len: usize| format!("it makes {len} bytes of a segment of {max_len}");
    match body {
        Body::Data(data) if data.len() > max_len => Err(too_long(data.len())),
        Body::Data(data) => Ok(data),
        Body::Blocks { len, .. } | Body::Delta { len, .. } if len as usize > max_len => {
            Err(too_long(len as usize))
        }
        Body::Blocks { len, blocks } => {
            let mut bytes = base[..base.len().min(len as usize)].to_vec();
            bytes.resize(len as usize, 0);
            for block in blocks {
                let range = block.at as usize..(block.at as usize).saturating_add(block.data.len());
                let to = bytes.get_mut(range).ok_or("a block lies beyond the segment")?;
                to.copy_from_slice(&block.data);
            }
            Ok(bytes)
        }
        Body::Delta { len, delta } => {
            let mut bytes = Vec::with_capacity(len as usize);
            fast_rsync::apply_limited(base, &delta, &mut bytes, len as usize).map_err(|e| e.to_string())?;
            if bytes.len() != len as usize {
                return Err(format!("it makes {} bytes, not {len}", bytes.len()));
            }
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn record_of(bytes: &[u8]) -> SegmentRecord {
        record(bytes, digest(bytes))
    }

    /// Sends `new` to who has `old`; the bytes that travel.
    fn send(old: &[u8], new: &[u8]) -> Body {
        let told = body(new, &record_of(new), Some(&record_of(old)));
        assert_eq!(rebuild(told.clone(), old, new.len()).unwrap(), new);
        told
    }

    #[test]
    fn signatures_have_the_header_that_is_left_out() {
        let options = SignatureOptions { block_size: BLOCK as u32, crypto_hash_size: HASH as u32 };
        let whole = Signature::calculate(&noise(9000, 1), options).into_serialized();
        assert_eq!(whole[..12], HEADER);
        assert_eq!(whole.len() - 12, signature_len(9000));
    }

    #[test]
    fn a_signature_made_in_pieces_is_the_same() {
        for len in [WORTH_SHARING, WORTH_SHARING + 1, (1 << 20) + 4095, 3 << 20] {
            let bytes = noise(len, 4);
            let options = SignatureOptions { block_size: BLOCK as u32, crypto_hash_size: HASH as u32 };
            assert_eq!(
                signature(&bytes),
                Signature::calculate(&bytes, options).into_serialized()[12..],
                "{len}"
            );
            assert_eq!(digest(&bytes), *blake3::hash(&bytes).as_bytes(), "{len}");
        }
    }

    #[test]
    fn bodies() {
        let old = noise(300_000, 1);
        let mut pages = old.clone();
        pages[5000] ^= 1;
        pages[299_999] ^= 1;
        assert!(matches!(send(&old, &pages), Body::Blocks { blocks, .. } if blocks.len() == 2));
        let mut shifted = old.clone();
        shifted.splice(10_000..10_000, *b"inserted");
        assert!(matches!(send(&old, &shifted), Body::Delta { delta, .. } if delta.len() < 3 * BLOCK));
        assert!(matches!(send(&old, &noise(300_000, 2)), Body::Data(_)));
        for len in [0, 1, 4095, 4096, 4097, 12_000, 299_999] {
            send(&old, &old[..len]);
            send(&old[..len], &old);
            send(&old[..len], &noise(5000, 3));
        }
        let zeros_then = [&[0; 4096][..], &[1; 100]].concat();
        send(&zeros_then, &[0; 4196]);
        send(&[7; 8192], &[7; 20_000]);
    }

    #[test]
    fn bodies_that_lie_are_refused() {
        let blocks =
            |at, len: usize| Body::Blocks { len: 10, blocks: vec![ChangedBlock { at, data: vec![1; len] }] };
        assert!(rebuild(Body::Data(vec![0; 11]), b"", 10).is_err());
        assert!(rebuild(Body::Delta { len: 11, delta: vec![] }, b"", 10).is_err());
        assert!(rebuild(Body::Delta { len: 10, delta: vec![1, 2, 3] }, b"", 10).is_err());
        assert!(rebuild(blocks(0, 11), b"", 10).is_err());
        assert!(rebuild(blocks(u32::MAX, 1), b"", 10).is_err());
        assert!(rebuild(blocks(9, 1), b"", 10).is_ok());
        // A copy of the whole base again and again is cut off at the announced length.
        let base = noise(1 << 20, 1);
        let mut bomb = vec![0x72, 0x73, 0x02, 0x36];
        (0..1000).for_each(|_| bomb.extend_from_slice(&[0x47, 0, 0, 0, 0x10, 0, 0]));
        bomb.push(0);
        assert!(rebuild(Body::Delta { len: 10, delta: bomb }, &base, 10).is_err());
    }
}
