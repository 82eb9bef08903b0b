//! Where the other half is: `ssh://`, `tls://`, `tcp://`, `unix://`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of `tls://` when none is written.
pub const TLS_PORT: u16 = 7700;

/// An address as the user writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `ssh://[user@]host[:port]`: godwit is started there and spoken to over the ssh connection.
    Ssh {
        /// Login name; ssh's own configuration decides when it is absent.
        user: Option<String>,
        /// Host name, address or ssh alias.
        host: String,
        /// Port; ssh's own configuration decides when it is absent.
        port: Option<u16>,
    },
    /// `tls://[name@]host[:port]`: encrypted, and both sides prove who they are.
    Tls {
        /// The name by which this host trusts the one at `host`: that name itself unless another is written.
        name: Option<String>,
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `tcp://host:port`: plain bytes, neither encrypted nor authenticated.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `unix:///path`: a socket on this host.
    Unix(PathBuf),
}

/// Said when a text is not an address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not an address: {reason}")]
pub struct InvalidAddress {
    text: String,
    reason: &'static str,
}

impl Address {
    /// Whether the bytes on this way can be read or changed by others on the network.
    pub fn is_exposed(&self) -> bool {
        matches!(self, Address::Tcp { .. })
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |reason| InvalidAddress { text: text.chars().take(128).collect(), reason };
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| invalid("write `ssh://host`, `tls://host` or `unix:///path`"))?;
        match scheme {
            "ssh" => {
                let (user, place) = match rest.split_once('@') {
                    Some((user, place)) => (Some(user), place),
                    None => (None, rest),
                };
                let (host, port) = host_and_port(place).ok_or_else(|| invalid("the port is not a number"))?;
                // a leading dash would reach ssh as an option
                if host.is_empty()
                    || host.starts_with('-')
                    || user.is_some_and(|user| user.is_empty() || user.starts_with('-'))
                {
                    return Err(invalid("the host or the user is missing or begins with a dash"));
                }
                Ok(Address::Ssh { user: user.map(str::to_owned), host, port })
            }
            "tls" => {
                let (name, place) = match rest.split_once('@') {
                    Some((name, place)) => (Some(name), place),
                    None => (None, rest),
                };
                let (host, port) = host_and_port(place).ok_or_else(|| invalid("the port is not a number"))?;
                if host.is_empty() || name.is_some_and(|name| !crate::tls::is_peer_name(name)) {
                    return Err(invalid("write `tls://host`, `tls://host:port` or `tls://name@host`"));
                }
                Ok(Address::Tls { name: name.map(str::to_owned), host, port: port.unwrap_or(TLS_PORT) })
            }
            "tcp" => match host_and_port(rest) {
                Some((host, Some(port))) if !host.is_empty() => Ok(Address::Tcp { host, port }),
                _ => Err(invalid("write `tcp://host:port`")),
            },
            "unix" if rest.starts_with('/') => Ok(Address::Unix(PathBuf::from(rest))),
            "unix" => Err(invalid("the path must be absolute, as in `unix:///run/godwit.sock`")),
            _ => Err(invalid("known schemes are ssh, tls, tcp and unix")),
        }
    }
}

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port`; `None` when the port is no number.
fn host_and_port(place: &str) -> Option<(String, Option<u16>)> {
    if let Some(rest) = place.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host.to_owned(), Some(port.parse().ok()?))),
            None if after.is_empty() => Some((host.to_owned(), None)),
            None => None,
        };
    }
    match place.split_once(':') {
        Some((host, port)) => Some((host.to_owned(), Some(port.parse().ok()?))),
        None => Some((place.to_owned(), None)),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match self {
            Address::Ssh { user, host, port } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(&bracketed(host))?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
            Address::Tls { name, host, port } => {
                f.write_str("tls://")?;
                if let Some(name) = name {
                    write!(f, "{name}@")?;
                }
                write!(f, "{}:{port}", bracketed(host))
            }
            Address::Tcp { host, port } => write!(f, "tcp://{}:{port}", bracketed(host)),
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_write_the_same() {
        for text in [
            "ssh://rack2",
            "ssh://root@rack2:2222",
            "tls://rack2:7700",
            "tls://rack2@10.0.0.2:7701",
            "tls://rack2@[::1]:7701",
            "tcp://rack2:7700",
            "tcp://[::1]:7700",
            "unix:///run/godwit.sock",
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn tls_has_a_port_of_its_own() {
        let address: Address = "tls://rack2".parse().unwrap();
        assert_eq!(address.to_string(), "tls://rack2:7700");
        assert!(!address.is_exposed());
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "rack2",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://host:port",
            "tcp://host",
            "tcp://:1",
            "tcp://host:99999",
            "unix://relative",
            "http://host",
            "tls://",
            "tls://@host",
            "tls://a b@host",
            "tls://ssh:x@host",
            "tls://host:port",
            "tcp://[::1:7700",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
