//! Temporary.
#![allow(missing_docs)]
use godwit_memory::SharedObject;
use godwit_memory::destination::PageStore;
#[derive(Debug, thiserror::Error)]
#[error("not there yet")]
pub struct SharedError;
pub fn fill_shared(_: &PageStore, _: &SharedObject, _: impl Fn(u32) -> Option<i32>) -> Result<(), SharedError> { Err(SharedError) }
