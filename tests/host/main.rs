//! Tests on namespace hosts: real redis, real CRIU, real runc, and `rsync` as the judge of file equality.
//!
//! They need root and `scripts/testbed`. What cannot be run says why; with `GODWIT_REQUIRE=all` it fails.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod attempt;
mod bed;
mod cgroup_v1;
mod chaos;
mod container;
mod faults;
mod files;
mod gap;
mod godwit;
mod guardian;
mod kernels;
mod kinds;
mod memory;
mod moves;
mod obstacles;
mod postgres;
mod probe;
mod program;
mod recovery;
mod refusals;
mod rollback;
mod sealed;
mod state;
mod throttle;
mod tls;
mod workload;
