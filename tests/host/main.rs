//! Tests on namespace hosts: real redis, real CRIU, real runc, and `rsync` as the judge of file equality.
//!
//! They need root and `scripts/testbed`. What cannot be run says why; with `GODWIT_REQUIRE=all` it fails.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod attempt;
mod bare;
mod bed;
mod cgroup_v1;
mod chaos;
mod cold;
mod container;
mod cooperative;
mod engines;
mod engines_docker;
mod etcd;
mod faults;
mod files;
mod gap;
mod godwit;
mod guardian;
mod hooks;
mod images;
mod incremental;
mod kernels;
mod kinds;
mod memory;
mod moves;
mod obstacles;
mod parting;
mod parting_docker;
mod places;
mod pods;
mod postgres;
mod probe;
mod program;
mod recovery;
mod refusals;
mod restart;
mod restart_docker;
mod rollback;
mod sealed;
mod snapshots;
mod state;
mod systemd;
mod throttle;
mod tls;
mod workload;
