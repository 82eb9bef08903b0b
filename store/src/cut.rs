//! Cuts the bytes of a file into pieces where its content says, by FastCDC (Xia et al., 2020), and leaves its zeros out.
//!
//! The numbers are part of what makes two godwits cut alike. Cut otherwise, files are right all the same, only shared less.

use std::mem;

use fastcdc::v2020::FastCDC;

use crate::manifest::{PAGE, Piece};
use crate::object::MAX_CHUNK;
use crate::{Digest, StoreError};

/// Bytes of the smallest piece that is not the last of a run, and of most.
const MIN: usize = 16 << 10;
const AVERAGE: usize = 64 << 10;
/// Zeros are looked for in blocks of this many bytes: what file systems can leave out.
pub(crate) const BLOCK: usize = PAGE;

/// Takes the bytes of a piece, and says which chunk they are.
pub(crate) type Keep<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Digest, StoreError>;

/// A file that is being cut.
#[derive(Default)]
pub(crate) struct Cutter {
    pieces: Vec<Piece>,
    /// Where the last piece ended.
    end: u64,
    /// A run without a block of zeros: bytes that are in no piece yet, and where they begin.
    run: Vec<u8>,
    run_at: u64,
}

impl Cutter {
    /// Takes bytes that lie at `at`, a multiple of the block size, behind all before.
    pub fn take(&mut self, at: u64, bytes: &[u8], keep: Keep<'_>) -> Result<(), StoreError> {
        for (number, block) in bytes.chunks(BLOCK).enumerate() {
            let block_at = at + (number * BLOCK) as u64;
            if is_zero(block) {
                self.end_run(keep)?;
                continue;
            }
            if self.run_at + self.run.len() as u64 != block_at {
                self.end_run(keep)?;
            }
            if self.run.is_empty() {
                self.run_at = block_at;
            }
            self.run.extend_from_slice(block);
        }
        self.cut(false, keep)
    }

    /// Where the last piece ended.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether no bytes wait to be cut.
    pub fn is_at_rest(&self) -> bool {
        self.run.is_empty()
    }

    /// Takes over a piece that lies at `at`, behind all before. Bytes that wait are forgotten.
    pub fn adopt(&mut self, at: u64, piece: Piece) {
        self.run.clear();
        self.pieces.push(Piece { gap: at - self.end, ..piece });
        self.end = at + u64::from(piece.len);
        self.run_at = self.end;
    }

    /// What is between a piece that was taken over and the next multiple of the block size, when they are of one run.
    pub fn lead(&mut self, bytes: &[u8]) {
        self.run_at = self.end;
        self.run = bytes.to_vec();
    }

    /// The pieces of the file.
    pub fn finish(mut self, keep: Keep<'_>) -> Result<Vec<Piece>, StoreError> {
        self.end_run(keep)?;
        Ok(self.pieces)
    }

    /// Zeros follow.
    pub fn end_run(&mut self, keep: Keep<'_>) -> Result<(), StoreError> {
        if self.run.is_empty() { Ok(()) } else { self.cut(true, keep) }
    }

    /// Makes pieces of the run, save of its end when more may follow.
    fn cut(&mut self, is_whole: bool, keep: Keep<'_>) -> Result<(), StoreError> {
        let run = mem::take(&mut self.run);
        let cutter = FastCDC::new(&run, MIN, AVERAGE, MAX_CHUNK);
        let mut begin = 0;
        while begin < run.len() && (is_whole || run.len() - begin >= MAX_CHUNK) {
            let (_, end) = cutter.cut(begin, run.len() - begin);
            let at = self.run_at + begin as u64;
            let len = end - begin;
            self.pieces.push(Piece { gap: at - self.end, len: len as u32, chunk: keep(&run[begin..end])? });
            self.end = at + len as u64;
            begin = end;
        }
        self.run_at += begin as u64;
        self.run = run[begin..].to_vec();
        Ok(())
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn cut(bytes: &[u8], step: usize) -> (Vec<Piece>, HashMap<Digest, Vec<u8>>) {
        let mut chunks = HashMap::new();
        let mut keep = |bytes: &[u8]| {
            chunks.insert(Digest::of(bytes), bytes.to_vec());
            Ok(Digest::of(bytes))
        };
        let mut cutter = Cutter::default();
        for (number, part) in bytes.chunks(step).enumerate() {
            cutter.take((number * step) as u64, part, &mut keep).unwrap();
        }
        let pieces = cutter.finish(&mut keep).unwrap();
        (pieces, chunks)
    }

    /// Bytes that hardly repeat.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut reader =
            blake3::Hasher::new_derive_key("godwit test").update(&seed.to_le_bytes()).finalize_xof();
        let mut bytes = vec![0; len];
        reader.fill(&mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn pieces_are_the_file(parts in proptest::collection::vec((any::<bool>(), 1usize..300_000), 0..6), step in 1usize..80) {
            let bytes: Vec<u8> = parts.iter().enumerate()
                .flat_map(|(seed, (zero, len))| if *zero { vec![0; *len] } else { noise(seed as u64, *len) }).collect();
            let (pieces, chunks) = cut(&bytes, step * BLOCK);
            let mut back = Vec::new();
            for piece in &pieces {
                back.resize(back.len() + piece.gap as usize, 0);
                let chunk = &chunks[&piece.chunk];
                prop_assert_eq!(chunk.len(), piece.len as usize);
                prop_assert!(chunk.len() <= MAX_CHUNK);
                back.extend_from_slice(chunk);
            }
            back.resize(bytes.len(), 0);
            prop_assert!(back == bytes);
            // how the bytes come is no part of how they are cut
            prop_assert_eq!(pieces, cut(&bytes, 2048 * BLOCK).0);
        }
    }

    #[test]
    fn what_is_inserted_moves_few_cuts() {
        let old = noise(1, 4 << 20);
        let new = [&old[..1 << 20], b"some bytes that were not there", &old[1 << 20..]].concat();
        let names = |bytes: &[u8]| -> HashSet<Digest> {
            cut(bytes, 2048 * BLOCK).0.iter().map(|piece| piece.chunk).collect()
        };
        let (old, new) = (names(&old), names(&new));
        let shared = old.intersection(&new).count();
        assert!(old.len() > 30, "{}", old.len());
        assert!(old.len() - shared <= 3, "{shared} of {} are shared", old.len());
    }
}
