//! A relay between a container runtime and the CRIU that it starts for a restore.
//!
//! The runtime finds a link to godwit called `criu` ([`Relay::directory`] is first in its `PATH`). What it starts there is
//! [`run_front`]: it hands its end of the runtime's socket to the [`Relay`] in the waiting godwit, gets another socket in its
//! place, and becomes the real CRIU, with the process id, parent and descriptors that the runtime knows. The relay passes
//! every message on, both ways, and does four things:
//!
//! - it keeps the restore request back until [`Relay::open`], so that the runtime can be ready before the images are;
//! - it adds to the request what a runtime has no option for ([`Adaptation`]);
//! - it asks for less of a log than runtimes do (at runc's level 4 it has a line for every mapping of every task, each
//!   written alone): all errors and warnings, which is what [`crate::log`] explains failures from;
//! - it tells when CRIU comes, which step it is at, and when it ends.
//!
//! When the relay goes, both sockets are shut: the runtime fails, and so does CRIU at its next question. CRIU does not care
//! from `pre-resume` on: who must hold the restored tree there does it with an action script, not with the relay.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, getsockopt,
    recvmsg, sendmsg, shutdown, socketpair,
};
use protobuf::Message;
use rust_criu::rust_criu_protobuf::rpc::{Criu_cg_mode, Criu_req, Criu_req_type, Criu_resp};

use crate::binary::CriuBinary;
use crate::error::CriuError;
use crate::sys;

/// Under this name runtimes look for CRIU.
const NAME: &str = "criu";
/// The relay's socket, told to the front.
const SOCKET_VARIABLE: &str = "GODWIT_CRIU_RELAY";
/// The real CRIU, told to the front.
const PROGRAM_VARIABLE: &str = "GODWIT_RELAYED_CRIU";
/// The cgroup that the front moves to, told to it.
const CGROUP_VARIABLE: &str = "GODWIT_CRIU_CGROUP";
/// CRIU's log level of warnings (log.h).
const WARNINGS: i32 = 2;
/// Longest packet, bytes: the requests of a restore with many mounts are some 10 KiB.
const MAX_PACKET: usize = 1 << 20;

/// What a runtime's request to restore lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adaptation {
    /// The container's cgroup (of version 2), where the runtime does not put CRIU there itself: CRIU does not arrange cgroups by
    /// what the images say, and the tasks come to life where it is.
    pub cgroup: Option<PathBuf>,
    /// Memory is filled on demand.
    pub lazy_pages: bool,
    /// The tree is restored into a pid namespace that is there already. CRIU has entered that when it starts its action scripts, and
    /// numbers mean something else to them: who watches does what they would.
    pub joins_pids: bool,
}

/// A step of CRIU's, told while the runtime hears of it, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// As in [`crate::Notify::script`].
    pub script: String,
    /// The root task, as soon as CRIU has named it: it does so at `setup-namespaces` and `post-restore` only (criu/cr-service.c).
    pub root: Option<i32>,
    /// CRIU itself.
    pub criu: i32,
}

/// Who is told of the CRIU that restores, in the relay's thread.
pub trait Watcher: Send + 'static {
    /// The process `criu` has been asked to restore, and does not know it yet: it waits for this to return.
    fn asked(&mut self, criu: i32);

    /// It is about to do a step, and waits: the runtime hears of it when this returns.
    fn before(&mut self, _step: &Step) {}

    /// It has done a step. What is done here goes on beside it as long as it asks nothing.
    fn step(&mut self, step: &Step);

    /// It has hung up; `well` after it had said that all is restored.
    fn ended(&mut self, well: bool);
}

/// Whether a program called `arg0` was started in CRIU's place.
pub fn is_front(arg0: &Path) -> bool {
    arg0.file_name().is_some_and(|name| name == NAME) && std::env::var_os(SOCKET_VARIABLE).is_some()
}

/// Becomes CRIU, with the relay between it and the runtime. Returns only when that fails.
pub fn run_front() -> CriuError {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (socket, program) = (std::env::var_os(SOCKET_VARIABLE), std::env::var_os(PROGRAM_VARIABLE));
    if let (Some(socket), [verb, number]) = (socket, args.as_slice())
        && verb == "swrk"
        && let Some(number) = number.to_str().and_then(|number| number.parse().ok())
        && let Err(error) = move_to_cgroup().and_then(|()| stand_between(Path::new(&socket), number))
    {
        return error;
    }
    let program = program.unwrap_or_else(|| NAME.into());
    let mut command = Command::new(&program);
    command.args(args);
    for variable in [SOCKET_VARIABLE, PROGRAM_VARIABLE, CGROUP_VARIABLE] {
        command.env_remove(variable);
    }
    CriuError::Spawn { path: program.into(), source: command.exec() }
}

