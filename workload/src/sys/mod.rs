//! Every call that the compiler cannot check.
#![allow(unsafe_code)]

pub mod file;
pub mod filter;
pub mod memory;
pub mod process;

use std::fmt;

/// A system call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was called, with the argument that matters: `mremap move`.
    pub call: &'static str,
    /// Why, as errno(3).
    pub errno: i32,
}

impl Failure {
    fn last(call: &'static str) -> Self {
        Self { call, errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, std::io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for Failure {}

/// What a call gives that says -1 for a failure.
fn checked(call: &'static str, value: impl Into<i64>) -> Result<i64, Failure> {
    match value.into() {
        -1 => Err(Failure::last(call)),
        value => Ok(value),
    }
}
