//! Where snapshots of volumes come from, and go to.

use godwit_transfer::Address;
use std::fmt;
use std::str::FromStr;

/// A place that has snapshots, or keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Another node, where `godwit node serve` answers.
    Node(Address),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self::Node).map_err(|error| format!("{error}"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(address) => address.fmt(f),
        }
    }
}
