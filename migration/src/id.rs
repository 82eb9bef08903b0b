//! The name of one migration, the same on both hosts.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Crockford's base 32: no I, L, O, U, so that an id can be read aloud.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 48 bits of milliseconds and 80 random bits in 26 characters: the layout of a ULID, in lower case.
const LENGTH: usize = 26;

/// Names one migration: sorts by time of birth, is a safe file name, and is the same on both hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationId(String);

impl MigrationId {
    /// Makes a new id from the wall clock (milliseconds) and the kernel's random bytes.
    ///
    /// # Errors
    /// When `/dev/urandom` cannot be read.
    pub fn generate() -> std::io::Result<Self> {
        let mut random = [0u8; 10];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Ok(Self::from_parts(millis, random))
    }

    fn from_parts(millis: u128, random: [u8; 10]) -> Self {
        let low = random.iter().fold(0u128, |value, byte| (value << 8) | u128::from(*byte));
        let value = ((millis & 0xffff_ffff_ffff) << 80) | low;
        let digit = |place: usize| ALPHABET[((value >> (5 * place)) & 31) as usize] as char;
        Self((0..LENGTH).rev().map(digit).collect())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last characters: enough to tell apart the migrations of one host in names that must be short.
    pub fn short(&self) -> &str {
        &self.0[LENGTH - 8..]
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Said when a text is not a migration id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a migration id (26 characters of 0-9 and a-z without i, l, o, u)")]
pub struct InvalidId(String);

impl FromStr for MigrationId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.len() == LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId(text.chars().take(64).collect()))
        }
    }
}

impl TryFrom<String> for MigrationId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<MigrationId> for String {
    fn from(id: MigrationId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_parse_back() {
        let early = MigrationId::from_parts(1_000, [255; 10]);
        let late = MigrationId::from_parts(1_001, [0; 10]);
        assert!(early < late);
        assert_eq!(early.as_str().parse(), Ok(early.clone()));
        assert_eq!(early.as_str().len(), LENGTH);
    }

    #[test]
    fn an_id_can_never_be_a_path() {
        for text in [
            "",
            "..",
            "../../../../../../../etc/pa",
            "01k4",
            "01K40000000000000000000000",
            "01k4/000000000000000000000",
        ] {
            assert!(text.parse::<MigrationId>().is_err(), "{text}");
        }
    }
}
