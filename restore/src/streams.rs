//! Further connections of a migration, at the destination. Each of them begins in a process of its own (over ssh) and is
//! handed to the one that receives the container, over a socket in the migration's directory.

use godwit_memory::destination::{PageStore, StoreError};
use godwit_migration::{Cancel, MigrationId};
use godwit_transfer::{Incoming, Message, Transport, Wire, WireError, handover};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long a further connection may be silent: rounds may be far apart.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Why pages did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection broke.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The pages cannot be kept.
    #[error("the memory that arrived cannot be kept")]
    Store(#[from] StoreError),
}

/// What a connection's thread has to tell.
enum News {
    /// A connection has sent all of a round.
    End { round: u32 },
    /// A connection is of no use any more.
    Failed(StreamError),
}

/// Takes connections, and the pages that come over them.
pub struct PageReceiver {
    news: Receiver<News>,
    /// Ends of rounds that came early.
    ends: Vec<u32>,
    cancel: Cancel,
    socket: PathBuf,
}

fn socket_of(job: &Path) -> PathBuf {
    job.join("streams.sock")
}

impl PageReceiver {
    /// Listens in the directory `job`; pages go to `store`. `version` is that of the first connection's wire.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(job: &Path, store: Arc<PageStore>, version: u16) -> io::Result<Self> {
        let socket = socket_of(job);
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let (tell, news) = channel();
        let cancel = Cancel::default();
        let stop = cancel.clone();
        std::thread::spawn(move || {
            for giver in listener.incoming() {
                if stop.is_raised() {
                    return;
                }
                let Ok(giver) = giver else { continue };
                let (store, tell, stop) = (store.clone(), tell.clone(), stop.clone());
                std::thread::spawn(move || {
                    if let Err(error) = take_pages(&giver, &store, version, stop, &tell) {
                        // nobody listens any more when the migration is over
                        let _ = tell.send(News::Failed(error));
                    }
                });
            }
        });
        Ok(Self { news, ends: Vec::new(), cancel, socket })
    }

    /// Waits until `streams` connections have sent all of a round.
    ///
    /// # Errors
    /// What went wrong on one of them, or that nothing came in time.
    pub fn wait_for(&mut self, round: u32, streams: u16, patience: Duration) -> Result<(), StreamError> {
        let until = Instant::now() + patience;
        while self.ends.iter().filter(|end| **end == round).count() < usize::from(streams) {
            match self.news.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(News::End { round }) => self.ends.push(round),
                Ok(News::Failed(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) => return Err(WireError::Silent(patience).into()),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(WireError::Closed { after: None }.into());
                }
            }
        }
        self.ends.retain(|end| *end != round);
        Ok(())
    }
}

impl Drop for PageReceiver {
    fn drop(&mut self) {
        self.cancel.raise();
        // wakes who waits for the next connection
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Everything that comes over one connection, until its end.
fn take_pages(
    giver: &UnixStream,
    store: &PageStore,
    version: u16,
    cancel: Cancel,
    tell: &Sender<News>,
) -> Result<(), StreamError> {
    let (stream, transport) =
        handover::take(giver).map_err(|error| WireError::Malformed(error.to_string()))?;
    tracing::debug!(stream, "a further connection");
    let mut wire = Wire::agreed(Box::new(transport), cancel, PATIENCE, version);
    wire.say(&Message::Joined)?;
    loop {
        match wire.hear() {
            Ok(Incoming::Pages(batch)) => {
                store.apply(&batch)?;
            }
            Ok(Incoming::Message(Message::StreamEnd { round })) => {
                if tell.send(News::End { round }).is_err() {
                    return Ok(());
                }
            }
            Ok(other) => return Err(godwit_transfer::wire::unexpected(&other, "pages").into()),
            // the source closes when it has sent all; whether that was all the first connection tells
            Err(WireError::Closed { .. } | WireError::Interrupted) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Hands a connection that has said `Join` to the process of this host that receives `migration`, and stays until that has
/// done with it.
///
/// # Errors
/// When nobody receives it here.
pub fn pass_on(wire: Wire, root: &Path, migration: &MigrationId, stream: u16) -> io::Result<()> {
    let job = root.join("migrations").join(migration.as_str());
    let mut receiver = UnixStream::connect(socket_of(&job))?;
    let transport: Box<dyn Transport> = wire.into_transport().map_err(io::Error::other)?;
    handover::give(transport.as_ref(), stream, &mut receiver)
}
