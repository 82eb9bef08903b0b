//! The hosts that this one trusts, by name: `peers.toml`.

use super::Fingerprint;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A longer file is refused, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The longest name: as long as a host's may be (RFC 1035).
const MAX_NAME: usize = 253;

/// Why the file of trusted hosts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// It cannot be read or written.
    #[error("cannot {act} `{}`", path.display())]
    File {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says what cannot be.
    #[error("`{}` cannot be understood: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A name that no host can have.
    #[error("`{0}` is no name for a host: letters, digits, `.`, `_` and `-`, the first a letter or digit")]
    Name(String),
    /// The name has another key.
    #[error("`{name}` has another key: {trusted}")]
    Taken {
        /// The name.
        name: String,
        /// Its key.
        trusted: Fingerprint,
    },
    /// The key has another name.
    #[error("that is the key of `{0}` already")]
    Known(String),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    peer: BTreeMap<String, Entry>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    fingerprint: String,
}

/// Hosts and their keys: each name has one key, each key one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    by_name: BTreeMap<String, Fingerprint>,
}

/// Whether a host may be called so.
pub fn is_peer_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn file_in(dir: &Path) -> PathBuf {
    dir.join("peers.toml")
}

impl Peers {
    /// Reads the file in `dir`; nobody is trusted when there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(dir: &Path) -> Result<Self, PeersError> {
        let path = file_in(dir);
        let failed = |source| PeersError::File { act: "read", path: path.clone(), source };
        let mut text = String::new();
        match std::fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
            Ok(file) => file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?,
        };
        Self::parse(&text).map_err(|why| PeersError::Content { path, why })
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.len() as u64 > MAX_FILE {
            return Err(format!("it is longer than {MAX_FILE} bytes"));
        }
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut peers = Self::default();
        for (name, entry) in file.peer {
            let fingerprint = entry.fingerprint.parse().map_err(|error| format!("{error}"))?;
            peers.trust(&name, fingerprint).map_err(|error| error.to_string())?;
        }
        Ok(peers)
    }

    /// Adds a host; the same again is no error.
    ///
    /// # Errors
    /// When the name or the key belongs to another, or the name can be nobody's.
    pub fn trust(&mut self, name: &str, fingerprint: Fingerprint) -> Result<(), PeersError> {
        if !is_peer_name(name) {
            return Err(PeersError::Name(name.chars().take(MAX_NAME).collect()));
        }
        match (self.by_name.get(name), self.name_of(fingerprint)) {
            (Some(trusted), _) if *trusted != fingerprint => {
                Err(PeersError::Taken { name: name.into(), trusted: *trusted })
            }
            (None, Some(other)) => Err(PeersError::Known(other.into())),
            _ => {
                self.by_name.insert(name.into(), fingerprint);
                Ok(())
            }
        }
    }

    /// Takes a host away; whether it was there.
    pub fn forget(&mut self, name: &str) -> bool {
        self.by_name.remove(name).is_some()
    }

    /// The key of a host.
    pub fn key_of(&self, name: &str) -> Option<Fingerprint> {
        self.by_name.get(name).copied()
    }

    /// Whose key it is.
    pub fn name_of(&self, fingerprint: Fingerprint) -> Option<&str> {
        self.by_name.iter().find(|(_, known)| **known == fingerprint).map(|(name, _)| name.as_str())
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, Fingerprint)> {
        self.by_name.iter().map(|(name, fingerprint)| (name.as_str(), *fingerprint))
    }

    /// Writes the file in `dir`: whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), PeersError> {
        let path = file_in(dir);
        let new = dir.join("peers.toml.new");
        let failed = |source| PeersError::File { act: "write", path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut text = String::from("# The hosts that this one trusts: written by `godwit keys trust`.\n");
        for (name, fingerprint) in self.all() {
            // no name has a character that TOML would take for its own
            text.push_str(&format!("\n[peer.\"{name}\"]\nfingerprint = \"{fingerprint}\"\n"));
        }
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o644).open(&new).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&new, &path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> Fingerprint {
        format!("sha256:{}", format!("{n:02x}").repeat(32)).parse().unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Peers::load(dir.path()).unwrap(), Peers::default());
        let mut peers = Peers::default();
        peers.trust("rack2", key(2)).unwrap();
        peers.trust("10.0.0.3", key(3)).unwrap();
        peers.trust("rack2", key(2)).unwrap();
        peers.save(dir.path()).unwrap();
        assert_eq!(Peers::load(dir.path()).unwrap(), peers);
        assert_eq!(peers.name_of(key(3)), Some("10.0.0.3"));
        assert!(peers.forget("rack2") && !peers.forget("rack2"));
        peers.save(dir.path()).unwrap();
        assert_eq!(Peers::load(dir.path()).unwrap().key_of("rack2"), None);
    }

    #[test]
    fn a_name_has_one_key_and_a_key_one_name() {
        let mut peers = Peers::default();
        peers.trust("rack2", key(2)).unwrap();
        assert!(matches!(peers.trust("rack2", key(3)), Err(PeersError::Taken { .. })));
        assert!(matches!(peers.trust("rack3", key(2)), Err(PeersError::Known(name)) if name == "rack2"));
        for name in ["", "-x", "a b", "a\"]", "ssh:x", "a/b", "\u{e9}", &"x".repeat(254)] {
            assert!(matches!(peers.trust(name, key(9)), Err(PeersError::Name(_))), "{name}");
        }
    }

    #[test]
    fn a_file_that_says_something_else_is_refused() {
        for text in [
            "peer = 1",
            "[peer.a]\nfingerprint = 1",
            "[peer.a]\nfingerprint = \"sha256:00\"",
            "[peer.a]\n",
            "[host.a]\n",
            &format!("[peer.a]\nfingerprint = \"{0}\"\n[peer.b]\nfingerprint = \"{0}\"", key(1)),
            &format!("[peer.a]\nfingerprint = \"{}\"\nallow = true", key(1)),
            &"#".repeat(2 << 20),
        ] {
            assert!(Peers::parse(text).is_err(), "{}", &text[..text.len().min(60)]);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}", lines in "([\\[\\]a-z.\"=\n]{0,12}){0,20}") {
            let _ = Peers::parse(&text);
            let _ = Peers::parse(&lines);
        }
    }
}
