//! One start of a container by its engine, which comes as far as the runtime and waits there for godwit.

use crate::error::EngineError;
use crate::runtime::Flavor;
use crate::runtime::restoration::Process;
use crate::stand_in::{self, Asked, DIRECTORY, Ended, Order, SOCKET};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an engine may take until it asks for the runtime.
const ASK: Duration = Duration::from_secs(60);
/// How long an engine may take when it has what it waited for.
const END: Duration = Duration::from_secs(60);

/// Where a stand-in will come: `JOB/stand-in`, new.
pub(crate) struct Door {
    dir: PathBuf,
    listener: UnixListener,
}

/// A start that waits for its restore.
pub(crate) struct Start {
    engine: Box<dyn Process>,
    stand_in: UnixStream,
    /// What the runtime was asked for: global words, and those of `create`.
    pub(crate) asked: Create,
}

/// The words of `create`, of runc and crun alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Create {
    globals: Vec<String>,
    pub(crate) bundle: PathBuf,
    pub(crate) pid_file: PathBuf,
    id: String,
}

impl Create {
    /// Understands an engine's words to a runtime.
    fn parse(args: &[String]) -> Option<Self> {
        let verb = args.iter().position(|arg| arg == "create")?;
        let (globals, rest) = (&args[..verb], &args[verb + 1..]);
        let value = |names: &[&str]| {
            rest.iter().enumerate().find_map(|(at, arg)| {
                let joined = |name: &&str| arg.strip_prefix(&format!("{name}="));
                match names.contains(&arg.as_str()) {
                    true => rest.get(at + 1).cloned(),
                    false => names.iter().find_map(joined).map(str::to_owned),
                }
            })
        };
        Some(Self {
            globals: globals.to_vec(),
            bundle: value(&["--bundle", "-b"])?.into(),
            pid_file: value(&["--pid-file"])?.into(),
            id: rest.last()?.clone(),
        })
    }

    /// Where the runtime keeps its containers, if the engine says: `--root DIRECTORY`.
    pub(crate) fn root(&self) -> Option<PathBuf> {
        value_of(&self.globals, "--root")
    }

    /// The words of a `restore` in its place.
    pub(crate) fn restore(&self, options: &[OsString]) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut args = self.globals.clone();
        args.extend(["restore".into(), "--detach".into(), "--bundle".into(), path(&self.bundle)]);
        args.extend(["--pid-file".into(), path(&self.pid_file)]);
        args.extend(options.iter().map(|option| option.to_string_lossy().into_owned()));
        args.push(self.id.clone());
        args
    }
}

