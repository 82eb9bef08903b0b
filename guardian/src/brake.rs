//! What freezes a container: a file of its cgroup, kept open, and a word.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The files that freeze, by version of cgroups, and what is written there (cgroups(7), the kernel's freezer-subsystem.rst
/// and cgroup-v2.rst).
const ORDERS: [(&str, &str); 2] = [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")];

/// Freezes one cgroup with a single write. It is locked (flock(2)) as long as somebody holds it, godwit or a guardian: see
/// [`is_guarded`].
#[derive(Debug)]
pub struct Brake {
    dir: PathBuf,
    file: File,
    word: &'static str,
    outside: Option<File>,
}

impl Brake {
    /// The brake of the cgroup at `dir`, of either version.
    ///
    /// # Errors
    /// When it is no cgroup that can be frozen.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let (file, word) = open(dir)?;
        // two may hold it; that a third one asks at this very moment does no harm
        let _ = file.try_lock_shared();
        Ok(Self { dir: dir.to_owned(), file, word, outside: None })
    }

    /// With a `cgroup.procs` of the same hierarchy, outside of the cgroup: a dying CRIU that sits in the cgroup is moved there.
    /// Frozen with the others it would not get to its end.
    #[must_use]
    pub fn with_outside(self, procs: File) -> Self {
        Self { outside: Some(procs), ..self }
    }

    /// The cgroup.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Orders the freeze, and does not wait for it: from then on no task returns to its program. Frozen already is fine.
    ///
    /// # Errors
    /// When the kernel says no: the cgroup is gone.
    pub fn pull(&self) -> io::Result<()> {
        (&self.file).write_all(self.word.as_bytes())
    }

    pub(crate) fn word(&self) -> &'static str {
        self.word
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [Some(&self.file), self.outside.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect()
    }
}

/// Whether somebody, a living godwit or a guardian that has outlived its godwit, may still freeze the cgroup at `dir` because of
/// a CRIU. Who wants to thaw it should wait until that is over.
pub fn is_guarded(dir: &Path) -> bool {
    open(dir).is_ok_and(|(file, _)| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn open(dir: &Path) -> io::Result<(File, &'static str)> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (name, word) in ORDERS {
        match OpenOptions::new().write(true).open(dir.join(name)) {
            Ok(file) => return Ok((file, word)),
            Err(error) => last = error,
        }
    }
    Err(last)
}
