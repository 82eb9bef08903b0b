//! What people and programs get to read: tables and sentences, or JSON.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::args::{Color, Global};
use crate::commands::Trouble;
use godwit_migration::failure::Disposition;
use godwit_migration::quantity::{show_bytes, show_duration, show_rate};
use godwit_migration::report::{MemoryReport, Summary};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Writes data to standard output and talk to standard error.
pub struct Draw {
    json: bool,
    quiet: bool,
    color: bool,
}

impl Draw {
    /// As the flags say.
    pub fn new(global: &Global) -> Self {
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal(),
        };
        Self { json: global.json, quiet: global.quiet, color }
    }

    /// Whether the user wants JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A sentence for people, on standard error.
    pub fn talk(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Data for people, on standard output; nothing with `--json`.
    pub fn data(&self, text: &str) {
        if !self.json {
            // a reader that has left is no reason to fail
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// One JSON object on standard output.
    pub fn json_line(&self, value: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(value) {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// An error, its causes, its hints, and where the container is.
    pub fn failure(&self, trouble: &Trouble) {
        let failure = &trouble.failure;
        if self.json {
            let line = serde_json::json!({
                "message_type": "exit_error",
                "code": failure.kind.exit_code(),
                "disposition": failure.disposition,
                "message": failure.message,
                "causes": failure.causes,
                "hints": failure.hints,
            });
            self.json_line(&line);
            return;
        }
        let (red, plain) = if self.color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        eprintln!("{red}error:{plain} {}", failure.message);
        for cause in &failure.causes {
            eprintln!("  Caused by: {cause}");
        }
        if !failure.hints.is_empty() {
            eprintln!();
        }
        for hint in &failure.hints {
            eprintln!("hint: {hint}");
        }
        if let Some(sentence) = trouble.whereabouts() {
            eprintln!("{sentence}");
        }
    }

    /// Rounds, downtime, one sentence.
    pub fn summary(&self, summary: &Summary) {
        if self.json {
            let mut line = serde_json::to_value(summary).unwrap_or_default();
            if let Some(object) = line.as_object_mut() {
                object.insert("message_type".into(), "summary".into());
            }
            self.json_line(&line);
            return;
        }
        self.data("");
        self.data(&rounds_table(summary));
        self.data(&downtime_table(summary));
        if let Some(memory) = &summary.memory {
            self.data(&memory_lines(memory, summary.downtime_total));
        }
        if let Some(throttle) = &summary.throttle {
            self.data(&format!(
                "THROTTLED up to {} % of its CPU time were taken, for {}\n",
                throttle.most_percent,
                show_duration(throttle.duration)
            ));
        }
        let place = match summary.disposition {
            Disposition::RunningAtDestination => format!("on {}", summary.destination),
            _ => "here".into(),
        };
        self.data(&format!(
            "{} is running {place} (pid {}). Migration {} took {}.",
            summary.container,
            summary.pid,
            summary.migration,
            show_duration(summary.duration)
        ));
        for leftover in &summary.leftovers {
            self.talk(&format!("warning: left over here: {leftover}"));
        }
    }
}

impl Draw {
    /// What is to be said of several containers that have moved together, after each of them.
    pub fn together(&self, summaries: &[Summary]) {
        let Some(longest) = summaries.iter().map(|summary| summary.downtime_total).max() else { return };
        if self.json {
            let containers: Vec<&str> = summaries.iter().map(|summary| summary.container.as_str()).collect();
            self.json_line(&serde_json::json!({
                "message_type": "together", "containers": containers, "downtime_us": longest.as_micros() as u64 }));
            return;
        }
        self.data(&format!(
            "All {} have moved together; none stood still for longer than {}.",
            summaries.len(),
            show_duration(longest)
        ));
    }
}

fn rounds_table(summary: &Summary) -> String {
    let header =
        ["ROUND", "MEMORY", "FILES", "ON WIRE", "TIME", "STOOD STILL", "DIRTY RATE", "EXPECTED DOWNTIME"]
            .map(String::from);
    let mut rows = vec![header.to_vec()];
    let dash = || "–".to_owned();
    for round in &summary.rounds {
        rows.push(vec![
            if round.last { "final".into() } else { format!("pre-copy {}", round.round) },
            show_bytes(round.memory_bytes),
            show_bytes(round.file_bytes),
            show_bytes(round.wire_bytes),
            show_duration(round.duration),
            if round.frozen.is_zero() { dash() } else { show_duration(round.frozen) },
            round.dirty_rate_bytes_per_s.map_or_else(dash, |rate| show_rate(rate as f64)),
            round.expected_downtime_us.map_or_else(dash, |us| show_duration(Duration::from_micros(us))),
        ]);
    }
    table(&rows)
}

fn downtime_table(summary: &Summary) -> String {
    let mut names = vec!["DOWNTIME".to_owned()];
    let mut values = vec![String::new()];
    for (name, part) in summary.downtime.parts() {
        // nobody asked for one
        if name == "hook" && part.is_zero() {
            continue;
        }
        names.push(name.into());
        values.push(show_duration(part));
    }
    names.push("total".into());
    let limit = show_duration(summary.max_downtime);
    let over = if summary.downtime_total > summary.max_downtime { ", missed" } else { "" };
    values.push(format!("{}  (limit {limit}{over})", show_duration(summary.downtime_total)));
    table(&[names, values])
}

/// How the memory travelled, and the prediction beside the result.
fn memory_lines(memory: &MemoryReport, downtime: Duration) -> String {
    let mut lines = vec![format!(
        "EXPECTED  {} right before the freeze; it took {}",
        show_duration(memory.expected_downtime),
        show_duration(downtime)
    )];
    lines.push(format!(
        "MEMORY    {} pages sent, {} zero, {} found there already, {} unchanged; dump: {}",
        memory.pages_sent, memory.pages_zero, memory.pages_shared, memory.pages_unchanged, memory.rung
    ));
    lines.extend(memory.fell.iter().map(|why| format!("          not {why}")));
    lines.push(match &memory.fill {
        Some(fill) => format!(
            "RESTORE   {}: {} pages filled within {}, {} of them on demand",
            memory.restoration,
            fill.pages,
            show_duration(fill.duration),
            fill.faults
        ),
        None => format!("RESTORE   {}{}", memory.restoration, in_brackets(&memory.restoration_why)),
    });
    lines.push(String::new());
    lines.join("\n")
}

fn in_brackets(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

/// Columns as wide as their widest cell, two spaces between.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count().min(*width)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_letters() {
        let rows = vec![
            vec!["A".into(), "B".into()],
            vec!["– ä".into(), "1".into()],
            vec!["xx".into(), "22".into()],
        ];
        assert_eq!(table(&rows), "A    B\n– ä  1\nxx   22\n");
    }
}
