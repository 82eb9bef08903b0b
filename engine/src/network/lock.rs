//! The network lock: nf_tables chains that drop what comes into a namespace and what leaves it.
//!
//! ```text
//! table inet godwit {
//!   chain input {
//!     type filter hook input priority -350; policy drop;
//!     icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
//!     ether saddr KEY accept
//!     meta l4proto != tcp log group 26487
//!   }
//!   chain output {
//!     type filter hook output priority -350; policy drop;
//!     icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
//!   }
//! }
//! ```
//!
//! CRIU's own lock ends with its dump, and a frozen process's kernel sockets go on acknowledging: bytes
//! acknowledged after the dump are lost at commit. This lock is held from before the freeze to commit or rollback,
//! and survives the death of every process. It drops loopback too, for the same reason. Neighbour discovery and ARP
//! pass, so that no peer gives the address up while it waits; a silenced namespace has lost these as well.
//!
//! A dropped packet is an error (`EPERM`) to the program that sends it: the output of a container that runs is never
//! locked.

use std::fs::File;
use std::io::{self, Read};

use super::netlink::{ACK, CREATE, Message, Netlink};
use super::rule::{Compare, Header, Rule};
use super::{Namespace, NetworkError, Result};

pub(super) const TABLE: &str = "godwit";
/// Before connection tracking (-200) and raw (-300), so that nothing remembers a dropped packet.
const PRIORITY: i32 = -350;
/// The group of nfnetlink_log that hears of what the input chain drops.
pub(super) const LOG_GROUP: u16 = 0x6777;

// linux/netfilter/nfnetlink.h and nf_tables.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
pub(super) const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
pub(super) const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
pub(super) const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// A family of tables, as `struct nfgenmsg` of version 0, and the numbers of its hooks for input and output.
#[derive(Clone, Copy)]
struct Family {
    header: [u8; 4],
    input: u32,
    output: u32,
}

/// `NFPROTO_INET`.
const INET: Family = Family { header: [1, 0, 0, 0], input: 1, output: 3 };
/// `NFPROTO_ARP`.
const ARP: Family = Family { header: [3, 0, 0, 0], input: 0, output: 1 };

/// The lock of one namespace. It keeps a netlink socket open inside, so that locking costs no thread; dropping
/// this value leaves the lock as it is.
#[derive(Debug)]
pub struct NetworkLock {
    inside: Netlink,
    /// Frames with this Ethernet source pass.
    key: [u8; 6],
}

impl NetworkLock {
    /// Prepares to lock `namespace`; changes nothing yet. Refuses the host's own namespace.
    pub fn of(namespace: &Namespace) -> Result<Self> {
        if namespace.is_own()? {
            return Err(NetworkError::HostNetwork(namespace.path().to_path_buf()));
        }
        let key = random_mac().map_err(|source| failed("make a key for the network lock", source))?;
        Ok(Self { inside: namespace.run(Netlink::netfilter)??, key })
    }

    /// The Ethernet source address whose frames pass the lock, by which kept frames come in before any others do.
    pub fn key(&self) -> [u8; 6] {
        self.key
    }

    /// Drops what comes in from now on; what the container says still leaves. Idempotent.
    pub fn lock_input(&self) -> Result<()> {
        self.make(|log| self.input(log))
    }

    /// Drops everything from now on. Idempotent.
    pub fn lock(&self) -> Result<()> {
        self.make(|log| {
            let pass = discovery().accept().append_to(TABLE, "output");
            [self.input(log), vec![chain(INET, "output", INET.output), flush("output"), pass]].concat()
        })
    }

    /// Drops ARP and neighbour discovery of a locked namespace as well, so that nothing at all leaves it. Idempotent.
    ///
    /// # Errors
    /// Also when this kernel has no nf_tables for ARP.
    pub fn silence(&self) -> Result<()> {
        let chains = [chain(ARP, "input", ARP.input), chain(ARP, "output", ARP.output)];
        let messages = [vec![table(ARP, NEW_TABLE)], chains.to_vec(), vec![flush("output")]].concat();
        self.batch(messages).map_err(|source| failed("silence the network (nf_tables)", source))
    }

    /// Lets what the container says leave, after [`NetworkLock::lock`]; what comes in is still dropped. Idempotent.
    pub fn unlock_output(&self) -> Result<()> {
        // not deleted: the next batch would wait for that, an RCU grace period
        let pass = Message::new(NEW_CHAIN, ACK, &INET.header)
            .text(CHAIN_TABLE, TABLE)
            .text(CHAIN_NAME, "output")
            .attribute(CHAIN_POLICY, &ACCEPT.to_be_bytes());
        self.remove(vec![pass])
    }

