//! A container of docker's that is stopped and started by docker.

use super::removal::Removal;
use super::{Docker, KIND, no_restart};
use crate::error::EngineError;
use crate::network::{Namespace, announce};
use crate::restart::{Startable, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that docker may take for a start or a stop beyond what the container takes.
const WORK: Duration = Duration::from_secs(120);

/// How docker knows it.
pub(super) struct DockerStartable {
    docker: Docker,
    known: Known,
    removal: Removal,
}

/// What outlasts a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    /// Its id, or its name.
    pub(super) id: String,
    /// What docker does by itself when it ends; none if nothing.
    pub(super) policy: Option<Value>,
    /// The id of the image that it was made of.
    pub(super) image: String,
}

impl DockerStartable {
    pub(super) fn new(docker: &Docker, known: Known) -> Self {
        Self { docker: docker.clone(), removal: Removal::of(docker, &known.id), known }
    }

    fn restart(&self, policy: &Value) -> Result<(), EngineError> {
        self.docker.set_restart_policy(&self.known.id, policy)
    }

    fn path(&self, verb: &str) -> String {
        format!("/containers/{}/{verb}", self.known.id)
    }

    /// docker tells nobody where the container's addresses are now.
    fn announce(&self) -> Result<(), EngineError> {
        let Status::Running(pid) = self.status()? else { return Ok(()) };
        let namespace = Namespace::of_pid(pid)?;
        match namespace.is_own()? {
            true => Ok(()),
            false => Ok(announce(&namespace)?),
        }
    }
}

/// What docker's word for a container's state means (moby: container.State).
fn status_of(shown: &Value) -> Status {
    let pid = shown.pointer("/State/Pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
    match (shown.pointer("/State/Status").and_then(Value::as_str).unwrap_or_default(), pid.unwrap_or(0)) {
        ("removing" | "dead", _) => Status::Gone,
        // docker is about to start it by itself
        ("restarting", pid) => Status::Running(pid),
        (_, pid) if pid > 0 => Status::Running(pid),
        _ => Status::Stopped,
    }
}

impl Startable for DockerStartable {
    fn status(&self) -> Result<Status, EngineError> {
        Ok(self.docker.find(&self.known.id)?.as_ref().map_or(Status::Gone, status_of))
    }

    fn hold_off(&self) -> Result<(), EngineError> {
        match &self.known.policy {
            Some(_) => self.restart(&no_restart()),
            None => Ok(()),
        }
    }

    fn release(&self) -> Result<(), EngineError> {
        match &self.known.policy {
            Some(policy) => self.restart(policy),
            None => Ok(()),
        }
    }

    fn stop(&self, grace: Duration) -> Result<(), EngineError> {
        let asked = format!("{}?t={}", self.path("stop"), grace.as_secs());
        self.docker.api.post_within(&asked, Some(grace + WORK))?;
        match self.status()? {
            Status::Stopped => Ok(()),
            other => Err(EngineError::NotFrozen(format!("{KIND} has stopped it, and it is {other:?}"))),
        }
    }

    fn start(&self) -> Result<(), EngineError> {
        self.docker.api.post_within(&self.path("start"), Some(WORK))?;
        if let Err(error) = self.announce() {
            // its neighbours find it by themselves, but later
            tracing::warn!(%error, "the container's addresses could not be announced");
        }
        Ok(())
    }

    fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.removal.spare(volumes)
    }

    fn remove(&self) -> Result<(), EngineError> {
        self.removal.run()
    }

    fn bring_image(&self, lacks: &str, dir: &Path) -> Result<(), EngineError> {
        self.docker.export(&self.known.image, lacks, dir)
    }

    fn remains(&self) -> Value {
        json!(self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_starts_by_itself_is_stopped() {
        for (status, pid, expected) in [
            ("running", 7, Status::Running(7)),
            ("paused", 7, Status::Running(7)),
            ("restarting", 0, Status::Running(0)),
            ("created", 0, Status::Stopped),
            ("exited", 0, Status::Stopped),
            ("removing", 0, Status::Gone),
            ("dead", 0, Status::Gone),
        ] {
            assert_eq!(status_of(&json!({"State": {"Status": status, "Pid": pid}})), expected, "{status}");
        }
    }
}
