//! Checkpoints that this host's store keeps are let go of.

use crate::args::{Args, ImagesForgetArgs, Location};
use crate::commands::keep::judge;
use crate::commands::kept::{self, Kept};
use crate::commands::store;
use crate::commands::volume::policy;
use crate::draw::{Draw, table};
use godwit_migration::{Failure, FailureKind};
use godwit_store::{Store, StoreError, store_of};
use godwit_volumes::Reason;
use serde_json::{Value, json};
use std::path::Path;

pub fn forget(args: &Args, wanted: &ImagesForgetArgs, draw: &Draw) -> Result<u8, Failure> {
    let policy = policy(&wanted.keep);
    if policy.is_empty() == wanted.container.is_some() {
        let message = "`--container` and one of `--keep-…` belong together";
        return Err(Failure::new(FailureKind::Usage, message)
            .hint("nothing is forgotten by a policy that keeps nothing: name the checkpoints"));
    }
    if wanted.expire.is_some() {
        let message = "`--expire` is for the images of a place";
        return Err(Failure::new(FailureKind::Usage, message).hint("use `--keep-…` with `--container`"));
    }
    let root = &args.global.root;
    let failed = |error: StoreError| store::failure("not all of them are forgotten", &error, &store_of(root));
    let store = kept::store_here(root)?;
    let judged = match (&wanted.container, &store) {
        (Some(container), Some(store)) => judge(store, container, &policy).map_err(failed)?,
        (Some(_), None) => Vec::new(),
        (None, store) => named(store.as_ref(), root, &wanted.images)?,
    };
    let (stay, go): (Vec<_>, Vec<_>) = judged.into_iter().partition(|(_, why)| !why.is_empty());
    if let (false, Some(store)) = (wanted.gc.dry_run, &store) {
        go.iter().try_for_each(|(kept, _)| store.unpin(&kept::pin(&kept.id)?)).map_err(failed)?;
    }
    say(&stay, &go, wanted.gc.dry_run, draw);
    Ok(0)
}

/// Those that were named, none of which stays.
fn named(
    store: Option<&Store>,
    root: &Path,
    images: &[Location],
) -> Result<Vec<(Kept, Vec<Reason>)>, Failure> {
    let one = |image: &Location| match image {
        Location::Store(Some(text)) => Ok((kept::find(store, root, text)?, Vec::new())),
        other => Err(Failure::new(FailureKind::Usage, format!("`{other}` is no checkpoint of the store"))
            .hint("name one: `store:ID`; `godwit images ls store` shows them")),
    };
    images.iter().map(one).collect()
}

fn say(stay: &[(Kept, Vec<Reason>)], go: &[(Kept, Vec<Reason>)], dry_run: bool, draw: &Draw) {
    let why = |why: &[Reason]| why.iter().map(ToString::to_string).collect::<Vec<_>>();
    if draw.is_json() {
        let kept: Vec<Value> =
            stay.iter().map(|(kept, reasons)| json!({ "id": kept.id, "reasons": why(reasons) })).collect();
        let gone: Vec<&str> = go.iter().map(|(kept, _)| kept.id.as_str()).collect();
        draw.json_line(&json!({
            "message_type": "images_forgotten", "dry_run": dry_run, "forgotten": gone, "kept": kept,
        }));
        return;
    }
    let does = if dry_run { "would go" } else { "gone" };
    let name = |kept: &Kept| format!("store:{}", kept.id);
    let mut rows: Vec<Vec<String>> = stay
        .iter()
        .map(|(kept, reasons)| vec![name(kept), format!("stays: {}", why(reasons).join(", "))])
        .collect();
    rows.extend(go.iter().map(|(kept, _)| vec![name(kept), does.to_owned()]));
    if rows.is_empty() {
        draw.talk("there are no checkpoints of it");
    } else {
        draw.data(table(&rows).trim_end());
    }
    if !go.is_empty() && !dry_run {
        draw.talk("`godwit store gc` makes room now; else it is made when it is needed");
    }
}
