//! Further connections of a migration: memory pages beside everything else.

use crate::message::Message;
use crate::wire::{Wire, WireError};
use godwit_migration::Cancel;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Batches that may wait for a connection: enough that reading and sending overlap, few enough that they are fresh.
const QUEUE: usize = 8;

/// What a connection has to do.
enum Task {
    Pages(Vec<u8>),
    EndOf(u32),
    Hurry,
}

/// The connections, each with a thread that compresses and sends.
pub struct PageStreams {
    lanes: Vec<Lane>,
    cancel: Cancel,
}

struct Lane {
    queue: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
    sent: Arc<AtomicU64>,
    failed: Arc<Mutex<Option<WireError>>>,
}

impl PageStreams {
    /// Takes over connections that have joined. `cancel` is what they were opened with: raised when they are dropped.
    pub fn new(wires: Vec<Wire>, cancel: Cancel) -> Self {
        Self { lanes: wires.into_iter().map(Lane::start).collect(), cancel }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Bytes sent over all of them.
    pub fn bytes_sent(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.sent.load(Ordering::Relaxed)).sum()
    }

    /// Queues a batch; waits when too many are queued.
    ///
    /// # Errors
    /// What ended the connection.
    pub fn send(&self, stream: usize, batch: Vec<u8>) -> Result<(), WireError> {
        match self.lanes.get(stream) {
            Some(lane) => lane.give(Task::Pages(batch)),
            None => Err(WireError::Malformed(format!("no connection {stream}"))),
        }
    }

    /// Queues the end of a round on every connection.
    ///
    /// # Errors
    /// What ended a connection.
    pub fn end_of(&self, round: u32) -> Result<(), WireError> {
        self.lanes.iter().try_for_each(|lane| lane.give(Task::EndOf(round)))
    }

    /// From now on as quickly as may be.
    ///
    /// # Errors
    /// What ended a connection.
    pub fn hurry(&self) -> Result<(), WireError> {
        self.lanes.iter().try_for_each(|lane| lane.give(Task::Hurry))
    }
}

impl Lane {
    fn start(mut wire: Wire) -> Self {
        let (queue, tasks) = sync_channel::<Task>(QUEUE);
        let sent = Arc::new(AtomicU64::new(wire.bytes_sent()));
        let failed = Arc::new(Mutex::new(None));
        let (counter, fate) = (sent.clone(), failed.clone());
        let thread = std::thread::spawn(move || {
            for task in tasks {
                let done = match task {
                    Task::Pages(batch) => wire.send_pages(&batch),
                    Task::EndOf(round) => wire.say(&Message::StreamEnd { round }),
                    Task::Hurry => {
                        wire.hurry();
                        Ok(())
                    }
                };
                counter.store(wire.bytes_sent(), Ordering::Relaxed);
                if let Err(error) = done {
                    *fate.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
            }
        });
        Self { queue: Some(queue), thread: Some(thread), sent, failed }
    }

    fn give(&self, task: Task) -> Result<(), WireError> {
        if self.queue.as_ref().is_some_and(|queue| queue.send(task).is_ok()) {
            return Ok(());
        }
        // the thread has ended, and left word why; whoever asks again hears less
        let why = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(why.unwrap_or(WireError::Closed { after: None }))
    }
}

impl Drop for PageStreams {
    fn drop(&mut self) {
        self.cancel.raise();
        for lane in &mut self.lanes {
            lane.queue = None;
            if let Some(thread) = lane.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
