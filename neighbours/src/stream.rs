//! Snapshots that a file system keeps: they go as its own stream, where both sides have such a file system, or by way of the store.
//!
//! What is in a stream only the file systems understand. A side names what it has by *marks*: whoever receives a snapshot has it under the
//! mark that it has where it was made.

use crate::question::{Answer, MOST_KNOWN, Nonsense};
use godwit_store::Digest;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// What a snapshot is known by wherever it is.
pub type Mark = u128;

/// Bytes of a piece of a stream at most.
pub const STREAM_PIECE: usize = 4 << 20;

/// A snapshot that could come as a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOffer {
    /// The manifest that describes it.
    pub described: ByteBuf,
    /// Whether it may be of a history that has diverged from what is there.
    pub despite: bool,
    /// Its mark.
    pub mark: Mark,
    /// The marks of what the stream could build upon, the best first.
    pub parents: Vec<Mark>,
}

/// A question about what a file system keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamQuestion {
    /// Would it take this one?
    Offer(StreamOffer),
    /// A piece of its stream.
    Take(ByteBuf),
    /// That was all: keep it.
    Keep,
    /// Which ones of this volume are there, by the name that it has there?
    Kept(String),
    /// The stream of this one, please, from the one with this mark on.
    Give(Digest, Option<Mark>),
    /// The next piece of it.
    More,
    /// Have this one read into the store.
    Read(Digest),
}

/// An answer, in the order of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamAnswer {
    /// Whether it would.
    Offer(StreamVerdict),
    /// What came was taken; or why not.
    Taken(Result<(), String>),
    /// It is kept, under this name; or why not.
    Keeps(Result<String, String>),
    /// The newest first: what describes them, and their marks; none of one that cannot be sent.
    Kept(Vec<(Digest, Option<Mark>)>),
    /// It may be asked for; or why not.
    Gives(Result<(), String>),
    /// A piece; an empty one when that was all.
    Piece(Result<ByteBuf, String>),
    /// It is still at it: bytes that were read.
    Reading(u64),
    /// What describes it as one of the store's, of which there is everything as long as the visit; or why not.
    Read(Result<Digest, String>),
}

/// Whether a snapshot is taken that a file system keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamVerdict {
    /// It may come, and builds upon the one with this mark.
    Wanted(Option<Mark>),
    /// It is there.
    There,
    /// What is there has diverged from it: since when, and what there is.
    Diverged(String),
    /// Only the store could keep it: why.
    Store(String),
    /// It cannot be kept.
    Refused(String),
}

/// Who gives what a file system keeps.
pub trait Giver {
    /// Which ones of a volume there are, the newest first: what describes them, and their marks.
    fn kept(&mut self, volume: &str) -> Vec<(Digest, Option<Mark>)>;

    /// Begins a stream, from the one with a mark on.
    ///
    /// # Errors
    /// Why there is none.
    fn give(&mut self, manifest: Digest, parent: Option<Mark>) -> Result<(), String>;

    /// The next piece of it, of [`STREAM_PIECE`] bytes at most; nothing when that was all.
    ///
    /// # Errors
    /// Why it ends before.
    fn more(&mut self) -> Result<Vec<u8>, String>;

    /// Reads one into the store; what describes it there. `progress` hears how many bytes were read.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read(&mut self, manifest: Digest, progress: &mut dyn FnMut(u64)) -> Result<Digest, String>;
}

impl StreamQuestion {
    /// Refuses one for too much.
    pub(crate) fn check(&self) -> Result<(), Nonsense> {
        match self {
            Self::Offer(offer) if offer.parents.len() > MOST_KNOWN => {
                Err(Nonsense(format!("{} snapshots to build upon", offer.parents.len())))
            }
            _ => Ok(()),
        }
    }

    /// Of one who gives nothing.
    pub(crate) fn answered_by(self, giver: Option<&mut (dyn Giver + '_)>) -> StreamAnswer {
        const NOTHING: &str = "nothing is given here";
        match (self, giver) {
            (Self::Kept(volume), Some(giver)) => StreamAnswer::Kept(giver.kept(&volume)),
            (Self::Kept(_), None) => StreamAnswer::Kept(Vec::new()),
            (Self::Give(manifest, parent), Some(giver)) => StreamAnswer::Gives(giver.give(manifest, parent)),
            (Self::Give(..), None) => StreamAnswer::Gives(Err(NOTHING.into())),
            (_, Some(giver)) => StreamAnswer::Piece(giver.more().map(ByteBuf::from)),
            (_, None) => StreamAnswer::Piece(Err(NOTHING.into())),
        }
    }
}

impl StreamAnswer {
    /// Takes bytes as an answer about what a file system keeps.
    ///
    /// # Errors
    /// When they are none, or one of too much.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Nonsense> {
        match Answer::stream(bytes)? {
            Self::Kept(all) if all.len() > MOST_KNOWN => Err(Nonsense(format!("{} snapshots", all.len()))),
            answer => Ok(answer),
        }
    }
}
