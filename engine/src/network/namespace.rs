//! A network namespace, and work done inside it by threads of their own.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::{NetworkError, Result};

/// Where `ip netns` keeps its names (ip-netns(8)).
const NAMES: &str = "/run/netns";

/// An open network namespace. It stays usable when its path or its last process is gone.
#[derive(Debug, Clone)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<File>,
}

impl Namespace {
    /// Opens the namespace at `path`: `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file: Arc::new(file) }),
            Err(source) => Err(NetworkError::Namespace { path, source }),
        }
    }

    /// Opens the namespace of process `pid`.
    pub fn of_pid(pid: i32) -> Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Opens the namespace called `name` by `ip netns`.
    pub fn named(name: &str) -> Result<Self> {
        Self::open(Self::path_of(name))
    }

    /// The path of the namespace called `name`: `/run/netns/NAME`.
    pub fn path_of(name: &str) -> PathBuf {
        Path::new(NAMES).join(name)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name `ip netns` knows it by, when it was opened by one.
    pub fn name(&self) -> Option<&str> {
        if self.path.parent()? != Path::new(NAMES) {
            return None;
        }
        self.path.file_name()?.to_str()
    }

    /// Whether this is the namespace of the calling thread: the host's.
    pub fn is_own(&self) -> Result<bool> {
        let own = Self::open("/proc/thread-self/ns/net")?;
        Ok(self.identity()? == own.identity()?)
    }

    /// Device and inode: equal for two handles exactly when they are one namespace (namespaces(7)).
    pub fn identity(&self) -> Result<(u64, u64)> {
        let meta = self.file.metadata().map_err(|source| self.error(source))?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Runs `work` inside the namespace, on a thread that ends with it: a thread that entered another namespace
    /// is never used for anything else. Sockets and processes made by `work` belong to the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = || {
                setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, nix::Error>(work())
            };
            let spawned = thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside);
            match spawned.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(Ok(value))) => Ok(value),
                Ok(Ok(Err(errno))) => Err(self.error(io::Error::from(errno))),
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(source) => Err(self.error(source)),
            }
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn error(&self, source: io::Error) -> NetworkError {
        NetworkError::Namespace { path: self.path.clone(), source }
    }
}