    /// Lets everything pass again. Idempotent: no lock is no error.
    pub fn unlock(&self) -> Result<()> {
        let there = [ARP, INET].into_iter().filter(|family| self.has_table(*family).unwrap_or(true));
        let tables: Vec<Message> = there.map(|family| table(family, DELETE_TABLE)).collect();
        if tables.is_empty() { Ok(()) } else { self.remove(tables) }
    }

    /// Whether the lock is there, by whomever it was made.
    pub fn is_locked(&self) -> Result<bool> {
        self.has_table(INET).map_err(|source| failed("read the network lock", source))
    }

    fn has_table(&self, family: Family) -> io::Result<bool> {
        let get = Message::new(GET_TABLE, 0, &family.header).text(TABLE_NAME, TABLE);
        match self.inside.request(vec![get]) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(source),
        }
    }

    fn input(&self, log: bool) -> Vec<Message> {
        const TCP: u8 = 6;
        const ETHERNET_SOURCE: u32 = 6;
        let keyed = Rule::default().bytes(Header::Link, ETHERNET_SOURCE, Compare::Equal, &self.key);
        let mut rules = vec![discovery().accept(), keyed.accept()];
        if log {
            rules.push(Rule::default().protocol(Compare::NotEqual, TCP).log(LOG_GROUP));
        }
        let rules = rules.into_iter().map(|rule| rule.append_to(TABLE, "input"));
        [chain(INET, "input", INET.input), flush("input")].into_iter().chain(rules).collect()
    }

    /// Makes the table with `chains`; without the log when this kernel has none.
    fn make(&self, chains: impl Fn(bool) -> Vec<Message>) -> Result<()> {
        let made = [true, false].map(|log| [vec![table(INET, NEW_TABLE)], chains(log)].concat());
        let [logging, silent] = made;
        let done = self.batch(logging).or_else(|error| {
            tracing::debug!(%error, "no log of what the network lock drops");
            self.batch(silent)
        });
        done.map_err(|source| failed("lock the network (nf_tables)", source))
    }

    fn remove(&self, messages: Vec<Message>) -> Result<()> {
        match self.batch(messages) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(failed("unlock the network (nf_tables)", source))
            }
            _ => Ok(()),
        }
    }

    fn batch(&self, messages: Vec<Message>) -> io::Result<()> {
        batch(&self.inside, messages)
    }
}

/// nf_tables changes come in batches that happen wholly or not at all.
pub(super) fn batch(inside: &Netlink, mut messages: Vec<Message>) -> io::Result<()> {
    let bracket = |kind| Message::new(kind, 0, &[0, 0, 0, SUBSYSTEM as u8]);
    messages.insert(0, bracket(BATCH_BEGIN));
    messages.push(bracket(BATCH_END));
    inside.request(messages).map(drop)
}

fn table(family: Family, verb: u16) -> Message {
    let flags = if verb == NEW_TABLE { CREATE | ACK } else { ACK };
    Message::new(verb, flags, &family.header).text(TABLE_NAME, TABLE)
}

fn chain(family: Family, name: &str, hook: u32) -> Message {
    Message::new(NEW_CHAIN, CREATE | ACK, &family.header)
        .text(CHAIN_TABLE, TABLE)
        .text(CHAIN_NAME, name)
        .nest_be32(CHAIN_HOOK, &[(HOOK_NUMBER, hook), (HOOK_PRIORITY, PRIORITY.cast_unsigned())])
        .attribute(CHAIN_POLICY, &DROP.to_be_bytes())
        .text(CHAIN_TYPE, "filter")
}

/// Removes the rules of a chain, which an earlier lock may have left.
fn flush(chain: &str) -> Message {
    Message::new(DELETE_RULE, ACK, &INET.header).text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain)
}

/// Neighbour solicitation and advertisement (RFC 4861 sections 4.3 and 4.4), as a rule without its end.
fn discovery() -> Rule {
    const ICMPV6: u8 = 58;
    let (solicitation, advertisement) = ([135], [136]);
    let rule = Rule::default().protocol(Compare::Equal, ICMPV6);
    let rule = rule.bytes(Header::Transport, 0, Compare::AtLeast, &solicitation);
    rule.bytes(Header::Transport, 0, Compare::AtMost, &advertisement)
}

fn failed(what: &str, source: io::Error) -> NetworkError {
    NetworkError::Netlink { what: what.into(), source }
}

/// A unicast address of local administration that nobody can guess.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = mac[0] & !1 | 2;
    Ok(mac)
}
