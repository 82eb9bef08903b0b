//! What stays at the source: `godwit migrate --layer skip`, `--skip-volume`, `--volume` and `--keep-source`.

use crate::args::{LayerArg, MigrateArgs};
use godwit_checkpoint::Parting;
use godwit_engine::{Facts, Tree};
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::TreeKind;
use std::path::{Path, PathBuf};

/// The engine of bare processes.
const PID: &str = "pid";

/// What was asked for, of a container that was looked at.
///
/// # Errors
/// When it has no such volume or layer, or its engine keeps no containers that do not run.
pub fn of(command: &MigrateArgs, facts: &Facts) -> Result<Parting, Failure> {
    let wrong = |message: String| Failure::new(FailureKind::Usage, message);
    if command.keep_source && facts.engine == PID {
        return Err(
            wrong("processes that have ended cannot be kept".into()).hint("leave `--keep-source` out")
        );
    }
    let mut skipped = Vec::new();
    if command.layer == LayerArg::Skip {
        let layer = facts.trees.iter().find(|tree| tree.kind == TreeKind::Layer);
        let layer = layer.ok_or_else(|| {
            wrong(format!(
                "a container of {} has no layer: its root file system is a directory",
                facts.engine
            ))
            .hint("`--no-copy PATH` if that directory is at the destination already")
        })?;
        skipped.push(layer.path.clone());
    }
    for wanted in &command.skip_volumes {
        let tree = volume(wanted, facts)?;
        if tree.single_file {
            return Err(wrong(format!("`{wanted}` is a file, not a directory"))
                .hint(format!("`--no-copy {wanted}` if it is at the destination already")));
        }
        skipped.push(tree.path.clone());
    }
    if is_selection(command, facts) {
        skipped.extend(others(command, facts, &skipped)?);
    }
    Ok(Parting { keep: command.keep_source, skipped })
}

/// Whether `--volume` says which of the volumes move: an engine knows what its container has, and of bare processes nobody does.
fn is_selection(command: &MigrateArgs, facts: &Facts) -> bool {
    facts.engine != PID && !command.volumes.is_empty()
}

/// Directories to take along that no engine knows of.
pub fn more_trees(command: &MigrateArgs, engine: &str) -> Vec<PathBuf> {
    match engine {
        PID => command.volumes.iter().map(PathBuf::from).collect(),
        _ => Vec::new(),
    }
}

/// The volumes that were not named. Single files are given to a container like its configuration: they move.
fn others(command: &MigrateArgs, facts: &Facts, skipped: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut chosen = Vec::new();
    for wanted in &command.volumes {
        let path = &volume(wanted, facts)?.path;
        if skipped.contains(path) {
            let message = format!("the volume `{wanted}` shall move, and stay");
            return Err(Failure::new(FailureKind::Usage, message)
                .hint("with `--volume` all others stay: leave `--skip-volume` out"));
        }
        chosen.push(path);
    }
    let volumes = facts.trees.iter().filter(|tree| tree.kind == TreeKind::Volume && !tree.single_file);
    let others = volumes.filter(|tree| !chosen.contains(&&tree.path) && !skipped.contains(&tree.path));
    Ok(others.map(|tree| tree.path.clone()).collect())
}

/// A volume that was named by its path or its name.
fn volume<'a>(wanted: &str, facts: &'a Facts) -> Result<&'a Tree, Failure> {
    // podman: `…/volumes/NAME/_data`
    let is_it = |tree: &&Tree| {
        tree.path == Path::new(wanted)
            || (!wanted.contains('/') && tree.path.ends_with(Path::new(wanted).join("_data")))
    };
    let volumes = facts.trees.iter().filter(|tree| tree.kind == TreeKind::Volume);
    volumes.clone().find(is_it).ok_or_else(|| {
        let paths: Vec<String> = volumes.map(|tree| format!("`{}`", tree.path.display())).collect();
        let has =
            if paths.is_empty() { "it has none".into() } else { format!("it has {}", paths.join(", ")) };
        Failure::new(FailureKind::Usage, format!("the container has no volume `{wanted}`")).hint(has)
    })
}
