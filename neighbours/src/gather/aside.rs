//! What is needed, and how what is needed in no order comes beside what is: memory beside files, each from whoever has it.

use super::{Board, Gathering};
use godwit_store::{Chunks, Digest, StoreError};
use std::thread::ScopedJoinHandle;

/// What is to be gathered, digests with their bytes.
pub struct Needs<'a> {
    /// In the order in which they are asked for.
    pub in_order: &'a [(Digest, u64)],
    /// What nobody needs to ask for.
    pub aside: Option<Aside<'a>>,
}

/// Takes a chunk; an error ends it.
pub type Take<'a> = Box<dyn FnMut(&[u8]) -> Result<(), StoreError> + Send + 'a>;

/// What is needed in no order.
pub struct Aside<'a> {
    /// What is needed in order, too, comes there alone.
    pub needs: &'a [(Digest, u64)],
    /// Hears each chunk that comes, on a thread of its own; after an error no more.
    pub take: Take<'a>,
}

impl<'a> Needs<'a> {
    /// Nothing besides these.
    pub fn in_order(needs: &'a [(Digest, u64)]) -> Self {
        Self { in_order: needs, aside: None }
    }
}

impl Board<'_> {
    /// An error when nothing more is wanted.
    pub(super) fn go_on(&self) -> Result<(), StoreError> {
        if self.lock().is_over { Err(StoreError::Interrupted) } else { Ok(()) }
    }

    /// Waits until what is needed aside has come, or `alive` says no more.
    pub(super) fn wait_for(
        &self,
        aside: &ScopedJoinHandle<'_, u64>,
        alive: &mut dyn FnMut() -> Result<(), StoreError>,
    ) {
        let mut state = self.lock();
        while state.is_aside_busy && !aside.is_finished() {
            drop(self.wait(state));
            let is_over = alive().is_err();
            state = self.lock();
            state.is_over |= is_over;
        }
    }
}

impl Aside<'_> {
    /// Has all taken that comes. What it is ended by is known to whoever ended it.
    pub(super) fn take_all(mut self, board: &Board<'_>, chunks: &mut Gathering<'_>) {
        let ended = self.needs.iter().try_for_each(|(digest, _)| match chunks.chunk(*digest)? {
            Some(chunk) => (self.take)(&chunk),
            None => Ok(()),
        });
        if let Err(error) = ended {
            tracing::debug!(%error, "what is needed aside is not gathered to the end");
        }
        board.lock().is_aside_busy = false;
        board.news.notify_all();
    }
}
