//! What there is on a host, so that two times can be compared: nothing may be left, and nothing touched.

use crate::bed::Bed;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long things may take to go that end by themselves.
const SETTLE: Duration = Duration::from_secs(6);

/// Lines of a difference that are told.
const SHOWN: usize = 20;

/// Processes with their numbers, mounts, cgroups, links, routes, rules and files of a host, one line each.
#[derive(Clone, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

/// The caches of CRIU, of the resolver, and of what podman has found out of the kernel are nobody's leftovers; names of network
/// namespaces docker removes after a minute.
const LIST: &str = r#"
exec 2> /dev/null
ps -e -o pid=,ppid=,args= | awk -v me=$$ '$1 != me && $2 != me && !/sshd-session|sshd-auth|timeout --kill-after/ { $2 = ""; print "process " $0 }'
cut -d' ' -f5 /proc/self/mountinfo | sed 's/^/mount /'
find /sys/fs/cgroup -type d | sed 's/^/cgroup /'
grep -H 1 /sys/fs/cgroup/*/cgroup.freeze | sed 's/^/frozen /'
ip -o link | awk '{ print "link " $2 $9 }'
ip route | sed 's/^/route /'
nft list ruleset | sed 's/^/nft /'
runc list | awk 'NR > 1 { print "runc " $1, $2, $3 }'
find /run /tmp /dev/shm -not -path '/run/runc/*/*' -not -path '/run/crun/*/*' -not -name 'criu.kdat' -not -path '/run/test.*' -not -path '/run/docker/netns/*' -not -path '/run/containers/storage/overlay/*' | sed 's/^/file /'
find /srv | sed 's/^/file /'
find /var/lib/godwit -path '*/images*' -o -name '*.sock' | sed 's/^/file /'
true
"#;

impl State {
    /// What there is now, for as long as nobody does anything: what an earlier test's engine is still putting away would
    /// otherwise be missed afterwards.
    pub fn of(bed: &Bed, host: &str) -> Self {
        let begun = Instant::now();
        let mut before = Self::at_this_moment(bed, host);
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = Self::at_this_moment(bed, host);
            if now == before || begun.elapsed() > SETTLE {
                return now;
            }
            before = now;
        }
    }

    fn at_this_moment(bed: &Bed, host: &str) -> Self {
        Self(bed.sh(host, LIST).lines().map(str::to_owned).collect())
    }

    /// The same without the files below a path.
    pub fn without(mut self, path: &str) -> Self {
        let below = format!("file {path}");
        self.0.retain(|line| !line.starts_with(&below));
        self
    }

    /// What came and went since.
    fn difference(&self, now: &Self) -> String {
        let lines = |sign: &str, one: &Self, other: &Self| {
            let lines: Vec<&String> = one.0.difference(&other.0).collect();
            let shown: String = lines.iter().take(SHOWN).map(|line| format!("{sign} {line}\n")).collect();
            let more = lines.len().saturating_sub(SHOWN);
            if more > 0 { format!("{shown}{sign} … {more} more\n") } else { shown }
        };
        lines("-", self, now) + &lines("+", now, self)
    }

    /// Asserts that the host is as it was, at once or as soon as what is ending has ended.
    #[track_caller]
    pub fn assert_unchanged(&self, bed: &Bed, host: &str) {
        self.assert_unchanged_without(bed, host, "/nothing");
    }

    /// What was not there before, files below /srv aside, when everything that ends by itself has ended.
    pub fn left_over(&self, bed: &Bed, host: &str) -> Option<String> {
        let begun = Instant::now();
        loop {
            let now = Self::at_this_moment(bed, host).without("/srv");
            // what was on its way out when it was first looked at is nobody's
            if now.0.is_subset(&self.0) {
                return None;
            }
            if begun.elapsed() > SETTLE {
                return Some(format!("{host}: {}", self.difference(&now)));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The same, the files below a path not looked at.
    #[track_caller]
    pub fn assert_unchanged_without(&self, bed: &Bed, host: &str, path: &str) {
        let begun = Instant::now();
        loop {
            let now = Self::at_this_moment(bed, host).without(path);
            if now == *self {
                return;
            }
            assert!(begun.elapsed() < SETTLE, "{host} is not as it was:\n{}", self.difference(&now));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
