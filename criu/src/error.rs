//! What can go wrong when CRIU is asked for something.

use std::path::PathBuf;
use std::time::Duration;

use crate::images::ImageError;
use crate::log::Explanation;

/// A failed conversation with CRIU.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// No criu executable where it was looked for.
    #[error("criu not found in {searched}: install it, or name it in `GODWIT_CRIU`")]
    NotFound {
        /// The places that were tried.
        searched: String,
    },

    /// The criu executable could not be started.
    #[error("cannot start `{path}`: {source}")]
    Spawn {
        /// The executable.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// CRIU answered that it failed.
    #[error("criu {operation} failed{}: {explanation}{}", errno_text(*.errno), log_text(.log.as_ref()))]
    Failed {
        /// `dump`, `restore`, ...
        operation: &'static str,
        /// `cr_errno` of the answer (an errno value), if it gave one.
        errno: Option<i32>,
        /// What the log says.
        explanation: Box<Explanation>,
        /// The log, kept for the user.
        log: Option<PathBuf>,
    },

    /// CRIU closed its socket without an answer: it died.
    #[error("criu {operation} crashed or was killed (look at dmesg): {explanation}{}", log_text(.log.as_ref()))]
    Crashed {
        /// `dump`, `restore`, ...
        operation: &'static str,
        /// What the log says.
        explanation: Box<Explanation>,
        /// The log, kept for the user.
        log: Option<PathBuf>,
    },

    /// CRIU was killed by somebody, or it died without a guardian, while it worked on tasks that may not run. They are frozen now.
    #[error("criu {operation} was killed, and {}{}", held_text(*.held), log_text(.log.as_ref()))]
    Killed {
        /// `dump`, `restore`, ...
        operation: &'static str,
        /// Whether its guardian has held the tasks; else they were frozen again when it was noticed.
        held: bool,
        /// What the log says.
        explanation: Box<Explanation>,
        /// The log, kept for the user.
        log: Option<PathBuf>,
    },

    /// CRIU did not answer in time. The session's socket was shut, CRIU was not killed.
    #[error("criu {operation} gave no answer within {} ms{}", .after.as_millis(), log_text(.log.as_ref()))]
    Timeout {
        /// `dump`, `restore`, ...
        operation: &'static str,
        /// How long was waited.
        after: Duration,
        /// The log, kept for the user.
        log: Option<PathBuf>,
    },

    /// The answer makes no sense.
    #[error("criu {operation}: unexpected answer: {detail}")]
    Protocol {
        /// `dump`, `restore`, ...
        operation: &'static str,
        /// What was wrong with it.
        detail: String,
    },

    /// The binary does not do what was asked on this host.
    #[error("criu cannot work on this host: {reason}")]
    Unusable {
        /// What `criu check` said.
        reason: String,
    },

    /// A system call or file operation around CRIU failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },

    /// An image file could not be read or written.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl CriuError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| CriuError::Io { what, source }
    }

    /// The explanation of CRIU's log, where there is one.
    pub fn explanation(&self) -> Option<&Explanation> {
        match self {
            CriuError::Failed { explanation, .. }
            | CriuError::Crashed { explanation, .. }
            | CriuError::Killed { explanation, .. } => Some(explanation),
            _ => None,
        }
    }
}

fn errno_text(errno: Option<i32>) -> String {
    match errno {
        Some(n) if n != 0 => format!(" ({})", std::io::Error::from_raw_os_error(n)),
        _ => String::new(),
    }
}

fn held_text(held: bool) -> &'static str {
    match held {
        true => "its tasks were frozen before they could run",
        false => "nothing held its tasks: they have run for a moment",
    }
}

fn log_text(log: Option<&PathBuf>) -> String {
    log.map(|p| format!(" (log: `{}`)", p.display())).unwrap_or_default()
}
