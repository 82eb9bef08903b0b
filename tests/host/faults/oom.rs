//! The OOM killer takes the handler of page faults at the destination: it is put into a memory cgroup of this machine whose
//! memory is used up by somebody else, and it is what the kernel likes to kill best.

use crate::bed::{Bed, DST};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The cgroup's limit, and what is written to a tmpfs from within it.
const LIMIT: &str = "16M";
const TOO_MUCH: &str = "64M";
/// Pages of a tmpfs count for the cgroup, and for no process in it.
const FILE: &str = "/dev/shm/godwit-test-oom";

/// Where this machine's memory cgroups are. Namespace hosts have a cgroup v2 hierarchy without that controller.
pub fn hierarchy() -> Result<PathBuf, String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    mounts
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, place, "cgroup", options, ..] if options.split(',').any(|option| option == "memory") => {
                Some(PathBuf::from(place))
            }
            _ => None,
        })
        .find(|place| place.join("memory.limit_in_bytes").exists())
        .ok_or_else(|| "no cgroup v1 hierarchy with the memory controller to have a real OOM kill in".into())
}

/// A memory cgroup, gone at the end with what was charged to it.
struct Narrow(PathBuf);

impl Narrow {
    fn new() -> Self {
        let dir = hierarchy().unwrap().join(format!("godwit-test-oom-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let narrow = Self(dir);
        std::fs::write(narrow.0.join("memory.limit_in_bytes"), LIMIT).unwrap();
        narrow
    }

    /// How many processes the OOM killer has killed in it.
    fn kills(&self) -> u32 {
        let control = std::fs::read_to_string(self.0.join("memory.oom_control")).unwrap();
        control.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(FILE);
        let begun = Instant::now();
        // one that was killed is in it until it is gone
        while std::fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The OOM killer kills the handler; it is dead when this returns.
pub fn kill_handler(bed: &Bed) {
    let said = bed.sh(DST, "pgrep -o -f '[g]odwit fill'; readlink /proc/self/ns/pid");
    let (number, namespace) = said.split_once('\n').unwrap();
    let handler = PathBuf::from(format!("/proc/{}", number_here(number, Path::new(namespace))));
    let narrow = Narrow::new();
    std::fs::write(handler.join("oom_score_adj"), "1000").unwrap();
    let number = handler.file_name().unwrap().to_str().unwrap();
    std::fs::write(narrow.0.join("cgroup.procs"), number).unwrap();
    let procs = narrow.0.join("cgroup.procs");
    // it is killed, too, when that was not enough
    let script = format!("echo $$ > {}; exec head -c {TOO_MUCH} /dev/zero > {FILE}", procs.display());
    Command::new("sh").args(["-c", &script]).output().unwrap();
    let is_alive = || {
        std::fs::read_to_string(handler.join("stat"))
            .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])))
    };
    let begun = Instant::now();
    while is_alive() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the OOM killer left the handler alone");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(narrow.kills() >= 1, "it died of something else");
}

/// What a process is called here that has this number in a namespace.
fn number_here(number: &str, namespace: &Path) -> u32 {
    let is_it = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|found| found == namespace)
            && std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
                let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
                numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some(number)
            })
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(is_it).expect("the handler is a process of this machine")
}
