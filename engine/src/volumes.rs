//! The volumes of an engine's containers, which podman and docker describe alike.

use crate::container::{OpenRequest, Tree};
use crate::error::EngineError;
use crate::runtime::config::BindMount;
use godwit_transfer::message::{Refusal, TreeKind};
use godwit_transfer::tree::empty_plainly;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

/// What an engine says of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) driver: String,
    #[serde(default, deserialize_with = "or_none")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_none")]
    pub(crate) options: BTreeMap<String, String>,
    /// podman's word.
    #[serde(default)]
    pub(crate) anonymous: bool,
}

/// docker writes `null` where there are none.
fn or_none<'a, D: Deserializer<'a>>(words: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(words)?.unwrap_or_default())
}

impl Volume {
    /// Whether the content lies in the engine's own directory: not on a device or a share, nor with another driver.
    pub(crate) fn is_local(&self) -> bool {
        self.driver == "local" && !["type", "device"].iter().any(|key| self.options.contains_key(*key))
    }
}

/// Those whose content is elsewhere.
pub(crate) fn not_local(volumes: &[Volume]) -> Vec<&str> {
    volumes.iter().filter(|volume| !volume.is_local()).map(|volume| volume.name.as_str()).collect()
}

/// Whether a directory is the root of a volume's content: `…/volumes/NAME/_data`.
fn is_root_of(dir: &Path, name: &str) -> bool {
    dir.ends_with(Path::new(name).join("_data"))
}

/// Whether a bind mount is that of a volume, or of a part of it.
pub(crate) fn is_of_volume(bind: &BindMount, name: &str) -> bool {
    bind.source.ancestors().any(|dir| is_root_of(dir, name))
}

/// What travels for a bind mount, and whether nobody writes to it: of a volume of which the container sees a part (`subpath`) all.
pub(crate) fn whole<'a>(bind: &'a BindMount, volumes: &[Volume]) -> (&'a Path, bool) {
    let mut above = bind.source.ancestors().skip(1);
    match above.find(|dir| volumes.iter().any(|volume| is_root_of(dir, &volume.name))) {
        Some(root) => (root, false),
        None => (&bind.source, bind.read_only),
    }
}

/// Adds a file or directory of the host that a container is given to what travels, unless it does already or shall not. One that it
/// is given twice is read-only when it is so both times.
pub(crate) fn add_tree(
    trees: &mut Vec<Tree>,
    path: PathBuf,
    read_only: bool,
    request: &OpenRequest,
    warnings: &mut Vec<String>,
) {
    if request.no_copy.contains(&path) {
        return;
    }
    if let Some(tree) = trees.iter_mut().find(|tree| tree.path == path) {
        tree.read_only &= read_only;
        return;
    }
    match std::fs::metadata(&path).map(|meta| meta.file_type()) {
        Ok(kind) if kind.is_dir() || kind.is_file() => trees.push(Tree {
            kind: TreeKind::Volume,
            content: path.clone(),
            path,
            single_file: kind.is_file(),
            read_only,
            merged: None,
            made_there: false,
            gone: None,
        }),
        _ => warnings.push(format!("`{}` is not copied: the destination must have it", path.display())),
    }
}

/// The names of volumes that go with their container, where those at `spared` stay.
pub(crate) fn remain(volumes: Vec<(String, PathBuf)>, spared: &[PathBuf]) -> impl Iterator<Item = String> {
    volumes.into_iter().filter(|(_, path)| !spared.contains(path)).map(|(name, _)| name)
}

/// Why a volume that has no name cannot stay where its container was.
pub(crate) fn gone_with(engine: &str, container: &str, volume: &Path) -> EngineError {
    let reason = format!(
        "{engine} removes the container when it ends (`--rm`), and with it the volume without a name at `{}`, which is to stay",
        volume.display()
    );
    let hint = "copy what is in it, or let it move: name it with `--volume`, or leave `--skip-volume` out";
    let blockers = vec![Refusal::new(reason).hint(hint)];
    EngineError::Blocked { name: format!("{engine}:{}", container.trim_start_matches('/')), blockers }
}

/// What an engine may change of a volume that it gives to a container for the first time: a new one gets the owner and mode of
/// the image's directory, and an empty one its content (libpod: fixVolumePermissions, copy-up; moby: populateVolume).
pub(crate) struct VolumeRoot {
    path: PathBuf,
    owner: (u32, u32),
    mode: u32,
    is_empty: bool,
}

