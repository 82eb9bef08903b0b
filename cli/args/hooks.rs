//! Who wants to hear of a migration.

use clap::Args as ClapArgs;
use godwit_migration::hooks::{Hooks, InvalidHook, Program, Target};
use godwit_migration::quantity;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// The longest time that a program may be given: the other side waits meanwhile.
const LONGEST: Duration = Duration::from_secs(50);
/// The longest time that an application may be given to get ready: as above.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(180);

/// Hooks of `godwit migrate`: docs/hooks.md.
#[derive(Clone, Debug, ClapArgs)]
pub struct HookArgs {
    /// A program to run here at a moment: `pre-copy`, `pre-freeze`, `post-freeze`, `post-commit` or `rollback`
    ///
    /// Absolute; root's, and writable by nobody else. What fails or takes too long before the commit rolls the move back.
    /// `rollback` runs whenever an attempt that had come to `pre-copy` is rolled back, also by `godwit resume`. Repeatable
    #[arg(long = "hook", value_name = "MOMENT=PATH", value_parser = str::parse::<Program>)]
    pub programs: Vec<Program>,
    /// Time for all programs of a moment together
    #[arg(long, default_value = "10s", value_parser = short, value_name = "DURATION")]
    pub hook_timeout: Duration,
    /// The same for `post-freeze`, which runs in the downtime
    #[arg(long, default_value = "1s", value_parser = short, value_name = "DURATION")]
    pub post_freeze_timeout: Duration,
    /// Asks the application to get ready when the rounds are done, and waits for its word: a URL that is called from inside of the
    /// container's network namespace, or a program of this host
    ///
    /// Without it the container's label or annotation `godwit.shutdown-hook` counts, if it is a URL; `none`: nobody is called
    #[arg(long, value_name = "URL|PATH|none", value_parser = str::parse::<Choice>)]
    pub shutdown_hook: Option<Choice>,
    /// How long its word is waited for
    #[arg(long, default_value = "30s", value_parser = long, value_name = "DURATION")]
    pub shutdown_timeout: Duration,
    #[command(flatten)]
    pub pause: PauseArgs,
    /// Where the application's word is waited for, in the container's network namespace
    #[arg(long, default_value = "127.0.0.1:0", value_parser = listen, value_name = "ADDRESS:PORT")]
    pub hook_listen: SocketAddr,
}

/// What the application does around a freeze.
#[derive(Clone, Debug, ClapArgs)]
pub struct PauseArgs {
    /// Asks the application to stand still for a moment, right before the freeze; label `godwit.quiesce-hook`
    #[arg(long, value_name = "URL|PATH|none", value_parser = str::parse::<Choice>)]
    pub quiesce_hook: Option<Choice>,
    /// How long that may take
    #[arg(long, default_value = "1s", value_parser = short, value_name = "DURATION")]
    pub quiesce_timeout: Duration,
    /// Tells the application that it goes on: here, or at the destination when it has moved; label `godwit.resume-hook`
    #[arg(long, value_name = "URL|PATH|none", value_parser = str::parse::<Choice>)]
    pub resume_hook: Option<Choice>,
}

impl PauseArgs {
    /// Those that the command line names.
    pub fn hooks(&self) -> Hooks {
        Hooks {
            quiesce: named(&self.quiesce_hook),
            quiesce_timeout: self.quiesce_timeout,
            resume: named(&self.resume_hook),
            ..Hooks::default()
        }
    }
}

/// Who is called, or that nobody is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice(pub Option<Target>);

impl FromStr for Choice {
    type Err = InvalidHook;

    fn from_str(text: &str) -> Result<Self, InvalidHook> {
        if text == "none" { Ok(Self(None)) } else { Ok(Self(Some(text.parse()?))) }
    }
}

impl HookArgs {
    /// Those that the command line names.
    pub fn hooks(&self) -> Hooks {
        Hooks {
            programs: self.programs.clone(),
            timeout: self.hook_timeout,
            frozen_timeout: self.post_freeze_timeout,
            shutdown: named(&self.shutdown_hook),
            shutdown_timeout: self.shutdown_timeout,
            listen: self.hook_listen,
            ..self.pause.hooks()
        }
    }
}

fn named(choice: &Option<Choice>) -> Option<Target> {
    choice.as_ref().and_then(|choice| choice.0.clone())
}

fn short(text: &str) -> Result<Duration, String> {
    at_most(LONGEST, text)
}

fn long(text: &str) -> Result<Duration, String> {
    at_most(LONGEST_SHUTDOWN, text)
}

fn at_most(longest: Duration, text: &str) -> Result<Duration, String> {
    let duration = quantity::positive_duration(text).map_err(|error| error.to_string())?;
    if duration > longest {
        return Err(format!("the longest is {} s", longest.as_secs()));
    }
    Ok(duration)
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "not an address and a port".to_owned())?;
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err("the application is told to come there: name one address of its own".into());
    }
    Ok(address)
}
