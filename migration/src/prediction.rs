//! The downtime to expect of a way of moving memory: what does not depend on how much is dirty at the end. Estimates from
//! measurements of redis and PostgreSQL under runc; they only decide when rounds end, and are printed beside what came
//! out.

use crate::plan::Restoration;
use serde::Serialize;
use std::time::Duration;

/// What the final dump and the restore cost whatever the size of the container: processes, namespaces, sockets, a runtime
/// around CRIU. At least this much.
const SWITCH: Duration = Duration::from_millis(90);
/// The same in starts of the runtime, as the destination measured one: 10 ms on a usual host, where both come to about the
/// same; 250 ms on an emulated one, where the switchover was seen to take 2.6 s.
const SWITCH_IN_STARTS: u32 = 9;
/// What CRIU needs for each task beyond the first when it dumps and restores.
const EACH_TASK: Duration = Duration::from_millis(5);
/// Bytes a second that CRIU dumps to memory.
const DUMP_BYTES_PER_SECOND: f64 = 1.5e9;
/// Bytes a second that an eager restore copies into memory.
const RESTORE_BYTES_PER_SECOND: f64 = 1.0e9;
/// Bytes a second at which shared objects are filled while the tree is held.
const FILL_BYTES_PER_SECOND: f64 = 2.0e9;

/// How memory is moved, as far as it matters for the downtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Everything under one freeze, by CRIU.
    StopAndCopy,
    /// A full dump under the freeze, compared with an earlier one.
    Checkpoint,
    /// CRIU dumps what was written of late.
    PreDump,
    /// CRIU dumps no pages at all.
    Outside(Restoration),
}

/// What was measured of the container and of the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// Resident memory.
    pub memory_bytes: u64,
    /// Of it, objects that tasks share.
    pub shared_bytes: u64,
    /// Private memory that is put in place before the tasks run although the rest comes later.
    pub eager_bytes: u64,
    /// Tasks.
    pub tasks: usize,
    /// How long a process takes to start at the destination.
    pub process_start: Duration,
    /// The way there and back.
    pub round_trip: Duration,
    /// How long the last round's own dump took.
    pub last_dump: Duration,
}

/// The part of the downtime that does not depend on how much is dirty at the end.
pub fn fixed(way: Way, parts: &Parts) -> Duration {
    let seconds = |bytes: u64, rate: f64| Duration::from_secs_f64(bytes as f64 / rate);
    let switch = SWITCH.max(parts.process_start * SWITCH_IN_STARTS)
        + EACH_TASK * u32::try_from(parts.tasks.saturating_sub(1)).unwrap_or(u32::MAX)
        + parts.round_trip * 4;
    let restore = seconds(parts.memory_bytes, RESTORE_BYTES_PER_SECOND);
    switch
        + match way {
            Way::StopAndCopy => seconds(parts.memory_bytes, DUMP_BYTES_PER_SECOND) + restore,
            Way::Checkpoint | Way::PreDump => parts.last_dump + restore,
            Way::Outside(Restoration::LocalLazy) => {
                seconds(parts.eager_bytes, RESTORE_BYTES_PER_SECOND)
                    + seconds(parts.shared_bytes, FILL_BYTES_PER_SECOND)
            }
            Way::Outside(_) => restore,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_lazy_does_not_grow_with_memory() {
        let parts = |gib: u64| Parts { memory_bytes: gib << 30, tasks: 1, ..Parts::default() };
        let grows = |way| fixed(way, &parts(4)) > fixed(way, &parts(1)) + Duration::from_secs(1);
        assert!(grows(Way::StopAndCopy) && grows(Way::PreDump) && grows(Way::Outside(Restoration::Eager)));
        let lazy = Way::Outside(Restoration::LocalLazy);
        assert_eq!(fixed(lazy, &parts(4)), fixed(lazy, &parts(1)));
    }

    #[test]
    fn slow_hosts_and_many_tasks_take_longer() {
        let lazy = Way::Outside(Restoration::LocalLazy);
        let plain = fixed(lazy, &Parts::default());
        let slow = Parts { process_start: Duration::from_millis(250), ..Parts::default() };
        assert!(fixed(lazy, &slow) > Duration::from_secs(2));
        let many = Parts { tasks: 17, ..Parts::default() };
        assert_eq!(fixed(lazy, &many), plain + EACH_TASK * 16);
    }
}
