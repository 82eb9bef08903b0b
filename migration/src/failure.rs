//! How a migration can fail, and the one question that matters then: where is the container?

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where the container is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// Nothing was touched; it runs, or does not, as before.
    Untouched,
    /// It runs at the source; whatever was begun has been undone.
    RunningAtSource,
    /// It runs at the destination.
    RunningAtDestination,
    /// It is frozen at the source and may be running at the destination: a person must look.
    InDoubt,
    /// There is no such container.
    NoContainer,
}

/// The kinds of failure that a caller tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Something broke on the way, and was rolled back.
    Failed,
    /// The link broke before the commit, which may be better the next time; everything was rolled back.
    LinkLost,
    /// The container's memory outgrew the room for it at the destination, which can keep more the next time; everything was
    /// rolled back.
    Outgrown,
    /// The command line or the configuration cannot be right.
    Usage,
    /// It is done, but something remains to be cleaned up.
    Leftovers,
    /// No such container, checkpoint or migration.
    NotFound,
    /// Another migration of this container is under way.
    Locked,
    /// The destination said no.
    Refused,
    /// Something is missing on this host: CRIU, a kernel feature, a privilege; or the container cannot be moved.
    Missing,
    /// The downtime limit could not be met.
    NotConverged,
    /// Nobody can say for sure on which side the container runs.
    InDoubt,
    /// The user pressed Ctrl-C.
    Interrupted,
}

impl FailureKind {
    /// The process exit code: each one answers "where is my container?".
    pub fn exit_code(self) -> u8 {
        match self {
            FailureKind::Failed | FailureKind::LinkLost | FailureKind::Outgrown => 1,
            FailureKind::Usage => 2,
            FailureKind::Leftovers => 3,
            FailureKind::NotFound => 10,
            FailureKind::Locked => 11,
            FailureKind::Refused => 12,
            FailureKind::Missing => 13,
            FailureKind::NotConverged => 14,
            FailureKind::InDoubt => 20,
            FailureKind::Interrupted => 130,
        }
    }
}

/// What failed, why, what to do next, and where the container is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind: decides the exit code.
    pub kind: FailureKind,
    /// What failed: lower case, no full stop.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do next.
    pub hints: Vec<String>,
    /// Where the container is now.
    pub disposition: Disposition,
}

impl Failure {
    /// A failure that touched nothing, unless [`Failure::at`] says otherwise.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let disposition = match kind {
            FailureKind::NotFound => Disposition::NoContainer,
            FailureKind::InDoubt => Disposition::InDoubt,
            _ => Disposition::Untouched,
        };
        Self { kind, message: message.into(), causes: Vec::new(), hints: Vec::new(), disposition }
    }

    /// Adds a reason.
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Adds an error with all of its sources as reasons.
    pub fn because_of(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Says where the container is now.
    pub fn at(mut self, disposition: Disposition) -> Self {
        self.disposition = disposition;
        self
    }
}

impl fmt::Display for Failure {
    /// One line: the message and its causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_promise() {
        let codes = [
            (FailureKind::Failed, 1),
            (FailureKind::Usage, 2),
            (FailureKind::Leftovers, 3),
            (FailureKind::NotFound, 10),
            (FailureKind::Locked, 11),
            (FailureKind::Refused, 12),
            (FailureKind::Missing, 13),
            (FailureKind::NotConverged, 14),
            (FailureKind::InDoubt, 20),
            (FailureKind::Interrupted, 130),
        ];
        for (kind, code) in codes {
            assert_eq!(kind.exit_code(), code, "{kind:?}");
        }
    }

    #[test]
    fn causes_are_kept_in_order() {
        let io = std::io::Error::other("disk on fire");
        let failure = Failure::new(FailureKind::Failed, "could not dump `web`").because_of(&io).hint("look");
        assert_eq!(failure.to_string(), "could not dump `web`: disk on fire");
        assert_eq!(failure.disposition, Disposition::Untouched);
    }
}
