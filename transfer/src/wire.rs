//! Frames over a transport: the versioned wire.
//!
//! Both sides first write a preamble of 16 bytes: `b"godwit\r\n"`, then the oldest and the newest version of the wire that
//! they speak (u16 each, little endian), then four zero bytes. The newest version that both speak is used.
//!
//! After that there are frames: a header of 12 bytes, then the body.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | kind: 1 message (JSON), 2 tree operation, 3 tree index, 4 a piece of one, 5 captured network frames (postcard), 6 memory pages (the memory crate's `batch`) |
//! | 1 | flags: bit 0 the body is compressed with zstd |
//! | 2..4 | tree id (u16 little endian), 0 where there is none |
//! | 4..8 | length of the body as sent (u32 little endian) |
//! | 8..12 | length of the body before compression |
//!
//! Lengths are bounded by [`MAX_FRAME`] before anything is allocated.

use crate::compression::{Compression, Compressor};
use crate::limit::Bandwidth;
use crate::message::{Message, TreeId};
use crate::transport::Transport;
use crate::tree::{TreeIndex, TreeOp};
use godwit_migration::{Cancel, Failure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::{Duration, Instant};

/// Oldest version of the wire that this godwit speaks: one back, so that hosts can be brought up to date one after another.
pub const OLDEST: u16 = 2;
/// Newest version of the wire that this godwit speaks.
///
/// | version | since | what changed |
/// |---|---|---|
/// | 1 | 0.1.0 | the first |
/// | 2 | 0.2.0 | memory pages, several connections |
/// | 3 | 0.3.0 | a migration that was broken off is taken up again: `resume`, `standing`, `bury` |
pub const NEWEST: u16 = 3;
/// The version from which on a migration that was broken off can be taken up again.
pub const RESUMES: u16 = 3;

const MAGIC: &[u8; 8] = b"godwit\r\n";
const PREAMBLE: usize = 16;
const HEADER: usize = 12;
/// No body is longer than this, compressed or not: a tree operation carries a segment of 8 MiB at most. An index of a
/// large tree is sent in pieces.
pub const MAX_FRAME: usize = 16 << 20;
/// Captured frames are sent in pieces of about this many bytes.
const FRAMES_PIECE: usize = 1 << 20;
/// How often a wait looks whether the user pressed Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What went wrong between the two halves.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke.
    #[error("the connection broke{}", after.as_ref().map_or(String::new(), |why| format!(" ({why})")))]
    Broken {
        /// What the kernel said.
        #[source]
        source: io::Error,
        /// What the carrier said, for instance the exit status of ssh.
        after: Option<String>,
    },
    /// The other half closed the connection.
    #[error("the other side closed the connection{}", after.as_ref().map_or(String::new(), |why| format!(" ({why})")))]
    Closed {
        /// What the carrier said.
        after: Option<String>,
    },
    /// Nothing came, or nothing could be sent, for too long.
    #[error("the other side was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// Whoever is there does not speak this protocol.
    #[error("whoever answers there is not godwit (it began with `{}`)", .0.escape_ascii())]
    NotGodwit(Vec<u8>),
    /// No common version.
    #[error(
        "the godwit there is {}: it speaks versions {theirs_oldest} to {theirs_newest} of the wire, this one {OLDEST} to {NEWEST}",
        if *theirs_newest < NEWEST { "older" } else { "newer" }
    )]
    Version {
        /// Its oldest.
        theirs_oldest: u16,
        /// Its newest.
        theirs_newest: u16,
    },
    /// Bytes that cannot be.
    #[error("the other side sent what cannot be: {0}")]
    Malformed(String),
    /// A message in the wrong place.
    #[error("the other side said `{got}` where {wanted} was due")]
    Unexpected {
        /// What came.
        got: String,
        /// What should have come.
        wanted: String,
    },
    /// The other half gave up, and said why.
    #[error("{0}")]
    Peer(Box<Failure>),
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl WireError {
    /// Whether the same may succeed at another time: the link was lost, rather than anything said over it.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Closed { .. } | Self::Silent(_))
    }
}

/// What can come out of the wire.
#[derive(Debug)]
pub enum Incoming {
    /// Words.
    Message(Message),
    /// One operation on a tree.
    Operation(TreeId, TreeOp),
    /// What lies at a tree's place already.
    Index(TreeId, TreeIndex),
    /// What the network lock held back, by interface.
    Frames(Vec<HeldFrames>),
    /// A batch of memory pages, as the memory crate encodes it.
    Pages(Vec<u8>),
}

