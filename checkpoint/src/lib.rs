//! The source half: preflight, rounds, freeze, dump, switchover.
//!
//! [`source::migrate`] is the table of contents: each line of it is a phase.

pub mod archive;
mod archive_error;
mod archive_journal;
mod archived;
pub mod chain;
mod connections;
mod cooperation;
mod copying;
mod digests;
pub mod directory_lock;
mod discard;
pub mod dumper;
mod error;
mod files;
mod group;
mod hooks;
pub mod inspect;
mod layer_file;
mod negotiation;
pub mod order;
mod pace;
pub mod pages;
pub mod preflight;
mod question;
pub mod recovery;
pub mod resume;
mod rollback;
mod rounds;
pub mod sealed;
pub mod source;
pub mod staging;
mod stop_and_copy;
mod throttle;
pub mod tracker;
mod volumes;

pub use archive_journal::CheckpointJournal;
pub use dumper::{Circumstances, Dumped, Dumper, NothingToDump, PagelessDumped, PagelessDumper};
pub use group::{Group, Member};
pub use order::{Dial, Job, Order, Parties, Parting, Plan};
pub use pages::PageReader;
pub use source::{migrate, rehearse};
