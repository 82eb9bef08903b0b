//! Which directories of this host are copies left behind by a container that moved away.
//!
//! Such a copy may be overwritten when the same container comes back, and is the base that its differences are sent
//! against. Anything else that lies at a volume's place is somebody's data and is not touched.

use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format of a record.
const VERSION: u32 = 1;

/// What is known of one left copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    path: String,
    container: String,
    /// Device and inode of the root: another directory put at the same place is not the copy.
    dev: u64,
    ino: u64,
}

/// The records of this host, below godwit's root directory.
#[derive(Clone, Debug)]
pub struct StaleCopies {
    dir: PathBuf,
}

impl StaleCopies {
    /// The records below `root`.
    pub fn below(root: &Path) -> Self {
        Self { dir: root.join("stale") }
    }

    fn file(&self, path: &Path) -> PathBuf {
        self.dir.join(blake3::hash(path.as_os_str().as_bytes()).to_hex().as_str())
    }

    fn record_of(path: &Path, container: &str) -> io::Result<Record> {
        let meta = std::fs::symlink_metadata(path)?;
        let path = path.to_string_lossy().into_owned();
        Ok(Record {
            version: VERSION,
            path,
            container: container.to_owned(),
            dev: meta.dev(),
            ino: meta.ino(),
        })
    }

    /// Notes that what lies at `path` is a copy that `container` left.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&self, path: &Path, container: &str) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let text = serde_json::to_vec(&Self::record_of(path, container)?)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(self.file(path))?.write_all(&text)
    }

    /// Whether what lies at `path` is a copy that `container` left.
    pub fn is_left_by(&self, path: &Path, container: &str) -> bool {
        let known =
            std::fs::read(self.file(path)).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        known.is_some() && known == Self::record_of(path, container).ok()
    }

    /// The copy at `path` is in use again, or gone.
    ///
    /// # Errors
    /// When the record cannot be removed.
    pub fn forget(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(self.file(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_directory_of_the_same_container_counts() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        let copies = StaleCopies::below(root.path());
        assert!(!copies.is_left_by(&volume, "runc:web"));
        std::fs::create_dir(&volume).unwrap();
        copies.note(&volume, "runc:web").unwrap();
        assert!(copies.is_left_by(&volume, "runc:web"));
        assert!(!copies.is_left_by(&volume, "runc:db"));
        std::fs::rename(&volume, root.path().join("old")).unwrap();
        std::fs::create_dir(&volume).unwrap();
        assert!(!copies.is_left_by(&volume, "runc:web"), "another directory at the same place");
        copies.forget(&volume).unwrap();
        copies.forget(&volume).unwrap();
    }
}
