//! A third party that both hosts can reach, asked when they cannot reach each other: the seam for a lock service.
//!
//! Its one promise: of all who claim a migration, the first one gets it, and everybody is told the same for ever. With a
//! witness the destination claims before it lets the container run; so a source that gave its word and lost the link may claim
//! it, too, and knows from the answer whether it may take the word back.

use crate::id::MigrationId;
use crate::phase::Role;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::str::FromStr;

/// Says whose a migration's container is.
pub trait Witness: Send + Sync {
    /// Claims it for one side; gives whose it is: the first claimant's. Idempotent.
    ///
    /// # Errors
    /// When the witness cannot be asked: then nothing is known.
    fn claim(&self, migration: &MigrationId, side: Role) -> io::Result<Role>;
}

/// A directory that both hosts have mounted: a file for each migration, made once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDirectory(PathBuf);

/// Said of a text that names no witness.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("`{0}` names no witness: write `file:/absolute/path` of a directory that both hosts have mounted")]
pub struct ParseWitnessError(String);

impl FromStr for SharedDirectory {
    type Err = ParseWitnessError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("file:").map(PathBuf::from) {
            Some(path) if path.is_absolute() => Ok(Self(path)),
            _ => Err(ParseWitnessError(text.into())),
        }
    }
}

impl std::fmt::Display for SharedDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file:{}", self.0.display())
    }
}

impl Witness for SharedDirectory {
    /// The claim is written to a file of its own, which then gets the migration's name by link(2): that happens once, also
    /// over NFS.
    fn claim(&self, migration: &MigrationId, side: Role) -> io::Result<Role> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let place = self.0.join(migration.as_str());
        let own = self.0.join(format!("{migration}.{side}.{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&own)?;
        file.write_all(side.to_string().as_bytes()).and_then(|()| file.sync_all())?;
        let linked = std::fs::hard_link(&own, &place);
        let _ = std::fs::remove_file(&own);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        File::open(&self.0)?.sync_all()?;
        match std::fs::read_to_string(&place)?.as_str() {
            "source" => Ok(Role::Source),
            "destination" => Ok(Role::Destination),
            other => Err(io::Error::other(format!("`{}` holds `{other}`", place.display()))),
        }
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
            let claim = |side| witness.claim(&id, side).unwrap();
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(|| claim(Role::Source));
                let other = scope.spawn(|| claim(Role::Destination));
                (one.join().unwrap(), other.join().unwrap())
            });
            assert_eq!(one, other);
            assert_eq!((claim(Role::Source), claim(Role::Destination)), (one, one), "for ever");
        }
    }

    #[test]
    fn only_an_absolute_path_names_a_witness() {
        for text in ["", "file:", "file:here", "etcd://x", "/mnt"] {
            assert!(text.parse::<SharedDirectory>().is_err(), "{text}");
        }
        let text = "file:/mnt/witness";
        assert_eq!(text.parse::<SharedDirectory>().unwrap().to_string(), text);
    }
}
