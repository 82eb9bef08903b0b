//! A pid namespace that several containers share (`--pid container:NAME`): its number 1 is of one of them, and all end with it.

use crate::freezer::{adopted_by_others, others_in_pid_namespace};
use godwit_transfer::message::Refusal;
use std::collections::BTreeSet;

/// Why a container cannot go alone that shares its process numbers with others.
pub(crate) fn with_others(root: i32) -> Option<Refusal> {
    let others = others_in_pid_namespace(root);
    let one = others.first()?;
    let name = name_of(*one);
    Some(
        Refusal::new(format!("another container shares its pid namespace, with process {one} (`{name}`)"))
            .hint("stop the other one first; containers of docker and podman that share it move with `--together`"),
    )
}

/// Its processes that are another container's children by now: CRIU would look for them there.
pub(crate) fn adopted(root: i32, pids: &BTreeSet<i32>) -> Vec<Refusal> {
    adopted_by_others(root, pids)
        .into_iter()
        .map(|pid| {
            Refusal::new(format!(
                "the parent of process {pid} (`{}`) has ended, and another container of its pid namespace has number 1, which adopted it",
                name_of(pid)
            ))
            .hint("end it, or start it below a process that adopts what it has started (`tini -s`)")
        })
        .collect()
}

fn name_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}
