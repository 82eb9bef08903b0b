//! What every protocol of the probe offers to a connection.

/// A reply that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The oldest request was done.
    Done,
    /// The oldest request was done, and this was the value before it.
    Previous(Option<Vec<u8>>),
    /// The oldest request was done, and this is the counter after it.
    Counter(i64),
    /// The request of this number was echoed.
    Echo(u64),
    /// An HTTP status; `close` when the server will close the connection.
    Status {
        /// The status code, 200 … 599.
        code: u16,
        /// The server closes the connection after this reply.
        close: bool,
    },
    /// The oldest request was refused with this text.
    Refused(String),
}

/// Bytes that no server of this protocol would send; the connection is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// Writes requests and reads replies of one connection.
pub trait Protocol {
    /// Whether a request may be sent before the last was answered.
    fn pipelined(&self) -> bool {
        true
    }

    /// The bytes of every request when each is a datagram of its own; none for a stream.
    fn datagram(&self) -> Option<usize> {
        None
    }

    /// Appends request number `n` to `out`.
    fn request(&mut self, n: u64, out: &mut Vec<u8>);

    /// Reads from the front of `input`: how many bytes are done with, and the reply if one was complete.
    /// `(0, None)` asks for more bytes.
    ///
    /// # Errors
    /// When the bytes break the protocol, or a reply is larger than any that was asked for.
    fn reply(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), Malformed>;

    /// The server closed the connection; some replies end that way.
    fn closed(&mut self) -> Option<Reply> {
        None
    }

    /// A new connection begins.
    fn reset(&mut self) {}
}
