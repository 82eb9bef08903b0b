//! The crate's only `unsafe` code: packet sockets, whose address and options nix does not build safely,
//! extended attributes, file handles, and nice values of others.
#![allow(unsafe_code)]

pub(crate) mod handle;
pub(crate) mod packet;
pub(crate) mod priority;
pub(crate) mod xattr;
