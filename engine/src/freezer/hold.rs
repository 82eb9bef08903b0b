//! Holding a restored tree: what the action script does at CRIU's `pre-resume`.
//!
//! At `pre-resume` everything was restored and nothing has run, and CRIU is not needed for what follows: the tree is
//! frozen there, CRIU and the runtime end, and the thaw is Go. CRIU ignores the script's exit status at this point,
//! so the hold must be verified afterwards ([`super::Freezer::verify_held`]).

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::time::Duration;

use super::tree::{ancestors, process_tree};
use super::{Freezer, FreezerError, Result, discover};

/// How CRIU calls an action script (criu(8), `--action-script`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookCall {
    /// `CRTOOLS_SCRIPT_ACTION`.
    pub action: String,
    /// `CRTOOLS_INIT_PID`: the first process of the restored tree, when it exists already.
    pub init_pid: Option<i32>,
}

impl HookCall {
    /// Reads the environment; an error when CRIU did not set it.
    pub fn from_env() -> Result<Self> {
        const ACTION: &str = "CRTOOLS_SCRIPT_ACTION";
        let action = env::var(ACTION).map_err(|_| FreezerError::NotAHook(ACTION))?;
        let init_pid =
            env::var("CRTOOLS_INIT_PID").ok().and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0);
        Ok(Self { action, init_pid })
    }
}

/// What a hook call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// Another action than `pre-resume`: nothing was done.
    NotYet,
    /// The tree is frozen.
    Held {
        /// Its cgroup.
        freezer: Freezer,
        /// Its processes.
        pids: BTreeSet<i32>,
        /// Time the freeze took.
        took: Duration,
    },
}

/// Freezes the restored tree when `call` is `pre-resume`: moves whatever in its cgroup is not of the tree (this
/// process, its shell, CRIU and CRIU's own children, which runc puts there; crun's keeper) outside, freezes, waits until frozen.
///
/// `dir` is the container's cgroup when it is known, else it is found by the tree's first process.
pub fn hold_from_hook(call: &HookCall, dir: Option<&Path>, limit: Duration) -> Result<Hold> {
    if call.action != "pre-resume" {
        return Ok(Hold::NotYet);
    }
    let init = call.init_pid.ok_or(FreezerError::NotAHook("CRTOOLS_INIT_PID"))?;
    let tree = process_tree(init);
    if tree.is_empty() {
        return Err(FreezerError::NoOwnCgroup(init));
    }
    let own = ancestors(std::process::id().cast_signed());
    let freezer = match dir {
        Some(dir) => Freezer::at(dir)?,
        None => discover::of_pid(init, &criu(&own, &tree))?,
    };
    hold(freezer, tree, limit)
}

/// The same by a process that CRIU has not started: where that is in another pid namespace by then, with those that it starts.
pub fn hold_beside(criu: i32, init: i32, limit: Duration) -> Result<Hold> {
    let tree = process_tree(init);
    let family: BTreeSet<i32> = process_tree(criu).difference(&tree).copied().collect();
    hold(discover::of_pid(init, &family)?, tree, limit)
}

fn hold(freezer: Freezer, tree: BTreeSet<i32>, limit: Duration) -> Result<Hold> {
    freezer.put_keeper_aside()?;
    for outsider in freezer.pids()?.difference(&tree) {
        freezer.move_out(*outsider)?;
    }
    let took = freezer.freeze(limit)?;
    freezer.verify_held(&tree)?;
    Ok(Hold::Held { freezer, pids: tree, took })
}

/// Moves CRIU out of the cgroup of the tree that it restores, once the tree's first process is there: what it starts then is
/// outside, and the tree's other processes come from the first. [`hold_from_hook`] does this otherwise; a move waits for a
/// grace period of the kernel, 5 ms and more, which can pass while the tree is restored.
pub fn move_criu_out(criu: i32, init: i32) -> Result<()> {
    let tree = process_tree(init);
    let family: BTreeSet<i32> = process_tree(criu).difference(&tree).copied().collect();
    let freezer = discover::of_pid(init, &family)?;
    if family.contains(&criu) && freezer.pids()?.contains(&criu) {
        freezer.move_out(criu)?;
    }
    Ok(())
}

/// The cgroup that a runtime has put CRIU into, for the tree that it is about to restore.
pub fn cgroup_of_criu(criu: i32) -> Result<Freezer> {
    discover::of_pid(criu, &BTreeSet::new())
}

/// This process's ancestors below process 1, and their children that are not of the tree: CRIU and its helpers.
fn criu(own: &BTreeSet<i32>, tree: &BTreeSet<i32>) -> BTreeSet<i32> {
    let roots = own.iter().filter(|pid| **pid > 1 && !tree.contains(pid));
    let family: BTreeSet<i32> = roots.flat_map(|pid| process_tree(*pid)).collect();
    family.difference(tree).copied().collect()
}
