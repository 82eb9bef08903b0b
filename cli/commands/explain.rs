//! `godwit explain`: what a log of CRIU's, or of the runtime above it, means.

use super::Trouble;
use crate::args::ExplainArgs;
use crate::draw::Draw;
use godwit_criu::log::{Explanation, explain};
use godwit_migration::{Failure, FailureKind};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// More than this of a log is not read, bytes: what matters is told long before.
const MAX_LOG: u64 = 256 << 20;

pub fn run(command: &ExplainArgs, draw: &Draw) -> Result<u8, Trouble> {
    for log in &command.logs {
        let explanation = explain(&read(log)?);
        if draw.is_json() {
            draw.json_line(&document(log, &explanation));
        } else {
            if command.logs.len() > 1 {
                draw.data(&format!("{}:", log.display()));
            }
            draw.data(&words(&explanation));
        }
    }
    Ok(0)
}

/// A log's text; `-` is standard input. What is no UTF-8 in it (names of files may be anything) is replaced.
fn read(log: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let result = match log.to_str() {
        Some("-") => std::io::stdin().lock().take(MAX_LOG).read_to_end(&mut bytes),
        _ => File::open(log).and_then(|file| file.take(MAX_LOG).read_to_end(&mut bytes)),
    };
    match result {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(Failure::new(FailureKind::Usage, format!("cannot read `{}`", log.display()))
            .because_of(&error)
            .hint(
                "the logs of a migration are in /var/lib/godwit/migrations/ID/work; `-` reads standard input",
            )),
    }
}

/// For people.
fn words(explanation: &Explanation) -> String {
    let mut lines = Vec::new();
    match &explanation.hint {
        Some(hint) => {
            lines.push(format!("cause: {}", explanation.cause));
            if !explanation.place.is_empty() {
                let places: Vec<String> =
                    explanation.place.iter().map(|(name, value)| format!("{name} {value}")).collect();
                lines.push(format!("where: {}", places.join(", ")));
            }
            lines.push(format!("mend:  {hint}"));
        }
        None if explanation.cause.is_empty() => {
            lines.push("no error is in this log; its last lines are".into());
            lines.extend(explanation.last_lines.iter().map(|line| format!("  {line}")));
        }
        None => {
            lines.push("the cause is not one that godwit knows; the errors in this log are".into());
            lines.extend(explanation.last_lines.iter().map(|line| format!("  {line}")));
        }
    }
    lines.join("\n")
}

/// For programs.
fn document(log: &Path, explanation: &Explanation) -> serde_json::Value {
    let place: BTreeMap<_, _> = explanation.place.iter().map(|(name, value)| (name, value)).collect();
    json!({
        "log": log,
        "known": explanation.hint.is_some(),
        "about": explanation.about,
        "cause": (!explanation.cause.is_empty()).then_some(&explanation.cause),
        "where": place,
        "mend": explanation.hint,
        "lines": explanation.last_lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_unknown_and_successful_logs_are_told_apart() {
        let known = explain("(00.1) 7: Error (criu/files-reg.c:2): File a/b has bad size 1 (expect 2)\n");
        let told = words(&known);
        assert!(told.starts_with("cause: a file differs"), "{told}");
        assert!(told.contains("\nwhere: file a/b, pid 7\nmend:  "), "{told}");
        let line = document(Path::new("x"), &known);
        assert_eq!((&line["known"], &line["where"]["file"]), (&json!(true), &json!("a/b")), "{line}");

        let unknown =
            explain("(00.1) Error (criu/x.c:1): something odd\n(00.2) Error (criu/y.c:1): Dumping FAILED.\n");
        let told = words(&unknown);
        assert!(told.contains("not one that godwit knows") && told.contains("\n  something odd\n"), "{told}");
        assert_eq!(document(Path::new("x"), &unknown)["known"], false);

        let fine = words(&explain("(00.1) Dumping finished successfully\n"));
        assert!(
            fine.starts_with("no error") && fine.ends_with("  (00.1) Dumping finished successfully"),
            "{fine}"
        );
    }
}
