//! The source's end of a container's network: the host sides of its interfaces.

use serde::{Deserialize, Serialize};

use super::announce::{Announcer, wait_until_up};
use super::netlink::Netlink;
use super::rebuild::{UP_LIMIT, delete_link, delete_namespace, index_of, set_link};
use super::{Namespace, NetworkState, Result};

/// What connects a running container to its host: for the journal, and to cut and restore it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    /// Names of the host sides of its veths.
    pub host_links: Vec<String>,
    /// Name of its namespace below `/run/netns`, when it has one.
    pub namespace_name: Option<String>,
}

impl NetworkAttachment {
    /// The attachment of the container whose `state` was captured from `namespace`.
    pub fn new(state: &NetworkState, namespace: &Namespace) -> Self {
        let peers = state.links.iter().filter_map(|link| link.peer.as_ref());
        Self {
            host_links: peers.map(|peer| peer.name.clone()).collect(),
            namespace_name: namespace.name().map(Into::into),
        }
    }

    /// Cuts the container off: its host sides go down, and the bridge forgets them. Before Go is sent, so that
    /// nothing of the frozen copy can leave when it is killed. Stop a capture before. Idempotent.
    pub fn down(&self) -> Result<()> {
        self.set(false)
    }

    /// Connects the container again and tells the segment. For rollback; idempotent.
    pub fn up(&self, state: &NetworkState, namespace: &Namespace) -> Result<()> {
        self.set(true)?;
        let host = Netlink::route()?;
        for peer in state.links.iter().filter(|link| link.up).filter_map(|link| link.peer.as_ref()) {
            wait_until_up(&host, &peer.name, index_of(&peer.name)?, UP_LIMIT)?;
        }
        let announcer = Announcer::open(namespace, state)?;
        announcer.wait_until_up(UP_LIMIT)?;
        announcer.announce()
    }

    /// Deletes the host sides and the namespace's name, after completion. Idempotent.
    pub fn remove(&self) -> Result<()> {
        for name in &self.host_links {
            delete_link(name)?;
        }
        self.namespace_name.as_deref().map_or(Ok(()), delete_namespace)
    }

    fn set(&self, up: bool) -> Result<()> {
        let host = Netlink::route()?;
        for name in &self.host_links {
            set_link(&host, name, index_of(name)?, up)?;
        }
        Ok(())
    }
}
