//! `godwit store`: what is in the content store, and whether it is whole.

use super::Trouble;
use crate::args::{Args, Progress, StoreAddArgs, StoreCommand, StoreGetArgs};
use crate::draw::{Draw, table};
use godwit_checkpoint::inspect::{self, Contents};
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Failure, FailureKind};
use godwit_store::{Added, Checked, Digest, Goal, Lease, PinName, Store, StoreError, store_of};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// Lines of what was found that people get to see; JSON has all.
const LINES: usize = 40;

pub fn run(args: &Args, command: &StoreCommand, draw: &Draw) -> Result<u8, Trouble> {
    let root = store_of(&args.global.root);
    let root = std::path::absolute(&root).unwrap_or(root);
    let place = Place { root, bar: bar(args) };
    let done = match command {
        StoreCommand::Check { repair } => place.check(*repair, draw),
        StoreCommand::Gc { dry_run } => place.collect(*dry_run, draw),
        StoreCommand::Stats => place.stats(draw),
        StoreCommand::Add(add) => place.add(add, draw),
        StoreCommand::Get(get) => place.get(get, draw),
        StoreCommand::Unpin { pin } => place.unpin(pin, draw),
    };
    place.bar.finish_and_clear();
    Ok(done?)
}

/// A line that is redrawn, when somebody looks.
pub(super) fn bar(args: &Args) -> ProgressBar {
    let global = &args.global;
    let lively = global.progress == Progress::Auto && !global.quiet && !global.json && global.verbose == 0;
    let lively = lively && io::stderr().is_terminal();
    let target = if lively { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    if let Ok(style) = ProgressStyle::with_template("{prefix:<14} {bar:20} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Where the store is, or would be.
struct Place {
    root: PathBuf,
    bar: ProgressBar,
}

impl Place {
    fn find(&self) -> Result<Option<Store>, Failure> {
        Store::find(&self.root, None).map_err(|error| self.failure("the store cannot be opened", &error))
    }

    /// For what can only be done with one.
    fn existing(&self) -> Result<Store, Failure> {
        let none =
            || Failure::new(FailureKind::NotFound, format!("there is no store at `{}`", self.root.display()));
        self.find()?.ok_or_else(|| none().hint("`godwit store add PATH` makes one"))
    }

    /// For what there is nothing to do without one.
    fn nothing(&self, draw: &Draw) -> u8 {
        if draw.is_json() {
            draw.json_line(&json!({ "message_type": "store", "path": self.root, "exists": false }));
        } else {
            draw.talk(&format!("there is no store at `{}`", self.root.display()));
        }
        0
    }

    fn check(&self, repair: bool, draw: &Draw) -> Result<u8, Failure> {
        let Some(store) = self.find()? else { return Ok(self.nothing(draw)) };
        self.bar.set_prefix("Checking");
        let checked = store.check(repair, &mut |done, total| {
            self.bar.set_length(total);
            self.bar.set_position(done);
            self.bar.set_message(format!("{done} of {total} chunks"));
        });
        let checked = checked.map_err(|error| self.failure("the store could not be checked", &error))?;
        self.bar.finish_and_clear();
        let lines = findings(&checked);
        if draw.is_json() {
            let damaged: Vec<_> = checked
                .damaged
                .iter()
                .map(|(id, why)| json!({ "object": id.to_string(), "reason": why }))
                .collect();
            let incomplete: Vec<_> = checked
                .incomplete
                .iter()
                .map(|(digest, count)| json!({ "manifest": digest.to_string(), "missing": count }))
                .collect();
            draw.json_line(&json!({
                "message_type": "store_checked", "whole": checked.is_whole(), "repaired": checked.repaired && !checked.is_whole(),
                "objects": checked.objects, "bytes": checked.bytes, "damaged": damaged, "incomplete": incomplete,
                "broken_pins": checked.broken_pins, "strangers": checked.strangers,
            }));
        }
        for stranger in &checked.strangers {
            draw.talk(&format!("warning: `{}` is nothing that a store has", stranger.display()));
        }
        if checked.is_whole() {
            let (objects, bytes) = (checked.objects, show_bytes(checked.bytes));
            draw.data(&format!("the store is whole: {objects} objects, {bytes}, were read and verified"));
            return Ok(0);
        }
        if repair {
            lines.iter().take(LINES).for_each(|line| draw.talk(line));
            draw.data("what is left of the store is whole");
            return Ok(FailureKind::Leftovers.exit_code());
        }
        let failure = Failure::new(FailureKind::Failed, "the store is damaged");
        Err(lines
            .into_iter()
            .take(LINES)
            .fold(failure, Failure::because)
            .hint("put the same content there again, or let `godwit store check --repair` take away what lacks something; no container needs it"))
    }

    fn collect(&self, dry_run: bool, draw: &Draw) -> Result<u8, Failure> {
        let Some(store) = self.find()? else { return Ok(self.nothing(draw)) };
        let collected = store.collect(Goal::All, dry_run);
        let collected = collected.map_err(|error| self.failure("nothing was collected", &error))?;
        if draw.is_json() {
            draw.json_line(&json!({
                "message_type": "store_collected", "dry_run": dry_run, "manifests": collected.manifests, "chunks": collected.chunks,
                "bytes": collected.bytes, "dead_leases": collected.dead_leases, "kept_objects": collected.kept,
                "kept_bytes": collected.kept_bytes,
            }));
        } else {
            draw.data(&format!(
                "{} {}: {} manifests and {} chunks; {} stay",
                show_bytes(collected.bytes),
                if dry_run { "would go" } else { "are gone" },
                collected.manifests,
                collected.chunks,
                show_bytes(collected.kept_bytes)
            ));
        }
        Ok(0)
    }

    fn stats(&self, draw: &Draw) -> Result<u8, Failure> {
        let Some(store) = self.find()? else { return Ok(self.nothing(draw)) };
        let all = || Ok((store.stats()?, store.pins()?, store.collect(Goal::All, true)?));
        let (stats, pins, unneeded) =
            all().map_err(|error| self.failure("the store cannot be counted", &error))?;
        let bytes = stats.chunk_bytes + stats.manifest_bytes;
        if draw.is_json() {
            let pins: Vec<_> = pins
                .iter()
                .map(|pin| json!({ "pin": pin.name.to_string(), "manifest": pin.manifest.to_string() }))
                .collect();
            draw.json_line(&json!({
                "message_type": "store", "path": self.root, "exists": true, "chunks": stats.chunks, "chunk_bytes": stats.chunk_bytes,
                "manifests": stats.manifests, "manifest_bytes": stats.manifest_bytes, "file_bytes": stats.file_bytes,
                "unneeded_bytes": unneeded.bytes, "damaged_bytes": stats.damaged_bytes, "unfinished_bytes": stats.unfinished_bytes,
                "leases": stats.leases, "pins": pins,
            }));
            return Ok(0);
        }
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        let rows = [
            row("chunks", format!("{}, {}", stats.chunks, show_bytes(stats.chunk_bytes))),
            row("manifests", format!("{}, {}", stats.manifests, show_bytes(stats.manifest_bytes))),
            row("on disk", show_bytes(bytes)),
            row("as files", show_bytes(stats.file_bytes)),
            row("unneeded", show_bytes(unneeded.bytes)),
            row("damaged", show_bytes(stats.damaged_bytes)),
            row("in use by", format!("{} processes", stats.leases)),
        ];
        draw.data(table(&rows).trim_end());
        if !pins.is_empty() {
            let mut rows = vec![vec!["PIN".to_owned(), "MANIFEST".to_owned()]];
            rows.extend(pins.iter().map(|pin| vec![pin.name.to_string(), pin.manifest.to_string()]));
            draw.data(&format!("\n{}", table(&rows).trim_end()));
        }
        Ok(0)
    }

    fn add(&self, add: &StoreAddArgs, draw: &Draw) -> Result<u8, Failure> {
        let shown = add.path.display();
        let what = format!("`{shown}` could not be put into the store");
        if add.image {
            let mut lease = Store::open(&self.root, add.quota)
                .and_then(|store| store.lease())
                .map_err(|error| self.failure(&what, &error))?;
            let image = self.unpack(&add.path, &lease)?;
            let put = self.put(&mut lease, &image, None, add);
            return Ok(self.say_added(add, false, put.map_err(|error| self.failure(&what, &error))?, draw));
        }
        let path = add.path.canonicalize().map_err(|error| {
            Failure::new(FailureKind::NotFound, format!("cannot read `{shown}`")).because_of(&error)
        })?;
        if self.root.starts_with(&path) || path.starts_with(&self.root) {
            return Err(Failure::new(
                FailureKind::Usage,
                format!("`{shown}` and the store lie in each other"),
            ));
        }
        let facts = if path.is_dir() && inspect::is_one(&path) {
            let contents = inspect::inspect(&path);
            Some(contents.as_ref().map(facts).unwrap_or_default())
        } else {
            None
        };
        let is_checkpoint = facts.is_some();
        let added = Store::open(&self.root, add.quota)
            .and_then(|store| self.put(&mut store.lease()?, &path, facts, add))
            .map_err(|error| self.failure(&what, &error))?;
        Ok(self.say_added(add, is_checkpoint, added, draw))
    }

    /// Writes an engine's image into a directory of the lease's.
    fn unpack(&self, image: &Path, lease: &Lease) -> Result<PathBuf, Failure> {
        let text = image.to_string_lossy();
        let usage = |why: String| {
            Failure::new(FailureKind::Usage, why).hint("an image is `podman:NAME` or `docker:NAME`")
        };
        let (kind, name) =
            text.split_once(':').ok_or_else(|| usage(format!("`{text}` is no image of an engine")))?;
        let engine = godwit_engine::all().into_iter().find(|engine| engine.kind() == kind);
        let engine = engine.ok_or_else(|| usage(format!("there is no engine `{kind}`")))?;
        let failed = |error: &(dyn Error + 'static)| {
            Failure::new(FailureKind::NotFound, format!("the image `{text}` cannot be had")).because_of(error)
        };
        let dir = lease.workplace().map_err(|error| failed(&error))?;
        self.bar.set_prefix("Unpacking");
        engine.write_image(name, &dir).map_err(|error| failed(&error))?;
        Ok(dir)
    }

    fn put(
        &self,
        lease: &mut Lease,
        path: &Path,
        checkpoint: Option<BTreeMap<String, String>>,
        add: &StoreAddArgs,
    ) -> Result<Added, StoreError> {
        self.bar.set_prefix("Adding");
        let mut progress = |read| self.bar.set_message(show_bytes(read));
        let added = match checkpoint {
            Some(facts) => lease.add_checkpoint(path, facts, &mut progress)?,
            None => lease.add_tree(path, &mut progress)?,
        };
        add.pin.iter().try_for_each(|pin| lease.pin(pin, added.manifest))?;
        Ok(added)
    }

    fn say_added(&self, add: &StoreAddArgs, is_checkpoint: bool, added: Added, draw: &Draw) -> u8 {
        self.bar.finish_and_clear();
        if draw.is_json() {
            draw.json_line(&json!({
                "message_type": "store_added", "manifest": added.manifest.to_string(), "checkpoint": is_checkpoint,
                "pin": add.pin.as_ref().map(ToString::to_string), "entries": added.entries, "file_bytes": added.file_bytes,
                "read_bytes": added.read_bytes, "written_bytes": added.written_bytes,
            }));
        } else {
            draw.data(&added.manifest.to_string());
        }
        let kept = match &add.pin {
            Some(pin) => format!("kept as `{pin}`"),
            None => "kept until room is needed".into(),
        };
        draw.talk(&format!(
            "{} in {} entries; the store needed {} for it; {kept}",
            show_bytes(added.file_bytes),
            added.entries,
            show_bytes(added.written_bytes)
        ));
        0
    }

    fn get(&self, get: &StoreGetArgs, draw: &Draw) -> Result<u8, Failure> {
        let store = self.existing()?;
        let what = format!("`{}` could not be made", get.path.display());
        let manifest = self.manifest(&store, &get.manifest)?;
        self.bar.set_prefix("Making");
        let made = store.lease().and_then(|mut lease| {
            lease.materialise(manifest, &get.path, &mut |done, total| {
                self.bar.set_length(total);
                self.bar.set_position(done);
                self.bar.set_message(format!("{} of {}", show_bytes(done), show_bytes(total)));
            })
        });
        let tree = made.map_err(|error| self.failure(&what, &error))?;
        self.bar.finish_and_clear();
        let (entries, bytes) = (tree.entries.len(), tree.file_bytes());
        if draw.is_json() {
            draw.json_line(&json!({
                "message_type": "store_got", "manifest": manifest.to_string(), "path": get.path, "entries": entries, "file_bytes": bytes,
            }));
        } else {
            draw.talk(&format!(
                "`{}`: {} in {entries} entries, verified",
                get.path.display(),
                show_bytes(bytes)
            ));
        }
        Ok(0)
    }

    /// By its digest, or by a pin.
    fn manifest(&self, store: &Store, text: &str) -> Result<Digest, Failure> {
        if let Ok(digest) = text.parse() {
            return Ok(digest);
        }
        let pin: PinName = text.parse().map_err(|_| {
            Failure::new(
                FailureKind::Usage,
                format!("`{text}` is neither the digest of a manifest nor a pin"),
            )
            .hint("`godwit store stats` shows the pins")
        })?;
        let found = store.pin(&pin).map_err(|error| self.failure("the pin cannot be read", &error))?;
        found.ok_or_else(|| self.failure("nothing to make it of", &StoreError::NoPin(pin.to_string())))
    }

    fn unpin(&self, pin: &PinName, draw: &Draw) -> Result<u8, Failure> {
        let unpinned = self.existing()?.unpin(pin);
        unpinned.map_err(|error| self.failure("nothing was let go of", &error))?;
        draw.talk(&format!("`{pin}` keeps nothing more"));
        Ok(0)
    }

    fn failure(&self, what: &str, error: &StoreError) -> Failure {
        failure(what, error, &self.root)
    }
}

/// What to tell of it; the store is at `root`.
pub(super) fn failure(what: &str, error: &StoreError, root: &Path) -> Failure {
    let kind = match error {
        StoreError::Missing(_) | StoreError::NoPin(_) | StoreError::Damaged { .. } => FailureKind::NotFound,
        StoreError::Format { .. } | StoreError::NotEmpty(_) | StoreError::PinName(_) => FailureKind::Usage,
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            FailureKind::Missing
        }
        _ => FailureKind::Failed,
    };
    let hint = match error {
        StoreError::Full { .. } => {
            "`godwit store unpin` lets go of something, or give it more with `--quota`".into()
        }
        StoreError::LostPin { .. } => {
            "`godwit store check --repair` takes pins away that keep nothing whole".into()
        }
        StoreError::Format { .. } => {
            format!("move `{}` away: godwit makes another one, and no container needs it", root.display())
        }
        StoreError::Missing(_) | StoreError::Damaged { .. } => {
            "put the same content there again; `godwit store check` says what else is missing".into()
        }
        StoreError::NotEmpty(_) => "name a directory that is not there yet".into(),
        StoreError::NoPin(_) => "`godwit store stats` shows the pins".into(),
        StoreError::Changed { .. } => "begin again when nobody writes to it".into(),
        _ => String::new(),
    };
    let failure = Failure::new(kind, what).because_of(error as &(dyn Error + 'static));
    if hint.is_empty() { failure } else { failure.hint(hint) }
}

/// What is known of a checkpoint, to be kept beside it.
pub(super) fn facts(contents: &Contents) -> BTreeMap<String, String> {
    let engine = contents.engine.as_ref().zip(contents.name.as_ref());
    let facts = [
        ("container", engine.map(|(engine, name)| format!("{engine}:{name}"))),
        ("image", contents.image.clone()),
        ("image_id", contents.image_id.clone()),
        ("host", contents.host.clone()),
        ("made_unix_s", contents.made_unix_s.map(|at| at.to_string())),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// One line for each thing that is not as it should be.
fn findings(checked: &Checked) -> Vec<String> {
    let damaged = checked.damaged.iter().map(|(id, why)| format!("{id}: {why}"));
    let incomplete = checked
        .incomplete
        .iter()
        .map(|(digest, count)| format!("manifest {digest} lacks {count} of what it needs"));
    let pins = checked.broken_pins.iter().map(|pin| format!("the pin `{pin}` keeps what is not whole"));
    pins.chain(damaged).chain(incomplete).collect()
}
