//! What the source hears while something takes its time here, and what it may say.

use crate::error::DestinationError;
use godwit_migration::Cancel;
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Incoming, Message, Wire};
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

/// How often the source hears that something is still done here, and may say that it has enough.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How often a wait looks whether it is over.
const LOOK_UP: Duration = Duration::from_millis(5);

/// Signs of life, with how far it is.
pub(super) struct Signs<'a> {
    pub wire: &'a mut Wire,
    /// Bytes of `total`.
    pub done: u64,
    pub total: u64,
    /// Raised when nothing more is wanted of any neighbour.
    pub over: Cancel,
    said: Instant,
}

impl<'a> Signs<'a> {
    pub fn new(wire: &'a mut Wire) -> Self {
        Self { wire, done: 0, total: 0, over: Cancel::default(), said: Instant::now() }
    }

    /// Says it, unless that was done just now.
    ///
    /// # Errors
    /// When the source, or somebody here, wants no more of it, or the link is gone.
    pub fn give(&mut self) -> Result<(), DestinationError> {
        if self.said.elapsed() < SIGN_OF_LIFE {
            return Ok(self.wire.check_cancel()?);
        }
        self.said = Instant::now();
        match self.wire.glance()? {
            None => Ok(self.wire.say(&Message::Alive { done: self.done, total: self.total })?),
            Some(Incoming::Message(Message::Cancel { reason, again })) => {
                Err(DestinationError::Cancelled { reason, again })
            }
            Some(other) => Err(unexpected(&other, "silence").into()),
        }
    }

    /// Has `work` done, and gives signs meanwhile.
    ///
    /// # Errors
    /// Those of [`Signs::give`]; `over` is raised then, and `work` waited for.
    pub fn meanwhile<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> Result<T, DestinationError> {
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                std::thread::sleep(LOOK_UP);
                self.give().inspect_err(|_| self.over.raise())?;
            }
            Ok(working.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }
}