/// Frames that the network lock held back on one of the container's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFrames {
    /// The interface's name inside of the container.
    pub interface: String,
    /// Each is a virtio-net header and an Ethernet frame.
    pub frames: Vec<serde_bytes::ByteBuf>,
}

impl Incoming {
    fn name(&self) -> String {
        match self {
            Incoming::Message(message) => message.name().to_owned(),
            Incoming::Operation(..) => "a tree operation".to_owned(),
            Incoming::Index(..) => "a tree index".to_owned(),
            Incoming::Frames(_) => "captured frames".to_owned(),
            Incoming::Pages(_) => "memory pages".to_owned(),
        }
    }
}

const MESSAGE: u8 = 1;
const OPERATION: u8 = 2;
const INDEX: u8 = 3;
const INDEX_CONTINUES: u8 = 4;
const FRAMES: u8 = 5;
const PAGES: u8 = 6;
const COMPRESSED: u8 = 1;

/// One end of a connection that both sides agreed about.
pub struct Wire {
    transport: Box<dyn Transport>,
    cancel: Cancel,
    patience: Duration,
    version: u16,
    compressor: Compressor,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    bandwidth: Bandwidth,
    inbox: Vec<u8>,
    inbox_at: usize,
    outbox: Vec<u8>,
    sent: u64,
    received: u64,
    index_parts: Vec<u8>,
    /// Bytes that an index may have: none unless one is waited for.
    index_limit: usize,
    put_back: Option<Incoming>,
}

impl Wire {
    /// Exchanges preambles. `cancel` ends every later wait; `patience` bounds it.
    ///
    /// # Errors
    /// When nobody answers, whoever answers is not godwit, or no version is common.
    pub fn open(
        transport: Box<dyn Transport>,
        cancel: Cancel,
        patience: Duration,
    ) -> Result<Self, WireError> {
        let mut wire = Self::agreed(transport, cancel, patience, NEWEST);
        wire.outbox.extend_from_slice(&preamble(OLDEST, NEWEST));
        wire.flush()?;
        let theirs = wire.take(PREAMBLE).map(<[u8; PREAMBLE]>::try_from);
        let theirs = match theirs {
            Ok(Ok(theirs)) => theirs,
            Ok(Err(_)) => return Err(WireError::Malformed("a short preamble".into())),
            // a login banner, or the last words of a shell
            Err(WireError::Closed { .. }) if !wire.inbox.is_empty() => {
                return Err(WireError::NotGodwit(std::mem::take(&mut wire.inbox)));
            }
            Err(error) => return Err(error),
        };
        wire.version = common_version(&theirs)?;
        Ok(wire)
    }

    /// Goes on with a connection whose ends agreed about a version already, in another process.
    pub fn agreed(transport: Box<dyn Transport>, cancel: Cancel, patience: Duration, version: u16) -> Self {
        Self {
            transport,
            cancel,
            patience,
            version,
            compressor: Compressor::new(Compression::Adaptive),
            decompressor: zstd::bulk::Decompressor::new().ok(),
            bandwidth: Bandwidth::default(),
            inbox: Vec::with_capacity(1 << 18),
            inbox_at: 0,
            outbox: Vec::with_capacity(1 << 18),
            sent: 0,
            received: 0,
            index_parts: Vec::new(),
            index_limit: 0,
            put_back: None,
        }
    }

    /// Gives the connection away, for another process to go on with; nothing may be unread.
    ///
    /// # Errors
    /// When bytes were read that nobody has heard yet.
    pub fn into_transport(self) -> Result<Box<dyn Transport>, WireError> {
        if self.inbox.len() > self.inbox_at || self.put_back.is_some() {
            return Err(WireError::Malformed("words before their turn".into()));
        }
        Ok(self.transport)
    }

    /// From now on an index may come, of 4 GiB at most: one of all files of 1 TiB has 3. Compressed pieces of one are small, so
    /// that anybody could otherwise have this side fill its memory.
    pub fn expect_indexes(&mut self) {
        self.index_limit = 1 << 32;
    }

    /// The version both sides use.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// How frames are compressed from now on.
    pub fn set_compression(&mut self, compression: Compression) {
        self.compressor = Compressor::new(compression);
    }

