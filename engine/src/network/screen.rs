//! A screen before a container's place on a bridge: an engine that starts a container connects it at once, and the container
//! still runs elsewhere with the same addresses. What comes from those is dropped where it enters this host's bridge, before the
//! bridge learns where they are, until godwit has closed the container's own gate.

use super::command::run;
use super::{NetworkState, Result, announce::parse_mac};
use std::time::Duration;

/// Time that nft(8) may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Before every other rule, and before the bridge learns anything (linux/netfilter_bridge.h).
const PRIORITY: i32 = -400;
/// Digits of a container's id in the name of a table.
const DIGITS: usize = 12;

/// A screen that stands. Dropped, it is taken down.
#[derive(Debug)]
pub struct Screen {
    id: String,
}

impl Screen {
    /// Puts one up for the addresses of a network, named after the container's id. Only what comes from a veth is looked at:
    /// the container that still runs elsewhere is reached through other ports.
    ///
    /// None where there is nothing to be kept off.
    ///
    /// # Errors
    /// What nft(8) said.
    pub fn put_up(id: &str, state: &NetworkState) -> Result<Option<Self>> {
        let addresses: Vec<&str> =
            state.interfaces().map(|link| link.mac.as_str()).filter(|mac| parse_mac(mac).is_some()).collect();
        if addresses.is_empty() {
            return Ok(None);
        }
        Self::take_down(id)?;
        let rules = format!(
            "table bridge {name} {{ chain enter {{ type filter hook prerouting priority {PRIORITY}; \
             meta iifkind \"veth\" ether saddr {{ {addresses} }} drop; }}; }}",
            name = table(id),
            addresses = addresses.join(", ")
        );
        run("nft", &["-f", "-"], &rules, LIMIT)?;
        Ok(Some(Self { id: id.to_owned() }))
    }

    /// Takes down the screen of this container, if there is one. Idempotent.
    ///
    /// # Errors
    /// What nft(8) said.
    pub fn take_down(id: &str) -> Result<()> {
        let name = table(id);
        // a table that is not there cannot be deleted; it is made first
        let words = format!("add table bridge {name}\ndelete table bridge {name}\n");
        run("nft", &["-f", "-"], &words, LIMIT).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Err(error) = Self::take_down(&self.id) {
            tracing::warn!(%error, table = table(&self.id), "a table of nft is left over");
        }
    }
}

fn table(id: &str) -> String {
    let digits: String = id.chars().filter(char::is_ascii_alphanumeric).take(DIGITS).collect();
    format!("godwit-screen-{digits}")
}
