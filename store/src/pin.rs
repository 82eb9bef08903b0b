//! Names that keep a manifest and all that it needs: `pins/KIND/NAME`, one line each.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;

use crate::disk::{entries, remove, sync_directory};
use crate::{Digest, Store, StoreError};

/// What a pin's file begins with.
pub(crate) const HEAD: &str = "godwit pin 1 ";
/// Longest part of a name, bytes.
const LONGEST: usize = 128;

/// A pin's name: what kind of thing keeps it, and which: `snapshot/web-1`, `migration/01m7yydq3wn4cn3s58aezvtgt5`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinName {
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl FromStr for PinName {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<PinName, StoreError> {
        let is_plain = |part: &str| {
            (1..=LONGEST).contains(&part.len())
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:@+-".contains(&byte))
        };
        match text.split_once('/') {
            Some((kind, name)) if is_plain(kind) && is_plain(name) => {
                Ok(PinName { kind: kind.to_owned(), name: name.to_owned() })
            }
            _ => Err(StoreError::PinName(text.chars().take(2 * LONGEST).collect())),
        }
    }
}

impl fmt::Display for PinName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    /// Its name.
    pub name: PinName,
    /// The manifest that it keeps.
    pub manifest: Digest,
}

impl Store {
    pub(crate) fn pin_path(&self, name: &PinName) -> PathBuf {
        self.path("pins").join(&name.kind).join(&name.name)
    }

    /// All pins, in the order of their names.
    ///
    /// # Errors
    /// When one cannot be read: it is not known then what it keeps.
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        let mut pins = Vec::new();
        for name in self.pin_names()? {
            pins.extend(self.pin(&name)?.map(|manifest| Pin { name, manifest }));
        }
        Ok(pins)
    }

    pub(crate) fn pin_names(&self) -> Result<Vec<PinName>, StoreError> {
        let mut names = Vec::new();
        for kind in entries(&self.path("pins"))? {
            for name in entries(&kind.path())? {
                let text = format!("{}/{}", kind.file_name().display(), name.file_name().display());
                names.push(text.parse()?);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What a pin keeps; none when there is no such pin.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn pin(&self, name: &PinName) -> Result<Option<Digest>, StoreError> {
        let path = self.pin_path(name);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(128).read_to_string(&mut text)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(StoreError::io("read", &path))?,
        };
        let digest = text.strip_prefix(HEAD).and_then(|rest| rest.strip_suffix('\n')?.parse().ok());
        digest.map(Some).ok_or_else(|| StoreError::LostPin {
            pin: name.to_string(),
            source: Box::new(StoreError::io("read", &path)(io::Error::other("it is damaged"))),
        })
    }

    /// Takes a pin away; what it kept stays until room is needed or is collected.
    ///
    /// # Errors
    /// [`StoreError::NoPin`] when there is none, or the file system's.
    pub fn unpin(&self, name: &PinName) -> Result<(), StoreError> {
        let path = self.pin_path(name);
        if !remove(&path)? {
            return Err(StoreError::NoPin(name.to_string()));
        }
        sync_directory(path.parent().unwrap_or(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for text in ["snapshot/web-1", "migration/01m7:a@b+c_d.e"] {
            assert_eq!(text.parse::<PinName>().unwrap().to_string(), text);
        }
        let long = format!("a/{}", "b".repeat(129));
        for text in
            ["", "/", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/.b", "a/b c", "a/b\n", "a/ä", &long]
        {
            assert!(text.parse::<PinName>().is_err(), "{text}");
        }
    }
}
