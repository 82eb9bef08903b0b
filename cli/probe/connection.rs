//! One connection to the server that comes back when it is lost, and never blocks.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::ledger::Ledger;
use super::protocol::{Protocol, Reply};
use super::tally::{LATE, Tally};

const BACKOFF_FIRST: Duration = Duration::from_millis(1);
const BACKOFF_MOST: Duration = Duration::from_millis(100);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Reads in one turn at most, so that a flood of replies does not delay the sending.
const READS_PER_TURN: usize = 8;

/// What a connection needs to know of the run.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The server.
    pub server: SocketAddr,
    /// Requests without an answer at most.
    pub outstanding: usize,
    /// A request without an answer for so long means the connection is dead.
    pub reply: Duration,
}

/// A connection with its requests.
pub struct Connection {
    index: usize,
    next: u64,
    step: u64,
    limits: Limits,
    protocol: Box<dyn Protocol>,
    link: Link,
    backoff: Duration,
    was_up: bool,
    outstanding: VecDeque<Request>,
    /// Datagrams without an answer although a later one has one.
    passed_over: BTreeSet<u64>,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    buffer: Box<[u8]>,
    last_answer: Option<Instant>,
    lateness_in_gap: Duration,
}

/// A connected UDP socket is read, written and asked for its error by the same calls as a TCP one.
enum Link {
    Down { retry_at: Instant },
    Connecting { stream: TcpStream, limit: Instant },
    Up(TcpStream),
}

struct Request {
    n: u64,
    due: Instant,
    sent: Instant,
}

impl Connection {
    /// Connection `index` of `of`; it sends the requests `index`, `index + of`, `index + 2 of`, …
    pub fn new(index: usize, of: usize, limits: Limits, protocol: Box<dyn Protocol>) -> Self {
        Self {
            index,
            next: index as u64,
            step: of as u64,
            limits,
            protocol,
            link: Link::Down { retry_at: Instant::now() },
            backoff: BACKOFF_FIRST,
            was_up: false,
            outstanding: VecDeque::new(),
            passed_over: BTreeSet::new(),
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            buffer: vec![0; 64 << 10].into_boxed_slice(),
            last_answer: None,
            lateness_in_gap: Duration::ZERO,
        }
    }

    /// Whether it is established.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Whether it ever was established.
    pub fn was_up(&self) -> bool {
        self.was_up
    }

    /// Requests without an answer yet.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// The last answer and how late the sender was since: where an open gap began.
    pub fn open_gap(&self) -> Option<(Instant, Duration)> {
        self.last_answer.map(|at| (at, self.lateness_in_gap))
    }

    /// A request was due at `due`: queues it, or counts it as skipped.
    pub fn send(&mut self, due: Instant, now: Instant, tally: &mut Tally) {
        let lateness = now.saturating_duration_since(due);
        self.lateness_in_gap = self.lateness_in_gap.max(lateness);
        let most = if self.protocol.pipelined() { self.limits.outstanding } else { 1 };
        if !self.is_up() || self.outstanding.len() >= most {
            tally.skipped += 1;
            return;
        }
        if lateness > LATE {
            tally.late += 1;
        }
        tally.sent += 1;
        self.protocol.request(self.next, &mut self.output);
        self.outstanding.push_back(Request { n: self.next, due, sent: now });
        self.next += self.step;
    }

