//! Frames over a transport: the versioned wire.
//!
//! Both sides first write a preamble of 16 bytes: `b"godwit\r\n"`, then the oldest and the newest version of the wire that
//! they speak (u16 each, little endian), then four zero bytes. The newest version that both speak is used.
//!
//! After that there are frames: a header of 12 bytes, then the body.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | kind: 1 message (JSON), 2 tree operation, 3 tree index, 4 a piece of one, 5 captured network frames (postcard), 6 memory pages (the memory crate's `batch`), 7 digests of pages, 8 bytes that whoever waits for them understands |
//! | 1 | flags: bit 0 the body is compressed with zstd |
//! | 2..4 | tree id (u16 little endian), 0 where there is none |
//! | 4..8 | length of the body as sent (u32 little endian) |
//! | 8..12 | length of the body before compression |
//!
//! Lengths are bounded by [`MAX_FRAME`] before anything is allocated.

mod error;
mod incoming;
#[cfg(test)]
mod tests;
mod version;

pub use error::WireError;
pub use incoming::{HeldFrames, Incoming, SlotDigest, unexpected};
pub use version::{ENGINE_PLACES, GROUPS, NEWEST, OLDEST, RESUME_HOOKS, RESUMES};

use crate::compression::{Compression, Compressor};
use crate::limit::Bandwidth;
use crate::message::{Message, TreeId};
use crate::transport::Transport;
use crate::tree::{TreeIndex, TreeOp};
use godwit_migration::Cancel;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::{Duration, Instant};
use version::{PREAMBLE, common_version, preamble};

const HEADER: usize = 12;
/// No body is longer than this, compressed or not: a tree operation carries a segment of 8 MiB at most. An index of a
/// large tree is sent in pieces.
pub const MAX_FRAME: usize = 16 << 20;
/// Captured frames are sent in pieces of about this many bytes.
const FRAMES_PIECE: usize = 1 << 20;
/// So many digests are sent in one piece.
const DIGESTS_PIECE: usize = 1 << 16;
/// How often a wait looks whether the user pressed Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(100);

const MESSAGE: u8 = 1;
const OPERATION: u8 = 2;
const INDEX: u8 = 3;
const INDEX_CONTINUES: u8 = 4;
const FRAMES: u8 = 5;
const PAGES: u8 = 6;
const DIGESTS: u8 = 7;
const BYTES: u8 = 8;
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
    /// Of the frame whose body has not come yet: a wait may be interrupted, and go on.
    header: Option<[u8; HEADER]>,
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
            header: None,
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
        match self.glance()? {
            None => Ok(()),
            Some(other) => Err(unexpected(&other, "silence")),
        }
    }

    /// What the other side has begun to say, if anything; does not wait for it to begin. An end of the stream comes out at the next
    /// wait.
    ///
    /// # Errors
    /// As [`Wire::hear`].
    pub fn glance(&mut self) -> Result<Option<Incoming>, WireError> {
        let filled = self.inbox.len();
        self.inbox.resize(filled + (1 << 12), 0);
        let got = self.transport.receive(&mut self.inbox[filled..], Duration::ZERO);
        let read = got.as_ref().copied().unwrap_or(0);
        self.inbox.truncate(filled + read);
        self.received += read as u64;
        if self.inbox.len() == self.inbox_at {
            return Ok(None);
        }
        self.hear().map(Some)
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

    /// Sends slots and the digests of what is in them: in pieces, and an empty one at the end.
    ///
    /// # Errors
    /// As [`Wire::say`].
    pub fn send_digests(&mut self, digests: &[SlotDigest]) -> Result<(), WireError> {
        for piece in digests.chunks(DIGESTS_PIECE) {
            self.put(DIGESTS, TreeId(0), &incoming::encode_digests(piece))?;
        }
        self.put(DIGESTS, TreeId(0), &[])?;
        self.flush()
    }

    /// Sends bytes in one piece.
    ///
    /// # Errors
    /// As [`Wire::say`], and when they are more than [`MAX_FRAME`].
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.put(BYTES, TreeId(0), bytes)?;
        self.flush()
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
        } else if self.cancel.is_hung_up() {
            Err(WireError::Closed { after: Some("its other end is known to be gone".into()) })
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
                    if self.inbox.len() < count {
                        // what comes slowly never comes late
                        self.check_cancel()?;
                    }
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
            match self.header {
                Some(begun) => header = begun,
                None => header.copy_from_slice(self.take(HEADER)?),
            }
            self.header = Some(header);
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
                let body = self.take(length).map(|body| match &mut decompressor {
                    Some(decompressor) => decompressor.decompress(body, raw_length),
                    None => zstd::bulk::decompress(body, raw_length),
                });
                self.decompressor = decompressor;
                let body =
                    body?.map_err(|error| WireError::Malformed(format!("compressed bytes: {error}")))?;
                if body.len() != raw_length {
                    return Err(WireError::Malformed("a compressed frame of another length".into()));
                }
                body
            } else {
                self.take(length)?.to_vec()
            };
            self.header = None;
            if kind != MESSAGE {
                // there is more of it than anybody who has given up wants to wait for
                self.check_cancel()?;
            }
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
                DIGESTS => Incoming::Digests(incoming::decode_digests(&body)?),
                BYTES => Incoming::Bytes(body),
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

fn decode<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(WireError::Malformed(format!("{what} with bytes left over"))),
        Err(error) => Err(WireError::Malformed(format!("{what}: {error}"))),
    }
}
