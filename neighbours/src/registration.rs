//! A node's own entries in the catalog: written under a lease, kept alive, and written again when the lease or etcd was lost.

use crate::catalog::{CHECKPOINTS, DIGESTS, IMAGES, NODES, Node, Offered, SNAPSHOTS};
use godwit_etcd::{Client, EtcdError, Lease, Place};
use godwit_migration::Cancel;
use godwit_store::manifest::Described;
use godwit_store::{Digest, Store};
use godwit_transfer::Address;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// After so long without a word of it a node is gone.
pub const TTL: Duration = Duration::from_secs(15);
/// How often it gives one: two of them may be lost.
const EVERY: u32 = 3;

/// What a node says of itself.
pub struct Registration {
    client: Client,
    node: Node,
    store: PathBuf,
    ttl: Duration,
    lease: Option<Lease>,
    /// What is in the catalog, as far as is known here.
    written: BTreeMap<String, String>,
    /// What pins keep: none where that is neither a checkpoint nor a snapshot.
    described: BTreeMap<Digest, Option<Described>>,
}

impl Registration {
    /// Nothing is written yet. `dir` has the certificates, `address` is where others reach this node, `store` what it gives; without
    /// a word for `ttl` (whole seconds, [`TTL`]) it is gone.
    ///
    /// # Errors
    /// When the certificates are not there.
    pub fn new(
        place: &Place,
        dir: &Path,
        address: &Address,
        host: &str,
        store: PathBuf,
        ttl: Duration,
    ) -> Result<Self, EtcdError> {
        let since_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let node = Node { address: address.to_string(), host: host.to_owned(), since_unix_s };
        Ok(Self {
            client: Client::new(place, dir)?,
            node,
            store,
            ttl,
            lease: None,
            written: BTreeMap::new(),
            described: BTreeMap::new(),
        })
    }

    /// Renews it until `cancel` is raised, and takes it back then. Whatever becomes of etcd, the node serves meanwhile; `tell` hears
    /// when it is lost, and when it is back.
    pub fn keep(mut self, cancel: &Cancel, tell: impl Fn(&str)) {
        let mut is_lost = false;
        while !cancel.is_raised() {
            let renewed = self.renew();
            match &renewed {
                Ok(()) if is_lost => tell("this node is in the catalog again"),
                Err(error) if !is_lost => {
                    tell(&format!("warning: this node cannot be kept in the catalog: {error}"))
                }
                _ => {}
            }
            is_lost = renewed.is_err();
            cancel.wait(self.ttl / EVERY);
        }
        if let Some(Err(error)) = self.lease.map(|lease| self.client.revoke(lease)) {
            tracing::info!(%error, "the lease ends by itself");
        }
    }

    /// Keeps the lease alive, gets another one if it is over, and writes what has changed since.
    ///
    /// # Errors
    /// When etcd cannot be asked: the next time what was not done is done.
    pub fn renew(&mut self) -> Result<(), EtcdError> {
        let lease = match self.lease {
            Some(lease) if self.client.keep_alive(lease)? => lease,
            _ => {
                self.written.clear();
                *self.lease.insert(self.client.grant(self.ttl)?)
            }
        };
        let entries = self.entries();
        let new = entries.iter().filter(|(key, value)| self.written.get(*key) != Some(*value));
        let new: Vec<_> =
            new.map(|(key, value)| godwit_etcd::Entry { key: key.clone(), value: value.clone() }).collect();
        let gone: Vec<String> =
            self.written.keys().filter(|key| !entries.contains_key(*key)).cloned().collect();
        // what is not done to its end is done once more
        self.written.extend(new.iter().map(|entry| (entry.key.clone(), String::new())));
        self.client.change(lease, &new, &gone)?;
        self.written = entries;
        Ok(())
    }

    /// All that shall be in the catalog.
    fn entries(&mut self) -> BTreeMap<String, String> {
        let kept = self.kept();
        let address = &self.node.address;
        let mut entries = BTreeMap::new();
        let mut add = |key: String, value: serde_json::Value| {
            entries.insert(self.client.place().key(&key), value.to_string());
        };
        let node = serde_json::json!(self.node);
        add(format!("{NODES}{address}"), node.clone());
        for (manifest, Described { tree, facts }) in kept {
            let fact = |name: &str| facts.get(name).filter(|fact| !fact.is_empty());
            let made = |name, unit_us: u64| {
                fact(name).and_then(|made| made.parse::<u64>().ok()).unwrap_or(0).saturating_mul(unit_us)
            };
            let named = [
                (CHECKPOINTS, fact("container"), made("made_unix_s", 1_000_000)),
                (IMAGES, fact("container").and_then(|_| fact("image_id")), made("made_unix_s", 1_000_000)),
                (SNAPSHOTS, fact("volume"), made("made_unix_us", 1)),
                (SNAPSHOTS, fact("volume").and_then(|_| fact("path")), made("made_unix_us", 1)),
            ];
            for (kind, name, made_unix_us) in named {
                let Some(name) = name.cloned() else { continue };
                let key = format!("{kind}{name}/{manifest}/{address}");
                let (manifest, tree) = (manifest.to_string(), tree.to_string());
                let offered = Offered { name, address: address.clone(), made_unix_us, manifest, tree };
                add(key, serde_json::json!(offered));
            }
            for digest in [manifest, tree] {
                add(format!("{DIGESTS}{digest}/{address}"), node.clone());
            }
        }
        entries
    }

    /// What pins keep, with its facts. What cannot be read is not offered.
    fn kept(&mut self) -> Vec<(Digest, Described)> {
        let store = Store::find(&self.store, None).unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing can be offered");
            None
        });
        let pins = store.as_ref().and_then(|store| store.pins().ok()).unwrap_or_default();
        let kept: BTreeSet<Digest> = pins.iter().map(|pin| pin.manifest).collect();
        self.described.retain(|manifest, _| kept.contains(manifest));
        for manifest in kept {
            if let (Some(store), Entry::Vacant(unknown)) = (&store, self.described.entry(manifest))
                && let Ok(described) = store.described(manifest)
            {
                unknown.insert(described);
            }
        }
        let known = self.described.iter();
        known.filter_map(|(manifest, described)| Some((*manifest, described.clone()?))).collect()
    }
}
