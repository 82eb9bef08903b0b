//! `godwit checkpoint --to store`: the checkpoint is written below `outbox/` in godwit's directory, and this host's store keeps it from
//! there. It is whole in the one or the other; the same command again goes on with what waits.

use super::checkpoint::{self, Checkpoint};
use super::earlier::settle_earlier;
use super::kept::{self, Kept};
use super::outbox::{self, Outbox};
use super::volume::policy;
use super::{Trouble, store};
use crate::args::{Args, CheckpointArgs};
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_store::{Added, Store, StoreError, store_of};
use godwit_volumes::{Policy, Reason};
use serde_json::json;
use std::path::Path;

pub fn run(args: &Args, command: &CheckpointArgs, draw: &Draw, cancel: &Cancel) -> Result<u8, Trouble> {
    let about = |failure| Trouble::about(failure, &command.container, None);
    refuse(command).map_err(about)?;
    let root = std::path::absolute(&args.global.root).unwrap_or_else(|_| args.global.root.clone());
    settle_earlier(&root, &command.container, &mut |text| draw.talk(&text))?;
    let outbox = Outbox::open(&root, command).map_err(about)?;
    // what is no store is said before the container is touched
    let place = store_of(&root);
    let opened = Store::open(&place, command.quota);
    let store = opened.map_err(|error| about(store::failure("nothing can be kept", &error, &place)))?;
    let made = match outbox.waiting() {
        Some(_) => None,
        None => {
            outbox.clear().map_err(about)?;
            let path = outbox.make().map_err(about)?;
            Some(checkpoint::write(args, command, &path, draw, cancel)?)
        }
    };
    let Some(path) = outbox.waiting() else {
        let message = "the checkpoint that was written is not there any more";
        return Err(about(Failure::new(FailureKind::Failed, message)));
    };
    let put = put(args, &store, &path);
    let (kept, added) =
        put.map_err(|error| about(not_kept(command, &path, made.as_ref(), &error, &place)))?;
    if let Err(failure) = outbox.clear() {
        draw.talk(&format!("warning: {failure}"));
    }
    let gone = apply(&store, &kept.container, &policy(&command.keep));
    say(command, made.as_ref(), &kept, &added, gone.as_deref().unwrap_or_default(), draw);
    gone.map_err(|error| {
        let failure = store::failure("not all that the policy does not keep are forgotten", &error, &place);
        about(failure.at(outbox::now(command, made.as_ref())))
    })?;
    Ok(made.map_or(0, |checkpoint| checkpoint.exit_code()))
}

/// What cannot go together.
fn refuse(command: &CheckpointArgs) -> Result<(), Failure> {
    let wrong = |message: &str| Err(Failure::new(FailureKind::Usage, message));
    if command.parent.is_some() {
        return wrong("a checkpoint in the store has no parent")
            .map_err(|failure| failure.hint("leave `--parent` out: what the store has is not stored again"));
    }
    if !command.recipients.is_empty() {
        return wrong("the store keeps no encrypted checkpoints").map_err(|failure| {
            failure.hint("nothing of one is like another: name a file, or a place in object storage")
        });
    }
    Ok(())
}

/// Puts the checkpoint at `path` into the store, under a name of its own: the same one however often that is tried.
fn put(args: &Args, store: &Store, path: &Path) -> Result<(Kept, Added), StoreError> {
    let bar = store::bar(args);
    bar.set_prefix("Adding");
    let mut lease = store.lease()?;
    let added = outbox::add(&mut lease, path, &mut |read| bar.set_message(show_bytes(read)));
    bar.finish_and_clear();
    let added = added?;
    let unfit = || StoreError::Unfit(format!("`{}` does not say whose checkpoint it is", path.display()));
    let container =
        store.described(added.manifest)?.and_then(|described| described.facts.get("container").cloned());
    let id = kept::id(&container.ok_or_else(unfit)?, outbox::written_unix_us(path)?);
    lease.pin(&kept::pin(&id)?, added.manifest)?;
    let kept = kept::list(store)?.into_iter().find(|kept| kept.id == id);
    Ok((kept.ok_or_else(unfit)?, added))
}

/// It is written, and not kept.
fn not_kept(
    command: &CheckpointArgs,
    path: &Path,
    made: Option<&Checkpoint>,
    error: &StoreError,
    place: &Path,
) -> Failure {
    let what = format!("the checkpoint of `{}` is not in the store", command.container);
    let failure = store::failure(&what, error, place).hint(format!(
        "it is whole in `{0}`: the same command again puts it there; `godwit restore {0}` brings it back",
        path.display()
    ));
    failure.at(outbox::now(command, made))
}

/// Why each checkpoint of a container stays by a policy, the newest first; those without a reason would go. What somebody has named by
/// hand is not the policy's.
///
/// # Errors
/// When they cannot be listed.
pub fn judge(
    store: &Store,
    container: &str,
    policy: &Policy,
) -> Result<Vec<(Kept, Vec<Reason>)>, StoreError> {
    let mut all = kept::list(store)?;
    all.retain(|kept| kept.container == container && !kept.is_named_by_hand());
    let times: Vec<u64> = all.iter().map(|kept| kept.made_unix_s).collect();
    Ok(all.into_iter().zip(policy.reasons(&times)).collect())
}

/// Lets go of what a policy does not keep, if there is any policy; the names.
fn apply(store: &Store, container: &str, policy: &Policy) -> Result<Vec<String>, StoreError> {
    let mut gone = Vec::new();
    if policy.is_empty() {
        return Ok(gone);
    }
    for (kept, _) in judge(store, container, policy)?.into_iter().filter(|(_, why)| why.is_empty()) {
        store.unpin(&kept::pin(&kept.id)?)?;
        gone.push(kept.id);
    }
    Ok(gone)
}

fn say(
    command: &CheckpointArgs,
    made: Option<&Checkpoint>,
    kept: &Kept,
    added: &Added,
    gone: &[String],
    draw: &Draw,
) {
    if draw.is_json() {
        draw.json_line(&json!({
            "message_type": "checkpoint_kept", "container": kept.container, "id": kept.id,
            "manifest": kept.manifest.to_string(), "made_unix_s": kept.made_unix_s, "file_bytes": added.file_bytes,
            "written_bytes": added.written_bytes, "waited": made.is_none(), "forgotten": gone,
        }));
    }
    if let Some(made) = made {
        checkpoint::tell(command, made, draw);
    }
    draw.talk(&format!(
        "`store:{}`: {}, for which the store needed {}",
        kept.id,
        show_bytes(added.file_bytes),
        show_bytes(added.written_bytes)
    ));
    if made.is_none() {
        draw.talk("this was one that waited; the container was not looked at");
    }
    for id in gone {
        draw.talk(&format!("`store:{id}` is forgotten, as the policy says"));
    }
}
