//! CRIU's own network lock, which outlives a CRIU that was killed: nf_tables tables called `CRIU-…`, or a chain `CRIU` in each
//! of iptables and ip6tables (CRIU's netfilter.c). godwit asks CRIU for none; a runtime's configuration may.

use super::command::run;
use super::lock::{DELETE_TABLE, GET_TABLE, TABLE, TABLE_NAME};
use super::netlink::{ACK, Message, Netlink, find};
use super::{Namespace, NetworkError, Result};
use std::io;
use std::time::Duration;

/// `NLM_F_DUMP`.
const ALL: u16 = 0x300;
/// The beginning of its tables' names.
const PREFIX: &str = "CRIU-";
/// Its chain.
const CHAIN: &str = "CRIU";
/// Time that an iptables may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Removes it from a namespace; gives the number of tables and chains. What cannot be removed is told in the log. Idempotent.
pub fn remove_criu_lock(namespace: &Namespace) -> usize {
    if namespace.is_own().unwrap_or(true) {
        // in the host's namespace it may be any CRIU's
        return 0;
    }
    let removed = namespace.run(|| {
        let tables = remove_tables().unwrap_or_else(|error| {
            tracing::warn!(%error, "criu's network lock (nf_tables) may still be there");
            0
        });
        tables + ["iptables", "ip6tables"].into_iter().filter(|tool| remove_chain(tool)).count()
    });
    removed.unwrap_or_else(|error| {
        tracing::warn!(%error, "criu's network lock may still be there");
        0
    })
}

fn remove_tables() -> io::Result<usize> {
    let netlink = Netlink::netfilter().map_err(io::Error::other)?;
    let mut found = tables(&netlink)?;
    found.retain(|(_, name)| name.starts_with(PREFIX));
    for (family, name) in &found {
        let header = [*family, 0, 0, 0];
        super::lock::batch(&netlink, vec![Message::new(DELETE_TABLE, ACK, &header).text(TABLE_NAME, name)])?;
    }
    Ok(found.len())
}

/// All nf_tables tables: their families (`NFPROTO_…`) and names.
fn tables(netlink: &Netlink) -> io::Result<Vec<(u8, String)>> {
    let tables = netlink.request(vec![Message::new(GET_TABLE, ALL, &[0; 4])])?;
    // `struct nfgenmsg`, whose first byte is the family, then attributes
    let named = |table: &Vec<u8>| {
        let name = find(table.get(4..)?, TABLE_NAME)?;
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        Some((*table.first()?, String::from_utf8_lossy(name).into_owned()))
    };
    Ok(tables.iter().filter_map(named).collect())
}

/// A table of nf_tables that godwit or CRIU has made to keep a network still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockTable {
    /// As nft(8) wants to have it: `inet NAME`.
    pub(crate) place: String,
    /// It is CRIU's, not godwit's.
    pub(crate) is_criu: bool,
}

/// The locks that lie in a namespace, by whomever they were made.
///
/// # Errors
/// When it cannot be entered, or has no nf_tables.
pub(crate) fn lock_tables(namespace: &Namespace) -> Result<Vec<LockTable>> {
    let read = || Netlink::netfilter().map_err(io::Error::other).and_then(|netlink| tables(&netlink));
    let all = if namespace.is_own()? { read() } else { namespace.run(read)? };
    let all =
        all.map_err(|source| NetworkError::Netlink { what: "list the tables of nf_tables".into(), source })?;
    let known = |(family, name): &(u8, String)| {
        // NFPROTO_INET and NFPROTO_ARP of linux/netfilter.h; there is none of ours in others
        let family = match family {
            1 => "inet",
            3 => "arp",
            _ => return None,
        };
        let is_criu = name.starts_with(PREFIX);
        (is_criu || name == TABLE).then(|| LockTable { place: format!("{family} {name}"), is_criu })
    };
    Ok(all.iter().filter_map(known).collect())
}

/// With the tool itself: its old kind has no other interface. Without the tool there was no such chain made.
fn remove_chain(tool: &str) -> bool {
    let call = |words: &[&str]| run(tool, &[&["-w"], words].concat(), "", LIMIT);
    if call(&["-n", "-L", CHAIN]).is_err() {
        return false;
    }
    for words in
        [&["-F", CHAIN][..], &["-D", "INPUT", "-j", CHAIN], &["-D", "OUTPUT", "-j", CHAIN], &["-X", CHAIN]]
    {
        if let Err(error) = call(words) {
            tracing::warn!(%error, "criu's network lock may still be there");
        }
    }
    true
}
