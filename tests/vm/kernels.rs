//! What a kernel does not have, what it does instead, and memory that is not in memory.

use crate::machines::{SRC, machines};
use crate::workload::{Sides, Workload};

const NO_UFFD: &str = "godwit-workload without userfaultfd";
const NO_SCAN: &str = "godwit-workload without pagemap-scan";

#[test]
fn soft_dirty_bits_are_taken_where_there_is_nothing_better_also_for_what_is_swapped_out() {
    let Some(machines) = machines() else { return };
    for host in [SRC, crate::machines::DST] {
        // with room for all of it, and little memory for the container
        machines.sh(
            host,
            "fallocate -l 256M /srv/swap && chmod 600 /srv/swap && mkswap -q /srv/swap && swapon /srv/swap",
        );
    }
    let mut workload =
        Workload::start(&machines, "chaos --seed 21 --processes 2 --threads 1 --size 3 --rate 500");
    let swapped = |host: &str| {
        machines.sh(
            host,
            "echo 64M > /sys/fs/cgroup/vmt/memory.reclaim
             awk '/^VmSwap:/ { sum += $2 } END { print sum }' \
             $(for p in $(pgrep -x godwit-workload); do echo /proc/$p/status; done)",
        )
    };
    for (sides, tracker, restoration, why) in [
        (Sides { here: NO_UFFD, there: "" }, "soft-dirty", "local-lazy", "userfaultfd"),
        (Sides { here: NO_SCAN, there: NO_UFFD }, "soft-dirty", "eager", "PAGEMAP_SCAN"),
    ] {
        let kib = swapped(workload.host);
        let (summary, said) = workload.move_on(sides, "--max-rounds 3");
        assert_eq!(summary["tracker"], tracker, "{sides:?}: {summary}");
        assert_eq!(summary["memory"]["restoration"], restoration, "{sides:?}: {summary}");
        let note = said.lines().find(|line| line.contains("strategy pre-copy, tracker")).unwrap();
        assert!(note.contains(tracker) && note.contains(why), "{note}");
        assert!(kib.parse::<u64>().unwrap_or(0) > 1024, "only `{kib}` KiB were swapped out");
        workload.assert_clean(&format!("{sides:?}: {summary}"));
    }
}
