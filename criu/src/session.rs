//! One `criu swrk` process and the SOCK_SEQPACKET socket to it: one protobuf message per packet (CRIU's cr-service.c).
//!
//! Between a request and its answer CRIU may ask back (`NOTIFY`), and waits until told to go on. Shutting the socket is the
//! only abort: CRIU then fails by itself at its next question and leaves a frozen cgroup frozen, whereas a kill between
//! seize and detach would let the container run. Against a kill by others, and for a CRIU that nothing else ends, there is the
//! [guardian](godwit_guardian).

use std::ffi::{CString, OsString};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_guardian::{Brake, Ending, Guard, Guardian};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use protobuf::{EnumOrUnknown, Message};
use rust_criu::rust_criu_protobuf::rpc::{Criu_opts, Criu_req, Criu_req_type, Criu_resp};

use crate::binary::CriuBinary;
use crate::error::CriuError;
use crate::log;
use crate::sys;

/// Number of the RPC socket in the CRIU process.
const SOCKET_NUMBER: RawFd = 3;
/// Passed descriptors get this number and the following ones in the CRIU process.
const FIRST_PASSED: RawFd = 10;
/// Descriptors to be passed are first moved above this number, so that moving them down cannot overwrite one another.
const ABOVE_PASSED: RawFd = 512;
/// Longest packet read from CRIU, bytes. Its answers are a few hundred bytes.
const MAX_PACKET: usize = 256 * 1024;
/// How long a finished CRIU may take to exit.
const EXIT_TIME: Duration = Duration::from_secs(10);

/// A question of CRIU's in the middle of its work.
#[derive(Debug)]
pub struct Notify {
    /// The step: `pre-dump`, `post-dump`, `network-lock`, `setup-namespaces`, `post-restore`, `pre-resume`, `post-resume`,
    /// `orphan-pts-master`, `status-ready`, ... (CRIU's action-scripts.c).
    pub script: String,
    /// The root task's pid as CRIU sees it. CRIU gives it with `setup-namespaces` and `post-restore`; it is kept for the
    /// questions that follow in the same request.
    pub pid: Option<i32>,
    /// A descriptor that came along (the terminal's master with `orphan-pts-master`).
    pub fd: Option<OwnedFd>,
}

/// The answer to a [`Notify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotifyAnswer {
    /// Go on.
    Continue,
    /// Go on, and these external resources exist besides (for `query-ext-files`).
    External(Vec<String>),
    /// Fail: a dump lets the tasks as they were, a restore kills what it made. CRIU ignores it at `pre-resume` and later.
    Refuse,
}

/// Where and with what the CRIU process starts.
#[derive(Debug, Default)]
pub struct SessionOptions {
    /// cgroup directories CRIU enters before exec, one per hierarchy. Keep it out of the container's own cgroup.
    pub cgroups: Vec<PathBuf>,
    /// Descriptors CRIU gets besides the socket; their numbers there are [`Session::passed`]'s.
    pub pass: Vec<OwnedFd>,
    /// Variables CRIU's environment has besides ours.
    pub env: Vec<(OsString, OsString)>,
    /// A file that CRIU, and only CRIU, sees in another's place.
    pub bind: Option<Bind>,
}

/// A file in another's place, for a process in a mount namespace of its own. (CRIU then takes a tree in our mount namespace for
/// one that has its own.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The file that is seen.
    pub file: PathBuf,
    /// The existing file in whose place it is seen.
    pub over: PathBuf,
}

/// A conversation with one CRIU process.
#[derive(Debug)]
pub struct Session {
    socket: Option<OwnedFd>,
    child: Option<Child>,
    passed: Vec<RawFd>,
    guard: Option<Guard>,
    /// Tells CRIU's end. The socket need not: tasks that are being restored have it, too.
    end: Option<OwnedFd>,
}

