//! Which directory a volume is.

use crate::VolumeError;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A volume: a directory of the host, by itself or an engine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What it is called: `podman:data`, `docker:data`, or its path.
    pub name: String,
    /// Its directory; no symbolic link.
    pub path: PathBuf,
}

impl Volume {
    /// The volume that a user means: `podman:NAME`, `docker:NAME`, or a directory.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(text: &str) -> Result<Self, VolumeError> {
        let none = |why: String| VolumeError::NoVolume { volume: text.to_owned(), why };
        let (name, path) = match text.split_once(':') {
            Some((engine @ ("podman" | "docker"), volume)) => {
                (text.to_owned(), mountpoint(engine, volume).map_err(none)?)
            }
            _ => (String::new(), PathBuf::from(text)),
        };
        let plain = path.canonicalize().map_err(|error| none(error.to_string()))?;
        if !plain.is_dir() {
            return Err(none("it is no directory".into()));
        }
        if plain == Path::new("/") {
            return Err(none("it is the whole host".into()));
        }
        let name = if name.is_empty() { plain.display().to_string() } else { name };
        Ok(Self { name, path: plain })
    }
}

/// Asks an engine where it has a volume.
fn mountpoint(engine: &str, volume: &str) -> Result<PathBuf, String> {
    if volume.is_empty() || volume.starts_with('-') {
        return Err("that is no name of a volume".into());
    }
    let asked = Command::new(engine)
        .args(["volume", "inspect", "--format", "{{.Driver}} {{.Mountpoint}}", volume])
        .output()
        .map_err(|error| format!("{engine} cannot be started: {error}"))?;
    if !asked.status.success() {
        let said = String::from_utf8_lossy(&asked.stderr);
        return Err(format!("{engine}: {}", said.trim().lines().last().unwrap_or("it does not know it")));
    }
    let said = String::from_utf8_lossy(&asked.stdout);
    match said.trim().split_once(' ') {
        Some(("local", path)) if path.starts_with('/') => Ok(path.into()),
        Some((driver, _)) => Err(format!("its driver is `{driver}`: its content is not on this host alone")),
        None => Err(format!("{engine} does not say where it is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_directory_is_no_volume() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::os::unix::fs::symlink("data", dir.path().join("link")).unwrap();
        let find = |name: &str| Volume::find(dir.path().join(name).to_str().unwrap());
        assert!(find("file").is_err() && find("none").is_err());
        assert_eq!(find("link").unwrap(), find("data").unwrap());
        for text in ["/", "/tmp/..", "podman:", "docker:-rf"] {
            assert!(Volume::find(text).is_err(), "{text}");
        }
    }
}
