//! A pod that is made at the destination.

use super::pod::{Pod, was_made_for};
use super::{Podman, QUESTION};
use crate::error::EngineError;
use crate::tool;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Names the migration that a pod was made for: the file that podman notes its id in.
const NOTE: &str = "pod-id";

/// A pod that was made here, with an infra container and nothing else of podman's making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodHere {
    /// podman's choice: it takes no wishes.
    pub(super) id: String,
    /// The id of its infra container.
    pub(super) infra: String,
}

impl PodHere {
    /// Makes one like that of the source, for the migration that has its files in `job`. Nothing of it runs.
    ///
    /// # Errors
    /// When podman does not make it; then it is not there.
    pub(super) fn make(podman: &Podman, pod: &Pod, job: &Path) -> Result<Self, EngineError> {
        tool::run(&podman.program, &pod.create(&job.join(NOTE)), QUESTION)?;
        let lost = || EngineError::NotFound(format!("podman:{}", pod.full_name()));
        Self::find(podman, pod, job)?.ok_or_else(lost)
    }

    /// Finds the one that was made for a migration again; none if it was not, or another one has its name.
    ///
    /// # Errors
    /// When podman cannot be asked.
    pub(super) fn find(podman: &Podman, pod: &Pod, job: &Path) -> Result<Option<Self>, EngineError> {
        let shown = podman.inspect_pod(&pod.name)?;
        let ours = shown.filter(|shown| was_made_for(shown, &job.join(NOTE)));
        let text = |shown: &Value, key: &str| shown[key].as_str().unwrap_or_default().to_owned();
        Ok(ours.map(|shown| Self { id: text(&shown, "Id"), infra: text(&shown, "InfraContainerID") }))
    }

    /// Starts the infra container: the namespaces are there from then on, and the network is connected.
    ///
    /// # Errors
    /// When podman cannot.
    pub(super) fn start(&self, podman: &Podman) -> Result<(), EngineError> {
        podman.run(&["start", &self.infra]).map(drop)
    }

    /// The network namespace that it holds.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn network_namespace(&self, podman: &Podman) -> Result<PathBuf, EngineError> {
        let shown = podman.inspect(&self.infra)?;
        let path = shown.pointer("/NetworkSettings/SandboxKey").and_then(Value::as_str).unwrap_or_default();
        match path {
            "" => Err(EngineError::NotHeld("the pod's infra container has no network namespace".into())),
            path => Ok(path.into()),
        }
    }
}
