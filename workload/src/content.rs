//! What is in a page: a pure function of whose it is, which page it is, and its version.

use crate::random::mix;
use crate::sys::memory::WORDS;

/// Multiplied by a word's number; odd, so that words differ.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// The number of the file that pages are read from, as if it were a region.
pub const FILE: u64 = u64::MAX;

const VERSION_BITS: u32 = 31;
const VERSION_MASK: u64 = (1 << VERSION_BITS) - 1;
const FROM_FILE: u64 = 1 << 62;
const MAYBE_ZERO: u64 = 1 << 63;

/// What a table knows of one page: when it was written as a whole, and which one word was written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// As the mapping was made: zeroes, or the file's page.
    pub const NEW: Self = Self(0);

    /// Written as a whole.
    pub fn written(version: u32) -> Self {
        Self((u64::from(version) & VERSION_MASK).max(1))
    }

    /// Read from page `page` of the file.
    pub fn read(page: usize) -> Self {
        Self(FROM_FILE | ((page as u64 + 1) & VERSION_MASK))
    }

    /// The same with another word written over: the one that is so now, if any, is as it was.
    pub fn poked(self, version: u32) -> Self {
        let poke = (u64::from(version) & VERSION_MASK).max(1) << VERSION_BITS;
        Self(self.0 & !(VERSION_MASK << VERSION_BITS) | poke)
    }

    /// The same, or zeroes: the kernel may have taken the page.
    pub fn or_zero(self) -> Self {
        if self == Self::NEW { self } else { Self(self.0 | MAYBE_ZERO) }
    }

    /// Whether it may be zeroes, too.
    pub fn may_be_zero(self) -> bool {
        self.0 & MAYBE_ZERO != 0
    }

    fn base(self) -> u64 {
        self.0 & VERSION_MASK
    }

    /// Which poke was the last, 0 for none.
    pub fn poke(self) -> u64 {
        self.0 >> VERSION_BITS & VERSION_MASK
    }
}

/// What a page holds that was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// Zeroes.
    Zero,
    /// The same page of the file.
    File,
}

/// What is in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Makes the words; none is zeroes.
    seed: Option<u64>,
    /// A word that differs: which, and what it is.
    poke: Option<(usize, u64)>,
}

impl Content {
    /// Zeroes.
    pub const ZERO: Self = Self { seed: None, poke: None };

    /// Page `page` of region `region` as `entry` says.
    pub fn of(region: u64, page: usize, entry: Entry, unwritten: Unwritten) -> Self {
        let seed = match (entry.base(), entry.0 & FROM_FILE != 0, unwritten) {
            (0, _, Unwritten::Zero) => None,
            (0, _, Unwritten::File) => Some(seed(FILE, page, 1)),
            (from, true, _) => Some(seed(FILE, from as usize - 1, 1)),
            (version, false, _) => Some(seed(region, page, version)),
        };
        let poke = match entry.poke() {
            0 => None,
            poke => {
                let bits = seed_of_poke(region, page, poke);
                Some((bits as usize % WORDS, mix(bits)))
            }
        };
        Self { seed, poke }
    }

    /// Page `page` of the file.
    pub fn of_file(page: usize) -> Self {
        Self { seed: Some(seed(FILE, page, 1)), poke: None }
    }

    /// A word.
    pub fn word(&self, word: usize) -> u64 {
        match self.poke {
            Some((poked, value)) if poked == word => value,
            _ => self.word_below(word),
        }
    }

    fn word_below(&self, word: usize) -> u64 {
        self.seed.map_or(0, |seed| {
            let x = seed.wrapping_add((word as u64).wrapping_mul(STRIDE));
            (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        })
    }

    /// The word that a poke wrote: which, and what it is.
    pub fn poked(&self) -> Option<(usize, u64)> {
        self.poke
    }

    /// The poked word as it is without the poke.
    pub fn unpoked(&self) -> Option<(usize, u64)> {
        self.poke.map(|(word, _)| (word, self.word_below(word)))
    }

    /// All words.
    pub fn words(&self) -> [u64; WORDS] {
        std::array::from_fn(|word| self.word(word))
    }

    /// The first word that is not what it should be.
    pub fn first_difference(&self, read: impl Fn(usize) -> u64) -> Option<usize> {
        (0..WORDS).find(|&word| read(word) != self.word(word))
    }
}

fn seed(region: u64, page: usize, version: u64) -> u64 {
    mix(mix(region ^ version.wrapping_mul(0xd6e8_feb8_6659_fd93)) ^ page as u64)
}

fn seed_of_poke(region: u64, page: usize, poke: u64) -> u64 {
    mix(seed(region, page, poke) ^ 0x706f_6b65)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_differs_by_region_page_version_and_poke() {
        let of = |region, page, entry| Content::of(region, page, entry, Unwritten::Zero).words();
        let base = of(1, 2, Entry::written(3));
        for other in [
            of(2, 2, Entry::written(3)),
            of(1, 3, Entry::written(3)),
            of(1, 2, Entry::written(4)),
            of(1, 2, Entry::read(3)),
            of(1, 2, Entry::NEW),
        ] {
            assert!(base.iter().zip(other).filter(|&(a, b)| *a == b).count() == 0);
        }
        let poked = of(1, 2, Entry::written(3).poked(9));
        assert_eq!(base.iter().zip(poked).filter(|&(a, b)| *a != b).count(), 1);
        assert_eq!(of(1, 2, Entry::NEW), [0; WORDS]);
        assert_eq!(of(1, 2, Entry::read(7)), of(5, 6, Entry::read(7)), "the file's page is whose it may");
        assert_eq!(Content::of(1, 7, Entry::NEW, Unwritten::File).words(), of(1, 2, Entry::read(7)));
    }

    #[test]
    fn a_poke_replaces_the_one_before() {
        let once = Entry::written(5).poked(6);
        assert_eq!(once.poked(7), Entry::written(5).poked(7));
        assert_ne!(once, Entry::written(5));
        let content = Content::of(1, 1, once, Unwritten::Zero);
        let (word, value) = content.poked().unwrap();
        assert_eq!(content.word(word), value);
        let below = Content::of(1, 1, Entry::written(5), Unwritten::Zero);
        assert_eq!(content.unpoked(), Some((word, below.word(word))));
    }

    #[test]
    fn one_word_is_enough_to_differ() {
        let content = Content::of(1, 1, Entry::written(5), Unwritten::Zero);
        let mut words = content.words();
        assert_eq!(content.first_difference(|word| words[word]), None);
        words[77] ^= 1 << 40;
        assert_eq!(content.first_difference(|word| words[word]), Some(77));
    }

    #[test]
    fn only_a_written_page_may_be_zero() {
        assert!(!Entry::NEW.or_zero().may_be_zero());
        assert!(Entry::written(1).or_zero().may_be_zero());
        assert!(!Entry::written(u32::MAX).may_be_zero(), "versions do not reach the flags");
        assert!(!Entry::NEW.poked(u32::MAX).may_be_zero());
    }

    #[test]
    fn content_does_not_compress() {
        // every byte value about as often as every other
        let mut counts = [0_u32; 256];
        for page in 0..64 {
            for word in Content::of(1, page, Entry::written(1), Unwritten::Zero).words() {
                word.to_le_bytes().iter().for_each(|byte| counts[usize::from(*byte)] += 1);
            }
        }
        assert!(counts.iter().all(|&count| (800..1250).contains(&count)), "{counts:?}");
    }
}
