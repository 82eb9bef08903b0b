//! `http://`: GET over a kept-alive connection, one request at a time (RFC 9112).

use super::protocol::{Malformed, Protocol, Reply};

/// The largest header section that is read, bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// The longest line of chunked coding or its trailers, bytes.
const LINE_LIMIT: usize = 8 << 10;

/// GET requests of one path.
pub struct Http {
    request: Vec<u8>,
    state: State,
}

/// What comes next on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length { left: u64, code: u16, close: bool },
    ChunkSize { code: u16, close: bool },
    ChunkData { left: u64, code: u16, close: bool },
    Trailer { code: u16, close: bool },
    UntilClosed { code: u16 },
}

impl Http {
    /// Asks `authority` (the `Host` header) for `path`.
    pub fn new(authority: &str, path: &str) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: godwit-probe\r\nAccept: */*\r\n\r\n"
        );
        Self { request: request.into_bytes(), state: State::Head }
    }

    fn done(&mut self, used: usize, code: u16, close: bool) -> (usize, Option<Reply>) {
        self.state = State::Head;
        (used, Some(Reply::Status { code, close }))
    }
}

impl Protocol for Http {
    fn pipelined(&self) -> bool {
        false
    }

    fn request(&mut self, _n: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn reply(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), Malformed> {
        match self.state {
            State::Head => {
                let Some(end) = find(input, b"\r\n\r\n") else {
                    return match input.len() > HEAD_LIMIT {
                        true => Err(Malformed(format!("http headers are longer than {HEAD_LIMIT} bytes"))),
                        false => Ok((0, None)),
                    };
                };
                let used = end + 4;
                match head(&input[..end])? {
                    State::Length { left: 0, code, close } => Ok(self.done(used, code, close)),
                    state => {
                        self.state = state;
                        Ok((used, None))
                    }
                }
            }
            State::Length { left, code, close } => {
                let used = taken(left, input);
                if used as u64 == left {
                    return Ok(self.done(used, code, close));
                }
                self.state = State::Length { left: left - used as u64, code, close };
                Ok((used, None))
            }
            State::ChunkData { left, code, close } => {
                let used = taken(left, input);
                let left = left - used as u64;
                self.state = match left {
                    0 => State::ChunkSize { code, close },
                    left => State::ChunkData { left, code, close },
                };
                Ok((used, None))
            }
            State::ChunkSize { code, close } => {
                let Some(line) = line(input)? else { return Ok((0, None)) };
                let digits = line.split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
                let size = std::str::from_utf8(digits)
                    .ok()
                    .filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()))
                    .and_then(|d| u64::from_str_radix(d, 16).ok())
                    .and_then(|size| size.checked_add(2))
                    .ok_or_else(|| Malformed("an http chunk has no valid size".into()))?;
                self.state = match size {
                    2 => State::Trailer { code, close },
                    // the line end after the data is skipped with it
                    left => State::ChunkData { left, code, close },
                };
                Ok((line.len() + 2, None))
            }
            State::Trailer { code, close } => {
                let Some(line) = line(input)? else { return Ok((0, None)) };
                let used = line.len() + 2;
                if line.is_empty() { Ok(self.done(used, code, close)) } else { Ok((used, None)) }
            }
            State::UntilClosed { .. } => Ok((input.len(), None)),
        }
    }

    fn closed(&mut self) -> Option<Reply> {
        match self.state {
            State::UntilClosed { code } => Some(Reply::Status { code, close: true }),
            _ => None,
        }
    }

    fn reset(&mut self) {
        self.state = State::Head;
    }
}

/// Reads status line and headers: how the body is delimited (RFC 9112, section 6.3).
fn head(bytes: &[u8]) -> Result<State, Malformed> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let code = status
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .filter(|code| code.len() == 3)
        .and_then(|code| code.parse::<u16>().ok())
        .filter(|code| (100..600).contains(code))
        .ok_or_else(|| Malformed("the reply is not http/1".into()))?;
    if code < 200 {
        // an interim reply: the final one follows
        return Ok(State::Head);
    }
    let mut close = status.starts_with("HTTP/1.0");
    let (mut length, mut chunked) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim().to_ascii_lowercase();
        if name.eq_ignore_ascii_case("content-length") {
            let parsed = value.parse::<u64>();
            length = Some(parsed.map_err(|_| Malformed(format!("bad content-length `{value:.40}`")))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.ends_with("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            close = if value.contains("close") { true } else { close && !value.contains("keep-alive") };
        }
    }
    Ok(match (code, chunked, length) {
        (204 | 304, _, _) => State::Length { left: 0, code, close },
        (_, true, _) => State::ChunkSize { code, close },
        (_, false, Some(left)) => State::Length { left, code, close },
        (_, false, None) => State::UntilClosed { code },
    })
}

fn taken(left: u64, input: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(input.len())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The first line without its end, when it is complete.
fn line(input: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    match find(input, b"\r\n") {
        Some(end) => Ok(Some(&input[..end])),
        None if input.len() > LINE_LIMIT => Err(Malformed("a line of an http chunk is too long".into())),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds one byte more at a time, as the worst network would.
    fn statuses(wire: &[u8]) -> Result<Vec<(u16, bool)>, Malformed> {
        let mut http = Http::new("h:1", "/");
        let (mut input, mut found) = (Vec::new(), Vec::new());
        for &byte in wire {
            input.push(byte);
            loop {
                let (used, reply) = http.reply(&input)?;
                input.drain(..used);
                match reply {
                    Some(Reply::Status { code, close }) => found.push((code, close)),
                    Some(other) => panic!("{other:?}"),
                    None if used == 0 => break,
                    None => {}
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn bodies_are_delimited() {
        let wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
            HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n\
            HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\nHTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(statuses(wire), Ok(vec![(200, false), (503, false), (204, true), (200, true)]));
    }

    #[test]
    fn a_body_may_end_with_the_connection() {
        let mut http = Http::new("h:1", "/");
        assert_eq!(http.closed(), None);
        let (used, reply) = http.reply(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        assert_eq!((used, reply), (19, None));
        assert_eq!(http.reply(b"body"), Ok((4, None)));
        assert_eq!(http.closed(), Some(Reply::Status { code: 200, close: true }));
    }

    #[test]
    fn hostile_bytes_are_errors() {
        for wire in [
            &b"SSH-2.0-OpenSSH\r\n\r\n"[..],
            b"HTTP/1.1 99 x\r\n\r\n",
            b"HTTP/1.1 200\xff\xff\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            assert!(statuses(wire).is_err(), "{}", String::from_utf8_lossy(wire));
        }
        assert!(Http::new("h:1", "/").reply(&vec![b'x'; HEAD_LIMIT + 1]).is_err());
    }
}
