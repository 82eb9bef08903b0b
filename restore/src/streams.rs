//! Further connections of a migration, at the destination. Each of them begins in a process of its own (over ssh) and is
//! handed to the one that receives the container, over a socket in the migration's directory. Where that process listens
//! itself they come to it directly ([`Joins`]): over TLS a connection is more than its descriptors.

use godwit_memory::destination::{PageStore, StoreError};
use godwit_migration::journal::dir_of;
use godwit_migration::{Cancel, MigrationId};
use godwit_transfer::{Descriptors, Incoming, Message, Transport, Wire, WireError, handover};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a further connection may be silent: rounds may be far apart.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Further connections that one migration may have in its time; the source opens 15 at most.
const MAX_STREAMS: usize = 64;

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

/// Takes over one further connection.
type Take = Box<dyn Fn(Box<dyn Transport>) -> io::Result<()> + Send>;

/// The migrations that this process receives, for further connections to find theirs.
#[derive(Clone, Default)]
pub struct Joins(Arc<Mutex<HashMap<MigrationId, (String, Take)>>>);

impl Joins {
    fn open(&self) -> MutexGuard<'_, HashMap<MigrationId, (String, Take)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection that has said `Join` to its migration. `peer` is who is at its other end.
    ///
    /// # Errors
    /// When no such migration is received here, or it came from somebody else.
    pub fn join(&self, wire: Wire, migration: &MigrationId, peer: &str) -> io::Result<()> {
        let open = self.open();
        // whoever has nothing to do with it need not learn that it exists
        let refused = || io::Error::other(format!("no migration {migration} of `{peer}` is received here"));
        let (_, take) = open.get(migration).filter(|(whose, _)| whose == peer).ok_or_else(refused)?;
        take(wire.into_transport().map_err(io::Error::other)?)
    }
}

/// How further connections come to a migration, and whose they must be.
pub struct Doors<'a> {
    /// The migration's directory.
    pub job: &'a Path,
    /// Which migration.
    pub migration: &'a MigrationId,
    /// Who sends it.
    pub peer: &'a str,
    /// Where this process looks for it.
    pub joins: &'a Joins,
    /// The version of the first connection's wire.
    pub version: u16,
}

/// Takes connections, and the pages that come over them.
pub struct PageReceiver {
    joins: Joins,
    migration: MigrationId,
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
    /// Takes connections from now on; pages go to `store`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(doors: &Doors<'_>, store: Arc<PageStore>) -> io::Result<Self> {
        let socket = socket_of(doors.job);
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let (tell, news) = channel();
        let cancel = Cancel::default();
        let (stop, version, taken) = (cancel.clone(), doors.version, AtomicUsize::new(0));
        let take = move |transport: Box<dyn Transport>| {
            if taken.fetch_add(1, Ordering::Relaxed) >= MAX_STREAMS {
                return Err(io::Error::other("the migration has too many connections"));
            }
            let (store, tell, stop) = (store.clone(), tell.clone(), stop.clone());
            std::thread::spawn(move || {
                if let Err(error) = take_pages(transport, &store, version, stop, &tell) {
                    // nobody listens any more when the migration is over
                    let _ = tell.send(News::Failed(error));
                }
            });
            Ok(())
        };
        let peer = doors.peer.to_owned();
        doors.joins.open().insert(doors.migration.clone(), (peer, Box::new(take)));
        let (joins, migration) = (doors.joins.clone(), doors.migration.clone());
        let stop = cancel.clone();
        std::thread::spawn(move || {
            for giver in listener.incoming() {
                if stop.is_raised() {
                    return;
                }
                let Ok(giver) = giver else { continue };
                let (joins, migration) = (joins.clone(), migration.clone());
                // whoever gives a connection away may take its time
                std::thread::spawn(move || match Given::take(giver) {
                    Ok(given) => match joins.open().get(&migration) {
                        Some((_, take)) => take(Box::new(given)),
                        None => Ok(()),
                    },
                    Err(error) => Err(error),
                });
            }
        });
        let (joins, migration) = (doors.joins.clone(), doors.migration.clone());
        Ok(Self { joins, migration, news, ends: Vec::new(), cancel, socket })
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
        self.joins.open().remove(&self.migration);
        self.cancel.raise();
        // wakes who waits for the next connection
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A connection that another process of this host gave away: that one stays as long as its socket is open.
struct Given {
    transport: Descriptors,
    _giver: UnixStream,
}

impl Given {
    fn take(giver: UnixStream) -> io::Result<Self> {
        let (stream, transport) = handover::take(&giver)?;
        tracing::debug!(stream, "a further connection");
        Ok(Self { transport, _giver: giver })
    }
}

impl Transport for Given {
    fn receive(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
        self.transport.receive(buffer, limit)
    }

    fn send(&mut self, bytes: &[u8], limit: Duration) -> io::Result<usize> {
        self.transport.send(bytes, limit)
    }
}

/// Everything that comes over one connection, until its end.
fn take_pages(
    transport: Box<dyn Transport>,
    store: &PageStore,
    version: u16,
    cancel: Cancel,
    tell: &Sender<News>,
) -> Result<(), StreamError> {
    let mut wire = Wire::agreed(transport, cancel, PATIENCE, version);
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
    let mut receiver = UnixStream::connect(socket_of(&dir_of(root, migration)))?;
    let transport: Box<dyn Transport> = wire.into_transport().map_err(io::Error::other)?;
    handover::give(transport.as_ref(), stream, &mut receiver)
}