    /// The descriptor to poll and what for.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.link {
            Link::Down { .. } => None,
            Link::Connecting { stream, .. } => Some((stream.as_fd(), PollFlags::POLLOUT)),
            Link::Up(stream) if self.written < self.output.len() => {
                Some((stream.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT))
            }
            Link::Up(stream) => Some((stream.as_fd(), PollFlags::POLLIN)),
        }
    }

    /// When it must be looked at even if nothing arrives; a lost connection only if it is to `reconnect`.
    pub fn deadline(&self, reconnect: bool) -> Option<Instant> {
        match &self.link {
            Link::Down { retry_at } => reconnect.then_some(*retry_at),
            Link::Connecting { limit, .. } => Some(*limit),
            Link::Up(_) => self.outstanding.front().map(|request| request.sent + self.limits.reply),
        }
    }

    /// Acts on deadlines that have passed. Without `reconnect` a lost connection stays down.
    pub fn tick(&mut self, now: Instant, reconnect: bool, tally: &mut Tally) {
        match &self.link {
            Link::Down { retry_at } if reconnect && *retry_at <= now => self.connect(now, tally),
            Link::Connecting { limit, .. } if *limit <= now => {
                let error = format!("no connection within {CONNECT_LIMIT:?}");
                self.connect_failed(error, tally);
            }
            Link::Up(_) if self.deadline(reconnect).is_some_and(|deadline| deadline <= now) => {
                let error = format!("no answer within {:?}", self.limits.reply);
                self.lose(error, tally);
            }
            _ => {}
        }
    }

    /// Writes what is queued, as far as the kernel takes it.
    pub fn flush(&mut self, tally: &mut Tally) {
        let Link::Up(stream) = &mut self.link else { return };
        while self.written < self.output.len() {
            let left = &self.output[self.written..];
            let next = self.protocol.datagram().map_or(left.len(), |length| length.min(left.len()));
            match stream.write(&left[..next]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // what was written is dropped now and then, not at every write
                    if self.written >= 64 << 10 {
                        self.output.drain(..self.written);
                        self.written = 0;
                    }
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.lose(error.to_string(), tally),
            }
        }
        self.output.clear();
        self.written = 0;
    }

    /// The descriptor is ready.
    pub fn ready(&mut self, tally: &mut Tally) {
        match &self.link {
            Link::Down { .. } => {}
            Link::Connecting { .. } => self.connected(tally),
            Link::Up(_) => self.receive(tally),
        }
    }

    /// The run is over: what is outstanding stays unanswered.
    pub fn abandon(&mut self, tally: &mut Tally) {
        self.drop_outstanding(tally);
        self.link = Link::Down { retry_at: Instant::now() };
    }

    fn connect(&mut self, now: Instant, tally: &mut Tally) {
        match begin_connect(self.limits.server, self.protocol.datagram().is_some()) {
            Ok(stream) => self.link = Link::Connecting { stream, limit: now + CONNECT_LIMIT },
            Err(error) => self.connect_failed(error.to_string(), tally),
        }
    }

    fn connected(&mut self, tally: &mut Tally) {
        let down = Link::Down { retry_at: Instant::now() };
        let Link::Connecting { stream, .. } = std::mem::replace(&mut self.link, down) else { return };
        match stream.take_error() {
            Ok(None) => {
                // a segment must leave when its request is due; failure only costs precision
                let _ = stream.set_nodelay(true);
                if self.was_up {
                    tally.reconnects += 1;
                }
                self.was_up = true;
                self.protocol.reset();
                self.link = Link::Up(stream);
            }
            Ok(Some(error)) | Err(error) => self.connect_failed(error.to_string(), tally),
        }
    }

    fn connect_failed(&mut self, error: String, tally: &mut Tally) {
        tally.connect_failures += 1;
        self.down(error, tally);
    }

    fn lose(&mut self, error: String, tally: &mut Tally) {
        tally.connections_lost += 1;
        self.down(error, tally);
    }

    fn down(&mut self, error: String, tally: &mut Tally) {
        tracing::debug!(connection = self.index, %error, "connection lost");
        tally.last_error = Some(error);
        self.drop_outstanding(tally);
        self.link = Link::Down { retry_at: Instant::now() + self.backoff };
        self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
    }

    fn drop_outstanding(&mut self, tally: &mut Tally) {
        let dropped = self.outstanding.len() as u64;
        tally.unanswered += dropped;
        if let Ledger::Counters(counters) = &mut tally.ledger {
            counters.unanswered(self.index, dropped);
        }
        self.outstanding.clear();
        self.output.clear();
        self.written = 0;
        self.input.clear();
    }

    fn receive(&mut self, tally: &mut Tally) {
        for _ in 0..READS_PER_TURN {
            let Link::Up(stream) = &mut self.link else { return };
            match stream.read(&mut self.buffer) {
                Ok(0) => {
                    let reply = self.protocol.closed();
                    if let Some(reply) = reply {
                        // the reply itself says that the connection is closed
                        let _ = self.answer(reply, Instant::now(), tally);
                    } else {
                        self.lose("the server closed the connection".into(), tally);
                    }
                    return;
                }
                Ok(length) => {
                    let now = Instant::now();
                    self.input.extend_from_slice(&self.buffer[..length]);
                    let complete = length < self.buffer.len();
                    if let Err(error) = self.decode(now, tally) {
                        return self.lose(error, tally);
                    }
                    if complete {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.lose(error.to_string(), tally),
            }
        }
    }

    fn decode(&mut self, now: Instant, tally: &mut Tally) -> Result<(), String> {
        let mut used = 0;
        while self.is_up() {
            let (length, reply) =
                self.protocol.reply(&self.input[used..]).map_err(|error| error.to_string())?;
            used += length;
            match reply {
                Some(reply) => self.answer(reply, now, tally)?,
                None if length == 0 => break,
                None => {}
            }
        }
        // closing by the server's wish has emptied it
        self.input.drain(..used.min(self.input.len()));
        Ok(())
    }

    /// Accounts for a reply to the oldest request.
    fn answer(&mut self, reply: Reply, now: Instant, tally: &mut Tally) -> Result<(), String> {
        let unasked = || "the server sent a reply to no request".to_owned();
        if let Reply::Echo(n) = reply {
            return self.echoed(n, now, tally).ok_or_else(unasked);
        }
        let request = self.outstanding.pop_front().ok_or_else(unasked)?;
        match (reply, &mut tally.ledger) {
            (Reply::Done, Ledger::Keys(keys)) => keys.acknowledge(request.n, None),
            (Reply::Previous(value), Ledger::Keys(keys)) => {
                keys.acknowledge(request.n, Some(value.as_deref()));
            }
            (Reply::Counter(value), Ledger::Counters(counters)) => {
                let in_sequence = counters.acknowledge(self.index, value);
                tally.sequence_errors += u64::from(!in_sequence);
                if !in_sequence {
                    tally.last_error = Some(format!("the counter went to {value} out of sequence"));
                }
            }
            (Reply::Refused(text), ledger) => {
                if let Ledger::Counters(counters) = ledger {
                    counters.unanswered(self.index, 1);
                }
                tally.error_replies += 1;
                tally.last_error = Some(text);
                return Ok(());
            }
            (Reply::Status { code, close }, _) => {
                *tally.http_status.entry(code).or_default() += 1;
                let good = (200..300).contains(&code);
                if good {
                    self.answered(&request, now, tally);
                } else {
                    tally.error_replies += 1;
                    tally.last_error = Some(format!("http status {code}"));
                }
                if close {
                    // announced, so neither an error nor a reason to wait
                    self.drop_outstanding(tally);
                    self.link = Link::Down { retry_at: now };
                }
                return Ok(());
            }
            _ => {}
        }
        self.answered(&request, now, tally);
        Ok(())
    }

    /// An echo of `n`: requests before it were passed over, a repeated one answers nothing.
    fn echoed(&mut self, n: u64, now: Instant, tally: &mut Tally) -> Option<()> {
        let position = self.outstanding.iter().position(|request| request.n == n);
        // a datagram may be overtaken: then it is the late one that is out of sequence, and not lost
        let may_be_late = self.protocol.datagram().is_some();
        if position.is_none() && self.passed_over.remove(&n) {
            tally.unanswered = tally.unanswered.saturating_sub(1);
            tally.answered += 1;
        }
        if position.is_none() || (position != Some(0) && !may_be_late) {
            tally.sequence_errors += 1;
            tally.last_error = Some(format!("the echo of {n} is out of sequence"));
        }
        let Some(position) = position else {
            return (n < self.next).then_some(());
        };
        tally.unanswered += position as u64;
        if may_be_late {
            self.passed_over.extend(self.outstanding.iter().take(position).map(|request| request.n));
        }
        let request = self.outstanding.drain(..=position).next_back()?;
        self.answered(&request, now, tally);
        Some(())
    }

    fn answered(&mut self, request: &Request, now: Instant, tally: &mut Tally) {
        tally.answered += 1;
        tally.latency.record(now.saturating_duration_since(request.due));
        if let Some(last) = self.last_answer {
            tally.gaps.record(last, now, self.lateness_in_gap, false);
        }
        self.last_answer = Some(now);
        self.lateness_in_gap = Duration::ZERO;
        self.backoff = BACKOFF_FIRST;
    }
}

/// Starts to connect without waiting.
fn begin_connect(server: SocketAddr, datagrams: bool) -> io::Result<TcpStream> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let kind = if datagrams { SockType::Datagram } else { SockType::Stream };
    let fd = socket(family, kind, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}
