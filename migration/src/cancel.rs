//! The wish to stop, raised by Ctrl-C and looked at between steps that may be undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A flag shared by everybody who may have to stop early. Cheap to clone.
///
/// It is only *looked at* before the commit: after it the migration finishes, whatever the user pressed.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    stop: AtomicBool,
    hung_up: AtomicBool,
}

impl Cancel {
    /// Asks everybody who holds a clone to stop at the next safe place.
    pub fn raise(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }

    /// Waits so long, or until somebody asks to stop.
    pub fn wait(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.is_raised() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20).min(pause));
        }
    }

    /// Whether somebody asked to stop.
    pub fn is_raised(&self) -> bool {
        self.0.stop.load(Ordering::SeqCst)
    }

    /// Tells everybody who holds a clone that nobody is at the other end of their connection any more, which they may not have
    /// noticed. That is no wish to stop.
    pub fn hang_up(&self) {
        self.0.hung_up.store(true, Ordering::SeqCst);
    }

    /// Whether somebody said so.
    pub fn is_hung_up(&self) -> bool {
        self.0.hung_up.load(Ordering::SeqCst)
    }
}
