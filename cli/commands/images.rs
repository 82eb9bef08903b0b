//! `godwit images`: what is in checkpoints, and whether they are whole.

pub mod forget;
mod kept;
mod place;

use super::journals::show_age;
use super::kept::{Unpacked, unpack_kept};
use super::{Trouble, cancel_on_signal, sealing, store};
use crate::args::{Args, ImageArgs, ImagesCommand, Location};
use crate::draw::{Draw, table};
use godwit_checkpoint::archive::ArchiveError;
use godwit_checkpoint::inspect::{self, Contents, InspectError, Writer};
use godwit_checkpoint::sealed;
use godwit_checkpoint::staging::Staging;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Failure, FailureKind};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Rows of a table that people get to see; JSON has all.
const ROWS: usize = 40;
/// How archives are called: what lies beside them is not looked into by `ls`.
const ARCHIVES: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".age"];

pub fn run(args: &Args, command: &ImagesCommand, draw: &Draw) -> Result<u8, Trouble> {
    match command {
        ImagesCommand::Ls { paths } => ls(args, paths, draw),
        ImagesCommand::Inspect(image) => {
            if let Location::Place(name) = &image.image {
                let message = format!("`{name}` cannot be looked into where it is");
                return Err(Failure::new(FailureKind::Usage, message)
                    .hint("`godwit images ls` shows what is there")
                    .into());
            }
            let path = &PathBuf::from(image.image.to_string());
            let opened = open(args, image, draw)?;
            let contents = inspect::inspect(&opened.path).map_err(|error| failure(path, &error))?;
            show(path, &contents, draw);
            Ok(0)
        }
        ImagesCommand::Forget(wanted) => Ok(forget::run(args, wanted, draw, &cancel_on_signal())?),
        ImagesCommand::Gc(wanted) => Ok(forget::place::gc(args, wanted, draw, &cancel_on_signal())?),
        ImagesCommand::Verify(image) => {
            if let Location::Place(name) = &image.image {
                return Ok(place::verified(args, name, &image.identities, draw, &cancel_on_signal())?);
            }
            let path = &PathBuf::from(image.image.to_string());
            let opened = open(args, image, draw)?;
            let verified = inspect::verify(&opened.path);
            let (contents, digests) = verified.map_err(|error| failure(path, &error))?;
            let against = match (digests, contents.writer) {
                (0, _) if opened.staging.is_some() => {
                    "it is what was sealed, and its images hold together".into()
                }
                (0, _) => "it has no digests, but its images hold together".into(),
                (count, _) => format!("all of its {count} digests are right, and its images hold together"),
            };
            if draw.is_json() {
                draw.json_line(&json!({
                    "message_type": "verified", "path": path, "whole": true, "digests": digests,
                    "container": name_of(&contents),
                }));
            } else {
                draw.data(&format!("`{}` is whole: {against}", path.display()));
            }
            Ok(0)
        }
    }
}

/// Where a checkpoint can be read; in memory when it is encrypted.
struct Opened {
    path: PathBuf,
    staging: Option<Staging>,
    _unpacked: Option<Unpacked>,
}

fn open(args: &Args, image: &ImageArgs, draw: &Draw) -> Result<Opened, Failure> {
    let path = match &image.image {
        Location::Path(path) => path,
        Location::Place(name) => return Err(unnamed(&name.to_string())),
        Location::Store(None) => return Err(unnamed("store")),
        Location::Store(Some(text)) => {
            let unpacked = unpack_kept(&args.global.root, text, &store::bar(args))?;
            return Ok(Opened { path: unpacked.tree.clone(), staging: None, _unpacked: Some(unpacked) });
        }
    };
    let Some(identities) = sealing::identities_for(path, &image.identities)? else {
        return Ok(Opened { path: path.clone(), staging: None, _unpacked: None });
    };
    let staging = sealing::open(path, &identities, &args.global.root, draw, &cancel_on_signal())?;
    let path = staging.path().join(sealing::OPENED);
    Ok(Opened { path, staging: Some(staging), _unpacked: None })
}

