//! What things in the store are called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A BLAKE3 digest. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that is no [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest has 64 hexadecimal digits, in lower case")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Digest, NotADigest> {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(NotADigest),
        };
        let mut bytes = [0; 32];
        if text.len() != 64 {
            return Err(NotADigest);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = value(digits[0])? << 4 | value(digits[1])?;
        }
        Ok(Digest(bytes))
    }
}

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Bytes.
    Chunk,
    /// A list of what makes a tree or a checkpoint.
    Manifest,
}

impl Kind {
    /// Both, in the order in which they are collected: no manifest is ever there without its chunks because of it.
    pub(crate) const ALL: [Kind; 2] = [Kind::Manifest, Kind::Chunk];

    /// The directory that they are in.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Kind::Chunk => "chunks",
            Kind::Manifest => "manifests",
        }
    }

    /// The byte that stands for it on disk.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Kind::Chunk => b'c',
            Kind::Manifest => b'm',
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.byte() == byte)
    }
}

/// An object's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// What it is.
    pub kind: Kind,
    /// Of its bytes as they are, not as they are stored.
    pub digest: Digest,
}

impl ObjectId {
    /// The chunk with this digest.
    pub fn chunk(digest: Digest) -> ObjectId {
        ObjectId { kind: Kind::Chunk, digest }
    }

    /// The manifest with this digest.
    pub fn manifest(digest: Digest) -> ObjectId {
        ObjectId { kind: Kind::Manifest, digest }
    }

    pub(crate) fn shard(self) -> Shard {
        Shard { kind: self.kind, first: self.digest.0[0] }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Chunk => "chunk",
            Kind::Manifest => "manifest",
        };
        write!(f, "{kind} {}", self.digest)
    }
}

/// A directory of objects: those of a kind whose digests begin with the same byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Shard {
    pub kind: Kind,
    pub first: u8,
}

impl Shard {
    /// All of a kind.
    pub fn all(kind: Kind) -> impl Iterator<Item = Shard> {
        (0..=u8::MAX).map(move |first| Shard { kind, first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read() {
        let digest = Digest::of(b"godwit");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let upper = digest.to_string().to_uppercase();
        for text in ["", "00", &upper, &"é".repeat(32), &format!("{digest}0")] {
            assert_eq!(text.parse::<Digest>(), Err(NotADigest), "{text}");
        }
    }
}
