//! The hook that holds a restored container: godwit under another name, called by CRIU as its action script.
//!
//! A migration's job directory gets a link `godwit-hold` to the godwit binary. CRIU runs it at each step of a restore
//! under a runtime; at `pre-resume`, when everything is restored and nothing has run, it freezes the container's cgroup
//! (CRIU and itself moved out of it first) and leaves. Nothing needs to stay alive for the hold to last.

use crate::error::EngineError;
use crate::freezer::{HookCall, hold_from_hook};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name under which godwit is the hook.
pub const HOOK_NAME: &str = "godwit-hold";
/// How long the tree may take to freeze.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Whether a program called `arg0` is the hook.
pub fn is_hook(arg0: &Path) -> bool {
    arg0.file_name().is_some_and(|name| name == HOOK_NAME)
}

/// Does the hook's work for one call by CRIU.
///
/// # Errors
/// When the container could not be frozen. CRIU ignores it at this step: the hold is verified afterwards.
pub fn run_hook() -> Result<(), EngineError> {
    // CRIU has entered another container's pid namespace, and so has whom it starts, whose parent is outside then
    // (pid_namespaces(7)): the relay of its messages holds the tree
    if nix::unistd::getppid().as_raw() == 0 {
        return Ok(());
    }
    let call = HookCall::from_env()?;
    hold_from_hook(&call, None, LIMIT)?;
    Ok(())
}

/// Puts the hook's link into a job directory and gives its path.
///
/// # Errors
/// When the link cannot be made.
pub fn install_hook(job: &Path) -> Result<PathBuf, EngineError> {
    let link = job.join(HOOK_NAME);
    let binary = std::env::current_exe().map_err(EngineError::io("find", "/proc/self/exe"))?;
    match std::os::unix::fs::symlink(&binary, &link) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(link),
        made => made.map(|()| link.clone()).map_err(EngineError::io("make", link)),
    }
}
