//! What of the host's processors was idle before copying began: that much, less a reserve, copying may use.

use super::schedule::Schedule;
use nix::sys::resource::{UsageWho, getrusage};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Processor time that copying may use in any case, as a share of the whole host: a move must come to its end.
const LEAST: f64 = 0.1;
/// What is left idle, as a share of the whole host: the last of it is not as idle as it looks. Processors share a core, and those
/// who wait for each other leave gaps that they need.
const RESERVE: f64 = 0.25;
/// The kernel counts idle time in hundredths of a second: what is told of much less is chance.
const TELLING: Duration = Duration::from_millis(100);

/// The host's processors and this process at one time.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    /// Of all processors together.
    idle: Duration,
    /// By this process and the programs that it has started (ssh).
    own: Duration,
}

impl Look {
    fn now() -> Option<Self> {
        let idle = idle_ticks(&std::fs::read_to_string("/proc/stat").ok()?)?;
        let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        let idle = Duration::from_secs_f64(idle as f64 / a_second.max(1) as f64);
        Some(Self { at: Instant::now(), idle, own: own_time()? })
    }
}

/// Idle and waiting for a disk, from the sum over all processors (proc_stat(5)).
fn idle_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().skip(3);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// Processor time of this process, and of its children so far.
fn own_time() -> Option<Duration> {
    let duration = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
    };
    let of =
        |who| getrusage(who).ok().map(|usage| duration(usage.user_time()) + duration(usage.system_time()));
    let living = Duration::from_nanos(Schedule::of(&children()).ran);
    Some(of(UsageWho::RUSAGE_SELF)? + of(UsageWho::RUSAGE_CHILDREN)? + living)
}

/// Programs that run for this process (/proc/PID/task/TID/children: proc_pid_task(5)).
fn children() -> BTreeSet<i32> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_ascii_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect()
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Room {
    first: Option<Look>,
    processors: f64,
    /// Processors that copying may use; none while that is not known.
    size: Option<f64>,
    looked: Option<(Instant, Duration)>,
}

impl Room {
    /// Begins to look at what is idle.
    pub(super) fn observe() -> Self {
        let processors =
            nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
        Self { first: Look::now(), processors: processors.max(1) as f64, size: None, looked: None }
    }

    /// Copying begins: what was idle until now, and what this process used meanwhile, is its room.
    pub(super) fn begin(&mut self) {
        let (Some(first), Some(now)) = (self.first, Look::now()) else { return };
        let time = now.at.duration_since(first.at);
        if time < TELLING {
            return;
        }
        let free = now.idle.saturating_sub(first.idle) + now.own.saturating_sub(first.own);
        self.size = Some(room(free, time, self.processors));
    }

    /// Processors, if it is known.
    pub(super) fn size(&self) -> Option<f64> {
        self.size
    }

    /// The part of it that copying may use in any case.
    pub(super) fn least_part(&self) -> f64 {
        self.size.map_or(LEAST, |size| LEAST * self.processors / size)
    }

    /// What was used since the last look, as a multiple of the room.
    pub(super) fn used(&mut self) -> Option<f64> {
        let size = self.size?;
        let now = (Instant::now(), own_time()?);
        let before = self.looked.replace(now)?;
        let used = now.1.saturating_sub(before.1).as_secs_f64() / (now.0 - before.0).as_secs_f64().max(1e-6);
        Some(used / size)
    }

    /// What was used until now does not count.
    pub(super) fn forget(&mut self) {
        self.looked = own_time().map(|own| (Instant::now(), own));
    }
}

/// Processors that `free` in `time` comes to, on a host that has so many.
fn room(free: Duration, time: Duration, processors: f64) -> f64 {
    let free = free.as_secs_f64() / time.as_secs_f64().max(1e-6);
    (free - RESERVE * processors).clamp(LEAST * processors, processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_the_fourth_and_fifth_number() {
        assert_eq!(idle_ticks("cpu  1 2 3 400 50 6 7 8 9 10\ncpu0 1 2 3 4 5\n"), Some(450));
        assert_eq!(idle_ticks("cpu  1 2 3\n"), None);
        assert_eq!(idle_ticks("intr 1 2 3 4 5 6\n"), None);
    }

    #[test]
    fn what_was_idle_is_room_and_never_nothing() {
        let second = Duration::from_secs(1);
        assert_eq!(room(second * 5, second * 2, 4.0), 1.5);
        assert_eq!(room(Duration::ZERO, second, 4.0), 0.4);
        assert_eq!(room(second, second, 4.0), 0.4);
        assert_eq!(room(second * 9, second, 4.0), 4.0);
    }

    #[test]
    fn own_work_and_that_of_children_is_seen() {
        let before = own_time().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let own = own_time().unwrap();
        assert!(own > before);
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let seen = own_time().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen - own > Duration::from_millis(20), "a child that worked for 300 ms");
    }
}
