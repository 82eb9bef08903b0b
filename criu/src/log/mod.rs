//! What a CRIU log means: its first telling error, in the user's words.
//!
//! Lines look like `(00.012345) Error (criu/mount.c:1234): mnt: No mapping for ...`, with a task's pid before `Error` on
//! restore. The first error is the cause in most logs and the rest its consequences, except that some errors are printed in
//! logs of successes too: `rules::HARMLESS`.

mod context;
mod rules;

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use context::Context;
pub use rules::Subject;

/// Number of lines kept for the user.
const LAST_LINES: usize = 8;
/// How much of a log's end is read, bytes.
const MAX_LOG: u64 = 8 << 20;

/// Why CRIU failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// What failed; empty when the log tells nothing.
    pub cause: String,
    /// What to do about it, when it is a known failure.
    pub hint: Option<String>,
    /// Where, when it is a known failure: names (`pid`, `fd`, `file`, `mount`, `address`, …) and values.
    pub place: Vec<(&'static str, String)>,
    /// What it is about, when it is a known failure.
    pub about: Option<Subject>,
    /// The log's last errors, or its last lines when it has no errors.
    pub last_lines: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.cause.is_empty() { "no reason in its log" } else { &self.cause })?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl Explanation {
    /// Whether the processor lacks something.
    pub(crate) fn is_about_cpu(&self) -> bool {
        self.about == Some(Subject::Processor)
    }
}

/// Explains the text of a log.
pub fn explain(text: &str) -> Explanation {
    let mut errors = Vec::new();
    let mut known = None;
    let mut context = Context::default();
    for line in text.lines() {
        let Some(message) = message(line) else {
            context.learn(line);
            continue;
        };
        if rules::HARMLESS.iter().any(|harmless| message.contains(harmless)) {
            continue;
        }
        errors.push(message);
        if let Some(rule) = rules::find(message).filter(|_| known.is_none()) {
            let mut place: Vec<_> =
                rule.places(message).into_iter().map(|(name, value)| (name, value.to_owned())).collect();
            context.complete(line, &mut place);
            known = Some((rule, message, place));
        }
    }
    let last = |lines: &[&str]| {
        lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| (*line).to_owned()).collect()
    };
    match (known, errors.first()) {
        (Some((rule, message, place)), _) => Explanation {
            cause: format!("{}: `{message}`", rule.cause),
            hint: Some(rule.hint.to_owned()),
            place,
            about: Some(rule.subject),
            last_lines: last(&errors),
        },
        (None, Some(first)) => {
            Explanation { cause: format!("`{first}`"), last_lines: last(&errors), ..Explanation::default() }
        }
        (None, None) => {
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            Explanation { last_lines: last(&lines), ..Explanation::default() }
        }
    }
}

/// Keeps the log of an attempt before, as `NAME.1`, `NAME.2`, …: a later one writes its own.
///
/// # Errors
/// When it is there and cannot be renamed.
pub(crate) fn put_aside(log: &Path) -> std::io::Result<()> {
    let name = |number: u32| {
        let mut name = log.as_os_str().to_owned();
        name.push(format!(".{number}"));
        std::path::PathBuf::from(name)
    };
    let free = (1..=u32::MAX).map(name).find(|name| !name.exists());
    match free.map_or(Ok(()), |free| std::fs::rename(log, free)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Explains a log file; `message` is what CRIU's answer itself said, for when the log tells nothing or is not there.
pub fn explain_file(log: Option<&Path>, message: &str) -> Explanation {
    let text = log.and_then(|path| read_end(path).ok()).unwrap_or_default();
    let explanation = explain(&text);
    if explanation.cause.is_empty() && !message.trim().is_empty() {
        let mut from_message = explain(&format!("Error (answer): {}", message.trim()));
        from_message.last_lines = explanation.last_lines;
        return from_message;
    }
    explanation
}

fn read_end(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The message of an error line, of CRIU or of a container runtime.
fn message(line: &str) -> Option<&str> {
    let of_criu = line.split_once("Error (").and_then(|(_, after)| Some(after.split_once("): ")?.1));
    of_criu.or_else(|| of_runtime(line)).map(str::trim).filter(|message| !message.is_empty())
}

/// `time="…" level=error msg="…"` as runc's log has it, or what it and docker write to standard error.
fn of_runtime(line: &str) -> Option<&str> {
    if let Some((before, message)) = line.split_once("msg=\"") {
        return ["level=error", "level=fatal"]
            .iter()
            .any(|level| before.contains(level))
            .then(|| message.trim_end().trim_end_matches('"'));
    }
    let starts = ["criu failed: ", "Error response from daemon: ", "Error: ", "ERRO[0000] "];
    let start = starts.iter().find(|start| line.starts_with(**start))?;
    // the first one is a part of what is meant
    Some(if *start == starts[0] { line } else { line.strip_prefix(*start)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_known_error_is_the_cause() {
        let log = "(00.001) Running as root\n\
            (00.002) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
            (00.003) Error (criu/cr-dump.c:9): something odd\n\
            (00.004)      1: Error (criu/files-reg.c:2): File root/app.log has bad size 297 (expect 279)\n\
            (00.005) Error (criu/cr-restore.c:3): Restoring FAILED.\n";
        let explanation = explain(log);
        assert!(
            explanation.cause.ends_with("`File root/app.log has bad size 297 (expect 279)`"),
            "{explanation}"
        );
        assert!(explanation.hint.is_some());
        assert_eq!(
            explanation.last_lines,
            ["something odd", "File root/app.log has bad size 297 (expect 279)", "Restoring FAILED."]
        );
    }

    #[test]
    fn an_unknown_error_is_told_as_it_is() {
        let explanation = explain("(00.1) Error (criu/x.c:1): first\n(00.2) Error (criu/x.c:2): second\n");
        assert_eq!((explanation.cause.as_str(), explanation.hint), ("`first`", None));
    }

    #[test]
    fn without_errors_the_last_lines_are_kept() {
        let text: String = (0..20).map(|i| format!("(00.{i}) line {i}\n")).collect();
        let explanation = explain(&text);
        assert_eq!(explanation.to_string(), "no reason in its log");
        assert_eq!(explanation.last_lines.len(), LAST_LINES);
        assert_eq!(explanation.last_lines.last().unwrap(), "(00.19) line 19");
    }

    #[test]
    fn the_answers_message_serves_when_the_log_is_not_there() {
        let explanation =
            explain_file(Some(Path::new("/nonexistent/dump.log")), "Can't fork for 7: File exists");
        assert!(explanation.hint.unwrap().contains("pid"));
        assert_eq!(explain_file(None, "").cause, "");
    }

    #[test]
    fn the_log_of_an_attempt_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        put_aside(&log).unwrap();
        for attempt in ["first", "second"] {
            std::fs::write(&log, attempt).unwrap();
            put_aside(&log).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("dump.log.1"), read("dump.log.2"), log.exists()),
            ("first".into(), "second".into(), false)
        );
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC*|(Error \\(|\\): |\n|[a-z]){0,40}") {
            let _ = explain(&text);
        }
    }
}
