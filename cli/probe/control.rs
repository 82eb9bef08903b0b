//! Asking a running probe: SIGUSR1 and a unix socket give the largest gap, SIGINT, SIGTERM and `stop` end it.
//!
//! The socket takes lines: `gap` (the largest gap since the last `gap`), `status` (the same without beginning
//! a new period) and `stop`; each is answered with one line of JSON.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::ProbeError;
use super::client::StoppedBy;
use super::output::Output;

/// How long a question on the socket may wait for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// The longest line that is read from the socket, bytes.
const LINE_LIMIT: u64 = 256;

/// What the probe is asked to do.
pub enum Command {
    /// Report the largest gap.
    Gap {
        /// Begin a new period.
        reset: bool,
        /// Where to.
        reply: ReplyTo,
    },
    /// Stop sending.
    Stop(StoppedBy),
}

/// Who asked.
pub enum ReplyTo {
    /// SIGUSR1: one line on stdout.
    Stdout,
    /// A client of the socket.
    Client(oneshot::Sender<String>),
}

impl ReplyTo {
    /// Answers with one line.
    pub fn send(self, line: String, output: &Output) {
        match self {
            Self::Stdout => output.json(line),
            // a client that has gone needs no answer
            Self::Client(client) => drop(client.send(line)),
        }
    }
}

/// Hands commands to the probe and wakes it.
#[derive(Clone)]
pub struct Commander {
    commands: Sender<Command>,
    waker: Arc<UnixStream>,
}

impl Commander {
    /// A commander, the commands, and the stream that becomes readable when there is one.
    ///
    /// # Errors
    /// When no socket pair can be made.
    pub fn pair() -> Result<(Self, Receiver<Command>, UnixStream), ProbeError> {
        let (waker, wake) = UnixStream::pair().map_err(ProbeError::Runtime)?;
        waker.set_nonblocking(true).and_then(|()| wake.set_nonblocking(true)).map_err(ProbeError::Runtime)?;
        let (commands, received) = channel();
        Ok((Self { commands, waker: Arc::new(waker) }, received, wake))
    }

    /// Returns false when the probe has finished.
    pub fn send(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        // a full stream means that the probe is being woken already
        let _ = (&*self.waker).write(&[1]);
        sent
    }
}

/// Listens to signals and the socket until dropped.
pub struct Control {
    socket: Option<PathBuf>,
    finish: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Begins to listen. Signals are handled from here on, whichever thread they reach.
    ///
    /// # Errors
    /// When the handlers cannot be set or the socket cannot be made.
    pub fn start(commander: Commander, socket: Option<&Path>) -> Result<Self, ProbeError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ProbeError::Runtime)?;
        let entered = runtime.enter();
        let handler = |kind| signal(kind).map_err(ProbeError::Runtime);
        let signals = [
            handler(SignalKind::interrupt())?,
            handler(SignalKind::terminate())?,
            handler(SignalKind::user_defined1())?,
        ];
        let listener = socket.map(listen).transpose()?;
        drop(entered);
        let (finish, finished) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = finished => {}
                    () = serve_signals(signals, commander.clone()) => {}
                    () = serve_socket(listener, commander.clone()) => {}
                }
            });
        });
        Ok(Self { socket: socket.map(Path::to_owned), finish: Some(finish), thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.finish.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener, ProbeError> {
    let failed = |source| ProbeError::Control { path: path.to_owned(), source };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    // a socket nobody listens to was left behind by a probe that was killed
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

async fn serve_signals([mut interrupt, mut terminate, mut user]: [Signal; 3], commander: Commander) {
    loop {
        let command = tokio::select! {
            _ = interrupt.recv() => Command::Stop(StoppedBy::Signal),
            _ = terminate.recv() => Command::Stop(StoppedBy::Signal),
            _ = user.recv() => Command::Gap { reset: true, reply: ReplyTo::Stdout },
        };
        commander.send(command);
    }
}

async fn serve_socket(listener: Option<UnixListener>, commander: Commander) {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve_client(stream, commander.clone()))),
            // out of descriptors, most likely: others may come free
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_client(stream: tokio::net::UnixStream, commander: Commander) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 => {}
            _ => return,
        }
        let answer = match line.trim_ascii() {
            b"gap" => ask(&commander, true).await,
            b"status" => ask(&commander, false).await,
            b"stop" => {
                commander.send(Command::Stop(StoppedBy::Control));
                r#"{"message_type":"stopping"}"#.to_owned()
            }
            _ => error("expected `gap`, `status` or `stop`"),
        };
        if writer.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn ask(commander: &Commander, reset: bool) -> String {
    let (reply, answer) = oneshot::channel();
    commander.send(Command::Gap { reset, reply: ReplyTo::Client(reply) });
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Ok(Ok(line)) => line,
        _ => error("the probe has finished sending"),
    }
}

fn error(message: &str) -> String {
    serde_json::json!({ "message_type": "error", "message": message }).to_string()
}
