//! Containers that share namespaces: `docker run --network container:NAME`, which compose writes as `network_mode: service:NAME`.
//!
//! The one that has the namespaces *owns* them, and leads when all move together: its network comes with it. The others follow. docker
//! starts none of them before the owner runs, by docker's own word (moby: daemon/container_operations.go, getNetworkedContainer),
//! and it holds its lock on a container while it starts that. So at the destination who follows is started when the owner has been restored
//! and is held, in the downtime.

use super::{Docker, KIND, is_name};
use crate::container::{OpenRequest, SourceContainer};
use crate::error::EngineError;
use crate::runtime::write_private;
use godwit_transfer::message::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The modes of `HostConfig` that may name another container, and docker's options for them.
pub(super) const MODES: [(&str, &str); 3] =
    [("NetworkMode", "--network"), ("PidMode", "--pid"), ("IpcMode", "--ipc")];
/// How such a mode begins.
const ANOTHERS: &str = "container:";
/// What the owner's migration notes of it in its directory, for those that follow.
const NOTE: &str = "owner.json";

/// A container that others share namespaces of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// At the source.
    pub(super) id: String,
    pub(super) name: String,
}

/// The same at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnerHere {
    pub(super) id: String,
    /// Where its runtime keeps its containers, once it has been started.
    pub(super) runtime_root: Option<PathBuf>,
    /// Volumes that docker did not have before.
    pub(super) made_volumes: Vec<String>,
}

impl OwnerHere {
    /// Notes it in the directory of its migration.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn note(&self, job: &Path) -> Result<(), EngineError> {
        write_private(&job.join(NOTE), crate::remains::written(self)?.as_bytes())
    }

    /// What the migration that has its files in `job` has noted.
    ///
    /// # Errors
    /// When it has made none, or it cannot be read.
    pub(super) fn of(job: &Path) -> Result<Self, EngineError> {
        let path = job.join(NOTE);
        let text = std::fs::read_to_string(&path).map_err(EngineError::io("read", path))?;
        crate::remains::understood(&text)
    }

    /// Removes the note. Idempotent.
    pub(super) fn forget(job: &Path) {
        let _ = std::fs::remove_file(job.join(NOTE));
    }
}

/// With whom a container moves.
#[derive(Debug, Default)]
pub(super) struct Company {
    /// Whose namespaces it shares.
    pub(super) owner: Option<Owner>,
    /// The ids of all that move.
    pub(super) ids: Vec<String>,
    /// Paths of volumes that go with one before it.
    pub(super) carried: BTreeSet<PathBuf>,
}

impl Company {
    /// The ids of all that move, with that of this one.
    pub(super) fn with<'a>(&'a self, id: &'a str) -> Vec<&'a str> {
        self.ids.iter().map(String::as_str).chain([id]).collect()
    }
}

/// The container that a mode names: its id, or what else docker knows it by.
pub(super) fn named_by(mode: &str) -> Option<&str> {
    mode.strip_prefix(ANOTHERS)
}

/// Whose namespaces a container shares, by its `HostConfig`.
fn shared(shown: &Value) -> BTreeSet<&str> {
    let modes = MODES.iter().filter_map(|(key, _)| shown["HostConfig"][key].as_str());
    modes.filter_map(named_by).collect()
}

/// What a container is to others, by id and name.
fn member(shown: &Value) -> Owner {
    let text = |key: &str| shown[key].as_str().unwrap_or_default();
    Owner { id: text("Id").into(), name: text("Name").trim_start_matches('/').into() }
}

/// All that run and share namespaces with a container: the owner, and those that follow it, by name.
struct Sharers {
    /// The id of the one that was asked for.
    asked: String,
    owner: Owner,
    following: Vec<Owner>,
}

