//! Programs of the host: which may be run as root, and how they are run: with an environment that is known, a time limit, and
//! their last words kept.

use godwit_migration::Cancel;
use godwit_migration::quantity::show_duration;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// So much of what a program says last is kept, in bytes.
const LAST_WORDS: usize = 2048;
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(1);
/// Where a program finds others, whoever has started godwit.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program cannot be run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there, or cannot be looked at.
    #[error("`{}` cannot be looked at: {source}", path.display())]
    Unseen {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no program, or one that others could change.
    #[error("`{}` is not run as root: {why}", path.display())]
    Unfit {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It could not be started.
    #[error("`{}` cannot be run: {source}", path.display())]
    Start {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended badly.
    #[error("`{}` failed ({status}){}", path.display(), last_words(said))]
    Failed {
        /// Which.
        path: PathBuf,
        /// How.
        status: ExitStatus,
        /// What it said last.
        said: String,
    },
    /// It took too long, and was killed with all of its process group.
    #[error("`{}` did not end within {}, and was killed{}", path.display(), show_duration(*limit), last_words(said))]
    TooLong {
        /// Which.
        path: PathBuf,
        /// The limit.
        limit: Duration,
        /// What it said last.
        said: String,
    },
    /// The user has pressed Ctrl-C; it was killed.
    #[error("`{}` was interrupted", path.display())]
    Interrupted {
        /// Which.
        path: PathBuf,
    },
}

fn last_words(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// Looks whether a program may be run as root: a file that root owns and may execute, which nobody else can change, nor any
/// directory above it. Gives its path without symbolic links.
///
/// # Errors
/// Why not.
pub fn check(path: &Path) -> Result<PathBuf, ProgramError> {
    let unseen = |path: &Path| {
        let path = path.to_owned();
        move |source| ProgramError::Unseen { path, source }
    };
    let unfit = |why: String| ProgramError::Unfit { path: path.to_owned(), why };
    if !path.is_absolute() {
        return Err(unfit("its path is relative".into()));
    }
    let real = path.canonicalize().map_err(unseen(path))?;
    let meta = real.metadata().map_err(unseen(&real))?;
    if !meta.is_file() {
        return Err(unfit("it is no file".into()));
    }
    if meta.permissions().mode() & 0o100 == 0 {
        return Err(unfit("its owner may not execute it".into()));
    }
    for above in real.ancestors() {
        let meta = above.metadata().map_err(unseen(above))?;
        let (mode, shown) = (meta.permissions().mode(), above.display());
        if meta.uid() != 0 {
            return Err(unfit(format!("`{shown}` is owned by user {}", meta.uid())));
        }
        // in a sticky directory nobody replaces what is root's
        let is_sticky = meta.is_dir() && mode & 0o1000 != 0;
        if mode & 0o022 != 0 && !is_sticky {
            return Err(unfit(format!("others than root may write to `{shown}` (mode {:o})", mode & 0o7777)));
        }
    }
    Ok(real)
}

/// Checks a program once more and runs it to its end, with nothing in its environment but `PATH` and what is given.
/// `cancel` ends it, too, where there is one.
///
/// # Errors
/// When it may not be run or cannot be, fails, or takes longer than `limit`: then its process group is killed.
pub fn run(
    path: &Path,
    environment: &[(&str, OsString)],
    limit: Duration,
    cancel: Option<&Cancel>,
) -> Result<(), ProgramError> {
    let program = check(path)?;
    run_checked(&program, path, environment, limit, cancel)
}

/// Runs `program` under the name `path`: it may be one of several that a link chooses.
fn run_checked(
    program: &Path,
    path: &Path,
    environment: &[(&str, OsString)],
    limit: Duration,
    cancel: Option<&Cancel>,
) -> Result<(), ProgramError> {
    let start = |source| ProgramError::Start { path: path.to_owned(), source };
    let until = Instant::now() + limit;
    let (mut voice, its_end) = io::pipe().map_err(start)?;
    let heard = fcntl(&voice, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    heard.map_err(|errno| start(errno.into()))?;
    let mut command = Command::new(program);
    command
        .arg0(path)
        .env_clear()
        .env("PATH", PATH)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(its_end.try_clone().map_err(start)?)
        .stderr(its_end)
        // Ctrl-C is godwit's to handle, and the group is killed as a whole
        .process_group(0);
    let mut child = command.spawn().map_err(start)?;
    // with it goes our own end of the pipe
    drop(command);
    let mut said = Vec::new();
    let status = loop {
        listen(&mut voice, &mut said);
        if let Some(status) = child.try_wait().map_err(start)? {
            break status;
        }
        if cancel.is_some_and(Cancel::is_raised) {
            end(&mut child);
            return Err(ProgramError::Interrupted { path: path.to_owned() });
        }
        if Instant::now() >= until {
            end(&mut child);
            listen(&mut voice, &mut said);
            return Err(ProgramError::TooLong { path: path.to_owned(), limit, said: shown(&said) });
        }
        std::thread::sleep(LOOK);
    };
    listen(&mut voice, &mut said);
    if status.success() {
        return Ok(());
    }
    Err(ProgramError::Failed { path: path.to_owned(), status, said: shown(&said) })
}

/// Kills it with all that it has started, unless that has left its process group.
fn end(child: &mut Child) {
    // it was not waited for yet: the number is its own
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    if let Ok(group) = group {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// Takes what was said until now, and keeps the end of it.
fn listen(voice: &mut PipeReader, said: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    // one that never stops talking must not keep us from looking at the time
    for _ in 0..64 {
        match voice.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => said.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
        let surplus = said.len().saturating_sub(LAST_WORDS);
        said.drain(..surplus);
    }
}

/// The last lines, in one, without anything that a terminal would obey.
fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(4)..].join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    const SOON: Duration = Duration::from_secs(10);

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("hook");
        // by another process: a child that another test forks meanwhile would have it open for writing, too (ETXTBSY)
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let writer = std::process::Command::new("sh").args(["-c", write, "sh", text]).arg(&path).status();
        assert!(writer.unwrap().success());
        path
    }

    #[test]
    fn it_sees_what_it_is_given_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let path = script(dir.path(), "env | sort > \"$GODWIT_OUT\"");
        run_checked(&path, &path, &[("GODWIT_OUT", out.clone().into())], SOON, None).unwrap();
        let seen = std::fs::read_to_string(out).unwrap();
        let names: Vec<&str> = seen.lines().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(names, ["GODWIT_OUT", "PATH", "PWD"], "{seen}");
    }

    #[test]
    fn what_it_said_last_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), "yes x | head -c 100000; echo; printf 'why\\033[31m\\n' >&2; exit 3");
        let error = run_checked(&path, &path, &[], SOON, None).unwrap_err().to_string();
        assert!(error.ends_with("failed (exit status: 3): x / x / x / why[31m"), "{error}");
    }

    #[test]
    fn all_of_its_group_is_killed_when_it_takes_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let path = script(dir.path(), "sleep 60 & echo $! $$ > \"$OUT\"; echo begun >&2; wait");
        // a full machine may let the script wait for a second before it comes to its sleep
        let limit = Duration::from_secs(2);
        let begun = Instant::now();
        let error = run_checked(&path, &path, &[("OUT", pids.clone().into())], limit, None);
        assert!(begun.elapsed() < Duration::from_secs(20));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("did not end within 2.00 s, and was killed: begun"), "{error}");
        let text = std::fs::read_to_string(pids).unwrap();
        for pid in text.split_whitespace() {
            // the orphan dies when it is next scheduled, and is reaped by somebody else, at some time
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let dead = || stat().is_empty() || stat().contains(") Z") || stat().contains(") X");
            while !dead() && begun.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(dead(), "{}", stat());
        }
    }

    #[test]
    fn one_that_never_stops_talking_is_killed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), "exec yes");
        let error = run_checked(&path, &path, &[], Duration::from_millis(100), None).unwrap_err();
        assert!(matches!(error, ProgramError::TooLong { .. }), "{error}");
    }

    #[test]
    fn ctrl_c_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), "exec sleep 60");
        let cancel = Cancel::default();
        cancel.raise();
        let error = run_checked(&path, &path, &[], SOON, Some(&cancel)).unwrap_err();
        assert!(matches!(error, ProgramError::Interrupted { .. }), "{error}");
    }

    #[test]
    fn a_child_left_behind_does_not_hold_us_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), "sleep 3 & exit 0");
        let begun = Instant::now();
        run_checked(&path, &path, &[], SOON, None).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn only_what_nobody_but_root_can_change_is_run() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // every directory above must be root's, too
        let dir = tempfile::tempdir_in("/root").unwrap();
        let dir = dir.path();
        let path = script(dir, "");
        let mode =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let why = |path: &Path| check(path).unwrap_err().to_string();
        let good = path.canonicalize().unwrap();
        assert_eq!(check(&path).unwrap(), good);
        symlink(&path, dir.join("link")).unwrap();
        assert_eq!(check(&dir.join("link")).unwrap(), good);

        assert!(why(Path::new("hook")).contains("relative"));
        assert!(why(&dir.join("none")).contains("cannot be looked at"));
        assert!(why(dir).contains("no file"));
        mode(&path, 0o644);
        assert!(why(&path).contains("may not execute"), "{}", why(&path));
        for writable in [0o757, 0o775] {
            mode(&path, writable);
            assert!(why(&path).contains("may write to"), "{}", why(&path));
        }
        mode(&path, 0o755);
        chown(&path, Some(7), None).unwrap();
        assert!(why(&path).contains("owned by user 7"), "{}", why(&path));
        chown(&path, Some(0), None).unwrap();
        mode(dir, 0o777);
        assert!(why(&path).contains("may write to"), "{}", why(&path));
        mode(dir, 0o1777);
        assert_eq!(check(&path).unwrap(), good);
        chown(dir, Some(7), None).unwrap();
        assert!(why(&path).contains("owned by user 7"), "{}", why(&path));
    }
}
