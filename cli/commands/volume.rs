//! `godwit volume`: the past of volumes.

mod bring;
mod follow;
mod forget;
mod list;
mod owner;
mod places;
mod replicate;
mod still;
mod stream;

use super::Trouble;
use super::store;
use crate::args::{Args, VolumeCommand, VolumeSnapshotArgs};
use crate::draw::Draw;
pub use forget::policy;
use godwit_migration::quantity::{show_bytes, show_duration};
use godwit_migration::{Failure, FailureKind};
use godwit_store::{Writers, store_of};
use godwit_volumes::difference::{Change, difference};
use godwit_volumes::{Cause, History, Snapshot, Taken, Volume, VolumeError};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use still::Containers;

/// Lines of differences that people get to see; JSON has all.
const LINES: usize = 1000;
/// What to do when the histories of two nodes have diverged.
const DIVERGED: &str = "`--diverged` keeps both; then `godwit volume diff` compares them, and on the node that shall go on with it \
                        `godwit volume rollback` to one of them, or `godwit volume owner VOLUME --take`, says which counts";

pub fn run(args: &Args, command: &VolumeCommand, draw: &Draw) -> Result<u8, Trouble> {
    let root = std::path::absolute(&args.global.root).unwrap_or(args.global.root.clone());
    let past = Past { root, bar: store::bar(args) };
    let done = match command {
        VolumeCommand::Snapshot(snapshot) => past.snapshot(snapshot, draw),
        VolumeCommand::Follow(follow) => past.follow(follow, draw),
        VolumeCommand::Replicate(replicate) => past.replicate(replicate, draw),
        VolumeCommand::Owner(owner) => past.owner(owner, draw),
        VolumeCommand::List { volume } => past.list(volume.as_deref(), draw),
        VolumeCommand::Diff { before, after } => past.diff(before, after.as_deref(), draw),
        VolumeCommand::Restore { snapshot, path } => past.restore(snapshot, path, draw),
        VolumeCommand::Rollback { snapshot, take } => past.rollback(snapshot, *take, draw),
        VolumeCommand::Forget(forget) => past.forget(forget, draw),
    };
    past.bar.finish_and_clear();
    Ok(done?)
}

struct Past {
    root: PathBuf,
    bar: ProgressBar,
}

impl Past {
    /// For what can only be done with snapshots.
    fn existing(&self, text: &str) -> Result<History, Failure> {
        let found = History::find_in(&self.root)
            .map_err(|error| self.failure("the snapshots cannot be read", &error))?;
        found.ok_or_else(|| self.failure("nothing was done", &VolumeError::NoSnapshot(text.to_owned())))
    }

    fn find(&self, text: &str) -> Result<(History, Snapshot), Failure> {
        let history = self.existing(text)?;
        let found = history.find(text).map_err(|error| self.failure("nothing was done", &error))?;
        Ok((history, found))
    }

    /// A volume's name, for one that may be gone by now.
    fn name(text: &str) -> String {
        Volume::find(text).map_or_else(|_| text.to_owned(), |volume| volume.name)
    }

