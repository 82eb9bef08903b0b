//! Wire form of pages.