/// Goes where the container will be, if told so.
fn move_to_cgroup() -> Result<(), CriuError> {
    let Some(cgroup) = std::env::var_os(CGROUP_VARIABLE).map(PathBuf::from) else { return Ok(()) };
    std::fs::create_dir_all(&cgroup)
        .and_then(|()| std::fs::write(cgroup.join("cgroup.procs"), "0"))
        .map_err(CriuError::io(format!("cannot put criu into the cgroup `{}`", cgroup.display())))
}

/// Gives the runtime's socket to the relay, and gets one that takes its number.
fn stand_between(socket: &Path, number: RawFd) -> Result<(), CriuError> {
    let failed = |errno: Errno| CriuError::io("cannot hand criu's socket on")(errno.into());
    let relay = UnixStream::connect(socket)
        .map_err(CriuError::io(format!("cannot connect to `{}`", socket.display())))?;
    let mut runtime = sys::inherited(number);
    send(&relay, &[0], &[runtime.as_raw_fd()]).map_err(failed)?;
    let given = receive(&relay).and_then(|mut packet| packet.descriptors.pop());
    let given = given.ok_or(Errno::ENOTCONN).map_err(failed)?;
    nix::unistd::dup2(&given, &mut runtime).map_err(failed)?;
    // it is CRIU's from now on
    let _ = runtime.into_raw_fd();
    Ok(())
}

