//! The keeper of a scope: systemd makes a scope for a process that is there already, so crun gives it one of its own, and has it wait in a
//! cgroup within the container's until the restored one has come (crun: src/libcrun/container.c, `restore_proxy_process`). It leaves by
//! the cgroup that its own one is in. That would be the container's, which is frozen by then; so it is put elsewhere before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Freezer, FreezerError, Result, pids_below, remove_cgroup};

/// Where it waits, in the container's cgroup.
const PLACE: &str = ".proxy-crun";
/// Where it is put, in the scope; and the one in that, in which it waits.
const ASIDE: &str = ".godwit";
const WAITING: &str = "keeper";

/// The keepers in a container's cgroup.
pub(super) fn keepers(cgroup: &Path) -> BTreeSet<i32> {
    pids_below(&cgroup.join(PLACE)).unwrap_or_default()
}

impl Freezer {
    /// Has the keeper wait beside the container's cgroup. Nothing is done where there is none.
    pub(super) fn put_keeper_aside(&self) -> Result<()> {
        let (place, Some(aside)) = (self.path().join(PLACE), self.aside()) else { return Ok(()) };
        if !place.is_dir() {
            return Ok(());
        }
        let failed = |what, path: &Path, source| FreezerError::File { what, path: path.to_owned(), source };
        let waiting = aside.join(WAITING);
        fs::create_dir_all(&waiting).map_err(|source| failed("create", &waiting, source))?;
        let procs = waiting.join("cgroup.procs");
        for keeper in keepers(self.path()) {
            match fs::write(&procs, keeper.to_string()) {
                // it ended meanwhile
                Err(source) if source.raw_os_error() == Some(libc::ESRCH) => {}
                written => written.map_err(|source| failed("write", &procs, source))?,
            }
        }
        remove_cgroup(&place)
    }

    /// Removes where the keeper waited. It has gone when the runtime has.
    ///
    /// # Errors
    /// When it is still there.
    pub fn forget_keeper(&self) -> Result<()> {
        self.aside().filter(|aside| aside.is_dir()).map_or(Ok(()), |aside| remove_cgroup(&aside))
    }

    /// Beside the container's cgroup, where nothing else is.
    fn aside(&self) -> Option<PathBuf> {
        Some(self.path().parent()?.join(ASIDE))
    }
}
