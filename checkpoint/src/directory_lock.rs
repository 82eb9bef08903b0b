//! A lock on a directory that lasts as long as its holder (flock(2)): whoever gets it of a directory that somebody else made
//! knows that its maker is dead.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Locks a directory; none when others hold it and `how` does not wait, or when it is gone, or was replaced while it was
/// waited for.
///
/// # Errors
/// When it cannot be opened or locked.
pub fn lock_directory(path: &Path, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    let dir = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        dir => dir?,
    };
    let lock = match Flock::lock(dir, how) {
        Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, errno)) => return Err(errno.into()),
        Ok(lock) => lock,
    };
    let held = lock.metadata()?;
    let is_it = |now: std::fs::Metadata| (now.dev(), now.ino()) == (held.dev(), held.ino());
    Ok(path.metadata().is_ok_and(is_it).then_some(lock))
}
