//! The network lock: an nf_tables table that drops everything in and out of a namespace.
//!
//! ```text
//! table inet godwit {
//!   chain input  { type filter hook input  priority -350; policy drop; }
//!   chain output { type filter hook output priority -350; policy drop; }
//! }
//! ```
//!
//! CRIU's own lock ends with its dump, and a frozen process's kernel sockets go on acknowledging: bytes
//! acknowledged after the dump are lost at commit. This lock is held from before the freeze to commit or rollback,
//! and survives the death of every process. It drops loopback too, for the same reason. ARP is not touched.

use std::io;

use super::netlink::{ACK, CREATE, Message, Netlink};
use super::{Namespace, NetworkError, Result};

const TABLE: &str = "godwit";
/// Before connection tracking (-200) and raw (-300), so that nothing remembers a dropped packet.
const PRIORITY: i32 = -350;

// linux/netfilter/nfnetlink.h and nf_tables.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const LOCAL_IN: u32 = 1;
const LOCAL_OUT: u32 = 3;
const DROP: u32 = 0;
/// `struct nfgenmsg` of family `NFPROTO_INET`, version 0.
const INET: [u8; 4] = [1, 0, 0, 0];

/// The lock of one namespace. It keeps a netlink socket open inside, so that locking costs no thread; dropping
/// this value leaves the lock as it is.
#[derive(Debug)]
pub struct NetworkLock {
    inside: Netlink,
}

impl NetworkLock {
    /// Prepares to lock `namespace`; changes nothing yet. Refuses the host's own namespace.
    pub fn of(namespace: &Namespace) -> Result<Self> {
        if namespace.is_own()? {
            return Err(NetworkError::HostNetwork(namespace.path().to_path_buf()));
        }
        Ok(Self { inside: namespace.run(Netlink::netfilter)?? })
    }

    /// Drops everything from now on. Idempotent.
    pub fn lock(&self) -> Result<()> {
        let chain = |name, hook| {
            Message::new(NEW_CHAIN, CREATE | ACK, &INET)
                .text(CHAIN_TABLE, TABLE)
                .text(CHAIN_NAME, name)
                .nest_be32(CHAIN_HOOK, &[(HOOK_NUMBER, hook), (HOOK_PRIORITY, PRIORITY.cast_unsigned())])
                .attribute(CHAIN_POLICY, &DROP.to_be_bytes())
                .text(CHAIN_TYPE, "filter")
        };
        let table = Message::new(NEW_TABLE, CREATE | ACK, &INET).text(TABLE_NAME, TABLE);
        let done = self.batch(vec![table, chain("input", LOCAL_IN), chain("output", LOCAL_OUT)]);
        done.map_err(|source| NetworkError::Netlink { what: "lock the network (nf_tables)".into(), source })
    }

    /// Lets everything pass again. Idempotent: no lock is no error.
    pub fn unlock(&self) -> Result<()> {
        match self.batch(vec![Message::new(DELETE_TABLE, ACK, &INET).text(TABLE_NAME, TABLE)]) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::Netlink { what: "unlock the network (nf_tables)".into(), source })
            }
            _ => Ok(()),
        }
    }

    /// Whether the lock is there, by whomever it was made.
    pub fn is_locked(&self) -> Result<bool> {
        match self.inside.request(vec![Message::new(GET_TABLE, 0, &INET).text(TABLE_NAME, TABLE)]) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(NetworkError::Netlink { what: "read the network lock".into(), source }),
        }
    }

    /// nf_tables changes come in batches that happen wholly or not at all.
    fn batch(&self, mut messages: Vec<Message>) -> io::Result<()> {
        let bracket = |kind| Message::new(kind, 0, &[0, 0, 0, SUBSYSTEM as u8]);
        messages.insert(0, bracket(BATCH_BEGIN));
        messages.push(bracket(BATCH_END));
        self.inside.request(messages).map(drop)
    }
}
