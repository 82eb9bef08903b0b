//! `godwit checkpoint --to PLACE`: the checkpoint is written below `outbox/` in godwit's directory, and goes to the place from there. It
//! is whole on this host until it is whole in the place; the same command again goes on with what waits here.

use super::checkpoint::{self, Checkpoint};
use super::earlier::settle_earlier;
use super::images::forget::place::{self as forgotten, ThisHost};
use super::object_storage::{self, SEALED};
use super::volume::policy;
use super::{Trouble, sealing, store};
use crate::args::{Args, CheckpointArgs};
use crate::draw::Draw;
use godwit_checkpoint::inspect;
use godwit_migration::calendar::show_time;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Disposition, Failure, FailureKind};
use godwit_object_storage::{Kind, Order, Place, PlaceError, PlaceName, Uploaded, upload};
use godwit_store::{Added, Digest, Lease, Store, StoreError, store_of};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub fn run(
    args: &Args,
    command: &CheckpointArgs,
    name: &PlaceName,
    draw: &Draw,
    cancel: &Cancel,
) -> Result<u8, Trouble> {
    let about = |failure| Trouble::about(failure, &command.container, None);
    refuse(command, name).map_err(about)?;
    let root = std::path::absolute(&args.global.root).unwrap_or_else(|_| args.global.root.clone());
    settle_earlier(&root, &command.container, &mut |text| draw.talk(&text))?;
    let outbox = Outbox::open(&root, command).map_err(about)?;
    let place = object_storage::open(name, cancel).map_err(about)?;
    let unfit = |error: PlaceError| {
        about(object_storage::failure(&format!("nothing can be put into `{name}`"), &error, &root))
    };
    place.claim().map_err(unfit)?;
    let made = match outbox.waiting() {
        Some(_) => None,
        None => {
            outbox.clear().map_err(about)?;
            check_is_of(&place, command).map_err(about)?;
            let path = outbox.make().map_err(about)?;
            Some(checkpoint::write(args, command, &path, draw, cancel)?)
        }
    };
    let Some(path) = outbox.waiting() else {
        let message = "the checkpoint that was written is not there any more";
        return Err(about(Failure::new(FailureKind::Failed, message)));
    };
    if made.is_none() {
        let when = path.metadata().and_then(|meta| meta.modified()).map(micros).map(show_time);
        let when = when.unwrap_or_else(|_| "an unknown time".into());
        draw.talk(&format!("the checkpoint of {when} (UTC) waits in `{}` and goes first", path.display()));
    }
    let put = put(args, &root, &path, &place);
    let (image, uploaded) =
        put.map_err(|error| about(not_there(command, name, &path, made.as_ref(), &error, &root)))?;
    if let Err(failure) = outbox.clear() {
        draw.talk(&format!("warning: {failure}"));
    }
    say(command, made.as_ref(), image, &uploaded, draw);
    let host = ThisHost { root: &root, bar: store::bar(args) };
    let is_one = |image: &forgotten::Image| image.kind == Kind::Checkpoint;
    forgotten::apply(&host, &place, policy(&command.keep), &is_one, draw)
        .map_err(|failure| about(failure.at(now(command, made.as_ref()))))?;
    Ok(made.map_or(0, |checkpoint| checkpoint.exit_code()))
}

/// What cannot go together.
fn refuse(command: &CheckpointArgs, name: &PlaceName) -> Result<(), Failure> {
    if command.parent.is_some() {
        return Err(Failure::new(FailureKind::Usage, "a checkpoint in object storage has no parent").hint(
            "leave `--parent` out: what an earlier one in the same place has does not go there again",
        ));
    }
    if name.image.is_some() {
        return Err(Failure::new(FailureKind::Usage, format!("`{name}` names a checkpoint that is there"))
            .hint(format!("write `{}`", name.whole())));
    }
    sealing::recipients(&command.recipients).map(drop)
}

/// Checkpoints of several containers in one place would be taken for each other's.
fn check_is_of(place: &Place, command: &CheckpointArgs) -> Result<(), Failure> {
    let what = format!("nothing can be put into `{}`", place.name());
    let there = object_storage::checkpoints(place)
        .map_err(|error| object_storage::failure(&what, &error, Path::new("")))?;
    let of = there.first().and_then(|index| index.fact("container"));
    let is_other = |of: &str| super::find(&command.container).is_ok_and(|(_, name)| name.to_string() != of);
    match of {
        Some(of) if is_other(of) => Err(Failure::new(FailureKind::Usage, what)
            .because(format!("the checkpoints there are of `{of}`"))
            .hint("name another prefix")),
        _ => Ok(()),
    }
}

/// Puts the checkpoint at `path` into the store, and from there into the place.
fn put(args: &Args, root: &Path, path: &Path, place: &Place) -> Result<(Digest, Uploaded), PlaceError> {
    let bar = store::bar(args);
    let store = Store::open(&store_of(root), None)?;
    let mut lease = store.lease()?;
    let manifest = add(&mut lease, path, &mut |read| bar.set_message(show_bytes(read)))?.manifest;
    let ledgers = object_storage::ledgers_of(root);
    // what is sealed is sealed already
    let order = Order { manifest, kind: Kind::Checkpoint, recipients: None, ledgers: &ledgers };
    let uploaded = upload(place, &mut lease, &order, &mut object_storage::progress(&bar, "Putting"));
    bar.finish_and_clear();
    Ok((manifest, uploaded?))
}

