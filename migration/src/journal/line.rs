//! One line of a journal: `gw2 LENGTH SUM JSON`.
//!
//! LENGTH is the number of bytes of JSON in decimal, SUM its XXH3-64 in 16 hexadecimal digits. What a crash cut short has
//! no end of line, or unwritten (zero) bytes before it; anything else that does not fit is damage. Format 1, of which
//! lines are still read, was the JSON alone.

use super::event::Event;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8] = b"gw2 ";

/// One line: when, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Counts from 1, without a gap.
    pub seq: u64,
    /// Wall clock, microseconds since 1970: a label for people, never used to compute with.
    pub unix_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Why bytes are no line.
#[derive(Debug, PartialEq)]
pub(super) enum NotALine {
    /// A crash cut it short.
    Torn,
    /// It was changed since.
    Damaged(String),
}

impl Line {
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let json = serde_json::to_vec(self)?;
        let mut line = format!("gw2 {} {:016x} ", json.len(), xxh3_64(&json)).into_bytes();
        line.extend(json);
        line.push(b'\n');
        Ok(line)
    }

    /// Understands one line, without its end.
    pub(super) fn decode(text: &[u8]) -> Result<Self, NotALine> {
        let damaged = |reason: &str| match text.contains(&0) {
            true => NotALine::Torn,
            false => NotALine::Damaged(reason.into()),
        };
        let json = match text.strip_prefix(MAGIC) {
            Some(framed) => checked(framed).ok_or_else(|| damaged("length or checksum is wrong"))?,
            None if text.starts_with(b"{") => text,
            None => return Err(damaged("it does not begin as a line does")),
        };
        serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))
    }
}

/// The JSON of `LENGTH SUM JSON`, if both are right.
fn checked(framed: &[u8]) -> Option<&[u8]> {
    let mut parts = framed.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok();
    let length: usize = number()?.parse().ok()?;
    let sum = u64::from_str_radix(number()?, 16).ok()?;
    let json = parts.next()?;
    (json.len() == length && xxh3_64(json) == sum).then_some(json)
}
