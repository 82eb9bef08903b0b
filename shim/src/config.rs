//! What the library is told by its environment, and tells back.

use core::ops::BitOr;

/// Variable with the directory of the library's files, an absolute path. Without it nothing is answered.
pub const DIRECTORY_VARIABLE: &[u8] = b"GODWIT_SHIM_DIR";
/// Variable with the names of the questions to answer, separated by commas.
pub const ANSWERS_VARIABLE: &[u8] = b"GODWIT_SHIM_ANSWERS";
/// The variable that loads the library.
pub const PRELOAD_VARIABLE: &[u8] = b"LD_PRELOAD";

/// File of one page in the directory: made by godwit, filled by the library with its [`Life`] as native words.
pub const LIFE_FILE: &[u8] = b"life";
/// File in the directory with the shared objects that godwit fills itself: pairs of `st_dev` and `st_ino`, native u64 each.
pub const SHARED_FILE: &[u8] = b"shared";
/// Beginning of the names of the files in the directory that stand for `/proc/PID/smaps`; the pid in decimal follows.
pub const SMAPS_FILE: &[u8] = b"smaps-";

/// Longest directory, bytes.
pub const MAX_DIRECTORY: usize = 3800;

/// A set of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers(u32);

impl Answers {
    /// None.
    pub const NONE: Answers = Answers(0);
    /// Which pages of a task are there.
    pub const PAGES: Answers = Answers(1);
    /// Where the data in a shared object is.
    pub const SHARED: Answers = Answers(2);
    /// Which mappings a task has.
    pub const SMAPS: Answers = Answers(4);
    /// Which limits another task has.
    pub const LIMITS: Answers = Answers(8);

    const NAMES: [(&'static [u8], Answers); 4] = [
        (b"pages", Self::PAGES),
        (b"shared", Self::SHARED),
        (b"smaps", Self::SMAPS),
        (b"limits", Self::LIMITS),
    ];

    /// Whether all of `other` is in it.
    pub const fn has(self, other: Answers) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set as a number, for a place that can only hold one.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of [`Self::bits`].
    pub const fn from_bits(bits: u32) -> Answers {
        Answers(bits)
    }

    /// Reads the value of [`ANSWERS_VARIABLE`]. Unknown names are left out: a question not known here is not answered.
    pub fn parse(value: &[u8]) -> Answers {
        value.split(|byte| *byte == b',').fold(Answers::NONE, |set, name| {
            match Self::NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, answer)) => set | *answer,
                None => set,
            }
        })
    }
}

impl BitOr for Answers {
    type Output = Answers;

    fn bitor(self, other: Answers) -> Answers {
        Answers(self.0 | other.0)
    }
}

/// The value of a variable, if `entry` (`NAME=VALUE`) is of this name.
pub fn value_of<'a>(entry: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    entry.strip_prefix(name)?.strip_prefix(b"=")
}

/// The words of the life file, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Life {
    /// [`LIFE_MAGIC`], written last by the constructor.
    Magic = 0,
    /// Process id of the program.
    Pid,
    /// `st_dev` of the program's file.
    ExeDevice,
    /// `st_ino` of the program's file.
    ExeInode,
    /// How often the question for pages was answered.
    Pages,
    /// How often that for a shared object's data.
    Shared,
    /// How often that for mappings.
    Smaps,
    /// How often that for limits.
    Limits,
}

/// Number of words in the life file, u64 each.
pub const LIFE_WORDS: usize = 8;
/// Size of the life file, bytes.
pub const LIFE_SIZE: usize = 4096;
/// First word of a life file that a constructor has been at.
pub const LIFE_MAGIC: u64 = u64::from_be_bytes(*b"godwit 1");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(Answers::parse(b""), Answers::NONE);
        assert_eq!(Answers::parse(b"pages,limits"), Answers::PAGES | Answers::LIMITS);
        assert_eq!(
            Answers::parse(b"smaps,shared,tea"),
            Answers::SMAPS | Answers::SHARED,
            "a name of a later version"
        );
        let set = Answers::parse(b"pages,shared");
        assert!(set.has(Answers::PAGES) && set.has(Answers::SHARED) && !set.has(Answers::SMAPS));
        assert!(set.has(Answers::NONE) && !Answers::NONE.has(Answers::PAGES));
        assert_eq!(Answers::from_bits(set.bits()), set);
    }

    #[test]
    fn variables() {
        assert_eq!(value_of(b"LD_PRELOAD=/x", PRELOAD_VARIABLE), Some(&b"/x"[..]));
        assert_eq!(value_of(b"LD_PRELOAD=", PRELOAD_VARIABLE), Some(&b""[..]));
        assert_eq!(value_of(b"LD_PRELOAD2=/x", PRELOAD_VARIABLE), None);
        assert_eq!(value_of(b"GODWIT_SHIM_DIR", DIRECTORY_VARIABLE), None);
    }

    #[test]
    fn life_fits() {
        assert_eq!(Life::Limits as usize, LIFE_WORDS - 1);
        const { assert!(LIFE_WORDS * 8 <= LIFE_SIZE) };
    }
}