    /// Under the freeze: as quickly as may be.
    pub fn hurry(&mut self) {
        self.compressor.hurry();
    }

    /// Shares a limit on bytes a second with other connections.
    pub fn set_bandwidth(&mut self, bandwidth: &Bandwidth) {
        self.bandwidth = bandwidth.clone();
    }

    /// How long a wait may take from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// From now on Ctrl-C is not looked at: after the commit, and while undoing.
    pub fn ignore_cancel(&mut self) {
        self.cancel = Cancel::default();
    }

    /// Looks whether the user pressed Ctrl-C, without waiting for anything.
    ///
    /// # Errors
    /// [`WireError::Interrupted`] if so.
    pub fn check_cancel(&self) -> Result<(), WireError> {
        if self.cancel.is_raised() { Err(WireError::Interrupted) } else { Ok(()) }
    }

    /// Bytes sent so far, headers included.
    pub fn bytes_sent(&self) -> u64 {
        self.sent
    }

    /// Bytes received so far, headers included.
    pub fn bytes_received(&self) -> u64 {
        self.received
    }

    /// Says something, at once.
    ///
    /// # Errors
    /// When the connection is gone; the peer's own reason if it left one.
    pub fn say(&mut self, message: &Message) -> Result<(), WireError> {
        let body = serde_json::to_vec(message).map_err(|error| WireError::Malformed(error.to_string()))?;
        self.put(MESSAGE, TreeId(0), &body)?;
        self.flush()
    }

    /// Queues one tree operation; [`Wire::say`] flushes.
    ///
    /// # Errors
    /// As [`Wire::say`]; the peer's own reason as soon as it has given up.
    pub fn operate(&mut self, tree: TreeId, op: &TreeOp) -> Result<(), WireError> {
        let sent = self.sent;
        self.put_bulk(OPERATION, tree, op)?;
        if self.sent == sent { Ok(()) } else { self.overhear() }
    }

    /// Whoever applies our operations has nothing to say meanwhile, unless it cannot go on: then all that we still sent
    /// would be for nothing.
    fn overhear(&mut self) -> Result<(), WireError> {
        let filled = self.inbox.len();
        self.inbox.resize(filled + (1 << 12), 0);
        let got = self.transport.receive(&mut self.inbox[filled..], Duration::ZERO);
        let read = got.as_ref().copied().unwrap_or(0);
        self.inbox.truncate(filled + read);
        self.received += read as u64;
        if self.inbox.len() == self.inbox_at {
            // nothing was said; an end of the stream comes out at the next wait
            return Ok(());
        }
        match self.hear() {
            Err(error) => Err(error),
            Ok(other) => Err(unexpected(&other, "silence")),
        }
    }

    /// Sends what lies at a tree's place.
    ///
    /// # Errors
    /// As [`Wire::say`].
    pub fn send_index(&mut self, tree: TreeId, index: &TreeIndex) -> Result<(), WireError> {
        let body = index.to_bytes().map_err(|error| WireError::Malformed(error.to_string()))?;
        let mut rest = body.as_slice();
        while rest.len() > MAX_FRAME {
            let (part, after) = rest.split_at(MAX_FRAME);
            self.put(INDEX_CONTINUES, tree, part)?;
            rest = after;
        }
        self.put(INDEX, tree, rest)?;
        self.flush()
    }

