//! The tasks of a tree, from /proc.

use std::io;

/// The process ids of the tree below `root`, which is the first, as they are now.
pub(super) fn tree_of(root: i32) -> Vec<i32> {
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next).copied() {
        next += 1;
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            // proc_pid_children(5): reliable for a tree that is frozen.
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            tree.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    tree
}

/// The process id a task has in its own pid namespace.
pub(super) fn own_pid(pid: i32) -> io::Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    last_nspid(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no NSpid in its status"))
}

fn last_nspid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pids() {
        assert_eq!(last_nspid("Name:\tx\nNSpid:\t4242\t7\t1\n"), Some(1));
        assert_eq!(last_nspid("NSpid:\t4242\n"), Some(4242));
        assert_eq!(last_nspid("Pid:\t4242\n"), None);
        assert!(own_pid(std::process::id() as i32).is_ok());
    }

    #[test]
    fn children_and_theirs() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let root = shell.id() as i32;
        let mut tree = Vec::new();
        for _ in 0..400 {
            tree = tree_of(root);
            if tree.len() == 2 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!((tree.len(), tree[0]), (2, root));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(tree[1]), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        shell.wait().unwrap();
        assert_eq!(tree_of(root), [root], "one that is gone has no children");
    }
}
