//! As much of HTTP/1.1 (RFC 9112) as is needed to post one small text, and to take one: no redirects, no chunks from others, one
//! request for each connection. Whoever is at the other end is not trusted: every length is bounded before anything is kept.

use godwit_migration::hooks::HookUrl;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// No head is longer than this, in bytes.
pub const MAX_HEAD: usize = 8 << 10;
/// No body that is taken is longer than this, in bytes.
pub const MAX_BODY: usize = 4 << 10;
/// Of an answer to our own request so much is read to its end, and not kept.
const MAX_ANSWER: usize = 64 << 10;

/// Why what came is no request that can be answered with yes, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection broke, or nothing came in time.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not HTTP as it is understood here.
    #[error("{what}")]
    Odd {
        /// What to answer a request with.
        status: u16,
        /// What is wrong.
        what: &'static str,
    },
}

fn odd(status: u16, what: &'static str) -> HttpError {
    HttpError::Odd { status, what }
}

/// The first line of a head.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `POST`.
    pub method: String,
    /// `/report`.
    pub path: String,
    /// What came with it.
    pub body: Vec<u8>,
}

/// A head: its first line, and its fields with names in lower case.
struct Head {
    first: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, HttpError> {
        let text = std::str::from_utf8(bytes).map_err(|_| odd(400, "the head is not text"))?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let mut fields = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or_else(|| odd(400, "a field without a colon"))?;
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte));
            if !is_name || value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
                return Err(odd(400, "a field that is none"));
            }
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Self { first, fields })
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Bytes of the body; what is not told plainly is refused.
    fn length(&self) -> Result<usize, HttpError> {
        if self.field("transfer-encoding").is_some() {
            return Err(odd(411, "a body without its length"));
        }
        let mut lengths =
            self.fields.iter().filter(|(name, _)| name == "content-length").map(|(_, value)| value);
        let Some(length) = lengths.next() else { return Ok(0) };
        let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || lengths.next().is_some() {
            return Err(odd(400, "a length that is none"));
        }
        length
            .parse()
            .ok()
            .filter(|length| *length <= MAX_BODY)
            .ok_or_else(|| odd(413, "the body is too long"))
    }
}

/// A stream that is read until a moment, however slowly the bytes come.
pub struct Until<S> {
    stream: S,
    until: Instant,
    /// What came behind the last head.
    ahead: Vec<u8>,
}

/// What can be told how long to wait for bytes.
pub trait Patient: Read + Write {
    /// Sets the longest wait for the next bytes, and for others to take ours.
    ///
    /// # Errors
    /// When the kernel says no.
    fn wait(&mut self, limit: Duration) -> io::Result<()>;
}

impl Patient for TcpStream {
    fn wait(&mut self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
}

impl<S: Patient> Until<S> {
    /// Until a moment.
    pub fn new(stream: S, until: Instant) -> Self {
        Self { stream, until, ahead: Vec::new() }
    }

    fn prepare(&mut self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.wait(left)
    }

    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        loop {
            self.prepare()?;
            match self.stream.read(piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                read => return read,
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.prepare()?;
        self.stream.write_all(bytes)
    }

    /// The next head; what came behind it is kept.
    fn head(&mut self) -> Result<Head, HttpError> {
        let mut bytes = std::mem::take(&mut self.ahead);
        loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                self.ahead = bytes.split_off(end + 4);
                return Head::parse(&bytes[..end]);
            }
            let room = MAX_HEAD.saturating_sub(bytes.len());
            if room == 0 {
                return Err(odd(431, "the head is too long"));
            }
            let mut piece = [0; 1024];
            let piece = &mut piece[..room.min(1024)];
            match self.read(piece)? {
                0 => return Err(HttpError::Io(ErrorKind::UnexpectedEof.into())),
                length => bytes.extend_from_slice(&piece[..length]),
            }
        }
    }

    /// Takes one request.
    ///
    /// # Errors
    /// When it does not come in time, or cannot be understood: then it says what to answer.
    pub fn take(&mut self) -> Result<Request, HttpError> {
        let head = self.head()?;
        let mut body = std::mem::take(&mut self.ahead);
        let words: Vec<&str> = head.first.split(' ').collect();
        let [method, path, version] = words[..] else { return Err(odd(400, "no request line")) };
        if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
            return Err(odd(505, "another version of HTTP"));
        }
        let length = head.length()?;
        if body.len() < length
            && head.field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        // bounded by `Head::length`; what comes behind it is nobody's
        body.truncate(length);
        while body.len() < length {
            let mut piece = [0; 1024];
            let room = (length - body.len()).min(1024);
            match self.read(&mut piece[..room])? {
                0 => return Err(HttpError::Io(ErrorKind::UnexpectedEof.into())),
                length => body.extend_from_slice(&piece[..length]),
            }
        }
        Ok(Request { method: method.into(), path: path.into(), body })
    }

    /// Answers a request. What is wrong with the connection is whoever's who asked.
    pub fn answer(&mut self, status: u16, text: &str) {
        let reason = match status {
            200 => "OK",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            _ => "Refused",
        };
        let length = text.len() + 1;
        let answer = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}\n"
        );
        let _ = self.write(answer.as_bytes());
    }

    /// Reads to the end of what the other one says, and forgets it: it has closed its end then, and none of its connections
    /// is left that would have to be carried.
    pub fn drain(&mut self) {
        let mut piece = [0; 1024];
        let mut room = MAX_ANSWER;
        while let Ok(length @ 1..) = self.read(&mut piece) {
            room = match room.checked_sub(length) {
                Some(room) => room,
                None => return,
            };
        }
    }

    /// Posts a text of JSON; gives the status of the answer when all of it has come.
    ///
    /// # Errors
    /// When no answer comes in time, or what comes is none.
    pub fn post(&mut self, url: &HookUrl, json: &str) -> Result<u16, HttpError> {
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: godwit/{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{json}",
            url.path(),
            url.authority(),
            env!("CARGO_PKG_VERSION"),
            json.len()
        );
        self.write(request.as_bytes())?;
        loop {
            let head = self.head()?;
            let status = status_of(&head.first)?;
            // what only says that more is coming
            if (100..200).contains(&status) {
                continue;
            }
            self.drain();
            return Ok(status);
        }
    }
}

