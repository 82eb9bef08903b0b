//! Running a container runtime: with a time limit, and with its last words kept.

use crate::error::EngineError;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// godwit itself, for a process that is one of its hidden commands; also when its file was replaced by another version meanwhile.
pub fn own_program() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

/// Runs a program that should end well, and gives what it wrote to standard output.
///
/// # Errors
/// When it cannot be run, fails, or does not end in time (then it is killed).
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &Path,
    args: &[S],
    limit: Duration,
) -> Result<String, EngineError> {
    Running::start(program, args, &[])?.wait(limit)
}

/// A program that was started. It is not ended when this is dropped.
///
/// Its output goes to files in memory and not to pipes: a runtime may leave children that keep a pipe open.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    out: File,
    err: File,
}

impl Running {
    /// Starts a program, with these variables besides ours.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn start<S: AsRef<OsStr>>(
        program: &Path,
        args: &[S],
        environment: &[(&str, OsString)],
    ) -> Result<Self, EngineError> {
        let mut words = args.iter().map(|arg| arg.as_ref().to_string_lossy());
        let verb = words.find(|word| !word.starts_with('-')).unwrap_or_default();
        let name = format!("{} {verb}", program.display());
        let failed = |what: String| EngineError::Tool { program: name.clone(), what };
        let (out, err) = (
            anonymous_file().map_err(|e| failed(e.to_string()))?,
            anonymous_file().map_err(|e| failed(e.to_string()))?,
        );
        let share =
            |file: &File| file.try_clone().map(Stdio::from).map_err(|error| failed(error.to_string()));
        let child = Command::new(program)
            .args(args)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(share(&out)?)
            .stderr(share(&err)?)
            // Ctrl-C is godwit's to handle
            .process_group(0)
            .spawn()
            .map_err(|error| failed(format!("cannot be run: {error}")))?;
        Ok(Self { name, child, out, err })
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its good end, and gives what it wrote to standard output.
    ///
    /// # Errors
    /// When it fails, or does not end in time (then it is killed).
    pub(crate) fn wait(mut self, limit: Duration) -> Result<String, EngineError> {
        let failed = |what: String| EngineError::Tool { program: self.name.clone(), what };
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().map_err(|error| failed(error.to_string()))? {
                Some(status) => break status,
                None if begun.elapsed() > limit => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return Err(failed(format!("did not end within {} s", limit.as_secs())));
                }
                None => std::thread::sleep(Duration::from_micros(300)),
            }
        };
        if !status.success() {
            let mut said = text_of(&mut self.err);
            if said.trim().is_empty() {
                said = text_of(&mut self.out);
            }
            let last: Vec<&str> = said.lines().rev().take(3).collect();
            let last = last.into_iter().rev().collect::<Vec<_>>().join(" / ");
            return Err(failed(format!("failed ({status}): {}", last.trim())));
        }
        Ok(text_of(&mut self.out))
    }
}

/// A file without a name, in memory.
fn anonymous_file() -> std::io::Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    Ok(File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC)?))
}

fn text_of(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.rewind();
    // a runtime that writes more than this has nothing to say
    let _ = file.take(1 << 20).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn output_failure_and_time_limit() {
        let sh = Path::new("/bin/sh");
        assert_eq!(run(sh, &["-c", "echo yes"], SOON).unwrap(), "yes\n");
        let error = run(sh, &["-c", "echo first; echo why >&2; exit 3"], SOON).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("why"), "{error}");
        let error = run(sh, &["-c", "sleep 9"], Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("did not end"), "{error}");
        let error = run(Path::new("/nonexistent/runc"), &["state"], SOON).unwrap_err().to_string();
        assert!(error.contains("cannot be run"), "{error}");
    }

    #[test]
    fn a_child_left_behind_does_not_hold_us_up() {
        let begun = Instant::now();
        run(Path::new("/bin/sh"), &["-c", "sleep 2 & exit 0"], SOON).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}
