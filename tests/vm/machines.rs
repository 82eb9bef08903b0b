//! Two virtual machines and a client, driven by `scripts/testbed`. Each test has its own, one after the other.

use crate::hosts::Hosts;
pub use crate::hosts::{DST, SRC};
use crate::program::PROGRAM;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a command in a machine may take, in seconds.
const LIMIT: &str = "400";

/// The machines are up as long as this lives.
pub struct Machines {
    was_up: bool,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

/// Boots the machines; `None` when they cannot be had, after saying why.
pub fn machines() -> Option<Machines> {
    machines_with(&[])
}

/// The same, with options of `testbed up`.
pub fn machines_with(options: &[&str]) -> Option<Machines> {
    match boot(options) {
        Ok(machines) => Some(machines),
        Err(why) => {
            assert!(
                std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"),
                "the virtual machines are required: {why}"
            );
            eprintln!("skipped: {why}");
            None
        }
    }
}

fn testbed(args: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/testbed"));
    command.args(args).env("GODWIT_TESTBED_KIND", "vm").stdin(Stdio::null());
    if std::env::var_os("GODWIT_TESTBED_NAME").is_none() {
        command.env("GODWIT_TESTBED_NAME", "vmtests");
    }
    command
}

fn boot(options: &[&str]) -> Result<Machines, String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err("the virtual machines need root".into());
    }
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let was_up = testbed(&["path"]).output().is_ok_and(|output| output.status.success());
    let machines = Machines { was_up, _alone: alone };
    let up = testbed(&[&["up"], options].concat())
        .output()
        .map_err(|error| format!("scripts/testbed cannot be run: {error}"))?;
    if !up.status.success() {
        return Err(format!("scripts/testbed up failed: {}", String::from_utf8_lossy(&up.stderr).trim()));
    }
    let binary =
        std::env::var_os("GODWIT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_godwit").into(), PathBuf::from);
    for (file, place) in [(&binary, "/usr/local/bin/godwit"), (&*PROGRAM, "/usr/local/bin/godwit-workload")] {
        match testbed(&["push", &file.to_string_lossy(), place]).output() {
            Ok(output) if output.status.success() => {}
            other => {
                return Err(format!("`{}` could not be put into the machines: {other:?}", file.display()));
            }
        }
    }
    for host in [SRC, DST] {
        machines.sh(
            host,
            "testbed-container remove vmt; ip netns del godwit-vmt; rm -rf /var/lib/godwit/*; true",
        );
    }
    Ok(machines)
}

/// A command that runs while the test does something else.
pub struct Running(Child);

impl Running {
    /// Waits for its end: exit code, output, errors.
    pub fn finish(self) -> (i32, String, String) {
        said(self.0.wait_with_output().unwrap())
    }
}

fn said(output: std::process::Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

impl Machines {
    fn command(&self, host: &str, script: &str) -> Command {
        testbed(&["exec", host, "timeout", "--kill-after=10", LIMIT, "sh", "-c", script])
    }

    /// Runs a shell script in a machine: exit code, output, errors.
    pub fn run(&self, host: &str, script: &str) -> (i32, String, String) {
        said(self.command(host, script).output().unwrap())
    }

    /// Runs a shell script in a machine; its output. It must succeed.
    #[track_caller]
    pub fn sh(&self, host: &str, script: &str) -> String {
        Hosts::sh(self, host, script)
    }

    /// Takes the power from a machine, or gives it back: `cut` or `boot`.
    #[track_caller]
    pub fn power(&self, verb: &str, host: &str) {
        let output = testbed(&[verb, host]).output().unwrap();
        assert!(output.status.success(), "{verb} {host}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a shell script in a machine.
    pub fn start(&self, host: &str, script: &str) -> Running {
        let mut command = self.command(host, &format!("exec {script}"));
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until a condition holds in a machine.
    #[track_caller]
    pub fn wait_until(&self, host: &str, condition: &str) {
        let begun = Instant::now();
        while self.run(host, condition).0 != 0 {
            assert!(begun.elapsed() < Duration::from_secs(180), "never: {condition}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Hosts for Machines {
    fn run_script(&self, host: &str, script: &str) -> (i32, String, String) {
        self.run(host, script)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if !self.was_up {
            let _ = testbed(&["down"]).output();
        }
    }
}
