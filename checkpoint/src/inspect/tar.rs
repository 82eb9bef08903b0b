//! Reads a tar archive from its beginning to its end, and unpacks nothing (POSIX.1-2001 with GNU's long names). All of it may be
//! anybody's: lengths are limited before anything is allocated.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Longest extended header or name, bytes.
const MAX_HEADER: u64 = 1 << 20;
/// Most entries.
const MAX_ENTRIES: usize = 1 << 20;

/// An entry as its header has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its path, without `./` before and `/` behind.
    pub(super) path: String,
    /// Bytes of its contents.
    pub(super) bytes: u64,
    /// It is a regular file.
    pub(super) is_file: bool,
    /// When it was last changed, seconds since the epoch.
    pub(super) changed_s: u64,
}

/// Gives every entry and its contents to `take`, which may read as much of them as it likes.
///
/// # Errors
/// When it cannot be read, or is no whole archive ([`io::ErrorKind::InvalidData`]).
pub(super) fn each(
    mut from: impl Read,
    mut take: impl FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let mut long = Long::default();
    for _ in 0..MAX_ENTRIES {
        let mut header = [0; BLOCK];
        from.read_exact(&mut header).map_err(cut_off)?;
        if header.iter().all(|byte| *byte == 0) {
            // what follows the end is padding; reading it lets a compressor check its sum
            io::copy(&mut from, &mut io::sink())?;
            return Ok(());
        }
        check_sum(&header)?;
        let kind = header[156];
        let size = number(&header[124..136])?;
        if matches!(kind, b'x' | b'g' | b'L' | b'K') {
            let text = whole(&mut from, size)?;
            match kind {
                b'x' => long.read_pax(&text)?,
                b'L' => long.path = Some(until_nul(&text)),
                // of what links lead to, and of the whole archive, nothing matters here
                _ => {}
            }
            skip(&mut from, padding(size))?;
            continue;
        }
        let Long { path, size: long_size } = std::mem::take(&mut long);
        // links and devices have no contents, whatever their size says
        let bytes = if matches!(kind, b'1'..=b'6') { 0 } else { long_size.unwrap_or(size) };
        let path = path.unwrap_or_else(|| name_in(&header));
        let path = path.strip_prefix("./").unwrap_or(&path).trim_end_matches('/').to_owned();
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(invalid("a name leads out of it"));
        }
        if kind == b'S' {
            return Err(invalid("it has sparse files"));
        }
        let changed_s = number(&header[136..148])?;
        let entry = Entry { path, bytes, is_file: matches!(kind, 0 | b'0' | b'7'), changed_s };
        let mut contents = (&mut from).take(bytes);
        take(&entry, &mut contents)?;
        let rest = contents.limit();
        skip(&mut from, rest)?;
        skip(&mut from, padding(bytes))?;
    }
    Err(invalid("it has more entries than any checkpoint"))
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Long {
    path: Option<String>,
    size: Option<u64>,
}

