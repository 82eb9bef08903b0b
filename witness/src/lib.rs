//! A third party that both hosts can reach, asked when they cannot reach each other.
//!
//! Its one promise: of all who claim a migration, the first one gets it, and everybody is told the same for ever. With a
//! witness the destination claims before it lets the container run; so a source that gave its word and lost the link may claim
//! it, too, and knows from the answer whether it may take the word back. That the container runs at the destination is noted down
//! there as well: until then the source keeps its copy, which may be the only one.

mod directory;
mod etcd;

pub use directory::SharedDirectory;
pub use etcd::EtcdWitness;

use godwit_etcd::{ParsePlaceError, Place};
use godwit_migration::{MigrationId, Role};
use std::fmt;
use std::io;
use std::str::FromStr;

/// Says whose a migration's container is.
pub trait Witness: Send + Sync {
    /// Claims it for one side; gives whose it is: the first claimant's. Idempotent.
    ///
    /// # Errors
    /// When the witness cannot be asked: then nothing is known, and the claim may stand.
    fn claim(&self, migration: &MigrationId, side: Role) -> io::Result<Role>;

    /// Whose it is, without claiming it; none when nobody has.
    ///
    /// # Errors
    /// When the witness cannot be asked.
    fn holder(&self, migration: &MigrationId) -> io::Result<Option<Role>>;

    /// Notes down that it runs at the destination: whatever the source has of it may go. Idempotent.
    ///
    /// # Errors
    /// When the witness cannot be told.
    fn note_running(&self, migration: &MigrationId) -> io::Result<()>;

    /// Whether that was noted down.
    ///
    /// # Errors
    /// When the witness cannot be asked.
    fn is_running(&self, migration: &MigrationId) -> io::Result<bool>;
}

/// A witness as the user names it; it travels to the destination in this form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WitnessPlace {
    /// `file:/absolute/path`.
    Directory(SharedDirectory),
    /// `etcds://host[:port][,host…][/name]`.
    Etcd(EtcdWitness),
}

/// Said of a text that names no witness.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ParseWitnessError {
    /// Nothing that is known.
    #[error(
        "`{0}` names no witness: write `file:/absolute/path` of a directory that both hosts have mounted, or \
         `etcds://host[:port][,host…][/name]`"
    )]
    Unknown(String),
    /// An etcd, but where?
    #[error(transparent)]
    Place(#[from] ParsePlaceError),
}

impl WitnessPlace {
    /// Whether others on the network can change what is said.
    pub fn is_exposed(&self) -> bool {
        matches!(self, Self::Etcd(etcd) if etcd.0.is_exposed())
    }

    fn inner(&self) -> &dyn Witness {
        match self {
            Self::Directory(directory) => directory,
            Self::Etcd(etcd) => etcd,
        }
    }
}

impl Witness for WitnessPlace {
    fn claim(&self, migration: &MigrationId, side: Role) -> io::Result<Role> {
        self.inner().claim(migration, side)
    }

    fn holder(&self, migration: &MigrationId) -> io::Result<Option<Role>> {
        self.inner().holder(migration)
    }

    fn note_running(&self, migration: &MigrationId) -> io::Result<()> {
        self.inner().note_running(migration)
    }

    fn is_running(&self, migration: &MigrationId) -> io::Result<bool> {
        self.inner().is_running(migration)
    }
}

impl FromStr for WitnessPlace {
    type Err = ParseWitnessError;

    fn from_str(text: &str) -> Result<Self, ParseWitnessError> {
        if Place::is_meant_by(text) {
            return Ok(Self::Etcd(EtcdWitness(text.parse()?)));
        }
        text.parse().map(Self::Directory)
    }
}

impl fmt::Display for WitnessPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => directory.fmt(f),
            Self::Etcd(etcd) => etcd.0.fmt(f),
        }
    }
}

/// A side as it is written down.
fn as_written(text: &str) -> io::Result<Role> {
    match text {
        "source" => Ok(Role::Source),
        "destination" => Ok(Role::Destination),
        other => Err(io::Error::other(format!("it holds `{}`", other.escape_debug()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_and_writes_the_same() {
        for text in ["file:/mnt/witness", "etcds://rack3:2379,rack4:2379/godwit"] {
            assert_eq!(text.parse::<WitnessPlace>().unwrap().to_string(), text);
        }
        for text in ["", "file:", "file:here", "etcd://", "etcd:rack3", "/mnt", "https://rack3"] {
            assert!(text.parse::<WitnessPlace>().is_err(), "{text}");
        }
        let exposed = |text: &str| text.parse::<WitnessPlace>().unwrap().is_exposed();
        assert!(exposed("etcd://rack3"));
        assert!(!exposed("etcds://rack3") && !exposed("etcd://127.0.0.1") && !exposed("file:/mnt"));
    }
}
