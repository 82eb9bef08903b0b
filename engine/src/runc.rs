//! Containers of runc.
//!
//! The dump is godwit's own (CRIU's RPC on a tree frozen by godwit): the same external resources that runc would name,
//! so that `runc restore` at the destination recognises them. The restore is runc's, since only it writes runc's state;
//! the hook `godwit-hold` freezes the tree before it runs an instruction.

mod destination;
mod needs;
mod oci;
mod restoration;
mod source;

use crate::container::{DestinationContainer, Engine, Note, OpenRequest, Shipment, SourceContainer};
use crate::error::EngineError;
use crate::tool;
use godwit_transfer::message::Refusal;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the engine.
pub const KIND: &str = "runc";
/// runc's own file among CRIU's images.
const DESCRIPTORS: &str = "descriptors.json";
/// Time that a question to runc may take.
const QUESTION: Duration = Duration::from_secs(20);

/// runc as installed on this host.
#[derive(Clone, Debug)]
pub struct Runc {
    program: PathBuf,
}

impl Default for Runc {
    /// `runc` on the path, or what `GODWIT_RUNC` names.
    fn default() -> Self {
        Self { program: std::env::var_os("GODWIT_RUNC").map_or_else(|| "runc".into(), PathBuf::from) }
    }
}

/// What `runc state` says (OCI runtime specification, State).
#[derive(Clone, Debug, Deserialize)]
struct State {
    pid: i32,
    status: String,
    bundle: PathBuf,
    rootfs: PathBuf,
}

/// What travels to runc at the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recipe {
    /// Where config.json lies, on both hosts.
    bundle: PathBuf,
    /// config.json as it stands.
    config: serde_json::Value,
    /// Name under /run/netns that its network namespace gets.
    namespace: Option<String>,
    /// Where its standard streams lead: what will be in `descriptors.json` of the images, which runc reads before CRIU does.
    #[serde(default)]
    descriptors: Option<Vec<String>>,
    /// What the destination must have.
    #[serde(default)]
    needs: needs::Needs,
}

impl Runc {
    fn run(&self, args: &[&str], limit: Duration) -> Result<String, EngineError> {
        tool::run(&self.program, args, limit)
    }

    fn state(&self, name: &str) -> Result<State, EngineError> {
        if !is_name(name) {
            return Err(EngineError::NotFound(format!("runc:{name}")));
        }
        let text = self.run(&["state", name], QUESTION).map_err(|error| match &error {
            EngineError::Tool { what, .. } if what.contains("does not exist") => {
                EngineError::NotFound(format!("runc:{name}"))
            }
            _ => error,
        })?;
        serde_json::from_str(&text).map_err(|error| EngineError::Unreadable {
            path: PathBuf::from(format!("runc state {name}")),
            reason: error.to_string(),
        })
    }
}

/// runc's own rule for container ids (libcontainer, validateID), which also keeps them from being options or paths.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 1024
        && !name.starts_with('-')
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte))
}

impl Engine for Runc {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn usable(&self) -> Result<String, EngineError> {
        let text = self.run(&["--version"], QUESTION)?;
        Ok(text.lines().next().unwrap_or_default().trim_start_matches("runc version ").to_owned())
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

/// Reads and understands a bundle's config.json.
fn read_config(path: &Path) -> Result<serde_json::Value, EngineError> {
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
