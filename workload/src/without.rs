//! `without`: a command on a kernel that lacks something.

use crate::sys::filter::{Lack, take_away};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Runs what follows the names of what is to be missing, in place of this program.
pub fn run(words: impl Iterator<Item = String>) -> ExitCode {
    let Err(message) = replace(words);
    let _ = writeln!(std::io::stderr(), "godwit-workload: {message}");
    ExitCode::from(2)
}

fn replace(words: impl Iterator<Item = String>) -> Result<std::convert::Infallible, String> {
    let mut words = words.peekable();
    let mut lacks = Vec::new();
    while let Some(lack) = words.peek().and_then(|word| named(word)) {
        lacks.push(lack);
        words.next();
    }
    if lacks.is_empty() {
        return Err("without wants `pagemap-scan` or `userfaultfd`".into());
    }
    let program = words.next().ok_or("without wants a command")?;
    for lack in lacks {
        take_away(lack).map_err(|failure| failure.to_string())?;
    }
    let error = Command::new(&program).args(words).exec();
    Err(format!("`{program}` cannot be run: {error}"))
}

fn named(word: &str) -> Option<Lack> {
    match word {
        "pagemap-scan" => Some(Lack::PagemapScan),
        "userfaultfd" => Some(Lack::Userfaultfd),
        _ => None,
    }
}
