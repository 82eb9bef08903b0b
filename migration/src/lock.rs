//! One migration at a time for a container, on each host.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Held while a migration of one container is under way. The kernel lets go of it when the process ends, however.
#[derive(Debug)]
pub struct ContainerLock {
    _file: Flock<File>,
}

/// Takes the lock of a container below godwit's root directory; `None` when another process holds it.
///
/// # Errors
/// When the lock's file cannot be made.
pub fn lock_container(root: &Path, engine: &str, name: &str) -> io::Result<Option<ContainerLock>> {
    let dir = root.join("locks");
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    // a name is at most what an engine accepts; a slash would lead elsewhere
    let file = dir.join(format!("{engine}-{}", name.replace('/', "_")));
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Some(ContainerLock { _file: file })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_free_after_drop() {
        let root = tempfile::tempdir().unwrap();
        let first = lock_container(root.path(), "runc", "web").unwrap();
        assert!(first.is_some());
        assert!(lock_container(root.path(), "runc", "web").unwrap().is_none());
        assert!(lock_container(root.path(), "runc", "db").unwrap().is_some());
        drop(first);
        assert!(lock_container(root.path(), "runc", "web").unwrap().is_some());
    }
}
