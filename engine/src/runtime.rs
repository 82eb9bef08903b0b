//! Containers of an OCI runtime: runc and crun.
//!
//! The dump is godwit's own (CRIU's RPC on a tree frozen by godwit): the same external resources that the runtime would name,
//! so that its `restore` at the destination recognises them. The restore is the runtime's, since only it writes its state;
//! the hook `godwit-hold` freezes the tree before it runs an instruction.

pub(crate) mod cgroups;
pub(crate) mod config;
pub(crate) mod destination;
pub(crate) mod needs;
mod restart;
pub(crate) mod restoration;
pub(crate) mod source;

use crate::container::{DestinationContainer, Engine, Note, OpenRequest, Shipment, SourceContainer};
use crate::error::EngineError;
use crate::tool;
use godwit_transfer::message::Refusal;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file of the runtime's own among CRIU's images: where the standard streams lead.
const DESCRIPTORS: &str = "descriptors.json";
/// Has a runtime ask systemd for cgroups.
const BY_SYSTEMD: &str = "--systemd-cgroup";
/// Time that a question to a runtime may take.
const QUESTION: Duration = Duration::from_secs(20);

/// Which runtime it is: they agree in most that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flavor {
    /// opencontainers/runc.
    Runc,
    /// containers/crun.
    Crun,
}

impl Flavor {
    /// Name of the engine, and of the program.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Flavor::Runc => "runc",
            Flavor::Crun => "crun",
        }
    }

    /// The variable that names another program.
    fn variable(self) -> &'static str {
        match self {
            Flavor::Runc => "GODWIT_RUNC",
            Flavor::Crun => "GODWIT_CRUN",
        }
    }

    /// What a runtime's restore calls the file that hides `path` (runc: libcontainer/criu_linux.go; crun:
    /// src/libcrun/criu.c).
    pub(crate) fn mask_key(self, path: &Path) -> &Path {
        match self {
            Flavor::Runc => Path::new("/dev/null"),
            Flavor::Crun => path,
        }
    }

    /// Whether its restore puts CRIU into the container's cgroup: then the tasks come to life there. crun lets CRIU put them
    /// there, which it can only do by the names of the source.
    pub(crate) fn places_criu(self) -> bool {
        self == Flavor::Runc
    }

    /// Whether its restore has an option for memory that is filled on demand.
    pub(crate) fn takes_lazy_pages(self) -> bool {
        self == Flavor::Runc
    }

    /// Where it keeps its containers, unless it is told otherwise.
    pub(crate) fn state_directory(self) -> &'static Path {
        match self {
            Flavor::Runc => Path::new("/run/runc"),
            Flavor::Crun => Path::new("/run/crun"),
        }
    }
}

/// A runtime as installed on this host.
#[derive(Clone, Debug)]
pub struct Runtime {
    flavor: Flavor,
    program: PathBuf,
}

/// What `state` says (OCI runtime specification, State).
#[derive(Clone, Debug, Deserialize)]
struct State {
    pid: i32,
    status: String,
    bundle: PathBuf,
    /// Of crun's relative to the bundle, if config.json has it so.
    rootfs: PathBuf,
}

/// What travels to the runtime at the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recipe {
    /// Where config.json lies, on both hosts.
    bundle: PathBuf,
    /// config.json as it stands.
    config: serde_json::Value,
    /// Name under /run/netns that its network namespace gets.
    namespace: Option<String>,
    /// Where its standard streams lead: what will be in `descriptors.json` of the images, which the runtime reads before CRIU does.
    #[serde(default)]
    descriptors: Option<Vec<String>>,
    /// systemd has made its cgroup.
    #[serde(default)]
    systemd_cgroup: bool,
    /// What the destination must have.
    #[serde(default)]
    needs: needs::Needs,
}

impl Runtime {
    /// `runc` on the path, or what `GODWIT_RUNC` names.
    pub(crate) fn runc() -> Self {
        Self::of(Flavor::Runc)
    }

    /// `crun` on the path, or what `GODWIT_CRUN` names.
    pub(crate) fn crun() -> Self {
        Self::of(Flavor::Crun)
    }

    fn of(flavor: Flavor) -> Self {
        let program = std::env::var_os(flavor.variable());
        Self { flavor, program: program.map_or_else(|| flavor.kind().into(), PathBuf::from) }
    }

    fn full(&self, name: &str) -> String {
        format!("{}:{name}", self.flavor.kind())
    }

    fn run(&self, args: &[&str], limit: Duration) -> Result<String, EngineError> {
        tool::run(&self.program, args, limit)
    }

    fn state(&self, name: &str) -> Result<State, EngineError> {
        if !is_name(name) {
            return Err(EngineError::NotFound(self.full(name)));
        }
        let unknown = ["does not exist", "No such file or directory"];
        let text = self.run(&["state", name], QUESTION).map_err(|error| match &error {
            EngineError::Tool { what, .. } if unknown.iter().any(|said| what.contains(said)) => {
                EngineError::NotFound(self.full(name))
            }
            _ => error,
        })?;
        serde_json::from_str(&text).map_err(|error| EngineError::Unreadable {
            path: PathBuf::from(format!("{} state {name}", self.flavor.kind())),
            reason: error.to_string(),
        })
    }
}

/// runc's rule for container ids (libcontainer, validateID), which also keeps them from being options or paths.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 1024
        && !name.starts_with('-')
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte))
}

impl Engine for Runtime {
    fn kind(&self) -> &'static str {
        self.flavor.kind()
    }

    fn usable(&self) -> Result<String, EngineError> {
        let text = self.run(&["--version"], QUESTION)?;
        let line = text.lines().next().unwrap_or_default();
        Ok(line.trim_start_matches(self.flavor.kind()).trim_start_matches(" version ").to_owned())
    }

    fn knows(&self, name: &str) -> bool {
        self.state(name).is_ok()
    }

    fn open(&self, name: &str, request: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError> {
        source::open(self, name, request)
    }

    fn examine(&self, shipment: &Shipment) -> Vec<Refusal> {
        destination::examine(self, shipment)
    }

    fn places(&self, shipment: &Shipment) -> Vec<std::path::PathBuf> {
        destination::places(shipment)
    }

    fn can_fill_later(&self, shipment: &Shipment) -> Result<(), String> {
        destination::can_fill_later(shipment)
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

pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, bytes))
        .map_err(EngineError::io("write", path))
}

/// Reads and understands a bundle's config.json.
pub(crate) fn read_config(path: &Path) -> Result<serde_json::Value, EngineError> {
    let text = std::fs::read_to_string(path).map_err(EngineError::io("read", path))?;
    serde_json::from_str(&text)
        .map_err(|error| EngineError::Unreadable { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_neither_an_option_nor_a_path() {
        for name in ["web", "web-1.2_x+y", "7"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-f", "..", "a/b", "a b", "ä", "--root=/x"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
