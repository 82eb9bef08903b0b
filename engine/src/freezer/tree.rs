//! Which processes belong to a container.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// Process `pid`, its descendants, and every process in its pid namespace when that is not ours: what an engine's
/// `exec` started is not a descendant. Other containers that share the namespace are not of it. Empty when `pid` does not exist.
pub fn process_tree(pid: i32) -> BTreeSet<i32> {
    let parents = parents();
    if !parents.contains_key(&pid) {
        return BTreeSet::new();
    }
    let mut tree: BTreeSet<i32> = [pid].into();
    add_descendants(&mut tree, &parents);
    tree.extend(
        neighbours(pid, &parents)
            .difference(&tree)
            .filter(|other| !is_anothers(**other, pid))
            .copied()
            .collect::<Vec<_>>(),
    );
    add_descendants(&mut tree, &parents);
    tree
}

/// Processes of other containers in the pid namespace of process `pid`.
pub fn others_in_pid_namespace(pid: i32) -> BTreeSet<i32> {
    neighbours(pid, &parents()).difference(&process_tree(pid)).copied().collect()
}

/// Those of these processes, all of the container of `root`, that have come to another container: their parent has ended, and
/// number 1 of the pid namespace that both share has adopted them (pid_namespaces(7)).
pub fn adopted_by_others(root: i32, pids: &BTreeSet<i32>) -> Vec<i32> {
    let own = namespace(root, "pid");
    let parent = |pid: i32| parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    // what an engine's `exec` has put in has its parent outside of the namespace
    let is_there = |pid: i32| !pids.contains(&pid) && namespace(pid, "pid") == own;
    pids.iter().filter(|pid| **pid != root && parent(**pid).is_some_and(is_there)).copied().collect()
}

/// All in the pid namespace of `pid`; nobody if it is our own.
fn neighbours(pid: i32, parents: &BTreeMap<i32, i32>) -> BTreeSet<i32> {
    let own = namespace(pid, "pid").filter(|own| Some(own) != namespace(0, "pid").as_ref());
    let Some(own) = own else { return BTreeSet::new() };
    parents.keys().filter(|other| namespace(**other, "pid").as_ref() == Some(&own)).copied().collect()
}

fn add_descendants(tree: &mut BTreeSet<i32>, parents: &BTreeMap<i32, i32>) {
    // A parent may have a higher number than its child: repeat until nothing is added.
    loop {
        let before = tree.len();
        let children: Vec<i32> =
            parents.iter().filter(|(_, parent)| tree.contains(parent)).map(|(child, _)| *child).collect();
        tree.extend(children);
        if tree.len() == before {
            return;
        }
    }
}

/// Whether a process is of another container than `pid` is: it sees other files, which are not this host's, and is in another cgroup.
fn is_anothers(other: i32, pid: i32) -> bool {
    let files = |pid: i32| namespace(pid, "mnt");
    let cgroup = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
    };
    let (Some(its_files), Some(its_cgroup), Some(own_cgroup)) = (files(other), cgroup(other), cgroup(pid))
    else {
        return false;
    };
    let is_apart = !its_cgroup.starts_with(&own_cgroup) && !own_cgroup.starts_with(&its_cgroup);
    is_apart && Some(&its_files) != files(pid).as_ref() && Some(&its_files) != files(0).as_ref()
}

/// Whether a process is gone, or waits only for its parent to hear of its end (proc_pid_stat(5)): all its threads have ended.
pub(super) fn has_ended(pid: i32) -> bool {
    match procfs::process::Process::new(pid).and_then(|process| process.stat()) {
        // a first thread that has ended may have left others behind
        Ok(stat) => matches!(stat.state, 'Z' | 'X') && stat.num_threads <= 1,
        Err(error) => matches!(error, procfs::ProcError::NotFound(_)),
    }
}

/// `pid` and its parents up to process 1.
pub(super) fn ancestors(pid: i32) -> BTreeSet<i32> {
    let parents = parents();
    let mut chain = BTreeSet::new();
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| *pid > 0 && chain.insert(*pid)) {
        next = parents.get(&pid).copied();
    }
    chain
}

/// The parent of every process.
fn parents() -> BTreeMap<i32, i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect()
}

/// The fourth field of `/proc/PID/stat` (proc_pid_stat(5)); the second may hold anything but ends with the last `)`.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The namespace of this kind of `pid`, 0 for our own.
fn namespace(pid: i32, kind: &str) -> Option<PathBuf> {
    let who = if pid == 0 { "self".to_owned() } else { pid.to_string() };
    fs::read_link(format!("/proc/{who}/ns/{kind}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        assert_eq!(parent_in("42 (a) b) c) S 7 42 42 0"), Some(7));
        assert_eq!(parent_in("42 (x"), None);
    }

    #[test]
    fn a_child_is_in_the_tree_and_its_parent_is_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let own = std::process::id().cast_signed();
        assert!(process_tree(own).contains(&pid));
        assert_eq!(process_tree(pid), [pid].into());
        assert!(ancestors(pid).contains(&own));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process_tree(pid).is_empty());
    }
}
