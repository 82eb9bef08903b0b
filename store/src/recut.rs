//! Cuts a file anew of which some segments have changed, as if it were cut from its beginning, but only around the changes.
//!
//! Where a piece ends depends on its own bytes and, when zeros follow, on these. So pieces that end a block before a change stay, and
//! as soon as a new cut behind a change falls where an old one was, all that follows is cut as before, up to the next change.

use std::collections::BTreeMap;

use godwit_transfer::tree::{Body, SEGMENT};

use crate::StoreError;
use crate::cut::{BLOCK, Cutter};
use crate::manifest::Piece;
use crate::record::Shelf;

/// Segments by their number: the bytes as they are told, with their digest; none for zeros.
pub(crate) type Changes = BTreeMap<u64, Option<(Body, [u8; 32])>>;

/// Bytes that are cut behind a change before it is looked whether the cuts are the old ones again.
const STEP: u64 = 256 << 10;

/// What the store has of a file.
pub(crate) struct Base {
    size: u64,
    /// Where each piece begins.
    pieces: Vec<(u64, Piece)>,
}

/// The file with its changes.
struct Changed<'a> {
    base: &'a Base,
    size: u64,
    changes: Changes,
    /// The changed segment that was last looked at; none for zeros.
    segment: Option<(u64, Option<Vec<u8>>)>,
}

impl Base {
    pub fn new(size: u64, pieces: &[Piece]) -> Self {
        let mut end = 0;
        let begin = |piece: &Piece| {
            let begin = end + piece.gap;
            end = begin + u64::from(piece.len);
            (begin, *piece)
        };
        Self { size, pieces: pieces.iter().map(begin).collect() }
    }

    /// The pieces of the file when it has `size` bytes and these segments.
    ///
    /// # Errors
    /// The shelf's, and when the changes are not of this file.
    pub fn changed(
        &self,
        size: u64,
        changes: Changes,
        shelf: &mut dyn Shelf,
    ) -> Result<Vec<Piece>, StoreError> {
        let islands = self.islands(size, &changes);
        let mut file = Changed { base: self, size, changes, segment: None };
        let mut cutter = Cutter::default();
        // the first old piece that may stay, where the cuts are the old ones
        let mut in_step = Some(0);
        let mut at = 0;
        for (number, &(begin, end)) in islands.iter().enumerate() {
            if let Some(mut next) = in_step {
                while let Some(&(place, piece)) =
                    self.pieces.get(next).filter(|piece| end_of(piece) + BLOCK as u64 <= begin)
                {
                    cutter.adopt(place, piece);
                    next += 1;
                }
                at = cutter.end();
                let aligned = at.next_multiple_of(BLOCK as u64);
                match self.pieces.get(next) {
                    // zeros to there
                    Some(&(place, _)) if place > at => at = place.min(begin),
                    None => at = aligned.max(begin),
                    _ if at < aligned => {
                        cutter.lead(&self.bytes(at, aligned, shelf)?.unwrap_or_default());
                        at = aligned;
                    }
                    _ => {}
                }
            }
            file.feed(&mut cutter, at, end.min(size), shelf)?;
            at = at.max(end.min(size));
            let stop = islands.get(number + 1).map_or(size, |(begin, _)| *begin);
            in_step = self.in_step(&cutter, at, end);
            while in_step.is_none() && at < stop {
                let to = stop.min(at + STEP);
                file.feed(&mut cutter, at, to, shelf)?;
                at = to;
                in_step = self.in_step(&cutter, at, end);
            }
        }
        if let Some(next) = in_step.filter(|_| size == self.size) {
            self.pieces[next..].iter().for_each(|(place, piece)| cutter.adopt(*place, *piece));
        }
        cutter.finish(&mut |bytes| shelf.put(bytes))
    }