    /// Sends captured network frames, in as many pieces as it takes.
    ///
    /// # Errors
    /// As [`Wire::say`].
    pub fn send_frames(&mut self, held: &[HeldFrames]) -> Result<(), WireError> {
        for of_interface in held {
            let mut rest = of_interface.frames.as_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = |frame: &&serde_bytes::ByteBuf| {
                    bytes += frame.len();
                    bytes <= FRAMES_PIECE
                };
                // one at least: none is longer than a segmentation offload makes it
                let count = rest.iter().take_while(fits).count().max(1);
                let (piece, after) = rest.split_at(count);
                // a list, as it is read back: an array would be written without its length
                let piece: Vec<HeldFrames> =
                    vec![HeldFrames { interface: of_interface.interface.clone(), frames: piece.to_vec() }];
                self.put_bulk(FRAMES, TreeId(0), &piece)?;
                rest = after;
            }
        }
        self.flush()
    }

    /// Queues a batch of memory pages.
    ///
    /// # Errors
    /// As [`Wire::say`].
    pub fn send_pages(&mut self, batch: &[u8]) -> Result<(), WireError> {
        self.put(PAGES, TreeId(0), batch)
    }

    fn put_bulk(&mut self, kind: u8, tree: TreeId, value: &impl Serialize) -> Result<(), WireError> {
        let body = postcard::to_stdvec(value).map_err(|error| WireError::Malformed(error.to_string()))?;
        self.put(kind, tree, &body)
    }

    fn put(&mut self, kind: u8, tree: TreeId, body: &[u8]) -> Result<(), WireError> {
        if body.len() > MAX_FRAME {
            return Err(WireError::Malformed(format!("a frame of {} bytes to send", body.len())));
        }
        let packed = self.compressor.pack(body);
        let (flags, sent) = match &packed {
            Some(packed) => (COMPRESSED, packed.as_slice()),
            None => (0, body),
        };
        self.outbox.extend_from_slice(&[kind, flags]);
        self.outbox.extend_from_slice(&tree.0.to_le_bytes());
        self.outbox.extend_from_slice(&(sent.len() as u32).to_le_bytes());
        self.outbox.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.outbox.extend_from_slice(sent);
        if self.outbox.len() >= 1 << 17 { self.flush() } else { Ok(()) }
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// As [`Wire::say`].
    pub fn flush(&mut self) -> Result<(), WireError> {
        let mut at = 0;
        let sent = self.send_from(&mut at);
        // whoever gives up here may still want to say so: what comes next must begin where a frame ends
        self.outbox.drain(..at);
        sent?;
        self.check_cancel()
    }

    /// Sends the queue from `at` on, and says how far it came.
    fn send_from(&mut self, at: &mut usize) -> Result<(), WireError> {
        let begun = Instant::now();
        let mut silent_since = begun;
        while *at < self.outbox.len() {
            let end = *at + self.bandwidth.take(self.outbox.len() - *at);
            match self.transport.send(&self.outbox[*at..end], LOOK_UP) {
                Ok(written) => {
                    *at += written;
                    self.sent += written as u64;
                    silent_since = Instant::now();
                    if self.bandwidth.is_limited() {
                        self.check_cancel()?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.look_up(silent_since)?,
                Err(error) => return Err(self.broken(error)),
            }
        }
        self.compressor.sent(*at, begun.elapsed());
        Ok(())
    }

    fn look_up(&self, silent_since: Instant) -> Result<(), WireError> {
        if self.cancel.is_raised() {
            Err(WireError::Interrupted)
        } else if silent_since.elapsed() >= self.patience {
            Err(WireError::Silent(self.patience))
        } else {
            Ok(())
        }
    }

    /// A write failed: the peer may have said why before it closed.
    fn broken(&mut self, source: io::Error) -> WireError {
        self.patience = Duration::from_millis(500);
        for _ in 0..64 {
            match self.hear() {
                Err(WireError::Peer(failure)) => return WireError::Peer(failure),
                Err(_) => break,
                Ok(_) => {}
            }
        }
        WireError::Broken { source, after: self.transport.post_mortem() }
    }

    /// Waits for exactly `count` bytes and gives them.
    fn take(&mut self, count: usize) -> Result<&[u8], WireError> {
        let mut silent_since = Instant::now();
        while self.inbox.len() - self.inbox_at < count {
            if self.inbox_at > 0 {
                self.inbox.drain(..self.inbox_at);
                self.inbox_at = 0;
            }
            let filled = self.inbox.len();
            // never more than a piece ahead of what really arrived, whatever the header promised
            self.inbox.resize(filled + (count - filled).clamp(1 << 12, 1 << 18), 0);
            let got = self.transport.receive(&mut self.inbox[filled..], LOOK_UP);
            self.inbox.truncate(filled + got.as_ref().copied().unwrap_or(0));
            match got {
                Ok(0) => return Err(WireError::Closed { after: self.transport.post_mortem() }),
                Ok(read) => {
                    self.received += read as u64;
                    silent_since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.look_up(silent_since)?,
                Err(error) => {
                    return Err(WireError::Broken { source: error, after: self.transport.post_mortem() });
                }
            }
        }
        let begin = self.inbox_at;
        self.inbox_at += count;
        Ok(&self.inbox[begin..begin + count])
    }

    /// Waits for what comes next. The other side's `Failed` comes out as [`WireError::Peer`].
    ///
    /// # Errors
    /// When nothing comes in time, the connection ends, or what came cannot be.
    pub fn hear(&mut self) -> Result<Incoming, WireError> {
        if let Some(heard) = self.put_back.take() {
            return Ok(heard);
        }
        loop {
            let mut header = [0u8; HEADER];
            header.copy_from_slice(self.take(HEADER)?);
            let (kind, flags) = (header[0], header[1]);
            let tree = TreeId(u16::from_le_bytes([header[2], header[3]]));
            let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let raw_length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
            if length > MAX_FRAME || raw_length > MAX_FRAME {
                return Err(WireError::Malformed(format!("a frame of {} bytes", length.max(raw_length))));
            }
            if flags & !COMPRESSED != 0 || (flags == 0 && length != raw_length) {
                return Err(WireError::Malformed("a frame header".into()));
            }
            let body = if flags & COMPRESSED != 0 {
                let mut decompressor = self.decompressor.take();
                let body = self.take(length)?;
                let body = match &mut decompressor {
                    Some(decompressor) => decompressor.decompress(body, raw_length),
                    None => zstd::bulk::decompress(body, raw_length),
                };
                self.decompressor = decompressor;
                let body =
                    body.map_err(|error| WireError::Malformed(format!("compressed bytes: {error}")))?;
                if body.len() != raw_length {
                    return Err(WireError::Malformed("a compressed frame of another length".into()));
                }
                body
            } else {
                self.take(length)?.to_vec()
            };
            return Ok(match kind {
                MESSAGE => {
                    let message = serde_json::from_slice(&body)
                        .map_err(|error| WireError::Malformed(format!("a message: {error}")))?;
                    match message {
                        Message::Failed { failure } => return Err(WireError::Peer(Box::new(failure))),
                        message => Incoming::Message(message),
                    }
                }
                OPERATION => Incoming::Operation(tree, decode(&body, "a tree operation")?),
                INDEX_CONTINUES => {
                    if self.index_parts.len() + body.len() > self.index_limit {
                        return Err(WireError::Malformed("an index beyond all measure".into()));
                    }
                    self.index_parts.extend_from_slice(&body);
                    continue;
                }
                INDEX if self.index_parts.len() + body.len() > self.index_limit => {
                    return Err(WireError::Malformed("an index that nobody waits for".into()));
                }
                INDEX => {
                    let mut whole = std::mem::take(&mut self.index_parts);
                    whole.extend_from_slice(&body);
                    let index = TreeIndex::from_bytes(&whole)
                        .map_err(|error| WireError::Malformed(format!("a tree index: {error}")))?;
                    Incoming::Index(tree, index)
                }
                FRAMES => Incoming::Frames(decode(&body, "captured frames")?),
                PAGES => Incoming::Pages(body),
                other => return Err(WireError::Malformed(format!("a frame of kind {other}"))),
            });
        }
    }

    /// Puts back what was heard last: it is heard again.
    pub fn put_back(&mut self, heard: Incoming) {
        self.put_back = Some(heard);
    }

    /// Waits for a message and takes what `pick` makes of it.
    ///
    /// # Errors
    /// As [`Wire::hear`], and when `pick` does not want what came; `wanted` says what was due.
    pub fn expect<T>(
        &mut self,
        wanted: &str,
        pick: impl FnOnce(Message) -> Result<T, Message>,
    ) -> Result<T, WireError> {
        match self.hear()? {
            Incoming::Message(message) => pick(message).map_err(|message| WireError::Unexpected {
                got: message.name().to_owned(),
                wanted: wanted.to_owned(),
            }),
            other => Err(WireError::Unexpected { got: other.name(), wanted: wanted.to_owned() }),
        }
    }
}

/// The error for something that came out of [`Wire::hear`] in the wrong place.
pub fn unexpected(got: &Incoming, wanted: &str) -> WireError {
    WireError::Unexpected { got: got.name(), wanted: wanted.to_owned() }
}

fn decode<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(WireError::Malformed(format!("{what} with bytes left over"))),
        Err(error) => Err(WireError::Malformed(format!("{what}: {error}"))),
    }
}

fn preamble(oldest: u16, newest: u16) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&oldest.to_le_bytes());
    bytes[10..12].copy_from_slice(&newest.to_le_bytes());
    bytes
}

