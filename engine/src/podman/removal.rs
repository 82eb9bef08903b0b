//! A container of podman's is removed, and with it what podman has made for it alone.

use super::{KIND, Podman};
use crate::error::EngineError;
use crate::volumes::{gone_with, remain};
use serde_json::Value;
use std::path::PathBuf;

/// A container whose volumes may be asked to outlast it.
#[derive(Clone)]
pub(super) struct Removal {
    podman: Podman,
    id: String,
    /// Where the volumes lie that stay, whether they have a name or not.
    spared: Vec<PathBuf>,
}

impl Removal {
    pub(super) fn of(podman: &Podman, id: &str) -> Self {
        Self { podman: podman.clone(), id: id.to_owned(), spared: Vec::new() }
    }

    /// Of these volumes none goes with the container.
    ///
    /// # Errors
    /// When podman will remove one itself when the container ends.
    pub(super) fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.spared = volumes.to_vec();
        if self.spared.is_empty() {
            return Ok(());
        }
        let Some(shown) = self.shown()? else { return Ok(()) };
        let is_removed = shown.pointer("/HostConfig/AutoRemove").is_some_and(|is| is == true);
        let lost = self.anonymous(&shown)?.into_iter().find(|(_, path)| self.spared.contains(path));
        match lost.filter(|_| is_removed) {
            Some((_, path)) => Err(gone_with(KIND, shown["Name"].as_str().unwrap_or(&self.id), &path)),
            None => Ok(()),
        }
    }

    /// The container goes, whatever it does, and its volumes that have no name with it, as `podman rm` of one that was started with
    /// `--rm` has it. Idempotent.
    pub(super) fn run(&self) -> Result<(), EngineError> {
        let remove = ["rm", "--force", "--time", "0", "--ignore", &self.id];
        if self.spared.is_empty() {
            return self.podman.run(&[&remove[..], &["--volumes"]].concat()).map(drop);
        }
        let anonymous = self.shown()?.map(|shown| self.anonymous(&shown)).transpose()?.unwrap_or_default();
        self.podman.run(&remove)?;
        // whoever is killed here leaves a volume too many, and none too few
        for name in remain(anonymous, &self.spared) {
            if let Err(error) = self.podman.run(&["volume", "rm", &name]) {
                // another container has it, too
                tracing::warn!(%error, "a volume of the container stays");
            }
        }
        Ok(())
    }

    fn shown(&self) -> Result<Option<Value>, EngineError> {
        match self.podman.inspect(&self.id) {
            Err(EngineError::NotFound(_)) => Ok(None),
            shown => shown.map(Some),
        }
    }

    /// Its volumes that have no name: what podman calls them, and where they lie.
    fn anonymous(&self, shown: &Value) -> Result<Vec<(String, PathBuf)>, EngineError> {
        let mut found = Vec::new();
        let mounts = shown["Mounts"].as_array().into_iter().flatten();
        for mount in mounts.filter(|mount| mount["Type"] == "volume") {
            let text = |key: &str| mount[key].as_str().unwrap_or_default();
            if self.podman.volume(text("Name"))?.is_some_and(|volume| volume.anonymous) {
                found.push((text("Name").into(), text("Source").into()));
            }
        }
        Ok(found)
    }
}
