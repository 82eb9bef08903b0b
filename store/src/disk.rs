//! Files and directories of the store: private, whole or not there, and on disk when they have to be.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use crate::StoreError;

/// How many files are brought to disk at once: a journaling file system then writes one commit for several.
const SYNCS_AT_ONCE: usize = 8;

/// Makes a directory (0700); it may be there.
pub(crate) fn make_directory(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(StoreError::io("make", path)),
    }
}

/// Writes a new file (0600). It need not be on disk when this returns.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<File, StoreError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes).map(|()| file)).map_err(StoreError::io("write", path))
}

/// Waits until all of these are on disk.
pub(crate) fn sync_all(files: &[(PathBuf, File)]) -> Result<(), StoreError> {
    let part = files.len().div_ceil(SYNCS_AT_ONCE).max(1);
    let sync_part = |part: &[(PathBuf, File)]| {
        part.iter().try_for_each(|(path, file)| file.sync_all().map_err(StoreError::io("write", path)))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = files.chunks(part).map(|part| scope.spawn(move || sync_part(part))).collect();
        threads.into_iter().try_for_each(|thread| {
            let died = || StoreError::io("write", Path::new("a batch"))(io::Error::other("its thread died"));
            thread.join().unwrap_or_else(|_| Err(died()))
        })
    })
}

/// Waits until the names in a directory are on disk.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(StoreError::io("write", path))
}

/// Puts a file into its place, by way of `new` in the same file system: it is there as a whole and on disk, or not at all.
pub(crate) fn replace(path: &Path, new: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let file = write_new(new, bytes)?;
    file.sync_all().map_err(StoreError::io("write", new))?;
    std::fs::rename(new, path).map_err(StoreError::io("write", path))?;
    sync_directory(path.parent().unwrap_or(path))
}

/// Removes a file; whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, StoreError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("remove", path)(error)),
    }
}

/// Removes a directory with all that is in it; it may not be there.
pub(crate) fn remove_directory(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The entries of a directory; none when it is not there.
pub(crate) fn entries(path: &Path) -> Result<Vec<std::fs::DirEntry>, StoreError> {
    match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<_>>).map_err(StoreError::io("read", path)),
    }
}
