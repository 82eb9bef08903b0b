//! What stays at the source: `godwit migrate --layer skip`, `--skip-volume` and `--keep-source`.

use crate::args::{LayerArg, MigrateArgs};
use godwit_checkpoint::Parting;
use godwit_engine::{Facts, Tree};
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::TreeKind;
use std::path::{Path, PathBuf};

/// What was asked for, of a container that was looked at.
///
/// # Errors
/// When it has no such volume or layer, or its engine keeps no containers that do not run.
pub fn of(command: &MigrateArgs, facts: &Facts) -> Result<Parting, Failure> {
    let wrong = |message: String| Failure::new(FailureKind::Usage, message);
    if command.keep_source && facts.engine == "pid" {
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
        skipped.push(volume(wanted, facts)?);
    }
    Ok(Parting { keep: command.keep_source, skipped })
}

/// The place of a volume that was named by its path or its name.
fn volume(wanted: &str, facts: &Facts) -> Result<PathBuf, Failure> {
    let wrong = |message: String| Failure::new(FailureKind::Usage, message);
    // podman: `…/volumes/NAME/_data`
    let is_it = |tree: &&Tree| {
        tree.path == Path::new(wanted)
            || (!wanted.contains('/') && tree.path.ends_with(Path::new(wanted).join("_data")))
    };
    let mut volumes = facts.trees.iter().filter(|tree| tree.kind == TreeKind::Volume);
    match volumes.clone().find(is_it) {
        Some(tree) if tree.single_file => Err(wrong(format!("`{wanted}` is a file, not a directory"))
            .hint(format!("`--no-copy {wanted}` if it is at the destination already"))),
        Some(tree) => Ok(tree.path.clone()),
        None => {
            let paths: Vec<String> =
                volumes.by_ref().map(|tree| format!("`{}`", tree.path.display())).collect();
            let has =
                if paths.is_empty() { "it has none".into() } else { format!("it has {}", paths.join(", ")) };
            Err(wrong(format!("the container has no volume `{wanted}`")).hint(has))
        }
    }
}
