//! What is in a checkpoint, whoever wrote it: godwit, podman (`podman container checkpoint --export`) or CRIU alone. Nothing is
//! unpacked, and nothing of what is read is believed: see [`verify`].

mod dump;
mod parts;
mod tar;

use crate::archive::{self, ArchiveError, MANIFEST, Manifest};
use crate::chain::{self, Chain};
use crate::digests::TREES;
use crate::files::size_of;
pub use godwit_criu::images::contents::{Mount, Socket, shown};
use godwit_engine::{engine_image_id, is_image_id};
use parts::Parts;
use serde::Serialize;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};

/// podman's record of the container (checkpointctl's `config.dump`).
const CONFIG: &str = "config.dump";
/// The container's specification.
const SPEC: &str = "spec.dump";

/// Who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Writer {
    /// `godwit checkpoint`.
    Godwit,
    /// `podman container checkpoint --export`.
    Podman,
    /// CRIU, or a runtime above it.
    Criu,
}

/// What is in a checkpoint.
#[derive(Debug, Serialize)]
pub struct Contents {
    /// Who wrote it.
    pub writer: Writer,
    /// The container's engine.
    pub engine: Option<String>,
    /// Its name there.
    pub name: Option<String>,
    /// Its id, where names and ids differ.
    pub id: Option<String>,
    /// The image that it was made of.
    pub image: Option<String>,
    /// What names that image's content.
    pub image_id: Option<String>,
    /// When it was written, seconds since the epoch: as its writer says it, else when the files were.
    pub made_unix_s: Option<u64>,
    /// The host that wrote it.
    pub host: Option<String>,
    /// Of what took part.
    pub versions: Versions,
    /// Its processes, the first one first.
    pub processes: Vec<Process>,
    /// What their descriptors lead to.
    pub files: Vec<Descriptor>,
    /// Where the checkpoints are that it shares content with, the nearest first.
    pub parents: Vec<PathBuf>,
    /// Bytes of it that are in them.
    pub shared_bytes: u64,
    /// Sockets.
    #[serde(serialize_with = "as_sockets")]
    pub sockets: Vec<Socket>,
    /// Mounts.
    #[serde(serialize_with = "as_mounts")]
    pub mounts: Vec<Mount>,
    /// How large it is, by part.
    pub parts: Vec<PartSize>,
    /// What of it does not hold together.
    pub faults: Vec<String>,
}

/// Versions, where they are known.
#[derive(Debug, Default, Serialize)]
pub struct Versions {
    /// CRIU.
    pub criu: Option<String>,
    /// The kernel.
    pub kernel: Option<String>,
    /// The runtime or engine, with its version where that is known.
    pub runtime: Option<String>,
}

/// A process; numbers are those inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent's; 0 for the first.
    pub ppid: u32,
    /// Its name.
    pub comm: String,
    /// How many threads it has.
    pub threads: usize,
    /// Memory of it in the images.
    pub memory_bytes: u64,
}

/// A descriptor of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// Whose.
    pub pid: u32,
    /// Its number.
    pub fd: u32,
    /// What it leads to.
    pub kind: &'static str,
    /// Which one.
    pub name: String,
}

/// A part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartSize {
    /// Which.
    pub part: String,
    /// Bytes.
    pub bytes: u64,
}

/// Why something could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no whole archive.
    #[error("`{}` is damaged, or no archive: {why}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Nothing in it says that it is one.
    #[error("`{}` is no checkpoint: there is no `{MANIFEST}`, `{CONFIG}` or `inventory.img` in it", path.display())]
    NotOne {
        /// Which.
        path: PathBuf,
    },
    /// godwit's own part of it.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Looks into a directory or archive.
///
/// # Errors
/// When it cannot be read or is no checkpoint. What of one cannot be understood is among its `faults`.
pub fn inspect(path: &Path) -> Result<Contents, InspectError> {
    let mut parts = Parts::read(path)?;
    if parts.has(MANIFEST) {
        return Ok(of_godwit(path, &mut parts, &archive::read_manifest(path)?, &Chain::open(path)?));
    }
    if parts.has(CONFIG) {
        return Ok(of_podman(&parts));
    }
    if parts.has("inventory.img") {
        return Ok(of_criu(&parts));
    }
    Err(InspectError::NotOne { path: path.to_owned() })
}

/// Whether a directory looks like a checkpoint, without reading all of it.
pub fn is_one(dir: &Path) -> bool {
    [MANIFEST, CONFIG, "inventory.img"].iter().any(|name| dir.join(name).is_file())
}

/// Looks whether a checkpoint is whole: against its digests where it has any, and whether its images hold together. Gives what was
/// looked at, and the number of digests.
///
/// # Errors
/// As [`inspect`], and [`ArchiveError::Damaged`] with all that is missing or different.
pub fn verify(path: &Path) -> Result<(Contents, usize), InspectError> {
    let mut digests = 0;
    let mut damages = Vec::new();
    if path.is_dir() && path.join(MANIFEST).exists() {
        match archive::verify(path) {
            Ok(count) => digests = count,
            // what it is may be what is damaged
            Err(ArchiveError::Damaged { damages: found, .. }) => damages = found,
            Err(error) => return Err(error.into()),
        }
    }
    let damaged = |damages| ArchiveError::Damaged { path: path.to_owned(), damages }.into();
    let contents = match inspect(path) {
        Ok(contents) => contents,
        Err(_) if !damages.is_empty() => return Err(damaged(damages)),
        Err(error) => return Err(error),
    };
    let known = |fault: &String| damages.iter().any(|damage| damage.contains(fault.trim_matches('`')));
    let more: Vec<String> = contents.faults.iter().filter(|fault| !known(fault)).cloned().collect();
    damages.extend(more);
    if damages.is_empty() { Ok((contents, digests)) } else { Err(damaged(damages)) }
}

