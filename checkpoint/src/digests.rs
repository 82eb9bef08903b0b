//! What a checkpoint was when it was written: the length and the digest of each of its files, and of each tree as a whole, in
//! `digests.json` beside them. Trees count with owners, modes and attributes,
//! but without times; CRIU's images with their bytes.

use godwit_transfer::tree::{TreeError, timeless_digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file that they are in.
pub(crate) const FILE: &str = "digests.json";
/// The directory of the trees.
pub(crate) const TREES: &str = "trees";
/// Longest file of digests that is read, bytes.
const LIMIT: u64 = 256 << 20;

/// See the [module](self).
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digests {
    /// By path below the checkpoint.
    files: BTreeMap<String, FileDigest>,
    /// By number, as the directories are called.
    trees: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileDigest {
    bytes: u64,
    blake3: String,
}

/// Why digests could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// A file.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tree.
    #[error("cannot read `{}`", path.display())]
    Tree {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// The list itself.
    #[error("`{}` is no list of digests: {reason}", path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DigestError {
    let path = path.to_owned();
    move |source| DigestError::Io { path, source }
}

impl Digests {
    /// Reads all of the checkpoint in `dir`.
    fn of(dir: &Path) -> Result<Self, DigestError> {
        let mut digests = Self::default();
        // directories whose files count one by one
        let mut pending = vec![dir.to_owned()];
        while let Some(at) = pending.pop() {
            let is_trees = at == dir.join(TREES);
            for entry in std::fs::read_dir(&at).map_err(io_error(&at))? {
                let path = entry.map_err(io_error(&at))?.path();
                let kind = std::fs::symlink_metadata(&path).map_err(io_error(&path))?.file_type();
                let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
                if kind.is_dir() && is_trees {
                    let tree = timeless_digest(&path);
                    let tree = tree.map_err(|source| DigestError::Tree { path: path.clone(), source })?;
                    digests.trees.insert(name, tree.to_string());
                } else if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file() && name != FILE {
                    digests.files.insert(name, file_digest(&path).map_err(io_error(&path))?);
                }
            }
        }
        Ok(digests)
    }

    /// Reads them from where [`write`] put them; none in a checkpoint of an older godwit.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, DigestError> {
        let path = dir.join(FILE);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => {
                file.and_then(|file| file.take(LIMIT).read_to_end(&mut bytes)).map_err(io_error(&path))?
            }
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| DigestError::List { path, reason: error.to_string() })
    }

    /// What is not any more what it was: one line each.
    pub(crate) fn compare(&self, dir: &Path) -> Result<Vec<String>, DigestError> {
        let now = Self::of(dir)?;
        let mut damages = Vec::new();
        for (name, was) in &self.files {
            damages.extend(match now.files.get(name) {
                None => Some(format!("`{name}` is missing")),
                Some(is) if is.bytes != was.bytes => {
                    Some(format!("`{name}` has {} bytes and not {}", is.bytes, was.bytes))
                }
                Some(is) if is != was => Some(format!("`{name}` has other content")),
                Some(_) => None,
            });
        }
        for (name, was) in &self.trees {
            damages.extend(match now.trees.get(name) {
                None => Some(format!("the tree `{name}` is missing")),
                Some(is) if is != was => {
                    Some(format!("the tree `{name}` has other files, or other owners, modes or attributes"))
                }
                Some(_) => None,
            });
        }
        let more = |name: &&String| !self.files.contains_key(*name) && !self.trees.contains_key(*name);
        let names = now.files.keys().chain(now.trees.keys());
        damages.extend(names.filter(more).map(|name| format!("`{name}` was not in it")));
        Ok(damages)
    }

    /// How many digests there are.
    pub(crate) fn count(&self) -> usize {
        self.files.len() + self.trees.len()
    }
}

/// Writes the digests of all that is in `dir` into it.
pub(crate) fn write(dir: &Path) -> Result<(), DigestError> {
    let digests = Digests::of(dir)?;
    let path = dir.join(FILE);
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| {
        serde_json::to_writer(&mut file, &digests)?;
        file.sync_all()
    })
    .map_err(io_error(&path))
}

fn file_digest(path: &Path) -> io::Result<FileDigest> {
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(FileDigest { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for made in ["images", "trees/0", "trees/1"] {
            std::fs::create_dir_all(at(made)).unwrap();
        }
        for file in
            ["checkpoint.json", "images/a.img", "images/b.img", "images/c.img", "trees/0/x", "trees/1/y"]
        {
            std::fs::write(at(file), file).unwrap();
        }
        write(dir.path()).unwrap();
        let digests = Digests::read(dir.path()).unwrap().unwrap();
        assert_eq!((digests.count(), digests.compare(dir.path()).unwrap()), (6, Vec::<String>::new()));
        std::fs::write(at("images/a.img"), "IMAGES/a.img").unwrap();
        std::fs::write(at("images/b.img"), "less").unwrap();
        std::fs::remove_file(at("images/c.img")).unwrap();
        std::fs::write(at("images/d.img"), "").unwrap();
        std::fs::write(at("trees/0/x"), "trees/0/X").unwrap();
        std::fs::remove_dir_all(at("trees/1")).unwrap();
        let damages = digests.compare(dir.path()).unwrap();
        assert_eq!(damages.len(), 6, "{damages:?}");
        for name in ["images/a.img", "images/b.img", "images/c.img", "images/d.img", "trees/0", "trees/1"] {
            assert_eq!(
                damages.iter().filter(|damage| damage.contains(name)).count(),
                1,
                "{name}: {damages:?}"
            );
        }
        std::fs::write(at(FILE), "{").unwrap();
        assert!(Digests::read(dir.path()).is_err());
    }
}
