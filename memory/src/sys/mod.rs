//! The unsafe corner: raw kernel interfaces, one file each. Layouts cite their header and are checked by tests.
#![allow(unsafe_code)]

pub(crate) mod fdpass;
pub(crate) mod mapping;
pub(crate) mod pagemap;
pub(crate) mod process;
pub(crate) mod ptrace;
pub(crate) mod task;
pub(crate) mod userfaultfd;