fn common_version(theirs: &[u8; PREAMBLE]) -> Result<u16, WireError> {
    if &theirs[..8] != MAGIC {
        return Err(WireError::NotGodwit(theirs[..8].to_vec()));
    }
    let theirs_oldest = u16::from_le_bytes([theirs[8], theirs[9]]);
    let theirs_newest = u16::from_le_bytes([theirs[10], theirs[11]]);
    let newest = NEWEST.min(theirs_newest);
    if newest < OLDEST || newest < theirs_oldest {
        return Err(WireError::Version { theirs_oldest, theirs_newest });
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Descriptors;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    fn pair() -> (Wire, Wire) {
        let (one, two) = Descriptors::pair().unwrap();
        let other = std::thread::spawn(|| Wire::open(Box::new(two), Cancel::default(), PATIENCE).unwrap());
        let one = Wire::open(Box::new(one), Cancel::default(), PATIENCE).unwrap();
        (one, other.join().unwrap())
    }

    /// A wire whose other end is raw bytes.
    fn fed_with(bytes: &[u8]) -> Result<Incoming, WireError> {
        let (one, mut two) = Descriptors::pair().unwrap();
        let mut all = preamble(OLDEST, NEWEST).to_vec();
        all.extend_from_slice(bytes);
        let feeder = std::thread::spawn(move || {
            let mut rest = all.as_slice();
            while let Ok(sent @ 1..) = two.send(rest, PATIENCE) {
                rest = &rest[sent..];
            }
            // open until the other end has read: a closed end would be another error
            two
        });
        let heard = Wire::open(Box::new(one), Cancel::default(), PATIENCE).and_then(|mut wire| wire.hear());
        drop(feeder.join().unwrap());
        heard
    }

    #[test]
    fn messages_and_bulk_arrive_in_order() {
        let (mut one, mut two) = pair();
        let frame = |byte, length| serde_bytes::ByteBuf::from(vec![byte; length]);
        let frames = vec![HeldFrames {
            interface: "eth0".into(),
            frames: vec![frame(1, 1500), frame(0, 0), frame(2, 60)],
        }];
        one.send_frames(&frames).unwrap();
        one.say(&Message::Cancel { reason: "x".repeat(100_000) }).unwrap();
        assert!(matches!(two.hear().unwrap(), Incoming::Frames(got) if got == frames));
        assert!(
            matches!(two.hear().unwrap(), Incoming::Message(Message::Cancel { reason }) if reason.len() == 100_000)
        );
        assert!(one.bytes_sent() < 10_000, "long bodies are compressed");
    }

    #[test]
    fn more_frames_than_fit_into_one_message_arrive_all() {
        let (mut one, mut two) = pair();
        let frames: Vec<_> = (0..400u32).map(|n| serde_bytes::ByteBuf::from(vec![n as u8; 70_000])).collect();
        let held = vec![
            HeldFrames { interface: "eth0".into(), frames: frames.clone() },
            HeldFrames { interface: "eth1".into(), frames: frames[..3].to_vec() },
        ];
        one.set_compression(Compression::None);
        let sender = std::thread::spawn(move || {
            one.send_frames(&held).unwrap();
            one.say(&Message::Go).unwrap();
            one
        });
        let mut got: Vec<(String, serde_bytes::ByteBuf)> = Vec::new();
        while let Incoming::Frames(held) = two.hear().unwrap() {
            got.extend(
                held.into_iter().flat_map(|h| h.frames.into_iter().map(move |f| (h.interface.clone(), f))),
            );
        }
        let _one = sender.join().unwrap();
        let of = |interface: &str| {
            got.iter()
                .filter(|(name, _)| name == interface)
                .map(|(_, frame)| frame.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("eth0"), frames);
        assert_eq!(of("eth1"), frames[..3]);
    }

    #[test]
    fn the_peers_reason_travels_home_even_when_the_write_fails() {
        let (mut one, mut two) = pair();
        let failure = Failure::new(godwit_migration::FailureKind::Failed, "disk full");
        two.say(&Message::Failed { failure: failure.clone() }).unwrap();
        drop(two);
        let error = loop {
            match one.say(&Message::Prepare) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, WireError::Peer(reason) if *reason == failure));
    }

    #[test]
    fn silence_and_ctrl_c_end_a_wait() {
        let (mut one, _two) = pair();
        assert!(matches!(one.hear(), Err(WireError::Silent(_))));
        one.cancel.raise();
        assert!(matches!(one.hear(), Err(WireError::Interrupted)));
        one.ignore_cancel();
        assert!(matches!(one.hear(), Err(WireError::Silent(_))));
    }

    #[test]
    fn versions() {
        assert_eq!(common_version(&preamble(1, 9)).unwrap(), NEWEST);
        assert_eq!(common_version(&preamble(NEWEST, 9)).unwrap(), NEWEST);
        let newer = common_version(&preamble(NEWEST + 1, 9));
        assert!(
            matches!(newer, Err(WireError::Version { theirs_oldest, .. }) if theirs_oldest == NEWEST + 1)
        );
        assert!(matches!(common_version(&preamble(1, OLDEST - 1)), Err(WireError::Version { .. })));
        assert!(matches!(common_version(b"SSH-2.0-OpenSSH\r"), Err(WireError::NotGodwit(_))));
    }

    #[test]
    fn somebody_else_is_recognised_however_short_his_words() {
        for words in ["Welcome", "bash: line 1: godwit: command not found\n"] {
            let (one, mut two) = Descriptors::pair().unwrap();
            two.send(words.as_bytes(), PATIENCE).unwrap();
            let other = std::thread::spawn(move || {
                // takes our preamble, so that closing is no accident, and goes
                let _ = two.receive(&mut [0; 64], PATIENCE);
            });
            let error = Wire::open(Box::new(one), Cancel::default(), PATIENCE).map(|_| ()).unwrap_err();
            other.join().unwrap();
            assert!(error.to_string().contains(&format!("`{}", &words[..7])), "{error}");
        }
    }

    #[test]
    fn the_bandwidth_limit_holds() {
        let (mut one, mut two) = pair();
        let reader = std::thread::spawn(move || while two.hear().is_ok() {});
        one.set_compression(Compression::None);
        let limit = Bandwidth::default();
        limit.set(1_000_000);
        one.set_bandwidth(&limit);
        let begin = Instant::now();
        let frames = vec![serde_bytes::ByteBuf::from(vec![0; 300_000])];
        one.send_frames(&[HeldFrames { interface: "eth0".into(), frames }]).unwrap();
        one.flush().unwrap();
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(290) && took < Duration::from_millis(900), "{took:?}");
        drop(one);
        reader.join().unwrap();
    }

    #[test]
    fn an_index_comes_only_where_one_is_waited_for() {
        let empty = TreeIndex::default();
        let (mut one, mut two) = pair();
        one.send_index(TreeId(0), &empty).unwrap();
        assert!(matches!(two.hear(), Err(WireError::Malformed(why)) if why.contains("nobody waits")));
        let (mut one, mut two) = pair();
        two.expect_indexes();
        one.send_index(TreeId(3), &empty).unwrap();
        assert!(matches!(two.hear().unwrap(), Incoming::Index(TreeId(3), index) if index == empty));
        // pieces of one without end: some bytes of each, 16 MiB of memory
        let (mut one, mut two) = pair();
        two.set_patience(Duration::from_secs(20));
        let sender = std::thread::spawn(move || {
            let piece = vec![0; MAX_FRAME];
            while one.put(INDEX_CONTINUES, TreeId(0), &piece).is_ok() {}
        });
        assert!(matches!(two.hear(), Err(WireError::Malformed(_))));
        drop(two);
        sender.join().unwrap();
    }

    #[test]
    fn impossible_frames_are_refused_before_anything_is_allocated() {
        let header = |kind: u8, flags: u8, length: u32, raw: u32| {
            let mut bytes = vec![kind, flags, 0, 0];
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&raw.to_le_bytes());
            bytes
        };
        for (name, bytes) in [
            ("too long", header(1, 0, u32::MAX, u32::MAX)),
            ("a bomb", header(1, 1, 10, u32::MAX)),
            ("unknown flag", header(1, 2, 0, 0)),
            ("lengths differ", header(1, 0, 1, 2)),
            ("unknown kind", header(77, 0, 0, 0)),
            ("not zstd", [header(2, 1, 4, 4), vec![1, 2, 3, 4]].concat()),
            ("not json", [header(1, 0, 4, 4), b"{{{{".to_vec()].concat()),
        ] {
            assert!(
                matches!(fed_with(&bytes), Err(WireError::Malformed(_))),
                "{name}: {:?}",
                fed_with(&bytes)
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 1u8..7) {
            let _ = fed_with(&bytes);
            let mut framed = vec![kind, 0, 0, 0];
            framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            framed.extend_from_slice(&bytes);
            let _ = fed_with(&framed);
        }
    }
}