impl Session {
    /// Starts `criu swrk` in a session of its own, its stdio on `/dev/null`, umask 077, with no stray descriptor of ours.
    /// It is not tied to our life: when we die its socket closes and it fails or finishes by itself.
    pub fn start(criu: &CriuBinary, options: SessionOptions) -> Result<Session, CriuError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|e| CriuError::io("cannot make a socket pair for criu")(e.into()))?;

        let mut descriptors = vec![(move_up(&theirs)?, SOCKET_NUMBER)];
        for (fd, number) in options.pass.iter().zip(FIRST_PASSED..) {
            descriptors.push((move_up(fd)?, number));
        }
        let passed = descriptors.iter().skip(1).map(|(_, number)| *number).collect();

        let mut cgroups = Vec::new();
        for dir in &options.cgroups {
            let procs = dir.join("cgroup.procs");
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&procs)
                .map_err(CriuError::io(format!("cannot open `{}`", procs.display())))?;
            cgroups.push(file.into());
        }

        let mut command = Command::new(criu.path());
        command.arg("swrk").arg(SOCKET_NUMBER.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(options.env);
        let bind = match &options.bind {
            Some(bind) => Some((c_path(&bind.file)?, c_path(&bind.over)?)),
            None => None,
        };
        sys::prepare(&mut command, sys::ChildSetup { descriptors, cgroups, bind });
        let child =
            command.spawn().map_err(|source| CriuError::Spawn { path: criu.path().to_owned(), source })?;
        tracing::debug!(pid = child.id(), criu = %criu.path().display(), "criu started");
        let end = sys::open_process(child.id().cast_signed()).ok();
        Ok(Session { socket: Some(ours), child: Some(child), passed, guard: None, end })
    }

    /// A session over an existing SOCK_SEQPACKET socket, with no process of ours behind it.
    pub fn over(socket: OwnedFd) -> Session {
        Session { socket: Some(socket), child: None, passed: Vec::new(), guard: None, end: None }
    }

    /// Has a guardian watch this CRIU from now on. (When the binary is a wrapper script that does not `exec` criu, the script.)
    pub(crate) fn watch(&mut self, guardian: &Arc<Guardian>) {
        self.guard = self.pid().map(|pid| guardian.watch(pid.cast_signed()));
    }

    /// CRIU is about to work on the tasks of the brake's cgroup, which must not run before it has ended well.
    pub(crate) fn arm(&mut self, brake: Brake) {
        if let Some(guard) = &mut self.guard {
            guard.arm(brake);
        }
    }

    /// CRIU's process id. (When the binary is a wrapper script that does not `exec` criu, the script's.)
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The numbers, in CRIU, of the descriptors in [`SessionOptions::pass`], in their order.
    pub fn passed(&self) -> &[RawFd] {
        &self.passed
    }

    /// Sends `req` and returns CRIU's final answer, whether it says success or failure; `on_notify` answers its questions.
    ///
    /// `timeout` limits the time spent waiting for CRIU (not the time spent in `on_notify`); when it is over the socket is
    /// shut, which makes CRIU give up at its next question. `operation` is for error messages.
    pub fn request(
        &mut self,
        operation: &'static str,
        req: &Criu_req,
        timeout: Duration,
        on_notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
    ) -> Result<Criu_resp, CriuError> {
        let answer = self.converse(operation, req, timeout, on_notify);
        if let (Err(CriuError::Crashed { .. }), Some(guard)) = (&answer, &self.guard) {
            // first of all: the guardian may be gone, too
            guard.pull();
        }
        answer
    }

    fn converse(
        &mut self,
        operation: &'static str,
        req: &Criu_req,
        timeout: Duration,
        on_notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
    ) -> Result<Criu_resp, CriuError> {
        self.send(operation, req)?;
        let mut left = timeout;
        let mut root_pid = None;
        loop {
            let waited = Instant::now();
            let Some((resp, fd)) = self.receive(operation, left)? else {
                self.abort();
                return Err(CriuError::Timeout { operation, after: timeout, log: None });
            };
            left = left.saturating_sub(waited.elapsed());
            if resp.type_() != Criu_req_type::NOTIFY {
                return Ok(resp);
            }
            let pid = resp.notify.as_ref().and_then(|n| n.pid).filter(|pid| *pid > 0);
            root_pid = pid.or(root_pid);
            let notify = Notify { script: resp.notify.script().to_owned(), pid: root_pid, fd };
            let answer = on_notify(&notify);
            tracing::debug!(script = %notify.script, pid = ?notify.pid, ?answer, "criu asks");
            self.send(operation, &notify_answer(&answer))?;
        }
    }

    /// Shuts the socket: CRIU fails at its next question or answer, and undoes what it has begun.
    pub fn abort(&mut self) {
        self.socket = None;
    }

    /// Shuts the socket and waits for CRIU to exit, which it does by itself after its answer. `None` when there is no process.
    pub fn finish(mut self) -> Result<Option<ExitStatus>, CriuError> {
        self.socket = None;
        self.wait()
    }

    /// The end of a CRIU that works on tasks, whatever its answer was: when this returns it has ended, and nobody freezes the tasks
    /// because of it any more. One that gave no answer undoes its work when its socket is shut; one that does not even end then is
    /// killed, if a guardian is there to hold the tasks.
    ///
    /// # Errors
    /// The answer's, or [`CriuError::Killed`]; and when a CRIU that had answered does not end.
    pub(crate) fn conclude(mut self, answer: Result<Criu_resp, CriuError>) -> Result<Criu_resp, CriuError> {
        self.socket = None;
        let ended = match (&answer, &self.guard) {
            // without a guard nobody waited for one that failed, and nothing depends on it
            (Err(_), None) => return answer,
            _ => self.wait(),
        };
        let Some(guard) = self.guard.take() else { return answer.and_then(|resp| ended.map(|_| resp)) };
        if ended.is_err() && guard.is_armed() {
            tracing::warn!("criu does not end, and is killed");
            if let Some(child) = &mut self.child {
                let _ = child.kill();
            }
            let _ = self.wait();
        }
        let ending = guard.conclude(answer.is_ok());
        if let Ending::Held { within } = ending {
            tracing::warn!(?within, "criu was killed; its tasks were frozen before they could run");
        }
        // one that crashed may do better in another way; one that somebody has killed must not be sent again
        let was_killed = matches!(&ended, Ok(Some(status)) if status.signal() == Some(libc::SIGKILL));
        match answer {
            Err(CriuError::Crashed { operation, explanation, log })
                if was_killed || ending == Ending::Loose =>
            {
                Err(CriuError::Killed { operation, held: ending != Ending::Loose, explanation, log })
            }
            answer => answer.and_then(|resp| ended.map(|_| resp)),
        }
    }

    fn wait(&mut self) -> Result<Option<ExitStatus>, CriuError> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let started = Instant::now();
        let mut nap = Duration::from_micros(200);
        loop {
            if let Some(status) = child.try_wait().map_err(CriuError::io("cannot wait for criu"))? {
                self.child = None;
                return Ok(Some(status));
            }
            if started.elapsed() >= EXIT_TIME {
                return Err(CriuError::Timeout { operation: "exit", after: EXIT_TIME, log: None });
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(20));
        }
    }

    fn send(&self, operation: &'static str, req: &Criu_req) -> Result<(), CriuError> {
        let bytes = req
            .write_to_bytes()
            .map_err(|e| CriuError::Protocol { operation, detail: format!("request not encodable: {e}") })?;
        let socket = self.open_socket(operation)?;
        let sent =
            sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::MSG_NOSIGNAL, None);
        match sent {
            Ok(_) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(crashed(operation)),
            Err(e) => Err(CriuError::io(format!("cannot send criu the {operation} request"))(e.into())),
        }
    }

    /// The next packet; `None` when it did not come in time.
    fn receive(
        &self,
        operation: &'static str,
        timeout: Duration,
    ) -> Result<Option<(Criu_resp, Option<OwnedFd>)>, CriuError> {
        let socket = self.open_socket(operation)?;
        let failed = |e: Errno| CriuError::io(format!("cannot read criu's answer to {operation}"))(e.into());
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = vec![wanted(socket.as_fd())];
            fds.extend(self.end.as_ref().map(|end| wanted(end.as_fd())));
            match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if Instant::now() >= until => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) if fds[0].any().unwrap_or(true) => break,
                // what it said last was heard
                Ok(_) => return Err(crashed(operation)),
                Err(e) => return Err(failed(e)),
            }
        }

        let mut packet = vec![0u8; MAX_PACKET];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let (length, fd, flags) = {
            let mut parts = [IoSliceMut::new(&mut packet)];
            let got =
                recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
            let message = match got {
                Ok(message) => message,
                Err(Errno::ECONNRESET) => return Err(crashed(operation)),
                Err(e) => return Err(failed(e)),
            };
            let mut fds = Vec::new();
            for control in message.cmsgs().map_err(failed)? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    fds.extend(numbers.into_iter().map(sys::adopt));
                }
            }
            (message.bytes, fds.into_iter().next(), message.flags)
        };
        if length == 0 {
            return Err(crashed(operation));
        }
        let protocol = |detail: String| CriuError::Protocol { operation, detail };
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(protocol(format!("longer than {MAX_PACKET} bytes")));
        }
        let resp = Criu_resp::parse_from_bytes(&packet[..length]).map_err(|e| protocol(e.to_string()))?;
        Ok(Some((resp, fd)))
    }

    fn open_socket(&self, operation: &'static str) -> Result<&OwnedFd, CriuError> {
        self.socket
            .as_ref()
            .ok_or_else(|| CriuError::Protocol { operation, detail: "the session was aborted".into() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.socket = None;
        let Some(mut child) = self.child.take() else { return };
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // CRIU may still be undoing its work, and must not be killed at it: something has to wait for it.
        let reaper = std::thread::Builder::new().name("criu-reaper".into()).spawn(move || child.wait());
        if let Err(error) = reaper {
            tracing::warn!(%error, "cannot wait for criu in the background");
        }
    }
}

/// Looks at the answer: `Ok` when it is of the wanted type and says success, else the log explained.
pub(crate) fn expect_success(
    operation: &'static str,
    wanted: Criu_req_type,
    answer: Result<Criu_resp, CriuError>,
    log_file: Option<&Path>,
) -> Result<Criu_resp, CriuError> {
    let kept = log_file.filter(|p| p.exists()).map(Path::to_owned);
    match answer {
        Ok(resp) if resp.success() && resp.type_() == wanted => Ok(resp),
        Ok(resp) if resp.success() => Err(CriuError::Protocol {
            operation,
            detail: format!("type {:?} instead of {wanted:?}", resp.type_()),
        }),
        Ok(resp) => Err(CriuError::Failed {
            operation,
            errno: resp.cr_errno,
            explanation: Box::new(log::explain_file(kept.as_deref(), resp.cr_errmsg())),
            log: kept,
        }),
        Err(CriuError::Crashed { operation, .. }) => Err(CriuError::Crashed {
            operation,
            explanation: Box::new(log::explain_file(kept.as_deref(), "")),
            log: kept,
        }),
        Err(CriuError::Killed { operation, held, .. }) => Err(CriuError::Killed {
            operation,
            held,
            explanation: Box::new(log::explain_file(kept.as_deref(), "")),
            log: kept,
        }),
        Err(CriuError::Timeout { operation, after, .. }) => {
            Err(CriuError::Timeout { operation, after, log: kept })
        }
        Err(other) => Err(other),
    }
}

/// A request of this type with these options.
pub(crate) fn request_of(kind: Criu_req_type, opts: Option<Criu_opts>) -> Criu_req {
    let mut req = Criu_req::new();
    req.set_type(kind);
    req.opts = opts.into();
    req
}

fn notify_answer(answer: &NotifyAnswer) -> Criu_req {
    let mut req = Criu_req::new();
    req.type_ = Some(EnumOrUnknown::new(Criu_req_type::NOTIFY));
    req.set_notify_success(*answer != NotifyAnswer::Refuse);
    if let NotifyAnswer::External(external) = answer {
        // `images_dir_fd` is a required field, whatever the message is for.
        let mut opts = Criu_opts::new();
        opts.set_images_dir_fd(-1);
        opts.external.clone_from(external);
        req.opts = Some(opts).into();
    }
    req
}

fn crashed(operation: &'static str) -> CriuError {
    CriuError::Crashed { operation, explanation: Box::default(), log: None }
}

fn c_path(path: &Path) -> Result<CString, CriuError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|e| CriuError::io(format!("cannot pass `{}` to criu", path.display()))(e.into()))
}

fn move_up(fd: &OwnedFd) -> Result<OwnedFd, CriuError> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE_PASSED))
        .map_err(|e| CriuError::io("cannot duplicate a descriptor for criu")(e.into()))?;
    Ok(sys::adopt(number))
}
