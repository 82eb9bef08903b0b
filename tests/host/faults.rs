//! What may die, break or not be written does, at every line of either journal. After `godwit resume` exactly one host runs
//! the container, no acknowledged write is lost, and nothing is left over.
//!
//! - `matrix`: which fault at which line; `cell`, `play` and `oom` are its parts.
//! - `patient`: what is moved meanwhile, and its client.
//! - `archive`: a checkpoint whose process dies.
//! - `doubt`: after the word was given, and nobody can be asked: what a person decides.
//! - `witness`: the same with an etcd that can be asked.
//!
//! Needs a godwit built with the feature `faults` (`scripts/test --faults` builds one).

mod archive;
mod cell;
mod doubt;
mod matrix;
mod oom;
mod patient;
mod play;
mod witness;

use crate::bed::{Bed, DST, Lent, SRC, bed, skip};
use crate::container::runc_state;

/// Where a build with faults looks for its orders (migration/src/fault.rs).
pub const ORDER: &str = "/run/godwit-fault";
/// Where one that holds waits.
const HOLD: &str = "/run/test.hold";

/// Whether the godwit under test has the points.
fn is_built_in(bed: &Bed) -> bool {
    bed.holds(SRC, "GODWIT_FAULTS=1 godwit --version")
}

/// Waits until godwit holds at the point that was ordered on a host; false when it never came there.
fn hold(bed: &Bed, host: &str) -> bool {
    bed.holds(host, &format!("timeout 60 sh -c 'until [ -e {HOLD}/reached ]; do sleep 0.01; done'"))
}

/// Whether podman has it running, and the kernel nothing frozen.
const PODMAN_RUNS: &str = "[ -e /run/libpod ] && [ \"$(podman inspect -f '{{.State.Status}}' stay)\" = running ] \
    && ! grep -q 1 /sys/fs/cgroup/libpod_parent/libpod-*/cgroup.freeze \
    && ! grep -q 1 /sys/fs/cgroup/libpod_parent/*/libpod-*/cgroup.freeze";

/// The same of docker.
const DOCKER_RUNS: &str = "[ -e /run/docker.pid ] && [ \"$(docker inspect -f '{{.State.Status}}' stay)\" = running ] \
    && ! grep -q 1 /sys/fs/cgroup/docker/*/cgroup.freeze";

/// The hosts that run the container, by the kernel's and its engine's word, not by godwit's.
fn runners(bed: &Bed) -> Vec<&'static str> {
    let runs = |host: &str| {
        runc_state(bed, host, "stay").is_some_and(|state| state["status"] == "running")
            && bed.holds(host, "! grep -q 1 /sys/fs/cgroup/stay/cgroup.freeze")
            || bed.holds(host, PODMAN_RUNS)
            || bed.holds(host, DOCKER_RUNS)
    };
    [SRC, DST].into_iter().filter(|host| runs(host)).collect()
}

/// The bed, if the program under test has the points.
pub fn bed_with_points() -> Option<Lent> {
    let bed = bed()?;
    if is_built_in(&bed) {
        return Some(bed);
    }
    skip("this godwit is built without the feature `faults`");
    None
}
