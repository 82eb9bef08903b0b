//! A container of podman's that is stopped and started by podman.

use super::removal::Removal;
use super::{KIND, Podman, QUESTION};
use crate::error::EngineError;
use crate::restart::{Startable, Status};
use crate::tool;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How podman knows it.
pub(super) struct PodmanStartable {
    podman: Podman,
    known: Known,
    removal: Removal,
}

/// What outlasts a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) id: String,
    /// What podman does by itself when it ends.
    pub(super) policy: Option<String>,
    pub(super) image: String,
}

impl PodmanStartable {
    pub(super) fn new(podman: &Podman, known: Known) -> Self {
        Self { podman: podman.clone(), removal: Removal::of(podman, &known.id), known }
    }

    fn restart(&self, policy: &str) -> Result<(), EngineError> {
        if self.known.policy.is_none() {
            return Ok(());
        }
        self.podman.run(&["update", &format!("--restart={policy}"), &self.known.id]).map(drop)
    }
}

impl Startable for PodmanStartable {
    fn status(&self) -> Result<Status, EngineError> {
        let shown = match self.podman.inspect(&self.known.id) {
            Err(EngineError::NotFound(_)) => return Ok(Status::Gone),
            shown => shown?,
        };
        let text = |pointer: &str| shown.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let pid = shown.pointer("/State/Pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
        Ok(match (text("/State/Status"), pid) {
            ("created" | "configured" | "initialized" | "stopped" | "exited", _) => Status::Stopped,
            (_, Some(pid)) if pid > 0 => Status::Running(pid),
            _ => Status::Stopped,
        })
    }

    fn hold_off(&self) -> Result<(), EngineError> {
        self.restart("no")
    }

    fn release(&self) -> Result<(), EngineError> {
        match &self.known.policy {
            Some(policy) => self.restart(policy),
            None => Ok(()),
        }
    }

    fn stop(&self, grace: Duration) -> Result<(), EngineError> {
        let args = ["stop".to_owned(), "--time".into(), grace.as_secs().to_string(), self.known.id.clone()];
        tool::run(&self.podman.program, &args, grace + QUESTION)?;
        match self.status()? {
            Status::Stopped => Ok(()),
            other => Err(EngineError::NotFrozen(format!("{KIND} has stopped it, and it is {other:?}"))),
        }
    }

    fn start(&self) -> Result<(), EngineError> {
        self.podman.run(&["start", &self.known.id]).map(drop)
    }

    fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.removal.spare(volumes)
    }

    fn remove(&self) -> Result<(), EngineError> {
        self.removal.run()
    }

    fn bring_image(&self, lacks: &str, dir: &Path) -> Result<(), EngineError> {
        self.podman.export(&self.known.image, lacks, dir)
    }

    fn remains(&self) -> Value {
        json!(self.known)
    }
}
