//! The stand-in for a container runtime: godwit under the runtime's name, which an engine calls while it starts a container
//! that shall be restored. And for conmon, which must not keep what only that start is to know.
//!
//! The engine does all it does for an ordinary start: network, mounts, log, its own watching process. What it then asks of the
//! runtime comes here. `create` waits for godwit, which tells what to run in its place: the runtime's `restore`, as a child of
//! the engine's process, on the engine's pipes. `start` has nothing left to do. All else is the real runtime's.
//!
//! ```text
//! JOB/stand-in/crun          link to godwit
//! JOB/stand-in/conmon        the same
//! JOB/stand-in/NAME.program  the real one
//! JOB/stand-in/socket        godwit listens here
//! JOB/stand-in/restored      made when the restore has succeeded
//! ```
//!
//! podman is told of it for one start. docker knows its runtimes from its configuration, so the admin registers a link to godwit called
//! `godwit-runc`. It is runc for every container that godwit does not wait for: `/run/godwit-runc/ID` leads to the directory
//! above of one that it does. Where nobody listens there any more nothing is started: a move has been broken off.

use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of its directory.
pub(crate) const DIRECTORY: &str = "stand-in";
/// Name of the runtime that is registered with an engine for good, in the place of [`REAL`].
pub(crate) const REGISTERED: &str = "godwit-runc";
const REAL: &str = "runc";
/// Where that is looked for if nobody says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where that one looks whether godwit waits for a container.
const EXPECTED: &str = "/run/godwit-runc";
/// Files of its directory.
pub(crate) const SOCKET: &str = "socket";
const RESTORED: &str = "restored";
/// The process that watches a container of podman's.
pub(crate) const WATCHER: &str = "conmon";
/// Names podman's configuration for one start: what it watches the container with must not have it for good.
pub(crate) const CONFIGURATION: &str = "CONTAINERS_CONF_OVERRIDE";
/// Exit code of a runtime that cannot do what it was asked for.
const FAILED: u8 = 1;

/// What an engine wants to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// The engine's words to the runtime.
    pub(crate) args: Vec<String>,
}

/// What is to be run in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

/// How that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Its exit code; 128 and more for a signal, as shells have it.
    pub(crate) code: i32,
}

/// Where the real program of this name is noted.
pub(crate) fn program_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.program"))
}

/// Has the registered runtime restore the container `id` as the directory `dir` says, until [`expect_no_more`].
///
/// # Errors
/// When that cannot be noted.
pub(crate) fn expect(id: &str, dir: &Path) -> io::Result<()> {
    expect_no_more(id)?;
    let link = || {
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(EXPECTED)?;
        symlink(dir, Path::new(EXPECTED).join(id))
    };
    // another move may have removed the directory in between
    link().or_else(|error| if error.kind() == io::ErrorKind::NotFound { link() } else { Err(error) })
}

