//! One file for each command.

mod bundle;
mod cancel;
mod check;
mod checkpoint;
mod config;
mod dirty_rate;
mod earlier;
mod explain;
mod hook;
mod hooks;
mod host;
mod images;
mod journals;
mod keep;
mod kept;
mod keys;
mod limits;
mod log;
mod migrate;
mod node;
mod nodes;
mod object_storage;
mod outbox;
mod parent;
mod park;
mod parting;
mod receive;
mod reception;
mod restore;
mod resume;
mod scratch;
mod sealing;
mod status;
mod store;
mod together;
mod volume;
mod way;
mod witness;

use crate::args::{Args, Command};
use crate::draw::Draw;
use godwit_engine::{ContainerName, Engine, EngineError, OpenRequest, SourceContainer};
use godwit_migration::failure::Disposition;
use godwit_migration::{Cancel, Failure, FailureKind};

pub use config::failure as config_failure;

/// A failure, and the container that it is about.
#[derive(Debug)]
pub struct Trouble {
    pub failure: Box<Failure>,
    /// The container and the other host, as the user wrote them.
    pub about: Option<(String, Option<String>)>,
}

impl Trouble {
    /// Says which container the failure is about, and which other host.
    pub fn about(failure: Failure, container: &str, other: Option<&str>) -> Self {
        Self { failure: Box::new(failure), about: Some((container.to_owned(), other.map(str::to_owned))) }
    }

    /// Where the container is, in one sentence.
    pub fn whereabouts(&self) -> Option<String> {
        let (container, other) = self.about.as_ref()?;
        let other = other.as_deref().unwrap_or("the other host");
        Some(match self.failure.disposition {
            Disposition::Untouched => format!("{container} was not touched"),
            Disposition::RunningAtSource => format!("{container} is running on this host"),
            Disposition::RunningAtDestination => format!("{container} is running on {other}"),
            Disposition::InDoubt => {
                format!("{container} is frozen on this host and may be running on {other}")
            }
            Disposition::NoContainer => return None,
        })
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { failure: Box::new(failure), about: None }
    }
}

/// Runs a command; gives the exit code.
///
/// # Errors
/// What went wrong, for [`Draw::failure`].
pub fn run(args: &Args, draw: &Draw) -> Result<u8, Trouble> {
    match &args.command {
        Command::Migrate(command) => migrate::run(args, command, draw),
        Command::Receive(command) => receive::run(args, command, draw),
        Command::Checkpoint(command) => checkpoint::run(args, command, draw),
        Command::Restore(command) => restore::run(args, command, draw),
        Command::Images(command) => images::run(args, command, draw),
        Command::Store(command) => store::run(args, command, draw),
        Command::Node(command) => node::run(args, command, draw),
        Command::Volume(command) => volume::run(args, command, draw),
        Command::Status(command) => status::run(args, command, draw),
        Command::Log(command) => log::run(args, command, draw),
        Command::Explain(command) => explain::run(command, draw),
        Command::Resume(command) => resume::run(args, command, draw),
        Command::Cancel(command) => cancel::run(args, command, draw),
        Command::Check(command) => match &command.dirty_rate {
            Some(container) => dirty_rate::run(args, command, container, draw),
            None => check::run(args, command, draw),
        },
        Command::Fill { done, .. } => fill(done.as_deref()),
        Command::Guard => guard(),
        Command::LetGo { cgroup, limit } => let_go(cgroup, *limit),
        Command::Park => park::run(),
        Command::Hook(command) => hook::run(args, command, draw),
        Command::Config(command) => config::run(command, draw),
        Command::Keys(command) => keys::run(command, draw),
        Command::Probe(command) => probe(args, command),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut crate::command(), "godwit", &mut std::io::stdout());
            Ok(0)
        }
    }
}

/// The handler of page faults; `receive` starts it, and speaks with it over the descriptors that it inherits.
fn fill(done: Option<&std::path::Path>) -> Result<u8, Trouble> {
    use std::os::fd::AsFd;
    let control = std::io::stdin().as_fd().try_clone_to_owned();
    let cannot = |error: &(dyn std::error::Error + 'static)| -> Trouble {
        Failure::new(FailureKind::Failed, "memory cannot be filled on demand").because_of(error).into()
    };
    let control = control.map_err(|error| cannot(&error))?;
    godwit_memory::destination::fill::run_fill(control).map_err(|error| cannot(&error))?;
    if let Some(done) = done {
        std::fs::File::create(done).map_err(|error| cannot(&error))?;
    }
    Ok(0)
}