    fn progress(&self) -> impl FnMut(u64, u64) {
        let bar = self.bar.clone();
        bar.set_prefix("Making");
        move |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{} of {}", show_bytes(done), show_bytes(total)));
        }
    }

    fn reading(&self) -> impl FnMut(u64) {
        let bar = self.bar.clone();
        bar.set_prefix("Reading");
        move |read| bar.set_message(show_bytes(read))
    }

    fn snapshot(&self, wanted: &VolumeSnapshotArgs, draw: &Draw) -> Result<u8, Failure> {
        let failed = |error: VolumeError| self.failure("no snapshot was made", &error);
        let volume = self.volume(&wanted.volume, "no snapshot was made")?;
        let mut containers = Containers::of(&wanted.still, &self.root, &volume)?;
        let history = History::open(&self.root, wanted.quota).map_err(failed)?;
        if let Some(node) = history.ownership(&volume.path).map_err(failed)?.elsewhere() {
            let volume = &volume.name;
            draw.talk(&format!(
                "warning: `{volume}` belongs to {node}: this is of the copy that stayed here"
            ));
        }
        let note = wanted.note.as_deref();
        let taken = match &mut containers {
            still if wanted.native => {
                history.keep(&volume, note, still.as_mut().map(|still| still as &mut dyn Writers))
            }
            Some(containers) => history.take_of(&volume, note, containers, &mut self.reading()),
            None => history.take(&volume, note, &mut self.reading()),
        };
        self.bar.finish_and_clear();
        // whether there is a snapshot or not
        let untold = containers.as_ref().map(Containers::untold).unwrap_or_default();
        untold.iter().for_each(|why| draw.talk(&format!("warning: left over: {why}")));
        let taken = taken.map_err(failed)?;
        let added = &taken.added;
        if draw.is_json() {
            draw.json_line(&line(&taken));
        } else {
            draw.data(&taken.snapshot.id);
        }
        match &taken.snapshot.kept {
            Some(kept) => draw.talk(&format!("{} keeps it: nothing was copied", kept.by)),
            None => draw.talk(&format!(
                "{} in {} entries; the store needed {} for it",
                show_bytes(added.file_bytes),
                added.entries,
                show_bytes(added.written_bytes)
            )),
        }
        if let Some(stood) = taken.snapshot.stood_us {
            let stood = show_duration(Duration::from_micros(stood));
            draw.talk(&format!(
                "it is of one moment: {} stood still for {stood}",
                wanted.still.freeze.join(" and ")
            ));
        }
        if let (None, Some(shown_by)) = (taken.snapshot.stood_us, &taken.snapshot.shown_by) {
            draw.talk(&format!("it is as after a loss of power: {shown_by} has shown it"));
        }
        Ok(if untold.is_empty() { 0 } else { FailureKind::Leftovers.exit_code() })
    }

    /// A volume that can be kept in the store.
    fn volume(&self, text: &str, what: &str) -> Result<Volume, Failure> {
        let volume = Volume::find(text).map_err(|error| self.failure(what, &error))?;
        let store = store_of(&self.root);
        if store.starts_with(&volume.path) || volume.path.starts_with(&store) {
            let message = format!("`{}` and the store lie in each other", volume.path.display());
            return Err(Failure::new(FailureKind::Usage, message));
        }
        Ok(volume)
    }

    fn diff(&self, before: &str, after: Option<&str>, draw: &Draw) -> Result<u8, Failure> {
        let failed = |error: VolumeError| self.failure("they cannot be compared", &error);
        let (history, one) = self.find(before)?;
        let (tree, other) = match after {
            Some(text) => {
                let other = history.find(text).map_err(failed)?;
                (history.tree(&other).map_err(failed)?, other.id)
            }
            None => {
                let volume = Volume::find(&one.volume).map_err(failed)?;
                (history.tree_now(&volume, &mut self.reading()).map_err(failed)?, one.volume.clone())
            }
        };
        let changes = difference(&history.tree(&one).map_err(failed)?, &tree);
        self.bar.finish_and_clear();
        self.say_standing(&history, &one.volume, draw);
        if draw.is_json() {
            let all: Vec<Value> = changes
                .iter()
                .map(|(path, change)| json!({ "path": path.to_string(), "change": word(*change) }))
                .collect();
            draw.json_line(
                &json!({ "message_type": "volume_diff", "before": one.id, "after": other, "changes": all }),
            );
            return Ok(0);
        }
        for (path, change) in changes.iter().take(LINES) {
            draw.data(&format!("{} /{path}", change.letter()));
        }
        if changes.len() > LINES {
            draw.talk(&format!("and {} more", changes.len() - LINES));
        }
        Ok(0)
    }

    fn restore(&self, text: &str, path: &Path, draw: &Draw) -> Result<u8, Failure> {
        let (history, snapshot) = self.find(text)?;
        let what = format!("`{}` could not be made", path.display());
        let made = history.restore(&snapshot, path, &mut self.progress());
        let (entries, bytes) = made.map_err(|error| self.failure(&what, &error))?;
        self.bar.finish_and_clear();
        if draw.is_json() {
            draw.json_line(&json!({
                "message_type": "volume_restored", "id": snapshot.id, "path": path, "entries": entries, "file_bytes": bytes,
            }));
        } else {
            let shown = path.display();
            draw.talk(&format!("`{shown}`: {} in {entries} entries, verified", show_bytes(bytes)));
        }
        Ok(0)
    }

    fn rollback(&self, text: &str, take: bool, draw: &Draw) -> Result<u8, Failure> {
        let (history, snapshot) = self.find(text)?;
        let what = format!("`{}` is as it was", snapshot.volume);
        let done = history
            .roll_back(&snapshot, take, &mut self.progress())
            .map_err(|error| self.failure(&what, &error))?;
        self.bar.finish_and_clear();
        let stash = done.stash.as_ref().map(|stash| stash.id.as_str());
        if draw.is_json() {
            draw.json_line(&json!({
                "message_type": "volume_rolled_back", "id": snapshot.id, "volume": snapshot.volume, "stash": stash,
                "left": done.left,
            }));
        }
        match stash {
            Some(stash) => {
                draw.talk(&format!("`{}` is what it was in {}", snapshot.volume, snapshot.id));
                draw.talk(&format!("what it had become is kept as {stash}"));
            }
            None => draw.talk(&format!("`{}` has not changed since {}", snapshot.volume, snapshot.id)),
        }
        match done.left {
            None => Ok(0),
            Some(left) => {
                draw.talk(&format!("warning: left over: {left}"));
                Ok(FailureKind::Leftovers.exit_code())
            }
        }
    }

    fn failure(&self, what: &str, error: &VolumeError) -> Failure {
        let kind = match error {
            VolumeError::Store(error) => return store::failure(what, error, &store_of(&self.root)),
            VolumeError::NoSnapshot(_) | VolumeError::NoVolume { .. } => FailureKind::NotFound,
            VolumeError::Ambiguous { .. } => FailureKind::Usage,
            VolumeError::InUse { .. } | VolumeError::Locked(_) => FailureKind::Locked,
            VolumeError::Elsewhere { .. } | VolumeError::Diverged { .. } => FailureKind::Locked,
            VolumeError::Fixed { .. } | VolumeError::Moment(_) => FailureKind::Missing,
            VolumeError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                FailureKind::Missing
            }
            VolumeError::Io { .. } | VolumeError::Tree(_) | VolumeError::Stream(_) => FailureKind::Failed,
        };
        let failure = Failure::new(kind, what).because_of(error as &(dyn Error + 'static));
        match error {
            VolumeError::NoSnapshot(_) => failure.hint("`godwit volume list` shows them"),
            VolumeError::Elsewhere { .. } => {
                failure.hint("do it there; or, where that node will not write to it any more, `--take` it")
            }
            VolumeError::Diverged { .. } => failure.hint(DIVERGED),
            VolumeError::InUse { users, .. } => users
                .iter()
                .fold(failure, |failure, user| failure.because(user.to_string()))
                .hint("stop what uses it; `godwit volume restore` makes another directory of the snapshot meanwhile"),
            VolumeError::Fixed { .. } => {
                failure.hint("`godwit volume restore` makes another directory of the snapshot, to be copied from")
            }
            _ => failure,
        }
    }
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Removed => "removed",
        Change::Changed => "changed",
        Change::Described => "described",
    }
}

