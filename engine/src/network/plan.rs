//! Where the destination attaches the rebuilt network.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the host side of each rebuilt interface is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPlan {
    /// The bridge with the same name as on the source, for each interface.
    #[default]
    Same,
    /// This bridge, for every interface.
    Bridge(String),
    /// Nothing: the interfaces exist with their addresses, their host sides are left to the operator.
    None,
    /// A program that makes the interfaces: called as `PATH prepare|up|down|remove` with
    /// `{"namespace": "/run/netns/NAME", "state": {...}}` on standard input. `prepare` must leave every interface
    /// of the state, by name, in the namespace and unreachable; addresses, routes and sysctls are set by godwit.
    Hook(PathBuf),
}

/// A plan that could not be understood.
#[derive(Debug, thiserror::Error)]
#[error("unknown network plan `{0}` (use `same`, `none`, `bridge=NAME` or `hook=PATH`)")]
pub struct ParsePlanError(String);

impl FromStr for NetworkPlan {
    type Err = ParsePlanError;

    fn from_str(text: &str) -> Result<Self, ParsePlanError> {
        match (text, text.split_once('=')) {
            ("same", _) => Ok(Self::Same),
            ("none", _) => Ok(Self::None),
            (_, Some(("bridge", name))) if is_interface_name(name) => Ok(Self::Bridge(name.into())),
            (_, Some(("hook", path))) if path.starts_with('/') => Ok(Self::Hook(path.into())),
            _ => Err(ParsePlanError(text.into())),
        }
    }
}

impl std::fmt::Display for NetworkPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Same => f.write_str("same"),
            Self::None => f.write_str("none"),
            Self::Bridge(name) => write!(f, "bridge={name}"),
            Self::Hook(path) => write!(f, "hook={}", path.display()),
        }
    }
}

/// The kernel's rule for interface names (`dev_valid_name`, net/core/dev.c), without what `ip -batch` would split.
pub(super) fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'"' | b'\'' | b'#' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_round_trip_through_text() {
        for text in ["same", "none", "bridge=br0", "hook=/etc/godwit/net"] {
            assert_eq!(text.parse::<NetworkPlan>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "bridge", "bridge=", "bridge=a b", "bridge=sixteen-letters-", "hook=relative", "host"]
        {
            assert!(text.parse::<NetworkPlan>().is_err(), "{text}");
        }
    }
}
