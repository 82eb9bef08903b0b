//! Bare process trees: `pid:PID`. No runtime, no bundle: CRIU alone, and a freezer cgroup of godwit's own.
//!
//! The tree shares the host's mounts and pids, so its programs and libraries must be at the destination already, and its
//! pids must be free there. What it writes is named with `--volume`.

mod destination;
mod source;

use crate::container::{DestinationContainer, Engine, Note, OpenRequest, Shipment, SourceContainer};
use crate::error::EngineError;
use godwit_transfer::message::Refusal;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Name of the engine.
pub const KIND: &str = "pid";

/// The engine of bare process trees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bare;

/// What travels to the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recipe {
    /// The first process.
    pid: i32,
    /// All processes and threads, whose numbers must be free.
    tasks: Vec<i32>,
    /// Files that are mapped or open, with their sizes in bytes.
    files: Vec<(PathBuf, u64)>,
    /// Name under /run/netns that its network namespace gets, when it has its own.
    namespace: Option<String>,
    /// CRIU's name for its network namespace.
    network_key: Option<String>,
    /// What it listens on, when it has not.
    #[serde(default)]
    listeners: Vec<std::net::SocketAddr>,
}

/// The cgroup of godwit's own for a tree that has none.
fn cgroup_name(pid: i32) -> String {
    format!("godwit-{pid}")
}

fn parse_pid(name: &str) -> Option<i32> {
    name.parse().ok().filter(|pid| *pid > 1)
}

impl Engine for Bare {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn usable(&self) -> Result<String, EngineError> {
        Ok("needs no runtime".into())
    }

    fn knows(&self, name: &str) -> bool {
        parse_pid(name).is_some_and(|pid| PathBuf::from(format!("/proc/{pid}")).exists())
    }

    fn open(&self, name: &str, request: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError> {
        source::open(name, request)
    }

    fn examine(&self, shipment: &Shipment) -> Vec<Refusal> {
        destination::examine(shipment)
    }

    fn prepare(
        &self,
        shipment: &Shipment,
        note: &mut Note<'_>,
    ) -> Result<Box<dyn DestinationContainer>, EngineError> {
        destination::prepare(shipment, note)
    }

    fn reopen_source(&self, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
        source::reopen(remains)
    }

    fn reopen_destination(&self, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
        destination::reopen(remains)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_of_no_groups_takes_none() {
        let together = OpenRequest { together: true, ..OpenRequest::default() };
        let refused = Bare.open_group("1", &together);
        assert!(matches!(&refused, Err(EngineError::Blocked { name, .. }) if name == "pid:1"));
    }
}
