//! Hooks, looked at before anything is touched.

use crate::args::{Choice, HookArgs, PauseArgs};
use godwit_hooks::program;
use godwit_migration::hooks::{Hooks, Target};
use godwit_migration::{Failure, FailureKind};
use std::collections::BTreeMap;

/// All of them, if the programs among them may be run as root.
///
/// # Errors
/// All that may not.
pub fn checked(hooks: Hooks) -> Result<Hooks, Failure> {
    let errors: Vec<_> =
        hooks.all_programs().into_iter().filter_map(|path| program::check(path).err()).collect();
    if errors.is_empty() {
        return Ok(hooks);
    }
    let failure = Failure::new(FailureKind::Usage, "a hook cannot be run")
        .hint("a hook is a file that root owns and may execute; nobody else may write to it, or to a directory above it");
    Err(errors.into_iter().fold(failure, Failure::because))
}

/// Adds what the container's labels or annotations say where the command line says nothing. These may be those of an image
/// that anybody has made: a URL is called from inside of the container, which could call it itself; a program is not run.
///
/// # Errors
/// When one of them cannot be called.
pub fn with_labels(
    mut hooks: Hooks,
    args: &HookArgs,
    labels: &BTreeMap<String, String>,
) -> Result<Hooks, Failure> {
    hooks.shutdown = of_label(labels, "shutdown-hook", &args.shutdown_hook, hooks.shutdown)?;
    with_pause_labels(hooks, &args.pause, labels)
}

/// The same of those around a freeze.
///
/// # Errors
/// As [`with_labels`].
pub fn with_pause_labels(
    mut hooks: Hooks,
    args: &PauseArgs,
    labels: &BTreeMap<String, String>,
) -> Result<Hooks, Failure> {
    hooks.quiesce = of_label(labels, "quiesce-hook", &args.quiesce_hook, hooks.quiesce)?;
    hooks.resume = of_label(labels, "resume-hook", &args.resume_hook, hooks.resume)?;
    Ok(hooks)
}

fn of_label(
    labels: &BTreeMap<String, String>,
    name: &str,
    chosen: &Option<Choice>,
    given: Option<Target>,
) -> Result<Option<Target>, Failure> {
    let label = format!("godwit.{name}");
    let Some(text) = labels.get(&label).filter(|_| chosen.is_none()) else { return Ok(given) };
    let cannot = |why: String| {
        Failure::new(FailureKind::Usage, format!("the container's label `{label}` cannot be followed"))
            .because(why)
            .hint(format!("mend it, or add `--{name}` with another one or `none`"))
    };
    match text.parse::<Target>() {
        Ok(Target::Url(url)) => Ok(Some(Target::Url(url))),
        Ok(Target::Program(path)) => {
            let why = "it names a program of this host, and whoever made the image may have written it";
            let allow = format!("`--{name} {}` runs it", path.display());
            Err(cannot(why.into()).hint(allow))
        }
        Err(error) => Err(cannot(error.to_string())),
    }
}
