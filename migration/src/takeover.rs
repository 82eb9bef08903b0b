//! Going on with a migration whose process is dead: the one piece that both sides begin with.

use crate::failure::{Failure, FailureKind};
use crate::id::MigrationId;
use crate::journal::{Event, Journal, Line, dir_of, read};
use crate::lock::ContainerLock;
use crate::phase::Role;
use crate::remains;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A migration that belongs to this process now. `R` is what this side keeps beside its journal.
#[derive(Debug)]
pub struct Takeover<R> {
    /// `ENGINE:NAME`.
    pub container: String,
    /// The other host, as the first line has it.
    pub peer: String,
    /// Where its files are.
    pub dir: PathBuf,
    /// Its journal, to go on with.
    pub journal: Journal,
    /// What the journal said until now.
    pub lines: Vec<Line>,
    /// What outlasted the dead process besides.
    pub remains: Option<R>,
    /// Nobody else works on the container while this is held.
    pub lock: ContainerLock,
}

impl<R: DeserializeOwned> Takeover<R> {
    /// Takes over; none when this host never had that role in such a migration. `lock` gives the lock of the container
    /// `ENGINE:NAME`, or says why it cannot be had.
    ///
    /// # Errors
    /// What `lock` says; [`FailureKind::InDoubt`] when what was left cannot be read.
    pub fn begin(
        root: &Path,
        role: Role,
        id: &MigrationId,
        lock: impl FnOnce(&str) -> Result<ContainerLock, Failure>,
    ) -> Result<Option<Self>, Failure> {
        let dir = dir_of(root, id);
        let path = dir.join("journal");
        if !path.exists() {
            return Ok(None);
        }
        let (lines, _) = read(&path).map_err(|error| unreadable(id, &error))?;
        let Some(Event::Planned { role: of, container, peer, .. }) =
            lines.into_iter().next().map(|line| line.event)
        else {
            return Ok(None);
        };
        if of != role {
            return Ok(None);
        }
        let lock = lock(&container)?;
        // once more: whoever held the lock may have written
        let (lines, state) = read(&path).map_err(|error| unreadable(id, &error))?;
        let mut journal = Journal::resume(&path).map_err(|error| unreadable(id, &error))?;
        let remains = remains::find(&dir).map_err(|error| unreadable(id, &error))?;
        if !state.is_settled() {
            let _ = journal.append(Event::Resumed { godwit: env!("CARGO_PKG_VERSION").into() });
        }
        Ok(Some(Self { container, peer, dir, journal, lines, remains, lock }))
    }
}

/// The failure for something that a dead process has left and nobody can read.
pub fn unreadable(id: &MigrationId, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(FailureKind::InDoubt, format!("what migration {id} has left here cannot be read"))
        .because_of(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{JournalState, VERSION};
    use crate::lock::lock_container;

    #[test]
    fn what_was_written_while_the_lock_was_waited_for_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let id = MigrationId::generate().unwrap();
        let lock = |name: &str| {
            let (engine, bare_name) = name.split_once(':').unwrap();
            Ok(lock_container(root, engine, bare_name).unwrap().unwrap())
        };
        let begin = |role| Takeover::<u32>::begin(root, role, &id, lock);
        assert!(begin(Role::Source).unwrap().is_none(), "nothing is there");
        let mut journal = Journal::create(&dir_of(root, &id)).unwrap();
        let planned = Event::Planned {
            version: VERSION,
            migration: id.clone(),
            role: Role::Source,
            container: "runc:web".into(),
            peer: "ssh://rack2".into(),
            godwit: "0.1.0".into(),
        };
        journal.append(planned).unwrap();
        assert!(begin(Role::Destination).unwrap().is_none(), "it is the source's");
        remains::keep(&dir_of(root, &id), &7u32).unwrap();
        let taken = Takeover::<u32>::begin(root, Role::Source, &id, |name| {
            journal.append(Event::Prepared).unwrap();
            lock(name)
        });
        let taken = taken.unwrap().unwrap();
        assert_eq!((taken.container.as_str(), taken.peer.as_str()), ("runc:web", "ssh://rack2"));
        assert_eq!((taken.lines.len(), taken.remains), (2, Some(7)));
        assert_eq!(taken.journal.state(), JournalState::PreCopy);
        let (lines, _) = read(&dir_of(root, &id).join("journal")).unwrap();
        assert!(matches!(lines.last().unwrap().event, Event::Resumed { .. }));
        drop(taken.lock);
        std::fs::write(dir_of(root, &id).join("remains.json"), "{").unwrap();
        assert_eq!(begin(Role::Source).unwrap_err().kind, FailureKind::InDoubt);
    }
}
