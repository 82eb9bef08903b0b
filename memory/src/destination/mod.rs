//! The destination half.
