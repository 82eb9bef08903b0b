//! What docker makes for a container before its memory comes: the container as docker knows it, with its volumes and its root file system.

use super::DockerArrival;
use crate::container::Note;
use crate::docker::offer::is_id;
use crate::docker::sharing::OwnerHere;
use crate::docker::{KIND, layer};
use crate::error::EngineError;
use crate::hold::install_hook;
use godwit_transfer::tree::empty_plainly;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

impl DockerArrival {
    /// The container as docker knows it, with its volumes and its root file system: all that can exist before its memory.
    pub(super) fn make(&mut self, note: &mut Note<'_>) -> Result<(), EngineError> {
        for volume in &self.recipe.volumes {
            if self.docker.volume(&volume.name)?.is_none() {
                self.made_volumes.push(volume.name.clone());
            }
        }
        // whoever goes last of those that have a volume takes it away, if it comes to that
        let shared = self.owner()?.map(|owner| owner.made_volumes).unwrap_or_default();
        let is_its = |name: &String| self.recipe.volumes.iter().any(|volume| volume.name == *name);
        self.made_volumes.extend(shared.into_iter().filter(is_its));
        self.note(note, None)?;
        self.begun_to_make = true;
        let roots = self.volume_roots();
        for volume in self.recipe.volumes.iter().filter(|volume| self.made_volumes.contains(&volume.name)) {
            let asked = json!({"Name": volume.name, "Driver": volume.driver, "Labels": volume.labels, "DriverOpts": volume.options});
            self.docker.api.post("/volumes/create", Some(&asked))?;
        }
        let id = self.make_container()?;
        self.id = Some(id.clone());
        self.note(note, None)?;
        self.note_for_others()?;
        self.docker.api.post(&format!("/containers/{id}/rename?name={}", self.shipment.name), None)?;
        for root in roots {
            root.put_back()?;
        }
        self.find_places(&id)?;
        install_hook(&self.shipment.job).map(drop)
    }

    /// Has docker make it, under a name that is nobody else's until its id is noted.
    fn make_container(&self) -> Result<String, EngineError> {
        let setting = self.docker.setting()?;
        let starts = self.recipe.runtime.as_deref().filter(|_| self.shipment.restart);
        let runtime = starts.or(setting.stand_in().map(|(name, _)| name));
        let runtime = runtime.ok_or_else(|| EngineError::Unreadable {
            path: Path::new(KIND).join("info"),
            reason: "there is no runtime that restores any more".into(),
        })?;
        let (image, name) = self.recipe.record.image();
        let image = self.docker.named(image, name)?;
        let owner = self.owner()?;
        let asked =
            self.recipe.record.to_create(image, runtime, owner.as_ref().map(|owner| owner.id.as_str()));
        let made =
            self.docker.api.post(&format!("/containers/create?name={}", self.first_name()), Some(&asked))?;
        for warning in made["Warnings"].as_array().into_iter().flatten() {
            tracing::info!(%warning, "docker has made the container");
        }
        let id = made["Id"].as_str().filter(|id| is_id(id)).map(str::to_owned);
        id.ok_or_else(|| EngineError::Unreadable {
            path: Path::new(KIND).join("containers/create"),
            reason: format!("it names no container: {made}"),
        })
    }

    /// The container whose namespaces it shares: what the migration has made that it follows.
    pub(super) fn owner(&self) -> Result<Option<OwnerHere>, EngineError> {
        let leader = self.recipe.owner.as_ref().and(self.shipment.leader.as_deref());
        leader.map(OwnerHere::of).transpose()
    }

    /// What those that follow must know of this one.
    pub(super) fn note_for_others(&self) -> Result<(), EngineError> {
        let here = OwnerHere {
            id: self.known_id()?.into(),
            runtime_root: self.runtime_root.clone(),
            made_volumes: self.made_volumes.clone(),
        };
        here.note(&self.shipment.job)
    }

    /// What it is called before its id is known to outlast this process: after the migration.
    pub(super) fn first_name(&self) -> String {
        let migration = self.shipment.job.file_name().unwrap_or_default().to_string_lossy();
        format!("godwit-{migration}")
    }

    /// Where docker has put what it makes with the container. Nothing of the image is left in its volumes: the rounds bring it all.
    pub(super) fn find_places(&mut self, id: &str) -> Result<(), EngineError> {
        let shown = self.docker.inspect(id)?;
        let text = |pointer: &str| shown.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let merged = PathBuf::from(text("/GraphDriver/Data/MergedDir"));
        let place = layer::place_of(&self.shipment.job);
        layer::mount_at(Path::new(text("/GraphDriver/Data/UpperDir")), &place)?;
        self.merged = merged;
        self.places.push((self.recipe.merged.clone(), place));
        for mount in shown["Mounts"].as_array().into_iter().flatten() {
            let at = mount["Destination"].as_str().map(Path::new);
            let known =
                self.recipe.anonymous.iter().find(|(destination, _)| Some(destination.as_path()) == at);
            if let (Some((_, called)), Some(source)) = (known, mount["Source"].as_str()) {
                empty_plainly(Path::new(source))
                    .map_err(|error| EngineError::io("empty", source)(std::io::Error::other(error)))?;
                self.places.push((called.clone(), source.into()));
            }
        }
        self.find_log(id)
    }

    /// Where its log arrives.
    pub(super) fn find_log(&mut self, id: &str) -> Result<(), EngineError> {
        if let Some(called) = &self.recipe.log {
            // before the first start docker does not tell where it keeps what (moby: container.GetRootResourcePath)
            let dir = self.docker.setting()?.docker_root_dir.join("containers").join(id);
            self.places.push((called.clone(), dir.join(called.file_name().unwrap_or_default())));
        }
        Ok(())
    }
}