/// The relay: a thread of its own. Dropped, it shuts all its sockets and waits for the thread.
#[derive(Debug)]
pub struct Relay {
    directory: PathBuf,
    socket: PathBuf,
    program: PathBuf,
    cgroup: Option<PathBuf>,
    control: Option<UnixStream>,
    waiting: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Makes `directory`, with the link and the socket in it, and waits there for a CRIU to be started; it need not be the
    /// first one, for runtimes ask one for its version before.
    ///
    /// # Errors
    /// There is no CRIU, or no room for a file.
    pub fn start(
        directory: PathBuf,
        adaptation: Adaptation,
        watcher: impl Watcher,
    ) -> Result<Self, CriuError> {
        let program = CriuBinary::find()?.path().to_owned();
        let failed = |what: &str| CriuError::io(format!("cannot {what} in `{}`", directory.display()));
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed("make a relay")(error));
            }
            _ => {}
        }
        let (link, socket) = (directory.join(NAME), directory.join("relay"));
        for old in [&link, &socket] {
            crate::dump::remove_stale(old)?;
        }
        std::env::current_exe()
            .and_then(|godwit| symlink(godwit, &link))
            .map_err(failed("make a link to godwit"))?;
        let listener = UnixListener::bind(&socket).map_err(failed("listen"))?;
        let (control, controlled) = UnixStream::pair().map_err(failed("make a socket"))?;
        let (told, waiting) = channel();
        let cgroup = adaptation.cgroup.clone();
        let thread = Thread { listener, control: controlled, told, adaptation, watcher, is_open: false };
        let thread = std::thread::Builder::new()
            .name("criu-relay".into())
            .spawn(move || thread.run())
            .map_err(failed("start a thread"))?;
        let control = Some(control);
        Ok(Self { directory, socket, program, cgroup, control, waiting, thread: Some(thread) })
    }

    /// Comes first in the runtime's `PATH`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Variables for the runtime's environment.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories = vec![self.directory.clone()];
        directories.extend(std::env::split_paths(&path));
        // a directory of a migration has no colon in it
        let path = std::env::join_paths(directories).unwrap_or(path);
        let mut environment = vec![
            ("PATH", path),
            (SOCKET_VARIABLE, self.socket.clone().into()),
            (PROGRAM_VARIABLE, self.program.clone().into()),
        ];
        environment.extend(self.cgroup.iter().map(|cgroup| (CGROUP_VARIABLE, cgroup.clone().into())));
        environment
    }

    /// Waits until the runtime has made its restore request, which is kept back: all that it does before is done. Whether
    /// that came within the time.
    pub fn wait_for_request(&self, limit: Duration) -> bool {
        match self.waiting.recv_timeout(limit) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    /// Lets the restore request pass, now or when it comes.
    ///
    /// # Errors
    /// The relay's thread has ended.
    pub fn open(&self) -> Result<(), CriuError> {
        let Some(mut control) = self.control.as_ref() else { return Ok(()) };
        control.write_all(&[0]).map_err(CriuError::io("cannot let criu restore"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.control = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What the thread works with.
struct Thread<W> {
    listener: UnixListener,
    control: UnixStream,
    told: Sender<()>,
    adaptation: Adaptation,
    watcher: W,
    is_open: bool,
}

/// The relay was told to end.
struct Over;

impl<W: Watcher> Thread<W> {
    fn run(mut self) {
        loop {
            let wanted = [Some(self.listener.as_fd()), Some(self.control.as_fd()), None, None];
            let accepted = match ready(wanted) {
                Ok([_, true, ..]) => match self.hear() {
                    Ok(()) => continue,
                    Err(Over) => return,
                },
                Ok([true, ..]) => self.listener.accept(),
                Ok(_) => continue,
                Err(error) => return tracing::warn!(%error, "the relay of criu's messages ended"),
            };
            let taken = accepted.and_then(|(front, _)| Ok(take(&front)?));
            match taken {
                Ok((criu, runtime, ours)) => match self.pass_on(criu, &runtime, &ours) {
                    Ok(()) => {}
                    Err(Over) => return,
                },
                // the runtime finds its socket shut
                Err(error) => tracing::warn!(%error, "a criu could not be relayed"),
            }
        }
    }

    /// What the controlling side wants: a byte opens, the end ends.
    fn hear(&mut self) -> Result<(), Over> {
        match self.control.read(&mut [0]) {
            Ok(1..) => {
                self.is_open = true;
                Ok(())
            }
            _ => Err(Over),
        }
    }

    /// Serves one CRIU to its end.
    fn pass_on(&mut self, criu: i32, runtime: &OwnedFd, ours: &OwnedFd) -> Result<(), Over> {
        let (mut from_runtime, mut from_criu) = (true, true);
        let mut kept: Option<Packet> = None;
        let (mut asked, mut well, mut root) = (false, false, None);
        // the socket need not tell its end: tasks that are being restored have it, too
        let end = sys::open_process(criu).ok();
        // open until CRIU has ended
        let mut directories = Vec::new();
        while from_runtime || from_criu {
            let wanted = [
                from_runtime.then(|| runtime.as_fd()),
                from_criu.then(|| ours.as_fd()),
                Some(self.control.as_fd()),
                end.as_ref().filter(|_| from_criu).map(AsFd::as_fd),
            ];
            let Ok([runtime_ready, criu_ready, control_ready, ended]) = ready(wanted) else { return Ok(()) };
            if control_ready {
                self.hear()?;
            }
            if runtime_ready {
                match receive(runtime) {
                    Some(mut packet) => match packet.adapt_restore(runtime, &self.adaptation) {
                        Ok(Some(opened)) => {
                            directories = opened;
                            asked = true;
                            self.watcher.asked(criu);
                            let _ = self.told.send(());
                            kept = Some(packet);
                        }
                        Ok(None) if packet.send(ours).is_ok() => {}
                        Ok(None) => return Ok(()),
                        Err(error) => {
                            tracing::warn!(%error, "the runtime's restore request cannot be passed on");
                            return Ok(());
                        }
                    },
                    None => {
                        from_runtime = false;
                        let _ = shutdown(ours.as_raw_fd(), Shutdown::Write);
                    }
                }
            }
            if self.is_open
                && let Some(packet) = kept.take()
                && packet.send(ours).is_err()
            {
                return Ok(());
            }
            // what it said last comes first
            if criu_ready || ended {
                match criu_ready.then(|| receive(ours)).flatten() {
                    Some(packet) => {
                        well = packet.says_restored();
                        let step = packet.step().map(|(script, named)| {
                            root = named.or(root);
                            Step { script, root, criu }
                        });
                        step.iter().for_each(|step| self.watcher.before(step));
                        // the runtime first: it works meanwhile
                        if packet.send(runtime).is_err() {
                            return Ok(());
                        }
                        step.iter().for_each(|step| self.watcher.step(step));
                    }
                    None => {
                        from_criu = false;
                        if asked {
                            self.watcher.ended(well);
                        }
                        let _ = shutdown(runtime.as_raw_fd(), Shutdown::Write);
                    }
                }
            }
        }
        drop(directories);
        Ok(())
    }
}

/// Takes the runtime's socket from a front and gives it one to us, for the CRIU that it becomes. That the pair is ours
/// matters: CRIU looks for the directories of a request among the descriptors of who made its socket.
fn take(front: &UnixStream) -> Result<(i32, OwnedFd, OwnedFd), Errno> {
    let criu = getsockopt(front, PeerCredentials)?.pid();
    let runtime = receive(front).and_then(|mut packet| packet.descriptors.pop()).ok_or(Errno::ENOTCONN)?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    send(front, &[0], &[theirs.as_raw_fd()])?;
    Ok((criu, runtime, ours))
}

/// Waits until something can be read from one of four descriptors.
fn ready(wanted: [Option<std::os::fd::BorrowedFd<'_>>; 4]) -> Result<[bool; 4], Errno> {
    let mut places = Vec::with_capacity(4);
    let mut polled = Vec::with_capacity(4);
    for (place, fd) in wanted.into_iter().enumerate() {
        if let Some(fd) = fd {
            places.push(place);
            polled.push(PollFd::new(fd, PollFlags::POLLIN));
        }
    }
    match poll(&mut polled, PollTimeout::NONE) {
        Err(Errno::EINTR) => return Ok([false; 4]),
        result => result?,
    };
    let mut found = [false; 4];
    for (place, polled) in places.into_iter().zip(&polled) {
        found[place] = polled.any().unwrap_or(true);
    }
    Ok(found)
}

/// One message, with what came along.
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Packet {
    fn send(&self, to: &OwnedFd) -> Result<(), Errno> {
        let descriptors: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        send(to, &self.bytes, &descriptors)
    }

    /// If this is the request to restore: lets it ask for what the runtime cannot, for no more of a log than needed, and for
    /// the runtime's directories by descriptors of ours, which are given back. `None` when it is another request.
    fn adapt_restore(
        &mut self,
        runtime: &OwnedFd,
        adaptation: &Adaptation,
    ) -> std::io::Result<Option<Vec<File>>> {
        let Ok(mut request) = Criu_req::parse_from_bytes(&self.bytes) else { return Ok(None) };
        if request.type_() != Criu_req_type::RESTORE {
            return Ok(None);
        }
        let pid = getsockopt(runtime, PeerCredentials)?.pid();
        let mut opened = Vec::new();
        let mut open = |number: i32| {
            let file = File::open(format!("/proc/{pid}/fd/{number}"))?;
            let ours = file.as_raw_fd();
            opened.push(file);
            std::io::Result::Ok(ours)
        };
        if let Some(options) = request.opts.as_mut() {
            options.set_images_dir_fd(open(options.images_dir_fd())?);
            if let Some(number) = options.work_dir_fd {
                options.set_work_dir_fd(open(number)?);
            }
            options.set_log_level(options.log_level().min(WARNINGS));
            if adaptation.lazy_pages {
                options.set_lazy_pages(true);
            }
            if adaptation.cgroup.is_some() {
                options.set_manage_cgroups(true);
                options.set_manage_cgroups_mode(Criu_cg_mode::IGNORE);
            }
        }
        self.bytes = request.write_to_bytes()?;
        Ok(Some(opened))
    }

    /// Whether CRIU says that the restore has succeeded.
    fn says_restored(&self) -> bool {
        Criu_resp::parse_from_bytes(&self.bytes)
            .is_ok_and(|answer| answer.type_() == Criu_req_type::RESTORE && answer.success())
    }

    /// The step that CRIU tells, and the root task if it is named.
    fn step(&self) -> Option<(String, Option<i32>)> {
        let answer = Criu_resp::parse_from_bytes(&self.bytes).ok()?;
        if answer.type_() != Criu_req_type::NOTIFY {
            return None;
        }
        let root = answer.notify.pid.filter(|pid| *pid > 0);
        Some((answer.notify.script().to_owned(), root))
    }
}

fn send(to: &impl AsFd, bytes: &[u8], descriptors: &[RawFd]) -> Result<(), Errno> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let to = to.as_fd().as_raw_fd();
    loop {
        match sendmsg::<()>(to, &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// The next message; `None` when there will be none.
fn receive(from: &impl AsFd) -> Option<Packet> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let (length, descriptors) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let from = from.as_fd().as_raw_fd();
        let message = loop {
            match recvmsg::<()>(from, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => {}
                result => break result.ok()?,
            }
        };
        let mut descriptors = Vec::new();
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                descriptors.extend(numbers.into_iter().map(sys::adopt));
            }
        }
        if message.bytes == 0 || message.flags.contains(MsgFlags::MSG_TRUNC) {
            return None;
        }
        (message.bytes, descriptors)
    };
    bytes.truncate(length);
    Some(Packet { bytes, descriptors })
}