fn status_of(line: &str) -> Result<u16, HttpError> {
    let no_answer = || odd(502, "what answers does not speak HTTP/1.1");
    let rest =
        line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 ")).ok_or_else(no_answer)?;
    let digits = rest.split(' ').next().unwrap_or_default();
    let is_number = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|status| is_number && (100..600).contains(status)).ok_or_else(no_answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Says what it was told to, a few bytes at a time.
    struct Talker {
        says: VecDeque<u8>,
        heard: Vec<u8>,
    }

    impl Read for Talker {
        fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
            let length = piece.len().min(7).min(self.says.len());
            for (to, from) in piece.iter_mut().zip(self.says.drain(..length)) {
                *to = from;
            }
            Ok(length)
        }
    }

    impl Write for Talker {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Patient for Talker {
        fn wait(&mut self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    fn talk(says: impl AsRef<[u8]>) -> Until<Talker> {
        let talker = Talker { says: says.as_ref().iter().copied().collect(), heard: Vec::new() };
        Until::new(talker, Instant::now() + Duration::from_secs(10))
    }

    fn status(says: impl AsRef<[u8]>) -> u16 {
        match talk(says).take() {
            Ok(_) => 200,
            Err(HttpError::Odd { status, .. }) => status,
            Err(HttpError::Io(_)) => 0,
        }
    }

    #[test]
    fn a_request_is_taken_with_its_body_and_no_more() {
        let request =
            talk("POST /report HTTP/1.1\r\nHost: x\r\nCONTENT-length: 4\r\n\r\nbodyGET / HTTP/1.1\r\n\r\n")
                .take()
                .unwrap();
        assert_eq!(request, Request { method: "POST".into(), path: "/report".into(), body: b"body".into() });
        let bare = talk("GET / HTTP/1.0\r\n\r\n").take().unwrap();
        assert!(bare.body.is_empty());
        let mut waits =
            talk("POST / HTTP/1.1\r\nContent-Length: 20\r\nExpect: 100-Continue\r\n\r\n01234567890123456789");
        assert_eq!(waits.take().unwrap().body.len(), 20);
        assert_eq!(waits.stream.heard, b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn nothing_is_longer_than_it_may_be() {
        let long = "x".repeat(MAX_HEAD);
        assert_eq!(status(format!("POST /{long} HTTP/1.1\r\n\r\n")), 431);
        assert_eq!(status(format!("POST / HTTP/1.1\r\nA: {long}\r\n\r\n")), 431);
        assert_eq!(status(&long), 431);
        for length in ["4097", "99999999999999999999999999", "18446744073709551616"] {
            assert_eq!(
                status(format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")),
                413,
                "{length}"
            );
        }
        let whole = "b".repeat(MAX_BODY);
        assert_eq!(status(format!("POST / HTTP/1.1\r\nContent-Length: 4096\r\n\r\n{whole}")), 200);
    }

    #[test]
    fn what_is_odd_is_refused() {
        for (says, answer) in [
            ("", 0),
            ("POST / HTTP/1.1\r\n", 0),
            ("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nshort", 0),
            ("POST /\r\n\r\n", 400),
            ("POST  / HTTP/1.1\r\n\r\n", 400),
            ("POST / HTTP/2.0\r\n\r\n", 505),
            ("\u{16}\u{3}\u{1}\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nno colon\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\n: x\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nA B: x\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nA: x\ny\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", 400),
            ("POST / HTTP/1.1\r\nContent-Length: \r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        ] {
            assert_eq!(status(says), answer, "{says:?}");
        }
        assert_eq!(status(b"POST / HTTP/1.1\r\nA: \xff\r\n\r\n"), 400);
    }

    #[test]
    fn a_text_is_posted_and_the_status_is_heard() {
        let url: HookUrl = "http://127.0.0.1:8080/down?x=1".parse().unwrap();
        let mut other =
            talk("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(other.post(&url, "{}").unwrap(), 202);
        let heard = String::from_utf8(other.stream.heard.clone()).unwrap();
        assert!(heard.starts_with("POST /down?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"), "{heard}");
        assert!(heard.ends_with("Content-Length: 2\r\nConnection: close\r\n\r\n{}"), "{heard}");
        assert!(other.stream.says.is_empty(), "it is heard to its end");
        for no_answer in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 +20 OK\r\n\r\n",
            "HTTP/1.1 999 X\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
        ] {
            assert!(talk(no_answer).post(&url, "{}").is_err(), "{no_answer:?}");
        }
    }

    #[test]
    fn the_time_is_over_however_slowly_the_bytes_come() {
        let mut late = talk("POST / HTTP/1.1\r\n\r\n");
        late.until = Instant::now();
        assert!(matches!(late.take(), Err(HttpError::Io(error)) if error.kind() == ErrorKind::TimedOut));
    }
}
