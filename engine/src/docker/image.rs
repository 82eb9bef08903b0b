//! The image that a container was made of, from docker to docker: docker's archive of it as a directory, without the layers that the
//! other side has.

use super::{Docker, KIND, understood};
use crate::error::EngineError;
use crate::tool;
use serde::Deserialize;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Component, Path};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Time that packing an image may take.
const LIMIT: Duration = Duration::from_secs(1800);
/// What an archive says of itself.
const MANIFEST: &str = "manifest.json";

/// An image of an archive: the files of its layers, the lowest first.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    layers: Vec<String>,
}

impl Docker {
    /// Whether there is an image of that id or name, and which.
    pub(super) fn image(&self, name: &str) -> Result<Option<String>, EngineError> {
        let found = self.api.get(&format!("/images/{name}/json"))?;
        Ok(found.and_then(|image| image["Id"].as_str().map(str::to_owned)))
    }

    /// The digests of all layers of all images here, as JSON.
    pub(super) fn layers_here(&self) -> Result<String, EngineError> {
        let images = self.api.get("/images/json?all=true")?.unwrap_or_default();
        let mut layers: HashSet<String> = HashSet::new();
        for id in images.as_array().into_iter().flatten().filter_map(|image| image["Id"].as_str()) {
            layers.extend(self.layers_of(id)?);
        }
        crate::remains::written(&layers)
    }

    /// The digests of an image's layers, the lowest first: `sha256:…`.
    fn layers_of(&self, image: &str) -> Result<Vec<String>, EngineError> {
        let shown = self.api.get(&format!("/images/{image}/json"))?.unwrap_or_default();
        understood("image", shown.pointer("/RootFS/Layers").cloned().unwrap_or_default())
    }

    /// The size of an image: its layers, unpacked. Archives of them are a little larger.
    pub(super) fn image_bytes(&self, image: &str) -> Result<u64, EngineError> {
        let shown = self.api.get(&format!("/images/{image}/json"))?.unwrap_or_default();
        understood("image", shown["Size"].clone())
    }

    /// Writes an image into a directory, without the lowest layers that are in `there`. A layer above one that is missing there
    /// is written, too: it is applied to the one below.
    pub(super) fn export(&self, image: &str, there: &str, dir: &Path) -> Result<(), EngineError> {
        let there: HashSet<String> = crate::remains::understood(there)?;
        self.unpack(image, dir)?;
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(EngineError::io("read", &path))?;
        let manifests: Vec<Manifest> = serde_json::from_str(&text)
            .map_err(|error| EngineError::Unreadable { path, reason: error.to_string() })?;
        let layers = self.layers_of(image)?;
        let files = manifests.iter().flat_map(|manifest| &manifest.layers);
        for (_, file) in layers.iter().zip(files).take_while(|(layer, _)| there.contains(*layer)) {
            let is_below = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if is_below {
                // the same layer may be in it twice
                let _ = std::fs::remove_file(dir.join(file));
            }
        }
        Ok(())
    }

    /// docker's archive of an image, unpacked.
    fn unpack(&self, image: &str, dir: &Path) -> Result<(), EngineError> {
        let failed = |what: String| EngineError::Tool { program: "tar --extract".into(), what };
        let mut archive = self.api.download(&format!("/images/{image}/get"))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--no-same-owner", "--directory"]).arg(dir);
        let mut tar = tar
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let copied = tar
            .stdin
            .take()
            .map(|mut input| std::io::copy(&mut archive, &mut input).and_then(|_| input.flush()));
        let status = tar.wait().map_err(|error| failed(error.to_string()))?;
        match copied {
            Some(Ok(())) if status.success() => Ok(()),
            Some(Err(error)) => Err(failed(format!("could not be given {KIND}'s archive: {error}"))),
            _ => Err(failed(format!("failed ({status})"))),
        }
    }

    /// Takes an image out of a directory; it must be the one of this id.
    pub(super) fn import(&self, image: &str, dir: &Path) -> Result<(), EngineError> {
        let archive = dir.with_extension("tar");
        let words = ["--create", "--file"].map(OsString::from);
        let mut args: Vec<OsString> =
            words.into_iter().chain([archive.clone().into(), "--directory".into()]).collect();
        args.extend([dir.into(), ".".into()]);
        let loaded = tool::run(Path::new("tar"), &args, LIMIT)
            .and_then(|_| self.api.upload("/images/load?quiet=true", &archive));
        let _ = std::fs::remove_file(&archive);
        let said = loaded?;
        match self.image(image)? {
            Some(_) => Ok(()),
            None => Err(EngineError::Unreadable {
                path: dir.to_owned(),
                reason: format!("{KIND} did not find the image {image} in it: {}", said.trim()),
            }),
        }
    }

    /// Gives an image a name, unless it has it. Gives the name by which it can be had: its id, if the name is another image's.
    pub(super) fn named<'a>(&self, image: &'a str, name: &'a str) -> Result<&'a str, EngineError> {
        match self.image(name)? {
            Some(id) => return Ok(if id == image { name } else { image }),
            None if name.starts_with("sha256:") || name.contains('@') => return Ok(image),
            None => {}
        }
        let last = name.rfind('/').map_or(0, |at| at + 1);
        let (repository, tag) = match name[last..].rfind(':') {
            Some(at) => (&name[..last + at], &name[last + at + 1..]),
            None => (name, "latest"),
        };
        self.api.post(&format!("/images/{image}/tag?repo={repository}&tag={tag}"), None)?;
        Ok(name)
    }
}
