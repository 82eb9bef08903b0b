//! CPU limits that a migration took down and could not put back, because its process died.

use super::journals::{all, is_locked};
use godwit_engine::throttle::undo;
use godwit_migration::journal::{Event, Journal, Line};
use godwit_migration::throttle::LimitChange;
use std::path::Path;

/// Puts them back; what was done, in sentences. A migration that is under way keeps its own, unless it is one of `mine`: a container
/// whose lock this process holds.
pub fn put_back(root: &Path, mine: Option<&str>) -> Vec<String> {
    let mut told = Vec::new();
    for found in all(root).unwrap_or_default() {
        let Ok((lines, _)) = found.read() else { continue };
        let changes = open_changes(&lines);
        let Some(Event::Planned { container, .. }) = lines.first().map(|line| &line.event) else { continue };
        if changes.is_empty() || (mine != Some(container) && is_locked(root, container)) {
            continue;
        }
        match undo(&changes) {
            Ok(true) => told.push(format!(
                "`{container}` has its CPU limit again, which a migration that died had taken down"
            )),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%container, %error, "its CPU limit could not be put back");
                continue;
            }
        }
        let noted = Journal::resume(&found.path).and_then(|mut journal| journal.append(Event::Unthrottled));
        if let Err(error) = noted {
            tracing::warn!(%error, "the journal does not tell that a CPU limit was put back");
        }
    }
    told
}

/// The changes that nobody has undone.
fn open_changes(lines: &[Line]) -> Vec<LimitChange> {
    let mut open = Vec::new();
    for line in lines {
        match &line.event {
            Event::Throttling(change) => open.push(change.clone()),
            Event::Unthrottled => open.clear(),
            _ => {}
        }
    }
    open
}
