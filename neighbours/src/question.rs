//! What is asked of a neighbour, and what it answers: postcard's encoding, one question or answer a frame.

use crate::stream::{StreamAnswer, StreamQuestion};
use godwit_store::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Most digests of one question whether they are there.
pub const MOST_ASKED: usize = 1 << 14;
/// Most chunks of one answer: with the largest that there are it still fits a frame.
pub const MOST_GIVEN: usize = 32;

/// Bytes of a piece of a manifest.
pub const PIECE: usize = 4 << 20;
/// Most checkpoints, or snapshots, of one answer.
pub const MOST_KNOWN: usize = 64;

/// A checkpoint that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The manifest of its tree.
    pub tree: Digest,
    /// When it was made, seconds since 1970.
    pub made_unix_s: u64,
}

/// A checkpoint of a container of some image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfImage {
    /// Whose: `ENGINE:NAME`.
    pub container: String,
    /// It.
    pub known: Known,
}

/// What is asked for in the place of a container where the checkpoints of all containers of an image are meant. Whoever knows no such
/// question looks for a container of that name, and has none: `image` is no engine.
const IMAGE: &str = "image:";

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Which of these chunks are there?
    Has(Vec<Digest>),
    /// These chunks, please.
    Give(Vec<Digest>),
    /// Which checkpoints of this container are there (`ENGINE:NAME`)? Or of containers of this image: [`Question::of_image`].
    Checkpoints(String),
    /// A manifest, from this byte on.
    Manifest(Digest, u64),
    /// Which snapshots of this volume are there, by the name that it has there?
    Snapshots(String),
    /// Would it keep this snapshot? The manifest that describes it, and whether it may be of a history that has diverged from what is there.
    Offer(ByteBuf, bool),
    /// Chunks of it, as they are stored.
    Take(Vec<(Digest, ByteBuf)>),
    /// Its tree: of a manifest of so many bytes a piece, from this byte on.
    TakeTree(u64, u64, ByteBuf),
    /// That was all: keep it.
    Keep,
    /// About what a file system keeps; of one who knows of that alone.
    Stream(StreamQuestion),
}

/// An answer, in the order of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A bit for each, the lowest of the first byte first.
    Has(ByteBuf),
    /// Each as it is stored, with its header; none for what is not there any more.
    Chunks(Vec<Option<ByteBuf>>),
    /// The newest first.
    Checkpoints(Vec<Known>),
    /// Its bytes in all, and a piece of them; none when it is not there.
    Manifest(Option<(u64, ByteBuf)>),
    /// The newest first: the manifests that describe them.
    Snapshots(Vec<Digest>),
    /// Whether it would.
    Offer(Verdict),
    /// What came is there; or why not.
    Taken(Result<(), String>),
    /// It is kept, under this name; or it is not.
    Kept(Result<String, Unkept>),
    /// The newest first.
    OfImage(Vec<OfImage>),
    /// About what a file system keeps.
    Stream(StreamAnswer),
}

/// Whether a snapshot is kept that somebody brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is wanted: what is not there may come.
    Wanted,
    /// It is there.
    There,
    /// What is there has diverged from it: since when, and what there is.
    Diverged(String),
    /// It cannot be kept.
    Refused(String),
}

/// Why a snapshot of which all seemed to have come is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unkept {
    /// A chunk of it went meanwhile: what is missing may come once more.
    Lost,
    /// It cannot be kept.
    Refused(String),
}

/// Why bytes are no question or answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("what was said cannot be understood: {0}")]
pub struct Nonsense(pub String);

impl Question {
    /// Which checkpoints of containers of this image are there?
    pub fn of_image(image: &str) -> Self {
        Self::Checkpoints(format!("{IMAGE}{image}"))
    }

