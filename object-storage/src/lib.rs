//! Object storage: places that hosts can reach which cannot reach each other, and that outlive them.
//!
//! - A *place* is a bucket of S3's with a prefix, or a directory ([`name`], [`bucket`], [`place`]).
//! - An *image* is a checkpoint or a snapshot of a volume that the content store has: a tree, and what is known of it. In a place it is
//!   an *index*, written last ([`index`]), and *packs* of chunks that it needs ([`pack`]), which several images share.
//! - What an upload has put where is in a *ledger* on this host ([`ledger`]): the next one only puts what is not there yet, also
//!   where it cannot read what is there, since it is encrypted.
//! - Images are let go of, and packs *collected* that none needs ([`collect`]), while others put images there ([`records`]).
//!
//! - The *post* ([`post`]) is something else: a place carries a stream of bytes between two hosts, and keeps nothing of it.
//!
//! All that is read of images is verified: an index is named by the digest of its manifest, that names the chunks. `docs/object-storage.md`
//! describes the format.

pub mod bucket;
pub mod collect;
pub mod download;
pub mod error;
pub mod index;
pub mod ledger;
mod leftovers;
pub mod name;
pub mod pack;
pub mod place;
pub mod post;
pub mod records;
mod unfinished;
pub mod upload;

pub use collect::{Amount, Collected, Collection, collect};
pub use download::{Downloaded, download, verify};
pub use error::PlaceError;
pub use index::{Index, Kind};
pub use name::PlaceName;
pub use place::Place;
pub use post::{Exchange, Letterbox, Post};
pub use upload::{Order, Uploaded, upload};