impl Door {
    /// Makes the directory of a migration's stand-in, and listens there.
    ///
    /// # Errors
    /// When that cannot be made.
    pub(crate) fn open(job: &Path) -> Result<Self, EngineError> {
        let dir = job.join(DIRECTORY);
        let failed = |act| EngineError::io(act, &dir);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(failed("make"))?;
        let listener = UnixListener::bind(dir.join(SOCKET)).map_err(failed("listen in"))?;
        Ok(Self { dir, listener })
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until `engine`, which starts a container, asks for the runtime.
    ///
    /// # Errors
    /// When it does not come that far.
    pub(crate) fn wait_for(self, mut engine: Box<dyn Process>) -> Result<Start, EngineError> {
        match self.hear(&mut *engine) {
            Ok((stand_in, asked)) => match Create::parse(&asked.args) {
                Some(asked) => Ok(Start { engine, stand_in, asked }),
                None => {
                    drop(stand_in);
                    let _ = engine.wait(END);
                    Err(EngineError::Unreadable {
                        path: "the engine's words to its runtime".into(),
                        reason: format!("{:?}", asked.args),
                    })
                }
            },
            Err(error) => {
                // nobody comes any more
                let Self { dir, listener } = self;
                drop(listener);
                let _ = std::fs::remove_dir_all(&dir);
                engine.wait(END)?;
                Err(EngineError::io("hear from the engine in", &dir)(error))
            }
        }
    }

    fn hear(&self, engine: &mut dyn Process) -> io::Result<(UnixStream, Asked)> {
        let until = Instant::now() + ASK;
        while engine.is_alive() && Instant::now() < until {
            let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(20u8))? == 0 {
                continue;
            }
            let (socket, _) = self.listener.accept()?;
            let asked = stand_in::hear(&mut BufReader::new(&socket))?;
            return Ok((socket, asked));
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Start {
    /// Has the runtime restore, as a child of the engine's own process for the container. Gives the engine's start, and the
    /// restore.
    ///
    /// # Errors
    /// When the stand-in has gone, or the runtime is not there.
    pub(crate) fn restore(
        self,
        flavor: Flavor,
        options: &[OsString],
        environment: &[(&str, OsString)],
    ) -> Result<(Box<dyn Process>, StandIn), EngineError> {
        let Self { engine, mut stand_in, asked } = self;
        let environment =
            environment.iter().map(|(name, value)| ((*name).into(), value.to_string_lossy().into_owned()));
        let order = Order {
            program: program(flavor)?,
            args: asked.restore(options),
            environment: environment.collect(),
        };
        stand_in::say(&mut stand_in, &order)
            .map_err(EngineError::io("order a restore from", "the engine"))?;
        let log = log_of(&asked.globals);
        Ok((engine, StandIn { name: format!("{} restore", flavor.kind()), socket: stand_in, log }))
    }

    /// Lets the engine fail: nothing is restored.
    pub(crate) fn give_up(self) {
        drop(self.stand_in);
        if let Err(error) = self.engine.wait(END) {
            tracing::debug!(%error, "the engine gave up, as it should");
        }
    }
}

/// The real runtime, wherever it is on the path.
///
/// # Errors
/// When it is not there.
pub(crate) fn program(flavor: Flavor) -> Result<PathBuf, EngineError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(flavor.kind())).find(|path| path.is_file());
    found
        .ok_or_else(|| EngineError::Tool { program: flavor.kind().into(), what: "is not on the path".into() })
}

/// Where the engine wants the runtime's words: `--log FILE`.
fn log_of(globals: &[String]) -> Option<PathBuf> {
    value_of(globals, "--log")
}

/// The value of an option: `NAME=VALUE`, or `NAME VALUE`.
fn value_of(words: &[String], name: &str) -> Option<PathBuf> {
    let joined = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let after = || words.iter().skip_while(|word| *word != name).nth(1).map(String::as_str);
    joined.or_else(after).map(PathBuf::from)
}

/// The stand-in that runs the restore.
pub(crate) struct StandIn {
    name: String,
    socket: UnixStream,
    log: Option<PathBuf>,
}

impl StandIn {
    /// Whether it has something to say, after a moment.
    fn speaks(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        !matches!(poll(&mut fds, limit), Ok(0))
    }
}

impl Process for StandIn {
    fn is_alive(&mut self) -> bool {
        !self.speaks(Duration::ZERO)
    }

    fn wait(self: Box<Self>, limit: Duration) -> Result<(), EngineError> {
        let failed = |what: String| Err(EngineError::Tool { program: self.name.clone(), what });
        if !self.speaks(limit) {
            return failed(format!("did not end within {} s", limit.as_secs()));
        }
        match stand_in::hear::<Ended>(&mut BufReader::new(&self.socket)) {
            Ok(Ended { code: 0 }) => Ok(()),
            Ok(Ended { code }) => {
                let said =
                    self.log.as_ref().and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default();
                failed(format!("failed (exit status: {code}): {}", said.lines().last().unwrap_or_default()))
            }
            Err(error) => failed(format!("was ended: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_is_put_in_the_place_of_create() {
        let args = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let asked = args("--log-format=json --log=/l create --bundle /b --pid-file /p --no-pivot abc");
        let create = Create::parse(&asked).unwrap();
        assert_eq!((create.bundle.as_path(), create.id.as_str()), (Path::new("/b"), "abc"));
        let restore = create.restore(&["--tcp-established".into()]).join(" ");
        assert_eq!(
            restore,
            "--log-format=json --log=/l restore --detach --bundle /b --pid-file /p --tcp-established abc"
        );
        assert_eq!(log_of(&create.globals), Some("/l".into()));
        let dockers = args("--root /r --log /l --log-format json create -b /b --pid-file /p abc");
        let dockers = Create::parse(&dockers).unwrap();
        assert_eq!((log_of(&dockers.globals), dockers.root()), (Some("/l".into()), Some("/r".into())));
        assert_eq!(create.root(), None);
        let same = args("--log-format=json --log=/l create -b /b --pid-file=/p abc");
        assert_eq!(Create::parse(&same).map(|same| same.pid_file), Some("/p".into()));
        assert_eq!(Create::parse(&args("create abc")), None);
        assert_eq!(Create::parse(&args("start abc")), None);
    }
}
