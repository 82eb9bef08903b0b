//! A container of a runtime that is stopped by signals and started from its bundle.

use super::{BY_SYSTEMD, QUESTION, Runtime};
use crate::error::EngineError;
use crate::restart::{Startable, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a container may take to be gone after SIGKILL.
const KILLED: Duration = Duration::from_secs(10);

/// How the runtime knows it.
pub(super) struct RuntimeStartable {
    runtime: Runtime,
    known: Known,
}

/// What outlasts a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) bundle: PathBuf,
    /// systemd makes its cgroup.
    #[serde(default)]
    pub(super) systemd_cgroup: bool,
}

impl RuntimeStartable {
    pub(super) fn new(runtime: &Runtime, known: Known) -> Self {
        Self { runtime: runtime.clone(), known }
    }

    /// Whether it has ended within a time.
    fn ends_within(&self, limit: Duration) -> Result<bool, EngineError> {
        let until = Instant::now() + limit;
        loop {
            match self.status()? {
                Status::Running(_) if Instant::now() >= until => return Ok(false),
                Status::Running(_) => std::thread::sleep(Duration::from_millis(20)),
                _ => return Ok(true),
            }
        }
    }
}

impl Startable for RuntimeStartable {
    /// What the runtime has forgotten can be started as long as its bundle is there.
    fn status(&self) -> Result<Status, EngineError> {
        match self.runtime.state(&self.known.name) {
            Ok(state) if state.status == "stopped" => Ok(Status::Stopped),
            Ok(state) => Ok(Status::Running(state.pid)),
            Err(EngineError::NotFound(_)) if self.known.bundle.join("config.json").is_file() => {
                Ok(Status::Stopped)
            }
            Err(EngineError::NotFound(_)) => Ok(Status::Gone),
            Err(error) => Err(error),
        }
    }

    fn hold_off(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn release(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&self, grace: Duration) -> Result<(), EngineError> {
        for (signal, limit) in [("TERM", grace), ("KILL", KILLED)] {
            if let Err(error) = self.runtime.run(&["kill", &self.known.name, signal], QUESTION) {
                // it may have ended by itself
                tracing::debug!(%error, signal, "not sent");
            }
            if self.ends_within(limit)? {
                return Ok(());
            }
        }
        Err(EngineError::NotFrozen("it did not end by SIGKILL".into()))
    }

    fn start(&self) -> Result<(), EngineError> {
        let Known { name, bundle, systemd_cgroup } = &self.known;
        if self.runtime.state(name).is_ok() {
            // what is left of the one that was stopped
            self.runtime.run(&["delete", name], QUESTION)?;
        }
        let failed =
            |what: String| EngineError::Tool { program: self.runtime.program.display().to_string(), what };
        // its standard streams are the container's, for all of its life
        let status = Command::new(&self.runtime.program)
            .args(systemd_cgroup.then_some(BY_SYSTEMD))
            .args(["run", "--detach", "--bundle"])
            .arg(bundle)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .status()
            .map_err(|error| failed(format!("cannot be run: {error}")))?;
        match status.success() {
            true => Ok(()),
            false => {
                Err(failed(format!("run failed ({status}); `run --bundle {}` says why", bundle.display())))
            }
        }
    }

    fn remove(&self) -> Result<(), EngineError> {
        if matches!(self.runtime.state(&self.known.name), Err(EngineError::NotFound(_))) {
            return Ok(());
        }
        self.runtime.run(&["delete", "--force", &self.known.name], QUESTION).map(drop)
    }

    fn remains(&self) -> Value {
        json!(self.known)
    }
}
