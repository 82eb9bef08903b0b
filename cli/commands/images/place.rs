//! `godwit images` on places in object storage.

use crate::args::Args;
use crate::commands::{object_storage, sealing, store};
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_object_storage::index::Keys;
use godwit_object_storage::{Index, Kind, Place, PlaceError, PlaceName, verify};
use godwit_store::Digest;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Digits of a digest that people get to see.
pub const DIGITS: usize = 12;

/// The checkpoints of a place, newest first: rows of the table, and the same as JSON.
///
/// # Errors
/// When it cannot be asked.
pub fn lines(name: &PlaceName, cancel: &Cancel) -> Result<Vec<(Vec<String>, Value)>, Failure> {
    let failed = |error: PlaceError| {
        object_storage::failure(&format!("`{name}` cannot be read"), &error, Path::new(""))
    };
    let place = object_storage::open(name, cancel)?;
    if !place.is_claimed().map_err(failed)? {
        let message = format!("there is nothing of godwit's in `{name}`");
        return Err(Failure::new(FailureKind::NotFound, message));
    }
    let found = object_storage::checkpoints(&place).map_err(failed)?;
    let mut lines: Vec<_> = found.iter().map(|index| line(&name.whole(), Kind::Checkpoint, index)).collect();
    let mut snapshots = Vec::new();
    for manifest in place.images(Kind::Snapshot).map_err(failed)? {
        match place.index(Kind::Snapshot, manifest, Keys(None)) {
            Ok(index) => snapshots.push((
                std::cmp::Reverse(object_storage::made_us(&index)),
                manifest,
                line(&name.whole(), Kind::Snapshot, &index),
            )),
            Err(PlaceError::Sealed(_)) => {
                snapshots.push((std::cmp::Reverse(0), manifest, sealed(&name.whole(), manifest)))
            }
            Err(error) => return Err(failed(error)),
        }
    }
    snapshots.sort_by_key(|(made, manifest, _)| (*made, *manifest));
    lines.extend(snapshots.into_iter().map(|(_, _, line)| line));
    Ok(lines)
}

/// An encrypted snapshot: nothing is told of it.
fn sealed(place: &PlaceName, manifest: Digest) -> (Vec<String>, Value) {
    let dash = || "–".to_owned();
    let short = &manifest.to_string()[..DIGITS];
    let row =
        vec![format!("{place}#{short}"), "godwit, encrypted".to_owned(), dash(), dash(), dash(), dash()];
    let document = json!({
        "path": format!("{place}#{manifest}"), "kind": Kind::Snapshot.word(), "encrypted": true, "writer": "godwit",
    });
    (row, document)
}

fn line(place: &PlaceName, kind: Kind, index: &Index) -> (Vec<String>, Value) {
    let dash = || "–".to_owned();
    // of an encrypted one nobody is told whose it is
    let (container, volume) = (index.fact("container"), index.fact("volume"));
    let of = container.or(volume);
    let made = Some(object_storage::made(index)).filter(|made| *made > 0);
    let bytes: u64 = index.packs.iter().map(|pack| pack.bytes).sum();
    let manifest = index.manifest.to_string();
    let writer = if of.is_some() { "godwit" } else { "godwit, encrypted" };
    let row = vec![
        format!("{place}#{}", &manifest[..DIGITS]),
        writer.to_owned(),
        of.map_or_else(dash, str::to_owned),
        made.map_or_else(dash, super::when),
        dash(),
        show_bytes(bytes),
    ];
    let document = json!({
        "path": format!("{place}#{manifest}"), "kind": kind.word(), "encrypted": of.is_none(), "writer": "godwit",
        "container": container, "volume": volume, "made_unix_s": made, "bytes": bytes,
    });
    (row, document)
}

/// Reads all of an image, or of all images of a place where none is named.
///
/// # Errors
/// What is missing, damaged, or encrypted for others.
pub fn verified(
    args: &Args,
    name: &PlaceName,
    identities: &[PathBuf],
    draw: &Draw,
    cancel: &Cancel,
) -> Result<u8, Failure> {
    let failed = |error: PlaceError| {
        object_storage::failure(&format!("`{name}` is not whole, or not known to be"), &error, Path::new(""))
    };
    let identities = sealing::read_identities(identities)?;
    let keys = Keys(identities.as_ref());
    let place = object_storage::open(name, cancel)?;
    let indexes = match name.image {
        Some(_) => vec![object_storage::find_checkpoint(&place).map_err(failed)?],
        None => all(&place, keys).map_err(failed)?,
    };
    if indexes.is_empty() {
        let message = format!("there is no complete image in `{name}`");
        return Err(Failure::new(FailureKind::NotFound, message));
    }
    let bar = store::bar(args);
    bar.set_prefix("Reading");
    let mut chunks = 0;
    for index in &indexes {
        chunks += verify(&place, index, keys, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{done} of {total} chunks"));
        })
        .map_err(failed)?;
    }
    bar.finish_and_clear();
    if draw.is_json() {
        draw.json_line(&json!({
            "message_type": "verified", "path": name.to_string(), "whole": true, "images": indexes.len(),
            "digests": chunks,
        }));
    } else {
        let count = indexes.len();
        draw.data(&format!(
            "`{name}` is whole: {count} images, all of their {chunks} chunks were read and are right"
        ));
    }
    Ok(0)
}

fn all(place: &Place, keys: Keys<'_>) -> Result<Vec<Index>, PlaceError> {
    let mut found = Vec::new();
    for (kind, manifest) in images(place)? {
        found.push(place.index(kind, manifest, keys)?);
    }
    Ok(found)
}

/// All images of a place.
pub fn images(place: &Place) -> Result<Vec<(Kind, Digest)>, PlaceError> {
    let mut found = Vec::new();
    for kind in [Kind::Checkpoint, Kind::Snapshot] {
        found.extend(place.images(kind)?.into_iter().map(|manifest| (kind, manifest)));
    }
    Ok(found)
}
