//! The source half: dirty tracking, rounds, freeze, dump, volumes out.
