//! One migration at a time for a container, on each host.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Held while a migration of one container is under way. The kernel lets go of it when the process ends, however.
#[derive(Debug)]
pub struct ContainerLock {
    file: Flock<File>,
}

impl ContainerLock {
    /// A descriptor for another process: it is held until that one has closed its own, too. Nothing is to be written to it.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// Takes the lock of a container below godwit's root directory; `None` when another process holds it.
///
/// # Errors
/// When the lock's file cannot be made.
pub fn lock_container(root: &Path, engine: &str, name: &str) -> io::Result<Option<ContainerLock>> {
    let dir = root.join("locks");
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let path = path_of(root, engine, name);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mut tried = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    // somebody may only be asking whether it is held
    for _ in 0..5 {
        tried = match tried {
            Err((file, Errno::EWOULDBLOCK)) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
                Flock::lock(file, FlockArg::LockExclusiveNonblock)
            }
            done => done,
        };
    }
    match tried {
        Ok(file) => {
            // for whoever wants to stop it; that it is old says nothing, the lock does
            file.set_len(0)?;
            file.write_all_at(std::process::id().to_string().as_bytes(), 0)?;
            Ok(Some(ContainerLock { file }))
        }
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// The process that holds the lock of a container; none when nobody does.
pub fn holder(root: &Path, engine: &str, name: &str) -> Option<i32> {
    let path = path_of(root, engine, name);
    let text = std::fs::read_to_string(&path).ok()?;
    let file = File::open(&path).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => text.trim().parse().ok(),
        _ => None,
    }
}

fn path_of(root: &Path, engine: &str, name: &str) -> PathBuf {
    // a name is at most what an engine accepts; a slash would lead elsewhere
    root.join("locks").join(format!("{engine}-{}", name.replace('/', "_")))
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
        assert_eq!(holder(root.path(), "runc", "web"), i32::try_from(std::process::id()).ok());
        assert_eq!(holder(root.path(), "runc", "db"), None);
        drop(first);
        assert!(lock_container(root.path(), "runc", "web").unwrap().is_some());
    }
}
