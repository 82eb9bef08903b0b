//! Who wants to hear of a migration, when, and how long each is waited for: programs of the host, and the application itself.
//!
//! Programs are given by the user and run as root. An application is called by a URL, or by a program of the user's.

mod url;

pub use url::{HookUrl, InvalidUrl};

use crate::downtime::micros;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// When somebody is called, in the order in time; a rollback can come after any of those before the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// Programs: before the first round; the destination has made what can exist early.
    PreCopy,
    /// The application: the rounds are done. It is waited for until it says that it is ready.
    Shutdown,
    /// Programs: about to freeze.
    PreFreeze,
    /// The application: right before the freeze.
    Quiesce,
    /// Programs: every task is frozen. In the downtime.
    PostFreeze,
    /// Programs: it runs at the destination, nothing of it runs here.
    PostCommit,
    /// The application: it runs at the destination.
    Resume,
    /// Programs and the application: it runs here as before.
    Rollback,
}

impl Moment {
    /// Those that programs can be called at.
    pub const OF_PROGRAMS: [Moment; 5] =
        [Moment::PreCopy, Moment::PreFreeze, Moment::PostFreeze, Moment::PostCommit, Moment::Rollback];

    /// Its name on the command line, in `GODWIT_HOOK` and in the journal.
    pub fn name(self) -> &'static str {
        match self {
            Moment::PreCopy => "pre-copy",
            Moment::Shutdown => "shutdown",
            Moment::PreFreeze => "pre-freeze",
            Moment::Quiesce => "quiesce",
            Moment::PostFreeze => "post-freeze",
            Moment::PostCommit => "post-commit",
            Moment::Resume => "resume",
            Moment::Rollback => "rollback",
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A program of this host that runs at a moment: `--hook MOMENT=PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// When.
    pub at: Moment,
    /// Which: absolute.
    pub path: PathBuf,
}

/// Said when a text is no hook.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidHook {
    /// No known moment, or no path after it.
    #[error(
        "`{0}` is not MOMENT=PATH with one of pre-copy, pre-freeze, post-freeze, post-commit and rollback"
    )]
    Program(String),
    /// The path is relative.
    #[error("`{0}` is not an absolute path")]
    Relative(PathBuf),
    /// Neither a path nor a URL.
    #[error(transparent)]
    Url(#[from] InvalidUrl),
}

fn absolute(path: &str) -> Result<PathBuf, InvalidHook> {
    let path = Path::new(path);
    if path.is_absolute() { Ok(path.to_owned()) } else { Err(InvalidHook::Relative(path.to_owned())) }
}

impl FromStr for Program {
    type Err = InvalidHook;

    fn from_str(text: &str) -> Result<Self, InvalidHook> {
        let parts = text.split_once('=').filter(|(_, path)| !path.is_empty());
        let moment = |name: &str| Moment::OF_PROGRAMS.into_iter().find(|moment| moment.name() == name);
        let found = parts.and_then(|(name, path)| Some((moment(name)?, path)));
        let (at, path) = found.ok_or_else(|| InvalidHook::Program(text.into()))?;
        Ok(Self { at, path: absolute(path)? })
    }
}

/// How an application is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// By HTTP, from inside of its network namespace.
    Url(HookUrl),
    /// By a program of this host.
    Program(PathBuf),
}

impl FromStr for Target {
    type Err = InvalidHook;

    fn from_str(text: &str) -> Result<Self, InvalidHook> {
        if text.starts_with('/') { Ok(Self::Program(absolute(text)?)) } else { Ok(Self::Url(text.parse()?)) }
    }
}

impl TryFrom<String> for Target {
    type Error = InvalidHook;

    fn try_from(text: String) -> Result<Self, InvalidHook> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Url(url) => url.fmt(f),
            Target::Program(path) => path.display().fmt(f),
        }
    }
}

/// Everybody who is called during one migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hooks {
    /// Programs of this host, in the order in which they are called where there are several at a moment.
    #[serde(default)]
    pub programs: Vec<Program>,
    /// Time for all programs of a moment together, and for the application to take up work again.
    #[serde(rename = "timeout_us", with = "micros")]
    pub timeout: Duration,
    /// The same for those that run while the container stands still.
    #[serde(rename = "frozen_timeout_us", with = "micros")]
    pub frozen_timeout: Duration,
    /// Asks the application to get ready for a move, and waits for its word.
    #[serde(default)]
    pub shutdown: Option<Target>,
    /// Time for that.
    #[serde(rename = "shutdown_timeout_us", with = "micros")]
    pub shutdown_timeout: Duration,
    /// Where its word is waited for, in its own network namespace; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// Asks the application to stand still for a moment.
    #[serde(default)]
    pub quiesce: Option<Target>,
    /// Time for that.
    #[serde(rename = "quiesce_timeout_us", with = "micros")]
    pub quiesce_timeout: Duration,
    /// Tells the application that it goes on: at the destination, or here after a rollback.
    #[serde(default)]
    pub resume: Option<Target>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            programs: Vec::new(),
            timeout: Duration::from_secs(10),
            frozen_timeout: Duration::from_secs(1),
            shutdown: None,
            shutdown_timeout: Duration::from_secs(30),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            quiesce: None,
            quiesce_timeout: Duration::from_secs(1),
            resume: None,
        }
    }
}

impl Hooks {
    /// Whether nobody is called at all.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.shutdown.is_none() && self.quiesce.is_none() && self.resume.is_none()
    }

    /// The programs of one moment.
    pub fn programs_at(&self, moment: Moment) -> impl Iterator<Item = &Path> {
        self.programs.iter().filter(move |program| program.at == moment).map(|program| program.path.as_path())
    }

    /// How the application is called at a moment.
    pub fn target(&self, moment: Moment) -> Option<&Target> {
        match moment {
            Moment::Shutdown => self.shutdown.as_ref(),
            Moment::Quiesce => self.quiesce.as_ref(),
            Moment::Resume | Moment::Rollback => self.resume.as_ref(),
            _ => None,
        }
    }

    /// How long whoever is called at a moment may take.
    pub fn limit(&self, moment: Moment) -> Duration {
        match moment {
            Moment::Shutdown => self.shutdown_timeout,
            Moment::Quiesce => self.quiesce_timeout,
            Moment::PostFreeze => self.frozen_timeout,
            _ => self.timeout,
        }
    }

    /// All programs, the application's as well: to be looked at before anything is touched.
    pub fn all_programs(&self) -> BTreeSet<&Path> {
        let targets = [&self.shutdown, &self.quiesce, &self.resume].into_iter().flatten();
        let targets = targets.filter_map(|target| match target {
            Target::Program(path) => Some(path.as_path()),
            Target::Url(_) => None,
        });
        self.programs.iter().map(|program| program.path.as_path()).chain(targets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_has_a_moment_and_an_absolute_path() {
        let program: Program = "post-freeze=/usr/local/bin/x=y".parse().unwrap();
        assert_eq!(program, Program { at: Moment::PostFreeze, path: "/usr/local/bin/x=y".into() });
        for odd in ["pre-copy", "pre-copy=", "shutdown=/x", "before=/x", "=/x", "", "/x"] {
            assert!(matches!(odd.parse::<Program>(), Err(InvalidHook::Program(_))), "{odd}");
        }
        assert!(matches!("pre-copy=x".parse::<Program>(), Err(InvalidHook::Relative(_))));
    }

    #[test]
    fn an_application_is_called_by_a_path_or_a_url() {
        assert_eq!("/bin/x".parse(), Ok(Target::Program("/bin/x".into())));
        let url: Target = "http://127.0.0.1:80/x".parse().unwrap();
        assert!(matches!(url, Target::Url(_)));
        for odd in ["bin/x", "", "https://127.0.0.1/x", "file:///bin/x"] {
            assert!(odd.parse::<Target>().is_err(), "{odd}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let hooks = Hooks {
            programs: vec!["rollback=/bin/a".parse().unwrap()],
            shutdown: Some("http://127.0.0.1:8080/down".parse().unwrap()),
            resume: Some("/bin/b".parse().unwrap()),
            ..Hooks::default()
        };
        let text = serde_json::to_string(&hooks).unwrap();
        assert_eq!(serde_json::from_str::<Hooks>(&text).unwrap(), hooks);
        let all: Vec<&Path> = hooks.all_programs().into_iter().collect();
        assert_eq!(all, [Path::new("/bin/a"), Path::new("/bin/b")]);
        assert_eq!(hooks.target(Moment::Rollback), hooks.resume.as_ref());
        assert!(!hooks.is_empty() && Hooks::default().is_empty());
    }
}
