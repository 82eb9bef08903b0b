//! Reads acknowledged writes back over a fresh connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::redis::bulk_limit;
use super::resp::{self, Value};

/// Keys in one `MGET` at most.
const BATCH_KEYS: usize = 256;
/// Bytes of values in one reply at most, about.
const BATCH_BYTES: usize = 1 << 20;
const RETRY: Duration = Duration::from_millis(100);

/// Reads every entry of the ledger that is still to verify. Gives up when no batch succeeds within `limit`
/// or when `give_up` says so, and returns the reason; what was not read stays unverified.
pub fn verify(
    ledger: &mut Ledger,
    server: SocketAddr,
    value_size: usize,
    limit: Duration,
    mut give_up: impl FnMut() -> bool,
) -> Option<String> {
    let keys = (BATCH_BYTES / value_size.max(1)).clamp(1, BATCH_KEYS);
    let mut stream = None;
    let mut from = 0;
    let mut progressed = Instant::now();
    loop {
        let batch = ledger.to_verify(from, keys);
        let last = batch.last().map(|(entry, _)| *entry)?;
        if give_up() {
            return Some("interrupted".into());
        }
        let deadline = progressed + limit;
        match read_batch(&mut stream, server, &batch, value_size, deadline) {
            Ok(values) => {
                for ((entry, _), value) in batch.iter().zip(values) {
                    ledger.verify(*entry, value.as_deref());
                }
                from = last + 1;
                progressed = Instant::now();
            }
            Err(error) if Instant::now() + RETRY >= deadline => return Some(error.to_string()),
            Err(_) => {
                stream = None;
                thread::sleep(RETRY);
            }
        }
    }
}

fn read_batch(
    stream: &mut Option<TcpStream>,
    server: SocketAddr,
    batch: &[(usize, String)],
    value_size: usize,
    deadline: Instant,
) -> io::Result<Vec<Option<Vec<u8>>>> {
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let stream = match stream {
        Some(stream) => stream,
        None => stream.insert(TcpStream::connect_timeout(&server, left()?)?),
    };
    let mut words: Vec<&[u8]> = vec![b"MGET"];
    words.extend(batch.iter().map(|(_, name)| name.as_bytes()));
    let mut request = Vec::new();
    resp::command(&words, &mut request);
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(&request)?;
    let invalid = |error: String| io::Error::new(ErrorKind::InvalidData, error);
    let mut input = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => input.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let limit = bulk_limit(value_size);
        return match resp::parse(&input, limit).map_err(|error| invalid(error.to_string()))? {
            None => continue,
            Some((Value::Array(values), _)) if values.len() == batch.len() => Ok(values
                .into_iter()
                .map(|value| match value {
                    Value::Bulk(bytes) => Some(bytes.to_vec()),
                    _ => None,
                })
                .collect()),
            Some((Value::Error(text), _)) => Err(invalid(String::from_utf8_lossy(text).into_owned())),
            Some(_) => Err(invalid("redis answered `MGET` with a reply of another kind".into())),
        };
    }
}