impl Sharers {
    /// Looks for them; none if there are none.
    ///
    /// # Errors
    /// When docker cannot be asked, or they cannot move together.
    fn look(docker: &Docker, name: &str) -> Result<Option<Self>, EngineError> {
        let shown = docker.inspect(name)?;
        let blocked = |reason: String, hint: &str| {
            let blockers = vec![Refusal::new(reason).hint(hint)];
            Err(EngineError::Blocked { name: format!("{KIND}:{name}"), blockers })
        };
        let owner = match shared(&shown).into_iter().collect::<Vec<_>>()[..] {
            [] => member(&shown),
            [one] => match docker.find(one)?.filter(runs) {
                Some(owner) => member(&owner),
                None => {
                    let what = format!("it shares a namespace of `{one}`, which does not run");
                    return blocked(what, "start that one, and then this one again");
                }
            },
            _ => {
                let what = "it shares namespaces of several containers".to_owned();
                return blocked(what, "have it share those of one container only");
            }
        };
        let (mut following, mut odd) = (Vec::new(), Vec::new());
        let running = docker.api.get("/containers/json")?.unwrap_or_default();
        let ids = running.as_array().into_iter().flatten().filter_map(|one| one["Id"].as_str());
        let all = ids.map(|id| docker.find(id)).collect::<Result<Vec<_>, _>>()?;
        let all: Vec<Value> = all.into_iter().flatten().filter(runs).collect();
        for one in all.iter().filter(|one| one["Id"] != owner.id.as_str()) {
            let names = shared(one);
            let of_owner = |name: &&str| is_called(&owner, name);
            match (names.iter().any(of_owner), names.iter().all(of_owner)) {
                (true, true) => following.push(member(one)),
                (true, false) => odd.push(member(one)),
                _ => {}
            }
        }
        // docker shares what the other one shares: their owner would be another one
        let is_of_follower = |one: &&Value| {
            shared(one).iter().any(|name| following.iter().any(|other| is_called(other, name)))
        };
        odd.extend(all.iter().filter(is_of_follower).map(member));
        if !shared(&docker.inspect(&owner.id)?).is_empty() {
            odd.push(owner.clone());
        }
        if !odd.is_empty() {
            let what = format!(
                "not all that share its namespaces share those of one container only: {}",
                listed(&odd)
            );
            return blocked(what, "have each of them share those of the same one");
        }
        following.sort_by(|one, other| one.name.cmp(&other.name));
        Ok((!following.is_empty()).then(|| Self { asked: member(&shown).id, owner, following }))
    }
}

fn runs(shown: &Value) -> bool {
    shown.pointer("/State/Running").is_some_and(|running| running == true)
}

fn is_called(container: &Owner, name: &str) -> bool {
    container.id == name || container.name == name
}

fn listed(containers: &[Owner]) -> String {
    containers.iter().map(|one| format!("`{}`", one.name)).collect::<Vec<_>>().join(", ")
}

/// Opens a container with all that run and share its namespaces, the owner first.
///
/// # Errors
/// When one of them cannot be moved; when there are others, and nobody has asked for them.
pub(super) fn open_group(
    docker: &Docker,
    name: &str,
    request: &OpenRequest,
) -> Result<Vec<Box<dyn SourceContainer>>, EngineError> {
    let alone = || Ok(vec![super::source::open(docker, name, &mut Company::default(), request)?]);
    // who is stopped and started shares nothing of what is frozen
    if !is_name(name) || (request.restart.is_some() && !request.together) {
        return alone();
    }
    let Some(Sharers { asked, owner, following }) = Sharers::look(docker, name)? else { return alone() };
    let blocked = |reason: String, hint: &str| {
        let blockers = vec![Refusal::new(reason).hint(hint)];
        Err(EngineError::Blocked { name: format!("{KIND}:{name}"), blockers })
    };
    let all: Vec<Owner> = [owner.clone()].into_iter().chain(following).collect();
    if !request.together {
        let others: Vec<Owner> = all.into_iter().filter(|one| one.id != asked).collect();
        let what = format!("it shares namespaces with other containers: {}", listed(&others));
        return blocked(what, "add `--together`: all of them move then, with one freeze");
    }
    if request.restart.is_some() {
        let what =
            format!("only single containers can be stopped here and started there yet, not {}", listed(&all));
        return blocked(what, "leave `--strategy restart` out");
    }
    let ids: Vec<String> = all.iter().map(|one| one.id.clone()).collect();
    let mut company = Company { ids, ..Company::default() };
    let mut open = |one: Owner| {
        company.owner = (one.id != owner.id).then(|| owner.clone());
        super::source::open(docker, &one.id, &mut company, request)
    };
    all.into_iter().map(&mut open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whose_namespaces_a_container_shares() {
        let of = |host: Value| {
            let shown = json!({"HostConfig": host});
            shared(&shown).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of(json!({"NetworkMode": "lab", "PidMode": "", "IpcMode": "private"})), [""; 0]);
        assert_eq!(of(json!({"NetworkMode": "container:abc", "IpcMode": "container:abc"})), ["abc"]);
        assert_eq!(of(json!({"NetworkMode": "container:abc", "PidMode": "container:def"})), ["abc", "def"]);
    }

    #[test]
    fn the_owner_there_is_known_by_its_migrations_note_only() {
        let job = tempfile::tempdir().unwrap();
        assert!(OwnerHere::of(job.path()).is_err());
        let owner = OwnerHere {
            id: "abc".into(),
            runtime_root: Some("/r".into()),
            made_volumes: vec!["data".into()],
        };
        owner.note(job.path()).unwrap();
        assert_eq!(OwnerHere::of(job.path()).unwrap(), owner);
        OwnerHere::forget(job.path());
        OwnerHere::forget(job.path());
        assert!(OwnerHere::of(job.path()).is_err());
    }
}
