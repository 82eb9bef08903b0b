//! A visit to a neighbour over the wire.

use crate::gather::Neighbour;
use crate::question::{Answer, Known, OfImage, PIECE, Question, Unkept, Verdict};
use crate::stream::{Mark, StreamAnswer, StreamOffer, StreamQuestion, StreamVerdict};
use godwit_migration::Cancel;
use godwit_store::object::MAX_MANIFEST;
use godwit_store::{Digest, Manifest, ObjectId, object};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Compression, Incoming, Message, Transport, Wire, WireError};
use std::time::Duration;

/// How long a neighbour may be silent when it was asked something. Others are asked for the same long before.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to bring to disk what it was brought.
const TAKING: Duration = Duration::from_secs(120);

/// How long its file system may think about a stream.
const THINKING: Duration = Duration::from_secs(600);

/// What it says when it says something else.
const OTHER: &str = "what was said cannot be understood: an answer to another question";

/// A neighbour that lets us ask.
pub struct Visit {
    name: String,
    /// What it calls itself.
    pub host: String,
    /// Whether it knows of snapshots that go as a file system's own stream.
    pub streams: bool,
    wire: Wire,
}

impl Visit {
    /// Asks to be let in. `name`: what the neighbour is called here; `host`: what this host is called.
    ///
    /// # Errors
    /// When nobody answers, or says no.
    pub fn begin(
        name: impl Into<String>,
        transport: Box<dyn Transport>,
        host: &str,
        cancel: Cancel,
    ) -> Result<Self, WireError> {
        let mut wire = Wire::open(transport, cancel, PATIENCE)?;
        wire.set_compression(Compression::None);
        wire.say(&Message::Visit { host: host.into() })?;
        let (host, streams) = wire.expect("a welcome", |message| match message {
            Message::Welcome { host, streams } => Ok((host, streams)),
            other => Err(other),
        })?;
        Ok(Self { name: name.into(), host, streams, wire })
    }

    /// The snapshots that it has of a volume, by the name that the volume has there, the newest first: the manifests that describe them.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn snapshots(&mut self, volume: &str) -> Result<Vec<Digest>, String> {
        let answer = self.ask(&Question::Snapshots(volume.to_owned()))?;
        Answer::snapshots(&answer).map_err(|error| error.to_string())
    }

    /// Offers a snapshot: the manifest that describes it, and whether it may be of a history that has diverged.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn offer(&mut self, described: &[u8], despite: bool) -> Result<Verdict, String> {
        self.wire.set_compression(Compression::None);
        // what comes is brought to disk there
        self.wire.set_patience(TAKING);
        let answer = self.ask(&Question::Offer(described.to_vec().into(), despite))?;
        Answer::offer(&answer).map_err(|error| error.to_string())
    }

    /// Brings chunks of what was offered.
    ///
    /// # Errors
    /// Why they are not there.
    pub fn bring(&mut self, chunks: Vec<(Digest, Vec<u8>)>) -> Result<(), String> {
        let chunks = chunks.into_iter().map(|(digest, chunk)| (digest, chunk.into())).collect();
        let answer = self.ask(&Question::Take(chunks))?;
        Answer::taken(&answer).map_err(|error| error.to_string())?
    }

    /// Brings its tree, and has it kept: the name that it has there.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn have_kept(&mut self, tree: &[u8]) -> Result<Result<String, Unkept>, String> {
        for (number, piece) in tree.chunks(PIECE).enumerate() {
            let from = (number * PIECE) as u64;
            let answer = self.ask(&Question::TakeTree(tree.len() as u64, from, piece.to_vec().into()))?;
            Answer::taken(&answer).map_err(|error| error.to_string())??;
        }
        let answer = self.ask(&Question::Keep)?;
        Answer::kept(&answer).map_err(|error| error.to_string())
    }

    /// Offers a snapshot that a file system keeps.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn offer_stream(&mut self, offer: StreamOffer) -> Result<StreamVerdict, String> {
        self.wire.set_patience(THINKING);
        self.wire.set_compression(Compression::Adaptive);
        match self.ask_of_stream(StreamQuestion::Offer(offer))? {
            StreamAnswer::Offer(verdict) => Ok(verdict),
            _ => Err(OTHER.into()),
        }
    }

    /// Brings a piece of the stream of what was offered; inside: why it is not taken.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn bring_stream(&mut self, piece: Vec<u8>) -> Result<Result<(), String>, String> {
        match self.ask_of_stream(StreamQuestion::Take(piece.into()))? {
            StreamAnswer::Taken(taken) => Ok(taken),
            _ => Err(OTHER.into()),
        }
    }

    /// That was all of the stream: the name that it has there; or why it is not kept.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn have_stream_kept(&mut self) -> Result<Result<String, String>, String> {
        match self.ask_of_stream(StreamQuestion::Keep)? {
            StreamAnswer::Keeps(kept) => Ok(kept),
            _ => Err(OTHER.into()),
        }
    }

    /// The snapshots of a volume that its file system keeps, the newest first: what describes them, and their marks.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn kept(&mut self, volume: &str) -> Result<Vec<(Digest, Option<Mark>)>, String> {
        if !self.streams {
            return Ok(Vec::new());
        }
        self.wire.set_patience(THINKING);
        match self.ask_of_stream(StreamQuestion::Kept(volume.to_owned()))? {
            StreamAnswer::Kept(kept) => Ok(kept),
            _ => Err(OTHER.into()),
        }
    }

    /// Asks for the stream of one of them, from the one with a mark on; inside: why there is none.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn give_stream(&mut self, of: Digest, parent: Option<Mark>) -> Result<Result<(), String>, String> {
        self.wire.set_patience(THINKING);
        match self.ask_of_stream(StreamQuestion::Give(of, parent))? {
            StreamAnswer::Gives(gives) => Ok(gives),
            _ => Err(OTHER.into()),
        }
    }

    /// The next piece of it, nothing when that was all; inside: why it ends before.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn more_of_stream(&mut self) -> Result<Result<Vec<u8>, String>, String> {
        match self.ask_of_stream(StreamQuestion::More)? {
            StreamAnswer::Piece(piece) => Ok(piece.map(|piece| piece.into_vec())),
            _ => Err(OTHER.into()),
        }
    }

    /// Has what its file system keeps read into its store: what describes it there; or why it cannot be read. `progress` hears how many
    /// bytes were read.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn have_read(
        &mut self,
        manifest: Digest,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Result<Digest, String>, String> {
        self.wire.set_compression(Compression::None);
        let mut answer = self.ask_of_stream(StreamQuestion::Read(manifest))?;
        loop {
            match answer {
                StreamAnswer::Reading(bytes) => progress(bytes),
                StreamAnswer::Read(read) => return Ok(read),
                _ => return Err(OTHER.into()),
            }
            let bytes = self.answer().map_err(|error| error.to_string())?;
            answer = StreamAnswer::from_bytes(&bytes).map_err(|error| error.to_string())?;
        }
    }

    /// Bytes that went there and came from there so far.
    pub fn travelled(&self) -> (u64, u64) {
        (self.wire.bytes_sent(), self.wire.bytes_received())
    }

    fn ask_of_stream(&mut self, question: StreamQuestion) -> Result<StreamAnswer, String> {
        let bytes = self.ask(&Question::Stream(question))?;
        StreamAnswer::from_bytes(&bytes).map_err(|error| error.to_string())
    }

    fn answer(&mut self) -> Result<Vec<u8>, WireError> {
        match self.wire.hear()? {
            Incoming::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other, "an answer")),
        }
    }

    fn ask(&mut self, question: &Question) -> Result<Vec<u8>, String> {
        let sent = self.wire.send_bytes(&question.to_bytes());
        sent.and_then(|()| self.answer()).map_err(|error| error.to_string())
    }
}