/// A snapshot that was just taken, and what it needed.
fn line(taken: &Taken) -> Value {
    let (mut line, added) = (shown(&taken.snapshot), &taken.added);
    line["message_type"] = "volume_snapshot".into();
    line["entries"] = added.entries.into();
    line["file_bytes"] = added.file_bytes.into();
    line["read_bytes"] = added.read_bytes.into();
    line["written_bytes"] = added.written_bytes.into();
    line
}

fn shown(snapshot: &Snapshot) -> Value {
    let position = snapshot.position.as_ref();
    json!({
        "id": snapshot.id, "volume": snapshot.volume, "path": snapshot.path, "host": snapshot.host,
        "made_unix_us": snapshot.made_unix_us, "stash": snapshot.cause == Cause::Stash, "note": snapshot.note,
        "stood_us": snapshot.stood_us, "shown_by": snapshot.shown_by, "manifest": snapshot.manifest.to_string(), "tree": snapshot.tree.to_string(),
        "generation": position.map(|position| position.generation), "lineage": position.map(|position| position.lineage.to_string()),
        "kept_by": snapshot.kept.as_ref().map(|kept| &kept.by), "kept_at": snapshot.kept.as_ref().map(|kept| &kept.at),
        "parent": position.and_then(|position| position.parent.as_deref()),
    })
}