/// The guardian of CRIU; whoever starts a CRIU starts it, and speaks with it over its standard input.
fn guard() -> Result<u8, Trouble> {
    use std::os::fd::AsFd;
    let control = std::io::stdin().as_fd().try_clone_to_owned();
    let cannot = |error: &(dyn std::error::Error + 'static)| -> Trouble {
        Failure::new(FailureKind::Failed, "CRIU cannot be guarded").because_of(error).into()
    };
    let control = control.map_err(|error| cannot(&error))?;
    godwit_guardian::run_guardian(control).map(|()| 0).map_err(|error| cannot(&error))
}

/// Whoever has a container stand still starts it, and speaks with it over its standard input.
fn let_go(cgroup: &std::path::Path, limit_ms: u64) -> Result<u8, Trouble> {
    godwit_engine::standstill::run_keeper(cgroup, std::time::Duration::from_millis(limit_ms))
        .map(|()| 0)
        .map_err(|error| {
            Failure::new(FailureKind::Failed, "the container stands still").because_of(&error).into()
        })
}

fn probe(args: &Args, command: &crate::probe::ProbeArgs) -> Result<u8, Trouble> {
    match crate::probe::run(command, args.global.json, args.global.quiet) {
        Ok(code) => Ok(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            let kind = if error.exit_code() == 2 { FailureKind::Usage } else { FailureKind::Failed };
            Err(Failure::new(kind, "the probe could not start").because_of(&error).into())
        }
    }
}

/// Finds the container and opens it; touches nothing.
fn open(text: &str, request: &OpenRequest) -> Result<(ContainerName, Box<dyn SourceContainer>), Trouble> {
    let (engine, name) = find(text)?;
    let container = engine
        .open(&name.name, request)
        .map_err(|error| Trouble::about(describe(text, &error), text, None))?;
    Ok((name, container))
}

/// A container that was looked at, and its name.
type Opened = (ContainerName, Box<dyn SourceContainer>);

/// All containers that move together under this name, the one that leads first.
fn open_group(text: &str, request: &OpenRequest) -> Result<Vec<Opened>, Trouble> {
    let (engine, name) = find(text)?;
    let containers = engine
        .open_group(&name.name, request)
        .map_err(|error| Trouble::about(describe(text, &error), text, None))?;
    let several = containers.len() > 1;
    let named = |container: Box<dyn SourceContainer>| match several {
        true => (ContainerName { engine: name.engine, name: container.facts().name.clone() }, container),
        false => (name.clone(), container),
    };
    Ok(containers.into_iter().map(named).collect())
}

fn find(text: &str) -> Result<(Box<dyn Engine>, ContainerName), Trouble> {
    godwit_engine::resolve(text, godwit_engine::all()).map_err(|error| describe(text, &error).into())
}

/// The failure for a container that cannot be found or opened.
fn describe(text: &str, error: &EngineError) -> Failure {
    match error {
        EngineError::NotFound(_) => {
            Failure::new(FailureKind::NotFound, format!("no container `{text}` on this host"))
                .hint("containers are named `runc:NAME`, `crun:NAME`, `podman:NAME`, `docker:NAME` or `pid:PID`, pods of podman's `podman:pod/NAME`; `runc list`, `crun list`, `podman ps` and `docker ps` show them")
        }
        EngineError::Ambiguous { candidates, .. } => Failure::new(FailureKind::Usage, error.to_string())
            .hint(format!("write {}", candidates.join(" or "))),
        EngineError::NotRunning { .. } => Failure::new(FailureKind::NotFound, error.to_string())
            .hint("only a running container can be moved"),
        EngineError::Blocked { blockers, .. } => {
            // established connections only need a flag; anything else is the container's own
            let flag =
                blockers.iter().all(|b| b.hint.as_deref().is_some_and(|hint| hint.contains("add `--")));
            let kind = if flag { FailureKind::Usage } else { FailureKind::Missing };
            let mut failure = Failure::new(kind, error.to_string());
            for blocker in blockers {
                failure = failure.because(&blocker.reason);
                failure.hints.extend(blocker.hint.clone());
            }
            failure.hints.dedup();
            failure
        }
        error => {
            Failure::new(FailureKind::Missing, format!("`{text}` could not be looked at")).because_of(error)
        }
    }
}

/// A flag that Ctrl-C and SIGTERM raise. A second one changes nothing: undoing must be allowed to end.
fn cancel_on_signal() -> Cancel {
    on_signal(Cancel::raise)
}

/// A flag that SIGINT and SIGTERM raise; what SIGHUP does to it the caller says.
fn on_signal(on_hang_up: fn(&Cancel)) -> Cancel {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
    let cancel = Cancel::default();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    // threads started from now on inherit the mask, so that only the one below takes them
    if pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).is_ok() {
        let raise = cancel.clone();
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                match signal {
                    Signal::SIGHUP => on_hang_up(&raise),
                    _ => raise.raise(),
                }
            }
        });
    }
    cancel
}
