//! RESP2, the wire format of redis: commands as arrays of bulk strings, replies with every length bounded.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use super::protocol::Malformed;

/// The longest status, error, integer or length line, bytes.
const LINE_LIMIT: usize = 4 << 10;
/// The most elements of an array; the probe never asks for as many.
const ELEMENTS_LIMIT: i64 = 1024;

/// A reply that borrows from the received bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// `+OK`
    Simple(&'a [u8]),
    /// `-ERR …`
    Error(&'a [u8]),
    /// `:42`
    Integer(i64),
    /// `$3 abc`
    Bulk(&'a [u8]),
    /// `$-1` or `*-1`
    Null,
    /// `*2 …`; never nested.
    Array(Vec<Value<'a>>),
}

/// Appends a command.
pub fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Reads one value from the front of `input` and says how many bytes it took; `None` when it is incomplete.
///
/// # Errors
/// When the bytes are not RESP2, a bulk string is longer than `bulk_limit` bytes, or an array is too long.
pub fn parse(input: &[u8], bulk_limit: usize) -> Result<Option<(Value<'_>, usize)>, Malformed> {
    let Some((line, mut used)) = line(input)? else { return Ok(None) };
    let Some((b'*', count)) = line.split_first().map(|(kind, rest)| (*kind, rest)) else {
        return scalar(input, bulk_limit);
    };
    let count = integer(count)?;
    if count == -1 {
        return Ok(Some((Value::Null, used)));
    }
    if !(0..=ELEMENTS_LIMIT).contains(&count) {
        return Err(Malformed(format!("redis announced an array of {count} elements")));
    }
    let mut elements = Vec::new();
    for _ in 0..count {
        match scalar(&input[used..], bulk_limit)? {
            None => return Ok(None),
            Some((value, length)) => {
                elements.push(value);
                used += length;
            }
        }
    }
    Ok(Some((Value::Array(elements), used)))
}

/// Reads anything but an array.
fn scalar(input: &[u8], bulk_limit: usize) -> Result<Option<(Value<'_>, usize)>, Malformed> {
    let Some((line, used)) = line(input)? else { return Ok(None) };
    let Some((&kind, rest)) = line.split_first() else {
        return Err(Malformed("redis sent an empty line".into()));
    };
    let value = match kind {
        b'+' => Value::Simple(rest),
        b'-' => Value::Error(rest),
        b':' => Value::Integer(integer(rest)?),
        b'$' => {
            let length = integer(rest)?;
            if length == -1 {
                return Ok(Some((Value::Null, used)));
            }
            let length = usize::try_from(length)
                .ok()
                .filter(|&length| length <= bulk_limit)
                .ok_or_else(|| Malformed(format!("redis announced a string of {length} bytes")))?;
            let Some(bytes) = input.get(used..used + length + 2) else { return Ok(None) };
            let (bytes, end) = bytes.split_at(length);
            if end != b"\r\n" {
                return Err(Malformed("a redis string does not end where it said".into()));
            }
            return Ok(Some((Value::Bulk(bytes), used + length + 2)));
        }
        other => return Err(Malformed(format!("`{}` begins no reply of redis", other.escape_ascii()))),
    };
    Ok(Some((value, used)))
}

fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let searched = &input[..input.len().min(LINE_LIMIT)];
    match searched.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => Ok(Some((&input[..end], end + 2))),
        None if input.len() >= LINE_LIMIT => {
            Err(Malformed(format!("redis sent a line longer than {LINE_LIMIT} bytes")))
        }
        None => Ok(None),
    }
}

fn integer(digits: &[u8]) -> Result<i64, Malformed> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| Malformed(format!("`{:.40}` is not a number", digits.escape_ascii().to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_every_prefix_is_incomplete() {
        let wires: [(&[u8], Value<'_>); 7] = [
            (b"+OK\r\n", Value::Simple(b"OK")),
            (b"-ERR no\r\n", Value::Error(b"ERR no")),
            (b":-7\r\n", Value::Integer(-7)),
            (b"$4\r\na\r\nb\r\n", Value::Bulk(b"a\r\nb")),
            (b"$-1\r\n", Value::Null),
            (b"*-1\r\n", Value::Null),
            (b"*2\r\n$1\r\nx\r\n$-1\r\n", Value::Array(vec![Value::Bulk(b"x"), Value::Null])),
        ];
        for (wire, value) in wires {
            assert_eq!(parse(wire, 100), Ok(Some((value, wire.len()))));
            for end in 0..wire.len() {
                assert_eq!(parse(&wire[..end], 100), Ok(None), "{}", wire[..end].escape_ascii());
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for wire in [
            &b"$101\r\n"[..],
            b"$-2\r\n",
            b"$99999999999999999999\r\n",
            b"$9223372036854775807\r\n",
            b"*9223372036854775807\r\n",
            b"*1025\r\n",
            b"*1\r\n*1\r\n:1\r\n",
            b"$1\r\nabc",
            b"\r\n",
            b":\xff\r\n",
            b"HTTP/1.1 400\r\n",
        ] {
            assert!(parse(wire, 100).is_err(), "{}", wire.escape_ascii());
        }
        assert!(parse(&[b'+'; LINE_LIMIT], 100).is_err());
    }

    #[test]
    fn random_bytes_never_panic() {
        let alphabet = b"+-:$*0123456789\r\n\r\n\r\nab\xff";
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200_000 {
            let mut wire = [0_u8; 24];
            for byte in &mut wire {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = alphabet[(state % alphabet.len() as u64) as usize];
            }
            if let Ok(Some((_, used))) = parse(&wire, 100) {
                assert!(used > 0 && used <= wire.len());
            }
        }
    }
}
