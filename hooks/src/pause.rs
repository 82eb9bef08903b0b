//! An application that puts away what is half done for a moment, because a snapshot is made of what it writes; nothing moves.
//!
//! There is no journal of it: if godwit is killed meanwhile, nobody tells the application that it goes on. It is told beforehand after
//! how long it is to do so by itself.

use crate::application::Application;
use crate::calls::{About, CallError, FirstProcess};
use crate::program;
use godwit_migration::hooks::{Hooks, Moment, Target};
use std::time::Duration;

/// An application that is asked to stand still. Dropped, it is told that it goes on, if it was asked.
pub struct Pause {
    hooks: Hooks,
    about: About,
    process: FirstProcess,
    asked: bool,
}

impl Pause {
    /// That of a container, whose first process is `pid`; none when nobody is to be called. Only `quiesce` and `resume` of the hooks
    /// count.
    pub fn of(hooks: Hooks, about: About, pid: i32) -> Option<Self> {
        let is_wanted = hooks.quiesce.is_some() || hooks.resume.is_some();
        is_wanted.then(|| Self { hooks, about, process: FirstProcess::now(pid), asked: false })
    }

    /// Asks it; its yes says that it stands still. `stands` is how long it will be needed to at most.
    ///
    /// # Errors
    /// When it cannot be called, says no, or nothing in time. It may stand still all the same until it hears of [`resume`](Self::resume).
    pub fn quiesce(&mut self, stands: Duration) -> Result<(), CallError> {
        self.asked = true;
        let within = self.hooks.quiesce_timeout + stands;
        self.call(Moment::Quiesce, Some(within))
    }

    /// Tells it that it goes on, if it was asked to stand still.
    ///
    /// # Errors
    /// When it could not be told.
    pub fn resume(&mut self) -> Result<(), CallError> {
        if !std::mem::take(&mut self.asked) {
            return Ok(());
        }
        self.call(Moment::Resume, None)
    }

    fn call(&self, moment: Moment, within: Option<Duration>) -> Result<(), CallError> {
        let Some(target) = self.hooks.target(moment) else { return Ok(()) };
        let limit = self.hooks.limit(moment);
        let called = match target {
            Target::Program(path) => {
                let mut environment = self.about.environment(moment, self.process);
                if let Some(within) = within {
                    environment.push(("GODWIT_RESUME_WITHIN_MS", within.as_millis().to_string().into()));
                }
                program::run(path, &environment, limit, None).map_err(|error| error.to_string())
            }
            Target::Url(url) => Application::of(&self.about, self.process)
                .and_then(|application| match within {
                    Some(within) => application.quiesce(url, limit, within),
                    None => application.tell(url, moment, limit),
                })
                .map_err(|error| error.to_string()),
        };
        called.map_err(|why| CallError::Hook { moment, why: vec![why] })
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Err(error) = self.resume() {
            tracing::warn!(%error, "an application was not told that it goes on");
        }
    }
}
