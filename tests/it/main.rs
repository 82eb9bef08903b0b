//! The pure tier: both halves of a migration in one process, between a fake CRIU and a fake engine, over a real wire; and the
//! binary itself as far as it needs no root.
//!
//! - `phases`: what is called in which order, rounds, downtime, equal files and memory at the end.
//! - `failures`: every step fails once, the link breaks everywhere, Ctrl-C comes at every moment: at most one side ever
//!   runs, and the journals say which.
//! - `throttle`: CPU time that is taken comes back, whatever happens.
//! - `question`: switching over beyond the limit is for somebody to say.
//! - `hostile`: a half that lies.
//! - `images`: who may read memory images.
//! - `keys`: the keys of hosts, and the policy.
//! - `places`: object storage, with a real server; `post`: a place that carries what two hosts say.
//! - `store`: the content store's commands; `volume`: those of volumes' past, `volume_nodes`: of several nodes.
//! - `cli`: flags, errors and exit codes of the binary.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test that cannot go on has failed; a skip says why

mod cli;
mod config;
mod failures;
mod fake;
mod hostile;
mod images;
mod keys;
mod link;
mod phases;
mod places;
mod post;
mod question;
mod resume;
mod stage;
mod store;
mod throttle;
mod volume;
mod volume_nodes;
mod volume_streams;
mod world;
