//! A path within a tree: relative, plain, and any bytes the kernel takes.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The longest path, in bytes (`PATH_MAX` less its NUL, linux/limits.h), and the longest component (`NAME_MAX`).
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;

/// A path relative to the root of a tree. No component is empty, `.` or `..`; it is not absolute and has no NUL.
/// The empty path is the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Arc<[u8]>);

/// Why bytes are no [`TreePath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It begins with `/`.
    #[error("it is absolute")]
    Absolute,
    /// Two slashes in a row, or one at the end.
    #[error("it has an empty component")]
    Empty,
    /// `.` or `..`.
    #[error("it has a component `.` or `..`")]
    Dots,
    /// A zero byte.
    #[error("it has a NUL byte")]
    Nul,
    /// More than the kernel takes.
    #[error("it is longer than 4095 bytes, or a component is longer than 255")]
    Long,
}

impl TreePath {
    /// The root of the tree.
    pub fn root() -> TreePath {
        TreePath(Arc::from([]))
    }

    /// Takes bytes as a path.
    ///
    /// # Errors
    /// When they break one of the rules of the type.
    pub fn new(bytes: &[u8]) -> Result<TreePath, PathError> {
        if !bytes.is_empty() {
            check(bytes)?;
        }
        Ok(TreePath(bytes.into()))
    }

    /// The entry `name` of this directory.
    ///
    /// # Errors
    /// When `name` is not a plain name, or the path becomes too long.
    pub fn join(&self, name: &[u8]) -> Result<TreePath, PathError> {
        if name.contains(&b'/') || name.is_empty() {
            return Err(PathError::Empty);
        }
        if self.is_root() {
            return TreePath::new(name);
        }
        check(name)?;
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        if bytes.len() > PATH_MAX {
            return Err(PathError::Long);
        }
        Ok(TreePath(bytes.into()))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, without a leading or trailing slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path for the file system's calls, relative to the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The directory the entry is in and its name; none for the root.
    pub fn split(&self) -> Option<(TreePath, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (TreePath(self.0[..slash].into()), &self.0[slash + 1..]),
            None => (TreePath::root(), &self.0),
        })
    }

    /// The directory the entry is in; the root's is the root.
    pub fn parent(&self) -> TreePath {
        self.split().map_or_else(TreePath::root, |(parent, _)| parent)
    }

    /// Whether the entry lies somewhere beneath `directory` (not the directory itself).
    pub fn is_beneath(&self, directory: &TreePath) -> bool {
        directory.is_root() && !self.is_root()
            || self.0.strip_prefix(&*directory.0).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// The path as a C string, `.` for the root.
    pub(super) fn to_cstring(&self) -> CString {
        let bytes = if self.is_root() { b"." } else { &*self.0 };
        // A path holds no NUL, so the default is never taken.
        CString::new(bytes).unwrap_or_default()
    }
}

/// Checks a path of at least one byte.
fn check(bytes: &[u8]) -> Result<(), PathError> {
    if bytes.first() == Some(&b'/') {
        return Err(PathError::Absolute);
    }
    if bytes.len() > PATH_MAX {
        return Err(PathError::Long);
    }
    if bytes.contains(&0) {
        return Err(PathError::Nul);
    }
    for component in bytes.split(|&byte| byte == b'/') {
        match component {
            b"" => return Err(PathError::Empty),
            b"." | b".." => return Err(PathError::Dots),
            long if long.len() > NAME_MAX => return Err(PathError::Long),
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { write!(f, "{}", self.0.escape_ascii()) }
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

impl Serialize for TreePath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<TreePath, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(from)?;
        TreePath::new(&bytes).map_err(|error| D::Error::custom(format_args!("path refused: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        for (bytes, error) in [
            (&b"/etc"[..], PathError::Absolute),
            (b"/", PathError::Absolute),
            (b"a//b", PathError::Empty),
            (b"a/", PathError::Empty),
            (b".", PathError::Dots),
            (b"a/./b", PathError::Dots),
            (b"../a", PathError::Dots),
            (b"a/..", PathError::Dots),
            (b"a\0b", PathError::Nul),
            (&[b'x'; 256], PathError::Long),
            (&b"ab/".repeat(1400)[..4199], PathError::Long),
        ] {
            assert_eq!(TreePath::new(bytes), Err(error), "{}", bytes.escape_ascii());
            let wire = postcard::to_stdvec(serde_bytes::Bytes::new(bytes)).unwrap();
            assert!(postcard::from_bytes::<TreePath>(&wire).is_err(), "{}", bytes.escape_ascii());
        }
        for bytes in [&b""[..], b"a", b"...", b"a/..b/c.", b"\xff\xfe/\n", &[b'x'; 255]] {
            let path = TreePath::new(bytes).unwrap();
            let wire = postcard::to_stdvec(&path).unwrap();
            assert_eq!(postcard::from_bytes::<TreePath>(&wire).unwrap(), path);
        }
    }

    #[test]
    fn joins_and_splits() {
        let path = TreePath::root().join(b"a").unwrap().join(b"b").unwrap();
        assert_eq!(path.as_bytes(), b"a/b");
        assert_eq!(path.parent().as_bytes(), b"a");
        assert!(path.parent().parent().is_root());
        assert!(path.is_beneath(&path.parent()) && path.is_beneath(&TreePath::root()));
        assert!(!path.is_beneath(&path) && !TreePath::new(b"ab").unwrap().is_beneath(&path.parent()));
        assert_eq!(path.join(b".."), Err(PathError::Dots));
        assert_eq!(path.join(b"c/d"), Err(PathError::Empty));
    }
}
