//! Curing a tree that a killed CRIU has let go of: its connections, and CRIU's own lock; and the host it restored on.
//!
//! What CRIU has put into the tasks themselves they throw out by themselves as soon as they run.

use crate::network::{Namespace, remove_criu_lock};
use godwit_guardian::end_repair;
use nix::mount::{MntFlags, umount2};
use procfs::process::Process;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long a CRIU that works without its godwit may take to its end.
const LIMIT: Duration = Duration::from_secs(10);

/// Cures the processes, which should be frozen, and their network namespace if they have one of their own. Idempotent, and
/// harmless where there is nothing to cure. What cannot be cured is told in the log.
pub fn cure(pids: &BTreeSet<i32>, namespace: Option<&Namespace>) {
    let repaired = end_repair(pids);
    let removed = namespace.map_or(0, remove_criu_lock);
    tracing::info!(connections = repaired.sockets, locks = removed, "what criu left behind was cured");
}

/// Waits until a CRIU that outlived its godwit has let go of the cgroup at `dir`, and so has the guardian. Whether that came.
pub fn wait_for_criu(dir: &Path) -> bool {
    let begun = Instant::now();
    while godwit_guardian::is_guarded(dir) {
        if begun.elapsed() > LIMIT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Removes what a CRIU that was killed while it restored has left on this host: mounts below `work`, and its directory in /tmp,
/// made after `since`, if no other CRIU works here. What cannot be removed is left.
pub fn sweep(work: &Path, since: SystemTime) {
    for yard in entries(work, ".criu.cgyard.") {
        remove(&yard);
    }
    let is_young = |dir: &PathBuf| {
        let made = std::fs::symlink_metadata(dir).and_then(|meta| meta.modified());
        made.is_ok_and(|made| made >= since)
    };
    if !is_criu_at_work() {
        for namespace in entries(Path::new("/tmp"), ".criu.mntns.").iter().filter(|dir| is_young(dir)) {
            remove(namespace);
        }
    }
}

/// Removes the directory of a runtime that was killed before it wrote down that it has a container of that name, and what
/// is mounted below it. One that knows the container keeps it.
pub fn sweep_runtime(container: &Path) {
    if container.is_dir() && !container.join("state.json").exists() {
        for below in entries(container, "") {
            remove(&below);
        }
        remove(container);
    }
}

/// Unmounts what is mounted on a directory and below it, and removes it if it is empty then.
fn remove(dir: &Path) {
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    let mounts: Vec<PathBuf> = mounts.into_iter().flatten().map(|mount| mount.mount_point).collect();
    // what was mounted last lies deepest
    for mount in mounts.iter().rev().filter(|mount| mount.starts_with(dir)) {
        let _ = umount2(mount, MntFlags::MNT_DETACH);
    }
    let _ = std::fs::remove_dir(dir);
}

fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let named = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).collect()
}

pub(crate) fn is_criu_at_work() -> bool {
    let all = procfs::process::all_processes().into_iter().flatten().flatten();
    all.filter_map(|process| process.stat().ok()).any(|stat| stat.comm == "criu" && stat.state != 'Z')
}
