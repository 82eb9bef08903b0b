//! `godwit log`.

use super::Trouble;
use super::bundle::pack;
use super::journals::{Told, event_words, find};
use crate::args::{Args, LogArgs};
use crate::draw::{Draw, table};
use godwit_migration::calendar::show_time;
use godwit_migration::{Failure, FailureKind};

pub fn run(args: &Args, command: &LogArgs, draw: &Draw) -> Result<u8, Trouble> {
    let found = find(&args.global.root, &command.migration)?;
    if let Some(file) = &command.bundle {
        let dir = found.path.parent().unwrap_or(&found.path);
        let names = pack(&found.id, dir, &args.global.root, file)?;
        if draw.is_json() {
            draw.json_line(&serde_json::json!({ "migration": found.id, "bundle": file, "files": names }));
        }
        draw.talk(&format!(
            "`{}` holds {}; read it before you give it away",
            file.display(),
            names.join(", ")
        ));
        return Ok(0);
    }
    let (lines, state) = found.read().map_err(|error| {
        Failure::new(FailureKind::Failed, format!("the journal of `{}` cannot be read", found.id))
            .because_of(&error)
            .hint(format!("look into `{}`: it is text, one line for each event", found.path.display()))
    })?;
    if draw.is_json() {
        lines.iter().for_each(|line| draw.json_line(line));
        return Ok(0);
    }
    let told = Told::of(&args.global.root, &lines, state);
    let role = told.as_ref().map_or_else(String::new, |told| told.role.to_string());
    let width = lines.len().to_string().len().max(2);
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let (event, details) = event_words(&line.event);
            vec![format!("{:>width$}", line.seq), show_time(line.unix_us), role.clone(), event, details]
        })
        .collect();
    draw.data(table(&rows).trim_end());
    match told {
        Some(told) => draw.talk(&format!("{} ({})", told.words(), found.id)),
        None => draw.talk(&format!("{} ended before its first line", found.id)),
    }
    Ok(0)
}
