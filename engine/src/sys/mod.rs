//! The crate's only `unsafe` code: packet sockets, whose address and options nix does not build safely,
//! and extended attributes.
#![allow(unsafe_code)]

pub(crate) mod packet;
pub(crate) mod xattr;
