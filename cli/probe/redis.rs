//! `redis://`: numbered writes. The first write of a key is `SET`, a later one is `GETSET`, which also shows
//! whether the write before it was still there; with `--incr` every request is `INCR` of one counter.

use super::keys::KeySpace;
use super::protocol::{Malformed, Protocol, Reply};
use super::resp::{self, Value};

/// Replies other than our own values are short; a longer string is refused.
const BULK_FLOOR: usize = 64 << 10;

/// Numbered `SET`s (and `GETSET`s once the key space wraps).
pub struct Writes {
    keys: KeySpace,
    bulk_limit: usize,
    value: Vec<u8>,
}

impl Writes {
    /// Writes to the keys of `keys`.
    pub fn new(keys: KeySpace) -> Self {
        let bulk_limit = bulk_limit(keys.value_size());
        Self { keys, bulk_limit, value: Vec::new() }
    }
}

/// The longest string a server may send back when values have `value_size` bytes.
pub fn bulk_limit(value_size: usize) -> usize {
    value_size.saturating_add(256).max(BULK_FLOOR)
}

impl Protocol for Writes {
    fn request(&mut self, n: u64, out: &mut Vec<u8>) {
        self.value.clear();
        self.keys.write_value(n, &mut self.value);
        let verb: &[u8] = if self.keys.is_first(n) { b"SET" } else { b"GETSET" };
        resp::command(&[verb, self.keys.name(self.keys.key_of(n)).as_bytes(), &self.value], out);
    }

    fn reply(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), Malformed> {
        let Some((value, used)) = resp::parse(input, self.bulk_limit)? else { return Ok((0, None)) };
        let reply = match value {
            Value::Simple(_) => Reply::Done,
            Value::Bulk(bytes) => Reply::Previous(Some(bytes.to_vec())),
            Value::Null => Reply::Previous(None),
            Value::Error(text) => refused(text),
            Value::Integer(_) | Value::Array(_) => return Err(unexpected("a write")),
        };
        Ok((used, Some(reply)))
    }
}

/// `INCR` of one counter.
pub struct Increments {
    key: String,
}

impl Increments {
    /// Increments `key`.
    pub fn new(key: String) -> Self {
        Self { key }
    }
}

impl Protocol for Increments {
    fn request(&mut self, _n: u64, out: &mut Vec<u8>) {
        resp::command(&[b"INCR", self.key.as_bytes()], out);
    }

    fn reply(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), Malformed> {
        let Some((value, used)) = resp::parse(input, BULK_FLOOR)? else { return Ok((0, None)) };
        let reply = match value {
            Value::Integer(value) => Reply::Counter(value),
            Value::Error(text) => refused(text),
            _ => return Err(unexpected("`INCR`")),
        };
        Ok((used, Some(reply)))
    }
}

fn refused(text: &[u8]) -> Reply {
    Reply::Refused(String::from_utf8_lossy(text).chars().take(200).collect())
}

fn unexpected(request: &str) -> Malformed {
    Malformed(format!("redis answered {request} with a reply of another kind"))
}
