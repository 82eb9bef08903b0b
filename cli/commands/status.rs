//! `godwit status`.

use super::Trouble;
use super::journals::{Found, Told, all, find, show_age};
use crate::args::{Args, StatusArgs};
use crate::draw::{Draw, table};
use godwit_migration::quantity::show_duration;
use serde_json::{Value, json};
use std::path::Path;

pub fn run(args: &Args, command: &StatusArgs, draw: &Draw) -> Result<u8, Trouble> {
    let root = &args.global.root;
    for told in super::limits::put_back(root, None) {
        draw.talk(&told);
    }
    let mut found = match &command.migration {
        Some(text) => vec![find(root, text)?],
        None => all(root)?,
    };
    // what people look for is what happened last
    found.reverse();
    let (rows, documents): (Vec<_>, Vec<_>) = found.iter().map(|found| describe(root, found)).unzip();
    if draw.is_json() {
        draw.json_line(&json!({ "migrations": documents }));
    } else if rows.is_empty() {
        draw.talk(&format!("no migrations are known in `{}`", root.display()));
    } else {
        let header = ["MIGRATION", "ROLE", "CONTAINER", "PEER", "STATE", "WHEN", "DOWNTIME"]
            .map(String::from)
            .to_vec();
        let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
        draw.data(table(&rows).trim_end());
    }
    Ok(0)
}

/// A row of the table, and the same as JSON.
fn describe(root: &Path, found: &Found) -> (Vec<String>, Value) {
    let dash = || "–".to_owned();
    let nothing = |words: String, damaged: bool| {
        let row = vec![found.id.clone(), dash(), dash(), dash(), words.clone(), dash(), dash()];
        (row, json!({ "migration": found.id, "damaged": damaged, "text": words }))
    };
    let (lines, state) = match found.read() {
        Ok(read) => read,
        Err(error) => return nothing(format!("damaged: {error}"), true),
    };
    let Some(told) = Told::of(root, &lines, state) else {
        return nothing("ended before its first line".into(), false);
    };
    let row = vec![
        found.id.clone(),
        told.role.to_string(),
        told.container.to_owned(),
        told.peer.to_owned(),
        told.words(),
        show_age(told.last_unix_us),
        told.downtime.map_or_else(dash, show_duration),
    ];
    let document = json!({
        "migration": found.id,
        "damaged": false,
        "role": told.role,
        "container": told.container,
        "peer": told.peer,
        "state": told.state,
        "under_way": told.under_way,
        "text": told.words(),
        "begun_unix_us": told.begun_unix_us,
        "last_unix_us": told.last_unix_us,
        "downtime_us": told.downtime.map(|downtime| downtime.as_micros() as u64),
    });
    (row, document)
}