/// Several may be meant.
fn unnamed(what: &str) -> Failure {
    Failure::new(FailureKind::Usage, format!("`{what}` does not name one checkpoint")).hint(format!(
        "`godwit images ls {what}` shows those that are there; `godwit store check` reads all of the store"
    ))
}

/// A damaged or missing checkpoint is none: exit code 10, as of `godwit restore`.
fn failure(path: &Path, error: &InspectError) -> Failure {
    let shown = path.display();
    match error {
        InspectError::Archive(ArchiveError::Damaged { damages, .. }) => {
            let failure = Failure::new(FailureKind::NotFound, format!("`{shown}` is damaged"));
            damages.iter().fold(failure, Failure::because).hint("use another copy of it")
        }
        InspectError::Archive(error @ ArchiveError::Parent { .. }) => {
            let failure = Failure::new(FailureKind::NotFound, format!("`{shown}` is not whole"));
            failure.because_of(error).hint(error.hint())
        }
        InspectError::Io { .. } => {
            Failure::new(FailureKind::NotFound, format!("`{shown}` cannot be looked at")).because_of(error)
        }
        error => Failure::new(FailureKind::NotFound, format!("`{shown}` cannot be looked at"))
            .because_of(error)
            .hint("name a directory that `godwit checkpoint` or CRIU wrote, or an archive of `podman container checkpoint --export`"),
    }
}

fn ls(args: &Args, paths: &[Location], draw: &Draw) -> Result<u8, Trouble> {
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    let cancel = cancel_on_signal();
    for path in paths {
        let path = match path {
            Location::Path(path) => path,
            Location::Place(name) => {
                for (row, document) in place::lines(name, &cancel)? {
                    rows.push(row);
                    documents.push(document);
                }
                continue;
            }
            Location::Store(id) => {
                for (row, document) in kept::lines(args, id.as_deref())? {
                    rows.push(row);
                    documents.push(document);
                }
                continue;
            }
        };
        let found = candidates(path).map_err(|source| {
            let failure = Failure::new(FailureKind::NotFound, format!("cannot read `{}`", path.display()));
            failure.because_of(&source)
        })?;
        for path in found {
            let (row, document) = line(&path);
            rows.push(row);
            documents.push(document);
        }
    }
    if draw.is_json() {
        draw.json_line(&json!({ "message_type": "images", "images": documents }));
    } else if rows.is_empty() {
        draw.talk("there are no checkpoints");
    } else {
        let header = ["PATH", "WRITTEN BY", "OF", "WHEN", "PROCESSES", "SIZE"].map(String::from).to_vec();
        rows.insert(0, header);
        draw.data(table(&rows).trim_end());
    }
    Ok(0)
}

