//! An etcd as a witness: a key for each migration, `NAME/witness/ID`, made once by a transaction, and `NAME/running/ID`.
//!
//! No lease is on it: what was said is said for ever. Whoever removes the key, or brings back an old state of the etcd, while the
//! migration is in doubt takes the witness's word away.

use crate::{Witness, as_written};
use godwit_etcd::{Client, Place};
use godwit_migration::{MigrationId, Role};
use godwit_transfer::tls::config_dir;
use std::io;

/// One that both hosts reach. It is asked with the certificates of the host that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdWitness(pub Place);

impl EtcdWitness {
    fn key(&self, migration: &MigrationId) -> String {
        self.0.key(&format!("witness/{migration}"))
    }

    fn running_key(&self, migration: &MigrationId) -> String {
        self.0.key(&format!("running/{migration}"))
    }

    fn client(&self) -> io::Result<Client> {
        Ok(Client::new(&self.0, &config_dir())?)
    }
}

impl Witness for EtcdWitness {
    fn claim(&self, migration: &MigrationId, side: Role) -> io::Result<Role> {
        as_written(&self.client()?.make_once(&self.key(migration), &side.to_string())?)
    }

    fn holder(&self, migration: &MigrationId) -> io::Result<Option<Role>> {
        self.client()?.get(&self.key(migration))?.as_deref().map(as_written).transpose()
    }

    fn note_running(&self, migration: &MigrationId) -> io::Result<()> {
        Ok(self.client()?.make_once(&self.running_key(migration), "running").map(drop)?)
    }

    fn is_running(&self, migration: &MigrationId) -> io::Result<bool> {
        Ok(self.client()?.get(&self.running_key(migration))?.is_some())
    }
}
