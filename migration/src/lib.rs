//! What both halves of a migration share: plan, phases, ids, journal, report, the pure convergence rule.
//!
//! Nothing here talks to a kernel, a container engine or a network: these are the words and the rules that the
//! source and the destination must agree on.

pub mod calendar;
pub mod cancel;
pub mod convergence;
pub mod downtime;
pub mod failure;
pub mod fault;
pub mod hooks;
pub mod host;
pub mod id;
pub mod journal;
pub mod lineage;
pub mod lock;
pub mod observer;
pub mod ownership;
pub mod phase;
pub mod plan;
pub mod prediction;
pub mod quantity;
pub mod remains;
pub mod report;
pub mod takeover;
pub mod throttle;
pub mod volume_owner;

pub use cancel::Cancel;
pub use failure::{Disposition, Failure, FailureKind};
pub use host::host_name;
pub use id::MigrationId;
pub use lineage::{Lineage, WriterId};
pub use observer::{Observer, Silent};
pub use phase::{Phase, Role};
