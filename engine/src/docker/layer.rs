//! A container's root file system, mounted by godwit while docker has no use for it: before docker starts the container. As docker
//! mounts it (moby: daemon/graphdriver/overlay2), so that overlay itself makes whiteouts and opaque directories.

use crate::error::EngineError;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::io;
use std::path::{Path, PathBuf};

/// Where overlay says whether it can keep an index; docker's layers have none.
const INDEX: &str = "/sys/module/overlay/parameters/index";

/// Mounts the file system whose upper directory is `upper` (`HOME/ID/diff`) at `place`, which is made.
///
/// # Errors
/// When docker's directory is not as it should be, or the kernel says no.
pub(super) fn mount_at(upper: &Path, place: &Path) -> Result<(), EngineError> {
    let failed = |what: &str| EngineError::Unreadable { path: upper.to_owned(), reason: what.into() };
    let own = upper.parent().ok_or_else(|| failed("it is no layer of docker's"))?;
    let (home, id) = own.parent().zip(own.file_name()).ok_or_else(|| failed("it is no layer of docker's"))?;
    let lower = own.join("lower");
    let lower = std::fs::read_to_string(&lower).map_err(EngineError::io("read", &lower))?;
    let id = id.to_string_lossy();
    let index = if Path::new(INDEX).exists() { "index=off," } else { "" };
    let options = format!("{index}lowerdir={lower},upperdir={id}/diff,workdir={id}/work");
    std::fs::create_dir_all(place).map_err(EngineError::io("make", place))?;
    in_directory(home, || {
        mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
    })
    .map_err(EngineError::io("mount a layer of docker's at", place))
}

/// Whether docker has a container's root file system mounted where godwit can see it.
pub(super) fn is_mounted(place: &Path) -> bool {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
    mounts.is_ok_and(|mounts| mounts.into_iter().any(|mount| mount.mount_point == place))
}

/// Unmounts it. Idempotent.
///
/// # Errors
/// What the kernel said.
pub(super) fn unmount(place: &Path) -> Result<(), EngineError> {
    use nix::errno::Errno;
    match umount2(place, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {
            let _ = std::fs::remove_dir(place);
            Ok(())
        }
        Err(errno) => Err(EngineError::io("unmount", place)(errno.into())),
    }
}

/// Does something with `home` as the working directory, on a thread that ends with it. docker names lower directories relative to its
/// own: with many layers whole paths would be longer than the page that options may have.
fn in_directory(home: &Path, work: impl FnOnce() -> nix::Result<()> + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let inside = || {
            unshare(CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(home)?;
            work()
        };
        let thread = std::thread::Builder::new().name("mount".into()).spawn_scoped(scope, inside)?;
        match thread.join() {
            Ok(done) => done.map_err(io::Error::from),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Where the file system is mounted until docker mounts it itself.
pub(super) fn place_of(job: &Path) -> PathBuf {
    job.join("root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_layer_is_not_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("root");
        assert!(mount_at(&dir.path().join("id/diff"), &place).is_err());
        assert!(mount_at(Path::new("/"), &place).is_err());
        unmount(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        unmount(&place).unwrap();
        assert!(!place.exists());
    }

    #[test]
    fn a_directory_of_its_own_changes_nobody_elses() {
        let before = std::env::current_dir().unwrap();
        let mut there = None;
        in_directory(Path::new("/proc"), || {
            there = std::fs::read_link("/proc/thread-self/cwd").ok();
            Ok(())
        })
        .unwrap();
        assert_eq!((there, std::env::current_dir().unwrap()), (Some("/proc".into()), before));
    }
}
