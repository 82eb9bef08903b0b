//! `godwit images ls` on what this host's store keeps.

use crate::args::Args;
use crate::commands::kept::{self, Kept};
use crate::commands::store;
use godwit_migration::Failure;
use godwit_migration::quantity::show_bytes;
use godwit_store::{Store, store_of};
use serde_json::{Value, json};

/// All of them, or the one that `text` means, newest first: rows of the table, and the same as JSON.
///
/// # Errors
/// When they cannot be listed, or there is no such one.
pub fn lines(args: &Args, text: Option<&str>) -> Result<Vec<(Vec<String>, Value)>, Failure> {
    let root = &args.global.root;
    let here = kept::store_here(root)?;
    let failed = |error| store::failure("the checkpoints cannot be listed", &error, &store_of(root));
    let found = match (&here, text) {
        (store, Some(text)) => vec![kept::find(store.as_ref(), root, text)?],
        (Some(store), None) => kept::list(store).map_err(failed)?,
        (None, None) => Vec::new(),
    };
    Ok(here.iter().flat_map(|store| found.iter().map(move |kept| line(store, kept))).collect())
}

fn line(store: &Store, kept: &Kept) -> (Vec<String>, Value) {
    let dash = || "–".to_owned();
    let bytes = kept.bytes(store);
    let path = format!("store:{}", kept.id);
    let row = vec![
        path.clone(),
        "godwit".to_owned(),
        kept.container.clone(),
        super::when(kept.made_unix_s),
        dash(),
        bytes.map_or_else(dash, show_bytes),
    ];
    let document = json!({
        "path": path, "encrypted": false, "writer": "godwit", "container": kept.container,
        "made_unix_s": kept.made_unix_s, "bytes": bytes, "manifest": kept.manifest.to_string(),
    });
    (row, document)
}
