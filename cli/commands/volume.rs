//! `godwit volume`: the past of volumes.

mod follow;
mod places;
mod replicate;
mod still;

use super::Trouble;
use super::store;
use crate::args::{Args, KeepArgs, VolumeCommand, VolumeForgetArgs, VolumeSnapshotArgs};
use crate::draw::{Draw, table};
use godwit_migration::calendar::show_time;
use godwit_migration::quantity::{show_bytes, show_duration};
use godwit_migration::{Failure, FailureKind};
use godwit_store::store_of;
use godwit_volumes::difference::{Change, difference};
use godwit_volumes::{Cause, History, Policy, Snapshot, Taken, Volume, VolumeError};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use still::Containers;

/// Lines of differences that people get to see; JSON has all.
const LINES: usize = 1000;

pub fn run(args: &Args, command: &VolumeCommand, draw: &Draw) -> Result<u8, Trouble> {
    let root = std::path::absolute(&args.global.root).unwrap_or(args.global.root.clone());
    let past = Past { root, bar: store::bar(args) };
    let done = match command {
        VolumeCommand::Snapshot(snapshot) => past.snapshot(snapshot, draw),
        VolumeCommand::Follow(follow) => past.follow(follow, draw),
        VolumeCommand::Replicate(replicate) => past.replicate(replicate, draw),
        VolumeCommand::List { volume } => past.list(volume.as_deref(), draw),
        VolumeCommand::Diff { before, after } => past.diff(before, after.as_deref(), draw),
        VolumeCommand::Restore { snapshot, path } => past.restore(snapshot, path, draw),
        VolumeCommand::Rollback { snapshot } => past.rollback(snapshot, draw),
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
        let note = wanted.note.as_deref();
        let taken = match &mut containers {
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
        draw.talk(&format!(
            "{} in {} entries; the store needed {} for it",
            show_bytes(added.file_bytes),
            added.entries,
            show_bytes(added.written_bytes)
        ));
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

    fn list(&self, volume: Option<&str>, draw: &Draw) -> Result<u8, Failure> {
        let failed = |error: VolumeError| self.failure("the snapshots cannot be read", &error);
        let history = History::find_in(&self.root).map_err(failed)?;
        let name = volume.map(Self::name);
        let listed = history.map(|history| history.list(name.as_deref())).transpose().map_err(failed)?;
        let listed = listed.unwrap_or_default();
        if draw.is_json() {
            let all: Vec<Value> = listed.iter().map(shown).collect();
            draw.json_line(&json!({ "message_type": "volume_snapshots", "snapshots": all }));
            return Ok(0);
        }
        if listed.is_empty() {
            draw.talk("there are no snapshots");
            return Ok(0);
        }
        let mut rows =
            vec![["SNAPSHOT", "VOLUME", "MADE (UTC)", "CAUSE", "NOTE"].map(str::to_owned).to_vec()];
        rows.extend(listed.iter().map(|snapshot| {
            vec![
                snapshot.id.clone(),
                snapshot.volume.clone(),
                show_time(snapshot.made_unix_us),
                snapshot.cause.to_string(),
                snapshot.note.clone().unwrap_or_default(),
            ]
        }));
        draw.data(table(&rows).trim_end());
        Ok(0)
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

    fn rollback(&self, text: &str, draw: &Draw) -> Result<u8, Failure> {
        let (history, snapshot) = self.find(text)?;
        let what = format!("`{}` is as it was", snapshot.volume);
        let done = history
            .roll_back(&snapshot, &mut self.progress())
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

    /// Lets go of what a policy does not keep, if there is any policy; the names.
    fn apply(history: &History, volume: &str, policy: &Policy) -> Result<Vec<String>, VolumeError> {
        let mut gone = Vec::new();
        if policy.is_empty() {
            return Ok(gone);
        }
        for (snapshot, _) in history.judge(volume, policy)?.into_iter().filter(|(_, why)| why.is_empty()) {
            history.forget(&snapshot)?;
            gone.push(snapshot.id);
        }
        Ok(gone)
    }

    fn forget(&self, wanted: &VolumeForgetArgs, draw: &Draw) -> Result<u8, Failure> {
        let policy = policy(&wanted.keep);
        if policy.is_empty() == wanted.volume.is_some() {
            let message = "`--volume` and one of `--keep-…` belong together";
            return Err(Failure::new(FailureKind::Usage, message)
                .hint("nothing is forgotten by a policy that keeps nothing: name the snapshots"));
        }
        let failed = |error: VolumeError| self.failure("not all of them are forgotten", &error);
        let (history, judged) = match &wanted.volume {
            Some(volume) => {
                let history = self.existing(volume)?;
                let judged = history.judge(&Self::name(volume), &policy).map_err(failed)?;
                (history, judged)
            }
            None => {
                let history = self.existing(&wanted.snapshots[0])?;
                let named = wanted.snapshots.iter().map(|text| Ok((history.find(text)?, vec![])));
                let named = named.collect::<Result<Vec<_>, VolumeError>>().map_err(failed)?;
                (history, named)
            }
        };
        let (stay, go): (Vec<_>, Vec<_>) = judged.into_iter().partition(|(_, why)| !why.is_empty());
        if !wanted.dry_run {
            go.iter().try_for_each(|(snapshot, _)| history.forget(snapshot)).map_err(failed)?;
        }
        let why = |why: &[godwit_volumes::Reason]| why.iter().map(ToString::to_string).collect::<Vec<_>>();
        if draw.is_json() {
            let kept: Vec<Value> = stay
                .iter()
                .map(|(snapshot, reasons)| json!({ "id": snapshot.id, "reasons": why(reasons) }))
                .collect();
            let gone: Vec<&str> = go.iter().map(|(snapshot, _)| snapshot.id.as_str()).collect();
            draw.json_line(&json!({
                "message_type": "volume_forgotten", "dry_run": wanted.dry_run, "forgotten": gone, "kept": kept,
            }));
            return Ok(0);
        }
        let does = if wanted.dry_run { "would go" } else { "gone" };
        let mut rows: Vec<Vec<String>> = stay
            .iter()
            .map(|(snapshot, reasons)| {
                vec![snapshot.id.clone(), format!("stays: {}", why(reasons).join(", "))]
            })
            .collect();
        rows.extend(go.iter().map(|(snapshot, _)| vec![snapshot.id.clone(), does.to_owned()]));
        if rows.is_empty() {
            draw.talk("there are no snapshots of it");
        } else {
            draw.data(table(&rows).trim_end());
        }
        if !go.is_empty() && !wanted.dry_run {
            draw.talk("`godwit store gc` makes room now; else it is made when it is needed");
        }
        Ok(0)
    }

    fn failure(&self, what: &str, error: &VolumeError) -> Failure {
        let kind = match error {
            VolumeError::Store(error) => return store::failure(what, error, &store_of(&self.root)),
            VolumeError::NoSnapshot(_) | VolumeError::NoVolume { .. } => FailureKind::NotFound,
            VolumeError::Ambiguous { .. } => FailureKind::Usage,
            VolumeError::InUse { .. } | VolumeError::Locked(_) => FailureKind::Locked,
            VolumeError::Fixed { .. } => FailureKind::Missing,
            VolumeError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                FailureKind::Missing
            }
            VolumeError::Io { .. } | VolumeError::Tree(_) | VolumeError::Moment(_) => FailureKind::Failed,
        };
        let failure = Failure::new(kind, what).because_of(error as &(dyn Error + 'static));
        match error {
            VolumeError::NoSnapshot(_) => failure.hint("`godwit volume list` shows them"),
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

fn policy(keep: &KeepArgs) -> Policy {
    Policy {
        last: keep.keep_last,
        hourly: keep.keep_hourly,
        daily: keep.keep_daily,
        weekly: keep.keep_weekly,
        monthly: keep.keep_monthly,
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
    json!({
        "id": snapshot.id, "volume": snapshot.volume, "path": snapshot.path, "host": snapshot.host,
        "made_unix_us": snapshot.made_unix_us, "stash": snapshot.cause == Cause::Stash, "note": snapshot.note,
        "stood_us": snapshot.stood_us, "shown_by": snapshot.shown_by, "manifest": snapshot.manifest.to_string(), "tree": snapshot.tree.to_string(),
    })
}
