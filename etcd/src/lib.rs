//! A client of etcd: as much as godwit needs of its third version, over the gateway that speaks JSON (etcd 3.4 and later).
//!
//! What is asked here is a whole transaction each time, answered by a majority of the cluster, and may be asked again: an answer
//! that was lost changes nothing.

mod certificates;
pub mod client;
pub mod error;
mod gateway;
pub mod place;

pub use client::{Client, Entry, Lease};
pub use error::EtcdError;
pub use place::{ParsePlaceError, Place};
