//! A container of docker's is removed, and with it what docker has made for it alone.

use super::record::Record;
use super::{Docker, KIND};
use crate::error::EngineError;
use crate::volumes::{gone_with, remain};
use serde_json::Value;
use std::path::PathBuf;

/// A container whose volumes may be asked to outlast it.
#[derive(Clone)]
pub(super) struct Removal {
    docker: Docker,
    id: String,
    /// Where the volumes lie that stay, whether they have a name or not.
    spared: Vec<PathBuf>,
}

impl Removal {
    pub(super) fn of(docker: &Docker, id: &str) -> Self {
        Self { docker: docker.clone(), id: id.to_owned(), spared: Vec::new() }
    }

    /// Of these volumes none goes with the container.
    ///
    /// # Errors
    /// When docker will remove one itself when the container ends.
    pub(super) fn spare(&mut self, volumes: &[PathBuf]) -> Result<(), EngineError> {
        self.spared = volumes.to_vec();
        if self.spared.is_empty() {
            return Ok(());
        }
        let Some(shown) = self.docker.find(&self.id)? else { return Ok(()) };
        let is_removed = shown.pointer("/HostConfig/AutoRemove").is_some_and(|is| is == true);
        let lost = anonymous(&shown)?.into_iter().find(|(_, path)| self.spared.contains(path));
        match lost.filter(|_| is_removed) {
            Some((_, path)) => Err(gone_with(KIND, shown["Name"].as_str().unwrap_or(&self.id), &path)),
            None => Ok(()),
        }
    }

    /// The container goes, whatever its state, and its volumes that have no name with it. Idempotent.
    pub(super) fn run(&self) -> Result<(), EngineError> {
        let path = format!("/containers/{}?force=true", self.id);
        if self.spared.is_empty() {
            return self.docker.api.delete(&format!("{path}&v=true"));
        }
        let shown = self.docker.find(&self.id)?;
        let anonymous = shown.map(|shown| anonymous(&shown)).transpose()?.unwrap_or_default();
        self.docker.api.delete(&path)?;
        // whoever is killed here leaves a volume too many, and none too few
        for name in remain(anonymous, &self.spared) {
            if let Err(error) = self.docker.api.delete(&format!("/volumes/{name}")) {
                // another container has it, too
                tracing::warn!(%error, "a volume of the container stays");
            }
        }
        Ok(())
    }
}

/// The volumes of a container that have no name: what docker calls them, and where they lie.
fn anonymous(shown: &Value) -> Result<Vec<(String, PathBuf)>, EngineError> {
    let record = Record::of(shown)?;
    let named = record.named_volumes();
    let mounts = shown["Mounts"].as_array().into_iter().flatten();
    let volumes = mounts.filter(|mount| mount["Type"] == "volume");
    let text = |mount: &Value, key: &str| mount[key].as_str().unwrap_or_default().to_owned();
    let all = volumes.map(|mount| (text(mount, "Name"), text(mount, "Source").into()));
    Ok(all.filter(|(name, _)| !named.contains(name.as_str())).collect())
}
