//! A catalog of the nodes that serve, and of what they have all of, for fleets of which not everybody can be asked.
//!
//! It is kept in an etcd, by the nodes themselves ([`Registration`](crate::Registration)), each under a lease: a node that dies is gone
//! from it a little later. It says whom to ask, and no more: what a node gives is verified as that of any neighbour.
//!
//! | key, behind the name of godwit's keys | value |
//! |---|---|
//! | `nodes/ADDRESS` | [`Node`] |
//! | `checkpoints/ENGINE:NAME/MANIFEST/ADDRESS` | [`Offered`] |
//! | `images/IMAGE/MANIFEST/ADDRESS`, for each checkpoint of a container of that image | [`Offered`] |
//! | `snapshots/VOLUME/MANIFEST/ADDRESS`, and once more by the volume's path | [`Offered`] |
//! | `digests/DIGEST/ADDRESS`, for each manifest and its tree | [`Node`] |

use godwit_etcd::{Client, EtcdError, Place};
use godwit_store::Digest;
use godwit_transfer::Address;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

pub(crate) const NODES: &str = "nodes/";
pub(crate) const CHECKPOINTS: &str = "checkpoints/";
pub(crate) const IMAGES: &str = "images/";
pub(crate) const SNAPSHOTS: &str = "snapshots/";
pub(crate) const DIGESTS: &str = "digests/";

/// Nodes that are named for one question at most.
const MOST_NODES: usize = 10_000;
/// Checkpoints, or snapshots, that are named for one name at most.
const MOST_OFFERS: usize = 1000;

/// A node that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where: `tls://HOST:PORT`.
    pub address: String,
    /// What it calls itself.
    pub host: String,
    /// Since when it has been in the catalog, seconds after 1970.
    pub since_unix_s: u64,
}

/// Something of which a node has all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// The container, `ENGINE:NAME`, the image, or the volume.
    pub name: String,
    /// Who has it.
    pub address: String,
    /// When it was made, microseconds after 1970.
    pub made_unix_us: u64,
    /// What describes it.
    pub manifest: String,
    /// Its files.
    pub tree: String,
}

/// The catalog, as those see it who look for something.
#[derive(Debug)]
pub struct Catalog {
    client: Client,
    plain_too: bool,
}

impl Catalog {
    /// Nobody is asked yet. `dir` has the certificates; with `plain_too` nodes count that speak plain TCP.
    ///
    /// # Errors
    /// When the certificates are not there.
    pub fn new(place: &Place, dir: &Path, plain_too: bool) -> Result<Self, EtcdError> {
        Ok(Self { client: Client::new(place, dir)?, plain_too })
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        self.client.place()
    }

    /// All nodes that live.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub fn nodes(&self) -> Result<Vec<Node>, EtcdError> {
        self.values(NODES, MOST_NODES)
    }

    /// The checkpoints of a container that a living node has, the newest first.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub fn checkpoints(&self, container: &str) -> Result<Vec<Offered>, EtcdError> {
        self.offered(CHECKPOINTS, container)
    }

    /// The checkpoints of containers of an image that a living node has, the newest first.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub fn of_image(&self, image: &str) -> Result<Vec<Offered>, EtcdError> {
        self.offered(IMAGES, image)
    }

    /// The snapshots of a volume, by its name or its path, the newest first.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub fn snapshots(&self, volume: &str) -> Result<Vec<Offered>, EtcdError> {
        self.offered(SNAPSHOTS, volume)
    }

    /// The nodes that have a manifest, or a tree.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub fn holders(&self, digest: Digest) -> Result<Vec<Node>, EtcdError> {
        self.values(&format!("{DIGESTS}{digest}/"), MOST_NODES)
    }

    /// Whom to ask for a container's content, `most` at most: first who has the newest of its checkpoints and of snapshots of what lies
    /// at `paths`, then who has checkpoints of other containers of its image, then anybody. `host` is left out: it is this one.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub fn near(
        &self,
        container: &str,
        image: Option<&str>,
        paths: &[PathBuf],
        host: &str,
        most: usize,
    ) -> Result<Vec<Address>, EtcdError> {
        let nodes = self.nodes()?;
        let mut offered = self.checkpoints(container)?;
        for path in paths {
            offered.extend(self.snapshots(&path.display().to_string())?);
        }
        offered.sort_by_key(|offered| Reverse(offered.made_unix_us));
        offered.extend(image.map(|image| self.of_image(image)).transpose()?.into_iter().flatten());
        let own: Vec<&str> =
            nodes.iter().filter(|node| node.host == host).map(|node| &*node.address).collect();
        let holders = offered.iter().map(|offered| &*offered.address);
        let mut found: Vec<Address> = Vec::new();
        for text in holders.chain(nodes.iter().map(|node| &*node.address)) {
            match text.parse::<Address>() {
                Ok(address)
                    if self.may_ask(&address) && !own.contains(&text) && !found.contains(&address) =>
                {
                    found.push(address);
                }
                _ => {}
            }
        }
        found.truncate(most);
        Ok(found)
    }

    /// Whether a node may be asked whose address somebody else has written.
    fn may_ask(&self, address: &Address) -> bool {
        match address {
            Address::Tls { .. } | Address::Ssh { .. } => true,
            Address::Tcp { .. } => self.plain_too,
            Address::Unix(_) => false,
        }
    }

    fn offered(&self, kind: &str, name: &str) -> Result<Vec<Offered>, EtcdError> {
        let mut found: Vec<Offered> = self.values(&format!("{kind}{name}/"), MOST_OFFERS)?;
        // a path has slashes, and others may lie beneath it
        found.retain(|offered| offered.name == name);
        found.sort_by_key(|offered| Reverse(offered.made_unix_us));
        Ok(found)
    }

    /// What is under all keys of a kind; what is not understood is not there.
    fn values<T: DeserializeOwned>(&self, kind: &str, most: usize) -> Result<Vec<T>, EtcdError> {
        let found = self.client.list(&self.place().key(kind), most)?;
        Ok(found.iter().filter_map(|entry| serde_json::from_str(&entry.value).ok()).collect())
    }
}
