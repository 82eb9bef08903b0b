//! Containers that share a network or process numbers outside of pods: `podman run --network container:NAME`, `--pid container:NAME`.
//!
//! The one that has the namespaces *owns* them, and leads when all move together. podman waits with the start of who follows until the owner
//! runs, by podman's own word (libpod: `checkDependenciesRunning`), and the owner's start waits for its restore. So at the destination who
//! follows is started when the owner has been restored and is held, in the downtime.

use super::pod::{Member, Pod};
use super::record::{Record, group_of};
use super::{KIND, Podman};
use crate::container::OpenRequest;
use crate::error::EngineError;
use crate::runtime::write_private;
use godwit_transfer::message::Refusal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the owner's migration notes in its directory, for those that follow: the container's id.
const NOTE: &str = "owner";
/// Namespaces of a pod that others have, too.
const OF_PODS: &[&str] = &["net", "ipc", "uts"];
/// The same of a container outside of pods.
pub(super) const OF_OWNERS: &[&str] = &["net", "pid"];

/// With whom a container moves.
#[derive(Default)]
pub(super) struct Company {
    /// The pod that it is in.
    pub(super) pod: Option<Pod>,
    /// What of that cannot be moved.
    pub(super) blockers: Vec<Refusal>,
    /// All that share namespaces of the first one of them, outside of pods.
    pub(super) sharers: Vec<Member>,
    /// Trees that go with one before it.
    pub(super) carried: BTreeSet<PathBuf>,
}

impl Company {
    /// All that move.
    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.pod.iter().flat_map(|pod| &pod.members).chain(&self.sharers)
    }

    /// Whose namespaces a container shares outside of a pod.
    pub(super) fn owner_of(&self, id: &str) -> Option<&Member> {
        self.sharers.first().filter(|owner| owner.id != id)
    }

    /// Whether another container leads this one.
    pub(super) fn is_led_by_another(&self, id: &str) -> bool {
        self.owner_of(id).is_some() || self.pod.as_ref().is_some_and(|pod| !pod.is_led_by(id))
    }

    /// The kinds of namespaces that a container shares with those that go along.
    pub(super) fn shared_by(&self, id: &str) -> &'static [&'static str] {
        match (&self.pod, self.owner_of(id)) {
            (Some(_), _) => OF_PODS,
            (None, Some(_)) => OF_OWNERS,
            (None, None) => &[],
        }
    }
}

/// With whom a container moves that is in no pod.
///
/// # Errors
/// When podman cannot be asked; when others share its namespaces and nobody has asked for them, or they cannot move.
pub(super) fn company_of(podman: &Podman, name: &str, request: &OpenRequest) -> Result<Company, EngineError> {
    let alone = Ok(Company::default());
    let setting = podman.setting()?;
    // that is refused with a reason of its own; who is stopped and started shares nothing of what is frozen
    if setting.database != "sqlite" || (request.restart.is_some() && !request.together) {
        return alone;
    }
    let asked = member(&podman.inspect(name)?);
    let others = group_of(&setting.graph_root, &asked.id)?;
    if others.is_empty() {
        return alone;
    }
    let owner = match owner_of(&Record::read(&setting.graph_root, &asked.id)?) {
        Some(owner) => member(&podman.inspect(owner)?),
        None => asked.clone(),
    };
    let mut following = Vec::new();
    for other in others.iter().chain([&asked.name]).filter(|other| **other != owner.name) {
        let shown = podman.inspect(other)?;
        let record = Record::read(&setting.graph_root, &member(&shown).id)?;
        // that of a pod, and what shares anything else, is refused with a reason of its own
        if record.pod().is_some() || owner_of(&record) != Some(&owner.id) {
            return alone;
        }
        following.push((member(&shown), shown.pointer("/State/Running") == Some(&true.into())));
    }
    following.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    let blocked = |reason: String, hint: &str| {
        let blockers = vec![Refusal::new(reason).hint(hint)];
        Err(EngineError::Blocked { name: format!("{KIND}:{name}"), blockers })
    };
    let ended: Vec<&Member> = following.iter().filter(|(_, runs)| !runs).map(|(one, _)| one).collect();
    if !ended.is_empty() {
        let what = format!("containers that share its namespaces do not run: {}", listed(ended));
        return blocked(what, "start them, or remove them: podman removes nothing that others depend on");
    }
    let sharers: Vec<Member> = [owner].into_iter().chain(following.into_iter().map(|(one, _)| one)).collect();
    if !request.together {
        let others = sharers.iter().filter(|one| one.id != asked.id);
        let what = format!("it shares namespaces with other containers: {}", listed(others));
        return blocked(what, "add `--together`: all of them move then, with one freeze");
    }
    if request.restart.is_some() {
        let what = format!(
            "only single containers can be stopped here and started there yet, not {}",
            listed(&sharers)
        );
        return blocked(what, "leave `--strategy restart` out");
    }
    Ok(Company { sharers, ..Company::default() })
}

/// The one container whose namespaces it shares.
pub(super) fn owner_of(record: &Record) -> Option<&str> {
    let mut owners = OF_OWNERS.iter().filter_map(|kind| record.joined_in(kind));
    let first = owners.next()?;
    owners.all(|other| other == first).then_some(first)
}

fn member(shown: &Value) -> Member {
    let text = |key: &str| shown[key].as_str().unwrap_or_default().to_owned();
    Member { id: text("Id"), name: text("Name") }
}

fn listed<'a>(containers: impl IntoIterator<Item = &'a Member>) -> String {
    containers.into_iter().map(|one| format!("`{}`", one.name)).collect::<Vec<_>>().join(", ")
}

/// Notes that the migration with its files in `job` has made this container.
///
/// # Errors
/// When it cannot be written.
pub(super) fn note_made(job: &Path, id: &str) -> Result<(), EngineError> {
    write_private(&job.join(NOTE), id.as_bytes())
}

/// Removes the note. Idempotent.
pub(super) fn forget_made(job: &Path) {
    let _ = std::fs::remove_file(job.join(NOTE));
}

/// Whether that migration has made this container.
pub(super) fn has_made(job: &Path, id: &str) -> bool {
    std::fs::read_to_string(job.join(NOTE)).is_ok_and(|made| made == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_leads_and_the_others_follow_it() {
        let member = |id: &str| Member { id: id.into(), name: format!("name-{id}") };
        let company = Company { sharers: vec![member("a"), member("b"), member("c")], ..Company::default() };
        assert_eq!(company.owner_of("c").map(|owner| owner.id.as_str()), Some("a"));
        assert!(company.owner_of("a").is_none() && !company.is_led_by_another("a"));
        assert!(company.is_led_by_another("b"));
        assert_eq!((company.shared_by("a"), company.shared_by("b")), (&[][..], OF_OWNERS));
        let alone = Company::default();
        assert!(!alone.is_led_by_another("a") && alone.members().next().is_none());
    }

    #[test]
    fn only_what_the_owners_migration_has_made_is_shared() {
        let job = tempfile::tempdir().unwrap();
        assert!(!has_made(job.path(), "a") && !has_made(job.path(), ""));
        note_made(job.path(), "a").unwrap();
        assert!(has_made(job.path(), "a") && !has_made(job.path(), "b"));
        forget_made(job.path());
        forget_made(job.path());
        assert!(!has_made(job.path(), "a"));
    }
}
