//! What the container's layer hides of its image, as a checkpoint keeps it: paths below the root, each ended by a NUL.

use godwit_transfer::tree::TreePath;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest file that is read, bytes.
const LIMIT: u64 = 64 << 20;

/// Writes the file, which is new.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(path: &Path, gone: &[TreePath]) -> io::Result<()> {
    let bytes: Vec<u8> = gone.iter().flat_map(|path| path.as_bytes().iter().chain(&[0])).copied().collect();
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(&bytes)
}

/// Reads it.
///
/// # Errors
/// When it cannot be read, is too long, or holds what is no path below a root.
pub(crate) fn read(path: &Path) -> io::Result<Vec<TreePath>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut bytes = Vec::new();
    File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(invalid(format!("more than {LIMIT} bytes")));
    }
    let paths = bytes.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    paths.map(|path| TreePath::new(path).map_err(|error| invalid(error.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_leads_out_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone");
        let gone = ["etc/group", "usr/lib/a b\n"].map(|path| TreePath::new(path.as_bytes()).unwrap());
        write(&path, &gone).unwrap();
        assert_eq!(read(&path).unwrap(), gone);
        for odd in ["../x\0", "/etc\0", "a/../b\0"] {
            std::fs::write(&path, odd).unwrap();
            assert!(read(&path).is_err(), "{odd}");
        }
    }
}
