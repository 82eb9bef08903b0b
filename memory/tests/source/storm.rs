//! To come.
pub fn rage(_: &str) {}
