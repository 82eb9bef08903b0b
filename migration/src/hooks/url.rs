//! The few URLs that an application can be called by.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A URL longer than this is no hook's.
const LONGEST: usize = 2048;

/// `http://ADDRESS[:PORT][/PATH]`, the address a number or `localhost`: names would be looked up on this host, and mean
/// something else in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HookUrl {
    text: String,
    address: SocketAddr,
    /// Where host and port begin and end in `text`.
    authority: (usize, usize),
}

/// Said when a text is no URL that can be called.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` cannot be called: {why}")]
pub struct InvalidUrl {
    text: String,
    why: &'static str,
}

impl HookUrl {
    /// Where to connect to, in the container's network namespace.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Host and port as they stand there: for the header `Host`.
    pub fn authority(&self) -> &str {
        &self.text[self.authority.0..self.authority.1]
    }

    /// Path and query: for the request line.
    pub fn path(&self) -> &str {
        match &self.text[self.authority.1..] {
            "" => "/",
            path => path,
        }
    }
}

impl FromStr for HookUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let refuse = |why| InvalidUrl { text: text.chars().take(100).collect(), why };
        if text.len() > LONGEST {
            return Err(refuse("it is longer than 2048 bytes"));
        }
        // nothing that could end the request line, or begin another header
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse("it has characters that a URL writes as %XX"));
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| refuse("it does not begin with `http://`"))?;
        let length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(length);
        if authority.contains('@') {
            return Err(refuse("it names a user"));
        }
        if path.contains('#') {
            return Err(refuse("it has a fragment"));
        }
        if path.starts_with('?') {
            return Err(refuse("it has a query without a path"));
        }
        let address = address_of(authority).ok_or_else(|| {
            refuse("its host is neither an address in digits nor `localhost`, with a port or without")
        })?;
        let is_somebody =
            address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
        if !is_somebody {
            return Err(refuse("nobody listens at such an address"));
        }
        let begin = text.len() - rest.len();
        Ok(Self { text: text.into(), address, authority: (begin, begin + length) })
    }
}

fn address_of(authority: &str) -> Option<SocketAddr> {
    let authority =
        authority.replacen("localhost", "127.0.0.1", usize::from(authority.starts_with("localhost")));
    if let Ok(address) = authority.parse::<SocketAddr>() {
        // `+80` and `080` are numbers to nobody else
        let port = authority.rsplit(':').next()?;
        return (port == address.port().to_string()).then_some(address);
    }
    let bare = authority.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let ip: IpAddr = match bare {
        Some(inner) => inner.parse().map(IpAddr::V6).ok()?,
        None => authority.parse::<Ipv4Addr>().map(IpAddr::V4).ok()?,
    };
    Some(SocketAddr::new(ip, 80))
}

impl TryFrom<String> for HookUrl {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        text.parse()
    }
}

impl From<HookUrl> for String {
    fn from(url: HookUrl) -> String {
        url.text
    }
}

impl fmt::Display for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_authority_and_path() {
        for (text, address, authority, path) in [
            ("http://127.0.0.1:8080/a/b?c=d", "127.0.0.1:8080", "127.0.0.1:8080", "/a/b?c=d"),
            ("http://localhost/x", "127.0.0.1:80", "localhost", "/x"),
            ("http://localhost:99", "127.0.0.1:99", "localhost:99", "/"),
            ("http://[::1]:81/", "[::1]:81", "[::1]:81", "/"),
            ("http://[fd00::7]", "[fd00::7]:80", "[fd00::7]", "/"),
        ] {
            let url: HookUrl = text.parse().unwrap();
            assert_eq!(
                (url.address().to_string().as_str(), url.authority(), url.path()),
                (address, authority, path)
            );
            assert_eq!(url.to_string(), text);
        }
    }

    #[test]
    fn weird_ones_are_refused() {
        let long = format!("http://127.0.0.1/{}", "x".repeat(LONGEST));
        for text in [
            "",
            "http://",
            "http:///x",
            "https://127.0.0.1/x",
            "HTTP://127.0.0.1/x",
            "ftp://127.0.0.1/x",
            "//127.0.0.1/x",
            "http://web/x",
            "http://localhost.evil/x",
            "http://localhostage/x",
            "http://root@127.0.0.1/x",
            "http://127.0.0.1@10.0.0.1/x",
            "http://127.0.0.1/x#y",
            "http://127.0.0.1?x",
            "http://127.0.0.1:0/x",
            "http://127.0.0.1:/x",
            "http://127.0.0.1:+80/x",
            "http://127.0.0.1:080/x",
            "http://127.0.0.1:65536/x",
            "http://127.1/x",
            "http://0177.0.0.1/x",
            "http://2130706433/x",
            "http://0.0.0.0/x",
            "http://[::]/x",
            "http://224.0.0.1/x",
            "http://[::1/x",
            "http://::1/x",
            "http://127.0.0.1/a b",
            "http://127.0.0.1/a\r\nHost: x",
            "http://127.0.0.1/ä",
            "http://127.0.0.1/\0",
            &long,
        ] {
            assert!(text.parse::<HookUrl>().is_err(), "{text}");
        }
    }
}