impl Neighbour for Visit {
    fn name(&self) -> &str {
        &self.name
    }

    fn has(&mut self, digests: &[Digest]) -> Result<Vec<bool>, String> {
        let answer = self.ask(&Question::Has(digests.to_vec()))?;
        Answer::which(&answer, digests.len()).map_err(|error| error.to_string())
    }

    fn checkpoints(&mut self, container: &str) -> Result<Vec<Known>, String> {
        let answer = self.ask(&Question::Checkpoints(container.to_owned()))?;
        Answer::checkpoints(&answer).map_err(|error| error.to_string())
    }

    fn of_image(&mut self, image: &str) -> Result<Vec<OfImage>, String> {
        let answer = self.ask(&Question::of_image(image))?;
        Answer::of_image(&answer).map_err(|error| error.to_string())
    }

    fn manifest(&mut self, digest: Digest) -> Result<Option<Manifest>, String> {
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            let answer = self.ask(&Question::Manifest(digest, bytes.len() as u64))?;
            let piece = Answer::manifest(&answer).map_err(|error| error.to_string())?;
            let Some((total, piece)) = piece else { return Ok(None) };
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 >= total {
                break;
            }
            if piece.is_empty() || total > MAX_MANIFEST as u64 {
                return Err(format!("it does not give all of manifest {digest}"));
            }
        }
        if Digest::of(&bytes) != digest {
            return Err(format!("it gave something else for manifest {digest}"));
        }
        Manifest::decode(&bytes).map(Some)
    }

    fn give(&mut self, digests: &[Digest]) -> Result<Vec<Option<Vec<u8>>>, String> {
        let answer = self.ask(&Question::Give(digests.to_vec()))?;
        let chunks = Answer::chunks(&answer, digests.len()).map_err(|error| error.to_string())?;
        let verified = |(digest, chunk): (&Digest, Option<serde_bytes::ByteBuf>)| {
            let bytes = chunk.map(|chunk| object::decode(ObjectId::chunk(*digest), &chunk)).transpose();
            bytes.map_err(|why| format!("it gave something else for chunk {digest}: {why}"))
        };
        digests.iter().zip(chunks).map(verified).collect()
    }
}
