//! Where the probe sends to: `tcp://HOST:PORT`, `udp://HOST:PORT`, `redis://HOST:PORT`, `http://HOST:PORT/PATH`.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::ProbeError;

/// What is spoken over the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Numbered messages that the server echoes.
    Tcp,
    /// The same, each in a datagram.
    Udp,
    /// RESP, the protocol of redis and valkey.
    Redis,
    /// HTTP/1.1 without TLS.
    Http,
}

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// What is spoken.
    pub scheme: Scheme,
    /// Host name or IP address, without the brackets of IPv6.
    pub host: String,
    /// TCP or UDP port.
    pub port: u16,
    /// Path and query of the request, `/` when absent; only HTTP uses it.
    pub path: String,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is not an address to probe: {why}");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| {
            wrong("expected `tcp://HOST:PORT`, `udp://HOST:PORT`, `redis://HOST:PORT` or `http://HOST:PORT/PATH`")
        })?;
        let (scheme, default_port) = match scheme {
            "tcp" => (Scheme::Tcp, None),
            "udp" => (Scheme::Udp, None),
            "redis" => (Scheme::Redis, Some(6379)),
            "http" => (Scheme::Http, Some(80)),
            other => return Err(wrong(&format!("`{other}` is none of `tcp`, `udp`, `redis`, `http`"))),
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        if path != "/" && scheme != Scheme::Http {
            return Err(wrong(&format!("`{path}` means nothing here")));
        }
        if !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong("the path has characters that need percent-encoding"));
        }
        if authority.contains('@') {
            return Err(wrong("credentials in the address are not supported"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| wrong("`]` is missing"))?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or_else(|| wrong("expected `:PORT` after `]`"))?),
                };
                (host, port)
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:%".contains(&b)) {
            return Err(wrong(&format!("`{host}` is not a host name")));
        }
        let port = match (port, default_port) {
            (Some(port), _) => match port.parse::<u16>() {
                Ok(port) if port != 0 => port,
                _ => return Err(wrong(&format!("`{port}` is not a port"))),
            },
            (None, Some(port)) => port,
            (None, None) => return Err(wrong("the port is missing")),
        };
        Ok(Self { scheme, host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Tcp => "tcp",
            Scheme::Udp => "udp",
            Scheme::Redis => "redis",
            Scheme::Http => "http",
        };
        let path = if self.scheme == Scheme::Http { self.path.as_str() } else { "" };
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

impl Address {
    /// `HOST:PORT`, with the brackets of IPv6.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Looks the host up, waiting at most `limit`.
    ///
    /// # Errors
    /// When the host has no address or the resolver takes longer.
    pub fn resolve(&self, limit: Duration) -> Result<SocketAddr, ProbeError> {
        let (sender, receiver) = mpsc::channel();
        let (host, port) = (self.host.clone(), self.port);
        // getaddrinfo(3) has no limit of its own that a caller can set
        thread::spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(|mut addresses| addresses.next());
            let _ = sender.send(found);
        });
        let reason = match receiver.recv_timeout(limit) {
            Ok(Ok(Some(address))) => return Ok(address),
            Ok(Ok(None)) => "it has no address".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {limit:?}"),
        };
        Err(ProbeError::Resolve { host: self.host.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let address: Address = "http://[::1]:8080/a/b?c=1".parse().unwrap();
        assert_eq!((address.host.as_str(), address.port, address.path.as_str()), ("::1", 8080, "/a/b?c=1"));
        assert_eq!(address.to_string(), "http://[::1]:8080/a/b?c=1");
        let address: Address = "redis://10.0.0.7".parse().unwrap();
        assert_eq!((address.scheme, address.port), (Scheme::Redis, 6379));
        let address: Address = "tcp://localhost:7".parse().unwrap();
        assert_eq!(address.to_string(), "tcp://localhost:7");
        let address: Address = "udp://[fd00::7]:7".parse().unwrap();
        assert_eq!((address.scheme, address.to_string().as_str()), (Scheme::Udp, "udp://[fd00::7]:7"));
    }

    #[test]
    fn bad_addresses_are_named() {
        for bad in [
            "localhost:7",
            "tcp://localhost",
            "tcp://:7",
            "tcp://h:0",
            "tcp://h:99999",
            "tcp://h:7/path",
            "https://h/",
            "redis://user:pw@h:1",
            "http://[::1/",
            "http://[::1]x/",
            "http://h/a b",
            "http://h\r\nX/",
            "",
        ] {
            let error = bad.parse::<Address>().expect_err(bad);
            assert!(error.contains(bad), "{error}");
        }
    }
}
