//! Where checkpoints and snapshots are: paths of this host, other hosts, places in object storage.

use clap::builder::{OsStringValueParser, TypedValueParser};
use godwit_object_storage::PlaceName;
use godwit_object_storage::name::NotAPlace;
use godwit_transfer::Address;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// On this host.
    Path(PathBuf),
    /// `s3://…` or `file://…`.
    Place(PlaceName),
    /// This host's store: `store`, or one that it keeps, `store:ID`.
    Store(Option<String>),
}

/// What means this host's store; a directory of that name is `./store`.
const STORE: &str = "store";

impl Location {
    fn parse(text: OsString) -> Result<Self, NotAPlace> {
        match text.to_str() {
            Some(place) if PlaceName::is_meant_by(place) => place.parse().map(Self::Place),
            Some(STORE) => Ok(Self::Store(None)),
            Some(text) if text.starts_with("store:") => {
                Ok(Self::Store(Some(text[STORE.len() + 1..].to_owned())))
            }
            _ => Ok(Self::Path(text.into())),
        }
    }

    pub fn parser() -> impl TypedValueParser<Value = Location> {
        OsStringValueParser::new().try_map(Location::parse)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Place(place) => write!(f, "{place}"),
            Self::Store(None) => f.write_str(STORE),
            Self::Store(Some(id)) => write!(f, "{STORE}:{id}"),
        }
    }
}

/// Who else has snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// Another node.
    Node(Address),
    /// `s3://…` or `file://…`.
    Place(PlaceName),
}

impl FromStr for Elsewhere {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match PlaceName::is_meant_by(text) {
            true => text.parse().map(Self::Place).map_err(|error: NotAPlace| error.to_string()),
            false => text.parse().map(Self::Node).map_err(|error| format!("{error}")),
        }
    }
}
