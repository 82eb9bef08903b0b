//! One `podman start`, with a stand-in for its runtime.

use crate::error::EngineError;
use crate::runtime::{Flavor, write_private};
use crate::stand_in::{CONFIGURATION, WATCHER, program_file};
use crate::start::{Door, Start, program};
use crate::tool::{self, Running, own_program};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that a question to podman may take.
const ASK: Duration = Duration::from_secs(60);

/// Lets podman start a container of its, with a stand-in for its runtime, and `conmon` to watch it. Returns when podman asks for the
/// runtime.
///
/// # Errors
/// When it does not come that far.
pub(super) fn begin(
    podman: &Path,
    conmon: &Path,
    id: &str,
    flavor: Flavor,
    job: &Path,
) -> Result<Start, EngineError> {
    let door = Door::open(job)?;
    let dir = door.dir();
    for (name, program) in [(flavor.kind(), program(flavor)?), (WATCHER, conmon.to_owned())] {
        symlink(own_program(), dir.join(name)).map_err(EngineError::io("make a link to godwit in", dir))?;
        write_private(&program_file(dir, name), program.to_string_lossy().as_bytes())?;
    }
    let conf = dir.join("containers.conf");
    let (kind, dir_name) = (flavor.kind(), dir.display());
    let text = format!(
        "[engine]\nconmon_path = [\"{dir_name}/{WATCHER}\"]\n[engine.runtimes]\n{kind} = [\"{dir_name}/{kind}\"]\n"
    );
    write_private(&conf, text.as_bytes())?;
    let podman = Running::start(podman, &["start", id], &[(CONFIGURATION, conf.into_os_string())])?;
    door.wait_for(Box::new(podman))
}

/// The conmon that this podman uses. Not to be asked while a container of its waits for its restore: podman would wait, too.
pub(super) fn watcher(podman: &Path) -> Result<PathBuf, EngineError> {
    let said = tool::run(podman, &["info", "--format", "{{.Host.Conmon.Path}}"], ASK)?;
    Ok(said.trim().into())
}
