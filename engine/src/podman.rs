//! Containers of podman, with crun or runc below it.
//!
//! The dump is godwit's own, of a tree frozen by godwit; podman takes no part in it. At the destination podman makes the
//! container from the record that the source's podman has of it (the same id, name, labels, limits, …) as it would from a
//! checkpoint that turns out to be empty, and later starts it as ever: the runtime that it calls is a
//! [stand-in](crate::stand_in), which restores.

mod destination;
mod examination;
mod image;
mod pod;
mod pod_here;
mod record;
mod removal;
mod restart;
mod sharing;
mod source;
mod start;

use crate::container::{DestinationContainer, Engine, Note, OpenRequest, Shipment, SourceContainer};
use crate::error::EngineError;
use crate::runtime::{Flavor, cgroups};
use crate::tool;
use crate::volumes::Volume;
use godwit_transfer::message::Refusal;
use record::Record;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the engine.
const KIND: &str = "podman";
/// How podman says that others must be removed first (libpod, ErrDepExists).
const DEPENDED_ON: &str = "dependent containers";
/// There is no container that runs where this is missing (libpod's directory for the time until the next start of the host).
const IN_USE: &str = "/run/libpod";
/// Time that a question to podman may take: it waits for whoever works on the container.
const QUESTION: Duration = Duration::from_secs(30);

/// podman as installed on this host.
#[derive(Clone, Debug)]
pub struct Podman {
    program: PathBuf,
}

impl Default for Podman {
    /// `podman` on the path, or what `GODWIT_PODMAN` names.
    fn default() -> Self {
        Self { program: std::env::var_os("GODWIT_PODMAN").map_or_else(|| KIND.into(), PathBuf::from) }
    }
}

/// What travels to podman at the destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Recipe {
    id: String,
    flavor: Flavor,
    record: Record,
    /// config.json as the source's runtime was given it.
    config: Value,
    volumes: Vec<Volume>,
    /// Where its standard streams lead.
    descriptors: Vec<String>,
    /// Where the source has the container's root file system mounted: how the layer is called on the wire.
    merged: PathBuf,
    /// Paths that the engine binds from the host and nobody copies.
    binds: Vec<PathBuf>,
    needs: crate::runtime::needs::Needs,
    /// The pod that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<pod::Pod>,
    /// The id of the container whose namespaces it shares, outside of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

impl Recipe {
    /// Its pod, if it is what the pod comes with.
    fn led_pod(&self) -> Option<&pod::Pod> {
        self.pod.as_ref().filter(|pod| pod.is_led_by(&self.id))
    }

    /// Whether its /dev/shm is that of the container which leads.
    fn shares_shm(&self) -> bool {
        self.pod.is_some() && self.led_pod().is_none() && self.record.joins("ipc")
    }

    /// Where its cgroup is, or will be, on this host.
    fn cgroup(&self) -> Option<PathBuf> {
        cgroups::directory(self.flavor, &self.config, &self.id, cgroups::is_scope(&self.config))
    }
}

/// What of podman's setting matters here: `podman info`.
#[derive(Debug)]
struct Setting {
    database: String,
    graph_root: PathBuf,
    storage: String,
    cgroups: String,
}

impl Podman {
    fn run(&self, args: &[&str]) -> Result<String, EngineError> {
        tool::run(&self.program, args, QUESTION)
    }

    fn setting(&self) -> Result<Setting, EngineError> {
        let format = "{{.Host.DatabaseBackend}} {{.Store.GraphDriverName}} {{.Host.CgroupsVersion}} {{.Store.GraphRoot}}";
        let said = self.run(&["info", "--format", format])?;
        match said.trim().splitn(4, ' ').collect::<Vec<_>>()[..] {
            [database, storage, cgroups, root] => Ok(Setting {
                database: database.into(),
                storage: storage.into(),
                cgroups: cgroups.into(),
                graph_root: root.into(),
            }),
            _ => Err(EngineError::Unreadable {
                path: "podman info".into(),
                reason: format!("`{}`", said.trim()),
            }),
        }
    }

    /// What `podman inspect` says of a container.
    fn inspect(&self, name: &str) -> Result<Value, EngineError> {
        if !is_name(name) {
            return Err(EngineError::NotFound(format!("{KIND}:{name}")));
        }
        let said = self.run(&["container", "inspect", name]).map_err(|error| match &error {
            EngineError::Tool { what, .. } if what.contains("no such container") => {
                EngineError::NotFound(format!("{KIND}:{name}"))
            }
            _ => error,
        })?;
        let found: Vec<Value> = understood("container inspect", &said)?;
        found.into_iter().next().ok_or_else(|| EngineError::NotFound(format!("{KIND}:{name}")))
    }

    fn volume(&self, name: &str) -> Result<Option<Volume>, EngineError> {
        if self.run(&["volume", "exists", name]).is_err() {
            return Ok(None);
        }
        let found: Vec<Volume> = understood("volume inspect", &self.run(&["volume", "inspect", name])?)?;
        Ok(found.into_iter().next())
    }
}

fn understood<T: for<'a> Deserialize<'a>>(what: &str, said: &str) -> Result<T, EngineError> {
    serde_json::from_str(said).map_err(|error| EngineError::Unreadable {
        path: Path::new(KIND).join(what),
        reason: error.to_string(),
    })
}

/// podman's rule for names of containers and volumes (libpod/define, NameRegex), which also keeps them from being options or
/// paths.
fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

impl Engine for Podman {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn usable(&self) -> Result<String, EngineError> {
        let said = self.run(&["--version"])?;
        Ok(said.trim().trim_start_matches("podman version ").to_owned())
    }

    fn knows(&self, name: &str) -> bool {
        // where it was not used since the host's start it would set itself up, only to say no
        let (kind, name) = match name.strip_prefix(pod::SELECTOR) {
            None => ("container", name),
            // one that follows in it
            Some(member) if member.contains('/') => {
                ("container", member.rsplit('/').next().unwrap_or(member))
            }
            Some(pod) => ("pod", pod),
        };
        Path::new(IN_USE).exists() && is_name(name) && self.run(&[kind, "exists", name]).is_ok()
    }

    fn open(&self, name: &str, request: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError> {
        source::open(self, name, request)
    }

    fn open_group(
        &self,
        name: &str,
        request: &OpenRequest,
    ) -> Result<Vec<Box<dyn SourceContainer>>, EngineError> {
        source::open_group(self, name, request)
    }

    fn examine(&self, shipment: &Shipment) -> Vec<Refusal> {
        examination::examine(self, shipment)
    }

    fn places(&self, shipment: &Shipment) -> Vec<PathBuf> {
        examination::places(shipment)
    }

    fn lacks_image(&self, shipment: &Shipment) -> Result<Option<String>, EngineError> {
        examination::lacks_image(self, shipment)
    }

    fn take_image(&self, shipment: &Shipment, dir: &Path) -> Result<(), EngineError> {
        examination::take_image(self, shipment, dir)
    }

    fn write_image(&self, image: &str, dir: &Path) -> Result<(), EngineError> {
        self.export(image, "[]", dir)
    }

    fn prepare(
        &self,
        shipment: &Shipment,
        note: &mut Note<'_>,
    ) -> Result<Box<dyn DestinationContainer>, EngineError> {
        destination::prepare(self, shipment, note)
    }

    fn reopen_source(&self, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
        source::reopen(self, remains)
    }

    fn reopen_destination(&self, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
        destination::reopen(self, remains)
    }
}
