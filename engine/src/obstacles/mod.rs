//! What of a process tree CRIU is known to fail at, seen before anything is touched: each with what it is, where, and what
//! to do about it. CRIU's own messages for the same come under the freeze, and seldom say where.

mod descriptors;
pub(crate) mod locks;
pub(crate) mod numbers;
pub(crate) mod ports;
pub(crate) mod shared_numbers;
mod tasks;
mod unix;
mod watches;

use crate::error::EngineError;
use crate::network::Namespace;
use descriptors::Descriptor;
use godwit_migration::plan::Carry;
use godwit_transfer::message::Refusal;
use std::collections::BTreeSet;
use watches::Finder;

/// All that stands in the way of the tree `pids` with the first process `root`.
///
/// # Errors
/// When its network namespace cannot be entered.
pub fn of_tree(root: i32, pids: &BTreeSet<i32>, carry: &Carry) -> Result<Vec<Refusal>, EngineError> {
    let mut found: Vec<Refusal> = pids.iter().filter_map(|pid| tasks::obstacle(root, *pid)).collect();
    found.extend(tasks::stuck(pids));
    found.extend(tasks::uncollected(root));
    let mut sockets = BTreeSet::new();
    let mut finder = Finder::of(root);
    for pid in pids {
        for descriptor in Descriptor::all(*pid) {
            sockets.extend(descriptor.socket());
            found.extend(descriptor.obstacle(carry));
            found.extend(descriptor.watched(&mut finder));
        }
    }
    found.extend(shared_numbers::adopted(root, pids));
    let namespace = Namespace::of_pid(root)?;
    found.extend(locks::obstacles(root, &namespace));
    if !unix::obstacles(&namespace, &sockets, carry)?.is_empty() {
        // sockets come and go: what was made since the first look is its own as well
        let again = pids.iter().flat_map(|pid| Descriptor::all(*pid));
        sockets.extend(again.filter_map(|descriptor| descriptor.socket()));
        found.extend(unix::obstacles(&namespace, &sockets, carry)?);
    }
    Ok(found)
}
