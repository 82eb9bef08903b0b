//! A limit on bytes a second, shared by all connections of a migration.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Hands out permission to send. Clones share one budget.
#[derive(Clone, Debug, Default)]
pub struct Bandwidth {
    budget: Arc<Mutex<Budget>>,
}

#[derive(Debug)]
struct Budget {
    /// Bytes a second; 0 is no limit.
    limit: u64,
    from: Instant,
    used: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { limit: 0, from: Instant::now(), used: 0 }
    }
}

impl Bandwidth {
    /// At most so many bytes a second from now on; 0 takes the limit away.
    pub fn set(&self, bytes_per_second: u64) {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        *budget = Budget { limit: bytes_per_second, from: Instant::now(), used: 0 };
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).limit > 0
    }

    /// Waits until some bytes may be sent, and says how many of the `wanted`.
    pub fn take(&self, wanted: usize) -> usize {
        let (piece, wait) = {
            let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
            if budget.limit == 0 {
                return wanted;
            }
            let piece = wanted.min(1 << 16);
            budget.used += piece as u64;
            let due = Duration::from_secs_f64(budget.used as f64 / budget.limit as f64);
            (piece, due.saturating_sub(budget.from.elapsed()))
        };
        std::thread::sleep(wait);
        piece
    }
}
