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

/// The process that lets a container go when nobody else does; dropped, it is told to end, and has done nothing.
#[derive(Debug)]
pub struct Keeper {
    freezer: Freezer,
    limit: Duration,
    /// Gone when it was told to end.
    child: Option<Child>,
}

impl Keeper {
    /// Starts it: the cgroup is thawed `limit` from now at the latest. `lock`: the container's, shared.
    ///
    /// # Errors
    /// When the cgroup is frozen already, or no process can be started.
    pub fn start(freezer: Freezer, lock: File, limit: Duration) -> Result<Self, EngineError> {
        if freezer.state()? != FreezeState::Thawed {
            return Err(EngineError::StandsStill);
        }
        let child = Command::new(own_program())
            .arg(SUBCOMMAND)
            .arg(freezer.path())
            .arg(limit.as_millis().to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(lock)
            .stderr(Stdio::null())
            .spawn()
            .map_err(EngineError::io("start", own_program()))?;
        Ok(Self { freezer, limit, child: Some(child) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // it may be dead: nothing depends on it now
        let _ = child.stdin.take().map(|mut told| told.write_all(b"."));
        let _ = child.wait();
    }
}

/// A container that stands still; dropped, it goes on.
#[derive(Debug)]
pub struct Standstill {
    freezer: Freezer,
    /// None when it was thawed.
    keeper: Option<Keeper>,
    tasks: BTreeSet<i32>,
}

impl Standstill {
    /// Freezes the cgroup, in which are all of `tasks` and nobody else.
    ///
    /// # Errors
    /// When it is frozen already, or cannot be; nothing has changed then.
    pub fn begin(keeper: Keeper, tasks: &BTreeSet<i32>) -> Result<Self, EngineError> {
        if keeper.freezer.state()? != FreezeState::Thawed {
            return Err(EngineError::StandsStill);
        }
        let (freezer, limit) = (keeper.freezer.clone(), keeper.limit);
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
        self.keeper = None;
        Ok(stood?)
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        let Some(mut keeper) = self.keeper.take() else { return };
        if let Err(error) = self.freezer.thaw() {
            tracing::warn!(%error, "the container still stands still");
            // not told to end, it hears that we are gone, and tries
            keeper.child = None;
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
