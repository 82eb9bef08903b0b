//! Why an engine cannot do what it was asked for.

use godwit_transfer::message::Refusal;
use std::path::PathBuf;

/// Why an engine cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It does not know the container.
    #[error("no container `{0}`")]
    NotFound(String),
    /// More than one engine knows the name.
    #[error("`{name}` is ambiguous: {}", .candidates.join(", "))]
    Ambiguous {
        /// What the user wrote.
        name: String,
        /// What it could mean.
        candidates: Vec<String>,
    },
    /// It knows the container, but it does not run.
    #[error("`{name}` is {status}, not running")]
    NotRunning {
        /// The container.
        name: String,
        /// What the engine calls its state.
        status: String,
    },
    /// The container cannot be moved as it is; all reasons at once.
    #[error("`{name}` cannot be moved as it is")]
    Blocked {
        /// The container.
        name: String,
        /// Why, each with advice.
        blockers: Vec<Refusal>,
    },
    /// A program is missing or failed.
    #[error("`{program}` {what}")]
    Tool {
        /// The program and its verb.
        program: String,
        /// What happened, with the last of what it said.
        what: String,
    },
    /// CRIU could not do it.
    #[error(transparent)]
    Criu(#[from] godwit_criu::CriuError),
    /// The network could not be read, made or changed.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// The freezer could not be read or changed.
    #[error(transparent)]
    Freezer(#[from] crate::freezer::FreezerError),
    /// A file could not be read or written.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file of the engine does not hold what it should.
    #[error("`{}` cannot be understood: {reason}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be given less CPU time.
    #[error("{0}")]
    NoCpuLimit(String),
    /// The restored tree is not held as it must be.
    #[error("the restored container is not held: {0}")]
    NotHeld(String),
    /// Somebody else has frozen it.
    #[error("the container stands still already, for somebody else")]
    StandsStill,
    /// The frozen tree is not as it was.
    #[error("the container did not stay frozen: {0}")]
    NotFrozen(String),
}

impl EngineError {
    /// For `map_err`: the failed act and its file.
    pub fn io(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> EngineError {
        let path = path.into();
        move |source| EngineError::Io { act, path, source }
    }
}
