//! `godwit checkpoint --parent`: an earlier checkpoint that a new one shares content with.

use crate::args::CheckpointArgs;
use godwit_checkpoint::archive;
use godwit_checkpoint::chain::Chain;
use godwit_checkpoint::sealed::is_sealed;
use godwit_engine::Facts;
use godwit_migration::{Failure, FailureKind};
use std::path::Path;

/// The parent that was asked for, which is whole; `to` is the checkpoint that is to be written.
///
/// # Errors
/// When it is none, is not whole, or cannot be one.
pub fn of(command: &CheckpointArgs, to: &Path) -> Result<Option<Chain>, Failure> {
    let Some(dir) = &command.parent else { return Ok(None) };
    let shown = dir.display();
    let wrong = |message: String| Failure::new(FailureKind::Usage, message);
    if !command.recipients.is_empty() {
        return Err(wrong("an encrypted checkpoint shares nothing with another one".into())
            .because(format!("what it shared would lie in `{shown}` for everybody to read"))
            .hint("leave `--parent` or `--recipient` out"));
    }
    if is_sealed(dir).unwrap_or(false) {
        return Err(wrong(format!("`{shown}` is encrypted, and cannot be a parent"))
            .hint("leave `--parent` out: a whole checkpoint can be encrypted, too"));
    }
    let place = std::path::absolute(to).unwrap_or_else(|_| to.to_owned());
    let is_inside =
        |dir: &Path| Some(place.parent()?.canonicalize().ok()?.starts_with(dir.canonicalize().ok()?));
    if is_inside(dir) == Some(true) {
        return Err(wrong(format!("`{}` would lie in its parent, and alter it", to.display()))
            .hint("name a place beside it"));
    }
    let opened = archive::verify(dir).and_then(|_| Chain::open(dir));
    opened.map(Some).map_err(|error| {
        Failure::new(FailureKind::NotFound, format!("`{shown}` cannot be the parent of a checkpoint"))
            .because_of(&error)
            .hint(error.hint())
    })
}

/// Whether a checkpoint is of the container that another one is to be made of.
///
/// # Errors
/// When it is another one's.
pub fn is_of(parent: &Chain, facts: &Facts) -> Result<(), Failure> {
    let (engine, name) = parent.container();
    if (engine, name) == (facts.engine, &facts.name) {
        return Ok(());
    }
    let message = format!("`{}` is a checkpoint of `{engine}:{name}`", parent.dir().display());
    Err(Failure::new(FailureKind::Usage, message)
        .hint(format!("name one of `{}:{}`, or leave `--parent` out", facts.engine, facts.name)))
}