    /// Of which image containers are meant, if that is what was asked for in a container's place.
    pub fn image_meant(container: &str) -> Option<&str> {
        container.strip_prefix(IMAGE)
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Takes bytes as a question.
    ///
    /// # Errors
    /// When they are none, or one for too much.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Nonsense> {
        let question = decode(bytes)?;
        let (count, most) = match &question {
            Self::Has(digests) => (digests.len(), MOST_ASKED),
            Self::Give(digests) => (digests.len(), MOST_GIVEN),
            Self::Take(chunks) => (chunks.len(), MOST_GIVEN),
            Self::Checkpoints(_) | Self::Manifest(..) | Self::Snapshots(_) => (1, 1),
            Self::Offer(..) | Self::TakeTree(..) | Self::Keep => (1, 1),
            Self::Stream(question) => {
                question.check()?;
                (1, 1)
            }
        };
        if count > most { Err(Nonsense(format!("a question about {count} chunks"))) } else { Ok(question) }
    }
}

impl Answer {
    /// The answer which chunks are there.
    pub fn has(there: &[bool]) -> Self {
        let mut bits = vec![0u8; there.len().div_ceil(8)];
        for (at, _) in there.iter().enumerate().filter(|(_, there)| **there) {
            bits[at / 8] |= 1 << (at % 8);
        }
        Self::Has(bits.into())
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Takes bytes as the answer which of `count` chunks are there.
    ///
    /// # Errors
    /// When they are none.
    pub fn which(bytes: &[u8], count: usize) -> Result<Vec<bool>, Nonsense> {
        match decode(bytes)? {
            Self::Has(bits) if bits.len() == count.div_ceil(8) => {
                Ok((0..count).map(|at| bits[at / 8] & 1 << (at % 8) != 0).collect())
            }
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as `count` chunks.
    ///
    /// # Errors
    /// When they are none.
    pub fn chunks(bytes: &[u8], count: usize) -> Result<Vec<Option<ByteBuf>>, Nonsense> {
        match decode(bytes)? {
            Self::Chunks(chunks) if chunks.len() == count => Ok(chunks),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }
}

impl Answer {
    /// Takes bytes as a list of checkpoints.
    ///
    /// # Errors
    /// When they are none.
    pub fn checkpoints(bytes: &[u8]) -> Result<Vec<Known>, Nonsense> {
        match decode(bytes)? {
            Self::Checkpoints(known) if known.len() <= MOST_KNOWN => Ok(known),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as a list of checkpoints of containers of an image. Whoever does not know the question has none.
    ///
    /// # Errors
    /// When they are none.
    pub fn of_image(bytes: &[u8]) -> Result<Vec<OfImage>, Nonsense> {
        match decode(bytes)? {
            Self::OfImage(found) if found.len() <= MOST_KNOWN => Ok(found),
            Self::Checkpoints(none) if none.is_empty() => Ok(Vec::new()),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as a list of snapshots.
    ///
    /// # Errors
    /// When they are none.
    pub fn snapshots(bytes: &[u8]) -> Result<Vec<Digest>, Nonsense> {
        match decode(bytes)? {
            Self::Snapshots(found) if found.len() <= MOST_KNOWN => Ok(found),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as the answer to an offer.
    ///
    /// # Errors
    /// When they are none.
    pub fn offer(bytes: &[u8]) -> Result<Verdict, Nonsense> {
        match decode(bytes)? {
            Self::Offer(verdict) => Ok(verdict),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as the answer that something was taken, or why not.
    ///
    /// # Errors
    /// When they are none.
    pub fn taken(bytes: &[u8]) -> Result<Result<(), String>, Nonsense> {
        match decode(bytes)? {
            Self::Taken(taken) => Ok(taken),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as the answer that a snapshot is kept, or why not.
    ///
    /// # Errors
    /// When they are none.
    pub fn kept(bytes: &[u8]) -> Result<Result<String, Unkept>, Nonsense> {
        match decode(bytes)? {
            Self::Kept(kept) => Ok(kept),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as an answer about what a file system keeps.
    ///
    /// # Errors
    /// When they are none.
    pub(crate) fn stream(bytes: &[u8]) -> Result<StreamAnswer, Nonsense> {
        match decode(bytes)? {
            Self::Stream(answer) => Ok(answer),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }

    /// Takes bytes as a piece of a manifest.
    ///
    /// # Errors
    /// When they are none.
    pub fn manifest(bytes: &[u8]) -> Result<Option<(u64, ByteBuf)>, Nonsense> {
        match decode(bytes)? {
            Self::Manifest(piece) => Ok(piece),
            _ => Err(Nonsense("an answer to another question".into())),
        }
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // postcard fails for sequences of unknown length, and there are none
    postcard::to_stdvec(value).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Nonsense> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(Nonsense("bytes are left over".into())),
        Err(error) => Err(Nonsense(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digests(count: usize) -> Vec<Digest> {
        (0..count).map(|number| Digest::of(&number.to_le_bytes())).collect()
    }

    #[test]
    fn a_question_for_too_much_is_refused() {
        for question in [Question::Has(digests(MOST_ASKED)), Question::Give(digests(MOST_GIVEN))] {
            assert_eq!(Question::from_bytes(&question.to_bytes()), Ok(question));
        }
        let many = digests(MOST_GIVEN + 1).into_iter().map(|digest| (digest, ByteBuf::new())).collect();
        let asked = Question::Has(digests(MOST_ASKED + 1));
        for question in [asked, Question::Give(digests(MOST_GIVEN + 1)), Question::Take(many)] {
            assert!(Question::from_bytes(&question.to_bytes()).is_err());
        }
    }

    #[test]
    fn who_knows_nothing_of_images_has_no_checkpoints_of_one() {
        // what every godwit understands
        let Question::Checkpoints(asked) = Question::of_image("sha256:1f") else {
            panic!("another question")
        };
        assert_eq!(Question::image_meant(&asked), Some("sha256:1f"));
        assert_eq!(Question::image_meant("runc:image:x"), None);
        assert_eq!(Answer::of_image(&Answer::Checkpoints(vec![]).to_bytes()), Ok(vec![]));
        let known = Known { tree: Digest::of(b"tree"), made_unix_s: 7 };
        assert!(Answer::of_image(&Answer::Checkpoints(vec![known.clone()]).to_bytes()).is_err());
        let found = vec![OfImage { container: "runc:web".into(), known }];
        assert_eq!(Answer::of_image(&Answer::OfImage(found.clone()).to_bytes()), Ok(found));
    }

    #[test]
    fn an_answer_of_another_length_is_refused() {
        let answer = Answer::has(&[true; 9]).to_bytes();
        assert_eq!(Answer::which(&answer, 9).unwrap(), [true; 9]);
        // sixteen have as many bytes
        assert_eq!(Answer::which(&answer, 16).unwrap().len(), 16);
        assert!(Answer::which(&answer, 17).is_err() && Answer::which(&answer, 8).is_err());
        assert!(Answer::chunks(&answer, 9).is_err());
    }

    proptest! {
        #[test]
        fn back_as_it_was(there: Vec<bool>, chunks: Vec<Option<Vec<u8>>>) {
            prop_assert_eq!(Answer::which(&Answer::has(&there).to_bytes(), there.len()).unwrap(), there);
            let chunks: Vec<Option<ByteBuf>> = chunks.into_iter().map(|chunk| chunk.map(ByteBuf::from)).collect();
            let answer = Answer::Chunks(chunks.clone()).to_bytes();
            prop_assert_eq!(Answer::chunks(&answer, chunks.len()).unwrap(), chunks);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, count in 0usize..100) {
            let _ = Question::from_bytes(&bytes);
            let _ = Answer::which(&bytes, count);
            let _ = Answer::chunks(&bytes, count);
            let _ = (Answer::checkpoints(&bytes), Answer::manifest(&bytes), Answer::snapshots(&bytes));
            let _ = (Answer::offer(&bytes), Answer::taken(&bytes), Answer::kept(&bytes));
            let _ = Answer::of_image(&bytes);
            let _ = StreamAnswer::from_bytes(&bytes);
        }
    }
}
