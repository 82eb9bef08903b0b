//! A directory that both hosts have mounted, as a witness.

use crate::{ParseWitnessError, Witness, as_written};
use godwit_migration::{MigrationId, Role};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;

/// A directory that both hosts have mounted: a file for each migration, made once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDirectory(PathBuf);

impl FromStr for SharedDirectory {
    type Err = ParseWitnessError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("file:").map(PathBuf::from) {
            Some(path) if path.is_absolute() => Ok(Self(path)),
            _ => Err(ParseWitnessError::Unknown(text.into())),
        }
    }
}

impl std::fmt::Display for SharedDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file:{}", self.0.display())
    }
}

impl SharedDirectory {
    fn running(&self, migration: &MigrationId) -> PathBuf {
        self.0.join(format!("{migration}.running"))
    }
}

impl Witness for SharedDirectory {
    /// The claim is written to a file of its own, which then gets the migration's name by link(2): that happens once, also
    /// over NFS. The directory is never made: where it is missing it is not mounted, and one of this host's own would say yes to both.
    fn claim(&self, migration: &MigrationId, side: Role) -> io::Result<Role> {
        let place = self.0.join(migration.as_str());
        let own = self.0.join(format!("{migration}.{side}.{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&own)?;
        file.write_all(side.to_string().as_bytes()).and_then(|()| file.sync_all())?;
        let linked = std::fs::hard_link(&own, &place);
        let _ = std::fs::remove_file(&own);
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        File::open(&self.0)?.sync_all()?;
        as_written(&std::fs::read_to_string(&place)?)
    }

    fn holder(&self, migration: &MigrationId) -> io::Result<Option<Role>> {
        // also so that one that is not mounted is no answer
        std::fs::read_dir(&self.0)?;
        match std::fs::read_to_string(self.0.join(migration.as_str())) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            text => as_written(&text?).map(Some),
        }
    }

    fn note_running(&self, migration: &MigrationId) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.running(migration))?
            .sync_all()?;
        File::open(&self.0)?.sync_all()
    }

    fn is_running(&self, migration: &MigrationId) -> io::Result<bool> {
        std::fs::read_dir(&self.0)?;
        self.running(migration).try_exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_claims_at_once_the_first_is_everybody_s_answer() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let witness: SharedDirectory = format!("file:{}", dir.path().display()).parse().unwrap();
            let id = MigrationId::generate().unwrap();
            assert_eq!(witness.holder(&id).unwrap(), None);
            let claim = |side| witness.claim(&id, side).unwrap();
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(|| claim(Role::Source));
                let other = scope.spawn(|| claim(Role::Destination));
                (one.join().unwrap(), other.join().unwrap())
            });
            assert_eq!(one, other);
            assert_eq!((claim(Role::Source), claim(Role::Destination)), (one, one), "for ever");
            assert_eq!(witness.holder(&id).unwrap(), Some(one));
            assert!(!witness.is_running(&id).unwrap());
            witness.note_running(&id).unwrap();
            witness.note_running(&id).unwrap();
            assert!(witness.is_running(&id).unwrap());
            let away = SharedDirectory(dir.path().join("away"));
            assert!(away.claim(&id, Role::Source).is_err() && away.holder(&id).is_err());
            assert!(away.is_running(&id).is_err() && !dir.path().join("away").exists());
        }
    }
}