/// A checkpoint itself, or those that lie in a directory.
fn candidates(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() || inspect::is_one(path) {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let is_archive = ARCHIVES.iter().any(|end| path.to_string_lossy().ends_with(end));
        if if path.is_dir() { inspect::is_one(&path) } else { is_archive && path.is_file() } {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A row of the table, and the same as JSON.
fn line(path: &Path) -> (Vec<String>, Value) {
    let shown = inspect::shown(path.as_os_str().as_encoded_bytes());
    let dash = || "–".to_owned();
    let short = |words: String| {
        let row = vec![shown.clone(), words.clone(), dash(), dash(), dash(), dash()];
        (row, json!({ "path": path, "text": words }))
    };
    if sealed::is_sealed(path).unwrap_or(false) {
        let bytes = path.metadata().map(|meta| meta.len()).unwrap_or_default();
        let row = vec![shown, "godwit, encrypted".into(), dash(), dash(), dash(), show_bytes(bytes)];
        return (row, json!({ "path": path, "encrypted": true, "bytes": bytes }));
    }
    let contents = match inspect::inspect(path) {
        Ok(contents) => contents,
        Err(InspectError::NotOne { .. }) => return short("no checkpoint".into()),
        Err(error) => return short(format!("damaged: {error}")),
    };
    let bytes = size(&contents);
    let row = vec![
        shown,
        writer(contents.writer).into(),
        name_of(&contents).unwrap_or_else(dash),
        contents.made_unix_s.map_or_else(dash, when),
        contents.processes.len().to_string(),
        show_bytes(bytes),
    ];
    let document = json!({
        "path": path, "encrypted": false, "writer": contents.writer, "container": name_of(&contents),
        "made_unix_s": contents.made_unix_s, "processes": contents.processes.len(), "bytes": bytes, "faults": contents.faults,
    });
    (row, document)
}

fn size(contents: &Contents) -> u64 {
    contents.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
}

fn writer(writer: Writer) -> &'static str {
    match writer {
        Writer::Godwit => "godwit",
        Writer::Podman => "podman",
        Writer::Criu => "CRIU",
    }
}

/// `ENGINE:NAME`.
fn name_of(contents: &Contents) -> Option<String> {
    Some(format!("{}:{}", contents.engine.as_ref()?, contents.name.as_ref()?))
}

fn when(unix_s: u64) -> String {
    show_age(unix_s.saturating_mul(1_000_000))
}

fn show(path: &Path, contents: &Contents, draw: &Draw) {
    if draw.is_json() {
        let mut document = serde_json::to_value(contents).unwrap_or_default();
        document["message_type"] = "image".into();
        document["path"] = json!(path);
        draw.json_line(&document);
        return;
    }
    let versions = &contents.versions;
    let facts = [
        ("written by", Some(writer(contents.writer).to_owned())),
        ("container", name_of(contents)),
        ("id", contents.id.clone()),
        ("image", contents.image.clone()),
        ("when", contents.made_unix_s.map(when)),
        ("host", contents.host.clone()),
        ("criu", versions.criu.clone()),
        ("kernel", versions.kernel.clone()),
        ("runtime", versions.runtime.clone()),
        (
            "parent",
            contents.parents.first().map(|parent| inspect::shown(parent.as_os_str().as_encoded_bytes())),
        ),
        ("in parents", (!contents.parents.is_empty()).then(|| show_bytes(contents.shared_bytes))),
    ];
    let rows: Vec<Vec<String>> =
        facts.into_iter().filter_map(|(name, value)| Some(vec![name.to_owned(), value?])).collect();
    draw.data(table(&rows).trim_end());
    let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
    let number = |number: u32| number.to_string();
    section(
        draw,
        row(&["PID", "PARENT", "NAME", "THREADS", "MEMORY"]),
        contents.processes.iter().map(|process| {
            let threads = process.threads.to_string();
            let memory = show_bytes(process.memory_bytes);
            row(&[&number(process.pid), &number(process.ppid), &process.comm, &threads, &memory])
        }),
    );
    section(
        draw,
        row(&["PID", "FD", "KIND", "OPEN FILE"]),
        contents.files.iter().map(|file| row(&[&number(file.pid), &number(file.fd), file.kind, &file.name])),
    );
    section(
        draw,
        row(&["SOCKET", "STATE", "LOCAL", "REMOTE"]),
        contents
            .sockets
            .iter()
            .map(|socket| row(&[socket.protocol, socket.state, &socket.local, &socket.remote])),
    );
    section(
        draw,
        row(&["MOUNT", "TYPE", "SOURCE"]),
        contents.mounts.iter().map(|mount| {
            let outside = if mount.external { "from outside" } else { &mount.source };
            row(&[&mount.at, &mount.file_system, outside])
        }),
    );
    section(
        draw,
        row(&["PART", "SIZE"]),
        contents.parts.iter().map(|part| row(&[&part.part, &show_bytes(part.bytes)])),
    );
    for fault in &contents.faults {
        draw.talk(&format!("warning: {fault}"));
    }
}

/// A table, if it has rows; not more of them than anybody reads.
fn section(draw: &Draw, header: Vec<String>, rows: impl ExactSizeIterator<Item = Vec<String>>) {
    let more = rows.len().saturating_sub(ROWS);
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows.take(ROWS)).collect();
    if rows.len() > 1 {
        draw.data(&format!("\n{}", table(&rows).trim_end()));
    }
    if more > 0 {
        draw.data(&format!("… {more} more; `--json` has all"));
    }
}
