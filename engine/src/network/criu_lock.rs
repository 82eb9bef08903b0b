//! CRIU's own network lock, which outlives a CRIU that was killed: nf_tables tables called `CRIU-…`, or a chain `CRIU` in each
//! of iptables and ip6tables (CRIU's netfilter.c). godwit asks CRIU for none; a runtime's configuration may.

use super::Namespace;
use super::command::run;
use super::lock::{DELETE_TABLE, GET_TABLE, TABLE_NAME};
use super::netlink::{ACK, Message, Netlink, find};
use std::io;
use std::time::Duration;

/// `NLM_F_DUMP`.
const ALL: u16 = 0x300;
/// The beginning of its tables' names.
const PREFIX: &[u8] = b"CRIU-";
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
    let tables = netlink.request(vec![Message::new(GET_TABLE, ALL, &[0; 4])])?;
    // `struct nfgenmsg`, whose first byte is the family, then attributes
    let named = |table: &Vec<u8>| {
        let name = find(table.get(4..)?, TABLE_NAME)?;
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        let header = [*table.first()?, 0, 0, 0];
        name.starts_with(PREFIX).then(|| (header, String::from_utf8_lossy(name).into_owned()))
    };
    let found: Vec<_> = tables.iter().filter_map(named).collect();
    for (header, name) in &found {
        super::lock::batch(&netlink, vec![Message::new(DELETE_TABLE, ACK, header).text(TABLE_NAME, name)])?;
    }
    Ok(found.len())
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
