//! A preload library for the CRIU that godwit starts: it answers a few of CRIU's questions about memory with less, so that
//! a dump leaves the pages out. godwit reads them itself.
//!
//! | CRIU asks | and gets |
//! |---|---|
//! | `ioctl(PAGEMAP_SCAN)`: which pages are there | none ([`Answers::PAGES`]) |
//! | `pread` of `/proc/PID/pagemap`, the same on older kernels | zeroes: none ([`Answers::PAGES`]) |
//! | `lseek(SEEK_DATA)` in a shared object that godwit listed | no data ([`Answers::SHARED`]) |
//! | `openat` of `/proc/PID/smaps` | what godwit read before the freeze, when it is there ([`Answers::SMAPS`]) |
//! | `prlimit` of another user's task, refused for want of CAP_SYS_RESOURCE | `/proc/PID/limits` ([`Answers::LIMITS`]) |
//!
//! Everything else, and everything without a configuration, passes through. What is asked in another way than expected
//! just gets the whole truth: the dump becomes slower, and stays right.
//!
//! The configuration comes in two variables of the environment, read once. The constructor takes them and `LD_PRELOAD` out of
//! the environment again, so that nothing CRIU starts sees them.
//!
//! The library needs no libc of a certain kind or version: it makes its system calls itself and uses two symbols of the
//! program's libc, `environ` and `__errno_location`. It can be loaded into any dynamically linked ELF program of its
//! processor, not into a static one.
//!
//! Compiled with `--cfg godwit_shim`, which the criu crate's build script does, this is the library. Compiled by cargo it is an
//! ordinary crate that hooks nothing: the names that both sides use, and the tests.
#![cfg_attr(godwit_shim, no_std)]
// Cargo does not know of `godwit_shim`.
#![allow(unexpected_cfgs)]

pub mod answer;
pub mod config;
pub mod limits;
pub mod sys;

pub use config::Answers;
