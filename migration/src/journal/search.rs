//! The journals below godwit's root directory: one directory for each migration, named after it.

use super::{Event, JournalState, Line, read};
use crate::id::MigrationId;
use crate::phase::Role;
use std::path::{Path, PathBuf};

/// Where a migration keeps its journal and its other files; `root` is godwit's directory.
pub fn dir_of(root: &Path, id: &MigrationId) -> PathBuf {
    root.join("migrations").join(id.as_str())
}

/// A migration that this host has a journal of.
#[derive(Debug)]
pub struct Found {
    /// Which.
    pub id: MigrationId,
    /// What was written.
    pub lines: Vec<Line>,
    /// Where it stands.
    pub state: JournalState,
}

/// The migrations of one container (`ENGINE:NAME`) in which this host has had that role, oldest first; of those that this host
/// knows only the `latest` are looked at. A journal that cannot be read is nobody's.
pub fn of_container<'a>(
    root: &'a Path,
    role: Role,
    name: &'a str,
    latest: usize,
) -> impl DoubleEndedIterator<Item = Found> + 'a {
    let entries = std::fs::read_dir(root.join("migrations")).into_iter().flatten().flatten();
    let mut ids: Vec<MigrationId> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // ids sort by time
    ids.sort();
    let ids = ids.split_off(ids.len().saturating_sub(latest));
    ids.into_iter().filter_map(move |id| {
        let (lines, state) = read(&dir_of(root, &id).join("journal")).ok()?;
        let is_its = matches!(lines.first().map(|line| &line.event),
            Some(Event::Planned { role: of, container, .. }) if *of == role && container == name);
        is_its.then_some(Found { id, lines, state })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Journal, VERSION};

    fn begin(root: &Path, role: Role, name: &str) -> MigrationId {
        let id = MigrationId::generate().unwrap();
        let planned = Event::Planned {
            version: VERSION,
            migration: id.clone(),
            role,
            container: name.into(),
            peer: "ssh://rack2".into(),
            godwit: "0.1.0".into(),
        };
        Journal::create(&dir_of(root, &id)).unwrap().append(planned).unwrap();
        id
    }

    #[test]
    fn those_of_one_container_in_one_role_are_found_in_their_order() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let found = |latest| -> Vec<MigrationId> {
            of_container(root, Role::Source, "runc:web", latest).map(|found| found.id).collect()
        };
        assert!(found(9).is_empty(), "there is no directory yet");
        let mut wanted: Vec<_> = (0..3).map(|_| begin(root, Role::Source, "runc:web")).collect();
        wanted.sort();
        begin(root, Role::Source, "runc:db");
        begin(root, Role::Destination, "runc:web");
        std::fs::create_dir(root.join("migrations/empty")).unwrap();
        assert_eq!(found(usize::MAX), wanted);
        assert!(found(0).is_empty());
        let damaged = dir_of(root, &wanted[0]).join("journal");
        std::fs::write(damaged, "what\never\n").unwrap();
        assert_eq!(found(usize::MAX), wanted[1..]);
    }
}