impl Long {
    /// `LENGTH KEY=VALUE\n`, one after the other.
    fn read_pax(&mut self, mut text: &[u8]) -> io::Result<()> {
        let odd = || invalid("an extended header cannot be understood");
        while !text.is_empty() {
            let space = text.iter().position(|byte| *byte == b' ').ok_or_else(odd)?;
            let length = std::str::from_utf8(&text[..space]).ok().and_then(|length| length.parse().ok());
            let length: usize = length.filter(|length| *length > space).ok_or_else(odd)?;
            let (record, rest) = text.split_at_checked(length).ok_or_else(odd)?;
            text = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(odd)?;
            let at = record.iter().position(|byte| *byte == b'=').ok_or_else(odd)?;
            let value = String::from_utf8_lossy(&record[at + 1..]);
            match &record[..at] {
                b"path" => self.path = Some(value.into_owned()),
                b"size" => self.size = Some(value.parse().map_err(|_| odd())?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn cut_off(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => invalid("it is cut off"),
        _ => error,
    }
}

fn padding(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK as u64
}

fn skip(from: &mut impl Read, bytes: u64) -> io::Result<()> {
    match io::copy(&mut from.take(bytes), &mut io::sink())? {
        skipped if skipped == bytes => Ok(()),
        _ => Err(invalid("it is cut off")),
    }
}

fn whole(from: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    if bytes > MAX_HEADER {
        return Err(invalid("a header is longer than any"));
    }
    let mut text = Vec::new();
    from.take(bytes).read_to_end(&mut text)?;
    if text.len() as u64 == bytes { Ok(text) } else { Err(invalid("it is cut off")) }
}

fn until_nul(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn name_in(header: &[u8; BLOCK]) -> String {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // GNU's own format has times where POSIX has a prefix
    let is_posix = &header[257..263] == b"ustar\0";
    if is_posix && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

/// Octal digits, or GNU's binary for what is too large for them.
fn number(field: &[u8]) -> io::Result<u64> {
    let odd = || invalid("a header has a number that is none");
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let is_small = high[0] == 0x80 && high[1..].iter().all(|byte| *byte == 0);
        let low = <[u8; 8]>::try_from(low).map_err(|_| odd())?;
        return Some(u64::from_be_bytes(low))
            .filter(|size| is_small && *size <= i64::MAX as u64)
            .ok_or_else(odd);
    }
    let text = std::str::from_utf8(field).map_err(|_| odd())?.trim_matches(['\0', ' ']);
    if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| odd()) }
}

fn check_sum(header: &[u8; BLOCK]) -> io::Result<()> {
    let is_sum = |at: usize| (148..156).contains(&at);
    let sum: u64 =
        header.iter().enumerate().map(|(at, byte)| if is_sum(at) { 32 } else { u64::from(*byte) }).sum();
    if number(&header[148..156])? == sum { Ok(()) } else { Err(invalid("it is no tar archive, or damaged")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn list(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut found = Vec::new();
        each(bytes, |entry, contents| {
            let mut some = Vec::new();
            contents.take(4).read_to_end(&mut some)?;
            found.push((Entry { changed_s: 0, ..entry.clone() }, some));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn what_tar_writes_is_read_in_each_of_its_formats() {
        let dir = tempfile::tempdir().unwrap();
        let long = "l".repeat(120);
        std::fs::create_dir_all(dir.path().join("in").join(&long)).unwrap();
        std::fs::write(dir.path().join("in/a"), "12345678").unwrap();
        std::fs::write(dir.path().join("in").join(&long).join(&long), "x".repeat(2000)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("in/link")).unwrap();
        for format in ["posix", "gnu"] {
            let output = Command::new("tar")
                .args(["--create", "--file=-", "--sort=name", &format!("--format={format}"), "--directory"])
                .arg(dir.path())
                .arg("./in")
                .output()
                .unwrap();
            let found = list(&output.stdout).unwrap();
            let entry = |path: String, bytes, is_file| Entry { path, bytes, is_file, changed_s: 0 };
            let want = [
                (entry("in".into(), 0, false), b"".to_vec()),
                (entry("in/a".into(), 8, true), b"1234".to_vec()),
                (entry("in/link".into(), 0, false), b"".to_vec()),
                (entry(format!("in/{long}"), 0, false), b"".to_vec()),
                (entry(format!("in/{long}/{long}"), 2000, true), b"xxxx".to_vec()),
            ];
            assert_eq!(found, want, "{format}");
            // cut off anywhere, or with one bit of a header turned round
            let entries = output.stdout.iter().rposition(|byte| *byte != 0).unwrap();
            for length in (0..entries).step_by(100) {
                assert!(list(&output.stdout[..length]).is_err(), "{format}: {length}");
            }
            let mut turned = output.stdout.clone();
            turned[130] ^= 1;
            assert!(list(&turned).is_err(), "{format}");
        }
    }

    #[test]
    fn names_that_lead_out_and_lengths_that_lie_are_refused() {
        let header = |name: &str, size: &[u8]| {
            let mut header = [0u8; BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..124 + size.len()].copy_from_slice(size);
            header[156] = b'0';
            header[148..156].fill(b' ');
            let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
            header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
            header[154] = 0;
            header.to_vec()
        };
        for (name, size) in
            [("../x", &b"0"[..]), ("/etc/x", b"0"), ("a/../b", b"0"), ("a", b"77777777777"), ("a", b"x")]
        {
            let mut archive = header(name, size);
            archive.extend([0; 2 * BLOCK]);
            assert!(list(&archive).is_err(), "{name} {size:?}");
        }
        let mut fine = header("a", b"0");
        fine.extend([0; 2 * BLOCK]);
        assert_eq!(list(&fine).unwrap().len(), 1);
    }
}
