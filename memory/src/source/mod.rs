//! The source half.
