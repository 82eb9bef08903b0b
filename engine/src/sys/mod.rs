//! The crate's only `unsafe` code: packet sockets, whose address and options nix does not build safely,
//! extended attributes, and file handles.
#![allow(unsafe_code)]

pub(crate) mod handle;
pub(crate) mod packet;
pub(crate) mod xattr;