fn of_godwit(dir: &Path, parts: &mut Parts, manifest: &Manifest, chain: &Chain) -> Contents {
    let mut sizes = vec![PartSize { part: "images".into(), bytes: parts.bytes_below("images/") }];
    for (number, tree) in manifest.trees.iter().enumerate() {
        let kind = format!("{:?}", tree.kind).to_lowercase();
        let path = shown(tree.path.as_os_str().as_encoded_bytes());
        let bytes = size_of(&dir.join(TREES).join(number.to_string()));
        sizes.push(PartSize { part: format!("{kind} {path}"), bytes });
    }
    let image = dir.join(archive::CONTAINER_IMAGE);
    if image.is_dir() {
        sizes.push(PartSize { part: archive::CONTAINER_IMAGE.into(), bytes: size_of(&image) });
    }
    if let Some(blocks) = parts.files.get(chain::BLOCKS) {
        sizes.push(PartSize { part: chain::BLOCKS.into(), bytes: blocks.bytes });
    }
    // what is shared has the length that it has when it is whole
    for (name, bytes) in chain.shared_files() {
        if let Some(part) = parts.files.get_mut(name) {
            part.bytes = bytes;
        }
    }
    let facts = &manifest.facts;
    let (engine, version) = (plain(&manifest.engine), manifest.engine_version.as_deref().unwrap_or_default());
    let mut contents = with_dump(Writer::Godwit, parts, "images/", sizes);
    contents.name = Some(plain(&manifest.name));
    contents.image = manifest.image.as_deref().map(plain);
    contents.image_id = manifest.image_id.clone().filter(|id| is_image_id(id));
    contents.made_unix_s = manifest.made_unix_s.or(contents.made_unix_s);
    contents.host = Some(plain(&facts.host));
    let criu = format!("{}.{}.{}", facts.criu / 10_000, facts.criu / 100 % 100, facts.criu % 100);
    contents.versions = Versions {
        criu: Some(criu),
        kernel: Some(plain(&facts.kernel)),
        runtime: Some(format!("{engine} {}", plain(version)).trim().to_owned()),
    };
    contents.engine = Some(engine);
    contents.parents = chain.parents().map(Path::to_owned).collect();
    contents.shared_bytes = chain.shared_bytes();
    contents
}

fn of_podman(parts: &Parts) -> Contents {
    let mut faults = Vec::new();
    let mut document = |name: &str| match parts.get(name).map(serde_json::from_slice::<Value>) {
        Some(Ok(document)) => document,
        Some(Err(error)) => {
            faults.push(format!("`{name}` is broken: {error}"));
            Value::Null
        }
        None => {
            faults.push(format!("`{name}` is missing, or too large"));
            Value::Null
        }
    };
    let (config, _) = (document(CONFIG), document(SPEC));
    let text = |key: &str| config[key].as_str().filter(|text| !text.is_empty()).map(plain);
    let mut sizes = Vec::new();
    for (name, part) in &parts.files {
        let top = name.split('/').next().unwrap_or(name);
        match sizes.iter_mut().find(|size: &&mut PartSize| size.part == top) {
            Some(size) => size.bytes = size.bytes.saturating_add(part.bytes),
            None => sizes.push(PartSize { part: plain(top), bytes: part.bytes }),
        }
    }
    let mut contents = with_dump(Writer::Podman, parts, "checkpoint/", sizes);
    contents.faults.extend(faults);
    contents.engine = Some("podman".into());
    contents.name = text("name");
    contents.id = text("id");
    contents.image = text("rootfsImageName").or(text("rootfsImage"));
    contents.image_id = text("rootfsImageID").and_then(|id| engine_image_id(&id));
    contents.versions.runtime = text("runtime");
    contents
}

fn of_criu(parts: &Parts) -> Contents {
    let is_pages = |name: &str| name.starts_with("pages-");
    let sum = |pages: bool| {
        parts.files.iter().filter(|(name, _)| is_pages(name) == pages).map(|(_, part)| part.bytes).sum()
    };
    let sizes = vec![
        PartSize { part: "pages".into(), bytes: sum(true) },
        PartSize { part: "other images".into(), bytes: sum(false) },
    ];
    with_dump(Writer::Criu, parts, "", sizes)
}

fn with_dump(writer: Writer, parts: &Parts, prefix: &str, sizes: Vec<PartSize>) -> Contents {
    let dump = dump::read(parts, prefix);
    Contents {
        writer,
        engine: None,
        name: None,
        id: None,
        image: None,
        image_id: None,
        made_unix_s: parts.files.get(&format!("{prefix}inventory.img")).map(|part| part.changed_s),
        host: None,
        versions: Versions { criu: dump.criu, kernel: dump.kernel, runtime: None },
        processes: dump.processes,
        parents: Vec::new(),
        shared_bytes: 0,
        files: dump.files,
        sockets: dump.sockets,
        mounts: dump.mounts,
        parts: sizes,
        faults: dump.faults,
    }
}

/// What can be shown on a terminal.
fn plain(text: &str) -> String {
    shown(text.as_bytes())
}

fn as_sockets<S: serde::Serializer>(sockets: &[Socket], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(sockets.iter().map(|socket| {
        serde_json::json!({
            "protocol": socket.protocol, "state": socket.state, "local": socket.local, "remote": socket.remote,
        })
    }))
}

fn as_mounts<S: serde::Serializer>(mounts: &[Mount], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(mounts.iter().map(|mount| {
        serde_json::json!({
            "at": mount.at, "file_system": mount.file_system, "source": mount.source, "root": mount.root,
            "external": mount.external,
        })
    }))
}
