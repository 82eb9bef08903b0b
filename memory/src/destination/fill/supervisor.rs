//! The supervisor: a thread of the process that conducts the restore.

use super::journal::{self, Counter, Journal};
use super::message::{Message, SpaceId};
use super::{FillError, FillReport, TaskPages, lists};
use crate::destination::PageStore;
use crate::sys::{fdpass, process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// CRIU's word that the restore has ended (`LAZY_PAGES_RESTORE_FINISHED` in criu/uffd.c: "RSTF").
const RESTORE_FINISHED: u32 = 0x5253_5446;
/// More deaths than this are no accident.
const MOST_RESTARTS: u64 = 100;
/// CRIU has this long for the second half of what it says.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether the anchors are in place.
const LOOK: Duration = Duration::from_micros(50);
/// A handler that has finished has this long to end.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// See the [module](super). Dropping it stops nothing: the fill goes on to its end in the background.
#[derive(Debug)]
pub struct Filler {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Tells the thread that the state has something for it.
    wake: EventFd,
    journal: Journal,
}

#[derive(Debug, Default)]
struct State {
    lists: Option<File>,
    abandoned: bool,
    pid: Option<u32>,
    restarts: u64,
    /// Seconds from the end of the restore, and pages put into place before it.
    outcome: Option<Result<(f64, u64), Fatal>>,
}

/// Why no successor is started.
#[derive(Clone, Copy, Debug)]
enum Fatal {
    Dying,
    Journal,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filler {
    /// Starts the handler, to be warm before the freeze, and listens on `socket_path`: `lazy-pages.socket` in CRIU's work
    /// directory. `exe` is an absolute path; with `args` it must call [`run_fill`](super::run_fill) with its standard
    /// input.
    pub fn start(
        exe: &Path,
        args: &[impl AsRef<std::ffi::OsStr>],
        socket_path: &Path,
        store: &PageStore,
    ) -> Result<Self, FillError> {
        let system = |doing| move |source| FillError::System { doing, source };
        let io = |doing| move |source| FillError::Io { doing, source };
        process::raise_descriptor_limit();
        let (journal, journal_file) = Journal::create().map_err(system("make a journal of the fill"))?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(system("make an event descriptor"))?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), wake, journal });
        let listener = listen(socket_path)?;
        let mut supervisor = Supervisor {
            exe: exe.into(),
            args: args.iter().map(|arg| arg.as_ref().to_owned()).collect(),
            socket_path: socket_path.into(),
            listener,
            store: store.file().try_clone().map_err(io("share the page store"))?,
            store_len: store.room() * crate::PAGE_SIZE,
            journal_file,
            connections: Vec::new(),
            held: BTreeMap::new(),
            next_root: 0,
            lists: None,
            started: None,
            handler: None,
            shared: shared.clone(),
        };
        supervisor.spawn()?;
        let thread = std::thread::Builder::new()
            .name("godwit-fill".into())
            .spawn(move || supervisor.run())
            .map_err(io("start a thread"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The pages of each task; just before the restore. A page in no list is zero.
    pub fn give(&self, lists: &[TaskPages]) -> Result<(), FillError> {
        let file =
            lists::write(lists).map_err(|source| FillError::Io { doing: "write the page lists", source })?;
        self.shared.state().lists = Some(file);
        self.notify();
        Ok(())
    }

    /// Waits until the anchors are in place ([`TaskPages::anchors`]), which takes some microseconds after the end of the restore;
    /// no longer than `patience`, which only a machine that has no time needs. Whether they are.
    pub fn wait_for_anchors(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.shared.journal.get(Counter::Anchored) == 0 {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// The tasks are about to run: from here on the fill makes way for them.
    pub fn release(&self) {
        self.shared.journal.count(Counter::Released, 1);
    }

    /// Waits until every page is in place. `progress` hears now and then how many pages are done, of how many (a fork
    /// makes more of them). May be called again after [`FillError::Deadline`].
    pub fn wait(
        &mut self,
        deadline: Instant,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<FillReport, FillError> {
        let mut state = self.shared.state();
        loop {
            let total = self.shared.journal.get(Counter::Total);
            let left = self.shared.journal.get(Counter::Remaining).min(total);
            progress(total - left, total);
            match state.outcome {
                Some(Ok((seconds, before))) => return Ok(self.report(seconds, before, state.restarts)),
                Some(Err(Fatal::Dying)) => return Err(FillError::Dying(state.restarts)),
                Some(Err(Fatal::Journal)) => return Err(FillError::Journal),
                None => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(FillError::Deadline { left, total });
            }
            let pause = (deadline - now).min(Duration::from_millis(100));
            state = self.shared.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends it at once: the restore failed. Tasks that still live lose their missing pages: only to be called when they
    /// were killed.
    pub fn abandon(mut self) {
        self.shared.state().abandoned = true;
        self.notify();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// The process that answers the faults now.
    pub fn handler_pid(&self) -> Option<u32> {
        self.shared.state().pid
    }

    fn notify(&self) {
        let _ = self.shared.wake.write(1);
    }

    fn report(&self, seconds: f64, before: u64, restarts: u64) -> FillReport {
        let get = |counter| self.shared.journal.get(counter);
        let bytes = get(Counter::Pages) * crate::PAGE_SIZE;
        FillReport {
            pages: get(Counter::Pages),
            bytes,
            faults: get(Counter::Faults),
            zero_faults: get(Counter::ZeroFaults),
            forks: get(Counter::Forks),
            removes: get(Counter::Removes),
            lost_forks: get(Counter::LostForks),
            unmaps: get(Counter::Unmaps),
            remaps: get(Counter::Remaps),
            existing: get(Counter::Existing),
            unregistered: get(Counter::Unregistered),
            restarts,
            seconds,
            gigabytes_per_second: (bytes - before * crate::PAGE_SIZE) as f64 / seconds.max(1e-9) / 1e9,
        }
    }
}

/// Where an address space comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Root { vpid: u32 },
    Fork { parent: SpaceId },
}

#[derive(Debug)]
struct Handler {
    child: Child,
    control: OwnedFd,
    has_lists: bool,
}

struct Supervisor {
    exe: PathBuf,
    args: Vec<std::ffi::OsString>,
    socket_path: PathBuf,
    listener: OwnedFd,
    store: File,
    store_len: u64,
    journal_file: File,
    connections: Vec<OwnedFd>,
    held: BTreeMap<SpaceId, (OwnedFd, Origin)>,
    next_root: SpaceId,
    lists: Option<File>,
    /// When the restore ended, and how many pages were in place then.
    started: Option<(Instant, u64)>,
    handler: Option<Handler>,
    shared: Arc<Shared>,
}

/// What the thread does next.
#[derive(PartialEq)]
enum Next {
    Go,
    /// It is to end now, whatever it does.
    Stop,
    /// It has done everything, and ends by itself.
    Finished,
}

impl Supervisor {
    fn run(mut self) {
        loop {
            match self.turn() {
                Ok(Next::Go) => {}
                Ok(Next::Stop) => break,
                Ok(Next::Finished) => {
                    // It gives its memory back little by little, which the kernel would not do for it.
                    self.await_end();
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "the supervision of the fill stumbles");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        if let Some(mut handler) = self.handler.take() {
            let _ = handler.child.kill();
            let _ = handler.child.wait();
        }
        let _ = std::fs::remove_file(&self.socket_path);
        self.shared.state().pid = None;
    }

    fn await_end(&mut self) {
        let Some(handler) = &mut self.handler else { return };
        let deadline = Instant::now() + LAST_WORDS;
        while matches!(handler.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn turn(&mut self) -> Result<Next, FillError> {
        let system = |doing| move |source| FillError::System { doing, source };
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![wanted(self.shared.wake.as_fd()), wanted(self.listener.as_fd())];
        fds.extend(self.connections.iter().map(|connection| wanted(connection.as_fd())));
        fds.extend(self.handler.as_ref().map(|handler| wanted(handler.control.as_fd())));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(Next::Go),
            result => result.map_err(system("wait for the handler of page faults"))?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let connections = 2..2 + self.connections.len();
        if ready[0] {
            let _ = self.shared.wake.read();
        }
        let mut state = self.shared.state();
        if state.abandoned {
            return Ok(Next::Stop);
        }
        // Always before anything from CRIU: whoever gave them waits for nothing before the restore.
        if let Some(lists) = state.lists.take() {
            self.lists = Some(lists);
        }
        drop(state);
        if let Some(handler) = self.handler.as_mut().filter(|handler| !handler.has_lists) {
            handler.has_lists = give_lists(&handler.control, self.lists.as_ref());
        }
        if ready[1] {
            self.accept().map_err(system("accept the connection of criu"))?;
        }
        for at in connections.rev() {
            if ready[at] && !self.hear_criu(at - 2) {
                self.connections.remove(at - 2);
            }
        }
        match self.handler.is_some() && ready.len() > 2 && ready[ready.len() - 1] {
            true => self.hear_handler(),
            false => Ok(Next::Go),
        }
    }

    fn accept(&mut self) -> Result<(), Errno> {
        let connection = fdpass::accept(&self.listener)?;
        let peer = socket::getsockopt(&connection, socket::sockopt::PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            tracing::warn!(uid = peer.uid(), "somebody else connected to the lazy-pages socket");
            return Ok(());
        }
        let patience = nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0);
        socket::setsockopt(&connection, socket::sockopt::ReceiveTimeout, &patience)?;
        self.connections.push(connection);
        Ok(())
    }

    /// One thing CRIU says; false when it is gone. A task is announced with its number and, unless it is a zombie
    /// (negative), a second message with its userfaultfd.
    fn hear_criu(&mut self, at: usize) -> bool {
        let connection = &self.connections[at];
        let mut number = [0; 4];
        let got = socket::recv(connection.as_raw_fd(), &mut number, socket::MsgFlags::MSG_WAITALL);
        if got != Ok(number.len()) {
            return false;
        }
        let number = u32::from_ne_bytes(number);
        if number == RESTORE_FINISHED {
            let before = self.shared.journal.get(Counter::Pages);
            self.started.get_or_insert_with(|| (Instant::now(), before));
            self.tell(Message::Start, None);
            return true;
        }
        if (number as i32) < 0 {
            return true;
        }
        let mut byte = [0; 1];
        let uffd = match fdpass::receive(connection, &mut byte, true) {
            Ok((1, descriptors)) => descriptors.into_iter().next(),
            _ => None,
        };
        let Some(uffd) = uffd else {
            tracing::error!(vpid = number, "criu sent no userfaultfd for a task");
            return false;
        };
        let id = self.next_root;
        self.next_root += 1;
        self.held.insert(id, (uffd, Origin::Root { vpid: number }));
        self.tell(Message::Root { id, vpid: number }, Some(id));
        true
    }

    /// Tells the handler, with the descriptor of an address space. If it is dead its successor will be told.
    fn tell(&self, message: Message, space: Option<SpaceId>) {
        let Some(handler) = &self.handler else { return };
        let descriptor = space.and_then(|id| self.held.get(&id)).map(|(uffd, _)| uffd.as_fd());
        if let Err(error) = message.send(&handler.control, descriptor.as_slice(), true) {
            tracing::debug!(%error, "the handler of page faults does not listen");
        }
    }

    fn hear_handler(&mut self) -> Result<Next, FillError> {
        let Some(handler) = &self.handler else { return Ok(Next::Go) };
        match Message::receive(&handler.control, false) {
            Err(Errno::EAGAIN) => {}
            Ok(Some((Message::Forked { id, parent }, descriptors))) => {
                let uffd = descriptors.into_iter().next().ok_or(FillError::Protocol)?;
                self.held.insert(id, (uffd, Origin::Fork { parent }));
            }
            Ok(Some((Message::Leave { id }, _))) => {
                self.held.remove(&id);
                self.tell(Message::Left { id }, None);
            }
            Ok(Some((Message::Finished, _))) => {
                let (seconds, before) =
                    self.started.map_or((0.0, 0), |(start, before)| (start.elapsed().as_secs_f64(), before));
                self.shared.state().outcome = Some(Ok((seconds, before)));
                self.shared.changed.notify_all();
                return Ok(Next::Finished);
            }
            Ok(Some(_)) | Ok(None) | Err(_) => self.succeed()?,
        }
        Ok(Next::Go)
    }

    /// The handler is dead: starts another one.
    fn succeed(&mut self) -> Result<(), FillError> {
        if let Some(mut dead) = self.handler.take() {
            let _ = dead.child.kill();
            let status = dead.child.wait();
            tracing::warn!(?status, "the handler of page faults died, starting another one");
        }
        loop {
            let mut state = self.shared.state();
            state.restarts += 1;
            state.pid = None;
            let fatal = match () {
                () if self.shared.journal.is_overfull() => Some(Fatal::Journal),
                () if state.restarts > MOST_RESTARTS => Some(Fatal::Dying),
                () => None,
            };
            // The tasks keep waiting: better than zeroes. Somebody may look at it, and abandon.
            if let Some(fatal) = fatal {
                state.outcome = Some(Err(fatal));
                self.shared.changed.notify_all();
                return Ok(());
            }
            if state.abandoned {
                return Ok(());
            }
            drop(state);
            match self.spawn() {
                Ok(()) => return Ok(()),
                Err(error) => tracing::error!(%error, "cannot start the handler of page faults again"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts a handler and tells it everything.
    fn spawn(&mut self) -> Result<(), FillError> {
        let system = |doing| move |source| FillError::System { doing, source };
        let (control, theirs) =
            socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(system("make a socket pair"))?;
        let child = Command::new(&self.exe)
            .args(&self.args)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| FillError::Io { doing: "start the handler of page faults", source })?;
        self.shared.state().pid = Some(child.id());
        let told = (|| {
            let hello = Message::Hello { store: self.store_len, journal: journal::BYTES };
            hello.send(&control, &[self.store.as_fd(), self.journal_file.as_fd()], true)?;
            let has_lists = give_lists(&control, self.lists.as_ref());
            for (&id, (uffd, origin)) in &self.held {
                let message = match *origin {
                    Origin::Root { vpid } => Message::Root { id, vpid },
                    Origin::Fork { parent } => Message::Forked { id, parent },
                };
                message.send(&control, &[uffd.as_fd()], true)?;
            }
            Message::Resume.send(&control, &[], true)?;
            if self.started.is_some() {
                Message::Start.send(&control, &[], true)?;
            }
            Ok(has_lists)
        })();
        // If it died while it was told, its control socket says so.
        let has_lists = told.unwrap_or_else(|errno: Errno| {
            tracing::debug!(%errno, "the handler of page faults died early");
            false
        });
        self.handler = Some(Handler { child, control, has_lists });
        Ok(())
    }
}

fn give_lists(control: &OwnedFd, lists: Option<&File>) -> bool {
    lists.is_some_and(|lists| Message::Lists.send(control, &[lists.as_fd()], true).is_ok())
}

/// Listens on a path that only root can connect to. The path may be longer than a socket's address.
fn listen(path: &Path) -> Result<OwnedFd, FillError> {
    let refused = |source: std::io::Error| FillError::Io { doing: "listen on the lazy-pages socket", source };
    let kernel = |errno: Errno| refused(errno.into());
    let name = path.file_name().ok_or_else(|| kernel(Errno::EINVAL))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = File::open(parent).map_err(refused)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    match std::fs::remove_file(&short) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(refused(error)),
        _ => {}
    }
    let listener = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let listener = listener.map_err(kernel)?;
    let address = UnixAddr::new(&short).map_err(kernel)?;
    socket::bind(listener.as_raw_fd(), &address).map_err(kernel)?;
    // Before anybody can connect.
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600)).map_err(refused)?;
    socket::listen(&listener, Backlog::MAXCONN).map_err(kernel)?;
    Ok(listener)
}