/// Leaves a container to the real runtime again. Idempotent.
///
/// # Errors
/// When that cannot be noted.
pub(crate) fn expect_no_more(id: &str) -> io::Result<()> {
    match std::fs::remove_file(Path::new(EXPECTED).join(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // if it was the last one
    let _ = std::fs::remove_dir(EXPECTED);
    Ok(())
}

/// Whether a program called `arg0` stands in for a runtime.
pub fn is_stand_in(arg0: &Path) -> bool {
    is_registered(arg0) || arg0.parent().and_then(Path::file_name).is_some_and(|name| name == DIRECTORY)
}

fn is_registered(arg0: &Path) -> bool {
    arg0.file_name().is_some_and(|name| name == REGISTERED)
}

/// Does what the engine wants of the runtime; gives the exit code.
pub fn run_stand_in(arg0: &Path, args: Vec<OsString>) -> u8 {
    if is_registered(arg0) {
        let done = expected(Path::new(EXPECTED), &args).and_then(|dir| stand_in(&dir, &args));
        return done.unwrap_or_else(|| run_real(Path::new(REAL), &args));
    }
    let dir = arg0.parent().unwrap_or(Path::new("/"));
    let name = arg0.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let done = if name == WATCHER { None } else { stand_in(dir, &args) };
    done.unwrap_or_else(|| {
        let program = std::fs::read_to_string(program_file(dir, name)).unwrap_or_default();
        run_real(Path::new(&program), &args)
    })
}

/// The directory of the container that the engine's words are about, if godwit waits for it: the id is the last word.
fn expected(all: &Path, args: &[OsString]) -> Option<PathBuf> {
    let id = args.last()?.to_str()?;
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_id.then(|| all.join(id)).filter(|dir| dir.is_dir())
}

/// Does what godwit has to say about, and not the real runtime; none for all else.
fn stand_in(dir: &Path, args: &[OsString]) -> Option<u8> {
    let asks_for = |verb: &str| args.iter().any(|arg| arg == verb);
    if asks_for("create") {
        return Some(restore_instead(dir, args).unwrap_or_else(|error| {
            let _ = writeln!(io::stderr(), "godwit: nothing was restored: {error}");
            FAILED
        }));
    }
    (asks_for("start") && dir.join(RESTORED).exists()).then_some(0)
}

/// Becomes the real program. Returns only when that fails.
fn run_real(program: &Path, args: &[OsString]) -> u8 {
    let mut command = Command::new(program);
    // what watches a container must not keep what was for its start only
    command.args(args).env_remove(CONFIGURATION);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", PATH);
    }
    let error = command.exec();
    let _ = writeln!(io::stderr(), "godwit: `{}` cannot be run: {error}", program.display());
    FAILED
}

fn restore_instead(dir: &Path, args: &[OsString]) -> io::Result<u8> {
    let mut godwit = UnixStream::connect(dir.join(SOCKET))?;
    let args = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    say(&mut godwit, &Asked { args })?;
    // whoever waits for a container that never comes hears the end of the socket
    let order: Order = hear(&mut BufReader::new(&godwit))?;
    let status = Command::new(&order.program).args(&order.args).envs(order.environment).status()?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    if code == 0 {
        std::fs::write(dir.join(RESTORED), "")?;
    }
    // nobody hears it when godwit is gone; what was restored is held all the same
    let _ = say(&mut godwit, &Ended { code });
    Ok(u8::try_from(code).unwrap_or(FAILED))
}

/// A line of JSON.
pub(crate) fn say(socket: &mut impl Write, words: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(words)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// The next line of JSON.
pub(crate) fn hear<T: for<'a> Deserialize<'a>>(socket: &mut impl BufRead) -> io::Result<T> {
    let mut line = String::new();
    socket.read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_what_lies_in_its_directory_stands_in() {
        assert!(is_stand_in(Path::new("/var/lib/godwit/migrations/x/stand-in/crun")));
        assert!(!is_stand_in(Path::new("/usr/bin/crun")) && !is_stand_in(Path::new("crun")));
        assert!(is_stand_in(Path::new("/usr/local/bin/godwit-runc")));
    }

    #[test]
    fn the_registered_one_stands_in_for_whom_godwit_waits() {
        let root = tempfile::tempdir().unwrap();
        let (all, job) = (root.path().join("all"), root.path().join("job"));
        std::fs::create_dir_all(&all).unwrap();
        std::fs::create_dir_all(&job).unwrap();
        symlink(&job, all.join("abc")).unwrap();
        symlink(root.path().join("gone"), all.join("def")).unwrap();
        let about = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            expected(&all, &words)
        };
        assert_eq!(about("--root /r create --bundle /b abc"), Some(all.join("abc")));
        for other in ["create --bundle /b def", "create xyz", "kill abc 9", "delete ../job", "--version"] {
            assert_eq!(about(other), None, "{other}");
        }
    }

    /// Asks for something in a directory of its own; `order` is what godwit answers, none if it goes away.
    fn asked_for(verb: &str, order: Option<Order>) -> (u8, Option<Ended>, bool) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(DIRECTORY);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(program_file(&dir, "crun"), "/bin/false").unwrap();
        let listener = UnixListener::bind(dir.join(SOCKET)).unwrap();
        let godwit = std::thread::spawn(move || {
            let order = order?;
            let (mut socket, _) = listener.accept().unwrap();
            let mut heard = BufReader::new(socket.try_clone().unwrap());
            let asked: Asked = hear(&mut heard).unwrap();
            assert_eq!(asked.args, ["--log=x", "create", "--bundle", "/b", "web"]);
            say(&mut socket, &order).unwrap();
            hear(&mut heard).ok()
        });
        let args = ["--log=x", verb, "--bundle", "/b", "web"].map(OsString::from).to_vec();
        let code = run_stand_in(&dir.join("crun"), args);
        (code, godwit.join().unwrap(), dir.join(RESTORED).exists())
    }

    fn shell(script: &str) -> Option<Order> {
        let environment = vec![("CODE".to_owned(), "7".to_owned())];
        Some(Order { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], environment })
    }

    #[test]
    fn what_it_is_told_is_run_in_the_place_of_create() {
        assert_eq!(asked_for("create", shell("true")), (0, Some(Ended { code: 0 }), true));
        assert_eq!(asked_for("create", shell("exit $CODE")), (7, Some(Ended { code: 7 }), false));
        assert_eq!(asked_for("create", shell("kill -9 $$")), (137, Some(Ended { code: 137 }), false));
        assert_eq!(asked_for("create", None), (FAILED, None, false));
    }
}