    /// From where to where something is another: changed segments, neighbours as one, and all behind the shorter end.
    fn islands(&self, size: u64, changes: &Changes) -> Vec<(u64, u64)> {
        let mut islands: Vec<(u64, u64)> = Vec::new();
        let segments = changes.keys().map(|index| (index * SEGMENT, (index + 1) * SEGMENT));
        let ends = (size != self.size).then(|| (size.min(self.size) / BLOCK as u64 * BLOCK as u64, u64::MAX));
        let mut all: Vec<(u64, u64)> = segments.chain(ends).collect();
        all.sort_unstable();
        for (begin, end) in all {
            match islands.last_mut() {
                Some(last) if begin <= last.1 => last.1 = last.1.max(end),
                _ => islands.push((begin, end)),
            }
        }
        islands
    }

    /// The first old piece that follows when from here on, at `at` and behind a change that ended at `end`, cuts fall where they did.
    fn in_step(&self, cutter: &Cutter, at: u64, end: u64) -> Option<usize> {
        if at < end {
            return None;
        }
        let cut = cutter.end();
        let follows = self.pieces.partition_point(|piece| end_of(piece) <= cut);
        if cut >= end && follows.checked_sub(1).is_some_and(|last| end_of(&self.pieces[last]) == cut) {
            return Some(follows);
        }
        // where it was zeros before and is now, a run begins with the next piece
        let next = self.pieces.partition_point(|(place, _)| *place < at);
        let before = next.checked_sub(1).map_or(0, |last| end_of(&self.pieces[last]));
        (cutter.is_at_rest()
            && before <= at
            && before.max(end) < self.pieces.get(next).map_or(u64::MAX, |(place, _)| *place))
        .then_some(next)
    }

    /// Bytes of it; none where all of them are zeros.
    fn bytes(&self, from: u64, to: u64, shelf: &mut dyn Shelf) -> Result<Option<Vec<u8>>, StoreError> {
        let first = self.pieces.partition_point(|piece| end_of(piece) <= from);
        let within = self.pieces[first..].iter().take_while(|(place, _)| *place < to);
        let mut bytes = None;
        for (place, piece) in within {
            let chunk = shelf.chunk(piece.chunk)?;
            if chunk.len() != piece.len as usize {
                return Err(StoreError::Unfit("a chunk of another length than its piece".into()));
            }
            let (begin, end) = (from.max(*place), to.min(place + chunk.len() as u64));
            let bytes = bytes.get_or_insert_with(|| vec![0; (to - from) as usize]);
            bytes[(begin - from) as usize..(end - from) as usize]
                .copy_from_slice(&chunk[(begin - place) as usize..(end - place) as usize]);
        }
        Ok(bytes)
    }
}

fn end_of((place, piece): &(u64, Piece)) -> u64 {
    place + u64::from(piece.len)
}

