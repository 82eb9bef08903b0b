//! Content from whoever near has it.
//!
//! A destination knows by digest what the container's files are made of. It looks into its own store first and asks its neighbours
//! for the rest ([`gather`]): each is asked what it has, then several give at once, whoever is quick gives more. A neighbour answers
//! from its store ([`attend`]) to whoever may ask, and tells nobody what it has whose digest they do not know already.
//!
//! Who the neighbours are the configuration says, or a [`Catalog`] in an etcd, where each of them keeps what it has ([`Registration`]).
//!
//! Snapshots are fetched from one neighbour ([`fetch`]) or brought to it ([`bring`]), where it keeps them ([`custody`]); what a file system keeps
//! goes as that file system's own stream ([`stream`]).
//!
//! Nothing depends on a neighbour: each chunk is verified by its digest, what nobody gives comes from the source, and the source
//! compares all that was gathered with what it has, as it would with a stale copy.

pub mod acquaintance;
pub mod attend;
pub mod bring;
pub mod catalog;
pub mod custody;
pub mod fetch;
pub mod gather;
pub mod question;
pub mod registration;
pub mod stream;
pub mod visit;

pub use acquaintance::Acquaintance;
pub use attend::{Attended, attend, checkpoints, of_image};
pub use bring::{BringError, Brought, bring};
pub use catalog::{Catalog, Node, Offered};
pub use custody::Keeper;
pub use fetch::{FetchError, Fetched, fetch};
pub use gather::{Aside, Gathering, Needs, Neighbour, gather};
pub use godwit_etcd::{EtcdError, Place};
pub use registration::{Registration, TTL};
pub use stream::{Giver, Mark, StreamOffer, StreamVerdict};
pub use visit::Visit;
