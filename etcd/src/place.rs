//! Where an etcd is, and under which name godwit's keys are there: `etcds://host[:port][,host[:port]…][/name]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// etcd's port for clients.
const PORT: u16 = 2379;
/// The name of godwit's keys when none is written.
const NAME: &str = "godwit";
/// Most members of a cluster that are asked.
const MOST_MEMBERS: usize = 9;

/// A cluster, and the part of its keys that is godwit's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `etcds`: over TLS.
    is_encrypted: bool,
    /// `host:port`, IPv6 in brackets; asked in this order.
    members: Vec<String>,
    /// What all keys begin with, without slashes around it.
    name: String,
}

/// Said of a text that is not a place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is no etcd: {reason}; write `etcds://host[:port][,host…][/name]`")]
pub struct ParsePlaceError {
    text: String,
    reason: &'static str,
}

impl Place {
    /// Whether a text means an etcd at all.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with("etcd:") || text.starts_with("etcds:")
    }

    /// Whether what is said can be read or changed by others on the network: plain, and not to this host alone.
    pub fn is_exposed(&self) -> bool {
        !self.is_encrypted && !self.members.iter().all(|member| is_loopback(member))
    }

    /// Whether it is spoken to over TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// The URLs of its members.
    pub(crate) fn urls(&self) -> impl Iterator<Item = String> {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        self.members.iter().map(move |member| format!("{scheme}://{member}"))
    }

    /// The key of something of godwit's.
    pub fn key(&self, rest: &str) -> String {
        format!("/{}/{rest}", self.name)
    }
}

fn is_loopback(member: &str) -> bool {
    let host = member.rsplit_once(':').map_or(member, |(host, _)| host);
    let digits = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || digits.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `host:port` of a member as it is written.
fn member(text: &str) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok()?),
        _ => (text, PORT),
    };
    let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_right = match is_v6 {
        Some(digits) => digits.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        }
    };
    is_right.then(|| format!("{host}:{port}"))
}

impl FromStr for Place {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, ParsePlaceError> {
        let wrong = |reason| ParsePlaceError { text: text.chars().take(128).collect(), reason };
        let (is_encrypted, rest) = match text.split_once("://") {
            Some(("etcds", rest)) => (true, rest),
            Some(("etcd", rest)) => (false, rest),
            _ => return Err(wrong("it begins with neither `etcds://` nor `etcd://`")),
        };
        let (members, name) = rest.split_once('/').unwrap_or((rest, NAME));
        let members: Option<Vec<_>> = members.split(',').map(member).collect();
        let members = members.ok_or_else(|| wrong("a host is missing, or its port is not a number"))?;
        if members.len() > MOST_MEMBERS {
            return Err(wrong("it has too many members"));
        }
        let name = name.trim_end_matches('/');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if name.is_empty() || name.len() > 128 || !name.chars().all(is_plain) {
            return Err(wrong("the name has letters, digits, `-`, `_`, `.` and `/`"));
        }
        Ok(Self { is_encrypted, members, name: name.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "etcds" } else { "etcd" };
        write!(f, "{scheme}://{}/{}", self.members.join(","), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_and_write_the_same() {
        for text in ["etcd://127.0.0.1:2379/godwit", "etcds://a:1,b.example:2,[::1]:3/dc1/godwit"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        let short: Place = "etcds://rack3".parse().unwrap();
        assert_eq!(short.to_string(), "etcds://rack3:2379/godwit");
        assert_eq!(short.key("nodes/rack1"), "/godwit/nodes/rack1");
        assert_eq!("etcd://[::1]".parse::<Place>().unwrap().to_string(), "etcd://[::1]:2379/godwit");
    }

    #[test]
    fn plain_is_exposed_but_to_this_host() {
        let exposed = |text: &str| text.parse::<Place>().unwrap().is_exposed();
        assert!(!exposed("etcds://rack3"));
        assert!(!exposed("etcd://127.0.0.1,localhost,[::1]:4"));
        assert!(exposed("etcd://127.0.0.1,rack3"));
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            "etcd:",
            "etcd://",
            "etcd://a,",
            "etcd://a:b",
            "etcd://a:99999",
            "etcd://a/",
            "etcd://a/b c",
            "http://a",
            "etcd://u@a",
            "etcd://[x]",
            "etcd://a?b",
            "etcd://::1",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