impl Changed<'_> {
    /// Cuts what is from `at` to `to`.
    fn feed(
        &mut self,
        cutter: &mut Cutter,
        at: u64,
        to: u64,
        shelf: &mut dyn Shelf,
    ) -> Result<(), StoreError> {
        let mut at = at;
        while at < to {
            let until = to.min((at / SEGMENT + 1) * SEGMENT);
            match self.bytes(at, until, shelf)? {
                Some(bytes) => cutter.take(at, &bytes, &mut |bytes| shelf.put(bytes))?,
                None => cutter.end_run(&mut |bytes| shelf.put(bytes))?,
            }
            at = until;
        }
        Ok(())
    }

    /// Bytes of one segment; none where all of them are zeros.
    fn bytes(&mut self, from: u64, to: u64, shelf: &mut dyn Shelf) -> Result<Option<Vec<u8>>, StoreError> {
        let index = from / SEGMENT;
        if !self.changes.contains_key(&index) {
            return self.base.bytes(from, to, shelf);
        }
        if self.segment.as_ref().is_none_or(|(known, _)| *known != index) {
            let bytes = match self.changes.get(&index).cloned().flatten() {
                Some((body, digest)) => {
                    let begin = index * SEGMENT;
                    let end = self.base.size.clamp(begin, begin + SEGMENT);
                    let base = match &body {
                        Body::Data(_) => None,
                        _ => self.base.bytes(begin, end, shelf)?,
                    };
                    let base = base.unwrap_or_else(|| vec![0; (end - begin) as usize]);
                    Some(body.rebuild(&base, &digest).map_err(StoreError::Unfit)?)
                }
                None => None,
            };
            self.segment = Some((index, bytes));
        }
        let Some((_, Some(bytes))) = &self.segment else { return Ok(None) };
        let within = |at: u64| ((at - index * SEGMENT) as usize).min(bytes.len());
        let mut found = bytes[within(from)..within(to)].to_vec();
        // what is missing is a hole
        found.resize((to.min(self.size) - from) as usize, 0);
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Known {
        chunks: HashMap<Digest, Vec<u8>>,
        read: usize,
    }

    impl Shelf for Known {
        fn put(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
            self.chunks.insert(Digest::of(bytes), bytes.to_vec());
            Ok(Digest::of(bytes))
        }

        fn chunk(&mut self, digest: Digest) -> Result<Vec<u8>, StoreError> {
            self.read += 1;
            Ok(self.chunks[&digest].clone())
        }
    }

    fn cut(bytes: &[u8], known: &mut Known) -> Vec<Piece> {
        let mut cutter = Cutter::default();
        cutter.take(0, bytes, &mut |bytes| known.put(bytes)).unwrap();
        cutter.finish(&mut |bytes| known.put(bytes)).unwrap()
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new_derive_key("godwit test")
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    /// What a source tells of the difference.
    fn changes(old: &[u8], new: &[u8]) -> Changes {
        let segment = SEGMENT as usize;
        let old: Vec<&[u8]> = old.chunks(segment).collect();
        let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let told = new.chunks(segment).enumerate().filter_map(|(index, new)| match old.get(index) {
            Some(old) if *old == new => None,
            None if zeros(new) => None,
            Some(old) if zeros(new) && zeros(old) => None,
            _ if zeros(new) => Some((index as u64, None)),
            _ => Some((index as u64, Some((Body::Data(new.to_vec()), *blake3::hash(new).as_bytes())))),
        });
        told.collect()
    }

    /// An edit of a file: where, in thousandths of it, how many bytes, and what becomes of them.
    fn edit(bytes: &mut Vec<u8>, (place, len, what): (usize, usize, u8)) {
        let begin = bytes.len() * place / 1000;
        let end = (begin + len).min(bytes.len());
        match what {
            0 => bytes.truncate(begin),
            1 => bytes.extend(noise(place as u64, len)),
            2 => bytes.extend(std::iter::repeat_n(0, len * 9)),
            3 => bytes[begin / BLOCK * BLOCK..end].fill(0),
            4 => drop(bytes.splice(begin..begin, noise(len as u64, 77))),
            _ => {
                let with = noise(what.into(), end - begin);
                bytes[begin..end].copy_from_slice(&with);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn it_is_cut_as_from_its_beginning(
            parts in proptest::collection::vec((any::<bool>(), 1usize..9_000_000), 1..5),
            edits in proptest::collection::vec((0usize..1000, 1usize..600_000, 0u8..9), 0..4),
        ) {
            let old: Vec<u8> = parts.iter().enumerate()
                .flat_map(|(seed, (zero, len))| if *zero { vec![0; *len] } else { noise(seed as u64, *len) }).collect();
            let mut new = old.clone();
            edits.into_iter().for_each(|one| edit(&mut new, one));
            let mut known = Known::default();
            let before = cut(&old, &mut known);
            let base = Base::new(old.len() as u64, &before);
            let after = base.changed(new.len() as u64, changes(&old, &new), &mut known).unwrap();
            prop_assert_eq!(after, cut(&new, &mut known));
        }
    }

    #[test]
    fn only_what_is_around_a_change_is_read() {
        let old = noise(1, 64 << 20);
        let mut new = old.clone();
        new[30 << 20] ^= 1;
        let mut known = Known::default();
        let before = cut(&old, &mut known);
        let after =
            Base::new(old.len() as u64, &before).changed(old.len() as u64, changes(&old, &new), &mut known);
        assert_eq!(after.unwrap(), cut(&new, &mut known));
        assert!(known.read < 30, "{} pieces of {}", known.read, before.len());
    }
}
