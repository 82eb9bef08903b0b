//! `godwit log`.

use super::Trouble;
use super::journals::{Told, event_words, find, show_time};
use crate::args::{Args, LogArgs};
use crate::draw::{Draw, table};
use godwit_migration::{Failure, FailureKind};

pub fn run(args: &Args, command: &LogArgs, draw: &Draw) -> Result<u8, Trouble> {
    let found = find(&args.global.root, &command.migration)?;
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