/// Puts a checkpoint into the store. Of an encrypted one nothing is told but when it was made.
pub(super) fn add(
    lease: &mut Lease,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Added, StoreError> {
    if path.is_dir() {
        let facts = inspect::inspect(path).map(|contents| store::facts(&contents)).unwrap_or_default();
        return lease.add_checkpoint(path, facts, progress);
    }
    let tree = lease.add_tree(path.parent().unwrap_or(path), progress)?;
    let made = (written_unix_us(path)? / 1_000_000).to_string();
    let manifest = lease.describe(tree.manifest, BTreeMap::from([("made_unix_s".to_owned(), made)]))?;
    Ok(Added { manifest, ..tree })
}

/// When a checkpoint was written that lies there since, µs after 1970.
pub(super) fn written_unix_us(path: &Path) -> Result<u64, StoreError> {
    let modified = path.metadata().and_then(|meta| meta.modified());
    let failed = |source| StoreError::Io { act: "read", path: path.to_owned(), source };
    Ok(micros(modified.map_err(failed)?))
}

fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// It is written, and did not get there.
fn not_there(
    command: &CheckpointArgs,
    name: &PlaceName,
    path: &Path,
    made: Option<&Checkpoint>,
    error: &PlaceError,
    root: &Path,
) -> Failure {
    let what = format!("the checkpoint of `{}` is not in `{name}`, or not all of it", command.container);
    let failure = object_storage::failure(&what, error, root).hint(format!(
        "it is whole in `{0}`: the same command again puts the rest there; `godwit restore {0}` brings it back here",
        path.display()
    ));
    failure.at(now(command, made))
}

/// Where the container is when its checkpoint was written, or when one waited.
pub(super) fn now(command: &CheckpointArgs, made: Option<&Checkpoint>) -> Disposition {
    match made {
        Some(_) if command.leave_running => Disposition::RunningAtSource,
        // whoever was told so the first time may have done something about it
        _ => Disposition::NoContainer,
    }
}

fn say(command: &CheckpointArgs, made: Option<&Checkpoint>, image: Digest, uploaded: &Uploaded, draw: &Draw) {
    if draw.is_json() {
        draw.json_line(&json!({
            "message_type": "checkpoint_put", "place": command.to.to_string(), "image": image.to_string(),
            "container": made.map(|made| made.name.to_string()), "needed_bytes": uploaded.needed_bytes,
            "sent_bytes": uploaded.sent_bytes, "waited": made.is_none(),
        }));
    }
    if let Some(made) = made {
        checkpoint::tell(command, made, draw);
    }
    draw.talk(&format!(
        "{} went there, for {}; it is `{}#{}`",
        show_bytes(uploaded.sent_bytes),
        show_bytes(uploaded.needed_bytes),
        command.to,
        &image.to_string()[..12]
    ));
    if made.is_none() {
        draw.talk("this was the one that waited; the container was not looked at");
    }
}

/// Where one container's checkpoints wait for one place. Nobody else uses it as long as this lives.
pub(super) struct Outbox {
    path: PathBuf,
    is_sealed: bool,
    _lock: File,
}

impl Outbox {
    pub(super) fn open(root: &Path, command: &CheckpointArgs) -> Result<Self, Failure> {
        let (container, place) = (&command.container, &command.to);
        let cannot = |error: &std::io::Error| {
            Failure::new(FailureKind::Missing, format!("cannot write to `{}`", root.display()))
                .because_of(error)
                .hint("name another directory with `--root`")
        };
        let outboxes = root.join("outbox");
        DirBuilder::new().recursive(true).mode(0o700).create(&outboxes).map_err(|error| cannot(&error))?;
        // what waits in the clear is not what somebody wants to be encrypted
        let whose = format!("{container}\n{place}\n{}", command.recipients.join("\n"));
        let key = &Digest::of(whose.as_bytes()).to_string()[..16];
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(outboxes.join(format!("{key}.lock")))
            .map_err(|error| cannot(&error))?;
        match lock.try_lock() {
            Ok(()) => {
                let is_sealed = !command.recipients.is_empty();
                Ok(Self { path: outboxes.join(key), is_sealed, _lock: lock })
            }
            Err(TryLockError::Error(error)) => Err(cannot(&error)),
            Err(TryLockError::WouldBlock) => {
                let message = format!("another godwit puts a checkpoint of `{container}` into `{place}`");
                Err(Failure::new(FailureKind::Locked, message).hint("wait until it is done"))
            }
        }
    }

    /// The directory, or the encrypted file in one of its own.
    fn checkpoint(&self) -> PathBuf {
        self.path.join(if self.is_sealed { SEALED } else { "checkpoint" })
    }

    /// A checkpoint that is complete: it has its name only then.
    pub(super) fn waiting(&self) -> Option<PathBuf> {
        Some(self.checkpoint()).filter(|path| path.exists())
    }

    /// Where one is to be written.
    pub(super) fn make(&self) -> Result<PathBuf, Failure> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|error| self.failure("cannot make", &error))?;
        Ok(self.checkpoint())
    }

    /// Takes away all that is in it.
    pub(super) fn clear(&self) -> Result<(), Failure> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.failure("cannot remove", &error))
            }
            _ => Ok(()),
        }
    }

    fn failure(&self, act: &str, error: &std::io::Error) -> Failure {
        Failure::new(FailureKind::Missing, format!("{act} `{}`", self.path.display())).because_of(error)
    }
}
