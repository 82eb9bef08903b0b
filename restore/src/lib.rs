//! The destination half: preflight, assembly, hold, go, volumes in, verify.
