//! What must outlast this process besides the journal: one small file beside it, replaced as a whole.

use serde::{Serialize, de::DeserializeOwned};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const NAME: &str = "remains.json";

/// Writes it into a migration's directory (0600); on disk when this returns.
///
/// # Errors
/// When it cannot be written; what was there before is still there.
pub fn keep(dir: &Path, remains: &impl Serialize) -> io::Result<()> {
    let new = dir.join("remains.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    serde_json::to_writer(&mut file, remains)?;
    file.flush()?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

/// What was kept, if anything was.
///
/// # Errors
/// When it cannot be read or understood.
pub fn find<T: DeserializeOwned>(dir: &Path) -> io::Result<Option<T>> {
    match std::fs::read(dir.join(NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_is_found_and_is_private() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find::<u32>(dir.path()).unwrap(), None);
        keep(dir.path(), &1u32).unwrap();
        keep(dir.path(), &2u32).unwrap();
        assert_eq!(find(dir.path()).unwrap(), Some(2u32));
        assert_eq!(std::fs::metadata(dir.path().join(NAME)).unwrap().mode() & 0o777, 0o600);
        std::fs::write(dir.path().join(NAME), "{").unwrap();
        assert!(find::<u32>(dir.path()).is_err());
    }
}
