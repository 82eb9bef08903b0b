//! The names of cgroups: `cgroup.img`. A cgroup namespace is made again at the cgroup that it had, whose name has the container's id
//! in it where an engine makes it.

use std::path::Path;

use super::file::{ImageError, write_private};

/// Gives the cgroups in `dir/cgroup.img` another name: `from` becomes `to` wherever it is, which must be as long. An image without
/// it stays as it is.
///
/// # Errors
/// When the lengths differ, or the image cannot be read or written.
pub fn rename_cgroups(dir: &Path, from: &str, to: &str) -> Result<(), ImageError> {
    let path = dir.join("cgroup.img");
    if from.is_empty() || from.len() != to.len() {
        return Err(ImageError::broken(&path, format!("`{to}` is not as long as `{from}`")));
    }
    let mut bytes = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, part)| *part == from.as_bytes())
        .map(|(at, _)| at)
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    write_private(&path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_renamed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cgroup.img");
        std::fs::write(&path, b"\x19/docker/abc\x00/docker/abc/x\x07ab").unwrap();
        rename_cgroups(dir.path(), "abc", "xyz").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"\x19/docker/xyz\x00/docker/xyz/x\x07ab");
        rename_cgroups(dir.path(), "abc", "xyz").unwrap();
        assert!(rename_cgroups(dir.path(), "xyz", "longer").is_err());
        assert!(rename_cgroups(&dir.path().join("none"), "a", "b").is_err());
    }
}