impl VolumeRoot {
    /// As it is now; none if it is no directory.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_dir)?;
        Some(Self {
            path: path.to_owned(),
            owner: (meta.uid(), meta.gid()),
            mode: meta.mode() & 0o7777,
            is_empty: std::fs::read_dir(path).ok()?.next().is_none(),
        })
    }

    /// As it was: the rounds have brought what the container has.
    pub(crate) fn put_back(&self) -> Result<(), EngineError> {
        let failed = EngineError::io("put back the volume", &self.path);
        let Some(now) = Self::of(&self.path) else { return Ok(()) };
        let emptied = match self.is_empty && !now.is_empty {
            true => empty_plainly(&self.path).map_err(std::io::Error::other),
            false => Ok(()),
        };
        let owned = emptied.and_then(|()| match now.owner == self.owner {
            true => Ok(()),
            false => lchown(&self.path, Some(self.owner.0), Some(self.owner.1)),
        });
        owned
            .and_then(|()| match now.mode == self.mode {
                true => Ok(()),
                false => std::fs::set_permissions(&self.path, PermissionsExt::from_mode(self.mode)),
            })
            .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_either_engine_are_understood() {
        let of = |text: &str| serde_json::from_str::<Volume>(text).unwrap();
        let podman =
            of(r#"{"Name": "a", "Driver": "local", "Labels": {"k": "v"}, "Options": {}, "Anonymous": true}"#);
        assert!(podman.anonymous && podman.is_local() && podman.labels["k"] == "v");
        let docker = of(
            r#"{"Name": "a", "Driver": "local", "Labels": null, "Options": {"type": "nfs"}, "Scope": "local"}"#,
        );
        assert!(docker.labels.is_empty() && !docker.is_local());
        assert_eq!(not_local(&[podman, docker]), ["a"]);
    }

    #[test]
    fn what_an_engine_puts_into_an_empty_volume_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o2770)).unwrap();
        let root = VolumeRoot::of(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(path.join("of-the-image"), "x").unwrap();
        root.put_back().unwrap();
        assert!(std::fs::read_dir(&path).unwrap().next().is_none());
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o2770);
        std::fs::write(path.join("of-the-container"), "x").unwrap();
        let root = VolumeRoot::of(&path).unwrap();
        root.put_back().unwrap();
        assert!(path.join("of-the-container").exists());
    }

    fn bind(source: &str, read_only: bool) -> BindMount {
        BindMount { source: source.into(), destination: "/x".into(), read_only }
    }

    #[test]
    fn of_a_part_of_a_volume_all_travels() {
        let data: Volume =
            serde_json::from_value(serde_json::json!({"Name": "data", "Driver": "local"})).unwrap();
        let root = "/var/lib/containers/storage/volumes/data/_data";
        for (source, expected) in [
            (root.to_owned(), (root.to_owned(), true)),
            (format!("{root}/a/b"), (root.to_owned(), false)),
            ("/srv/data/a".to_owned(), ("/srv/data/a".to_owned(), true)),
            ("/volumes/other/_data/a".to_owned(), ("/volumes/other/_data/a".to_owned(), true)),
        ] {
            let bind = bind(&source, true);
            let (path, read_only) = whole(&bind, std::slice::from_ref(&data));
            assert_eq!((path, read_only), (Path::new(&expected.0), expected.1), "{source}");
        }
        assert!(is_of_volume(&bind(&format!("{root}/a"), false), "data"));
        assert!(!is_of_volume(&bind("/srv/mydata/_data", false), "data"));
    }

    #[test]
    fn what_is_given_twice_is_read_only_when_it_is_so_both_times() {
        let dir = tempfile::tempdir().unwrap();
        for (first, second) in [(true, true), (true, false), (false, true)] {
            let (mut trees, mut warnings) = (Vec::new(), Vec::new());
            for read_only in [first, second] {
                add_tree(
                    &mut trees,
                    dir.path().to_owned(),
                    read_only,
                    &OpenRequest::default(),
                    &mut warnings,
                );
            }
            assert_eq!((trees.len(), trees[0].read_only), (1, first && second));
            assert!(warnings.is_empty());
        }
    }
}
