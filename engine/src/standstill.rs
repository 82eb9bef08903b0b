//! A container that stands still for a moment, and goes on whatever happens to godwit.
//!
//! A frozen cgroup stays frozen when whoever froze it dies. So a small process of its own, started before the freeze, waits for godwit's
//! end: it thaws the cgroup then, or when the time is over. Until it has ended it holds the container's lock with godwit, so that it can
//! never thaw what the next migration has frozen.

use crate::EngineError;
use crate::freezer::{FreezeState, Freezer};
use crate::tool::own_program;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The hidden subcommand of godwit that is the process.
const SUBCOMMAND: &str = "let-go";
/// How long the tasks may take to stop.
const STOPPING: Duration = Duration::from_secs(1);

/// A container that stands still; dropped, it goes on.
#[derive(Debug)]
pub struct Standstill {
    freezer: Freezer,
    /// Gone when it was told to end.
    keeper: Option<Child>,
    tasks: BTreeSet<i32>,
}

impl Standstill {
    /// Freezes the cgroup, in which are all of `tasks` and nobody else. It is thawed after `limit` at the latest. `lock`: the container's,
    /// shared.
    ///
    /// # Errors
    /// When it is frozen already, or cannot be; nothing has changed then.
    pub fn begin(
        freezer: Freezer,
        tasks: &BTreeSet<i32>,
        lock: File,
        limit: Duration,
    ) -> Result<Self, EngineError> {
        if freezer.state()? != FreezeState::Thawed {
            return Err(EngineError::StandsStill);
        }
        let keeper = Command::new(own_program())
            .arg(SUBCOMMAND)
            .arg(freezer.path())
            .arg(limit.as_millis().to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(lock)
            .stderr(Stdio::null())
            .spawn()
            .map_err(EngineError::io("start", own_program()))?;
        let standstill = Self { freezer, keeper: Some(keeper), tasks: tasks.clone() };
        standstill.freezer.freeze(limit.min(STOPPING))?;
        standstill.freezer.verify_held(tasks)?;
        Ok(standstill)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it had not stood still until now, or cannot be thawed.
    pub fn end(mut self) -> Result<(), EngineError> {
        let stood = self.freezer.verify_held(&self.tasks);
        self.freezer.thaw()?;
        self.dismiss();
        Ok(stood?)
    }

    /// The process has nothing to do any more.
    fn dismiss(&mut self) {
        let Some(mut keeper) = self.keeper.take() else { return };
        // it may be dead: nothing depends on it now
        let _ = keeper.stdin.take().map(|mut told| told.write_all(b"."));
        let _ = keeper.wait();
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        if self.keeper.is_none() {
            return;
        }
        match self.freezer.thaw() {
            Ok(()) => self.dismiss(),
            // it hears that we are gone, and tries
            Err(error) => tracing::warn!(%error, "the container still stands still"),
        }
    }
}

/// Waits on standard input: a byte says that all is done, its end that godwit is dead. Then, and when the time is over, the cgroup is
/// thawed.
///
/// # Errors
/// When it cannot be.
pub fn run_keeper(cgroup: &Path, limit: Duration) -> Result<(), EngineError> {
    // what ends godwit's session, or its group, is not to end this
    let _ = nix::unistd::setsid();
    let freezer = Freezer::at(cgroup)?;
    let until = Instant::now() + limit;
    let mut input = std::io::stdin().lock();
    loop {
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let told = poll(&mut [PollFd::new(std::io::stdin().as_fd(), PollFlags::POLLIN)], timeout);
        match told {
            Ok(0) => break,
            Ok(_) => match input.read(&mut [0]) {
                Ok(1) => return Ok(()),
                _ => break,
            },
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    Ok(freezer.thaw()?)
}
