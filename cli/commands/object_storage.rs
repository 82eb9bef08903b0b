//! Checkpoints in object storage: what commands say of places, and how a checkpoint comes from one.

use super::kept::{self, Unpacked};
use super::store;
use crate::args::Args;
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_object_storage::error::Refusal;
use godwit_object_storage::index::Keys;
use godwit_object_storage::{Index, Kind, Place, PlaceError, PlaceName, download};
use godwit_store::{Digest, Store, store_of};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};

/// How an encrypted checkpoint is called in its tree.
pub const SEALED: &str = "checkpoint.age";

/// Where in godwit's directory it is noted what was put where.
pub fn ledgers_of(root: &Path) -> PathBuf {
    root.join("places")
}

/// Opens a place.
///
/// # Errors
/// When the environment says nothing that can be used.
pub fn open(name: &PlaceName, cancel: &Cancel) -> Result<Place, Failure> {
    Place::open(name, cancel.clone())
        .map_err(|error| failure(&format!("`{name}` cannot be used"), &error, Path::new("")))
}

/// What is to be said when a place said no: what was not done, and why. `root` is godwit's directory.
pub fn failure(what: &str, error: &PlaceError, root: &Path) -> Failure {
    let (kind, hint) = match error {
        PlaceError::Store(error) => return store::failure(what, error, &store_of(root)),
        PlaceError::Object { refusal: Refusal::Denied, .. } => (
            FailureKind::Failed,
            "the environment says who asks: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, and of an own server `AWS_ENDPOINT_URL`",
        ),
        PlaceError::Object { refusal: Refusal::Missing, .. } => {
            (FailureKind::NotFound, "is the bucket there? godwit makes none")
        }
        PlaceError::Object { refusal: Refusal::Untrusted, .. } => (
            FailureKind::Failed,
            "the server needs a certificate for the name in `AWS_ENDPOINT_URL`, of an authority of this host or of the file that `AWS_CA_BUNDLE` names",
        ),
        PlaceError::Object { .. } => (FailureKind::Failed, "the same command again goes on where it was"),
        PlaceError::Damaged { .. } => (FailureKind::NotFound, "use another copy of it"),
        PlaceError::Format { .. } => {
            (FailureKind::Usage, "name another prefix, or use the godwit that made it")
        }
        PlaceError::NoImage(_) => (FailureKind::NotFound, "`godwit images ls PLACE` shows what is there"),
        PlaceError::Sealed(_) => {
            (FailureKind::Usage, "name the file with the secret key: `--identity KEYFILE`")
        }
        PlaceError::NotForUs(_) => {
            (FailureKind::Usage, "name the identity of one of the recipients that it was written for")
        }
        PlaceError::Unusable(_) => (FailureKind::Usage, ""),
        PlaceError::Silent(_) => (FailureKind::Refused, "is `godwit receive --via` running there?"),
        PlaceError::Locked => (FailureKind::Locked, "wait until it is done"),
        PlaceError::Io { .. } => (FailureKind::Failed, ""),
        PlaceError::Interrupted => (FailureKind::Interrupted, "the same command again goes on where it was"),
    };
    let failure = Failure::new(kind, what).because_of(error);
    if hint.is_empty() { failure } else { failure.hint(hint) }
}

/// Shows how much of an image is where it shall be.
pub fn progress(bar: &ProgressBar, prefix: &'static str) -> impl FnMut(u64, u64) {
    let bar = bar.clone();
    bar.set_prefix(prefix);
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(format!("{} of {}", show_bytes(done), show_bytes(total)));
    }
}

/// The checkpoints of a place, newest first.
///
/// # Errors
/// When it cannot be asked, or has an index that cannot be read.
pub fn checkpoints(place: &Place) -> Result<Vec<Index>, PlaceError> {
    let indexes = place.images(Kind::Checkpoint)?.into_iter();
    let mut found: Vec<Index> = indexes
        .map(|manifest| place.index(Kind::Checkpoint, manifest, Keys(None)))
        .collect::<Result<_, _>>()?;
    found.sort_by_key(|index| (std::cmp::Reverse(made(index)), index.manifest));
    Ok(found)
}

/// When an image was made, s since 1970; 0 where that is not known.
pub fn made(index: &Index) -> u64 {
    made_us(index) / 1_000_000
}

/// The same in µs, as exactly as it is known: of a snapshot to the microsecond, of a checkpoint to the second.
pub fn made_us(index: &Index) -> u64 {
    let number = |name| index.fact(name).and_then(|text| text.parse::<u64>().ok());
    let of_a_checkpoint = || number("made_unix_s").map(|seconds| seconds.saturating_mul(1_000_000));
    number("made_unix_us").or_else(of_a_checkpoint).unwrap_or(0)
}

/// The checkpoint that a name means: the one that it names, or the newest.
///
/// # Errors
/// When there is none, or several are meant.
pub fn find_checkpoint(place: &Place) -> Result<Index, PlaceError> {
    let Some(image) = &place.name().image else {
        let newest = checkpoints(place)?.into_iter().next();
        return newest.ok_or_else(|| PlaceError::NoImage("complete checkpoint in it".into()));
    };
    let meant: Vec<Digest> = place
        .images(Kind::Checkpoint)?
        .into_iter()
        .filter(|manifest| manifest.to_string().starts_with(image))
        .collect();
    match meant[..] {
        [manifest] => place.index(Kind::Checkpoint, manifest, Keys(None)),
        [] => Err(PlaceError::NoImage(format!("checkpoint `{image}` in it"))),
        _ => Err(PlaceError::NoImage(format!("one checkpoint `{image}` in it: several begin so"))),
    }
}

/// A checkpoint on this host, as long as this lives.
pub struct FetchedCheckpoint {
    /// The directory or file that `godwit checkpoint` wrote.
    pub path: PathBuf,
    _unpacked: Unpacked,
}

/// Brings a checkpoint of a place to this host's disk; an encrypted one stays encrypted.
///
/// # Errors
/// When there is none, it is not whole, or this host has no room for it.
pub fn fetch_checkpoint(
    args: &Args,
    name: &PlaceName,
    draw: &Draw,
    cancel: &Cancel,
) -> Result<FetchedCheckpoint, Failure> {
    let root = std::path::absolute(&args.global.root).unwrap_or_else(|_| args.global.root.clone());
    let what = format!("`{name}` cannot be restored; nothing was touched");
    let failed = |error: PlaceError| failure(&what, &error, &root);
    let place = open(name, cancel)?;
    let index = find_checkpoint(&place).map_err(failed)?;
    let bar = store::bar(args);
    let store = Store::open(&store_of(&root), None).map_err(|error| failed(error.into()))?;
    let mut lease = store.lease().map_err(|error| failed(error.into()))?;
    let come = download(&place, &mut lease, &index, Keys(None), &mut progress(&bar, "Fetching"));
    bar.finish_and_clear();
    let come = come.map_err(failed)?;
    draw.talk(&format!(
        "{} of {} came, the rest was here",
        show_bytes(come.received_bytes),
        show_bytes(come.needed_bytes)
    ));
    let unpacked = kept::unpack(&root, &mut lease, index.manifest, &bar, &what)?;
    let sealed = unpacked.tree.join(SEALED);
    let path = if sealed.is_file() { sealed } else { unpacked.tree.clone() };
    Ok(FetchedCheckpoint { path, _unpacked: unpacked })
}
