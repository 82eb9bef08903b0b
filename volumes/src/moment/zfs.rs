//! Snapshots of ZFS (zfs-snapshot(8)). The commands are tested against a recorded double alone: no kernel of ours has ZFS.
//!
//! A snapshot is of a whole dataset, and can be read below the hidden directory `.zfs/snapshot` of where that is mounted.

use super::{Kept, Means, MomentError, said};
use nix::sys::statfs::statfs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file system, and its program.
pub(super) const NAME: &str = "zfs";
/// `ZFS_SUPER_MAGIC` of OpenZFS, include/os/linux/zfs/sys/zfs_vfsops_os.h.
const MAGIC: i64 = 0x2fc1_2fc1;
/// The name of the snapshot in its dataset: one at a time, under the volume's lock; others of the dataset have other names.
const PREFIX: &str = "godwit-";

/// A directory of a dataset.
#[derive(Debug)]
pub(super) struct Zfs {
    /// The program.
    program: PathBuf,
    /// The dataset, and where it is mounted.
    dataset: String,
    mountpoint: PathBuf,
    /// The volume in it; empty where it is all of it.
    below: PathBuf,
}

impl Zfs {
    /// None when the volume lies on another file system.
    pub(super) fn of(volume: &Path) -> Result<Option<Self>, MomentError> {
        let magic = statfs(volume).map(|facts| facts.filesystem_type().0);
        if magic != Ok(MAGIC) { Ok(None) } else { Self::with("zfs".into(), volume).map(Some) }
    }

    fn with(program: PathBuf, volume: &Path) -> Result<Self, MomentError> {
        let asked = ["list", "-H", "-o", "name,mountpoint"];
        let listed = said(Command::new(&program).args(asked).arg(volume), "zfs")?;
        let (dataset, mountpoint) = listed
            .trim_end()
            .split_once('\t')
            .ok_or(MomentError::Unfit("zfs does not say which dataset it is"))?;
        let mountpoint = PathBuf::from(mountpoint);
        let below = volume
            .strip_prefix(&mountpoint)
            .map_err(|_| MomentError::Unfit("its dataset is not mounted where zfs says"))?
            .to_owned();
        Ok(Self { program, dataset: dataset.to_owned(), mountpoint, below })
    }

    /// Another volume of the dataset has another name.
    fn name(&self) -> String {
        let digest = godwit_store::Digest::of(self.below.as_os_str().as_encoded_bytes()).to_string();
        format!("{PREFIX}{}", &digest[..16])
    }

    fn run(&self, verb: &str) -> Result<(), MomentError> {
        let snapshot = format!("{}@{}", self.dataset, self.name());
        said(Command::new(&self.program).args([verb, &snapshot]), "zfs").map(drop)
    }

    fn shown(&self) -> PathBuf {
        self.mountpoint.join(".zfs/snapshot").join(self.name())
    }
}

impl Means for Zfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self) -> Result<(), MomentError> {
        if self.shown().exists() { self.remove() } else { Ok(()) }
    }

    fn make(&self) -> Result<(), MomentError> {
        self.run("snapshot")
    }

    fn tree(&self) -> PathBuf {
        self.shown().join(&self.below)
    }

    fn remove(&self) -> Result<(), MomentError> {
        self.run("destroy")
    }

    /// Of the whole dataset, in which the volume may be a directory.
    fn keep(&self, time: &str) -> Result<Kept, MomentError> {
        let own = format!("{}-{time}", self.name());
        let name = format!("{}@{own}", self.dataset);
        said(Command::new(&self.program).args(["snapshot", &name]), NAME)?;
        let at = self.mountpoint.join(".zfs/snapshot").join(own).join(&self.below);
        Ok(Kept { by: NAME.into(), name, at })
    }
}

/// Takes a snapshot away.
pub(super) fn destroy(program: &Path, snapshot: &str) -> Result<(), MomentError> {
    said(Command::new(program).args(["destroy", snapshot]), NAME).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::Moment;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Says and does what zfs(8) would of one dataset, and notes how it was called.
    fn double(dir: &Path) -> PathBuf {
        let (program, text) = (dir.join("zfs"), dir.display());
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {text}/called\ncase $1 in\n\
             list) printf 'tank/data\\t{text}/tank\\n';;\n\
             snapshot) n=${{2#*@}}; mkdir -p {text}/tank/.zfs/snapshot; [ ! -e {text}/tank/.zfs/snapshot/$n ] || exit 1\n\
                cp -a {text}/tank/db {text}/kept && mkdir {text}/tank/.zfs/snapshot/$n && mv {text}/kept {text}/tank/.zfs/snapshot/$n/db;;\n\
             destroy) rm -r {text}/tank/.zfs/snapshot/${{2#*@}};;\nesac\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        program
    }

    #[test]
    fn a_dataset_shows_what_a_directory_of_it_was() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let volume = dir.path().join("tank/db");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("file"), "before").unwrap();
        let program = double(dir.path());
        let zfs = || Zfs::with(program.clone(), &volume).unwrap();
        let name = zfs().name();
        // one that was killed has left its own
        zfs().make().unwrap();
        zfs().prepare().unwrap();
        let moment = Moment::now(Box::new(zfs())).unwrap();
        std::fs::write(volume.join("file"), "after").unwrap();
        assert_eq!(std::fs::read_to_string(moment.tree().join("file")).unwrap(), "before");
        drop(moment);
        let called = std::fs::read_to_string(dir.path().join("called")).unwrap();
        let calls: Vec<&str> = called.lines().filter(|line| !line.starts_with("list")).collect();
        let expected =
            ["snapshot", "destroy", "snapshot", "destroy"].map(|verb| format!("{verb} tank/data@{name}"));
        assert_eq!(calls, expected);
        assert!(
            called.starts_with(&format!("list -H -o name,mountpoint {}\n", volume.display())),
            "{called}"
        );
    }

    #[test]
    fn one_that_stays_is_read_where_it_is_until_it_is_destroyed() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let volume = dir.path().join("tank/db");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("file"), "before").unwrap();
        let program = double(dir.path());
        let kept = Zfs::with(program.clone(), &volume).unwrap().keep("20261122T084011.123456Z").unwrap();
        std::fs::write(volume.join("file"), "after").unwrap();
        assert_eq!(std::fs::read_to_string(kept.at.join("file")).unwrap(), "before");
        assert!(!kept.copy(&dir.path().join("copy")).unwrap(), "it is copied through the store");
        destroy(&program, &kept.name).unwrap();
        assert!(!kept.at.exists());
        kept.remove().unwrap();
        let called = std::fs::read_to_string(dir.path().join("called")).unwrap();
        let calls: Vec<&str> = called.lines().filter(|line| !line.starts_with("list")).collect();
        assert_eq!(calls, ["snapshot", "destroy"].map(|verb| format!("{verb} {}", kept.name)));
        assert!(
            kept.name.starts_with("tank/data@godwit-") && kept.name.ends_with("-20261122T084011.123456Z")
        );
    }

    #[test]
    fn what_zfs_refuses_is_said() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir_all(dir.path().join("tank/db")).unwrap();
        let zfs = Zfs::with(double(dir.path()), &dir.path().join("tank/db")).unwrap();
        zfs.make().unwrap();
        let refused = zfs.make().unwrap_err().to_string();
        assert!(refused.starts_with("`zfs snapshot tank/data@godwit-"), "{refused}");
        assert!(Zfs::with(dir.path().join("zfs"), Path::new("/elsewhere")).is_err());
        assert!(Zfs::of(dir.path()).unwrap().is_none());
    }
}
