//! The store on a real file system, beside other processes, killed, damaged, full.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod beside;
mod damage;
mod full;
mod ground;
mod model;
mod quota;
mod round_trip;
mod still;
