//! Temporary.
#![allow(missing_docs)]
use godwit_memory::destination::{Content, PageStore};
use godwit_memory::{PageRun, SharedObject};
use std::path::Path;
use std::time::Instant;
#[derive(Debug, thiserror::Error)]
#[error("not there yet")]
pub struct FillError;
pub type SharedError = FillError;
pub struct Filler;
pub struct R { pub pages: u64, pub faults: u64, pub restarts: u32 }
impl Filler {
    pub fn start(_: &Path, _: &[&str], _: &Path, _: &PageStore) -> Result<Self, FillError> { Err(FillError) }
    pub fn give(&mut self, _: Vec<(u32, Vec<(PageRun, Content)>)>) -> Result<(), FillError> { Ok(()) }
    pub fn wait(self, _: Instant, _: &mut dyn FnMut(u64, u64)) -> Result<R, FillError> { Err(FillError) }
    pub fn abandon(self) {}
}
pub fn fill_shared(_: &PageStore, _: &SharedObject, _: impl Fn(u32) -> Option<i32>) -> Result<(), FillError> { Err(FillError) }
