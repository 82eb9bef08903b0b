//! What is mounted where.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount, as /proc/PID/mountinfo has it (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq)]
pub(crate) struct Mount {
    pub(crate) device: String,
    /// What of its file system is mounted.
    pub(crate) root: PathBuf,
    pub(crate) at: PathBuf,
}

impl Mount {
    fn of_line(line: &str) -> Option<Self> {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?.to_owned();
        Some(Self { device, root: unescape(fields.next()?), at: unescape(fields.next()?) })
    }
}

/// Those of a process's mount namespace.
pub(crate) fn mounts(process: &str) -> io::Result<Vec<Mount>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
    Ok(text.lines().filter_map(Mount::of_line).collect())
}

/// Spaces and such are written as `\040`, and procfs (the crate) leaves them so.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &behind[3..] } else { behind };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether something is mounted at a path, which is no symbolic link.
///
/// # Errors
/// When the mounts cannot be read.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(mounts("self")?.iter().any(|mount| mount.at == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_understood() {
        let line = r"36 35 98:0 /mnt\0401 /mnt/a\134b rw,noatime master:1 - ext3 /dev/root rw";
        let mount = Mount { device: "98:0".into(), root: "/mnt 1".into(), at: r"/mnt/a\b".into() };
        assert_eq!(Mount::of_line(line), Some(mount));
        assert_eq!(unescape(r"\0"), Path::new(r"\0"));
    }
}
