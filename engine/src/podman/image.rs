//! The image that a container was made of, from podman to podman: as a directory of blobs, without the layers that the other side
//! has. A layer that is not compressed is a blob called by the digest that the image knows it by. The directory is of the image's
//! own kind, OCI's or docker's: another one would have another configuration, and so another id.

use super::{Podman, understood};
use crate::error::EngineError;
use crate::tool;
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// Time that an export or an import may take.
const LIMIT: Duration = Duration::from_secs(1800);

impl Podman {
    /// The digests of all layers of all images here, as JSON.
    pub(super) fn layers_here(&self) -> Result<String, EngineError> {
        let ids = self.run(&["image", "ls", "--all", "--quiet", "--no-trunc"])?;
        let mut layers: HashSet<String> = HashSet::new();
        for id in
            ids.lines().map(|line| line.trim().trim_start_matches("sha256:")).filter(|id| !id.is_empty())
        {
            layers.extend(self.layers_of(id)?);
        }
        crate::remains::written(&layers)
    }

    /// The digests of an image's layers, the lowest first: `sha256:…`.
    fn layers_of(&self, image: &str) -> Result<Vec<String>, EngineError> {
        let said = self.run(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", image])?;
        understood("image inspect", &said)
    }

    /// The size of an image: its layers, unpacked. Archives of them are a little larger.
    pub(super) fn image_bytes(&self, image: &str) -> Result<u64, EngineError> {
        let said = self.run(&["image", "inspect", "--format", "{{.Size}}", image])?;
        understood("image inspect", &said)
    }

    /// Writes an image into a directory, without the lowest layers that are in `there`. A layer above one that is missing there
    /// is written, too: it is applied to the one below.
    pub(super) fn export(&self, image: &str, there: &str, dir: &Path) -> Result<(), EngineError> {
        let there: HashSet<String> = understood("the other podman's layers", there)?;
        let kind = self.run(&["image", "inspect", "--format", "{{.ManifestType}}", image])?;
        let format = if kind.contains("docker") { "docker-dir" } else { "oci-dir" };
        let words = ["save", "--quiet", "--uncompressed", "--format", format, "--output"];
        let args: Vec<OsString> =
            words.iter().map(OsString::from).chain([dir.into(), image.into()]).collect();
        tool::run(&self.program, &args, LIMIT)?;
        for layer in self.layers_of(image)?.iter().take_while(|layer| there.contains(*layer)) {
            let blob = match format {
                "docker-dir" => dir.join(layer.trim_start_matches("sha256:")),
                _ => dir.join("blobs").join(layer.replace(':', "/")),
            };
            std::fs::remove_file(&blob).map_err(EngineError::io("remove", blob))?;
        }
        Ok(())
    }

    /// Takes an image out of a directory; it must be the one of this id.
    pub(super) fn import(&self, image: &str, dir: &Path) -> Result<(), EngineError> {
        let words = ["load", "--quiet", "--input"];
        let args: Vec<OsString> = words.iter().map(OsString::from).chain([dir.into()]).collect();
        tool::run(&self.program, &args, LIMIT)?;
        self.run(&["image", "exists", image]).map(drop).map_err(|_| EngineError::Unreadable {
            path: dir.to_owned(),
            reason: format!("it does not hold the image {image}"),
        })
    }
}
